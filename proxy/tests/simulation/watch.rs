//! What must hold, and what is known for certain of what the proxy should see.
//!
//! The watch has the truth from the simulation, not from the proxy: who is registered with which weight, and whose checks
//! fail. Only how an endpoint was judged is read from the proxy, as that is the proxy's to say.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use heddle::policy::Role;
use heddle::service::{Condition, Endpoint, Fleet, Health, Load, Service};

use super::journal::{Journal, Note};
use super::scenario::{Scenario, Spread};

/// Something did not hold.
#[derive(Debug)]
pub struct Broken(pub String);

pub type Held<T = ()> = Result<T, Broken>;

/// Ends the run where something does not hold.
macro_rules! must {
    ($holds:expr, $($what:tt)+) => {
        let holds: bool = $holds;
        if !holds {
            return Err($crate::watch::Broken(format!($($what)+)));
        }
    };
}
pub(crate) use must;

/// What is registered of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    pub weight: u32,
    pub check_fails: bool,
}

/// Whose picks are counted, while all is well.
#[derive(Default)]
struct Calm {
    /// By worker and machine.
    picks: BTreeMap<(usize, usize), u64>,
    /// The machine of each key, for balancers that have one.
    homes: HashMap<String, usize>,
}

/// A time at which no endpoint answers.
struct Outage {
    began: Duration,
    attempts: u64,
    requests: u64,
}

pub struct Watch {
    pub registered: BTreeMap<usize, Registration>,
    /// Of every endpoint that ever was.
    loads: BTreeMap<usize, Load>,
    version: u64,
    /// By slot.
    eligible: Vec<bool>,
    conditions: HashMap<usize, Condition>,
    panic: bool,
    service: u64,
    /// Probes under way at an endpoint, by the place of what is remembered of it.
    probes: HashMap<*const Health, u32>,
    /// Requests under way that were let into a half-open service.
    service_probes: u32,
    outage: Option<Outage>,
    calm: Calm,
    pub attempts: u64,
    pub requests: u64,
    /// Requests with a retry policy, and retries, that are under way.
    pub active: u32,
    retries: u32,
    /// Whether the retry policy was out of force at some time.
    pub was_condemned: bool,
    /// Until when the breaker was; the longest time there is while it is.
    unjudged_until: Option<Duration>,
    pub answers: u64,
}

impl Watch {
    pub fn new() -> Self {
        Self {
            registered: BTreeMap::new(),
            loads: BTreeMap::new(),
            version: 0,
            eligible: Vec::new(),
            conditions: HashMap::new(),
            panic: false,
            service: 0,
            probes: HashMap::new(),
            service_probes: 0,
            outage: None,
            calm: Calm::default(),
            attempts: 0,
            requests: 0,
            active: 0,
            retries: 0,
            was_condemned: false,
            unjudged_until: None,
            answers: 0,
        }
    }

    pub fn is_in_panic(&self) -> bool {
        self.panic
    }

    /// Looks at what has changed since the last event.
    pub fn look(&mut self, fleet: &Fleet, scenario: &Scenario, now: Duration, journal: &mut Journal) -> Held {
        let service = fleet.health.seen();
        if service != self.service {
            self.service = service;
            journal.note(now, Note::Service { state: service });
            let is_closed = fleet.health.condition() == Condition::InUse;
            must!(is_closed || !scenario.is_calm(now), "a healthy service is open");
        }
        if fleet.version() == self.version {
            return Ok(());
        }
        let snapshot = fleet.snapshot();
        self.version = snapshot.version;
        let is_well = |endpoint: &Endpoint, registration: &Registration| {
            endpoint.health.condition() != Condition::Out && !registration.check_fails
        };
        let (mut usable, mut well) = (0, 0);
        for endpoint in snapshot.endpoints() {
            let registration = self.registered.get(&machine(endpoint));
            let Some(registration) = registration.filter(|known| known.weight == endpoint.registered.weight) else {
                return Err(Broken(format!("an endpoint that is not registered so: {}", shown(endpoint))));
            };
            usable += usize::from(registration.weight > 0);
            well += usize::from(registration.weight > 0 && is_well(endpoint, registration));
        }
        let count = snapshot.endpoints().count();
        must!(count == self.registered.len(), "{count} endpoints of {} are there", self.registered.len());
        self.panic = well * 100 < usable * scenario.panic_percent as usize;
        self.eligible.clear();
        self.eligible.resize(snapshot.slots(), false);
        let (mut out, mut is_newly_ejected) = (0, false);
        for endpoint in snapshot.endpoints() {
            let machine = machine(endpoint);
            let registration = self.registered[&machine];
            let eligible = registration.weight > 0 && (self.panic || is_well(endpoint, &registration));
            self.eligible[endpoint.slot as usize] = eligible;
            let is_eligible = snapshot.eligible_endpoint(endpoint.slot).is_some();
            must!(is_eligible == eligible, "eligible is {is_eligible} and not {eligible}: {}", shown(endpoint));
            let condition = endpoint.health.condition();
            let before = self.conditions.insert(machine, condition).unwrap_or(Condition::InUse);
            is_newly_ejected |= before == Condition::InUse && condition == Condition::Out;
            let would_be_picked = registration.weight > 0 && !registration.check_fails;
            out += usize::from(condition != Condition::InUse && would_be_picked);
            self.loads.entry(machine).or_insert_with(|| endpoint.load.clone());
        }
        must!(snapshot.is_in_panic() == self.panic, "panic is {} and not {}", snapshot.is_in_panic(), self.panic);
        let most = (count * scenario.max_percent as usize / 100).max(1);
        must!(!is_newly_ejected || out <= most, "{out} of {count} are ejected: at most {most} may be");
        must!(!is_newly_ejected || !scenario.is_calm(now), "a healthy endpoint was ejected");
        let eligible = self.eligible.iter().filter(|eligible| **eligible).count();
        journal.note(now, Note::Endpoints { version: self.version, eligible, out, panic: self.panic });
        Ok(())
    }

