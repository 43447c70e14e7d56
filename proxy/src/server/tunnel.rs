//! Bytes that are passed on as they are: TCP listeners, tunnels to services and to other hosts, upgraded connections.
//!
//! A tunnel is balanced once, when it begins, by the same balancers and with the same deadlines as a request, and counts
//! as one request under way at its endpoint for as long as it lives: a policy that looks for the fewest requests finds
//! the fewest connections.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::admit::admit;
use super::connection::Connection;
use super::h1;
use super::local::LocalService;
use super::outcome;
use super::refusal::Refusal;
use super::retries::{Attempting, Retries};
use super::visit::Visit;
use super::worker::Worker;
use crate::policy::{Facts, Kind, Outcome};
use crate::service::{Admitted, Client, InFlight, Limit, ServiceStats, TunnelEnd};
use crate::transport::proxy_protocol::{self, Addresses};
use crate::transport::{Direction, Parted, Stream};
use crate::upstream::{Failure, Hold, Link, Permit, Pool, Stage};

/// How long a tunnel to a host that is no service may stand still: as one to a service by default.
pub(super) const IDLE_TO_HOST: Duration = Duration::from_secs(60 * 60);

/// What a client sends that is passed on as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// It reaches endpoints as the service says: over TLS, if they speak it.
    Plain,
    /// The client's own TLS with the endpoint, which is not put into another.
    Tls,
}

/// A tunnel whose other end is there.
pub struct Tunnel {
    other: Stream,
    hold: Option<Hold>,
    idle_timeout: Duration,
    record: Record,
    _held: Held,
}

/// What a tunnel counts as, for as long as it lives.
pub struct Held {
    /// One of the endpoint's connections.
    pub permit: Permit,
    /// One of the requests under way at the endpoint.
    pub in_flight: Option<InFlight>,
    /// One of the requests of the service.
    pub admitted: Option<Admitted>,
    /// Its place among the tunnels that lead to each other.
    pub link: Option<Link>,
}

/// Records a tunnel when it ends, or is given up.
struct Record {
    stats: Arc<ServiceStats>,
    end: Cell<TunnelEnd>,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.stats.tunnels.ended(self.end.get());
    }
}

impl Tunnel {
    /// A tunnel to the other side of this connection, which is one of an endpoint's, counted from now on.
    pub fn new(
        other: Stream,
        hold: Option<Hold>,
        held: Held,
        stats: &Arc<ServiceStats>,
        idle_timeout: Duration,
    ) -> Self {
        if let Some(hold) = &hold {
            hold.set_body(true);
        }
        stats.tunnels.opened.add(1);
        let record = Record { stats: stats.clone(), end: Cell::new(TunnelEnd::Stopped) };
        Self { other, hold, idle_timeout, record, _held: held }
    }

    /// The proxy's own address on the other side.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.other.as_tcp()?.local_addr().ok()
    }

    /// Passes on bytes until the tunnel ends.
    pub async fn run(self, connection: &Connection, stream: Stream) {
        let _under_way = connection.worker.begin();
        let tunnels = &self.record.stats.tunnels;
        let moved = |direction, bytes: usize| {
            match direction {
                Direction::Sent => tunnels.sent.add(bytes as u64),
                Direction::Received => tunnels.received.add(bytes as u64),
            }
            if let Some(hold) = &self.hold {
                hold.moved(bytes);
            }
        };
        let joined = connection.worker.relays.join(stream, self.other, self.idle_timeout, moved);
        let mut joined = pin!(while_accepted(connection, joined));
        let parted = poll_fn(|cx| {
            if self.hold.as_ref().is_some_and(|hold| hold.poll_ended(cx).is_ready()) {
                return Poll::Ready(None);
            }
            joined.as_mut().poll(cx).map(Some)
        });
        let Some(parted) = parted.await else {
            self.record.stats.limited(Limit::ClientShare);
            return;
        };
        self.record.end.set(match parted {
            Parted::Ended => TunnelEnd::Closed,
            Parted::Idle => TunnelEnd::Idle,
            Parted::Broken(error) => {
                tracing::debug!(target: "heddle::server", client = %connection.client, "a tunnel broke: {error}");
                TunnelEnd::Broken
            }
        });
    }
}

/// How often a tunnel looks whether its client's certificate is still accepted.
const RECHECK: Duration = Duration::from_secs(15);

/// Goes on for as long as the client's certificate is accepted: who has lost a key, or been dismissed, has lost what it
/// has open too. One that has merely expired is good for the tunnels that were opened with it, which nobody could be asked
/// to open again.
async fn while_accepted(connection: &Connection, joined: impl Future<Output = Parted>) -> Parted {
    if connection.proof.is_none() {
        return joined.await;
    }
    let mut joined = pin!(joined);
    loop {
        match connection.worker.timers.within(RECHECK, joined.as_mut()).await {
            Ok(parted) => return parted,
            Err(_) if connection.is_revoked() => return Parted::Broken(io::Error::other(Refusal::Revoked.to_string())),
            Err(_) => {}
        }
    }
}

/// Opens a tunnel to an endpoint of a service.
///
/// # Errors
///
/// When there is no endpoint, or no connection to it.
pub async fn to_service(
    connection: &Connection,
    local: &Rc<LocalService>,
    content: Content,
) -> Result<Tunnel, Refusal> {
    let opened = open_to_service(connection, local, content).await;
    if let Err(refusal) = &opened {
        local.stats.tunnels.refused.add(1);
        refusal.count_limit(&local.stats);
    }
    opened
}

