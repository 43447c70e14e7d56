//! What a guest did wrong, and how often.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Kinds of faults, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The guest trapped: a panic, an access out of bounds, a stack overflow.
    Trap,
    /// A call took longer than its budget of CPU time.
    Deadline,
    /// The guest trapped after it was refused memory beyond its bound.
    Memory,
    /// An instance could not be made.
    Instance,
    /// `configure` answered an error for a configuration that it had accepted when it was loaded.
    Configure,
}

impl FaultKind {
    pub const ALL: [Self; 5] = [Self::Trap, Self::Deadline, Self::Memory, Self::Instance, Self::Configure];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Instance => "instance",
            Self::Configure => "configure",
        }
    }
}

/// A call that failed, with what is known of the cause.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Fault {
    pub kind: FaultKind,
    pub cause: String,
    /// What it cost its worker: 1, but for a change that took too long as many decisions' budgets as its own holds.
    pub weight: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.cause)
    }
}

/// A longer text is cut here, in bytes.
const LINE_LENGTH: usize = 1024;

/// A text that a guest or its file had a say in, as one line of a log: no longer than it may be, and without what would
/// begin another line.
pub(super) fn one_line(text: &str) -> String {
    let text = text.get(..text.floor_char_boundary(LINE_LENGTH)).unwrap_or_default();
    text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What wasmtime says of an error, the cause before the circumstances.
pub(super) fn reason(error: &wasmtime::Error) -> String {
    let (cause, context) = (error.root_cause().to_string(), error.to_string());
    one_line(&if cause == context { cause } else { format!("{cause}; {context}") })
}

/// Faults within this time add up.
const WINDOW: Duration = Duration::from_secs(10);

/// How many faults there were of each kind, over all workers, services and generations of a policy.
#[derive(Debug, Default)]
pub struct FaultCounts([AtomicU64; FaultKind::ALL.len()]);

impl FaultCounts {
    pub(super) fn add(&self, kind: FaultKind) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Since the start of the process.
    pub fn get(&self, kind: FaultKind) -> u64 {
        self.0.get(kind as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// The last faults of a generation, over all workers and services.
#[derive(Debug, Default)]
pub struct FaultLog {
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// When, and of which weight.
    faults: VecDeque<(Instant, usize)>,
    logged: Option<Instant>,
}

impl Recent {
    fn forget_before(&mut self, now: Instant) {
        while self.faults.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.faults.pop_front();
        }
    }
}

/// What follows from one more fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    /// Faults within the last 10 s by their weight, this one included.
    pub(super) recent: usize,
    /// Whether it is to be logged: once a second at most.
    pub(super) log: bool,
}

impl FaultLog {
    /// Takes note of one.
    pub(super) fn record(&self, weight: usize, now: Instant) -> Recorded {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.forget_before(now);
        recent.faults.push_back((now, weight));
        let log = recent.logged.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1));
        if log {
            recent.logged = Some(now);
        }
        let sum = recent.faults.iter().fold(0, |sum: usize, (_, weight)| sum.saturating_add(*weight));
        Recorded { recent: sum, log }
    }

    /// Forgets what would add up: a generation that is given another chance starts anew.
    pub(super) fn forgive(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).faults.clear();
    }

    /// Whether there was none within the last 10 s.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.forget_before(now);
        recent.faults.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one() {
        assert_eq!(one_line("a\n  b\r\n\u{1b}[31mc"), "a b [31mc");
        assert_eq!(one_line(&"ü".repeat(2_000)).len(), 1_024);
    }

    #[test]
    fn only_faults_of_the_last_ten_seconds_add_up() {
        let (log, start) = (FaultLog::default(), Instant::now());
        assert_eq!(log.record(1, start), Recorded { recent: 1, log: true });
        let later = start + Duration::from_millis(900);
        assert_eq!(log.record(1, later), Recorded { recent: 2, log: false });
        let later = start + Duration::from_millis(10_500);
        assert_eq!(log.record(10, later), Recorded { recent: 11, log: true });
    }
}
