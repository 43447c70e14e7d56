//! The parts of a connection that tell its [`Watch`] how it gets on: bodies, tunnels, and the stream underneath.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::watch::{Open, Watch};
use crate::proto::BodyError;
use crate::proto::http2::Outgoing;
use crate::transport::{Io, Stream};

/// Tells of a request's body that it is being read.
pub struct RequestBody<B> {
    body: B,
    watch: Rc<Watch>,
}

impl<B> RequestBody<B> {
    pub fn new(body: B, watch: &Rc<Watch>) -> Self {
        Self { body, watch: watch.clone() }
    }
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> HttpBody for RequestBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.watch.got_on();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, with which its stream ends.
///
/// Data goes on in the pieces of [`Outgoing`]: that a client takes a stream is known only when the library asks for more.
pub struct ResponseBody {
    body: Outgoing,
    stream: Open,
}

impl ResponseBody {
    pub fn new(body: Outgoing, mut stream: Open) -> Self {
        stream.ended = body.is_end_stream();
        Self { body, stream }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        // Asked for more, the client has taken what it was given.
        self.stream.set_untaken(false);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.stream.watch.got_on();
        let is_data = matches!(&frame, Some(Ok(frame)) if frame.is_data());
        self.stream.set_untaken(is_data);
        self.stream.ended = !is_data || self.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What goes through a tunnel, which gets on with every byte, whichever way.
pub struct Tunnelled<T> {
    io: T,
    stream: Open,
}

impl<T> Tunnelled<T> {
    pub fn new(io: T, stream: Open) -> Self {
        Self { io, stream }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for Tunnelled<T> {
    /// The library would take a tunnel that is dropped for one that has ended.
    fn break_off(&self) {
        self.stream.reset();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tunnelled<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.stream.watch.got_on();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tunnelled<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.stream.watch.got_on();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The connection's stream, with an eye on what goes through it. Whoever has another handle can say the last word.
pub struct Watched {
    pub stream: Rc<RefCell<Written>>,
    pub watch: Rc<Watch>,
}

/// A stream that is written to.
pub struct Written {
    pub stream: Stream,
    /// Whether the last write was taken as a whole: no frame has been written in part then.
    whole: bool,
}

impl Written {
    pub fn new(stream: Stream) -> Self {
        Self { stream, whole: true }
    }

    /// Whether another frame can be written.
    pub fn is_between_frames(&self) -> bool {
        self.whole
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        self.whole = matches!(result, Poll::Ready(Ok(taken)) if taken == offered);
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = pin!(&mut self.stream.borrow_mut().stream).poll_read(cx, buf);
        self.watch.has_read(buf.filled().get(before..).unwrap_or_default());
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut written = self.stream.borrow_mut();
        let result = pin!(&mut written.stream).poll_write(cx, buf);
        written.wrote(result, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = self.stream.borrow_mut();
        let result = pin!(&mut written.stream).poll_write_vectored(cx, bufs);
        written.wrote(result, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream.borrow_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream.borrow_mut().stream).poll_shutdown(cx)
    }
}