async fn open_to_service(
    connection: &Connection,
    local: &Rc<LocalService>,
    content: Content,
) -> Result<Tunnel, Refusal> {
    let Connection { worker, client, peer, .. } = connection;
    let settings = &local.service.settings;
    let addresses = Addresses { source: *client, destination: connection.local };
    let header = settings.proxy_protocol.map(|version| proxy_protocol::encode(version, &addresses));
    if connection.is_revoked() {
        return Err(Refusal::Revoked);
    }
    let link = Link::after(connection.source).ok_or(Refusal::Loop)?;
    let _service_probe = local.enter()?;
    let began = Instant::now();
    let mut retries = Retries::begin(local, &worker.timers, began, None);
    let (admitted, at) = admit(&local.service, &worker.timers, began, retries.until).await?;
    retries.admitted(at);
    let asked = Asked { client: Client::of(client.ip()), header: header.unwrap_or_default(), content, link: &link };
    let mut opening = Opening { worker, local, asked, began };
    let facts = Facts::of_connection(client.ip(), peer.clone());
    let ((other, permit, hold), mut visit, _) = retries.run(facts, &mut opening).await?;
    let held = Held { permit, in_flight: visit.take_in_flight(), admitted, link: Some(link) };
    Ok(Tunnel::new(other, Some(hold), held, &local.stats, settings.tunnel_idle_timeout))
}

/// A tunnel that is being opened, as all attempts at it see it.
struct Opening<'a> {
    worker: &'a Worker,
    local: &'a Rc<LocalService>,
    asked: Asked<'a>,
    began: Instant,
}

/// The connection that a tunnel needs.
struct Asked<'a> {
    client: Client,
    /// What it begins with.
    header: Vec<u8>,
    content: Content,
    link: &'a Link,
}

impl Attempting for Opening<'_> {
    type Brought = (Stream, Permit, Hold);

    /// Nothing of what the client sends has been sent.
    fn is_replayable(&self) -> bool {
        true
    }

    async fn attempt(&mut self, visit: &mut Visit, retries: &Retries<'_>) -> (Result<Self::Brought, Refusal>, Outcome) {
        let Self { worker, local, asked, began } = self;
        let pool = local.pool(&visit.endpoint, worker);
        let stage = Cell::default();
        let connecting = async { connect(&pool, &local.stats, asked, &stage).await.map_err(Refusal::from) };
        let connected = match retries.until {
            None => connecting.await,
            Some(tick) => {
                let left = worker.timers.until(tick);
                worker.timers.within(left, connecting).await.unwrap_or(Err(Refusal::Deadline))
            }
        };
        let (latency, elapsed) = (visit.started.elapsed(), began.elapsed());
        let outcome = match &connected {
            Ok(_) => {
                visit.endpoint.load.observe_latency(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
                Outcome::of(Kind::Response, latency)
            }
            Err(refusal) => outcome::of_refusal(refusal, stage.get(), latency, elapsed),
        };
        let outcome = Outcome { replayable: true, elapsed, ..outcome };
        visit.tell(&outcome);
        (connected, outcome)
    }
}

/// Opens a tunnel to a host that is no service.
///
/// # Errors
///
/// When there is no connection to it, or none is allowed.
pub async fn to_host(connection: &Connection, pool: &Rc<Pool>) -> Result<Tunnel, Refusal> {
    let stats = &connection.worker.passed_through;
    let Some(link) = Link::after(connection.source) else {
        stats.tunnels.refused.add(1);
        return Err(Refusal::Loop);
    };
    let client = Client::of(connection.client.ip());
    let asked = Asked { client, header: Vec::new(), content: Content::Tls, link: &link };
    match connect(pool, stats, &asked, &Cell::default()).await {
        Ok((other, permit, hold)) => {
            let held = Held { permit, in_flight: None, admitted: None, link: Some(link) };
            Ok(Tunnel::new(other, Some(hold), held, stats, IDLE_TO_HOST))
        }
        Err(failure) => {
            stats.tunnels.refused.add(1);
            Err(failure.into())
        }
    }
}

/// A connection that is nobody else's, before or after.
async fn connect(
    pool: &Rc<Pool>,
    stats: &ServiceStats,
    asked: &Asked<'_>,
    stage: &Cell<Stage>,
) -> Result<(Stream, Permit, Hold), Failure> {
    let hold = pool.hold(asked.client);
    let with_tls = asked.content == Content::Plain;
    let connected = pool.connect_tunnel(&asked.header, with_tls, asked.link, &hold, stage).await;
    if connected.is_err() {
        stats.failed_attempts.add(1);
    }
    connected.map(|(stream, permit)| (stream, permit, hold))
}

/// Passes on what is none of the protocols that are looked into: to the service of the listener, or of the tunnel that
/// it is inside of. A client that cannot be served is closed.
pub async fn serve(connection: &Connection, stream: Stream, content: Content) {
    let Connection { worker, client, .. } = connection;
    let under_way = worker.begin();
    let opened = match connection.service() {
        Some(local) => to_service(connection, &local, content).await,
        None => {
            worker.unrouted.tunnels.refused.add(1);
            Err(Refusal::Unsupported("a protocol that names no service"))
        }
    };
    match opened {
        Ok(tunnel) => tunnel.run(connection, stream).await,
        Err(refusal) => {
            tracing::debug!(target: "heddle::server", %client, "{refusal}");
            drop(under_way);
            h1::close(worker, stream, false).await;
        }
    }
}
