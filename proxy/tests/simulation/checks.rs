//! Active health checks of a run. When each is due and what comes of it is the proxy's to say; only the endpoint's answer
//! is simulated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle::check::conclude;
use heddle::check::rule::Standing;
use heddle::check::schedule::{Schedule, Ticket, wait};
use heddle::config::checked::HealthCheck;
use heddle::service::{Condition, Endpoint};

use super::journal::Note;
use super::watch::machine;
use super::world::{Event, World};

/// What is checked.
pub struct Checks {
    settings: Arc<HealthCheck>,
    schedule: Schedule,
    /// Stands for the beginning of virtual time.
    beginning: Instant,
    subjects: BTreeMap<Ticket, Subject>,
    tickets: Ticket,
}

struct Subject {
    endpoint: Arc<Endpoint>,
    standing: Standing,
}

/// A check under way.
#[derive(Debug)]
pub struct Check {
    ticket: Ticket,
    began: Duration,
    /// The state of the endpoint's health then.
    seen: u64,
    passes: bool,
}

impl Checks {
    pub fn new(settings: Arc<HealthCheck>, seed: u64) -> Self {
        let (schedule, beginning) = (Schedule::new(seed), Instant::now());
        Self { settings, schedule, beginning, subjects: BTreeMap::new(), tickets: 0 }
    }
}

impl World<'_> {
    /// Endpoints were registered or removed.
    pub fn follow_checks(&mut self) {
        let Some(checks) = &mut self.checks else { return };
        let snapshot = self.service.snapshot();
        let is_there = |subject: &Subject| {
            let now = snapshot.endpoint(subject.endpoint.slot);
            now.is_some_and(|now| Arc::ptr_eq(&now.health, &subject.endpoint.health))
        };
        checks.subjects.retain(|_, subject| is_there(subject));
        for endpoint in snapshot.endpoints() {
            if checks.subjects.values().any(|subject| Arc::ptr_eq(&subject.endpoint.health, &endpoint.health)) {
                continue;
            }
            checks.tickets += 1;
            checks
                .subjects
                .insert(checks.tickets, Subject { endpoint: endpoint.clone(), standing: Standing::default() });
            let now = (checks.beginning + self.now).into();
            let at = checks.schedule.begin(checks.tickets, now, wait(&checks.settings, false));
            self.queue.plan(at.into_std() - checks.beginning, Event::ChecksAreDue);
        }
    }

    /// Begins the checks that are due.
    pub fn begin_checks(&mut self) {
        let Some(checks) = &mut self.checks else { return };
        while let Some((_, ticket)) = checks.schedule.take_due((checks.beginning + self.now).into()) {
            let Some(Subject { endpoint, .. }) = checks.subjects.get(&ticket) else { continue };
            let reply = self.machines[machine(endpoint)].serve(self.now, self.scenario.latency, &mut self.random);
            let limit = checks.settings.timeout;
            let takes = reply.after.map_or(limit, |after| after.min(limit));
            let passes = reply.status == Some(200) && takes < limit;
            let check = Check { ticket, began: self.now, seen: endpoint.health.seen(), passes };
            self.queue.plan(self.now + takes, Event::CheckEnds(check));
        }
    }

    pub fn check_ends(&mut self, check: &Check) {
        let Some(checks) = &mut self.checks else { return };
        let Some(Subject { endpoint, standing }) = checks.subjects.get_mut(&check.ticket) else { return };
        let fleet = &self.service.fleet;
        let (effect, _is_probed) = conclude(fleet, endpoint, standing, &checks.settings, check.passes, check.seen);
        let number = machine(endpoint);
        if let Some((registration, fails)) = self.watch.registered.get_mut(&number).zip(effect.failing) {
            registration.check_fails = fails;
        }
        let is_out = standing.is_failing() || endpoint.health.condition() == Condition::Out;
        if self.now < self.scenario.parts.end {
            let (began, now) = ((checks.beginning + check.began).into(), (checks.beginning + self.now).into());
            let next = checks.schedule.follow(check.ticket, began, now, wait(&checks.settings, is_out));
            self.queue.plan(next.into_std() - checks.beginning, Event::ChecksAreDue);
        }
        self.note(Note::Check { machine: number, passed: check.passes });
    }
}
