//! Idle connections of one worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::UPGRADE;
use http::request::Parts;
use http::uri::Authority;

use super::connect::{ConnectSettings, Offer, Opening, Permit, connect};
use super::h1::{Connection, ExchangeError, ResponseBody};
use super::{Failure, h2};
use crate::config::checked::{self, UpstreamProtocol};
use crate::proto::h1::{Framing, Scratch};
use crate::proto::{Body, Response};
use crate::service::{Endpoint, Load, Snapshot};
use crate::timer::Timers;
use crate::transport::Stream;
use crate::transport::tls::{Connector, H2, HTTP_1_1, TlsFailure};

/// Where the requests of one pool go.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub address: Box<str>,
    /// The address, where it is an IP address.
    pub socket: Option<SocketAddr>,
    /// The endpoint's counters; of its own for a host that is no service.
    pub load: Load,
    pub protocol: UpstreamProtocol,
    /// Begins TLS; none where there is none.
    pub tls: Option<Arc<Connector>>,
    pub connect: ConnectSettings,
    pub limits: checked::Pool,
    /// How long a body may stand still.
    pub stream_idle_timeout: Duration,
}

/// What an attempt has brought.
pub struct Reply {
    pub response: Response,
    /// The connection, where the response has changed the protocol that is spoken on it: after a 101 to a request with
    /// `Upgrade`, and only then. Whether it has changed to the right one is for the caller to see.
    pub upgraded: Option<(Stream, Permit)>,
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Self { response, upgraded: None }
    }
}

impl Target {
    /// Whether connections may turn out to carry HTTP/2.
    pub fn may_speak_http2(&self) -> bool {
        match self.protocol {
            UpstreamProtocol::Negotiated => self.tls.is_some(),
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
        }
    }
}

/// A connection, or a part of one, that can carry an exchange.
#[expect(clippy::large_enum_variant, reason = "it is never kept, and a box would be made for every request")]
enum Open {
    Http1(Connection),
    Http2(h2::Exchange),
}

