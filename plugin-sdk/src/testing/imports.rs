//! The imports of the contract outside Wasm: they read the [`Host`] of the harness whose call is under way.

use std::cell::RefCell;
use std::mem;
use std::time::Duration;

use super::fleet::Fleet;
use super::{EndpointHealth, Outcome, Request, ServiceHealth};
use crate::{Attempts, Attention, Circuit, Condition, Kind, Level, Terms};

thread_local! {
    static CURRENT: RefCell<Host> = RefCell::default();
}

#[derive(Default)]
pub(crate) struct Host {
    pub request: Request,
    pub tried: Vec<u32>,
    pub outcome: Outcome,
    pub terms: Terms,
    pub attention: Option<Attention>,
    pub in_flight: Vec<u32>,
    pub latency_micros: Vec<u32>,
    pub peak_micros: Vec<Option<u32>>,
    pub registered_at: Vec<Option<Duration>>,
    pub health: Vec<Option<EndpointHealth>>,
    pub service: ServiceHealth,
    pub now: Duration,
    pub logged: Vec<(Level, String)>,
}

impl Host {
    /// Makes a request the one that the next decision is about.
    pub(super) fn describe(&mut self, request: &Request, fleet: &Fleet) {
        self.request.clone_from(request);
        self.tried = request.tried.iter().filter_map(|address| fleet.slot(address)).collect();
    }

    /// Whether the breaker wants to judge an attempt at the endpoint in this slot.
    pub(super) fn judges(&self, slot: u32) -> bool {
        let Some(Some(health)) = self.health.get(slot as usize) else { return true };
        let Some(attention) = self.attention else { return true };
        let failures = [
            (health.consecutive_connect_failures, attention.connect_failures),
            (health.consecutive_timeouts, attention.timeouts),
            (health.consecutive_gateway_errors, attention.gateway_errors),
            (health.consecutive_failures, attention.failures),
            (self.service.consecutive_failures, attention.service_failures),
        ];
        health.condition != Condition::InUse
            || self.service.circuit != Circuit::Closed
            || health.consecutive_failures > 0 && failures.into_iter().any(|(now, from)| from > 0 && now >= from)
    }

    /// Makes a time the current one, at which a service may have been open long enough.
    pub(super) fn set_now(&mut self, now: Duration) {
        self.now = now;
        if self.service.open_until.is_some_and(|until| until <= now) {
            self.service.open_until = None;
            self.service.circuit = Circuit::HalfOpen;
            self.service.changes += 1;
        }
    }

    /// Runs a call of a policy that sees this host.
    pub fn during<T>(&mut self, call: impl FnOnce() -> T) -> T {
        CURRENT.with_borrow_mut(|current| mem::swap(current, self));
        let result = call();
        CURRENT.with_borrow_mut(|current| mem::swap(current, self));
        result
    }
}

/// Puts a value at an index, filling the gap before it.
pub(super) fn set<T: Default>(list: &mut Vec<T>, index: u32, value: T) {
    let index = index as usize;
    if index >= list.len() {
        list.resize_with(index + 1, T::default);
    }
    if let Some(place) = list.get_mut(index) {
        *place = value;
    }
}

fn read<T>(fact: impl FnOnce(&Host) -> T) -> T {
    CURRENT.with_borrow(fact)
}

pub(crate) mod request {
    use super::read;

    pub fn service() -> Option<String> {
        read(|host| host.request.service.clone())
    }

    pub fn client_ip() -> Option<String> {
        read(|host| host.request.client_ip.clone())
    }

    pub fn method() -> Option<String> {
        read(|host| host.request.method.clone())
    }

    pub fn path() -> Option<String> {
        read(|host| host.request.path.clone())
    }

    pub fn header(name: &str) -> Option<Vec<u8>> {
        read(|host| {
            let lines = host.request.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
            let values: Vec<&[u8]> = lines.map(|(_, value)| value.as_slice()).collect();
            if values.is_empty() { None } else { Some(values.join(&b", "[..])) }
        })
    }

