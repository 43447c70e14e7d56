//! The way of one request through the proxy, as [`heddle::server`] goes it: the same decisions in the same order, made by
//! the same code. Where the proxy waits for something, an event is planned here.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use heddle::policy::retry::first_counts;
use heddle::policy::{Facts, Kind, Outcome};
use heddle::proto::BodyError;
use heddle::server::refusal::Refusal;
use heddle::server::retries::{Pick, Retries};
use heddle::server::visit::{Ending, Visit};
use heddle::service::{Active, Condition, InFlight, Retry, ServiceProbe};
use heddle::timer::TICK;
use http::{Method, StatusCode};

use super::journal::Note;
use super::machine::Reply;
use super::scenario::Spread;
use super::watch::{Broken, Held, machine, must};
use super::world::{Event, World};

/// A request until its response has ended.
pub struct Request<'a> {
    worker: usize,
    arrived: Duration,
    is_idempotent: bool,
    /// Whether its body can be sent again.
    replayable: bool,
    /// None once it was answered, as the rest is then of no more use.
    sending: Option<Sending<'a>>,
    held: Option<Answered>,
}

/// A request that has not been answered yet.
struct Sending<'a> {
    retries: Retries<'a>,
    /// Its deadline.
    until: Option<Duration>,
    door: Option<ServiceProbe>,
    /// Of the next attempt, while there is none.
    facts: Option<Facts>,
    /// One attempt, or two beside each other.
    under_way: Vec<Attempt>,
    /// That of two which has ended without bringing what is wanted.
    lost: Option<(Attempt, Outcome)>,
    hedge: Option<Retry>,
    has_retry: bool,
    /// Slots of all attempts so far.
    tried: Vec<u32>,
    attempts: u32,
    /// Whether an endpoint may have acted on it.
    may_be_done: bool,
}

struct Attempt {
    number: u64,
    visit: Visit,
    is_probe: bool,
    is_hedge: bool,
    began: Duration,
    reply: Reply,
}

/// What counts until the response has ended.
struct Answered {
    machine: usize,
    ending: Option<Box<Ending>>,
    _in_flight: Option<InFlight>,
    active: Option<Active>,
}

impl<'a> World<'a> {
    pub fn arrive(&mut self) -> Held {
        self.numbers += 1;
        let id = self.numbers;
        let worker = self.random.below(self.workers.len());
        self.watch.requests += 1;
        self.note(Note::Arrived { request: id, worker });
        let mut facts = facts(self.random.below(self.scenario.paths), self.random.below(self.scenario.clients));
        let is_idempotent = !self.random.percent(10);
        if !is_idempotent {
            facts.head.method = Method::POST;
        }
        let replayable = !self.random.percent(5);
        let door = match self.workers[worker].enter() {
            Ok(door) => door,
            Err(Refusal::Open { .. }) => {
                must!(self.service.fleet.health.condition() != Condition::InUse, "a closed service refuses");
                return self.answered(id, self.now, Some(503), 0);
            }
            Err(other) => return Err(Broken(format!("an unexpected refusal: {other}"))),
        };
        if door.is_some() {
            self.watch.entered(self.scenario)?;
        }
        let now = Instant::now();
        let mut retries = Retries::begin(&self.workers[worker], self.timers, now, None);
        retries.admitted(now);
        if retries.are_on() {
            self.watch.active += 1;
        }
        let until = retries.until.map(|tick| TICK * tick as u32);
        let sending = Sending {
            retries,
            until,
            door,
            facts: Some(facts),
            under_way: Vec::new(),
            lost: None,
            hedge: None,
            has_retry: false,
            tried: Vec::new(),
            attempts: 0,
            may_be_done: false,
        };
        let (arrived, sending) = (self.now, Some(sending));
        self.requests.insert(id, Request { worker, arrived, is_idempotent, replayable, sending, held: None });
        if !self.scenario.is_calm(self.now) && self.random.percent(self.scenario.leaving) {
            let after = self.random.time(Duration::ZERO, self.scenario.latency.longest());
            self.plan(after, Event::ClientLeaves { request: id });
        }
        self.attempt(id)
    }

