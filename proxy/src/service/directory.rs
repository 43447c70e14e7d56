//! All services, by name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::snapshot::{Builder, Snapshot};
use super::stats::{ServiceStats, StatsTotal};
use crate::config::checked;
use crate::plugin::Plugin;
use crate::registry::Change;

/// A name that applications call, with what serves it.
#[derive(Debug)]
pub struct Service {
    pub name: Arc<str>,
    pub settings: Arc<checked::Service>,
    /// Who chooses among the endpoints.
    pub balancer: Arc<Plugin>,
    snapshot: ArcSwap<Snapshot>,
    version: AtomicU64,
    builder: Mutex<Builder>,
    stats: Arc<Mutex<Vec<Arc<ServiceStats>>>>,
}

impl Service {
    fn new(name: Arc<str>, settings: Arc<checked::Service>, balancer: Arc<Plugin>) -> Self {
        Self {
            name,
            settings,
            balancer,
            snapshot: ArcSwap::default(),
            version: AtomicU64::new(0),
            builder: Mutex::default(),
            stats: Mutex::default(),
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

    /// Figures for one more worker to write.
    pub fn worker_stats(&self) -> Arc<ServiceStats> {
        let stats = Arc::new(ServiceStats::default());
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).push(stats.clone());
        stats
    }

    /// The workers' figures, added up.
    pub fn stats(&self) -> StatsTotal {
        let mut total = StatsTotal::default();
        for stats in self.stats.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            total.add(stats);
        }
        total
    }

    fn apply(&self, change: Change) {
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = builder.apply(change);
        let version = snapshot.version;
        self.snapshot.store(Arc::new(snapshot));
        self.version.store(version, Ordering::Release);
    }
}

type Services = HashMap<Arc<str>, Arc<Service>>;

/// Resolves the name of a policy; the one place where services and plugins meet.
type PolicyOf = Box<dyn Fn(&checked::Policy) -> Arc<Plugin> + Send + Sync>;

/// All services, by name. Reading takes no lock; a service that was known once stays known, so that a service whose
/// last endpoint left answers 503 and is not taken for an unknown host.
pub struct Directory {
    services: ArcSwap<Services>,
    settings: checked::Services,
    policy_of: PolicyOf,
    writer: Mutex<()>,
}

impl Directory {
    /// A directory that knows the services that the configuration names, without endpoints yet.
    pub fn new(
        settings: checked::Services,
        policy_of: impl Fn(&checked::Policy) -> Arc<Plugin> + Send + Sync + 'static,
    ) -> Self {
        let services: Services = settings
            .named
            .iter()
            .map(|(name, service)| {
                let balancer = policy_of(&service.balancer);
                (name.clone(), Arc::new(Service::new(name.clone(), service.clone(), balancer)))
            })
            .collect();
        Self {
            services: ArcSwap::from_pointee(services),
            settings,
            policy_of: Box::new(policy_of),
            writer: Mutex::new(()),
        }
    }

    /// The service of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Service>> {
        self.services.load().get(name).cloned()
    }

    /// All services, in no order.
    pub fn all(&self) -> Vec<Arc<Service>> {
        self.services.load().values().cloned().collect()
    }

    /// Applies changes of services, those of new ones included. An existing service's change costs time independent of
    /// the number of services; new services cost one copy of the table for all of them together.
    pub fn apply(&self, changes: Vec<Change>) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut grown: Option<Services> = None;
        for change in changes {
            let current = self.services.load();
            let table = grown.as_ref().unwrap_or(&current);
            if let Some(service) = table.get(change.service.as_str()) {
                service.apply(change);
                continue;
            }
            let name: Arc<str> = change.service.as_str().into();
            let settings = self.settings.get(&name).clone();
            let balancer = (self.policy_of)(&settings.balancer);
            let service = Arc::new(Service::new(name.clone(), settings, balancer));
            service.apply(change);
            grown.get_or_insert_with(|| (**current).clone()).insert(name, service);
        }
        if let Some(grown) = grown {
            self.services.store(Arc::new(grown));
        }
    }
}
