//! Idle connections of one worker.

mod by_slot;
mod holds;
mod turns;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::UPGRADE;
use http::request::Parts;
use http::uri::Authority;

pub use self::by_slot::Pools;
use self::holds::Holds;
pub use self::holds::{Held, Hold};
use self::turns::Granted;
use super::chain::Link;
use super::connect::{ConnectSettings, Offer, Opening, connect};
use super::h1::{Connection, ExchangeError, ResponseBody};
use super::{Failure, h2};
use crate::config::checked::{self, UpstreamProtocol};
use crate::descriptors::Descriptors;
use crate::proto::h1::{Framing, Scratch};
use crate::proto::{Body, Response};
use crate::service::{Connections, Endpoint, Load, Permit, Reuse};
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
    /// All connections of the service, over all workers.
    pub connections: Arc<Connections>,
    /// Of which each connection takes one.
    pub descriptors: Arc<Descriptors>,
    /// How many of these there may be; none for any number.
    pub max_connections: Option<u32>,
    /// How many may wait for one of these.
    pub max_waiting: usize,
    /// How long a body may stand still.
    pub stream_idle_timeout: Duration,
}

/// How far an attempt has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It waits for the right to a connection, or for one that somebody else opens.
    #[default]
    Waiting,
    /// A connection is being opened for it.
    Connecting,
    /// A byte of the request may have reached the endpoint.
    Sent,
    /// The same, and its time was over before there was a response.
    Late,
}

/// What an attempt has brought.
pub struct Reply {
    pub response: Response,
    /// The connection, where the response has changed the protocol that is spoken on it: after a 101 to a request with
    /// `Upgrade`, and only then. Whether it has changed to the right one is for the caller to see.
    pub upgraded: Option<Box<(Stream, Permit)>>,
    /// What the exchange holds of the endpoint.
    pub hold: Option<Hold>,
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Self { response, upgraded: None, hold: None }
    }
}

impl Target {
    /// Whether connections may turn out to carry HTTP/2.
    pub fn may_speak_http2(&self) -> bool {
        self.protocol.may_be_http2(self.tls.is_some())
    }
}

/// A connection, or a part of one, that can carry an exchange.
pub(super) enum Open {
    Http1(Box<Connection>),
    Http2(h2::Exchange),
}

/// An exchange that has brought no response.
pub(super) struct Failed {
    pub failure: Failure,
    /// The request's body, if the request can be sent again on another connection.
    pub again: Option<Body>,
    /// Whether a byte of the request may have reached the endpoint.
    pub sent: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, again: None, sent: true }
    }
}

