//! A service as one worker serves it: its policies' instances, and the connections to its endpoints.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::decide::{Choice, Decider, Picked};
use super::refusal::{Limit, Refusal};
use super::worker::Worker;
use crate::config::checked::Policy;
use crate::plugin::{Plugin, Seat};
use crate::policy::{Facts, Latencies, Outcome, Role, Terms};
use crate::service::{Endpoint, Keeper, Seen, Service, ServiceProbe, ServiceStats};
use crate::transport::tls::Connector;
use crate::upstream::{ConnectSettings, Pool, Pools, Target};

/// Requests and tunnels that wait for a connection to one service, over all workers: as many as Envoy lets wait. They
/// wait for `connect_timeout` at most.
const MAX_WAITING: usize = 1024;

/// A service as one worker serves it.
pub struct LocalService {
    pub service: Arc<Service>,
    pub stats: Arc<ServiceStats>,
    /// Begins TLS to the endpoints.
    tls: Option<Arc<Connector>>,
    decider: RefCell<Decider>,
    retry: Option<RefCell<Seat>>,
    breaker: Option<RefCell<Seat>>,
    pools: Rc<Pools>,
    /// Made when a policy first hedges.
    latencies: RefCell<Option<Box<Latencies>>>,
    keeper: Arc<Keeper>,
}

impl LocalService {
    /// What a worker has for a service, reached over this TLS; `seed` is for the random numbers of its policies, and
    /// `inbox` takes the names of services whose idle connections another worker needs.
    pub fn new(
        service: Arc<Service>,
        tls: Option<Arc<Connector>>,
        seed: u64,
        inbox: &UnboundedSender<Arc<str>>,
    ) -> Self {
        let (stats, keeper) = (service.worker_stats(), service.fleet.connections.keeper(service.name(), inbox));
        Self::with(service, stats, tls, seed, Rc::default(), keeper)
    }

    /// Whether it serves this, over this TLS.
    pub fn is_of(&self, service: &Arc<Service>, tls: Option<&Arc<Connector>>) -> bool {
        Arc::ptr_eq(service, &self.service) && is_same(self.tls.as_ref(), tls)
    }

    /// The same with other settings. Connections stay, if they would be made and kept as they are now.
    pub fn changed(&self, now: Arc<Service>, tls: Option<Arc<Connector>>, seed: u64) -> Self {
        let (settings, before) = (&now.settings, &self.service.settings);
        let connects_as_before = is_same(self.tls.as_ref(), tls.as_ref())
            && settings.protocol == before.protocol
            && settings.connect_timeout == before.connect_timeout
            && settings.stream_idle_timeout == before.stream_idle_timeout
            && settings.pool == before.pool
            && settings.max_connections == before.max_connections;
        let pools = if connects_as_before {
            self.pools.clone()
        } else {
            self.pools.retire();
            Rc::default()
        };
        let changed = Self::with(now, self.stats.clone(), tls, seed, pools, self.keeper.clone());
        Self { latencies: RefCell::new(self.latencies.take()), ..changed }
    }

    fn with(
        service: Arc<Service>,
        stats: Arc<ServiceStats>,
        tls: Option<Arc<Connector>>,
        seed: u64,
        pools: Rc<Pools>,
        keeper: Arc<Keeper>,
    ) -> Self {
        let settings = &service.settings;
        let seat = |plugin: &Arc<Plugin>, policy: &Policy, role: Role| {
            let seed = seed.wrapping_add(role as u64);
            Seat::new(service.fleet.clone(), plugin.clone(), policy.config.clone(), seed)
        };
        let optional = |plugin: &Option<Arc<Plugin>>, policy: &Option<Policy>, role| {
            let (plugin, policy) = plugin.as_ref().zip(policy.as_ref())?;
            Some(RefCell::new(seat(plugin, policy, role)))
        };
        Self {
            decider: RefCell::new(Decider::new(
                seat(&service.balancer, &settings.balancer, Role::Balancer),
                stats.clone(),
                settings.pool.max_requests,
            )),
            retry: optional(&service.retry, &settings.retry, Role::RetryPolicy),
            breaker: optional(&service.breaker, &settings.breaker, Role::CircuitBreaker),
            tls,
            pools,
            latencies: RefCell::default(),
            keeper,
            stats,
            service,
        }
    }

