//! Waiting for the first byte of a request's body, before the request takes anything of its service.
//!
//! A client can announce a body and never send it. If such a request went to an endpoint at once, it would hold a
//! connection for as long as the client may be silent, and a few HTTP/2 connections would be enough to hold all of them.
//! So a request whose body has not begun waits here. It holds its own stream and a timer meanwhile, and nothing that
//! other clients need: no connection, no place among the requests of its service, no pick of a balancer.
//!
//! Where there is no endpoint to go to, nothing is waited for, and the refusal comes at once.
//!
//! Some endpoints must see the head first, and their clients wait for them. These requests go on at once: those with
//! `Expect: 100-continue`, gRPC (the server of a call may speak first), extended CONNECT, and upgrades. The share that a
//! client may have of an endpoint's connections bounds them (see `service::admission::shares`).

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::refusal::Refusal;
use crate::proto::body::Stream;
use crate::proto::{Body, BodyError, grpc};
use crate::timer::{Deadline, Timers};
use crate::upstream::Failure;

/// Frames without a byte that are passed over in one poll. A client can send them as fast as the connection allows.
const EMPTY_FRAMES: usize = 32;

/// Whether the endpoint has to see this head before the client sends its body.
pub(super) fn is_needed_first(headers: &HeaderMap, version: Version) -> bool {
    // RFC 9110, 10.1.1: in HTTP/1.0 the expectation is ignored.
    let expects = version >= Version::HTTP_11
        && headers.get_all(EXPECT).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    expects || grpc::is_of_grpc(headers)
}

/// The body, once its first byte has come, or its end. It may take `patience`, but not longer than the request's deadline.
///
/// # Errors
///
/// The body broke, or one of the two times has passed.
pub(super) async fn arrived(
    mut stream: Stream,
    patience: Duration,
    deadline: Option<&mut Deadline>,
    timers: &Rc<Timers>,
) -> Result<Body, Refusal> {
    let mut deadline = deadline;
    let mut patience = timers.deadline(patience);
    let first = poll_fn(|cx| {
        if let Poll::Ready(first) = poll_first(&mut stream, cx) {
            return Poll::Ready(first.map_err(|error| Failure::ClientBody(error).into()));
        }
        if deadline.as_mut().is_some_and(|deadline| deadline.poll_passed(cx).is_ready()) {
            return Poll::Ready(Err(Refusal::Deadline));
        }
        patience.poll_passed(cx).map(|()| Err(Failure::ClientBody(BodyError::Idle).into()))
    })
    .await?;
    Ok(Body::Stream(match first {
        Some(first) => Box::pin(Begun { first: Some(first), rest: stream }),
        None => stream,
    }))
}

/// The first frame that says something; none at the end of the body.
fn poll_first(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
    for _ in 0..EMPTY_FRAMES {
        match stream.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            Poll::Ready(frame) => return Poll::Ready(frame.transpose()),
            Poll::Pending => return Poll::Pending,
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// A body whose first frame was read to see that it has begun.
struct Begun {
    first: Option<Frame<Bytes>>,
    rest: Stream,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => self.rest.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let mut hint = self.rest.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(length));
        }
        hint.set_lower(hint.lower().saturating_add(length));
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
    use http_body_util::StreamBody;

    use super::*;

    fn head(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn some_endpoints_see_the_head_first() {
        for (name, value, first) in [
            (EXPECT, "100-continue", true),
            (EXPECT, "100-Continue", true),
            (EXPECT, "nothing", false),
            (CONTENT_TYPE, "application/grpc", true),
            (CONTENT_TYPE, "application/grpc+proto", true),
            (CONTENT_TYPE, "application/grpc-web", true),
            (CONTENT_TYPE, "application/json", false),
        ] {
            assert_eq!(is_needed_first(&head(name, value), Version::HTTP_2), first, "{value}");
        }
        assert!(!is_needed_first(&head(EXPECT, "100-continue"), Version::HTTP_10));
    }

    #[test]
    fn what_has_begun_is_all_there() {
        let data = |text: &'static str| Ok::<_, BodyError>(Frame::data(Bytes::from_static(text.as_bytes())));
        let frames = tokio_stream::iter([data(""), data("ab"), data("c")]);
        let stream: Stream = Box::pin(StreamBody::new(frames));
        let timers: Rc<Timers> = Rc::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut arrived = std::pin::pin!(arrived(stream, Duration::from_secs(1), None, &timers));
        let Poll::Ready(Ok(mut body)) = arrived.as_mut().poll(&mut cx) else { panic!("it has begun") };
        let mut seen = Vec::new();
        assert_eq!(body.size_hint().lower(), 2);
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) {
            seen.extend_from_slice(&frame.into_data().expect("data"));
        }
        assert_eq!(seen, b"abc");
    }

    /// Issue 10, 4: a frame of no bytes is not the beginning of a body, and a flood of them leaves the others their turn.
    #[test]
    fn empty_frames_are_no_beginning() {
        let frames = (0..10 * EMPTY_FRAMES).map(|_| Ok::<_, BodyError>(Frame::data(Bytes::new())));
        let stream: Stream = Box::pin(StreamBody::new(tokio_stream::iter(frames)));
        let timers: Rc<Timers> = Rc::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut arrived = std::pin::pin!(arrived(stream, Duration::from_secs(1), None, &timers));
        assert!(arrived.as_mut().poll(&mut cx).is_pending());
        timers.advance(timers.tick_after(Duration::from_secs(1)));
        let Poll::Ready(Err(refusal)) = arrived.as_mut().poll(&mut cx) else { panic!("its time is over") };
        assert_eq!(refusal.status().as_u16(), 408);
    }
}