struct Idle {
    connection: Box<Connection>,
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
    /// What has come home for those who wait, by their number, until they take it.
    handed: RefCell<Vec<(u64, Open)>>,
    holds: Holds,
    /// How many of this pool wait.
    waiting: Cell<usize>,
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
            handed: RefCell::default(),
            holds: Holds::default(),
            waiting: Cell::new(0),
            spoke_http1: Cell::new(false),
            retired: Cell::new(false),
        })
    }

    /// One attempt of a request: on a pooled connection if there is one, else on a new one. A pooled connection that
    /// turns out to be dead, or full, before a byte of the response costs nothing but a second try on a new one, if the
    /// request can be sent again (RFC 9110, 9.2.2; RFC 9113, 8.7); `resent` is called then. No deadline is kept here but
    /// that of connecting. `stage` says at any time how far it has come, and `hold` what it holds.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub async fn attempt(
        self: &Rc<Self>,
        head: &Parts,
        body: Body,
        hold: &Hold,
        stage: &Cell<Stage>,
        resent: impl FnOnce(),
    ) -> Result<Reply, Failure> {
        // Only HTTP/1.1 can be changed for another protocol.
        let http1 = self.target.may_speak_http2() && head.headers.contains_key(UPGRADE);
        let (open, is_used) = match self.pooled(http1) {
            Some(pooled) => (pooled, true),
            None => self.open(http1, if http1 { Reuse::Http1 } else { Reuse::Any }, hold, stage).await?,
        };
        if is_used {
            hold.begin();
        }
        let body = match self.exchange(open, head, body, stage).await {
            Err(Failed { again: Some(body), .. }) if is_used => body,
            result => return result.map_err(|failed| failed.failure),
        };
        resent();
        let (open, _) = self.open(http1, Reuse::None, hold, stage).await?;
        self.exchange(open, head, body, stage).await.map_err(|failed| failed.failure)
    }

    async fn exchange(
        self: &Rc<Self>,
        on: Open,
        head: &Parts,
        body: Body,
        stage: &Cell<Stage>,
    ) -> Result<Reply, Failed> {
        let before = stage.replace(Stage::Sent);
        let exchanged = match on {
            Open::Http2(exchange) => exchange.run(head, body, stage).await.map(Reply::from),
            Open::Http1(connection) => self.exchange_h1(connection, head, body).await.map_err(|error| match error {
                ExchangeError::Closed { body: again, sent } => Failed {
                    failure: Failure::Closed { address: self.target.address.to_string() },
                    again: again.filter(|_| head.method.is_idempotent() || !sent),
                    sent,
                },
                error => self.failure(error).into(),
            }),
        };
        if let Err(Failed { sent: false, .. }) = &exchanged {
            stage.set(before);
        }
        exchanged
    }

    /// A connection that is there already and takes another request; one of HTTP/1.1 if it has to be.
    fn pooled(self: &Rc<Self>, http1: bool) -> Option<Open> {
        let http2 = if http1 { None } else { self.h2.pooled(self) };
        http2.map(Open::Http2).or_else(|| self.take().map(Open::Http1))
    }

    /// A new connection; or a place on one that somebody else has opened in the meantime, or where there may be no more
    /// connections, one that has come home, and then true. It is of HTTP/1.1 if it has to be.
    async fn open(
        self: &Rc<Self>,
        http1: bool,
        reuse: Reuse,
        hold: &Hold,
        stage: &Cell<Stage>,
    ) -> Result<(Open, bool), Failure> {
        let mut turn = None;
        if !http1 && !self.expects_http1() {
            turn = Some(self.turn_to_open().await?);
            if let Some(opened) = self.h2.pooled(self) {
                return Ok((Open::Http2(opened), true));
            }
        }
        // Who was before may have found out that each request needs a connection of its own.
        let _turn = turn.filter(|_| !self.expects_http1());
        let permit = match self.permit(reuse, hold).await? {
            Granted::Permit(permit) => permit,
            Granted::Home(open) => return Ok((open, true)),
        };
        stage.set(stage.get().max(Stage::Connecting));
        let offered: &[&[u8]] = match self.target.protocol {
            _ if http1 => &[HTTP_1_1],
            UpstreamProtocol::Negotiated | UpstreamProtocol::Opaque => &[H2, HTTP_1_1],
            UpstreamProtocol::Http1 => &[HTTP_1_1],
            UpstreamProtocol::Http2 => &[H2],
        };
        let (io, agreed) = self.connect(&[], Some(offered), None).await?;
        // An endpoint that does not negotiate at all speaks what it is said to.
        if !http1 && (agreed || self.target.protocol == UpstreamProtocol::Http2) {
            self.spoke_http1.set(false);
            return self.h2.begin(self, io, permit).await.map(|exchange| (Open::Http2(exchange), false));
        }
        if !http1 {
            self.spoke_http1.set(true);
        }
        Ok((Open::Http1(Box::new(Connection::new(io, self.scratch.clone(), permit))), false))
    }

    /// Whether a new connection is for one request at a time, as far as is known: what was agreed on last is most
    /// likely agreed on again.
    fn expects_http1(&self) -> bool {
        let is_agreed_on = matches!(self.target.protocol, UpstreamProtocol::Negotiated | UpstreamProtocol::Opaque);
        !self.target.may_speak_http2() || is_agreed_on && self.spoke_http1.get()
    }

    async fn exchange_h1(
        self: &Rc<Self>,
        mut connection: Box<Connection>,
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
            (Body::Empty, Some(Box::new(connection.into_stream())))
        } else {
            (ResponseBody::read(connection, &head, self), None)
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = headers;
        Ok(Reply { response, upgraded, hold: None })
    }

    /// A new connection for a tunnel, on which no protocol is agreed on, with this place in its chain. `header` goes before everything else. Without
    /// `with_tls` there is none of the proxy's own, whatever the target speaks. `stage` says at any time how far it has
    /// come.
    ///
    /// # Errors
    ///
    /// When there are as many connections as may be and none of them ends in time, or none comes about in time.
    pub async fn connect_tunnel(
        &self,
        header: &[u8],
        with_tls: bool,
        link: &Link,
        hold: &Hold,
        stage: &Cell<Stage>,
    ) -> Result<(Stream, Permit), Failure> {
        let Granted::Permit(permit) = self.permit(Reuse::None, hold).await? else { return Err(self.no_permit()) };
        stage.set(Stage::Connecting);
        Ok((self.connect(header, with_tls.then_some(&[]), Some(link)).await?.0, permit))
    }

    /// Why there is no response to an attempt whose time is over at this stage. To be asked while it still waits.
    pub fn late(&self, stage: Stage) -> Failure {
        let address = self.target.address.to_string();
        match stage {
            // Where it waits for somebody who opens a connection, that one may wait for the right to.
            Stage::Waiting if self.waiting.get() > 0 => self.no_permit(),
            Stage::Waiting | Stage::Connecting => Failure::ConnectTimeout { address },
            Stage::Sent | Stage::Late => Failure::Timeout { address },
        }
    }

    /// A new connection, with these protocols offered where there is TLS, none for no TLS; and whether HTTP/2 was
    /// agreed on. `header` goes before everything else.
    async fn connect(
        &self,
        header: &[u8],
        protocols: Option<&[&[u8]]>,
        link: Option<&Link>,
    ) -> Result<(Stream, bool), Failure> {
        let target = &self.target;
        let tls = target.tls.as_ref().zip(protocols).map(|(connector, protocols)| Offer { connector, protocols });
        let opening = Opening { header, tls, link };
        connect(&self.timers, &target.address, target.socket, &target.connect, opening).await
    }

    fn take(&self) -> Option<Box<Connection>> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.is_usable() {
                return Some(idle.connection);
            }
        }
    }

    /// Takes a connection back.
    pub fn put(&self, connection: Box<Connection>) {
        let Some(connection) = self.unless_awaited(connection) else { return };
        let mut idle = self.idle.borrow_mut();
        let is_kept = idle.len() < self.target.limits.max_idle && !self.target.descriptors.is_scarce();
        if is_kept && !self.retired.get() {
            idle.push(Idle { connection, since: self.timers.now() });
        }
    }

    /// Closes what has been idle for too long, or was closed by the endpoint.
    pub fn sweep(&self) {
        let is_scarce = self.target.descriptors.is_scarce();
        let timeout = if is_scarce { Duration::ZERO } else { self.target.limits.idle_timeout };
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

    pub(super) fn h2(&self) -> &h2::Shared {
        &self.h2
    }

    /// Whether its connections are to this endpoint, and may be.
    fn is_of(&self, endpoint: &Endpoint) -> bool {
        *self.target.address == endpoint.registered.address
            && self.target.connect.egress.as_ref() == Some(&endpoint.registered.egress)
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