    /// Begins the next attempt, unless the client has left.
    pub fn attempt(&mut self, id: u64) -> Held {
        let Some(mut request) = self.requests.remove(&id) else { return Ok(()) };
        let Some(sending) = &mut request.sending else { return Ok(()) };
        let Some(facts) = sending.facts.take() else { return Ok(()) };
        match sending.retries.pick(facts, request.replayable, || self.now - request.arrived) {
            Pick::Visit(visit) => {
                self.begin(id, &mut request, visit, false)?;
                self.requests.insert(id, request);
                Ok(())
            }
            Pick::Wait(delay, facts) => {
                sending.facts = Some(facts);
                self.requests.insert(id, request);
                self.plan(delay, Event::Attempt { request: id });
                Ok(())
            }
            Pick::Refused(Refusal::NoEndpoint { .. }) => {
                self.watch.none_eligible(&self.service.fleet)?;
                self.give_up(id, request, Some(503))
            }
            Pick::Refused(Refusal::Deadline) => {
                must!(
                    sending.until.is_some_and(|until| until <= self.now),
                    "the time is not over: {:?}",
                    sending.until
                );
                self.give_up(id, request, Some(504))
            }
            Pick::Refused(other) => Err(Broken(format!("an unexpected refusal: {other}"))),
        }
    }

    /// An attempt begins at an endpoint.
    fn begin(&mut self, id: u64, request: &mut Request<'a>, visit: Visit, is_hedge: bool) -> Held {
        let Some(sending) = &mut request.sending else { return Ok(()) };
        let is_probe = self.watch.picked(&self.service, self.scenario, &visit.endpoint, &sending.tried)?;
        must!(sending.until.is_none_or(|until| self.now < until), "an attempt begins after {:?}", sending.until);
        let may_be_repeated = request.is_idempotent || !sending.may_be_done;
        must!(may_be_repeated, "request {id} is not idempotent, and is sent again");
        must!(sending.attempts == 0 || is_hedge || request.replayable, "request {id} cannot be sent again");
        sending.attempts += 1;
        self.watch.attempts += 1;
        let most = self.scenario.retry.map_or(1, |retry| retry.attempts);
        must!(sending.attempts <= most, "{} attempts of {most}", sending.attempts);
        let endpoint = &visit.endpoint;
        let (machine, slot) = (machine(endpoint), endpoint.slot);
        if self.scenario.is_calm(self.now) && sending.attempts == 1 {
            let key = match self.scenario.balancer.spread {
                Spread::ByClient => visit.facts.client.to_string(),
                Spread::ByPath => visit.facts.head.uri.to_string(),
                _ => String::new(),
            };
            self.watch.count(self.scenario.balancer.spread, request.worker, machine, key)?;
        }
        let panic = self.watch.is_in_panic();
        self.journal.note(self.now, Note::Attempt { request: id, machine, slot, probe: is_probe, panic });
        let reply = self.machines[machine].serve(self.now, self.scenario.latency, &mut self.random);
        let limit = sending.retries.terms.try_timeout.unwrap_or(self.scenario.request_timeout);
        let (after, reply) = self.as_seen(reply, limit, sending.until);
        self.numbers += 1;
        let number = self.numbers;
        if let Some(after) = sending.retries.hedges_after(&visit).filter(|_| !is_hedge) {
            self.queue.plan(self.now + after, Event::Hedge { request: id, number });
        }
        sending.tried.push(slot);
        sending.under_way.push(Attempt { number, visit, is_probe, is_hedge, began: self.now, reply });
        self.plan(after, Event::AttemptEnds { request: id, number });
        Ok(())
    }

    /// How the proxy sees a reply, with its own timeouts. Those of tries and requests are on its coarse timers.
    fn as_seen(&self, reply: Reply, limit: Duration, until: Option<Duration>) -> (Duration, Reply) {
        let coarse = (TICK * self.timers.tick_after(limit) as u32).saturating_sub(self.now);
        let connect = (reply.kind == Kind::ConnectTimeout).then_some((self.scenario.connect_timeout, reply.kind));
        let own = reply.after.map(|after| (after, reply.kind));
        let late = Some((coarse, Kind::Timeout));
        let over = until.map(|until| (until.saturating_sub(self.now), Kind::Timeout));
        let first = [own, connect, late, over].into_iter().flatten().min_by_key(|(after, _)| *after);
        let (after, kind) = first.unwrap_or((coarse, Kind::Timeout));
        let status = if kind == Kind::Response { reply.status } else { None };
        (after, Reply { kind, status, ..reply })
    }

