//! What a guest may call: the host side of `plugin-sdk/wit/policy.wit`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use wasmtime::component::{HasSelf, Linker};
use wasmtime::{ResourceLimiter, Result, UpdateDeadline};

use super::fault::one_line;
use super::generation::Generation;
use super::guest::{attention, clock, health, load, log, outcome, request, terms, types, verdicts};
use crate::policy::{Attention, Facts, Outcome, Terms};
use crate::service::{Class, Condition, Fleet, Health, PEAK_START, Snapshot};

/// Lines that all instances of a generation together may log within a second.
const LINES_A_SECOND: u64 = 10;

/// What belongs to one instance: the facts of the decision under way, and its bounds.
pub(super) struct State {
    pub(super) generation: Arc<Generation>,
    pub(super) fleet: Arc<Fleet>,
    /// The request that is being decided on; a placeholder between decisions.
    pub(super) facts: Facts,
    pub(super) deciding: bool,
    /// How the attempt has ended that is being decided on.
    pub(super) outcome: Option<Outcome>,
    /// What a retry policy asked for when it was configured.
    pub(super) terms: Terms,
    /// Which attempts a breaker then said that it judges; none for all of them.
    pub(super) attention: Option<Attention>,
    /// Whether it is being configured.
    pub(super) configuring: bool,
    /// The endpoints, as the guest was told them.
    pub(super) snapshot: Arc<Snapshot>,
    /// What the clock read when the call under way first asked: it stands still, so that a decision can be replayed.
    pub(super) now: Option<Duration>,
    pub(super) memory: MemoryBound,
    pub(super) budget: Budget,
}

impl State {
    fn fact<T>(&self, of: impl FnOnce(&Facts) -> Option<T>) -> Option<T> {
        if self.deciding { of(&self.facts) } else { None }
    }

    fn health(&self, slot: u32) -> Option<&Health> {
        Some(&self.snapshot.endpoint(slot)?.health)
    }

    /// The clock, which stands still during a call.
    fn now(&mut self) -> Duration {
        let clock = &self.fleet.clock;
        *self.now.get_or_insert_with(|| clock.now())
    }

    fn set_term(&mut self, set: impl FnOnce(&mut Terms)) {
        if self.configuring {
            set(&mut self.terms);
        }
    }
}

impl types::Host for State {}

impl request::Host for State {
    fn service(&mut self) -> Option<String> {
        self.fact(|_| Some(self.fleet.name.to_string()))
    }

    fn client_ip(&mut self) -> Option<String> {
        self.fact(|facts| Some(facts.client.to_string()))
    }

    fn method(&mut self) -> Option<String> {
        self.fact(|facts| facts.is_request.then(|| facts.head.method.to_string()))
    }

    fn path(&mut self) -> Option<String> {
        let path = |facts: &Facts| facts.head.uri.path_and_query().map(|path| path.as_str().to_owned());
        self.fact(|facts| facts.is_request.then(|| path(facts)).flatten())
    }

    fn header(&mut self, name: String) -> Option<Vec<u8>> {
        self.fact(|facts| {
            let mut lines = facts.head.headers.get_all(name.as_str()).iter();
            let mut value = lines.next()?.as_bytes().to_vec();
            for line in lines {
                value.extend_from_slice(b", ");
                value.extend_from_slice(line.as_bytes());
            }
            Some(value)
        })
    }

    fn sni(&mut self) -> Option<String> {
        self.fact(|facts| facts.peer.as_ref()?.server_name.as_deref().map(str::to_owned))
    }

    fn identity(&mut self) -> Option<String> {
        self.fact(|facts| facts.peer.as_ref()?.identity.as_deref().map(str::to_owned))
    }

    fn attempt(&mut self) -> Option<u32> {
        self.fact(|facts| Some(facts.attempt))
    }

    fn tried(&mut self) -> Vec<u32> {
        self.fact(|facts| Some(facts.tried.clone())).unwrap_or_default()
    }
}

impl load::Host for State {
    fn in_flight(&mut self, slot: u32) -> u32 {
        self.snapshot.endpoint(slot).map_or(0, |endpoint| endpoint.load.in_flight())
    }

    fn in_flight_all(&mut self) -> Vec<u32> {
        self.snapshot.in_flight()
    }

    fn latency_micros(&mut self, slot: u32) -> u32 {
        self.snapshot.endpoint(slot).map_or(0, |endpoint| endpoint.load.latency_micros())
    }

    fn latency_micros_all(&mut self) -> Vec<u32> {
        self.snapshot.latency()
    }

    fn peak_micros(&mut self, slot: u32) -> u32 {
        self.fleet.read_peaks();
        let now = self.now();
        self.snapshot.endpoint(slot).map_or(PEAK_START, |endpoint| endpoint.load.peak_micros(now))
    }

    fn registered_micros(&mut self, slot: u32) -> Option<u64> {
        self.snapshot.endpoint(slot)?.registered_at.map(as_micros)
    }
}

