//! A response on its way to the client: its deadlines, and what is recorded of it when it ends.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::attempt::Upload;
use super::attempts::Held;
use super::refusal::Refusal;
use crate::proto::body::Stream;
use crate::proto::{Body, BodyError, Response, grpc, trailers};
use crate::service::{Limit, ServiceStats};
use crate::timer::{Deadline, Timers};
use crate::upstream::{Held as HeldBody, Hold};

/// What is recorded of a request when its response has ended, or was given up.
pub(super) struct Record {
    pub stats: Arc<ServiceStats>,
    pub started: Instant,
    pub held: Held,
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
    pub(super) fn at_end_of(
        self,
        response: Response,
        hold: Option<Hold>,
        mut limits: Limits,
        timers: &Rc<Timers>,
    ) -> Response {
        let status = response.status().as_u16();
        match response.into_parts() {
            (head, Body::Stream(stream)) => {
                let deadline = limits.deadline.take();
                let recorded = Recorded {
                    stream: Some(match hold {
                        Some(hold) => Source::Held(hold.respond(stream)),
                        None => Source::Own(stream),
                    }),
                    last: None,
                    idle: timers.deadline(limits.idle_timeout),
                    timers: timers.clone(),
                    limits,
                    status,
                    record: self,
                };
                let stream: Stream = match deadline {
                    None => Box::pin(recorded),
                    Some(deadline) => Box::pin(Bounded::new(recorded, deadline)),
                };
                Response::from_parts(head, Body::Stream(stream))
            }
            (head, body) => {
                self.stats.ended(status, self.started.elapsed());
                Response::from_parts(head, body)
            }
        }
    }
}

/// Where a response's body comes from.
enum Source {
    /// It may be ended for others who wait for a connection.
    Held(HeldBody),
    Own(Stream),
}

impl Source {
    fn body(&self) -> &dyn HttpBody<Data = Bytes, Error = BodyError> {
        match self {
            Self::Held(held) => held,
            Self::Own(stream) => &**stream,
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Held(held) => Pin::new(held).poll_frame(cx),
            Self::Own(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_ended(&self) -> bool {
        matches!(self, Self::Held(held) if held.is_ended())
    }
}

struct Recorded {
    /// None once it was cut off.
    stream: Option<Source>,
    /// What is left to say then.
    last: Option<Result<Frame<Bytes>, BodyError>>,
    idle: Deadline,
    timers: Rc<Timers>,
    limits: Limits,
    status: u16,
    record: Record,
}

impl Recorded {
    /// Takes note of a frame, with which the response may have ended or broken; none after the last.
    fn follow(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        let Some(ending) = &mut self.record.held.ending else { return };
        match frame {
            Some(Err(error)) => ending.broken(error),
            Some(Ok(frame)) if let Some(trailers) = frame.trailers_ref() => ending.complete(grpc::status(trailers)),
            Some(Ok(_)) if !self.stream.as_ref().is_some_and(|stream| stream.body().is_end_stream()) => {}
            Some(Ok(_)) | None => ending.complete(None),
        }
    }

    /// Gives up the response and what is left of its request, and leaves this to be said.
    fn cut_off(&mut self, last: Result<Frame<Bytes>, BodyError>) {
        if let Some(ending) = &mut self.record.held.ending {
            ending.broken(last.as_ref().err().unwrap_or(&BodyError::Deadline));
        }
        self.stream = None;
        self.limits.upload = None;
        self.last = Some(last);
    }

    /// The deadline has passed.
    fn expire(&mut self) {
        // Trailers end a message well, which one whose length was announced can no longer do.
        if !self.limits.tells_in_trailers || self.size_hint().exact().is_some() {
            return self.cut_off(Err(BodyError::Deadline));
        }
        let mut trailers = HeaderMap::new();
        Refusal::Deadline.write_grpc(&mut trailers);
        self.cut_off(Ok(Frame::trailers(trailers)));
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
        loop {
            let Some(stream) = &mut this.stream else { return Poll::Ready(this.last.take()) };
            if stream.is_ended() {
                this.record.stats.limited(Limit::ClientShare);
                this.cut_off(Err(BodyError::GivenUp));
                continue;
            }
            if let Poll::Ready(mut frame) = stream.poll_frame(cx) {
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    trailers::strip_forbidden(trailers);
                }
                this.idle.reset(this.limits.idle_timeout);
                this.follow(frame.as_ref());
                return Poll::Ready(frame);
            }
            ready!(this.idle.poll_passed(cx));
            // What moves in the other direction counts too.
            let upload = this.limits.upload.as_ref();
            match upload.and_then(|upload| upload.time_left(&this.timers, this.limits.idle_timeout)) {
                Some(left) => this.idle.reset(left),
                None => this.cut_off(Err(BodyError::Idle)),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.stream.as_ref().is_none_or(|stream| stream.body().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.as_ref().map_or_else(SizeHint::default, |stream| stream.body().size_hint())
    }
}

/// A response with a deadline, which passes also while the client takes nothing of it and so nobody asks for more: a
/// task of its own waits for it.
struct Bounded {
    shared: Rc<RefCell<Shared>>,
    waiting: tokio::task::JoinHandle<()>,
}

struct Shared {
    /// None once nobody wants it any more.
    recorded: Option<Recorded>,
    /// Who waits for the next frame.
    waker: Option<Waker>,
}

impl Bounded {
    fn new(recorded: Recorded, mut deadline: Deadline) -> Self {
        let shared = Rc::new(RefCell::new(Shared { recorded: Some(recorded), waker: None }));
        let of_task = shared.clone();
        let waiting = tokio::task::spawn_local(async move {
            poll_fn(|cx| deadline.poll_passed(cx)).await;
            let mut shared = of_task.borrow_mut();
            if let Some(recorded) = &mut shared.recorded {
                recorded.expire();
            }
            if let Some(waker) = shared.waker.take() {
                waker.wake();
            }
        });
        Self { shared, waiting }
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        self.waiting.abort();
        let ended = self.shared.borrow_mut().recorded.take();
        drop(ended);
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        let Some(recorded) = &mut shared.recorded else { return Poll::Ready(None) };
        let frame = Pin::new(recorded).poll_frame(cx);
        if frame.is_pending() && shared.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            shared.waker = Some(cx.waker().clone());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.shared.borrow().recorded.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.shared.borrow().recorded.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}
