//! One thread with everything that requests on it need, so that they share nothing with other threads but snapshots
//! and counters.
//!
//! Another configuration comes as a message to the worker, not as something that requests would have to look for: it
//! then puts other [`LocalService`]s in the place of those whose settings changed.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::local::LocalService;
use super::passthrough::{self, Passthrough};
use super::route::{normalized, without_suffix};
use crate::config::checked::TlsClient;
use crate::descriptors::Descriptors;
use crate::drain::Phase;
use crate::proto::h1::{Date, Scratch};
use crate::proto::headers::Signature;
use crate::service::{Directory, Service, ServiceStats};
use crate::supervise::keep;
use crate::timer::{self, Timers};
use crate::transport::Relays;
use crate::transport::tls::Connector;
use crate::upstream::OwnSockets;

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// An instance of a plugin that decided nothing between two of these is dropped.
const EVICTION: Duration = Duration::from_secs(300);

/// While the proxy stops: how long a connection may take to its first request. A client that has just connected sends
/// one at once, and a close in its stead would be an error to it, other than on a connection that was used before.
const MOMENT: Duration = Duration::from_secs(1);

/// What the configuration says of all requests. Each worker has it, and is given another when it changes.
pub struct Common {
    pub signature: Signature,
    /// Hosts `NAME.suffix` call the service `NAME`; empty for none.
    pub suffix: String,
    /// Begin TLS to endpoints, by the settings of services.
    pub connectors: HashMap<TlsClient, Arc<Connector>>,
}

/// What all workers share.
pub struct Shared {
    pub directory: Arc<Directory>,
    /// Connections of clients, by worker.
    pub connections: Vec<AtomicUsize>,
    /// The runtimes, by worker, for their figures; none before a worker has begun.
    pub runtimes: Vec<std::sync::OnceLock<tokio::runtime::Handle>>,
    /// Requests that reached no service, by worker: refused ones, and those passed through.
    pub unrouted: Vec<Arc<ServiceStats>>,
    pub passed_through: Vec<Arc<ServiceStats>>,
    /// Where the proxy listens.
    pub own: Arc<OwnSockets>,
    pub descriptors: Arc<Descriptors>,
}

impl Shared {
    pub fn new(directory: Arc<Directory>, descriptors: Arc<Descriptors>, workers: usize) -> Arc<Self> {
        let stats = || (0..workers).map(|_| Arc::default()).collect();
        let connections = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        let runtimes = (0..workers).map(|_| std::sync::OnceLock::new()).collect();
        Arc::new(Self {
            directory,
            connections,
            runtimes,
            unrouted: stats(),
            passed_through: stats(),
            own: Arc::default(),
            descriptors,
        })
    }
}

/// One worker.
pub struct Worker {
    /// Its place among the workers, from 0.
    pub number: usize,
    pub shared: Arc<Shared>,
    common: RefCell<Arc<Common>>,
    pub timers: Rc<Timers>,
    pub scratch: Rc<Scratch>,
    pub relays: Relays,
    /// For responses that have none.
    pub date: Date,
    pub passthrough: Passthrough,
    pub unrouted: Arc<ServiceStats>,
    pub passed_through: Arc<ServiceStats>,
    /// Names come from registries, so their hashes are seeded.
    services: RefCell<HashMap<Arc<str>, Rc<LocalService>>>,
    /// Names of services for which somebody waits for a connection, on whichever worker.
    inbox: UnboundedSender<Arc<str>>,
    asked: Mutex<UnboundedReceiver<Arc<str>>>,
    /// Those of which the connections are shared out just now.
    scarce: RefCell<HashSet<Arc<str>>>,
    seeds: RandomState,
    phase: Cell<Phase>,
    /// Whether those that have asked for nothing have been waited for long enough, while draining.
    hurries: Cell<bool>,
    /// Requests, streams and tunnels.
    under_way: Cell<usize>,
}

impl Worker {
    pub fn new(number: usize, shared: Arc<Shared>, common: Arc<Common>) -> Rc<Self> {
        let of = |stats: &Vec<Arc<ServiceStats>>| stats.get(number).cloned().unwrap_or_default();
        let timers = Rc::default();
        let (inbox, asked) = unbounded_channel();
        Rc::new(Self {
            number,
            common: RefCell::new(common),
            relays: Relays::new(&timers),
            timers,
            scratch: Rc::default(),
            date: Date::default(),
            passthrough: Passthrough::new(&inbox),
            unrouted: of(&shared.unrouted),
            passed_through: of(&shared.passed_through),
            services: RefCell::default(),
            inbox,
            asked: Mutex::new(asked),
            scarce: RefCell::default(),
            seeds: RandomState::new(),
            phase: Cell::new(Phase::Serving),
            hurries: Cell::new(false),
            under_way: Cell::new(0),
            shared,
        })
    }

