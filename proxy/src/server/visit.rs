//! An attempt's place at its endpoint: what it holds there, and whom it tells how it ended.

use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::decide::Picked;
use super::local::LocalService;
use crate::policy::{Facts, Kind, Outcome};
use crate::proto::BodyError;
use crate::service::{Condition, Endpoint, InFlight, Probe, Seen};

/// An attempt at an endpoint. Its outcome is told, whatever becomes of it: when this is dropped before, nobody waits for a
/// response any longer. A response that breaks after its head was told is a second outcome.
pub struct Visit {
    local: Rc<LocalService>,
    pub endpoint: Arc<Endpoint>,
    pub facts: Facts,
    pub started: Instant,
    in_flight: Option<InFlight>,
    /// Held until the outcome is told.
    probe: Option<Probe>,
    /// How it found the endpoint and the service.
    began: Seen,
    /// So many of `facts.tried` were tried before; what follows could not be used.
    tried: usize,
    told: bool,
}

impl Visit {
    /// An attempt at the endpoint that was picked, `tried` of its facts' slots having been tried before.
    pub fn new(local: &Rc<LocalService>, picked: Picked, facts: Facts, tried: usize, started: Instant) -> Self {
        let Picked { endpoint, in_flight, probe } = picked;
        let (local, in_flight, began) = (local.clone(), Some(in_flight), local.service.fleet.seen(&endpoint));
        Self { local, endpoint, facts, started, in_flight, probe, began, tried, told: false }
    }

    /// Tells how it ended.
    pub fn tell(&mut self, outcome: &Outcome) {
        if !mem::replace(&mut self.told, true) {
            self.local.ended(&mut self.facts, &self.endpoint, outcome, self.began, false);
            self.probe = None;
        }
    }

    /// Tells that the response broke after its head, whether that was told or not.
    fn tell_broken(&mut self, outcome: &Outcome) {
        let again = mem::replace(&mut self.told, true);
        self.local.ended(&mut self.facts, &self.endpoint, outcome, self.began, again);
        self.probe = None;
    }

    /// The facts of the attempt that follows this one, which has ended.
    pub fn into_facts(mut self) -> Facts {
        let mut facts = mem::replace(&mut self.facts, Facts::placeholder());
        facts.attempt = facts.attempt.saturating_add(1);
        facts.tried.truncate(self.tried);
        facts.tried.push(self.endpoint.slot);
        facts
    }

    /// The facts of an attempt beside this one.
    pub fn facts_beside(&self) -> Facts {
        let Facts { head, is_request, peer, client, attempt, tried } = &self.facts;
        let mut tried = tried.get(..self.tried).unwrap_or_default().to_vec();
        tried.push(self.endpoint.slot);
        Facts {
            head: head.clone(),
            is_request: *is_request,
            peer: peer.clone(),
            client: *client,
            attempt: attempt.saturating_add(1),
            tried,
        }
    }

    /// Takes note that another attempt was made beside this one: it counts as one of the request's.
    pub fn count(&mut self, beside: &Self) {
        self.facts.attempt = self.facts.attempt.max(beside.facts.attempt);
        self.facts.tried.truncate(self.tried);
        self.facts.tried.push(beside.endpoint.slot);
        self.tried = self.facts.tried.len();
    }

    /// What counts it as under way at the endpoint, to be held for longer than this.
    pub fn take_in_flight(&mut self) -> Option<InFlight> {
        self.in_flight.take()
    }

    /// Whether it is to find out if the endpoint, or the service, is well.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some() || self.local.service.fleet.health.condition() != Condition::InUse
    }

    /// What may be told when the response has ended whose head this outcome is of; none where nobody asks.
    pub fn into_ending(self, outcome: Outcome) -> Option<Box<Ending>> {
        self.local.has_breaker().then(|| Box::new(Ending { visit: self, outcome }))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if !self.told {
            self.tell(&Outcome { sent: true, ..Outcome::of(Kind::ClientGone, self.started.elapsed()) });
        }
    }
}

/// The end of an attempt whose response is under way.
pub struct Ending {
    visit: Visit,
    /// As the head says.
    outcome: Outcome,
}

impl Ending {
    /// The response has ended well, with this gRPC status in its trailers.
    pub fn complete(&mut self, grpc_status: Option<u32>) {
        let grpc_status = grpc_status.or(self.outcome.grpc_status);
        self.visit.tell(&Outcome { grpc_status, ..self.outcome });
    }

    /// The response has ended so before its end. That it broke is told also where its head was taken for a success.
    pub fn broken(&mut self, error: &BodyError) {
        match error {
            BodyError::Endpoint(_) | BodyError::Reset(_) | BodyError::Length | BodyError::Idle => {
                self.visit.tell_broken(&Outcome { kind: Kind::Broken, ..self.outcome });
            }
            BodyError::Client(_) | BodyError::GivenUp | BodyError::Deadline | BodyError::TooLarge => {
                self.visit.tell(&Outcome { kind: Kind::ClientGone, ..self.outcome });
            }
        }
    }
}
