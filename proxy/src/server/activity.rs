//! What a client's HTTP/1 connection is doing, told from outside of the library that speaks on it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::Next;
use crate::proto::body;
use crate::proto::{Body, BodyError, Response};
use crate::transport::Stream;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Between requests.
    Idle,
    /// A part of a request's head has arrived.
    Head,
    /// A request is being served.
    Busy,
    /// The client does not take what is written to it.
    Blocked,
}

/// What the parts of a connection tell its task.
#[derive(Default)]
pub(super) struct Activity {
    /// A part of a request's head has arrived.
    pub(super) head_begun: Cell<bool>,
    /// Requests, and bodies of requests and responses, that have not ended.
    pub(super) open: Cell<u32>,
    /// The last write was not taken.
    pub(super) write_blocked: Cell<bool>,
    /// Writes that were taken, in whole or in part.
    pub(super) writes: Cell<u64>,
    /// hyper may know more of this connection than is seen from here: its state is kept.
    pub(super) never_parked: Cell<bool>,
    /// A request has been taken whose response may not have been written to its end.
    pub(super) answering: Cell<bool>,
    /// What follows the last response; none while that is another request.
    pub(super) next: RefCell<Option<Next>>,
    /// hyper refused what it read, and said so where there was no request to answer.
    pub(super) refused: Cell<Option<Unreadable>>,
}

/// Why hyper takes something for no request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unreadable {
    TooLarge,
    Malformed,
}

impl Activity {
    /// Whether anything is being served.
    pub(super) fn is_busy(&self) -> bool {
        self.open.get() > 0
    }

    pub(super) fn has_next(&self) -> bool {
        self.next.borrow().is_some()
    }

    pub(super) fn phase(&self) -> Phase {
        if self.write_blocked.get() {
            Phase::Blocked
        } else if self.open.get() > 0 {
            Phase::Busy
        } else if self.head_begun.get() {
            Phase::Head
        } else {
            Phase::Idle
        }
    }
}

/// Something that keeps a connection busy.
pub(super) struct Open(pub(super) Rc<Activity>);

impl Open {
    pub(super) fn new(activity: &Rc<Activity>) -> Self {
        activity.open.set(activity.open.get() + 1);
        Self(activity.clone())
    }

    /// The response, which keeps the connection busy until its body has ended.
    pub(super) fn until_end_of(self, response: Response) -> Response {
        response.map(|body| match body {
            Body::Stream(stream) => Body::Stream(Box::pin(ResponseBody { stream, _open: self })),
            body => body,
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
    }
}

/// Keeps the connection busy until the response's body has ended.
struct ResponseBody {
    stream: body::Stream,
    _open: Open,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.stream.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}

/// The socket, with an eye on what goes through it.
pub(super) struct Watched {
    pub(super) stream: Stream,
    /// Read from the socket already, and to be read first.
    pub(super) read_ahead: Bytes,
    pub(super) activity: Rc<Activity>,
}

impl Watched {
    /// Whether bytes are hyper's own refusal of what it could not read: kept here, because it gives no reason.
    fn is_refusal(&self, bytes: &[u8]) -> bool {
        if self.activity.answering.get() || !self.activity.head_begun.get() || !bytes.starts_with(b"HTTP/1.1 4") {
            return false;
        }
        let too_large = matches!(bytes.get(9..12), Some(b"431" | b"414"));
        self.activity.refused.set(Some(if too_large { Unreadable::TooLarge } else { Unreadable::Malformed }));
        true
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.write_blocked.set(result.is_pending());
        if result.is_ready() {
            self.activity.writes.set(self.activity.writes.get().wrapping_add(1));
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let length = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(pin!(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before && self.activity.open.get() == 0 {
            self.activity.head_begun.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_refusal(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = pin!(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_refusal(bufs.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let result = pin!(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.refused.get().is_some() {
            return Poll::Ready(Ok(()));
        }
        pin!(&mut self.stream).poll_shutdown(cx)
    }
}