impl clock::Host for State {
    fn now_micros(&mut self) -> u64 {
        as_micros(self.now())
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl outcome::Host for State {
    fn kind(&mut self) -> Option<u32> {
        self.outcome.map(|outcome| outcome.kind as u32)
    }

    fn status(&mut self) -> Option<u32> {
        self.outcome?.status.map(|status| status.as_u16().into())
    }

    fn grpc_status(&mut self) -> Option<u32> {
        self.outcome?.grpc_status
    }

    fn latency_micros(&mut self) -> Option<u64> {
        self.outcome.map(|outcome| as_micros(outcome.latency))
    }

    fn sent(&mut self) -> Option<bool> {
        self.outcome.map(|outcome| outcome.sent)
    }

    fn replayable(&mut self) -> Option<bool> {
        self.outcome.map(|outcome| outcome.replayable)
    }

    fn retry_after_ms(&mut self) -> Option<u64> {
        self.outcome?.retry_after.map(as_millis)
    }

    fn elapsed_ms(&mut self) -> Option<u64> {
        self.outcome.map(|outcome| as_millis(outcome.elapsed))
    }

    fn budget_left(&mut self) -> Option<u32> {
        self.outcome.map(|outcome| outcome.budget_left)
    }

    fn others_eligible(&mut self) -> Option<u32> {
        self.outcome?.others_eligible
    }
}

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// In no time at all nothing could be answered: it says nothing.
fn some_time(millis: u64) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis))
}

impl terms::Host for State {
    fn set_timeout(&mut self, millis: u64) {
        self.set_term(|terms| terms.timeout = some_time(millis));
    }

    fn set_try_timeout(&mut self, millis: u64) {
        self.set_term(|terms| terms.try_timeout = some_time(millis));
    }

    fn set_hedging(&mut self, permille: u32) {
        self.set_term(|terms| terms.hedging = Some(permille.clamp(1, 1000)));
    }
}

impl health::Host for State {
    fn state(&mut self, slot: u32) -> Option<u64> {
        self.health(slot).map(Health::seen)
    }

    fn consecutive_failures(&mut self, slot: u32) -> u32 {
        self.health(slot).map_or(0, |health| health.consecutive(Class::Any))
    }

    fn consecutive(&mut self, slot: u32, class: u32) -> u32 {
        let Some(class) = Class::of_number(class) else { return 0 };
        self.health(slot).map_or(0, |health| health.consecutive(class))
    }

    fn window(&mut self, slot: u32, seconds: u32) -> (u32, u32) {
        let now = self.now();
        self.health(slot).map_or((0, 0), |health| health.window(seconds, now))
    }

    fn ejections(&mut self, slot: u32) -> u32 {
        let now = self.now();
        self.health(slot).map_or(0, |health| health.ejections(now))
    }

    fn ejected_until(&mut self, slot: u32) -> Option<u64> {
        self.health(slot)?.ejected_until().map(as_micros)
    }

    fn totals(&mut self) -> (u32, u32) {
        let registered = self.snapshot.endpoints().count();
        let out = self.snapshot.endpoints().filter(|endpoint| endpoint.health.condition() != Condition::InUse).count();
        (registered as u32, out as u32)
    }

    fn service_window(&mut self, seconds: u32) -> (u32, u32) {
        let now = self.now();
        self.fleet.health.window(seconds, now)
    }

    fn service_state(&mut self) -> u64 {
        self.fleet.health.seen()
    }

    fn service_consecutive_failures(&mut self) -> u32 {
        self.fleet.health.consecutive()
    }
}

impl attention::Host for State {
    fn judge_only(&mut self, consecutive: Vec<u32>, service_consecutive: u32) {
        if self.configuring {
            let of_class = |class: Class| consecutive.get(class as usize).copied().unwrap_or(0);
            self.attention = Some(Attention { consecutive: Class::ALL.map(of_class), service_consecutive });
        }
    }
}

impl verdicts::Host for State {
    fn eject(&mut self, slot: u32, seen: u64, millis: u64) -> bool {
        self.fleet.eject(slot, seen, Duration::from_millis(millis))
    }

    fn probe(&mut self, slot: u32, seen: u64, permits: u32) -> bool {
        self.fleet.probe(slot, seen, permits)
    }

    fn restore(&mut self, slot: u32, seen: u64) -> bool {
        self.fleet.restore(slot, seen)
    }

    fn open_service(&mut self, seen: u64, millis: u64, permits: u32) -> bool {
        self.fleet.open(seen, Duration::from_millis(millis), permits)
    }

    fn close_service(&mut self, seen: u64) -> bool {
        self.fleet.close(seen)
    }
}