    /// A registration is gone: what comes next in its place is new.
    pub fn forget(&mut self, machine: usize) {
        self.registered.remove(&machine);
        self.conditions.remove(&machine);
    }

    /// An endpoint was picked, after these were tried, for an attempt. True where that is one of the probes that a half-open
    /// endpoint is allowed.
    pub fn picked(&mut self, service: &Service, scenario: &Scenario, endpoint: &Endpoint, tried: &[u32]) -> Held<bool> {
        let (fleet, is_native) = (&service.fleet, service.balancer.current().is_none());
        let slot = endpoint.slot;
        let is_eligible = |slot: u32| self.eligible.get(slot as usize).copied().unwrap_or(false);
        must!(is_eligible(slot), "an endpoint that is not eligible was picked: {}", shown(endpoint));
        let half_open = endpoint.health.condition() == Condition::HalfOpen && !self.panic;
        let snapshot = fleet.snapshot();
        if tried.contains(&slot) {
            let untried = snapshot.endpoints().find(|other| {
                is_eligible(other.slot) && !tried.contains(&other.slot) && (self.panic || self.has_permit(other))
            });
            must!(
                untried.is_none(),
                "slot {slot} was tried before ({tried:?}), and {:?} was not",
                untried.map(|other| shown(other))
            );
        }
        if scenario.balancer.spread == Spread::LeastLoaded && !is_native && tried.is_empty() && !half_open {
            // The request itself is counted by now.
            let load = |endpoint: &Endpoint, less| {
                u64::from(endpoint.load.in_flight() - less) * 1_000_000 / u64::from(endpoint.registered.weight)
            };
            let least = snapshot
                .endpoints()
                .filter(|other| is_eligible(other.slot) && other.slot != slot)
                .filter(|other| other.health.condition() == Condition::InUse || self.panic)
                .map(|other| load(other, 0))
                .min();
            let load = load(endpoint, 1);
            must!(least.is_none_or(|least| load <= least), "slot {slot} has a load of {load}, and another {least:?}");
        }
        if half_open {
            let probes = self.probes.entry(Arc::as_ptr(&endpoint.health)).or_default();
            *probes += 1;
            let most = scenario.breaker.map_or(0, |breaker| breaker.probes);
            must!(*probes <= most, "{probes} probes at once, {most} are allowed: {}", shown(endpoint));
        }
        Ok(half_open)
    }

    /// Whether an endpoint, if it is half-open, certainly takes another request.
    fn has_permit(&self, endpoint: &Endpoint) -> bool {
        endpoint.health.condition() != Condition::HalfOpen || !self.probes.contains_key(&Arc::as_ptr(&endpoint.health))
    }

    /// No endpoint was picked.
    pub fn none_eligible(&self, fleet: &Fleet) -> Held {
        let snapshot = fleet.snapshot();
        let left = snapshot.endpoints().find(|endpoint| {
            self.eligible.get(endpoint.slot as usize) == Some(&true) && (self.panic || self.has_permit(endpoint))
        });
        must!(left.is_none(), "no endpoint was picked, and there is {:?}", left.map(|left| shown(left)));
        Ok(())
    }

