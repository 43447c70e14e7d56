//! Connections to hosts that are no services.
//!
//! A forward proxy is asked for any host. Where it may connect to is its listener's [`Reach`], which judges addresses:
//! a name is resolved first, and the address that was found allowed is the one that is connected to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

use super::refusal::Refusal;
use super::route::normalized;
use super::worker::Worker;
use crate::config::checked::CLIENT_SHARE;
use crate::config::checked::{Pool as Limits, UpstreamProtocol};
use crate::service::{Connections, Keeper, Load};
use crate::upstream::{ConnectSettings, Pool, Reach, Target};

/// Outside a mesh, as Envoy has it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From the request to the response's head.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The connections are those to all hosts together: names are the client's to choose, and there is no end of them.
const LIMITS: Limits =
    Limits { max_idle: 8, idle_timeout: Duration::from_secs(30), max_connections: 4096, max_requests: None };

/// Stands for these hosts where services have their names; no service is called so.
pub const NAME: &str = "";

/// Requests and tunnels that wait for a connection, as for one to a service.
const MAX_WAITING: usize = 1024;

/// Names that are looked up at once. A lookup cannot be stopped and holds a thread, which services need too.
const LOOKUPS: usize = 32;

/// Hosts whose connections are kept.
const MAX_HOSTS: usize = 256;

/// One worker's connections to hosts that are no services.
pub struct Passthrough {
    load: Load,
    connections: Arc<Connections>,
    lookups: Arc<Semaphore>,
    keeper: Arc<Keeper>,
    /// By the address of the [`Reach`], which the pool keeps alive, and `host:port`: a pool belongs to one listener, as
    /// what it may connect to does.
    pools: RefCell<HashMap<(usize, String), Rc<Pool>>>,
    /// Those for which there was no room.
    others: RefCell<Vec<Weak<Pool>>>,
}

impl Passthrough {
    /// One whose idle connections are asked for through this inbox, by the name [`NAME`].
    pub fn new(inbox: &UnboundedSender<Arc<str>>) -> Self {
        let (lookups, connections) = (Arc::new(Semaphore::new(LOOKUPS)), Arc::<Connections>::default());
        let keeper = connections.keeper(&NAME.into(), inbox);
        Self {
            load: Load::alone(),
            connections,
            lookups,
            keeper,
            pools: RefCell::default(),
            others: RefCell::default(),
        }
    }

    /// Closes idle connections, as far as somebody waits for one.
    pub fn give_up_idle(&self) {
        self.keeper.looks();
        self.all().iter().for_each(|pool| pool.give_up_idle());
    }

    /// Has clients keep to their share, as it is at this tick, while others wait for a connection; whether anybody does.
    pub fn share_out(&self, now: u64) -> bool {
        self.connections.share_out(CLIENT_SHARE, now);
        self.all().iter().for_each(|pool| pool.end_holds());
        self.connections.is_awaited()
    }

    fn all(&self) -> Vec<Rc<Pool>> {
        let (pools, others) = (self.pools.borrow(), self.others.borrow());
        pools.values().cloned().chain(others.iter().filter_map(Weak::upgrade)).collect()
    }

    /// The pool of a host, for a listener of this reach.
    ///
    /// # Errors
    ///
    /// When the port may not be connected to. Addresses are judged when the pool connects.
    pub fn pool(&self, worker: &Worker, reach: &Arc<Reach>, host: &str, port: u16) -> Result<Rc<Pool>, Refusal> {
        if !reach.has_port(port) {
            return Err(Refusal::PortDenied { port });
        }
        let address = format!("{}:{port}", normalized(host));
        let key = (Arc::as_ptr(reach).addr(), address);
        if let Some(pool) = self.pools.borrow().get(&key) {
            return Ok(pool.clone());
        }
        let target = Target {
            address: key.1.as_str().into(),
            socket: None,
            load: self.load.clone(),
            protocol: UpstreamProtocol::Http1,
            tls: None,
            connect: ConnectSettings {
                timeout: CONNECT_TIMEOUT,
                reach: Some(reach.clone()),
                egress: None,
                lookups: Some(self.lookups.clone()),
                own: worker.shared.own.clone(),
            },
            limits: LIMITS,
            connections: self.connections.clone(),
            descriptors: worker.shared.descriptors.clone(),
            max_connections: None,
            max_waiting: MAX_WAITING,
            stream_idle_timeout: STREAM_IDLE_TIMEOUT,
        };
        let pool = Pool::new(target, &worker.timers, &worker.scratch);
        let mut pools = self.pools.borrow_mut();
        if pools.len() < MAX_HOSTS {
            pools.insert(key, pool.clone());
        } else {
            let mut others = self.others.borrow_mut();
            if others.len() == others.capacity() {
                others.retain(|pool| pool.strong_count() > 0);
            }
            others.push(Rc::downgrade(&pool));
        }
        Ok(pool)
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep();
            pool.idle() > 0 || Rc::strong_count(pool) > 1
        });
    }
}