    /// The first attempt has taken as long as most do.
    pub fn hedge(&mut self, id: u64, number: u64) -> Held {
        let Some(mut request) = self.requests.remove(&id) else { return Ok(()) };
        let beside = request.sending.as_ref().and_then(|sending| {
            let first = sending.under_way.first().filter(|attempt| attempt.number == number)?;
            if request.replayable { sending.retries.beside(&first.visit) } else { None }
        });
        if let Some((visit, retry)) = beside {
            let attempts = request.sending.as_ref().map(|sending| sending.attempts);
            must!(attempts == Some(1), "a second attempt beside one of {attempts:?}");
            self.watch.retry_begins(self.scenario)?;
            if let Some(sending) = &mut request.sending {
                sending.hedge = Some(retry);
            }
            self.begin(id, &mut request, visit, true)?;
        }
        self.requests.insert(id, request);
        Ok(())
    }

    pub fn attempt_ends(&mut self, id: u64, number: u64) -> Held {
        let Some(mut request) = self.requests.remove(&id) else { return Ok(()) };
        let Some(sending) = &mut request.sending else {
            self.requests.insert(id, request);
            return Ok(());
        };
        let Some(place) = sending.under_way.iter().position(|attempt| attempt.number == number) else {
            self.requests.insert(id, request);
            return Ok(());
        };
        let attempt = sending.under_way.remove(place);
        let latency = self.now - attempt.began;
        let Reply { kind, status, sent, .. } = attempt.reply;
        sending.may_be_done |= sent;
        let outcome = Outcome {
            status: status.and_then(|status| StatusCode::from_u16(status).ok()),
            sent,
            replayable: request.replayable,
            elapsed: self.now - request.arrived,
            ..Outcome::of(kind, latency)
        };
        self.journal.note(self.now, Note::ended(id, machine(&attempt.visit.endpoint), kind, status, latency));
        let settles = outcome.settles();
        if !settles && !sending.under_way.is_empty() {
            sending.lost = Some((attempt, outcome));
            self.requests.insert(id, request);
            return Ok(());
        }
        if sending.hedge.take().is_some() {
            self.watch.retry_ends();
        }
        let (lost, ended) = match sending.lost.take() {
            Some(other) if !settles && counts(&other, (number, &outcome)) => (Some((attempt, outcome)), other),
            other => (other, (attempt, outcome)),
        };
        let given_up = sending.under_way.pop();
        let mut beside = lost.map(|(attempt, outcome)| self.settle(attempt, &outcome));
        if let Some(attempt) = given_up {
            if !attempt.is_hedge {
                self.workers[request.worker].latencies().add(self.now - attempt.began);
            }
            beside = Some(self.client_gone(attempt));
        }
        self.decide(id, request, ended, beside)
    }

