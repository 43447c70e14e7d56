//! What is remembered of endpoints' health, over all workers and across reloads of a policy.
//!
//! Counting is lock-free: an endpoint has a bucket a second for the last minute, and numbers of failures in a row. What
//! changes who may be picked (an ejection, its end, a failed check) is rare, goes through the lock of its
//! [`Fleet`](super::Fleet), and publishes a new snapshot, so that all workers see one truth. A verdict names the state that
//! it was made on: of two workers that saw the same failures, one ejects.
//!
//! A response counts as a success when its head is there, and as a failure as well when it breaks after that. Where all
//! responses break, no row of failures would ever be longer than one: so each that breaks takes a success back, and the
//! next one does not end the row.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::window::Window;
use crate::policy::{self, Kind, Outcome};

/// The most successes at an endpoint that are still to be taken back: more than responses that break beside each other
/// need to be a row, and few enough for an endpoint that is well again to be known as such.
const MOST_TAKEN_BACK: u32 = 32;

/// Whether something is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    InUse = 0,
    /// Of an endpoint: ejected. Of a service: open.
    Out = 1,
    /// A bounded number of probes is let through.
    HalfOpen = 2,
}

/// A condition and the number of changes that led there, in one number that a verdict can name.
#[derive(Debug, Default)]
pub(super) struct State(AtomicU64);

impl Condition {
    /// That of a state as verdicts name it.
    fn of(state: u64) -> Self {
        match state & 0xff {
            0 => Self::InUse,
            1 => Self::Out,
            _ => Self::HalfOpen,
        }
    }

    /// The name in figures: `in_use`, `out` or `half_open`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Out => "out",
            Self::HalfOpen => "half_open",
        }
    }
}

impl State {
    pub fn seen(&self) -> u64 {
        self.0.load(Acquire)
    }

    pub fn condition(&self) -> Condition {
        Condition::of(self.seen())
    }

    /// Changes the condition, if the state is still the one that was seen.
    pub fn change(&self, seen: u64, to: Condition) -> bool {
        let next = (seen & !0xff).wrapping_add(0x100) | to as u64;
        self.0.compare_exchange(seen, next, AcqRel, Relaxed).is_ok()
    }
}

/// Classes of failures, as they are counted in a row. The numbers are those of `health.consecutive` in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Connect = 0,
    Timeout = 1,
    Gateway = 2,
    Any = 3,
}

impl Class {
    /// All of them, by their numbers.
    pub const ALL: [Self; 4] = [Self::Connect, Self::Timeout, Self::Gateway, Self::Any];

    /// The class that the contract calls so.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u32 == number)
    }
}

/// A bounded number of probes at once.
#[derive(Debug, Default)]
pub(super) struct Probes {
    most: AtomicU32,
    under_way: AtomicU32,
}

impl Probes {
    pub fn allow(&self, most: u32) {
        self.most.store(most.max(1), Relaxed);
    }

    pub fn begin(&self) -> bool {
        let most = self.most.load(Relaxed);
        self.under_way.fetch_update(AcqRel, Relaxed, |n| (n < most).then(|| n + 1)).is_ok()
    }

    pub fn end(&self) {
        self.under_way.fetch_sub(1, AcqRel);
    }
}

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub struct Health {
    pub(super) state: State,
    consecutive: [AtomicU32; 4],
    /// Successes to come that do not end a row of failures.
    taken_back: AtomicU32,
    /// When the state changed last; how often it was ejected, and for how long the last time: microseconds.
    changed: AtomicU64,
    ejections: AtomicU32,
    ejected_for: AtomicU64,
    ejected_until: AtomicU64,
    probes: Probes,
    pub(super) check_fails: AtomicBool,
    /// By a command to this proxy.
    pub(super) paused: AtomicBool,
    /// Made when the first attempt is counted: a service without a breaker needs none.
    window: OnceLock<Box<Window>>,
}

/// One of the probes that a half-open endpoint is allowed; it is given back when dropped.
#[derive(Debug)]
pub struct Probe(Arc<Health>);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.probes.end();
    }
}

