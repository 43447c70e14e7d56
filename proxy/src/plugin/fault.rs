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
#[derive(Debug, thiserror::Error)]
pub struct Fault {
    pub kind: FaultKind,
    pub cause: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.cause)
    }
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
    faults: VecDeque<Instant>,
    logged: Option<Instant>,
}

/// What follows from one more fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    /// Faults within the last 10 s, this one included.
    pub(super) recent: usize,
    /// Whether it is to be logged: once a second at most.
    pub(super) log: bool,
}

impl FaultLog {
    /// Takes note of one.
    pub(super) fn record(&self, now: Instant) -> Recorded {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.faults.front().is_some_and(|at| now.saturating_duration_since(*at) > WINDOW) {
            recent.faults.pop_front();
        }
        recent.faults.push_back(now);
        let log = recent.logged.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1));
        if log {
            recent.logged = Some(now);
        }
        Recorded { recent: recent.faults.len(), log }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_the_last_ten_seconds_add_up() {
        let (log, start) = (FaultLog::default(), Instant::now());
        assert_eq!(log.record(start), Recorded { recent: 1, log: true });
        let later = start + Duration::from_millis(900);
        assert_eq!(log.record(later), Recorded { recent: 2, log: false });
        let later = start + Duration::from_millis(10_500);
        assert_eq!(log.record(later), Recorded { recent: 2, log: true });
    }
}
