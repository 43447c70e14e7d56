//! Idle connections of one worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::request::Parts;
use http::uri::Authority;

use super::connect::{ConnectSettings, Permit, connect};
use super::h1::{Connection, ExchangeError, ResponseBody};
use super::{Failure, h2};
use crate::config::checked;
use crate::proto::h1::{Framing, Scratch};
use crate::proto::{Body, Response};
use crate::service::{Endpoint, Load, Snapshot};
use crate::timer::Timers;
use crate::transport::Stream;

/// Where the requests of one pool go.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub address: Box<str>,
    /// The address, where it is an IP address.
    pub socket: Option<SocketAddr>,
    /// The endpoint's counters; of its own for a host that is no service.
    pub load: Load,
    pub protocol: checked::UpstreamProtocol,
    pub connect: ConnectSettings,
    pub limits: checked::Pool,
    /// How long a body may stand still.
    pub stream_idle_timeout: Duration,
}

struct Idle {
    connection: Connection,
    /// Tick of [`Timers`].
    since: u64,
}

/// Connections to one target.
pub struct Pool {
    pub target: Target,
    timers: Rc<Timers>,
    scratch: Rc<Scratch>,
    /// The one used last is at the end, and used first: the others can grow old.
    idle: RefCell<Vec<Idle>>,
    h2: h2::Shared,
    /// Set when the target is gone: connections that come home are closed.
    retired: Cell<bool>,
}

impl Pool {
    pub fn new(target: Target, timers: &Rc<Timers>, scratch: &Rc<Scratch>) -> Rc<Self> {
        Rc::new(Self {
            target,
            timers: timers.clone(),
            scratch: scratch.clone(),
            idle: RefCell::default(),
            h2: h2::Shared::default(),
            retired: Cell::new(false),
        })
    }

    /// One attempt of a request: on a pooled connection if there is one, else on a new one. A pooled connection that
    /// turns out to be dead before a byte of the response costs nothing but a second try on a new one, if the request
    /// can be sent again (RFC 9110, 9.2.2); `resent` is called then. No deadline is kept here but that of connecting.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub async fn attempt(
        self: &Rc<Self>,
        head: &Parts,
        body: Body,
        resent: impl FnOnce(),
    ) -> Result<Response, Failure> {
        if self.target.protocol == checked::UpstreamProtocol::Http2 {
            return self.h2.attempt(self, head, body, resent).await;
        }
        let Some(connection) = self.take() else {
            return self.exchange(self.connect_h1().await?, head, body).await.map_err(|error| self.failure(error));
        };
        match self.exchange(connection, head, body).await {
            Err(ExchangeError::Closed { body: Some(body) }) if head.method.is_idempotent() => {
                resent();
                self.exchange(self.connect_h1().await?, head, body).await.map_err(|error| self.failure(error))
            }
            result => result.map_err(|error| self.failure(error)),
        }
    }

    async fn exchange(
        self: &Rc<Self>,
        mut connection: Connection,
        request: &Parts,
        body: Body,
    ) -> Result<Response, ExchangeError> {
        let authority = request.uri.authority().map_or(&*self.target.address, Authority::as_str);
        let mut head = connection.exchange(request, authority, body).await?;
        let mut headers = std::mem::take(&mut head.headers);
        if head.framing == Framing::Chunked {
            headers.remove(http::header::CONTENT_LENGTH);
        }
        let body = ResponseBody::read(connection, &head, self, &self.timers, self.target.stream_idle_timeout);
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    async fn connect_h1(&self) -> Result<Connection, Failure> {
        let (io, permit) = self.connect().await?;
        Ok(Connection::new(io, self.scratch.clone(), permit))
    }

    /// A new connection, which the endpoint's limit allows.
    pub(super) async fn connect(&self) -> Result<(Stream, Permit), Failure> {
        let target = &self.target;
        let permit = Permit::take(&target.load, target.limits.max_connections)
            .ok_or_else(|| Failure::NoPermit { address: target.address.to_string() })?;
        let io = connect(&self.timers, &target.address, target.socket, target.connect).await?;
        Ok((io, permit))
    }

    fn take(&self) -> Option<Connection> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.is_usable() {
                return Some(idle.connection);
            }
        }
    }

    /// Takes a connection back.
    pub fn put(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.target.limits.max_idle && !self.retired.get() {
            idle.push(Idle { connection, since: self.timers.now() });
        }
    }

    /// Closes what has been idle for too long, or was closed by the endpoint.
    pub fn sweep(&self) {
        let timeout = self.target.limits.idle_timeout;
        self.idle
            .borrow_mut()
            .retain_mut(|idle| self.timers.since(idle.since) < timeout && idle.connection.is_usable());
        self.h2.sweep(&self.timers, timeout);
    }

    /// Closes everything that is idle, now and from now on.
    pub fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.h2.retire();
    }

    /// The timers of this worker.
    pub(super) fn timers(&self) -> &Rc<Timers> {
        &self.timers
    }

    /// Idle connections.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    fn failure(&self, error: ExchangeError) -> Failure {
        let address = self.target.address.to_string();
        match error {
            ExchangeError::Closed { .. } => Failure::Closed { address },
            ExchangeError::Broken(source) => Failure::Broken { address, source },
            ExchangeError::Malformed(what) => Failure::Malformed { address, what },
            ExchangeError::ClientBody(error) => Failure::ClientBody(error),
        }
    }
}

/// The pools of one service's endpoints, by slot.
#[derive(Default)]
pub struct Pools {
    by_slot: RefCell<HashMap<u32, Rc<Pool>, rustc_hash::FxBuildHasher>>,
}

impl Pools {
    /// The endpoint's pool; `make` makes it when there is none yet, or it was another endpoint's.
    pub fn get(&self, endpoint: &Endpoint, make: impl FnOnce() -> Rc<Pool>) -> Rc<Pool> {
        let mut pools = self.by_slot.borrow_mut();
        if let Some(pool) = pools.get(&endpoint.slot)
            && *pool.target.address == endpoint.registered.address
        {
            return pool.clone();
        }
        let pool = make();
        if let Some(other) = pools.insert(endpoint.slot, pool.clone()) {
            other.retire();
        }
        pool
    }

    /// Forgets the endpoints that are not registered any more, and closes what has been idle for too long.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.by_slot.borrow_mut().retain(|slot, pool| {
            let stays = snapshot.endpoint(*slot).is_some_and(|e| e.registered.address == *pool.target.address);
            if stays {
                pool.sweep();
            } else {
                pool.retire();
            }
            stays
        });
    }
}
