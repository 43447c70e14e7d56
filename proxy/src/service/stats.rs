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

/// Active health checks that have ended, by how.
#[derive(Debug, Default)]
pub struct Checks {
    pub passed: Counter,
    pub failed: Counter,
}

/// Upper bounds of the duration histogram's buckets in seconds.
pub const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The same in microseconds, as requests are measured.
const BUCKET_MICROS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelEnd {
    /// Both sides have said that they send no more.
    Closed,
    /// Nothing moved for too long.
    Idle,
    /// One side broke it off.
    Broken,
    /// It was under way when the proxy stopped, or when the client left before it began.
    Stopped,
}

impl TunnelEnd {
    /// Every end, as [`TunnelTotal::ended`] counts them.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Idle, Self::Broken, Self::Stopped];

    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Broken => "broken",
            Self::Stopped => "stopped",
        }
    }
}

/// A limit for which a request, or a tunnel, was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// On the requests of the service, with nobody waiting or as many as may.
    Requests,
    /// On the time that a request may wait for its service.
    Pending,
    /// On the requests of its endpoints.
    EndpointRequests,
    /// On the connections of the service or of the endpoint.
    Connections,
    /// On the share of the endpoint's connections that one client has while others wait.
    ClientShare,
}

impl Limit {
    /// Every limit, as [`StatsTotal::limited`] counts them.
    pub const ALL: [Self; 5] =
        [Self::Requests, Self::Pending, Self::EndpointRequests, Self::Connections, Self::ClientShare];

    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Pending => "pending_time",
            Self::EndpointRequests => "endpoint_requests",
            Self::Connections => "connections",
            Self::ClientShare => "client_share",
        }
    }
}

/// Connections that are passed on as they are.
#[derive(Debug, Default)]
pub struct TunnelStats {
    pub opened: Counter,
    /// Those that did not come about: no endpoint, or no connection to it.
    pub refused: Counter,
    /// By [`TunnelEnd`].
    ended: [Counter; 4],
    /// Bytes that the endpoints took.
    pub sent: Counter,
    /// Bytes that the clients took.
    pub received: Counter,
}

impl TunnelStats {
    /// A tunnel has ended so.
    pub fn ended(&self, end: TunnelEnd) {
        if let Some(counter) = self.ended.get(end as usize) {
            counter.add(1);
        }
    }
}

/// The sum over workers.
#[derive(Debug, Default, Clone)]
pub struct TunnelTotal {
    pub opened: u64,
    pub refused: u64,
    /// In the order of [`TunnelEnd::ALL`].
    pub ended: [u64; 4],
    pub sent: u64,
    pub received: u64,
}

impl TunnelTotal {
    /// Tunnels under way.
    pub fn open(&self) -> u64 {
        // Read one after the other while they go on: an end may be seen whose beginning is not.
        self.opened.saturating_sub(self.ended.iter().sum())
    }

    fn add(&mut self, of: &TunnelStats) {
        for (sum, n) in self.ended.iter_mut().zip(&of.ended) {
            *sum += n.get();
        }
        self.opened += of.opened.get();
        self.refused += of.refused.get();
        self.sent += of.sent.get();
        self.received += of.received.get();
    }
}

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
    /// Attempts after a failed one, as the retry policy wanted.
    pub retries: Counter,
    /// Attempts beside one that was slow.
    pub hedges: Counter,
    /// Retries and hedges that the budget did not allow.
    pub over_budget: Counter,
    /// Decisions by the plugin.
    pub decisions: Counter,
    /// Decisions made natively in the plugin's stead.
    pub fallbacks: Counter,
    /// Answers that could not be used (slot not eligible, tried, or not registered) and were asked for again.
    pub asked_again: Counter,
    /// Requests and tunnels that were refused for a limit, by [`Limit`].
    limited: [Counter; Limit::ALL.len()],
    pub tunnels: TunnelStats,
}

impl ServiceStats {
    /// A request, or a tunnel, was refused for this limit.
    pub fn limited(&self, by: Limit) {
        if let Some(counter) = self.limited.get(by as usize) {
            counter.add(1);
        }
    }

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
    pub retries: u64,
    pub hedges: u64,
    pub over_budget: u64,
    pub decisions: u64,
    pub fallbacks: u64,
    pub asked_again: u64,
    /// In the order of [`Limit::ALL`].
    pub limited: [u64; Limit::ALL.len()],
    pub tunnels: TunnelTotal,
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
        self.retries += of.retries.get();
        self.hedges += of.hedges.get();
        self.over_budget += of.over_budget.get();
        self.decisions += of.decisions.get();
        self.fallbacks += of.fallbacks.get();
        self.asked_again += of.asked_again.get();
        for (sum, n) in self.limited.iter_mut().zip(&of.limited) {
            *sum += n.get();
        }
        self.tunnels.add(&of.tunnels);
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