    pub fn sni() -> Option<String> {
        read(|host| host.request.sni.clone())
    }

    pub fn identity() -> Option<String> {
        read(|host| host.request.identity.clone())
    }

    pub fn attempt() -> Option<u32> {
        read(|host| host.request.attempt)
    }

    pub fn tried() -> Vec<u32> {
        read(|host| host.tried.clone())
    }
}

pub(crate) mod load {
    use super::read;

    pub fn in_flight(slot: u32) -> u32 {
        read(|host| host.in_flight.get(slot as usize).copied().unwrap_or(0))
    }

    pub fn in_flight_all() -> Vec<u32> {
        read(|host| host.in_flight.clone())
    }

    pub fn latency_micros(slot: u32) -> u32 {
        read(|host| host.latency_micros.get(slot as usize).copied().unwrap_or(0))
    }

    pub fn latency_micros_all() -> Vec<u32> {
        read(|host| host.latency_micros.clone())
    }

    /// What an endpoint has that was never used.
    const START: u32 = 30_000;

    pub fn peak_micros(slot: u32) -> u32 {
        read(|host| host.peak_micros.get(slot as usize).copied().flatten().unwrap_or(START))
    }

    pub fn registered_micros(slot: u32) -> Option<u64> {
        read(|host| host.registered_at.get(slot as usize).copied().flatten().map(|time| time.as_micros() as u64))
    }
}

pub(crate) mod outcome {
    use super::read;

    pub fn kind() -> Option<u32> {
        read(|host| host.outcome.kind.map(super::number))
    }

    pub fn status() -> Option<u32> {
        read(|host| host.outcome.status)
    }

    pub fn grpc_status() -> Option<u32> {
        read(|host| host.outcome.grpc_status)
    }

    pub fn latency_micros() -> Option<u64> {
        read(|host| host.outcome.latency.map(|latency| latency.as_micros() as u64))
    }

    pub fn sent() -> Option<bool> {
        read(|host| host.outcome.sent)
    }

    pub fn replayable() -> Option<bool> {
        read(|host| host.outcome.replayable)
    }

    pub fn retry_after_ms() -> Option<u64> {
        read(|host| host.outcome.retry_after.map(|time| time.as_millis() as u64))
    }

    pub fn elapsed_ms() -> Option<u64> {
        read(|host| host.outcome.elapsed.map(|time| time.as_millis() as u64))
    }

    pub fn budget_left() -> Option<u32> {
        read(|host| host.outcome.budget_left)
    }

    pub fn others_eligible() -> Option<u32> {
        read(|host| host.outcome.others_eligible)
    }
}

pub(crate) mod terms {
    use super::{CURRENT, Duration, Terms};

    fn set(term: impl FnOnce(&mut Terms)) {
        CURRENT.with_borrow_mut(|host| term(&mut host.terms));
    }

    pub fn set_timeout(millis: u64) {
        set(|terms| terms.timeout = Some(Duration::from_millis(millis)));
    }

    pub fn set_try_timeout(millis: u64) {
        set(|terms| terms.try_timeout = Some(Duration::from_millis(millis)));
    }

    pub fn set_hedging(permille: u32) {
        set(|terms| terms.hedging = Some(permille));
    }
}

pub(crate) mod health {
    use super::{Attempts, Condition, EndpointHealth, ServiceHealth, read};

    fn of<T>(slot: u32, fact: impl FnOnce(&EndpointHealth) -> T) -> Option<T> {
        read(|host| host.health.get(slot as usize)?.as_ref().map(fact))
    }

    pub fn state(slot: u32) -> Option<u64> {
        of(slot, EndpointHealth::state)
    }

    pub fn consecutive_failures(slot: u32) -> u32 {
        of(slot, |health| health.consecutive_failures).unwrap_or(0)
    }

