//! What the sources are doing, as numbers that any thread may read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::apply::Origin;
use crate::config::checked::RegistryLimits;

/// The registry's state, kept up to date by its tasks.
#[derive(Debug)]
pub struct Status {
    /// Replaced as a whole when the configuration is.
    pub(super) sources: ArcSwap<Vec<Arc<SourceStatus>>>,
    pub(super) services: AtomicU64,
    pub(super) endpoints: AtomicU64,
    pub(super) kept_endpoints: AtomicU64,
    pub(super) kept_bytes: AtomicU64,
    max_endpoints: AtomicU64,
    max_bytes: AtomicU64,
    pub(super) ready: watch::Sender<bool>,
}

/// One source's part of the [`Status`].
#[derive(Debug, Default)]
pub(super) struct SourceStatus {
    pub name: &'static str,
    pub connected: AtomicBool,
    pub answered: AtomicBool,
    pub restored: AtomicBool,
    pub revision: AtomicI64,
    /// Written at a reconnect and read by the admin server; no request waits for it.
    pub member: Mutex<Option<String>>,
    pub relists: AtomicU64,
    pub reconnects: AtomicU64,
    pub skipped: AtomicU64,
    /// Milliseconds since 1970; 0: none yet.
    pub last_event: AtomicU64,
    /// Keys that were not taken as they are, by part, with how many more there are. Read by the admin server only.
    skips: Mutex<BTreeMap<Origin, (Vec<Skipped>, u64)>>,
    /// The source is to be read anew.
    pub reread: Notify,
}

/// A key that was not taken as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Percent-encoded, and cut after 256 bytes.
    pub key: String,
    pub reason: String,
    /// Whether its endpoint is in force all the same.
    pub kept: bool,
}

/// A reading of the [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every source has answered once or was restored from the snapshot.
    pub ready: bool,
    /// Services with at least one endpoint, those out of use counted.
    pub services: u64,
    /// Endpoints of all services, those out of use counted.
    pub endpoints: u64,
    /// Registrations that are kept: endpoints as often as keys announce them. And their memory, estimated, in bytes.
    pub registrations: u64,
    pub registry_bytes: u64,
    /// The most of these two.
    pub max_endpoints: u64,
    pub max_registry_bytes: u64,
    pub sources: Vec<SourceReport>,
}

/// One source's part of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// `fixed`, `file` or `etcd`.
    pub name: &'static str,
    /// Changes are being followed now. For a file: its last reading was good.
    pub connected: bool,
    /// It has answered since the start.
    pub answered: bool,
    /// The snapshot on disk stood in for its first answer.
    pub restored: bool,
    /// etcd's revision that was last heard of; 0 for other sources.
    pub revision: i64,
    /// The etcd member in use.
    pub member: Option<String>,
    /// Complete readings, the first one included.
    pub relists: u64,
    /// Connections given up or lost, each followed by a further attempt.
    pub reconnects: u64,
    /// Entries that were not taken as they are, counted each time that they were met.
    pub skipped: u64,
    /// Those that are there now, at most 100 of each watch, and how many more there may be.
    pub skipped_keys: Vec<Skipped>,
    pub more_skipped_keys: u64,
    /// When something was last heard that could change endpoints; milliseconds since 1970.
    pub last_event_ms: Option<u64>,
}

impl Status {
    pub(super) fn new() -> Self {
        Self {
            sources: ArcSwap::default(),
            services: AtomicU64::new(0),
            endpoints: AtomicU64::new(0),
            kept_endpoints: AtomicU64::new(0),
            kept_bytes: AtomicU64::new(0),
            max_endpoints: AtomicU64::new(0),
            max_bytes: AtomicU64::new(0),
            ready: watch::Sender::new(false),
        }
    }

    /// Whether every source has answered once or was restored from the snapshot. With no source at all: at once. What
    /// was ready stays so: a source that joins later takes nothing away.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Until [`Status::is_ready`].
    pub async fn wait_ready(&self) {
        // The sender is part of `self`, so the channel cannot close while this borrows it.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    pub(super) fn set_limits(&self, limits: RegistryLimits) {
        self.max_endpoints.store(limits.max_endpoints as u64, Relaxed);
        self.max_bytes.store(limits.max_bytes as u64, Relaxed);
    }

    /// All numbers at once, each exact, not all of the same instant.
    pub fn report(&self) -> Report {
        Report {
            ready: self.is_ready(),
            services: self.services.load(Relaxed),
            endpoints: self.endpoints.load(Relaxed),
            registrations: self.kept_endpoints.load(Relaxed),
            registry_bytes: self.kept_bytes.load(Relaxed),
            max_endpoints: self.max_endpoints.load(Relaxed),
            max_registry_bytes: self.max_bytes.load(Relaxed),
            sources: self.sources.load().iter().map(|source| source.report()).collect(),
        }
    }
}

impl SourceStatus {
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self { name, ..Self::default() })
    }

    pub fn set_member(&self, member: Option<String>) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = member;
    }

    pub fn set_skipped(&self, part: Origin, keys: Vec<Skipped>, more: u64) {
        let mut skips = self.skips.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.is_empty() && more == 0 {
            skips.remove(&part);
        } else {
            skips.insert(part, (keys, more));
        }
    }

    /// Something was heard that could change endpoints.
    pub fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last_event.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn report(&self) -> SourceReport {
        let skips = self.skips.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped_keys = skips.values().flat_map(|(keys, _)| keys).cloned().collect();
        let more_skipped_keys = skips.values().map(|(_, more)| more).sum();
        SourceReport {
            name: self.name,
            connected: self.connected.load(Relaxed),
            answered: self.answered.load(Relaxed),
            restored: self.restored.load(Relaxed),
            revision: self.revision.load(Relaxed),
            member: self.member.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            relists: self.relists.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            skipped_keys,
            more_skipped_keys,
            last_event_ms: Some(self.last_event.load(Relaxed)).filter(|at| *at != 0),
        }
    }
}
