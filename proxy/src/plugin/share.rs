//! How much of its worker's CPU time a service's policies take, and when they have had enough.
//!
//! A decision may take milliseconds without a fault, and a service that asks for many of them keeps the worker's other
//! services waiting. So a service whose policies have used `plugin_share` of a second of the worker's CPU time has its
//! decisions made natively for the rest of that second: not a fault, as it is load and not the policy that is too much,
//! and only while the worker is busy (it ran, or waited to be run, for half of the second so far) and another service has
//! asked for decisions lately, since else nobody waits. Changes of endpoints count for nothing: a service whose policy must
//! not be told of them would decide by endpoints that are gone, and they are bounded by their own budget.
//!
//! # What it costs
//!
//! An ordinary decision takes a tenth of a microsecond, and reading a clock as much again. So a call compares the engine's
//! tick number, which rises every 2.5 ms, before and after: two loads. Calls that see it rise stand for those that do not:
//! of a policy that takes a tenth of the time, a tenth of the ticks fall into its calls. That is an estimate of wall time,
//! cut to what the call can have spent of CPU time since its first deadline (see [`Budget`](super::host::Budget)).
//! Once the estimate is half of what the service may use, its calls are timed by the thread's CPU clock until the second
//! is over.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

const SECOND: Duration = Duration::from_secs(1);

/// A service that has asked for a decision within this time may have requests that wait.
const LATELY: Duration = Duration::from_secs(10);

/// The CPU time that this thread has used.
pub(super) fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// A service that asked, and the tick at which it did.
#[derive(Debug, Clone, Copy)]
struct Asked {
    service: usize,
    tick: u64,
}

thread_local! {
    /// The service that asked last, and the one before that was another.
    static ASKED: Cell<[Option<Asked>; 2]> = const { Cell::new([None; 2]) };
    static ACCOUNT: RefCell<Account> = RefCell::default();
}

/// Takes note that a service, which this number names, asks for a decision.
pub(super) fn asks(service: usize, tick: u64) {
    let [last, other] = ASKED.get();
    let other = if last.is_some_and(|last| last.service != service) { last } else { other };
    ASKED.set([Some(Asked { service, tick }), other]);
}

/// Whether another service of this thread has asked lately.
fn others_ask(service: usize, tick: u64, length: Duration) -> bool {
    let lately = |asked: &Asked| {
        length.saturating_mul(u32::try_from(tick.saturating_sub(asked.tick)).unwrap_or(u32::MAX)) <= LATELY
    };
    ASKED.get().iter().flatten().any(|asked| asked.service != service && lately(asked))
}

/// What a call has cost, of a service that this number names.
pub(super) struct Cost {
    pub service: usize,
    pub spent: Duration,
    /// The engine's tick number, and the length of a tick.
    pub tick: u64,
    pub tick_length: Duration,
}

/// What follows from a call's cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charged {
    /// Whether calls are to be timed by the CPU clock.
    pub is_metered: bool,
    /// Until when the service's decisions are made natively, and what it has used.
    pub over: Option<(Instant, Duration)>,
}

/// Adds a cost to what the service has used of this thread's present second, of which it may use so much.
pub(super) fn charge(cost: &Cost, may_use: Duration) -> Charged {
    let others = others_ask(cost.service, cost.tick, cost.tick_length);
    ACCOUNT.with_borrow_mut(|account| account.charge(cost, may_use, others, Instant::now(), busy_time))
}

/// For how long this thread has had something to do: the time that it ran, and the time that it waited to be run
/// (schedstat: "time spent on the cpu", "time spent waiting on a runqueue", both in nanoseconds), as a thread of a busy
/// machine or of a throttled container does for most of the time. Where the system does not say, the time that it ran.
fn busy_time() -> Duration {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut numbers = schedstat.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(ran)), Some(Ok(waited))) => Duration::from_nanos(ran.saturating_add(waited)),
        _ => thread_cpu_time(),
    }
}

/// The second under way on a thread.
#[derive(Debug, Default)]
struct Account {
    /// When it began, and for how long the thread had been busy by then; none before the first.
    began: Option<(Instant, Duration)>,
    /// CPU time by service.
    used: HashMap<usize, Duration>,
}

impl Account {
    fn charge(
        &mut self,
        cost: &Cost,
        may_use: Duration,
        others: bool,
        now: Instant,
        busy: impl Fn() -> Duration,
    ) -> Charged {
        let (began, busy_then) = match self.began {
            Some(second) if now.saturating_duration_since(second.0) < SECOND => second,
            _ => {
                self.used.clear();
                let began = now.checked_sub(cost.spent).unwrap_or(now);
                *self.began.insert((began, busy().saturating_sub(cost.spent)))
            }
        };
        let used = self.used.entry(cost.service).or_default();
        *used += cost.spent;
        let is_busy = || busy().saturating_sub(busy_then) * 2 >= now.saturating_duration_since(began);
        let is_over = others && *used >= may_use && is_busy();
        Charged { is_metered: others && *used * 2 >= may_use, over: is_over.then(|| (began + SECOND, *used)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn cost(service: usize, millis: u32) -> Cost {
        Cost { service, spent: MS * millis, tick: 0, tick_length: MS }
    }

    /// Issue 10, 9: a share is used up within a second, by one service, while the thread is busy and others ask.
    #[test]
    fn a_service_has_its_share_of_each_second() {
        let (start, quarter) = (Instant::now(), MS * 250);
        let mut account = Account::default();
        let mut charge = |service, millis, at: u32, busy: u32, others| {
            account.charge(&cost(service, millis), quarter, others, start + MS * at, || MS * busy)
        };
        let nothing = Charged::default();
        assert_eq!(charge(1, 100, 100, 100, true), nothing);
        assert_eq!(charge(2, 100, 200, 200, true), nothing, "each service has a share of its own");
        assert_eq!(charge(1, 100, 300, 300, true), Charged { is_metered: true, over: None });
        let over = Charged { is_metered: true, over: Some((start + SECOND, MS * 250)) };
        assert_eq!(charge(1, 50, 350, 350, true), over, "until the end of the second");
        assert_eq!(charge(1, 0, 900, 440, true).over, None, "the thread is not busy");
        assert_eq!(charge(1, 0, 400, 400, false), nothing, "nobody waits");
        assert_eq!(charge(1, 100, 1_100, 600, true), nothing, "another second");
    }

    #[test]
    fn another_service_is_one_that_has_asked_lately() {
        let tick = Duration::from_millis(100);
        assert!(!others_ask(1, 0, tick));
        asks(1, 5);
        assert!(!others_ask(1, 5, tick) && others_ask(2, 5, tick));
        asks(2, 6);
        asks(1, 7);
        asks(1, 8);
        assert!(others_ask(1, 106, tick));
        assert!(!others_ask(1, 107, tick), "10 s ago");
    }
}