impl Health {
    /// The state, for a verdict to name.
    pub fn seen(&self) -> u64 {
        self.state.seen()
    }

    pub fn condition(&self) -> Condition {
        self.state.condition()
    }

    /// Whether its active check fails.
    pub fn check_fails(&self) -> bool {
        self.check_fails.load(Relaxed)
    }

    /// Failures of a class without an attempt in between that ended otherwise.
    pub fn consecutive(&self, class: Class) -> u32 {
        self.consecutive.get(class as usize).map_or(0, |count| count.load(Relaxed))
    }

    /// Successes and failures of the last `seconds` (1 to 60).
    pub fn window(&self, seconds: u32, now: Duration) -> (u32, u32) {
        self.window.get().map_or((0, 0), |window| window.sum(seconds, now))
    }

    /// How often it was ejected, less one for each time as long as its last ejection that it then spent in use.
    pub fn ejections(&self, now: Duration) -> u32 {
        let ejections = self.ejections.load(Relaxed);
        if self.condition() != Condition::InUse {
            return ejections;
        }
        let in_use = micros(now).saturating_sub(self.changed.load(Relaxed));
        let intervals = in_use / self.ejected_for.load(Relaxed).max(1);
        ejections.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX))
    }

    /// When its time out of use is over; none where it is not ejected.
    pub fn ejected_until(&self) -> Option<Duration> {
        let until = Duration::from_micros(self.ejected_until.load(Relaxed));
        (self.condition() == Condition::Out).then_some(until)
    }

    /// Counts an attempt that has ended, or whose response has its head; `again` where its head was counted before.
    pub(super) fn record(&self, outcome: &Outcome, again: bool, now: Duration) {
        let health = outcome.health();
        let classes = match health {
            policy::Health::Unknown => return,
            policy::Health::Success => [false; 4],
            policy::Health::Failure(failure) => [failure.connect, failure.timeout, failure.gateway, true],
        };
        let ends_no_row = health == policy::Health::Success && self.take_back();
        if !ends_no_row {
            for (count, counts) in self.consecutive.iter().zip(classes) {
                count_in_a_row(count, counts);
            }
        }
        let was_success = || Outcome { kind: Kind::Response, ..*outcome }.health() == policy::Health::Success;
        if again && was_success() {
            let one_more = |taken_back| (taken_back < MOST_TAKEN_BACK).then_some(taken_back + 1);
            let _as_many_as_count = self.taken_back.fetch_update(Relaxed, Relaxed, one_more);
        }
        self.window.get_or_init(Box::default).add(health == policy::Health::Success, now);
    }

    /// Whether a success is one of those to be taken back; it is then one less.
    fn take_back(&self) -> bool {
        // Nearly always there is none, and the line is left alone.
        self.taken_back.load(Relaxed) > 0
            && self.taken_back.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// The right to send it an attempt although it is half-open.
    pub fn probe(self: &Arc<Self>) -> Option<Probe> {
        self.probes.begin().then(|| Probe(self.clone()))
    }

    /// Under the lock of its fleet, as are the following two.
    pub(super) fn eject(&self, seen: u64, time: Duration, now: Duration) -> bool {
        let ejections = self.ejections(now);
        // Before the state, so that whoever sees that finds these.
        let before = self.ejected_until.swap(micros(now.saturating_add(time)), Relaxed);
        let changed = self.state.change(seen, Condition::Out);
        if changed {
            self.changed.store(micros(now), Relaxed);
            self.ejections.store(ejections.saturating_add(1), Relaxed);
            self.ejected_for.store(micros(time), Relaxed);
        } else {
            self.ejected_until.store(before, Relaxed);
        }
        changed
    }

    pub(super) fn half_open(&self, seen: u64, permits: u32, now: Duration) -> bool {
        let ejected = self.condition() == Condition::Out;
        self.probes.allow(permits);
        let changed = ejected && self.state.change(seen, Condition::HalfOpen);
        if changed {
            self.changed.store(micros(now), Relaxed);
        }
        changed
    }

    /// What was counted so far is over: it was what the endpoint was taken out of use for. Nothing happens to one that is
    /// in use.
    pub(super) fn restore(&self, seen: u64, now: Duration) -> bool {
        let changed = Condition::of(seen) != Condition::InUse && self.state.change(seen, Condition::InUse);
        if changed {
            self.changed.store(micros(now), Relaxed);
            for count in &self.consecutive {
                count.store(0, Relaxed);
            }
            self.taken_back.store(0, Relaxed);
            if let Some(window) = self.window.get() {
                window.clear();
            }
        }
        changed
    }
}

