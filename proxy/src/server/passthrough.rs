//! Connections to hosts that are no services.
//!
//! A forward proxy is asked for any host. Where it may connect to is its listener's [`Reach`], which judges addresses:
//! a name is resolved first, and the address that was found allowed is the one that is connected to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::refusal::Refusal;
use super::route::normalized;
use super::worker::Worker;
use crate::config::checked::{Pool as Limits, UpstreamProtocol};
use crate::service::{Connections, Load};
use crate::upstream::{ConnectSettings, Pool, Reach, Target};

/// Outside a mesh, as Envoy has it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From the request to the response's head.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The connections are those to all hosts together: names are the client's to choose, and there is no end of them.
const LIMITS: Limits =
    Limits { max_idle: 8, idle_timeout: Duration::from_secs(30), max_connections: 4096, max_requests: None };

/// Names that are looked up at once. A lookup cannot be stopped and holds a thread, which services need too.
const LOOKUPS: usize = 32;

/// Hosts whose connections are kept.
const MAX_HOSTS: usize = 256;

/// One worker's connections to hosts that are no services.
pub struct Passthrough {
    load: Load,
    connections: Arc<Connections>,
    lookups: Arc<Semaphore>,
    /// By the address of the [`Reach`], which the pool keeps alive, and `host:port`: a pool belongs to one listener, as
    /// what it may connect to does.
    pools: RefCell<HashMap<(usize, String), Rc<Pool>>>,
}

impl Default for Passthrough {
    fn default() -> Self {
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        Self { load: Load::alone(), connections: Arc::default(), lookups, pools: RefCell::default() }
    }
}

impl Passthrough {
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
            },
            limits: LIMITS,
            connections: self.connections.clone(),
            max_connections: None,
            // Nobody would be asked to give up what is idle.
            max_waiting: 0,
            stream_idle_timeout: STREAM_IDLE_TIMEOUT,
        };
        let pool = Pool::new(target, &worker.timers, &worker.scratch);
        let mut pools = self.pools.borrow_mut();
        if pools.len() < MAX_HOSTS {
            pools.insert(key, pool.clone());
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
