//! Figures of one service on one worker.
//!
//! Each worker writes figures of its own, so that counting costs a load and a store and no two cores share a cache
//! line; whoever wants the total adds the workers' up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that one thread increases and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, from the one thread that owns the counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the duration histogram's buckets in seconds.
pub const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The same in microseconds, as requests are measured.
const BUCKET_MICROS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// Figures of one service on one worker.
#[derive(Debug, Default)]
pub struct ServiceStats {
    /// Responses by class: index 1 for 1xx to 5 for 5xx, 0 for anything else.
    pub responses: [Counter; 6],
    /// Requests by duration; the last bucket is what exceeds the highest bound.
    durations: [Counter; 15],
    duration_micros: Counter,
    /// Attempts that ended without a response head.
    pub failed_attempts: Counter,
    /// Times that a request was sent again because its pooled connection was found dead.
    pub resent: Counter,
    /// Decisions by the plugin.
    pub decisions: Counter,
    /// Decisions made natively in the plugin's stead.
    pub fallbacks: Counter,
    /// Answers that could not be used (slot not eligible, tried, or not registered) and were asked for again.
    pub asked_again: Counter,
}

impl ServiceStats {
    /// A request has ended with this status.
    pub fn ended(&self, status: u16, duration: Duration) {
        let class = usize::from(status / 100);
        if let Some(counter) = self.responses.get(class).or(self.responses.first()) {
            counter.add(1);
        }
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKET_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(BUCKET_MICROS.len());
        if let Some(counter) = self.durations.get(bucket) {
            counter.add(1);
        }
        self.duration_micros.add(micros);
    }
}

/// The sum over workers.
#[derive(Debug, Default, Clone)]
pub struct StatsTotal {
    pub responses: [u64; 6],
    /// Not cumulative; the last is what exceeds the highest bound.
    pub durations: [u64; 15],
    pub duration_seconds: f64,
    pub failed_attempts: u64,
    pub resent: u64,
    pub decisions: u64,
    pub fallbacks: u64,
    pub asked_again: u64,
}

impl StatsTotal {
    /// Adds one worker's figures.
    pub fn add(&mut self, of: &ServiceStats) {
        for (sum, n) in self.responses.iter_mut().zip(&of.responses) {
            *sum += n.get();
        }
        for (sum, n) in self.durations.iter_mut().zip(&of.durations) {
            *sum += n.get();
        }
        self.duration_seconds += of.duration_micros.get() as f64 / 1e6;
        self.failed_attempts += of.failed_attempts.get();
        self.resent += of.resent.get();
        self.decisions += of.decisions.get();
        self.fallbacks += of.fallbacks.get();
        self.asked_again += of.asked_again.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_by_class_and_duration() {
        let stats = ServiceStats::default();
        stats.ended(204, Duration::from_micros(700));
        stats.ended(503, Duration::from_secs(60));
        stats.ended(999, Duration::ZERO);
        let mut total = StatsTotal::default();
        total.add(&stats);
        assert_eq!(total.responses, [1, 0, 1, 0, 0, 1]);
        assert_eq!((total.durations[0], total.durations[1], total.durations[14]), (1, 1, 1));
        assert_eq!(BUCKET_MICROS.map(|m| m as f64 / 1e6), DURATION_BUCKETS);
    }
}
