//! Bodies over HTTP/2, as hyper has them and as we have them: the same on both sides of the proxy.
//!
//! A body that breaks on one side breaks on the other, and with a reason: a stream that was reset resets the other
//! stream with the same error code, and one that was given up is cancelled. It never ends as though it were complete.
//!
//! Each stream may be blocked by a peer that opens no window, so what one holds is bounded: data is given to the library in
//! pieces of at most [`PIECE`], and the library takes another only when it holds less than [`SEND_BUFFER`] of the stream.
//! Its receive window, which the peer may fill before anybody reads, is for each side to set.

use std::error::Error as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Body, BodyError};
use crate::turn::{self, Items};

/// The most that a stream is given at once: that of a frame, unless the peer asks for more (RFC 9113, 6.5.2).
pub const PIECE: usize = 16 << 10;

/// What the library takes of one stream before the peer takes it; one piece may go beyond it.
pub const SEND_BUFFER: usize = PIECE;

/// Up to this size data is copied: it may wait for long, and must not keep the block that it was read into.
const SMALL: usize = 4 << 10;

/// The error code of a stream that nobody wants any more (RFC 9113, 7).
const CANCEL: u32 = 0x8;

/// Which side a body comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Client,
    Endpoint,
}

/// hyper's body as ours.
pub struct Incoming {
    inner: hyper::body::Incoming,
    from: From,
    /// Frames that this turn of the task has to pay for.
    frames: Items,
}

impl Incoming {
    pub fn new(inner: hyper::body::Incoming, from: From) -> Self {
        Self { inner, from, frames: Items::default() }
    }

    /// What an end without error means. hyper takes a reset with NO_ERROR for one, since an endpoint that has answered
    /// may stop a request so (RFC 9113, 8.1); but a message that is cut short by it is not complete.
    fn at_end(&self) -> Option<Result<Frame<Bytes>, BodyError>> {
        let complete = match self.from {
            From::Client => self.inner.is_end_stream(),
            From::Endpoint => self.inner.size_hint().lower() == 0,
        };
        (!complete).then_some(Err(BodyError::Reset(CANCEL)))
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(turn::poll_more(cx));
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.frames.add(1);
        Poll::Ready(match frame {
            None => self.at_end(),
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => Some(Err(match (reset_code(&error), self.from) {
                (Some(code), _) => BodyError::Reset(code),
                (None, From::Client) => BodyError::Client(describe(&error)),
                (None, From::Endpoint) => BodyError::Endpoint(describe(&error)),
            })),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Our body as hyper takes it, in pieces of at most [`PIECE`].
pub struct Outgoing {
    body: Body,
    /// Data that has come from the body, and is still to go on.
    rest: Bytes,
}

impl Outgoing {
    pub fn new(body: Body) -> Self {
        Self { body, rest: Bytes::new() }
    }

    /// The body, where nothing of it was taken.
    pub fn into_body(self) -> Body {
        self.body
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    /// hyper resets the stream with its code.
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(reason(&error).into()))),
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Ok(Ok(data))) if data.len() <= SMALL => {
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&data)))));
                }
                Some(Ok(Ok(data))) => this.rest = data,
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

fn reason(error: &BodyError) -> h2::Reason {
    match error {
        // That all is well is no reason to end a body early.
        BodyError::Reset(0) => h2::Reason::CANCEL,
        BodyError::Reset(code) => h2::Reason::from(*code),
        BodyError::Endpoint(_) => h2::Reason::INTERNAL_ERROR,
        _ => h2::Reason::CANCEL,
    }
}

/// The code with which the other side has reset the stream, if that is what went wrong.
pub fn reset_code(error: &hyper::Error) -> Option<u32> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason().filter(|_| error.is_reset() && error.is_remote()).map(u32::from);
        }
        source = error.source();
    }
    None
}

/// Whether the other side has said that it is going away without having looked at the request.
pub fn is_going_away(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away() && error.is_remote();
        }
        source = error.source();
    }
    false
}

/// The error with its causes.
pub fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
