//! A response on its way to the client: its deadlines, and what is recorded of it when it ends.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::attempt::Upload;
use super::refusal::Refusal;
use crate::proto::body::Stream;
use crate::proto::{Body, BodyError, Response};
use crate::service::{InFlight, ServiceStats};
use crate::timer::{Deadline, Timers};

/// What is recorded of a request when its response has ended, or was given up.
pub struct Record {
    pub stats: Arc<ServiceStats>,
    pub started: Instant,
    /// Counts at the endpoint until the response has ended.
    pub _in_flight: Option<InFlight>,
}

/// How long a response's body may take.
pub(super) struct Limits {
    /// How long the exchange may stand still in both directions.
    pub idle_timeout: Duration,
    /// When the whole exchange must have ended.
    pub deadline: Option<Deadline>,
    /// Whether a call that exceeds its deadline can be told so in trailers.
    pub tells_in_trailers: bool,
    /// The rest of the request.
    pub upload: Option<Upload>,
}

impl Record {
    /// Records the response when its body ends or is dropped; at once where the body is held in full.
    pub(super) fn at_end_of(self, response: Response, limits: Limits, timers: &Rc<Timers>) -> Response {
        let status = response.status().as_u16();
        match response.into_parts() {
            (head, Body::Stream(stream)) => {
                let idle = timers.deadline(limits.idle_timeout);
                let timers = timers.clone();
                let recorded = Recorded { stream: Some(stream), limits, idle, timers, status, record: self };
                Response::from_parts(head, Body::Stream(Box::pin(recorded)))
            }
            (head, body) => {
                self.stats.ended(status, self.started.elapsed());
                Response::from_parts(head, body)
            }
        }
    }
}

struct Recorded {
    /// None once it was cut off.
    stream: Option<Stream>,
    limits: Limits,
    idle: Deadline,
    timers: Rc<Timers>,
    status: u16,
    record: Record,
}

impl Recorded {
    /// Ends a response whose deadline has passed, and what is left of its request.
    fn cut_off(&mut self) -> Result<Frame<Bytes>, BodyError> {
        // Trailers end a message well, which one whose length was announced can no longer do.
        let in_trailers = self.limits.tells_in_trailers && self.size_hint().exact().is_none();
        self.stream = None;
        self.limits.upload = None;
        if !in_trailers {
            return Err(BodyError::Deadline);
        }
        let mut trailers = HeaderMap::new();
        Refusal::Deadline.write_grpc(&mut trailers);
        Ok(Frame::trailers(trailers))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.record.stats.ended(self.status, self.record.started.elapsed());
    }
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        if this.limits.deadline.as_mut().is_some_and(|deadline| deadline.poll_passed(cx).is_ready()) {
            return Poll::Ready(Some(this.cut_off()));
        }
        if let Poll::Ready(frame) = stream.as_mut().poll_frame(cx) {
            this.idle.reset(this.limits.idle_timeout);
            return Poll::Ready(frame);
        }
        loop {
            ready!(this.idle.poll_passed(cx));
            // What moves in the other direction counts too.
            let upload = this.limits.upload.as_ref();
            match upload.and_then(|upload| upload.time_left(&this.timers, this.limits.idle_timeout)) {
                Some(left) => this.idle.reset(left),
                None => {
                    this.stream = None;
                    return Poll::Ready(Some(Err(BodyError::Idle)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(|stream| stream.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.as_ref().map_or_else(|| SizeHint::with_exact(0), |stream| stream.size_hint())
    }
}