    /// What the configuration says of all requests. Not to be held over a wait.
    pub fn common(&self) -> Ref<'_, Common> {
        Ref::map(self.common.borrow(), |common| &**common)
    }

    /// From now on the configuration says this.
    pub fn set_common(&self, common: Arc<Common>) {
        self.common.replace(common);
    }

    /// Serves the services as the directory has them now. Requests under way finish with what they began with.
    pub fn refresh(&self) {
        for local in self.services.borrow_mut().values_mut() {
            let Some(now) = self.shared.directory.get(local.service.name()) else { continue };
            let tls = self.connector(&now);
            if !local.is_of(&now, tls.as_ref()) {
                let seed = self.seeds.hash_one(now.name());
                *local = Rc::new(local.changed(now, tls, seed));
            }
        }
    }

    fn connector(&self, service: &Service) -> Option<Arc<Connector>> {
        service.settings.tls.as_ref().and_then(|tls| self.common().connectors.get(tls).cloned())
    }

    /// The service that a host names: as it is, or without the suffix.
    pub fn service_of_host(&self, host: &str) -> Option<Rc<LocalService>> {
        let host = normalized(host);
        self.service(&host).or_else(|| self.service(without_suffix(&host, &self.common().suffix)?))
    }

    /// The service of this name, as this worker serves it.
    pub fn service(&self, name: &str) -> Option<Rc<LocalService>> {
        if let Some(local) = self.services.borrow().get(name) {
            return Some(local.clone());
        }
        let service = self.shared.directory.get(name)?;
        let name = service.name().clone();
        let tls = self.connector(&service);
        let local = Rc::new(LocalService::new(service, tls, self.seeds.hash_one(&name), &self.inbox));
        self.services.borrow_mut().insert(name, local.clone());
        Some(local)
    }

    /// Connections of clients on this worker.
    pub fn connections(&self) -> usize {
        self.shared.connections.get(self.number).map_or(0, |count| count.load(Relaxed))
    }

    /// Whether clients are to be told to leave. Connections stay open until they have been told.
    pub fn is_leaving(&self) -> bool {
        self.phase.get() >= Phase::Leaving
    }

    /// Whether connections are to end as soon as nothing is under way on them.
    pub fn is_draining(&self) -> bool {
        self.phase.get() >= Phase::Finishing
    }

    /// Whether a connection on which nothing has been asked for yet, since this tick, is to end.
    pub fn has_no_time_for(&self, since: u64) -> bool {
        self.is_draining() && (self.hurries.get() || self.timers.since(since) >= MOMENT)
    }

    /// Asks clients to leave, each with the next response.
    pub fn leave(&self) {
        self.phase.set(Phase::Leaving);
        self.timers.wake_all();
    }

    /// Ends idle connections now and busy ones after what is under way.
    pub fn drain(self: &Rc<Self>) {
        self.phase.set(Phase::Finishing);
        self.timers.wake_all();
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(MOMENT).await;
            worker.hurries.set(true);
            worker.timers.wake_all();
        });
    }

    /// Counts something that a stop has to wait for, until what is returned is dropped.
    pub fn begin(&self) -> UnderWay<'_> {
        self.under_way.set(self.under_way.get() + 1);
        UnderWay(&self.under_way)
    }

    /// Whether something is under way that would be cut off now.
    pub fn is_busy(&self) -> bool {
        self.under_way.get() > 0
    }

    /// Lets time pass for this worker, for ever: deadlines, idle connections, idle plugins.
    pub async fn keep_house(self: Rc<Self>) {
        let mut tasks = JoinSet::new();
        let timers = self.timers.clone();
        tasks.spawn_local(keep("timers", move || timers.clone().run()));
        let worker = self.clone();
        tasks.spawn_local(keep("idle-connections", move || worker.clone().give_up_idle()));
        let mut seconds = 0_u64;
        loop {
            tokio::time::sleep(SWEEP).await;
            seconds += SWEEP.as_secs();
            let services: Vec<Rc<LocalService>> = self.services.borrow().values().cloned().collect();
            for service in services {
                service.sweep();
                if seconds.is_multiple_of(EVICTION.as_secs()) {
                    service.evict_unused_policies();
                }
            }
            self.passthrough.sweep();
        }
    }

    /// Makes instances of policies that have been replaced. Requests are served between two services.
    pub async fn renew_policies(self: Rc<Self>) {
        let services: Vec<Rc<LocalService>> = self.services.borrow().values().cloned().collect();
        for service in services {
            service.renew_policies();
            tokio::task::yield_now().await;
        }
    }

    /// Gives up idle connections when somebody waits for one, for ever.
    async fn give_up_idle(self: Rc<Self>) {
        let mut asked = self.asked.lock().await;
        while let Some(name) = asked.recv().await {
            if *name == *passthrough::NAME {
                self.passthrough.give_up_idle();
            } else if let Some(local) = self.local(&name) {
                local.give_up_idle();
            }
            if self.share_out(&name) && self.scarce.borrow_mut().insert(name.clone()) {
                tokio::task::spawn_local(self.clone().go_on_sharing(name));
            }
        }
    }

    /// Shares connections out for as long as anybody waits for one.
    async fn go_on_sharing(self: Rc<Self>, name: Arc<str>) {
        loop {
            tokio::time::sleep(timer::TICK).await;
            if !self.share_out(&name) {
                self.scarce.borrow_mut().remove(&name);
                return;
            }
        }
    }

    /// See [`LocalService::share_out`].
    fn share_out(&self, name: &Arc<str>) -> bool {
        let now = self.timers.now();
        if **name == *passthrough::NAME {
            return self.passthrough.share_out(now);
        }
        self.local(name).is_some_and(|local| local.share_out(now))
    }

    fn local(&self, name: &Arc<str>) -> Option<Rc<LocalService>> {
        self.services.borrow().get(name).cloned()
    }
}

/// Something that a stop has to wait for.
pub struct UnderWay<'a>(&'a Cell<usize>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