    /// Lets a request, or a connection, into the service; what is returned is held until it is known how it ended.
    ///
    /// # Errors
    ///
    /// When the service is open as a whole, or one of its policies has never been loaded.
    pub fn enter(&self) -> Result<Option<ServiceProbe>, Refusal> {
        if let Some(policy) = self.service.awaited_policy() {
            return Err(Refusal::NoPolicy {
                service: self.service.name().to_string(),
                policy: policy.name.to_string(),
            });
        }
        let open = |left| Refusal::Open { service: self.service.name().to_string(), left };
        self.service.fleet.enter().map_err(open)
    }

    /// Whether a retry policy may want more than one attempt.
    pub fn may_retry(&self) -> bool {
        self.retry.is_some()
    }

    /// Whether somebody judges how attempts end.
    pub fn has_breaker(&self) -> bool {
        self.breaker.is_some()
    }

    /// How long this worker's requests to the service took of late; for services whose policy hedges.
    pub fn latencies(&self) -> RefMut<'_, Latencies> {
        RefMut::map(self.latencies.borrow_mut(), |latencies| &mut **latencies.get_or_insert_default())
    }

    /// Decides which endpoint the request, or the connection, goes to.
    ///
    /// # Errors
    ///
    /// When no endpoint is eligible, or the policy wants none to be used.
    pub fn decide(self: &Rc<Self>, facts: &mut Facts) -> Result<Picked, Refusal> {
        let service = || self.service.name().to_string();
        let choice = self.decider.borrow_mut().choose(facts);
        if self.decider.borrow().seat.needs_instance() {
            self.mend();
        }
        match choice {
            Choice::Endpoint(picked) => Ok(picked),
            Choice::AllFull => Err(Refusal::Full { service: service(), limit: Limit::EndpointRequests }),
            Choice::NoneEligible if self.service.snapshot().pause().is_paused() => {
                Err(Refusal::Paused { service: service() })
            }
            Choice::NoneEligible => Err(Refusal::NoEndpoint { service: service() }),
            Choice::Declined => Err(Refusal::Declined { service: service() }),
            Choice::NoPolicy => {
                let policy = self.service.balancer.name.to_string();
                Err(Refusal::NoPolicy { service: service(), policy })
            }
        }
    }

    /// Takes note of how an attempt ended that found its endpoint so, `again` where it was told of its head, and has the
    /// breaker judge it. Without a breaker it is measured, if anybody looks at that.
    pub fn ended(self: &Rc<Self>, facts: &mut Facts, endpoint: &Endpoint, outcome: &Outcome, began: Seen, again: bool) {
        let fleet = &self.service.fleet;
        let Some(breaker) = &self.breaker else { return fleet.measure(endpoint, outcome.health(), outcome.latency) };
        if !fleet.record(endpoint, outcome, began, again) {
            return;
        }
        let mut seat = breaker.borrow_mut();
        seat.refresh();
        if seat.instance().is_some_and(|policy| !policy.judges(&endpoint.health)) {
            return;
        }
        let judged = seat.ask(|policy| policy.judge(facts, endpoint.slot, outcome));
        if judged.is_none() && seat.needs_instance() {
            self.mend();
        }
    }

    /// What the retry policy asked for; nothing where there is none.
    pub fn terms(&self) -> Terms {
        let Some(retry) = &self.retry else { return Terms::default() };
        let mut seat = retry.borrow_mut();
        seat.refresh();
        seat.terms()
    }

    /// After how long the retry policy wants another attempt; none where it gives up, and where there is none.
    pub fn retry(self: &Rc<Self>, facts: &mut Facts, outcome: &Outcome) -> Option<Duration> {
        let mut seat = self.retry.as_ref()?.borrow_mut();
        seat.refresh();
        let decided = seat.ask(|policy| policy.decide(facts, outcome));
        if decided.is_none() && seat.needs_instance() {
            self.mend();
        }
        decided.flatten().map(|millis| Duration::from_millis(millis.into()))
    }

    /// How many endpoints could take the request now that are neither among `tried` nor the one of slot `at`.
    pub fn others_eligible(&self, tried: &[u32], at: Option<u32>) -> u32 {
        let (snapshot, limit) = (self.service.snapshot(), self.service.settings.pool.max_requests);
        let is_free = |slot: u32| {
            let endpoint = snapshot.eligible_endpoint(slot);
            endpoint.is_some_and(|endpoint| limit.is_none_or(|limit| endpoint.load.in_flight() < limit))
        };
        let all = match limit {
            None => snapshot.eligible_count(),
            Some(_) => snapshot.endpoints().filter(|endpoint| is_free(endpoint.slot)).count(),
        };
        let mut tried: Vec<u32> = tried.iter().copied().chain(at).filter(|slot| is_free(*slot)).collect();
        tried.sort_unstable();
        tried.dedup();
        u32::try_from(all.saturating_sub(tried.len())).unwrap_or(u32::MAX)
    }

    /// Makes policies anew that were at fault: between requests, as the one that is under way has its answer already.
    fn mend(self: &Rc<Self>) {
        let local = self.clone();
        tokio::task::spawn_local(async move {
            local.seats(|seat| {
                if seat.needs_instance() {
                    seat.make_instance();
                }
            });
        });
    }

    fn seats(&self, mut each: impl FnMut(&mut Seat)) {
        each(&mut self.decider.borrow_mut().seat);
        for seat in [&self.retry, &self.breaker].into_iter().flatten() {
            each(&mut seat.borrow_mut());
        }
    }

    /// The endpoint's connections.
    pub fn pool(&self, endpoint: &Endpoint, worker: &Worker) -> Rc<Pool> {
        self.pools.get(endpoint, || {
            let settings = &self.service.settings;
            let target = Target {
                address: endpoint.registered.address.as_str().into(),
                socket: endpoint.socket,
                load: endpoint.load.clone(),
                protocol: settings.protocol,
                tls: self.tls.clone(),
                connect: ConnectSettings {
                    timeout: settings.connect_timeout,
                    reach: None,
                    egress: Some(endpoint.registered.egress.clone()),
                    lookups: None,
                    own: worker.shared.own.clone(),
                },
                limits: settings.pool,
                connections: self.service.fleet.connections.clone(),
                descriptors: worker.shared.descriptors.clone(),
                max_connections: settings.max_connections,
                max_waiting: MAX_WAITING,
                stream_idle_timeout: settings.stream_idle_timeout,
            };
            Pool::new(target, &worker.timers, &worker.scratch)
        })
    }

    /// Lets go of what is not needed any more: connections, and policies of plugins that were replaced.
    pub fn sweep(&self) {
        self.pools.sweep(&self.service.snapshot());
        self.seats(Seat::drop_outdated);
    }

    /// Makes instances of policies that have been replaced, ahead of the request that needs them.
    pub fn renew_policies(&self) {
        self.seats(Seat::renew);
    }

    /// Drops policies that decided nothing since this was called last.
    pub fn evict_unused_policies(&self) {
        self.seats(Seat::evict_unless_used);
    }

    /// Closes idle connections for somebody on another worker, as far as one waits.
    pub fn give_up_idle(&self) {
        self.keeper.looks();
        self.pools.give_up_idle();
    }

    /// Has clients keep to their share, as it is at this tick, while others wait for a connection; whether anybody does.
    pub fn share_out(&self, now: u64) -> bool {
        let connections = &self.service.fleet.connections;
        connections.share_out(self.service.settings.client_share, now);
        self.pools.end_holds();
        connections.is_awaited()
    }
}

fn is_same(one: Option<&Arc<Connector>>, other: Option<&Arc<Connector>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}
