//! What a guest may call: the host side of `plugin-sdk/wit/policy.wit`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tracing::Level;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Result, UpdateDeadline};

use super::exposed::Exposed;
use super::fault::one_line;
use super::generation::Generation;
use super::guest::{attention, clock, health, load, log, outcome, request, terms, types, verdicts};
use super::memory::MemoryBound;
use crate::policy::{Attention, Facts, Outcome, Terms};
use crate::service::{Class, Condition, Fleet, Health, PEAK_START, Snapshot};

/// Lines of one level that all instances of a policy together may log within a second.
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
    /// Which credentials it may read.
    pub(super) exposed: Exposed,
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
        if !self.exposed.allows(&name) {
            return None;
        }
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
        let number = usize::try_from(level).unwrap_or(usize::MAX).min(LEVELS.len() - 1);
        let Some(&level) = LEVELS.get(number) else { return };
        if !is_written(level) {
            return;
        }
        let Some(dropped) = generation.lines.admit(number, self.fleet.clock.now()) else { return };
        let message = one_line(&message);
        let (policy, service) = (&generation.policy, &self.fleet.name);
        // What a policy logs within its bounds says nothing of lines that were not written.
        let dropped = (dropped > 0).then_some(dropped);
        match level {
            Level::ERROR => tracing::error!(target: "heddle::plugin", %policy, %service, dropped, "{message}"),
            Level::WARN => tracing::warn!(target: "heddle::plugin", %policy, %service, dropped, "{message}"),
            Level::INFO => tracing::info!(target: "heddle::plugin", %policy, %service, dropped, "{message}"),
            _ => tracing::debug!(target: "heddle::plugin", %policy, %service, dropped, "{message}"),
        }
    }
}

/// Whether lines of this level are written at all; those that are not cost no more than that, and hide nothing.
fn is_written(level: Level) -> bool {
    match level {
        Level::ERROR => tracing::enabled!(target: "heddle::plugin", Level::ERROR),
        Level::WARN => tracing::enabled!(target: "heddle::plugin", Level::WARN),
        Level::INFO => tracing::enabled!(target: "heddle::plugin", Level::INFO),
        _ => tracing::enabled!(target: "heddle::plugin", Level::DEBUG),
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
    /// CPU time that must be spent since the first deadline for the call to be ended.
    pub(super) cpu: Duration,
    /// The thread's CPU time at the first deadline.
    pub(super) at_first_deadline: Option<Duration>,
    /// The engine's tick number when the call began.
    pub(super) began: u64,
}

impl Budget {
    /// What follows a deadline, at this CPU time of the thread.
    pub(super) fn at_deadline(&mut self, cpu_time: Duration) -> UpdateDeadline {
        let since = *self.at_first_deadline.get_or_insert(cpu_time);
        if cpu_time.saturating_sub(since) >= self.cpu.max(Duration::from_micros(1)) {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// The log lines of a policy's guests: so many a second of each level, over all workers, so that chatter hides no error.
#[derive(Debug, Default)]
pub(super) struct LogLines([LineRate; LEVELS.len()]);

/// The levels of the contract, by number; any higher one is the last.
const LEVELS: [Level; 4] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG];

/// Admits a bounded number of log lines a second, over all workers.
#[derive(Debug, Default)]
struct LineRate {
    /// A second, and in the lowest 8 bits how many lines it has seen.
    second: AtomicU64,
    /// Lines that were not written since the last one that was.
    dropped: AtomicU64,
}

impl LogLines {
    /// Whether one more line of this level may be written at this time, and how many were not since the last.
    fn admit(&self, level: usize, now: Duration) -> Option<u64> {
        self.0.get(level)?.admit(now)
    }
}

impl LineRate {
    fn admit(&self, now: Duration) -> Option<u64> {
        let this = now.as_secs() << 8;
        let one_more = |seen: u64| match seen.checked_sub(this) {
            Some(lines) => (lines < LINES_A_SECOND).then_some(seen + 1),
            None => Some(this + 1),
        };
        if self.second.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            self.dropped.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.dropped.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_ended_only_when_the_thread_has_spent_the_time() {
        let mut budget = Budget { cpu: Duration::from_millis(3), at_first_deadline: None, began: 0 };
        let start = Duration::from_secs(9);
        assert!(matches!(budget.at_deadline(start), UpdateDeadline::Continue(1)));
        // Two more deadlines pass while the thread was not run.
        assert!(matches!(budget.at_deadline(start), UpdateDeadline::Continue(1)));
        assert!(matches!(budget.at_deadline(start + Duration::from_millis(1)), UpdateDeadline::Continue(1)));
        assert!(matches!(budget.at_deadline(start + Duration::from_millis(3)), UpdateDeadline::Interrupt));
    }

    #[test]
    fn terms_of_no_time_say_nothing() {
        assert_eq!((some_time(0), some_time(1)), (None, Some(Duration::from_millis(1))));
    }

    /// Issue 10, 17: lines of one level do not use up those of another.
    #[test]
    fn ten_lines_a_second_of_each_level_pass() {
        let (start, lines) = (Duration::from_millis(5_900), LogLines::default());
        assert_eq!((0..1_000).filter(|_| lines.admit(2, start).is_some()).count(), 10);
        assert_eq!(lines.admit(0, start), Some(0));
        assert_eq!(lines.admit(2, start + Duration::from_millis(100)), Some(990));
        // Another worker's clock was read a moment earlier.
        assert!(!(0..20).all(|_| lines.admit(2, start).is_some()));
    }
}
