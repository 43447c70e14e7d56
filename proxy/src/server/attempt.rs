//! One attempt of a request, with its deadlines.
//!
//! A response may begin before the request has ended, and both go on. So the request's body reports how it gets on:
//! while it moves, a response may take its time, and nothing that moves in either direction is taken for idle. And it
//! can be given up from outside: where the response has ended or nobody waits for it any longer, the rest of the
//! request is of no use, and an endpoint is told so at once.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::refusal::Refusal;
use crate::proto::body::Stream;
use crate::proto::{Body, BodyError};
use crate::service::{Client, Holder, ServiceStats};
use crate::timer::{self, Timers};
use crate::upstream::{Failure, Hold, Pool, Reply, Stage};

/// Bytes a second that a client has to send of a body while there is no response: Apache's default, which counts the
/// seconds beyond a first time in the same way (`mod_reqtimeout`, `RequestReadTimeout body=20,MinRate=500`). Here that
/// first time is `body_timeout`. What a slow link gets through is far more; what is sent byte by byte is far less.
pub(super) const LEAST_PACE: u64 = 500;

/// How long the client may take for the request's body before there is a response. Afterwards it may be silent for as
/// long as the response moves: a stream of events is a request that never ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// How long the body may stand still.
    pub timeout: Duration,
    /// Bytes a second that it must have, if any, once `timeout` was spent waiting for it in all. The time in which the
    /// endpoint does not take what there is does not count.
    pub least: Option<u64>,
}

/// One attempt of a request.
pub(super) struct Attempt<'a> {
    pub pool: &'a Rc<Pool>,
    /// Whose it is.
    pub client: Client,
    pub stats: &'a ServiceStats,
    /// From the end of the request to the response's head.
    pub timeout: Duration,
    pub body: BodyLimits,
    /// How long the endpoint may take nothing of the request's body.
    pub idle_timeout: Duration,
    /// Tick at which there must be a response, whatever else is allowed.
    pub until: Option<u64>,
    /// Says at any time how far the attempt has come.
    pub stage: &'a Cell<Stage>,
}

impl Attempt<'_> {
    /// The response, and the request's body where that is still under way.
    pub async fn run(self, timers: &Rc<Timers>, head: &Parts, body: Body) -> Result<(Reply, Option<Upload>), Refusal> {
        let hold = self.pool.hold(self.client);
        let (body, upload) = follow(body, timers, &hold);
        let mut reply = self.reply(timers, head, body, upload.as_ref(), &hold).await?;
        reply.hold = Some(hold);
        if let Some(upload) = &upload {
            upload.progress.has_response.set(true);
        }
        Ok((reply, upload))
    }

    /// The response, with all deadlines that there are until then.
    async fn reply(
        &self,
        timers: &Rc<Timers>,
        head: &Parts,
        body: Body,
        upload: Option<&Upload>,
        hold: &Hold,
    ) -> Result<Reply, Refusal> {
        let mut attempt = pin!(self.pool.attempt(head, body, hold, self.stage, || self.stats.resent.add(1)));
        // Looked at as often as the client's time may be over: when that begins is not told to this task.
        let most = if upload.is_some() { self.timeout.min(self.body.timeout) } else { self.timeout };
        let mut limit = timers.deadline(most);
        let mut deadline = self.until.map(|tick| timers.deadline_at(tick));
        poll_fn(|cx| {
            if upload.is_some() && hold.poll_ended(cx).is_ready() {
                let address = self.pool.target.address.to_string();
                return Poll::Ready(Err(Failure::Share { address }.into()));
            }
            if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                // Where the request's body broke, what came of that is no fault of the endpoint's.
                let body_error = || upload.and_then(|upload| upload.progress.error.take());
                return Poll::Ready(result.map_err(|failure| match body_error() {
                    Some(error) => Failure::ClientBody(error).into(),
                    None => failure.into(),
                }));
            }
            if deadline.as_mut().is_some_and(|deadline| deadline.poll_passed(cx).is_ready()) {
                self.expire();
                return Poll::Ready(Err(Refusal::Deadline));
            }
            loop {
                ready!(limit.poll_passed(cx));
                let Some(upload) = upload else { break };
                // While the request is still being sent, its own progress counts.
                let Progress { done, waiting, .. } = &*upload.progress;
                let left = match (done.get(), waiting.get()) {
                    (true, _) => upload.time_left(timers, self.timeout),
                    (false, true) => upload.progress.time_left(timers, self.body),
                    (false, false) => upload.time_left(timers, self.idle_timeout),
                };
                match left {
                    Some(left) if done.get() => limit.reset(left),
                    Some(left) => limit.reset(left.min(self.body.timeout)),
                    None if waiting.get() => {
                        return Poll::Ready(Err(Refusal::Upstream(Failure::ClientBody(BodyError::Idle))));
                    }
                    None => break,
                }
            }
            self.expire();
            Poll::Ready(Err(self.pool.late(self.stage.get()).into()))
        })
        .await
    }

    /// Its time is over: what carries it is told so before it is given up.
    fn expire(&self) {
        if self.stage.get() == Stage::Sent {
            self.stage.set(Stage::Late);
        }
    }
}

