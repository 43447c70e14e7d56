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

/// Counts of faults, over all workers and services.
#[derive(Debug, Default)]
pub struct FaultLog {
    counts: [AtomicU64; FaultKind::ALL.len()],
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
    /// Counts one.
    pub(super) fn record(&self, kind: FaultKind, now: Instant) -> Recorded {
        if let Some(count) = self.counts.get(kind as usize) {
            count.fetch_add(1, Relaxed);
        }
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

    /// Since the generation was loaded.
    pub fn count(&self, kind: FaultKind) -> u64 {
        self.counts.get(kind as usize).map_or(0, |count| count.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_the_last_ten_seconds_add_up() {
        let (log, start) = (FaultLog::default(), Instant::now());
        assert_eq!(log.record(FaultKind::Trap, start), Recorded { recent: 1, log: true });
        let later = start + Duration::from_millis(900);
        assert_eq!(log.record(FaultKind::Trap, later), Recorded { recent: 2, log: false });
        let later = start + Duration::from_millis(10_500);
        assert_eq!(log.record(FaultKind::Deadline, later), Recorded { recent: 2, log: true });
        assert_eq!((log.count(FaultKind::Trap), log.count(FaultKind::Deadline)), (2, 1));
    }
}
