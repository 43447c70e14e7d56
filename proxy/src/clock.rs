//! The clock of policies, and of what is remembered for them.
//!
//! A simulation turns its hands by itself; everybody else lets time pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Says how long it is since a fixed moment. It never goes back; clones say the same.
#[derive(Debug, Clone)]
pub struct Clock(Hands);

#[derive(Debug, Clone)]
enum Hands {
    Running(Instant),
    /// Microseconds.
    Turned(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that runs from now on.
    pub fn running() -> Self {
        Self(Hands::Running(Instant::now()))
    }

    /// A clock that stands still but for [`Clock::advance`].
    pub fn turned_by_hand() -> Self {
        Self(Hands::Turned(Arc::default()))
    }

    /// Since the fixed moment.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Hands::Running(started) => started.elapsed(),
            Hands::Turned(micros) => Duration::from_micros(micros.load(Relaxed)),
        }
    }

    /// Turns the hands of a clock that does not run; another is left alone.
    pub fn advance(&self, by: Duration) {
        if let Hands::Turned(micros) = &self.0 {
            micros.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Relaxed);
        }
    }
}