/// How the sending of a request's body gets on.
struct Progress {
    /// Tick at which the last frame came, or the next was asked for.
    last: Cell<u64>,
    done: Cell<bool>,
    /// The response has begun.
    has_response: Cell<bool>,
    /// Why the body broke.
    error: RefCell<Option<BodyError>>,
    /// The next frame is the client's to send.
    waiting: Cell<bool>,
    /// Ticks in which it was, before this time.
    waited: Cell<u64>,
    /// Bytes that have come.
    bytes: Cell<u64>,
    given_up: Cell<bool>,
    /// Who waits for the next frame.
    waker: RefCell<Option<Waker>>,
}

impl Progress {
    /// How long the client, which is waited for, may still take for the next frame; none where its time is over.
    fn time_left(&self, timers: &Timers, limits: BodyLimits) -> Option<Duration> {
        let silent = timers.since(self.last.get());
        let mut left = limits.timeout.checked_sub(silent)?;
        if let Some(least) = limits.least {
            let earned = Duration::from_millis(self.bytes.get().saturating_mul(1000) / least.max(1));
            let waited = timer::ticks(self.waited.get()).saturating_add(silent);
            left = left.min(limits.timeout.saturating_add(earned).checked_sub(waited)?);
        }
        Some(left).filter(|left| !left.is_zero())
    }
}

/// Follows a body that is yet to arrive; one that is here needs nobody to follow it.
fn follow(body: Body, timers: &Rc<Timers>, hold: &Hold) -> (Body, Option<Upload>) {
    let Body::Stream(stream) = body else { return (body, None) };
    let progress = Rc::new(Progress {
        last: Cell::new(timers.now()),
        done: Cell::new(false),
        has_response: Cell::new(false),
        error: RefCell::default(),
        waiting: Cell::new(false),
        waited: Cell::new(0),
        bytes: Cell::new(0),
        given_up: Cell::new(false),
        waker: RefCell::default(),
    });
    hold.set_body(true);
    let body = Followed { stream, progress: progress.clone(), timers: timers.clone(), holder: hold.counter() };
    (Body::Stream(Box::pin(body)), Some(Upload { progress }))
}

/// A request's body on its way to an endpoint, seen from the response. When this is dropped the rest is given up.
pub(super) struct Upload {
    progress: Rc<Progress>,
}

impl Upload {
    /// How much of `allowed` is left since the last frame, if any.
    pub fn time_left(&self, timers: &Timers, allowed: Duration) -> Option<Duration> {
        allowed.checked_sub(timers.since(self.progress.last.get())).filter(|left| !left.is_zero())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.progress.given_up.set(true);
        if let Some(waker) = self.progress.waker.take() {
            waker.wake();
        }
    }
}

struct Followed {
    stream: Stream,
    progress: Rc<Progress>,
    timers: Rc<Timers>,
    /// Of what the attempt holds.
    holder: Arc<Holder>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let progress = &*this.progress;
        if progress.given_up.get() {
            return Poll::Ready(Some(Err(BodyError::GivenUp)));
        }
        let frame = this.stream.as_mut().poll_frame(cx);
        let waited = progress.waiting.replace(frame.is_pending());
        let Poll::Ready(frame) = frame else {
            if !waited {
                // Its time begins when the frame is asked for: whoever does not read is not the client.
                progress.last.set(this.timers.now());
            }
            let mut waker = progress.waker.borrow_mut();
            if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let now = this.timers.now();
        let last = progress.last.replace(now);
        if waited {
            progress.waited.set(progress.waited.get().saturating_add(now.saturating_sub(last)));
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            progress.bytes.set(progress.bytes.get().saturating_add(data.len() as u64));
            this.holder.moved(data.len());
        }
        let done = frame.is_none() || this.stream.is_end_stream();
        if done && !progress.done.replace(true) && !progress.has_response.get() {
            this.holder.set_body(false);
        }
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                progress.error.replace(Some(error));
                BodyError::GivenUp
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}
