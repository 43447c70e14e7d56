//! The endpoints of one service: who is registered, how they fare, and who may be picked.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::admission::{Connections, Requests};
use super::health::{Condition, Door, ServiceHealth};
use super::pause::Pause;
use super::policy_view;
use super::snapshot::{Builder, Endpoint, Snapshot};
use super::stats::Checks;
use crate::clock::Clock;
use crate::config::checked::Ejection;
use crate::policy::{self, Outcome};
use crate::registry::Change;
use crate::seldom::Seldom;

/// The longest that one verdict takes an endpoint out of use. To try it once an hour costs nothing, and what a policy has
/// reckoned wrongly is over in a time that an operator can wait for.
const LONGEST_EJECTION: Duration = Duration::from_secs(60 * 60);

/// The longest that one verdict refuses all requests for a service. Few probes are all that it costs to learn that it is
/// back; and nobody is served before.
const LONGEST_OPENING: Duration = Duration::from_secs(5 * 60);

/// The endpoints of one service, whatever is decided about them by whom. It stays when the service's settings change.
#[derive(Debug)]
pub struct Fleet {
    /// The service's.
    pub name: Arc<str>,
    pub clock: Clock,
    pub health: ServiceHealth,
    /// Of all endpoints, those too that have left. The control thread counts.
    pub checks: Checks,
    /// Those under way, where their number is limited.
    pub requests: Arc<Requests>,
    /// To all endpoints.
    pub connections: Arc<Connections>,
    /// How often an endpoint was ejected, and the service opened as a whole.
    ejections: AtomicU64,
    openings: AtomicU64,
    /// Memory of the service's guests in bytes, as far as it counts towards the total of all guests.
    pub guest_memory: AtomicUsize,
    /// Entries of metadata that policies were not given, as the endpoint or the service has too many bytes of them.
    metadata_dropped: AtomicU64,
    metadata_lines: Mutex<Seldom>,
    /// Whether a policy reads peak averages: nobody else needs them.
    reads_peaks: AtomicBool,
    /// Whether proxy requests for the service's name as a host lead to it, where that is not so by the name's form.
    proxied: AtomicBool,
    snapshot: ArcSwap<Snapshot>,
    version: AtomicU64,
    builder: Mutex<Builder>,
}

/// The states of an endpoint and of its service at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    endpoint: u64,
    service: u64,
}

/// A request that was let through to a service that is half-open, until it is dropped.
#[derive(Debug)]
pub struct ServiceProbe(Arc<Fleet>);

impl Drop for ServiceProbe {
    fn drop(&mut self) {
        self.0.health.end_probe();
    }
}

impl Fleet {
    /// A fleet without endpoints.
    pub fn new(name: Arc<str>, ejection: Ejection, clock: Clock) -> Self {
        Self {
            name,
            clock,
            health: ServiceHealth::default(),
            checks: Checks::default(),
            requests: Arc::default(),
            connections: Arc::default(),
            ejections: AtomicU64::new(0),
            openings: AtomicU64::new(0),
            guest_memory: AtomicUsize::new(0),
            metadata_dropped: AtomicU64::new(0),
            metadata_lines: Mutex::default(),
            reads_peaks: AtomicBool::new(false),
            proxied: AtomicBool::new(false),
            snapshot: ArcSwap::default(),
            version: AtomicU64::new(0),
            builder: Mutex::new(Builder::new(ejection)),
        }
    }

    /// The version of the newest snapshot: all that a worker looks at while nothing changes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// How often an endpoint was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// How often the service was opened as a whole.
    pub fn openings(&self) -> u64 {
        self.openings.load(Ordering::Relaxed)
    }