    pub fn consecutive(slot: u32, class: u32) -> u32 {
        let count = |health: &EndpointHealth| match class {
            0 => health.consecutive_connect_failures,
            1 => health.consecutive_timeouts,
            2 => health.consecutive_gateway_errors,
            3 => health.consecutive_failures,
            _ => 0,
        };
        of(slot, count).unwrap_or(0)
    }

    pub fn window(slot: u32, _seconds: u32) -> (u32, u32) {
        let Attempts { successes, failures } = of(slot, |health| health.attempts).unwrap_or_default();
        (successes, failures)
    }

    pub fn ejections(slot: u32) -> u32 {
        of(slot, |health| health.ejections).unwrap_or(0)
    }

    pub fn ejected_until(slot: u32) -> Option<u64> {
        of(slot, |health| health.ejected_until)?.map(|time| time.as_micros() as u64)
    }

    pub fn totals() -> (u32, u32) {
        read(|host| {
            let known = host.health.iter().flatten();
            let out = known.clone().filter(|health| health.condition != Condition::InUse).count();
            (known.count() as u32, out as u32)
        })
    }

    pub fn service_window(_seconds: u32) -> (u32, u32) {
        read(|host| {
            host.health.iter().flatten().fold((0, 0), |(successes, failures), health| {
                (successes + health.attempts.successes, failures + health.attempts.failures)
            })
        })
    }

    pub fn service_state() -> u64 {
        read(|host| ServiceHealth::state(&host.service))
    }

    pub fn service_consecutive_failures() -> u32 {
        read(|host| host.service.consecutive_failures)
    }
}

pub(crate) mod attention {
    use super::{Attention, CURRENT};

    pub fn judge_only(consecutive: &[u32], service_failures: u32) {
        let [connect_failures, timeouts, gateway_errors, failures] = *consecutive else { return };
        let attention = Attention { connect_failures, timeouts, gateway_errors, failures, service_failures };
        CURRENT.with_borrow_mut(|host| host.attention = Some(attention));
    }
}

pub(crate) mod verdicts {
    use super::{CURRENT, Circuit, Condition, Duration, EndpointHealth, ServiceHealth};

    /// The proxy's bounds.
    const LONGEST_EJECTION: Duration = Duration::from_secs(60 * 60);
    const LONGEST_OPENING: Duration = Duration::from_secs(5 * 60);

    fn is_in_use(seen: u64) -> bool {
        seen & 0xff == 0
    }

    fn apply(slot: u32, seen: u64, change: impl FnOnce(&mut EndpointHealth, Duration)) -> bool {
        CURRENT.with_borrow_mut(|host| {
            let Some(Some(health)) = host.health.get_mut(slot as usize) else { return false };
            if health.state() != seen {
                return false;
            }
            health.ejected_until = None;
            health.permits = 0;
            health.changes += 1;
            change(health, host.now);
            true
        })
    }

    fn apply_to_service(seen: u64, change: impl FnOnce(&mut ServiceHealth, Duration)) -> bool {
        CURRENT.with_borrow_mut(|host| {
            if host.service.state() != seen {
                return false;
            }
            host.service.open_until = None;
            host.service.permits = 0;
            host.service.changes += 1;
            change(&mut host.service, host.now);
            true
        })
    }

    pub fn eject(slot: u32, seen: u64, millis: u64) -> bool {
        apply(slot, seen, |health, now| {
            health.condition = Condition::Ejected;
            health.ejections += 1;
            health.ejected_until = Some(now.saturating_add(Duration::from_millis(millis).min(LONGEST_EJECTION)));
        })
    }

    pub fn probe(slot: u32, seen: u64, permits: u32) -> bool {
        const EJECTED: u64 = 1;
        seen & 0xff == EJECTED
            && apply(slot, seen, |health, _| {
                health.condition = Condition::HalfOpen;
                health.permits = permits;
            })
    }

    pub fn restore(slot: u32, seen: u64) -> bool {
        !is_in_use(seen)
            && apply(slot, seen, |health, _| {
                health.condition = Condition::InUse;
                health.forget();
            })
    }