/// What is remembered of a service as a whole.
#[derive(Debug, Default)]
pub struct ServiceHealth {
    state: State,
    consecutive: AtomicU32,
    open_until: AtomicU64,
    probes: Probes,
    window: OnceLock<Box<Window>>,
}

/// How a request finds its service.
#[derive(Debug)]
pub enum Door {
    /// As always.
    Closed,
    /// No request is let through for this time yet.
    Open(Duration),
    /// The request is one of a bounded number that are let through, or none is at the moment.
    HalfOpen { admitted: bool },
}

impl ServiceHealth {
    /// The state, for a verdict to name.
    pub fn seen(&self) -> u64 {
        self.state.seen()
    }

    pub fn condition(&self) -> Condition {
        self.state.condition()
    }

    /// Failed attempts since the last one that succeeded.
    pub fn consecutive(&self) -> u32 {
        self.consecutive.load(Relaxed)
    }

    /// Successes and failures of the last `seconds` (1 to 60).
    pub fn window(&self, seconds: u32, now: Duration) -> (u32, u32) {
        self.window.get().map_or((0, 0), |window| window.sum(seconds, now))
    }

    /// When it lets probes through; none where it is not open.
    pub(super) fn open_until(&self) -> Option<Duration> {
        let until = Duration::from_micros(self.open_until.load(Relaxed));
        (self.condition() == Condition::Out).then_some(until)
    }

    pub(super) fn record(&self, health: policy::Health, now: Duration) {
        if health != policy::Health::Unknown {
            count_in_a_row(&self.consecutive, health != policy::Health::Success);
            self.window.get_or_init(Box::default).add(health == policy::Health::Success, now);
        }
    }

    /// Whether a request may pass. A probe that was admitted has to be ended.
    pub(super) fn enter(&self, now: impl Fn() -> Duration) -> Door {
        loop {
            let seen = self.state.seen();
            match Condition::of(seen) {
                Condition::InUse => return Door::Closed,
                Condition::HalfOpen => return Door::HalfOpen { admitted: self.probes.begin() },
                Condition::Out => {
                    let left = self.open_until.load(Relaxed).saturating_sub(micros(now()));
                    if left > 0 {
                        return Door::Open(Duration::from_micros(left));
                    }
                    // Where another worker was faster, it may be closed by now, or open anew.
                    self.state.change(seen, Condition::HalfOpen);
                }
            }
        }
    }

    pub(super) fn end_probe(&self) {
        self.probes.end();
    }

    /// Under the lock of the fleet.
    pub(super) fn open(&self, seen: u64, time: Duration, permits: u32, now: Duration) -> bool {
        if self.seen() != seen {
            return false;
        }
        self.open_until.store(micros(now.saturating_add(time)), Relaxed);
        self.probes.allow(permits);
        self.state.change(seen, Condition::Out)
    }

    /// Nothing happens to one that is in use.
    pub(super) fn close(&self, seen: u64) -> bool {
        Condition::of(seen) != Condition::InUse && self.state.change(seen, Condition::InUse)
    }
}

fn count_in_a_row(count: &AtomicU32, counts: bool) {
    if counts {
        count.fetch_add(1, Relaxed);
    } else if count.load(Relaxed) != 0 {
        // Only where it changes something: all workers would take the line from each other.
        count.store(0, Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