    /// Endpoints were registered or removed.
    pub fn apply(&self, change: Change) {
        if let Some(proxied) = change.proxied {
            self.proxied.store(proxied, Ordering::Relaxed);
        }
        let mut builder = self.lock();
        let before = builder.metadata_dropped;
        builder.apply(change, self.clock.now());
        self.publish(&mut builder);
        let dropped = builder.metadata_dropped;
        drop(builder);
        if dropped > before {
            self.metadata_dropped.store(dropped, Ordering::Relaxed);
            if let Some(times) =
                self.metadata_lines.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now())
            {
                tracing::warn!(target: "heddle::plugin", service = %self.name, entries = dropped - before, times,
                    "metadata beyond {} KiB an endpoint, {} entries or {} MiB of the service is not given to policies",
                    policy_view::OF_ENDPOINT >> 10, policy_view::ENTRIES, policy_view::OF_SERVICE >> 20);
            }
        }
    }

    /// Entries of endpoints' metadata that policies were not given, counted once a registration.
    pub fn metadata_dropped(&self) -> u64 {
        self.metadata_dropped.load(Ordering::Relaxed)
    }

    /// Whether a source that announces the service lets it take proxy requests, CONNECT and SOCKS for its name as a host,
    /// where the name has several labels and is outside the suffix.
    pub fn takes_proxy_requests(&self) -> bool {
        self.proxied.load(Ordering::Relaxed)
    }

    /// Who is registered from now on was not there when the proxy began.
    pub fn settle(&self) {
        self.lock().settled = true;
    }

    /// Changes how many endpoints may be ejected.
    pub fn set_ejection(&self, ejection: Ejection) {
        let mut builder = self.lock();
        builder.ejection = ejection;
        self.publish(&mut builder);
    }

    /// Takes note of an attempt's time where nobody judges how it ended.
    pub fn measure(&self, endpoint: &Endpoint, health: policy::Health, time: Duration) {
        if self.reads_peaks.load(Ordering::Relaxed) {
            endpoint.load.observe_peak(time, health, self.clock.now());
        }
    }

    /// Has peak averages kept from now on.
    pub fn read_peaks(&self) {
        if !self.reads_peaks.load(Ordering::Relaxed) {
            self.reads_peaks.store(true, Ordering::Relaxed);
        }
    }

    /// How an attempt that begins now finds the endpoint and the service.
    pub fn seen(&self, endpoint: &Endpoint) -> Seen {
        Seen { endpoint: endpoint.health.seen(), service: self.health.seen() }
    }

    /// Counts an attempt that has ended, or whose response has its head; `again` where it was counted for its head. True when
    /// it is to be judged: one that began before the endpoint's state changed says nothing of what the endpoint is like
    /// now, and is not counted for it. Nor is a failure counted for the service that began before the service's state
    /// changed: it may be of long ago, and would open a service anew that is half-open or has been closed since.
    pub fn record(&self, endpoint: &Endpoint, outcome: &Outcome, began: Seen, again: bool) -> bool {
        let (now, health) = (self.clock.now(), outcome.health());
        if !again && self.reads_peaks.load(Ordering::Relaxed) {
            endpoint.load.observe_peak(outcome.latency, health, now);
        }
        let seen = self.seen(endpoint);
        let of_endpoint = seen.endpoint == began.endpoint;
        let of_service = seen.service == began.service || !matches!(health, policy::Health::Failure(_));
        if of_endpoint {
            endpoint.health.record(outcome, again, now);
        }
        if of_service {
            self.health.record(health, now);
        }
        of_endpoint && of_service
    }

    /// Lets a request through, as a probe where the service is half-open.
    ///
    /// # Errors
    ///
    /// For how long the service is open, as far as is known.
    pub fn enter(self: &Arc<Self>) -> Result<Option<ServiceProbe>, Duration> {
        match self.health.enter(|| self.clock.now()) {
            Door::Closed => Ok(None),
            Door::HalfOpen { admitted: true } => Ok(Some(ServiceProbe(self.clone()))),
            Door::HalfOpen { admitted: false } => Err(Duration::ZERO),
            Door::Open(time) => Err(time),
        }
    }

    /// Ejects an endpoint for this time, an hour at most, if it is still in the state that was seen, and no more than the
    /// share that may be ejected are.
    pub fn eject(&self, slot: u32, seen: u64, time: Duration) -> bool {
        let time = time.min(LONGEST_EJECTION);
        let mut builder = self.lock();
        let Some(endpoint) = builder.endpoint(slot).cloned() else { return false };
        // One that is out of use already is counted.
        let is_more = endpoint.health.condition() == Condition::InUse;
        let ejected = (!is_more || builder.may_eject_one_more()) && endpoint.health.eject(seen, time, self.clock.now());
        if ejected {
            self.ejections.fetch_add(1, Ordering::Relaxed);
            tracing::info!(target: "heddle::health", service = %self.name, endpoint = %endpoint.registered.address,
                "ejected for {time:?}");
        }
        self.publish_if(ejected, &mut builder)
    }

    /// Lets so many probes at once through to an endpoint that is ejected.
    pub fn probe(&self, slot: u32, seen: u64, permits: u32) -> bool {
        let mut builder = self.lock();
        let now = self.clock.now();
        let changed = builder.endpoint(slot).is_some_and(|endpoint| endpoint.health.half_open(seen, permits, now));
        self.publish_if(changed, &mut builder)
    }

    /// Puts an endpoint back into use; false for one that is in use.
    pub fn restore(&self, slot: u32, seen: u64) -> bool {
        let mut builder = self.lock();
        let changed = builder.endpoint(slot).is_some_and(|endpoint| self.put_back(endpoint, seen));
        self.publish_if(changed, &mut builder)
    }

    /// Refuses all requests for this time, five minutes at most, then lets so many probes at once through.
    pub fn open(&self, seen: u64, time: Duration, permits: u32) -> bool {
        let time = time.min(LONGEST_OPENING);
        let _builder = self.lock();
        let was_in_use = self.health.condition() == Condition::InUse;
        let opened = self.health.open(seen, time, permits, self.clock.now());
        if opened && was_in_use {
            self.openings.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "heddle::health", service = %self.name, "every attempt fails: requests are refused");
        }
        opened
    }

    /// Lets requests through again; false for a service that lets them through.
    pub fn close(&self, seen: u64) -> bool {
        let _builder = self.lock();
        let closed = self.health.close(seen);
        if closed {
            tracing::info!(target: "heddle::health", service = %self.name, "answers again");
        }
        closed
    }

    /// Decides in the stead of a breaker that does not: what was out of use for its time, or is half-open, is back in use.
    pub fn decide_natively(&self) {
        let now = self.clock.now();
        self.end_verdicts(|until| until.is_none_or(|until| until <= now));
    }

    /// There is no breaker any more: nothing is out of use for what one has said.
    pub fn forget_verdicts(&self) {
        self.end_verdicts(|_| true);
    }

    /// Ends verdicts by when they would end; what is half-open has no such time.
    fn end_verdicts(&self, is_over: impl Fn(Option<Duration>) -> bool) {
        let mut builder = self.lock();
        let mut changed = false;
        for endpoint in builder.endpoints() {
            let health = &endpoint.health;
            changed |= is_over(health.ejected_until()) && self.put_back(endpoint, health.seen());
        }
        self.publish_if(changed, &mut builder);
        if is_over(self.health.open_until()) && self.health.close(self.health.seen()) {
            tracing::info!(target: "heddle::health", service = %self.name, "requests are let through again");
        }
    }

    fn put_back(&self, endpoint: &Endpoint, seen: u64) -> bool {
        let changed = endpoint.health.restore(seen, self.clock.now());
        if changed {
            tracing::info!(target: "heddle::health", service = %self.name, endpoint = %endpoint.registered.address,
                "back in use");
        }
        changed
    }

    /// Says whether an endpoint's active check fails. Nothing happens to one that is not registered any more.
    pub fn set_check_fails(&self, endpoint: &Arc<Endpoint>, fails: bool) -> bool {
        let mut builder = self.lock();
        let is_registered =
            builder.endpoint(endpoint.slot).is_some_and(|now| Arc::ptr_eq(&now.health, &endpoint.health));
        let changed = is_registered && endpoint.health.check_fails.swap(fails, Ordering::Relaxed) != fails;
        self.publish_if(changed, &mut builder)
    }

    /// Pauses or resumes the service as a whole in this proxy; who pauses it then.
    pub fn set_paused(&self, paused: bool) -> Pause {
        let mut builder = self.lock();
        let changed = builder.pause.by_admin != paused;
        builder.pause.by_admin = paused;
        self.publish_if(changed, &mut builder);
        builder.pause
    }

    /// Pauses or resumes the endpoint of this address in this proxy, for as long as it is registered; who pauses it
    /// then. None where there is no such endpoint.
    pub fn set_endpoint_paused(&self, address: &str, paused: bool) -> Option<Pause> {
        let mut builder = self.lock();
        let endpoint = builder.endpoints().find(|endpoint| endpoint.registered.address == address)?.clone();
        let changed = endpoint.health.paused.swap(paused, Ordering::Relaxed) != paused;
        self.publish_if(changed, &mut builder);
        Some(endpoint.pause())
    }

    fn publish_if(&self, changed: bool, builder: &mut Builder) -> bool {
        if changed {
            self.publish(builder);
        }
        changed
    }

    fn publish(&self, builder: &mut Builder) {
        let snapshot = builder.snapshot();
        let version = snapshot.version;
        self.snapshot.store(Arc::new(snapshot));
        self.version.store(version, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Builder> {
        self.builder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