    /// Tells how an attempt has ended.
    fn settle(&mut self, mut attempt: Attempt, outcome: &Outcome) -> Visit {
        if outcome.kind == Kind::Response {
            let micros = u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX);
            attempt.visit.endpoint.load.observe_latency(micros);
        }
        attempt.visit.tell(outcome);
        if attempt.is_probe {
            self.watch.probe_ended(&attempt.visit.endpoint);
        }
        attempt.visit
    }

    /// Nobody waits for an attempt any longer.
    fn client_gone(&mut self, attempt: Attempt) -> Visit {
        let outcome = Outcome { sent: true, ..Outcome::of(Kind::ClientGone, self.now - attempt.began) };
        self.settle(attempt, &outcome)
    }

    /// An attempt has ended so, maybe with another one beside it: another one, or an answer.
    fn decide(
        &mut self,
        id: u64,
        mut request: Request<'a>,
        (attempt, outcome): (Attempt, Outcome),
        beside: Option<Visit>,
    ) -> Held {
        let is_hedge = attempt.is_hedge;
        let mut visit = self.settle(attempt, &outcome);
        if let Some(hedge) = beside.filter(|_| !is_hedge) {
            visit.count(&hedge);
        }
        let Some(mut sending) = request.sending.take() else { return Ok(()) };
        let machine = machine(&visit.endpoint);
        if sending.retries.terms.hedging.is_some() && outcome.settles() {
            self.workers[request.worker].latencies().add(outcome.latency);
        }
        if std::mem::take(&mut sending.has_retry) {
            self.watch.retry_ends();
        }
        if let Some(delay) = sending.retries.decide(&mut visit.facts, Some(visit.endpoint.slot), &outcome) {
            self.watch.retry_begins(self.scenario)?;
            sending.has_retry = true;
            sending.facts = Some(visit.into_facts());
            request.sending = Some(sending);
            self.requests.insert(id, request);
            self.note(Note::Again { request: id, delay });
            self.plan(delay, Event::Attempt { request: id });
            return Ok(());
        }
        if outcome.kind != Kind::Response {
            request.sending = Some(sending);
            return self.give_up(id, request, Some(502));
        }
        if sending.door.is_some() {
            self.watch.left();
        }
        let (in_flight, active) = (visit.take_in_flight(), sending.retries.into_active());
        let ending = visit.into_ending(outcome);
        let (arrived, attempts) = (request.arrived, sending.attempts);
        request.held = Some(Answered { machine, ending, _in_flight: in_flight, active });
        self.requests.insert(id, request);
        let body = self.random.time(Duration::ZERO, self.scenario.latency.typical);
        self.plan(body, Event::BodyEnds { request: id });
        self.answered(id, arrived, outcome.status.map(|status| status.as_u16()), attempts)
    }

    /// A request ends without a response of an endpoint.
    fn give_up(&mut self, id: u64, request: Request<'a>, status: Option<u16>) -> Held {
        let Request { arrived, sending: Some(mut sending), .. } = request else { return Ok(()) };
        if sending.has_retry {
            self.watch.retry_ends();
        }
        if sending.hedge.take().is_some() {
            self.watch.retry_ends();
        }
        if sending.door.is_some() {
            self.watch.left();
        }
        if sending.retries.are_on() {
            self.watch.active -= 1;
        }
        if let Some((attempt, outcome)) = sending.lost.take() {
            self.settle(attempt, &outcome);
        }
        for attempt in std::mem::take(&mut sending.under_way) {
            self.client_gone(attempt);
        }
        self.answered(id, arrived, status, sending.attempts)
    }

    fn answered(&mut self, request: u64, arrived: Duration, status: Option<u16>, attempts: u32) -> Held {
        self.watch.answers += 1;
        self.note(Note::Answered { request, status, attempts });
        let parts = self.scenario.parts;
        let is_calm = self.scenario.is_calm(arrived) && (arrived >= parts.recovery || self.now < parts.calm);
        must!(!is_calm || status == Some(200), "a healthy service answered request {request} with {status:?}");
        let limit = self.scenario.retry.and_then(|retry| retry.timeout).filter(|_| !self.watch.was_condemned);
        let late = limit.is_some_and(|limit| self.now > arrived + limit + TICK * 2);
        must!(!late, "request {request} is answered after {:?}", self.now - arrived);
        Ok(())
    }

    /// The client waits no longer.
    pub fn client_leaves(&mut self, id: u64) -> Held {
        match self.requests.remove(&id) {
            Some(request) if request.held.is_none() => self.give_up(id, request, None),
            Some(request) => {
                self.requests.insert(id, request);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A response has ended, or breaks where its endpoint has crashed.
    pub fn body_ends(&mut self, id: u64) {
        let Some(Answered { machine, ending, active, .. }) = self.requests.remove(&id).and_then(|request| request.held)
        else {
            return;
        };
        if let Some(mut ending) = ending {
            if self.machines[machine].is_crashed(self.now) {
                ending.broken(&BodyError::Idle);
            } else {
                ending.complete(None);
            }
        }
        if active.is_some() {
            self.watch.active -= 1;
        }
    }

    /// Attempts under way at a machine that crashes end at once.
    pub fn break_connections(&mut self, crashed: usize) {
        let under_way = self.requests.iter_mut().filter_map(|(&id, request)| Some((id, request.sending.as_mut()?)));
        let under_way =
            under_way.flat_map(|(id, sending)| sending.under_way.iter_mut().map(move |attempt| (id, attempt)));
        let broken =
            under_way.filter(|(_, attempt)| machine(&attempt.visit.endpoint) == crashed).map(|(id, attempt)| {
                attempt.reply = Reply { kind: Kind::Closed, status: None, after: None, sent: true };
                (id, attempt.number)
            });
        for (request, number) in broken.collect::<Vec<_>>() {
            self.plan(Duration::ZERO, Event::AttemptEnds { request, number });
        }
    }
}

/// Of two attempts neither of which has settled it, whether the other one's end counts.
fn counts((other, outcome): &(Attempt, Outcome), (number, of_this): (u64, &Outcome)) -> bool {
    if other.number < number { first_counts(outcome, of_this) } else { !first_counts(of_this, outcome) }
}

fn facts(path: usize, client: usize) -> Facts {
    let head = http::Request::get(format!("/{path}")).body(()).unwrap().into_parts().0;
    let client = Ipv4Addr::from(0x0a63_0000 + client as u32);
    Facts::new(Box::new(head), client.into(), None)
}