    pub fn open_service(seen: u64, millis: u64, permits: u32) -> bool {
        apply_to_service(seen, |service, now| {
            service.circuit = Circuit::Open;
            service.open_until = Some(now.saturating_add(Duration::from_millis(millis).min(LONGEST_OPENING)));
            service.permits = permits;
        })
    }

    pub fn close_service(seen: u64) -> bool {
        !is_in_use(seen) && apply_to_service(seen, |service, _| service.circuit = Circuit::Closed)
    }
}

impl EndpointHealth {
    /// The state as the contract numbers it.
    fn state(&self) -> u64 {
        let condition = match self.condition {
            Condition::InUse => 0,
            Condition::Ejected => 1,
            Condition::HalfOpen => 2,
            Condition::Other => 3,
        };
        self.changes << 8 | condition
    }

    /// What is counted begins anew.
    fn forget(&mut self) {
        self.consecutive_failures = 0;
        self.consecutive_connect_failures = 0;
        self.consecutive_timeouts = 0;
        self.consecutive_gateway_errors = 0;
        self.attempts = Attempts::default();
    }

    /// Counts an attempt as the proxy does; none where it says nothing of the endpoint.
    pub(super) fn count(&mut self, outcome: &Outcome) -> Option<bool> {
        let succeeded = succeeded(outcome)?;
        let kind = outcome.kind.unwrap_or(Kind::Other);
        let gateway_status = match outcome.grpc_status {
            Some(status) => status == 14,
            None => matches!(outcome.status, Some(502..=504)),
        };
        let failures = [
            (&mut self.consecutive_failures, true),
            (&mut self.consecutive_connect_failures, matches!(kind, Kind::Refused | Kind::ConnectTimeout | Kind::Tls)),
            (&mut self.consecutive_timeouts, matches!(kind, Kind::ConnectTimeout | Kind::ResponseTimeout)),
            (&mut self.consecutive_gateway_errors, kind == Kind::Closed || kind == Kind::Response && gateway_status),
        ];
        for (count, counts) in failures {
            *count = if !succeeded && counts { *count + 1 } else { 0 };
        }
        if succeeded {
            self.attempts.successes += 1;
        } else {
            self.attempts.failures += 1;
        }
        Some(succeeded)
    }
}

/// What [`crate::Outcome::succeeded`] says of an outcome.
fn succeeded(outcome: &Outcome) -> Option<bool> {
    let mut host = Host { outcome: outcome.clone(), ..Host::default() };
    host.during(|| crate::Outcome::CURRENT.succeeded())
}

impl ServiceHealth {
    /// The state as the contract numbers it.
    fn state(&self) -> u64 {
        let circuit = match self.circuit {
            Circuit::Closed => 0,
            Circuit::Open => 1,
            Circuit::HalfOpen => 2,
            Circuit::Other => 3,
        };
        self.changes << 8 | circuit
    }
}

pub(crate) mod clock {
    pub fn now_micros() -> u64 {
        super::read(|host| host.now.as_micros() as u64)
    }
}

pub(crate) mod log {
    use super::{CURRENT, Level};

    pub fn write(level: u32, message: &str) {
        let level = match level {
            0 => Level::Error,
            1 => Level::Warning,
            2 => Level::Information,
            _ => Level::Debugging,
        };
        CURRENT.with_borrow_mut(|host| host.logged.push((level, message.to_owned())));
    }
}

/// An outcome's kind as the contract numbers it.
fn number(kind: Kind) -> u32 {
    match kind {
        Kind::Response => 0,
        Kind::Refused => 1,
        Kind::ConnectTimeout => 2,
        Kind::Tls => 3,
        Kind::NotProcessed => 4,
        Kind::Closed => 5,
        Kind::ResponseTimeout => 6,
        Kind::Broken => 7,
        Kind::ClientGone => 8,
        Kind::NoEndpoint => 9,
        Kind::Other => u32::MAX,
    }
}
