//! All services, by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::budget::Budget;
use super::fleet::Fleet;
use super::snapshot::Snapshot;
use super::stats::{ServiceStats, StatsTotal};
use crate::clock::Clock;
use crate::config::checked;
use crate::plugin::{Plugin, Usage};
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
    /// One a worker.
    stats: Arc<Mutex<Vec<Arc<ServiceStats>>>>,
    /// Says of each policy that the service uses it.
    _usages: Vec<Arc<Usage>>,
}

impl Service {
    fn new(fleet: Arc<Fleet>, settings: Arc<checked::Service>, policy_of: &PolicyOf) -> Self {
        let balancer = policy_of(&settings.balancer, Role::Balancer);
        let retry = settings.retry.as_ref().map(|policy| policy_of(policy, Role::RetryPolicy));
        let breaker = settings.breaker.as_ref().map(|policy| policy_of(policy, Role::CircuitBreaker));
        let policies = [Some(&balancer), retry.as_ref(), breaker.as_ref()];
        Self {
            _usages: policies.into_iter().flatten().map(|policy| policy.usage(&fleet.name)).collect(),
            fleet,
            balancer,
            retry,
            breaker,
            budget: Budget::new(settings.retry_budget),
            settings,
            stats: Arc::default(),
        }
    }

    /// The same endpoints and figures under other settings; none if these are its settings.
    fn changed(&self, settings: &Arc<checked::Service>, policy_of: &PolicyOf) -> Option<Self> {
        let mut changed = Self::new(self.fleet.clone(), settings.clone(), policy_of);
        changed.stats = self.stats.clone();
        if settings.retry_budget == self.settings.retry_budget {
            // What is under way counts on.
            changed.budget = self.budget.clone();
        }
        let same = |one: &Option<Arc<Plugin>>, other: &Option<Arc<Plugin>>| {
            one.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr)
        };
        let is_as_before = *settings == self.settings
            && Arc::ptr_eq(&changed.balancer, &self.balancer)
            && same(&changed.retry, &self.retry)
            && same(&changed.breaker, &self.breaker);
        (!is_as_before).then_some(changed)
    }

    /// A policy of the service that has never been loaded, if there is one.
    pub fn awaited_policy(&self) -> Option<&Arc<Plugin>> {
        let policies = [Some(&self.balancer), self.retry.as_ref(), self.breaker.as_ref()];
        policies.into_iter().flatten().find(|policy| policy.is_awaited())
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
    clock: Clock,
    /// Held by whoever changes anything.
    given: Mutex<Given>,
}

/// What the configuration says of services.
struct Given {
    settings: checked::Services,
    policy_of: PolicyOf,
    /// Whether the registries' first answers are in.
    settled: bool,
}

impl Directory {
    /// A directory that knows the services that the configuration names, without endpoints yet.
    pub fn new(
        settings: checked::Services,
        clock: Clock,
        policy_of: impl Fn(&checked::Policy, Role) -> Arc<Plugin> + Send + Sync + 'static,
    ) -> Self {
        let given = Given { settings, policy_of: Box::new(policy_of), settled: false };
        let services = given.settings.named.keys().map(|name| (name.clone(), given.service(name.clone(), &clock)));
        Self { services: ArcSwap::from_pointee(services.collect()), clock, given: Mutex::new(given) }
    }

    /// Puts other settings in force, for every request that a worker begins after it has taken notice. Endpoints and
    /// what is known of them stay; so does a service that is named no more, under the default settings.
    pub fn reload(
        &self,
        settings: checked::Services,
        policy_of: impl Fn(&checked::Policy, Role) -> Arc<Plugin> + Send + Sync + 'static,
    ) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        *given = Given { settings, policy_of: Box::new(policy_of), ..*given };
        let mut services = Services::clone(&self.services.load());
        for (name, service) in &mut services {
            if let Some(changed) = service.changed(given.settings.get(name), &given.policy_of) {
                changed.fleet.set_ejection(changed.settings.ejection);
                if changed.breaker.is_none() {
                    changed.fleet.forget_verdicts();
                }
                *service = Arc::new(changed);
            }
        }
        for name in given.settings.named.keys() {
            services.entry(name.clone()).or_insert_with(|| given.service(name.clone(), &self.clock));
        }
        self.services.store(Arc::new(services));
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
        self.given.lock().unwrap_or_else(PoisonError::into_inner).settled = true;
        for service in self.all() {
            service.fleet.settle();
        }
    }

    /// Applies changes of services, those of new ones included. An existing service's change costs time independent of
    /// the number of services; new services cost one copy of the table for all of them together.
    pub fn apply(&self, changes: Vec<Change>) {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut grown: Option<Services> = None;
        for change in changes {
            let current = self.services.load();
            let table = grown.as_ref().unwrap_or(&current);
            if let Some(service) = table.get(change.service.as_str()) {
                service.fleet.apply(change);
                continue;
            }
            let name: Arc<str> = change.service.as_str().into();
            let service = given.service(name.clone(), &self.clock);
            service.fleet.apply(change);
            grown.get_or_insert_with(|| (**current).clone()).insert(name, service);
        }
        if let Some(grown) = grown {
            self.services.store(Arc::new(grown));
        }
    }
}

impl Given {
    /// A new service, without endpoints yet.
    fn service(&self, name: Arc<str>, clock: &Clock) -> Arc<Service> {
        let settings = self.settings.get(&name).clone();
        let fleet = Arc::new(Fleet::new(name, settings.ejection, clock.clone()));
        if self.settled {
            fleet.settle();
        }
        Arc::new(Service::new(fleet, settings, &self.policy_of))
    }
}
