//! All services, by name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::budget::Budget;
use super::fleet::Fleet;
use super::snapshot::Snapshot;
use super::stats::{ServiceStats, StatsTotal};
use crate::clock::Clock;
use crate::config::checked;
use crate::plugin::Plugin;
use crate::policy::Role;
use crate::registry::Change;

/// A name that applications call, with what serves it.
#[derive(Debug)]
pub struct Service {
    pub settings: Arc<checked::Service>,
    pub fleet: Arc<Fleet>,
    /// Who chooses among the endpoints.
    pub balancer: Arc<Plugin>,
    /// Who decides what follows a failed attempt.
    pub retry: Option<Arc<Plugin>>,
    /// How many retries may be under way.
    pub budget: Arc<Budget>,
    /// Who judges endpoints by how attempts end.
    pub breaker: Option<Arc<Plugin>>,
    stats: Mutex<Vec<Arc<ServiceStats>>>,
}

impl Service {
    fn new(fleet: Fleet, settings: Arc<checked::Service>, policy_of: &PolicyOf) -> Self {
        Self {
            fleet: Arc::new(fleet),
            balancer: policy_of(&settings.balancer, Role::Balancer),
            retry: settings.retry.as_ref().map(|policy| policy_of(policy, Role::RetryPolicy)),
            breaker: settings.breaker.as_ref().map(|policy| policy_of(policy, Role::CircuitBreaker)),
            budget: Budget::new(settings.retry_budget),
            settings,
            stats: Mutex::default(),
        }
    }

    /// What applications call it.
    pub fn name(&self) -> &Arc<str> {
        &self.fleet.name
    }

    /// The newest snapshot of its endpoints.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.fleet.snapshot()
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
}

type Services = HashMap<Arc<str>, Arc<Service>>;

/// Resolves the name of a policy; the one place where services and plugins meet.
type PolicyOf = Box<dyn Fn(&checked::Policy, Role) -> Arc<Plugin> + Send + Sync>;

/// All services, by name. Reading takes no lock; a service that was known once stays known, so that a service whose
/// last endpoint left answers 503 and is not taken for an unknown host.
pub struct Directory {
    services: ArcSwap<Services>,
    settings: checked::Services,
    policy_of: PolicyOf,
    clock: Clock,
    /// Whether the registries' first answers are in; changes under the writer's lock.
    settled: AtomicBool,
    writer: Mutex<()>,
}

impl Directory {
    /// A directory that knows the services that the configuration names, without endpoints yet.
    pub fn new(
        settings: checked::Services,
        clock: Clock,
        policy_of: impl Fn(&checked::Policy, Role) -> Arc<Plugin> + Send + Sync + 'static,
    ) -> Self {
        let directory = Self {
            services: ArcSwap::default(),
            settings,
            policy_of: Box::new(policy_of),
            clock,
            settled: AtomicBool::new(false),
            writer: Mutex::new(()),
        };
        let named = directory.settings.named.keys();
        let services: Services = named.map(|name| (name.clone(), directory.service(name.clone()))).collect();
        directory.services.store(Arc::new(services));
        directory
    }

    /// A new service, without endpoints yet.
    fn service(&self, name: Arc<str>) -> Arc<Service> {
        let settings = self.settings.get(&name).clone();
        let fleet = Fleet::new(name, settings.ejection, self.clock.clone());
        if self.settled.load(Relaxed) {
            fleet.settle();
        }
        Arc::new(Service::new(fleet, settings, &self.policy_of))
    }

    /// The service of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Service>> {
        self.services.load().get(name).cloned()
    }

    /// All services, in no order.
    pub fn all(&self) -> Vec<Arc<Service>> {
        self.services.load().values().cloned().collect()
    }

    /// To be called when every registry has answered: endpoints that are registered from now on are new, while those
    /// of the first answers may have been there for long.
    pub fn settle(&self) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.settled.store(true, Relaxed);
        for service in self.all() {
            service.fleet.settle();
        }
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
                service.fleet.apply(change);
                continue;
            }
            let name: Arc<str> = change.service.as_str().into();
            let service = self.service(name.clone());
            service.fleet.apply(change);
            grown.get_or_insert_with(|| (**current).clone()).insert(name, service);
        }
        if let Some(grown) = grown {
            self.services.store(Arc::new(grown));
        }
    }
}
