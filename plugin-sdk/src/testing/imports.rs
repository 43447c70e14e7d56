//! The imports of the contract outside Wasm: they read the [`Host`] of the harness whose call is under way.

use std::cell::RefCell;
use std::mem;
use std::time::Duration;

use super::fleet::Fleet;
use super::{EndpointHealth, Outcome, Request};
use crate::{Attempts, Condition, Kind, Level};

thread_local! {
    static CURRENT: RefCell<Host> = RefCell::default();
}

#[derive(Default)]
pub(crate) struct Host {
    pub request: Request,
    pub tried: Vec<u32>,
    pub outcome: Outcome,
    pub in_flight: Vec<u32>,
    pub latency_micros: Vec<u32>,
    pub peak_micros: Vec<Option<u32>>,
    pub registered_at: Vec<Option<Duration>>,
    pub health: Vec<Option<EndpointHealth>>,
    pub now: Duration,
    pub logged: Vec<(Level, String)>,
}

impl Host {
    /// Makes a request the one that the next decision is about.
    pub(super) fn describe(&mut self, request: &Request, fleet: &Fleet) {
        self.request.clone_from(request);
        self.tried = request.tried.iter().filter_map(|address| fleet.slot(address)).collect();
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
}

pub(crate) mod health {
    use super::{Attempts, Condition, EndpointHealth, read};

    fn of<T>(slot: u32, fact: impl FnOnce(&EndpointHealth) -> T) -> Option<T> {
        read(|host| host.health.get(slot as usize)?.as_ref().map(fact))
    }

    pub fn state(slot: u32) -> Option<u64> {
        of(slot, EndpointHealth::state)
    }

    pub fn consecutive_failures(slot: u32) -> u32 {
        of(slot, |health| health.consecutive_failures).unwrap_or(0)
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
}

pub(crate) mod verdicts {
    use super::{CURRENT, Condition, Duration, EndpointHealth};

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

    pub fn eject(slot: u32, seen: u64, millis: u64) -> bool {
        apply(slot, seen, |health, now| {
            health.condition = Condition::Ejected;
            health.ejections += 1;
            health.ejected_until = Some(now.saturating_add(Duration::from_millis(millis)));
        })
    }

    pub fn probe(slot: u32, seen: u64, permits: u32) -> bool {
        apply(slot, seen, |health, _| {
            health.condition = Condition::HalfOpen;
            health.permits = permits;
        })
    }

    pub fn restore(slot: u32, seen: u64) -> bool {
        apply(slot, seen, |health, _| health.condition = Condition::InUse)
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
