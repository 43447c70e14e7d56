//! What the sources are doing, as numbers that any thread may read.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::watch;

/// The registry's state, kept up to date by its tasks.
#[derive(Debug)]
pub struct Status {
    /// Replaced as a whole when the configuration is.
    pub(super) sources: ArcSwap<Vec<Arc<SourceStatus>>>,
    pub(super) services: AtomicU64,
    pub(super) endpoints: AtomicU64,
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
    /// Entries that could not be decoded, counted each time that they were met.
    pub skipped: u64,
    /// When something was last heard that could change endpoints; milliseconds since 1970.
    pub last_event_ms: Option<u64>,
}

impl Status {
    pub(super) fn new() -> Self {
        Self {
            sources: ArcSwap::default(),
            services: AtomicU64::new(0),
            endpoints: AtomicU64::new(0),
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

    /// All numbers at once, each exact, not all of the same instant.
    pub fn report(&self) -> Report {
        Report {
            ready: self.is_ready(),
            services: self.services.load(Relaxed),
            endpoints: self.endpoints.load(Relaxed),
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

    /// Something was heard that could change endpoints.
    pub fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last_event.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn report(&self) -> SourceReport {
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
            last_event_ms: Some(self.last_event.load(Relaxed)).filter(|at| *at != 0),
        }
    }
}