impl log::Host for State {
    fn write(&mut self, level: u32, message: String) {
        let generation = &self.generation;
        if !generation.lines.admit(self.fleet.clock.now()) {
            return;
        }
        let message = one_line(&message);
        let (policy, service) = (&generation.policy, &self.fleet.name);
        match level {
            0 => tracing::error!(target: "heddle::plugin", %policy, %service, "{message}"),
            1 => tracing::warn!(target: "heddle::plugin", %policy, %service, "{message}"),
            2 => tracing::info!(target: "heddle::plugin", %policy, %service, "{message}"),
            _ => tracing::debug!(target: "heddle::plugin", %policy, %service, "{message}"),
        }
    }
}

/// A linker with every function of the contract.
pub(super) fn linker(engine: &wasmtime::Engine) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    types::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    request::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    load::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    outcome::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    health::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    attention::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    verdicts::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    terms::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    clock::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    log::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    Ok(linker)
}

/// The time bound of the call under way; [`super::engine`] says how it works.
#[derive(Default)]
pub(super) struct Budget {
    /// Epochs to the first deadline, and from there to the second.
    pub(super) ticks: u64,
    /// CPU time that must be spent between the two for the call to be ended.
    pub(super) cpu: Duration,
    /// The thread's CPU time at the first deadline.
    pub(super) at_first_deadline: Option<Duration>,
}

impl Budget {
    /// What follows a deadline, at this CPU time of the thread.
    pub(super) fn at_deadline(&mut self, cpu_time: Duration) -> UpdateDeadline {
        let since = *self.at_first_deadline.get_or_insert(cpu_time);
        if cpu_time.saturating_sub(since) >= self.cpu.max(Duration::from_micros(1)) {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(self.ticks)
        }
    }
}

/// Bounds a guest's memory, all that it has together, and remembers when it asked for more.
pub(super) struct MemoryBound {
    bytes_left: usize,
    elements_left: usize,
    pub(super) exceeded: bool,
}

/// Tables hold function pointers; the largest plugins have a few thousand.
const TABLE_ELEMENTS: usize = 100_000;

impl MemoryBound {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes_left: bytes, elements_left: TABLE_ELEMENTS, exceeded: false }
    }
}

impl ResourceLimiter for MemoryBound {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let granted = take(&mut self.bytes_left, desired.saturating_sub(current));
        self.exceeded |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let granted = take(&mut self.elements_left, desired.saturating_sub(current));
        self.exceeded |= !granted;
        Ok(granted)
    }

    fn memories(&self) -> usize {
        4
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        64
    }
}

/// Takes so many of those that are left, if there are so many.
fn take(left: &mut usize, n: usize) -> bool {
    let rest = left.checked_sub(n);
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

/// Admits a bounded number of log lines a second, over all workers.
#[derive(Default)]
pub(super) struct LineRate {
    /// A second, and in the lowest 8 bits how many lines it has seen.
    second: AtomicU64,
}

impl LineRate {
    /// Whether one more line may be written at this time.
    fn admit(&self, now: Duration) -> bool {
        let this = now.as_secs() << 8;
        let one_more = |seen: u64| match seen.checked_sub(this) {
            Some(lines) => (lines < LINES_A_SECOND).then_some(seen + 1),
            None => Some(this + 1),
        };
        self.second.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_ended_only_when_the_thread_has_spent_the_time() {
        let mut budget = Budget { ticks: 2, cpu: Duration::from_millis(3), at_first_deadline: None };
        let start = Duration::from_secs(9);
        assert!(matches!(budget.at_deadline(start), UpdateDeadline::Continue(2)));
        // Two more deadlines pass while the thread was not run.
        assert!(matches!(budget.at_deadline(start), UpdateDeadline::Continue(2)));
        assert!(matches!(budget.at_deadline(start + Duration::from_millis(1)), UpdateDeadline::Continue(2)));
        assert!(matches!(budget.at_deadline(start + Duration::from_millis(3)), UpdateDeadline::Interrupt));
    }

    #[test]
    fn terms_of_no_time_say_nothing() {
        assert_eq!((some_time(0), some_time(1)), (None, Some(Duration::from_millis(1))));
    }

    #[test]
    fn ten_lines_a_second_pass() {
        let (start, rate) = (Duration::from_millis(5_900), LineRate::default());
        assert_eq!((0..1_000).filter(|_| rate.admit(start)).count(), 10);
        assert!(rate.admit(start + Duration::from_millis(100)));
        // Another worker's clock was read a moment earlier.
        assert!(!(0..20).all(|_| rate.admit(start)));
    }

    #[test]
    fn all_memories_of_a_guest_share_one_bound() {
        let mut bound = MemoryBound::new(3 << 16);
        assert!(bound.memory_growing(0, 1 << 16, None).unwrap());
        assert!(bound.memory_growing(0, 1 << 16, None).unwrap());
        assert!(!bound.memory_growing(1 << 16, 3 << 16, None).unwrap());
        assert!(bound.exceeded);
        assert!(bound.memory_growing(1 << 16, 2 << 16, None).unwrap());
        assert!(!bound.memory_growing(0, 1 << 16, None).unwrap());
    }
}
