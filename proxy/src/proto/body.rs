//! The body of a message.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the client's body broke: {0}")]
    Client(String),
    #[error("the endpoint's body broke: {0}")]
    Endpoint(String),
    /// It stood still, or came too slowly to be waited for.
    #[error("the body stood still for too long, or came too slowly")]
    Idle,
    /// The side that the body comes from has reset its HTTP/2 stream, with this error code (RFC 9113, 7).
    #[error("the stream was reset with HTTP/2 error {0}")]
    Reset(u32),
    /// Nobody wants the rest of the body any more.
    #[error("the exchange was given up")]
    GivenUp,
    /// The request has taken longer than it may.
    #[error("the deadline of the request has passed")]
    Deadline,
    #[error("the body is not as long as its head says")]
    Length,
    #[error("the body is larger than this listener takes")]
    TooLarge,
}

/// A body that arrives while it is passed on, in frames of data with an optional frame of trailers at the end.
pub type Stream = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>;

/// The body of a request or a response.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    /// Held in full.
    Full(Bytes),
    Stream(Stream),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(_) => match std::mem::take(&mut *self) {
                Self::Full(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}