    pub fn probe_ended(&mut self, endpoint: &Endpoint) {
        let probes = self.probes.entry(Arc::as_ptr(&endpoint.health)).or_default();
        *probes -= 1;
        if *probes == 0 {
            self.probes.remove(&Arc::as_ptr(&endpoint.health));
        }
    }

    /// A retry begins, its delay included.
    pub fn retry_begins(&mut self, scenario: &Scenario) -> Held {
        self.retries += 1;
        let (retries, active) = (self.retries, self.active);
        let most = scenario.retry.map_or(0, |retry| (active * retry.percent / 100).max(retry.min));
        must!(retries <= most, "{retries} retries for {active} requests, {most} are allowed");
        Ok(())
    }

    pub fn retry_ends(&mut self) {
        self.retries -= 1;
    }

    /// A request was let into a half-open service.
    pub fn entered(&mut self, scenario: &Scenario) -> Held {
        self.service_probes += 1;
        let (probes, most) = (self.service_probes, scenario.breaker.map_or(0, |breaker| breaker.open_probes));
        must!(probes <= most, "{probes} requests were let into a half-open service at once, {most} are allowed");
        Ok(())
    }

    pub fn left(&mut self) {
        self.service_probes -= 1;
    }

    /// Counts a pick of a time when all is well.
    pub fn count(&mut self, spread: Spread, worker: usize, machine: usize, key: impl Display) -> Held {
        *self.calm.picks.entry((worker, machine)).or_default() += 1;
        if matches!(spread, Spread::ByPath | Spread::ByClient | Spread::First) {
            let home = *self.calm.homes.entry(key.to_string()).or_insert(machine);
            must!(home == machine, "{key} went to {home}, and now to {machine}");
        }
        Ok(())
    }

    /// A time when all was well has ended: the load was spread as the balancer promises.
    pub fn end_of_calm(&mut self, scenario: &Scenario) -> Held {
        let Calm { picks, .. } = std::mem::take(&mut self.calm);
        let weights: BTreeMap<usize, u64> = {
            let weighty = self.registered.iter().filter(|(_, registration)| registration.weight > 0);
            weighty.map(|(&machine, registration)| (machine, registration.weight.into())).collect()
        };
        let weigh =
            matches!(scenario.balancer.spread, Spread::InWeightedTurn | Spread::WeightedRandom | Spread::Fastest);
        let weight = |machine: usize| if weigh { weights[&machine] } else { 1 };
        let all: u64 = weights.keys().map(|&machine| weight(machine)).sum();
        let hedges = scenario.retry.is_some_and(|retry| retry.hedges());
        for worker in 0..scenario.workers {
            let of = |machine| picks.get(&(worker, machine)).copied().unwrap_or(0);
            let total: u64 = weights.keys().map(|&machine| of(machine)).sum();
            for &machine in weights.keys() {
                let (share, got) = (total as f64 * weight(machine) as f64 / all as f64, of(machine) as f64);
                let off = match scenario.balancer.spread {
                    // A second attempt takes a turn too.
                    Spread::InTurn | Spread::InWeightedTurn if hedges => continue,
                    Spread::InTurn => 1.0,
                    Spread::InWeightedTurn => 3.0,
                    // Seven standard deviations of a Poisson distribution, and some for its longer tail.
                    Spread::Random | Spread::WeightedRandom => 7.0 * share.sqrt() + 12.0,
                    // Each is one of the two that are drawn twice as often as it is due, and not always the better one.
                    Spread::Fastest if got <= 2.0 * share + 7.0 * (2.0 * share).sqrt() + 12.0 => continue,
                    Spread::Fastest => 0.0,
                    Spread::LeastLoaded
                    | Spread::ByPath
                    | Spread::ByClient
                    | Spread::Bounded
                    | Spread::First
                    | Spread::Growing => continue,
                };
                let distance = (got - share).abs();
                must!(
                    distance <= off,
                    "machine {machine} got {got} of worker {worker}'s {total} requests: {share:.1} is its share"
                );
            }
        }
        Ok(())
    }

