//! What a listener takes of a request's body, whatever version of HTTP it comes by.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::connection::Connection;
use super::refusal::Refusal;
use crate::proto::{Body, BodyError, trailers};

/// A body that is yet to arrive, within the listener's limits.
///
/// # Errors
///
/// When it is known to be too large: nothing of the request needs to go on then.
pub fn within_limits<B>(body: B, connection: &Connection) -> Result<Body, Refusal>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin + 'static,
{
    let settings = &connection.listener.settings;
    let left = settings.max_body_bytes.unwrap_or(u64::MAX);
    if body.size_hint().lower() > left {
        return Err(Refusal::BodyTooLarge);
    }
    if body.is_end_stream() {
        return Ok(Body::Empty);
    }
    // How long it may stand still is for the attempt to say, which knows whether there is a response by then.
    Ok(Body::Stream(Box::pin(Limited { body, left })))
}

/// The same for a body that is here.
///
/// # Errors
///
/// When it is too large.
pub fn whole_within_limits(bytes: Bytes, connection: &Connection) -> Result<Body, Refusal> {
    let most = connection.listener.settings.max_body_bytes.unwrap_or(u64::MAX);
    if bytes.len() as u64 > most { Err(Refusal::BodyTooLarge) } else { Ok(Body::Full(bytes)) }
}

struct Limited<B> {
    body: B,
    /// Bytes that may still come.
    left: u64,
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> HttpBody for Limited<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(last) = frame.trailers_mut()
        {
            trailers::strip_forbidden(last);
            if last.is_empty() {
                return Poll::Ready(None);
            }
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match this.left.checked_sub(data.len() as u64) {
                Some(left) => this.left = left,
                None => return Poll::Ready(Some(Err(BodyError::TooLarge))),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
