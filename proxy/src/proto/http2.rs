//! Bodies over HTTP/2, as hyper has them and as we have them: the same on both sides of the proxy.
//!
//! A body that breaks on one side breaks on the other, and with a reason: a stream that was reset resets the other
//! stream with the same error code, and one that was given up is cancelled. It never ends as though it were complete.

use std::error::Error as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Body, BodyError};

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
}

impl Incoming {
    pub fn new(inner: hyper::body::Incoming, from: From) -> Self {
        Self { inner, from }
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
        Poll::Ready(match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
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

/// Our body as hyper takes it.
pub struct Outgoing(pub Body);

impl HttpBody for Outgoing {
    type Data = Bytes;
    /// hyper resets the stream with its code.
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|error| reason(&error).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
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
