//! Recording a response when it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::proto::body::Stream;
use crate::proto::{Body, BodyError, Response};
use crate::service::{InFlight, ServiceStats};

/// What is recorded of a request when its response has ended, or was given up.
pub struct Record {
    pub stats: Arc<ServiceStats>,
    pub started: Instant,
    /// Counts at the endpoint until the response has ended.
    pub _in_flight: Option<InFlight>,
}

impl Record {
    /// Records the response when its body ends or is dropped; at once where the body is held in full.
    pub fn at_end_of(self, response: Response) -> Response {
        let status = response.status().as_u16();
        match response.into_parts() {
            (head, Body::Stream(stream)) => {
                let recorded = Recorded { stream, status, record: self };
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
    stream: Stream,
    status: u16,
    record: Record,
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
        self.stream.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}