    /// Every endpoint is down from now on, or not every one.
    pub fn set_outage(&mut self, is_down: bool, scenario: &Scenario, now: Duration) -> Held {
        if is_down && self.outage.is_none() {
            self.outage = Some(Outage { began: now, attempts: self.attempts, requests: self.requests });
        }
        let Some(outage) = self.outage.take_if(|_| !is_down) else { return Ok(()) };
        let opens = scenario.reaches_all()
            && self.unjudged_until.is_none_or(|until| until < outage.began)
            && scenario.breaker.is_some_and(|breaker| (1..=10).contains(&breaker.service_failures))
            && scenario.retry.is_none_or(|retry| retry.percent <= 20 && retry.min <= 3);
        let (attempts, requests) = (self.attempts - outage.attempts, self.requests - outage.requests);
        if opens {
            // Of a large service most endpoints must have failed before it is known to be down.
            let many = self.registered.len() as u64;
            let learning = if many > 10 { 2 * many } else { 0 };
            let (time, most) = ((now - outage.began).as_secs_f64(), requests * 12 / 10 + 10 + learning);
            must!(attempts <= most, "{attempts} attempts for {requests} requests while all was down for {time} s");
        }
        Ok(())
    }

    /// A policy is out of force, or in force again.
    pub fn set_judged(&mut self, role: Role, in_force: bool, now: Duration) {
        if role == Role::CircuitBreaker && (!in_force || self.unjudged_until == Some(Duration::MAX)) {
            self.unjudged_until = Some(if in_force { now } else { Duration::MAX });
        }
    }

    /// The service has had time to recover. Where its breaker is out of force for good, nothing is left of what it said.
    pub fn recovered(&self, service: &Service) -> Held {
        let (fleet, breaker) = (&service.fleet, service.breaker.as_ref());
        if breaker.is_none_or(|breaker| breaker.current().is_none()) {
            must!(fleet.health.condition() == Condition::InUse, "the service is kept from use: {:?}", fleet.health);
            let snapshot = fleet.snapshot();
            let out = snapshot.endpoints().find(|endpoint| endpoint.health.condition() != Condition::InUse);
            must!(out.is_none(), "nobody puts it back: {:?}", out.map(|out| shown(out)));
        }
        must!(fleet.health.condition() != Condition::Out, "the service is still open: {:?}", fleet.health);
        for endpoint in fleet.snapshot().endpoints() {
            let registration = self.registered[&machine(endpoint)];
            let slot = endpoint.slot as usize;
            must!(
                registration.weight == 0 || self.eligible[slot] && !self.panic,
                "it has not recovered: {}",
                shown(endpoint)
            );
        }
        Ok(())
    }

    /// Nothing is under way any more.
    pub fn at_rest(&self, service: &Service, scenario: &Scenario) -> Held {
        let fleet = &service.fleet;
        for (machine, load) in &self.loads {
            must!(load.in_flight() == 0, "{} requests are under way at machine {machine}", load.in_flight());
        }
        let counts = (self.active, self.retries, self.service_probes, self.probes.len());
        must!(counts == (0, 0, 0, 0), "requests, retries and probes are under way: {counts:?}");
        let left = service.budget.left();
        must!(scenario.retry.is_none_or(|retry| left == retry.min), "the budget was not given back: {left} are left");
        // As many permits as are allowed can be had, and no more.
        const MOST_LOOKED_AT: usize = 100;
        for endpoint in fleet.snapshot().endpoints().take(MOST_LOOKED_AT) {
            let Endpoint { slot, health, .. } = &**endpoint;
            if health.condition() == Condition::InUse && !fleet.eject(*slot, health.seen(), Duration::ZERO) {
                continue;
            }
            if health.condition() == Condition::HalfOpen {
                fleet.restore(*slot, health.seen());
                fleet.eject(*slot, health.seen(), Duration::ZERO);
            }
            if fleet.probe(*slot, health.seen(), 2) {
                let taken = [health.probe(), health.probe(), health.probe()].map(|probe| probe.is_some());
                must!(taken == [true, true, false], "probes were not given back: {}", shown(endpoint));
            }
            fleet.restore(*slot, health.seen());
        }
        fleet.open(fleet.health.seen(), Duration::ZERO, 2);
        let entered = [fleet.enter(), fleet.enter(), fleet.enter()].map(|door| matches!(door, Ok(Some(_))));
        must!(entered == [true, true, false], "probes of the service were not given back: {entered:?}");
        Ok(())
    }
}

fn shown(endpoint: &Endpoint) -> String {
    let Endpoint { slot, registered, health, .. } = endpoint;
    let (condition, fails) = (health.condition(), health.check_fails());
    format!("{} in slot {slot}, {condition:?}, check fails: {fails}, weight {}", registered.id, registered.weight)
}

/// The number that a machine's registration carries.
pub fn machine(endpoint: &Endpoint) -> usize {
    endpoint.registered.order as usize
}
