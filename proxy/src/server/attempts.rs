//! The attempts of one request to a service.
//!
//! The request has been prepared, and is the same in each of them. An endpoint is decided on, an attempt is made there,
//! its outcome is told; where that is not what anybody wants, the retry policy says whether there is to be another, and
//! when. All of them together have one deadline, and each the time that the policy or the service gives it.
//!
//! A service whose policy asks for hedging has a second attempt begin beside a first one that is slower than most were
//! lately: of two endpoints that answer slowly now and then, both seldom do so at once. The first answer wins, and the
//! other attempt is given up. That one is remembered with the time it had taken by then: else what is slow would not
//! count, and each hedge would make the next one come sooner.

use std::cell::Cell;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::admit::admit;
use super::attempt::{Attempt, Upload};
use super::connection::Connection;
use super::exchange::Call;
use super::local::LocalService;
use super::outcome;
use super::refusal::Refusal;
use super::replay::Replay;
use super::retries::{Attempting, Retries};
use super::visit::{Ending, Visit};
use crate::policy::retry::first_counts;
use crate::policy::{Facts, Kind, Outcome};
use crate::proto::Body;
use crate::service::{Active, Admitted, Client, InFlight, Retry};
use crate::timer::Deadline;
use crate::upstream::{Reply, Stage};

/// A response's head, and what is under way with it.
pub(super) struct Answered {
    pub reply: Reply,
    /// The request's body, where that is still under way.
    pub upload: Option<Upload>,
    pub held: Held,
}

/// What counts until a response has ended.
#[derive(Default)]
pub(super) struct Held {
    /// At its endpoint.
    pub in_flight: Option<InFlight>,
    /// Among the requests of its service.
    pub admitted: Option<Admitted>,
    /// In the service's retry budget.
    pub _active: Option<Active>,
    /// What is told of the attempt then.
    pub ending: Option<Box<Ending>>,
}

/// What came of one exchange with an endpoint.
struct Exchanged {
    result: Result<(Reply, Option<Upload>), Refusal>,
    outcome: Outcome,
}

/// A request to a service, as all of its attempts see it.
struct Sending<'a> {
    connection: &'a Connection,
    local: &'a Rc<LocalService>,
    call: &'a Call,
    body: Replay,
}

/// Sends a request to a service: makes attempts until one brings what is wanted, or no more are to be made.
///
/// # Errors
///
/// Why there is no response.
pub(super) async fn send(
    connection: &Connection,
    local: &Rc<LocalService>,
    call: &Call,
    facts: Facts,
    body: Body,
) -> Result<Answered, Refusal> {
    let _service_probe = local.enter()?;
    let until = call.deadline.as_ref().map(Deadline::tick);
    let mut retries = Retries::begin(local, &connection.worker.timers, call.started, until);
    // After the door: for a service that is open nobody waits.
    let (admitted, at) = admit(&local.service, &connection.worker.timers, call.started, retries.until).await?;
    retries.admitted(at);
    let body = Replay::new(body, retries.are_on().then_some(local.service.settings.max_replay_bytes));
    let mut sending = Sending { connection, local, call, body };
    let ((reply, upload), mut visit, outcome) = retries.run(facts, &mut sending).await?;
    let (in_flight, active) = (visit.take_in_flight(), retries.into_active());
    let has_ended = !matches!(reply.response.body(), Body::Stream(_));
    let ending = if has_ended { None } else { visit.into_ending(outcome) };
    Ok(Answered { reply, upload, held: Held { in_flight, admitted, _active: active, ending } })
}

impl Attempting for Sending<'_> {
    type Brought = (Reply, Option<Upload>);

    fn is_replayable(&self) -> bool {
        self.body.is_replayable()
    }

    /// One attempt, or two of which the better one counts. What ended is told, but for a response of which the end is not
    /// known yet.
    async fn attempt(&mut self, visit: &mut Visit, retries: &Retries<'_>) -> (Result<Self::Brought, Refusal>, Outcome) {
        if let Err(refusal) = self.tell_time_left(visit) {
            let outcome = outcome::of_refusal(&refusal, Stage::Waiting, Duration::ZERO, self.call.started.elapsed());
            return (Err(refusal), outcome);
        }
        // What is to become another protocol is asked for once.
        let after = if self.call.upgrade.is_none() { retries.hedges_after(visit) } else { None };
        let Exchanged { result, outcome } = match after {
            Some(after) => self.hedged(visit, retries, after).await,
            None => {
                let body = self.body.body();
                let mut exchanged = self.exchange(visit, body, retries).await;
                self.settle(visit, &mut exchanged);
                exchanged
            }
        };
        if retries.terms.hedging.is_some() && outcome.settles() {
            self.local.latencies().add(outcome.latency);
        }
        (result, outcome)
    }
}

