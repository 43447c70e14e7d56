//! The way of one request through the proxy: the same decisions in the same order as on the request path.

use std::net::Ipv4Addr;
use std::time::Duration;

use heddle::policy::{Facts, Kind, Outcome};
use heddle::server::decide::Picked;
use heddle::server::refusal::Refusal;
use heddle::service::{Condition, ServiceProbe};
use http::StatusCode;

use super::journal::Note;
use super::machine::Reply;
use super::scenario::Spread;
use super::watch::{Broken, Held, machine, must};
use super::world::{Event, World};

/// A request until its response has ended.
pub struct Request {
    worker: usize,
    facts: Facts,
    arrived: Duration,
    attempts: u32,
    /// What the request holds in a service that is half-open.
    door: Option<ServiceProbe>,
    under_way: Option<Attempt>,
    is_answered: bool,
}

struct Attempt {
    number: u64,
    picked: Picked,
    began: Duration,
    reply: Reply,
}

impl World<'_> {
    pub fn arrive(&mut self) -> Held {
        self.numbers += 1;
        let id = self.numbers;
        let worker = self.random.below(self.workers.len());
        self.watch.requests += 1;
        self.note(Note::Arrived { request: id, worker });
        let facts = facts(self.random.below(self.scenario.paths), self.random.below(self.scenario.clients));
        let door = match self.workers[worker].enter() {
            Ok(door) => door,
            Err(Refusal::Open { .. }) => {
                must!(self.service.fleet.health.condition() != Condition::InUse, "a closed service refuses");
                return self.answered(id, Some(503), 0);
            }
            Err(other) => return Err(Broken(format!("an unexpected refusal: {other}"))),
        };
        if door.is_some() {
            self.watch.entered(self.scenario)?;
        }
        let arrived = self.now;
        let request = Request { worker, facts, arrived, attempts: 0, door, under_way: None, is_answered: false };
        self.requests.insert(id, request);
        if !self.scenario.is_calm(self.now) && self.random.percent(self.scenario.leaving) {
            let after = self.random.time(Duration::ZERO, self.scenario.latency.longest());
            self.plan(after, Event::ClientLeaves { request: id });
        }
        self.attempt(id)
    }

    /// Begins an attempt, unless the client has left.
    pub fn attempt(&mut self, id: u64) -> Held {
        let Some(mut request) = self.requests.remove(&id) else { return Ok(()) };
        let tried = request.facts.tried.clone();
        let picked = match self.workers[request.worker].decide(&mut request.facts) {
            Ok(picked) => picked,
            Err(Refusal::NoEndpoint { .. }) => {
                self.watch.none_eligible(&self.service.fleet, &request.facts.tried)?;
                let attempts = request.attempts;
                self.finish(request);
                return self.answered(id, Some(503), attempts);
            }
            Err(other) => return Err(Broken(format!("an unexpected refusal: {other}"))),
        };
        self.watch.picked(&self.service, self.scenario, &picked, &tried)?;
        request.attempts += 1;
        self.watch.attempts += 1;
        let machine = machine(&picked.endpoint);
        if self.scenario.is_calm(self.now) {
            let key = match self.scenario.balancer.spread {
                Spread::ByClient => request.facts.client.to_string(),
                _ => request.facts.head.uri.to_string(),
            };
            self.watch.count(self.scenario.balancer.spread, request.worker, machine, key)?;
        }
        self.note(Note::Attempt {
            request: id,
            machine,
            slot: picked.endpoint.slot,
            probe: picked.probe.is_some(),
            panic: self.watch.is_in_panic(),
        });
        let reply = self.machines[machine].serve(self.now, self.scenario.latency, &mut self.random);
        let (after, reply) = self.as_seen(reply);
        self.numbers += 1;
        let number = self.numbers;
        request.facts.tried.push(picked.endpoint.slot);
        request.under_way = Some(Attempt { number, picked, began: self.now, reply });
        self.requests.insert(id, request);
        self.plan(after, Event::AttemptEnds { request: id, number });
        Ok(())
    }

    /// How the proxy sees a reply, with its own timeouts.
    fn as_seen(&self, reply: Reply) -> (Duration, Reply) {
        let limit = match reply.kind {
            Kind::ConnectTimeout => self.scenario.connect_timeout.min(self.scenario.request_timeout),
            _ => self.scenario.request_timeout,
        };
        match reply.after.filter(|after| *after < limit) {
            Some(after) => (after, reply),
            None => {
                let kind = if reply.sent { Kind::Timeout } else { Kind::ConnectTimeout };
                (limit, Reply { kind, status: None, after: Some(limit), sent: reply.sent })
            }
        }
    }

    pub fn attempt_ends(&mut self, id: u64, number: u64) -> Held {
        let Some(request) = self.requests.get_mut(&id) else { return Ok(()) };
        let Some(attempt) = request.under_way.take_if(|attempt| attempt.number == number) else { return Ok(()) };
        let Attempt { picked, began, reply, .. } = attempt;
        let latency = self.now - began;
        let status = reply.status.and_then(|status| StatusCode::from_u16(status).ok());
        let outcome = Outcome {
            status,
            sent: reply.sent,
            replayable: true,
            elapsed: self.now - request.arrived,
            ..Outcome::of(reply.kind, latency)
        };
        if reply.kind == Kind::Response {
            picked.endpoint.load.observe_latency(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
        self.workers[request.worker].ended(&mut request.facts, &picked.endpoint, &outcome);
        let machine = machine(&picked.endpoint);
        if picked.probe.is_some() {
            self.watch.probe_ended(&picked.endpoint);
        }
        let Picked { in_flight, probe, .. } = picked;
        drop(probe);
        let attempts = request.attempts;
        request.is_answered = true;
        self.note(Note::ended(id, machine, reply.kind, reply.status, latency));
        drop(in_flight);
        let body = self.random.time(Duration::ZERO, self.scenario.latency.typical);
        self.answered(id, reply.status.or(Some(502)), attempts)?;
        self.plan(body, Event::BodyEnds { request: id });
        Ok(())
    }

    fn answered(&mut self, request: u64, status: Option<u16>, attempts: u32) -> Held {
        self.watch.answers += 1;
        self.note(Note::Answered { request, status, attempts });
        Ok(())
    }

    /// The client waits no longer.
    pub fn client_leaves(&mut self, id: u64) -> Held {
        let Some(mut request) = self.requests.remove(&id) else { return Ok(()) };
        if request.is_answered {
            self.requests.insert(id, request);
            return Ok(());
        }
        if let Some(Attempt { picked, began, .. }) = request.under_way.take() {
            let outcome = Outcome::of(Kind::ClientGone, self.now - began);
            self.workers[request.worker].ended(&mut request.facts, &picked.endpoint, &outcome);
            if picked.probe.is_some() {
                self.watch.probe_ended(&picked.endpoint);
            }
        }
        let attempts = request.attempts;
        self.finish(request);
        self.answered(id, None, attempts)
    }

    /// A response has ended.
    pub fn body_ends(&mut self, id: u64) {
        if let Some(request) = self.requests.remove(&id) {
            self.finish(request);
        }
    }

    fn finish(&mut self, request: Request) {
        if request.door.is_some() {
            self.watch.left();
        }
    }

    /// Attempts under way at a machine that crashes end at once.
    pub fn break_connections(&mut self, crashed: usize) {
        let broken = self.requests.iter_mut().filter_map(|(&id, request)| {
            let attempt = request.under_way.as_mut().filter(|attempt| machine(&attempt.picked.endpoint) == crashed)?;
            attempt.reply = Reply { kind: Kind::Closed, status: None, after: None, sent: true };
            Some((id, attempt.number))
        });
        for (request, number) in broken.collect::<Vec<_>>() {
            self.plan(Duration::ZERO, Event::AttemptEnds { request, number });
        }
    }
}

fn facts(path: usize, client: usize) -> Facts {
    let head = http::Request::get(format!("/{path}")).body(()).unwrap().into_parts().0;
    let client = Ipv4Addr::from(0x0a63_0000 + client as u32);
    Facts::new(head, client.into(), None)
}