/// An exchange that has brought no response.
pub(super) struct Failed {
    pub failure: Failure,
    /// The request's body, if the request can be sent again on another connection.
    pub again: Option<Body>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, again: None }
    }
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
    /// Whether HTTP/1.1 was agreed on last.
    spoke_http1: Cell<bool>,
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
            spoke_http1: Cell::new(false),
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
    pub async fn attempt(self: &Rc<Self>, head: &Parts, body: Body, resent: impl FnOnce()) -> Result<Reply, Failure> {
        // Only HTTP/1.1 can be changed for another protocol.
        let http1 = self.target.may_speak_http2() && head.headers.contains_key(UPGRADE);
        let body = match self.pooled(http1) {
            None => body,
            Some(pooled) => match self.exchange(pooled, head, body).await {
                Err(Failed { again: Some(body), .. }) => {
                    resent();
                    body
                }
                result => return result.map_err(|failed| failed.failure),
            },
        };
        let opened = if http1 { self.open_http1().await? } else { self.open().await? };
        self.exchange(opened, head, body).await.map_err(|failed| failed.failure)
    }

    async fn exchange(self: &Rc<Self>, on: Open, head: &Parts, body: Body) -> Result<Reply, Failed> {
        match on {
            Open::Http2(exchange) => exchange.run(head, body).await.map(Reply::from),
            Open::Http1(connection) => self.exchange_h1(connection, head, body).await.map_err(|error| match error {
                ExchangeError::Closed { body: again } => Failed {
                    failure: Failure::Closed { address: self.target.address.to_string() },
                    again: again.filter(|_| head.method.is_idempotent()),
                },
                error => self.failure(error).into(),
            }),
        }
    }

    /// A connection that is there already and takes another request; one of HTTP/1.1 if it has to be.
    fn pooled(self: &Rc<Self>, http1: bool) -> Option<Open> {
        let http2 = if http1 { None } else { self.h2.pooled(self) };
        http2.map(Open::Http2).or_else(|| self.take().map(Open::Http1))
    }

    /// A new connection of HTTP/1.1.
    async fn open_http1(&self) -> Result<Open, Failure> {
        let (io, _, permit) = self.connect_with(&[HTTP_1_1]).await?;
        Ok(Open::Http1(Connection::new(io, self.scratch.clone(), permit)))
    }

    /// A new connection, or a place on one that somebody else has opened in the meantime.
    async fn open(self: &Rc<Self>) -> Result<Open, Failure> {
        let mut turn = None;
        if !self.expects_http1() {
            turn = Some(self.h2.opening.lock().await);
            if let Some(opened) = self.h2.pooled(self) {
                return Ok(Open::Http2(opened));
            }
        }
        // Who was before may have found out that each request needs a connection of its own.
        let _turn = turn.filter(|_| !self.expects_http1());
        let offered: &[&[u8]] = match self.target.protocol {
            UpstreamProtocol::Negotiated => &[H2, HTTP_1_1],
            UpstreamProtocol::Http1 => &[HTTP_1_1],
            UpstreamProtocol::Http2 => &[H2],
        };
        let (io, agreed, permit) = self.connect_with(offered).await?;
        // An endpoint that does not negotiate at all speaks what it is said to.
        if agreed || self.target.protocol == UpstreamProtocol::Http2 {
            self.spoke_http1.set(false);
            return self.h2.begin(self, io, permit).await.map(Open::Http2);
        }
        self.spoke_http1.set(true);
        Ok(Open::Http1(Connection::new(io, self.scratch.clone(), permit)))
    }

    /// Whether a new connection is for one request at a time, as far as is known: what was agreed on last is most
    /// likely agreed on again.
    fn expects_http1(&self) -> bool {
        !self.target.may_speak_http2() || self.target.protocol == UpstreamProtocol::Negotiated && self.spoke_http1.get()
    }

    async fn exchange_h1(
        self: &Rc<Self>,
        mut connection: Connection,
        request: &Parts,
        body: Body,
    ) -> Result<Reply, ExchangeError> {
        let authority = request.uri.authority().map_or(&*self.target.address, Authority::as_str);
        let mut head = connection.exchange(request, authority, body).await?;
        let mut headers = std::mem::take(&mut head.headers);
        if head.framing == Framing::Chunked {
            headers.remove(http::header::CONTENT_LENGTH);
        }
        let (body, upgraded) = if head.status == http::StatusCode::SWITCHING_PROTOCOLS {
            (Body::Empty, Some(connection.into_stream()))
        } else {
            (ResponseBody::read(connection, &head, self), None)
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = headers;
        Ok(Reply { response, upgraded })
    }

    /// A new connection for a tunnel, on which no protocol is agreed on. `header` goes before everything else. Without
    /// `with_tls` there is none of the proxy's own, whatever the target speaks.
    ///
    /// # Errors
    ///
    /// When there are as many connections as the endpoint's limit allows, or none comes about in time.
    pub async fn connect_tunnel(&self, header: &[u8], with_tls: bool) -> Result<(Stream, Permit), Failure> {
        self.connect_saying(header, with_tls.then_some(&[])).await.map(|(io, _, permit)| (io, permit))
    }

    /// A new connection for exchanges, with these protocols offered where there is TLS; and whether HTTP/2 was agreed
    /// on.
    async fn connect_with(&self, protocols: &[&[u8]]) -> Result<(Stream, bool, Permit), Failure> {
        self.connect_saying(&[], Some(protocols)).await
    }

    async fn connect_saying(
        &self,
        header: &[u8],
        protocols: Option<&[&[u8]]>,
    ) -> Result<(Stream, bool, Permit), Failure> {
        let target = &self.target;
        let permit = Permit::take(&target.load, target.limits.max_connections)
            .ok_or_else(|| Failure::NoPermit { address: target.address.to_string() })?;
        let tls = target.tls.as_ref().zip(protocols).map(|(connector, protocols)| Offer { connector, protocols });
        let opening = Opening { header, tls };
        let (io, http2) = connect(&self.timers, &target.address, target.socket, &target.connect, opening).await?;
        Ok((io, http2, permit))
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
            ExchangeError::Broken(source) => match TlsFailure::of(&source) {
                Some(source) => Failure::Tls { address, source },
                None => Failure::Broken { address, source },
            },
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

    /// Closes everything that is idle, now and from now on.
    pub fn retire(&self) {
        self.by_slot.borrow_mut().drain().for_each(|(_, pool)| pool.retire());
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