impl Sending<'_> {
    /// Has the request say how long its caller still waits.
    fn tell_time_left(&self, visit: &mut Visit) -> Result<(), Refusal> {
        let in_header = self.connection.listener.settings.deadline_header.as_ref();
        self.call.tell_time_left(&mut visit.facts.head.headers, in_header)
    }

    async fn exchange(&self, visit: &Visit, body: Body, retries: &Retries<'_>) -> Exchanged {
        let Self { connection, local, call, .. } = self;
        let settings = &local.service.settings;
        let pool = local.pool(&visit.endpoint, &connection.worker);
        let stage = Cell::default();
        let attempt = Attempt {
            pool: &pool,
            client: Client::of(connection.client.ip()),
            stats: &local.stats,
            timeout: retries.terms.try_timeout.unwrap_or(settings.request_timeout),
            body: call.body_limits(settings.stream_idle_timeout, connection),
            idle_timeout: settings.stream_idle_timeout,
            until: retries.until,
            stage: &stage,
        };
        let result = attempt.run(&connection.worker.timers, &visit.facts.head, body).await;
        let result = result.and_then(|(reply, upload)| Ok((call.checked(reply, &pool)?, upload)));
        let elapsed = call.started.elapsed();
        let latency = elapsed.saturating_sub(visit.started.saturating_duration_since(call.started));
        let outcome = match &result {
            Ok((reply, _)) => outcome::of_response(&reply.response, call.is_grpc, latency),
            // Else a caller could have endpoints ejected by waiting for none of them.
            Err(Refusal::Deadline) if call.is_own_deadline(retries.until) => Outcome::of(Kind::ClientGone, latency),
            Err(refusal) => outcome::of_refusal(refusal, stage.get(), latency, elapsed),
        };
        Exchanged { result, outcome: Outcome { elapsed, ..outcome } }
    }

    /// Takes note of what came of an attempt.
    fn settle(&self, visit: &mut Visit, exchanged: &mut Exchanged) {
        let Exchanged { result, outcome } = exchanged;
        outcome.replayable = self.body.is_replayable();
        // The head says it all, but of a gRPC call, whose status comes at the end. To a breaker, that is: nobody else asks;
        // and it is too late for a probe, as a stream may last for hours.
        let is_told_at_end = match result {
            Ok((reply, _)) => {
                let micros = u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX);
                visit.endpoint.load.observe_latency(micros);
                let is_streamed_call = self.call.is_grpc && matches!(reply.response.body(), Body::Stream(_));
                is_streamed_call && self.local.has_breaker() && !visit.is_probe()
            }
            Err(_) => {
                self.local.stats.failed_attempts.add(1);
                false
            }
        };
        if !is_told_at_end || outcome.is_unwanted() {
            visit.tell(outcome);
        }
    }

    /// An attempt, and another one beside it where it takes longer than this. What won is left as `first`.
    async fn hedged(&mut self, first: &mut Visit, retries: &Retries<'_>, after: Duration) -> Exchanged {
        let body = self.body.body();
        let (mut exchanged, beside) = {
            let mut own = pin!(self.exchange(first, body, retries));
            match tokio::time::timeout(after, own.as_mut()).await {
                Ok(exchanged) => (exchanged, None),
                Err(_) => match self.beside(first, retries) {
                    None => (own.await, None),
                    Some((second, _retry, body)) => {
                        let Raced { first_won, won, lost } = {
                            let other = pin!(self.exchange(&second, body, retries));
                            race(own, other).await
                        };
                        (won, Some((second, first_won, lost)))
                    }
                },
            }
        };
        let Some((mut loser, first_won, lost)) = beside else {
            self.settle(first, &mut exchanged);
            return exchanged;
        };
        if !first_won {
            mem::swap(first, &mut loser);
        }
        match lost {
            Some(mut lost) => self.settle(&mut loser, &mut lost),
            None if !first_won => self.local.latencies().add(loser.started.elapsed()),
            None => {}
        }
        self.settle(first, &mut exchanged);
        if first_won {
            first.count(&loser);
        }
        exchanged
    }

    /// An attempt beside this one, at another endpoint, if the budget allows it, and the body that it sends.
    fn beside(&self, first: &Visit, retries: &Retries<'_>) -> Option<(Visit, Retry, Body)> {
        let body = self.body.whole()?;
        let (mut visit, retry) = retries.beside(first)?;
        self.tell_time_left(&mut visit).ok()?;
        self.local.stats.hedges.add(1);
        Some((visit, retry, body))
    }
}

/// What came of two exchanges at once.
struct Raced {
    first_won: bool,
    won: Exchanged,
    /// The other one, if it was over by then.
    lost: Option<Exchanged>,
}

/// The first of two exchanges that settles it. Where neither does, a response counts more than none, and the second one
/// more than the first.
async fn race(
    mut first: Pin<&mut impl Future<Output = Exchanged>>,
    mut second: Pin<&mut impl Future<Output = Exchanged>>,
) -> Raced {
    let (mut of_first, mut of_second) = (None, None);
    poll_fn(|cx| {
        if of_first.is_none()
            && let Poll::Ready(exchanged) = first.as_mut().poll(cx)
        {
            of_first = Some(exchanged);
        }
        if of_second.is_none()
            && let Poll::Ready(exchanged) = second.as_mut().poll(cx)
        {
            of_second = Some(exchanged);
        }
        let first_won = match (&of_first, &of_second) {
            (Some(first), _) if first.outcome.settles() => true,
            (_, Some(second)) if second.outcome.settles() => false,
            (Some(first), Some(second)) => first_counts(&first.outcome, &second.outcome),
            (Some(_), None) | (None, _) => return Poll::Pending,
        };
        let (won, lost) = if first_won { (&mut of_first, &mut of_second) } else { (&mut of_second, &mut of_first) };
        match won.take() {
            Some(won) => Poll::Ready(Raced { first_won, won, lost: lost.take() }),
            None => Poll::Pending,
        }
    })
    .await
}
