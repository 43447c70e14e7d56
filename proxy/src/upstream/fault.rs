//! A stream that notes why TLS ended it.
//!
//! hyper tells those who wait for a response that the connection is closed, and keeps the reason to itself. With TLS 1.3
//! an endpoint says what it thinks of our certificate only after the handshake: that has to reach whoever can mend it.
//! And it keeps to itself when something came last.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::h2::Silence;
use crate::proto::frames::Frames;
use crate::transport::Stream;
use crate::turn::Items;

/// What TLS had to say; nothing until it has.
pub type Fault = Rc<RefCell<Option<rustls::Error>>>;

/// The stream, and where its fault is noted.
pub struct Noting {
    pub stream: Stream,
    pub fault: Fault,
    /// Told of what comes.
    pub(super) silence: Rc<Silence>,
    /// What the endpoint sends.
    frames: Frames,
    /// Frames that this turn of the connection's task has to pay for.
    unpaid: Items,
}

impl Noting {
    pub(super) fn new(stream: Stream, fault: Fault, silence: Rc<Silence>) -> Self {
        Self { stream, fault, silence, frames: Frames::default(), unpaid: Items::default() }
    }

    fn note(&self, error: &io::Error) {
        if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
            self.fault.replace(Some(error.clone()));
        }
    }

    /// Waits for what the other side said before it closed the connection that cannot be written to. As it is closed,
    /// there is something to be read, or the end.
    fn after_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(result, Poll::Ready(Err(_)))
            && self.stream.as_tls().is_some()
            && let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut [0])))
        {
            self.note(&error);
        }
        result
    }
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => {
                this.silence.broken();
                this.unpaid.add(this.frames.count(buf.filled().get(before..).unwrap_or_default()));
            }
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.after_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.after_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.after_write(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
