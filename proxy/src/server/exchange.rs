//! The path of one request, from its head to its response's head.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, TE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::attempt::{Attempt, BodyLimits, LEAST_PACE};
use super::attempts::{self, Answered, Held};
use super::connection::{Connection, Inside};
use super::destination::{self, Destination};
use super::first_byte;
use super::local::LocalService;
use super::passthrough;
use super::record::{Limits, Record};
use super::refusal::Refusal;
use super::route::{Named, check_asterisk, named, target};
use super::tunnel::{self, Tunnel};
use crate::config::checked::{Forwarded, UpstreamProtocol};
use crate::policy::Facts;
use crate::proto::deadline::{self, Due};
use crate::proto::headers::{
    ClientSide, forward, identify, join_cookies, strip_expect, strip_hop_by_hop, takes_trailers,
};
use crate::proto::names::strip_lookalikes;
use crate::proto::upgrade::{ExtendedConnect, Upgrade};
use crate::proto::{Body, Request, Response, grpc};
use crate::service::{Client, ServiceStats};
use crate::timer::{Deadline, Timers};
use crate::upstream::h1::Malformed;
use crate::upstream::{Failure, Pool, Reply};

/// What a request is answered with.
pub struct Answer {
    pub response: Response,
    /// What becomes of the connection, or of the HTTP/2 stream, once the response's head has been written.
    pub next: Option<Next>,
}

/// What follows the last response on a connection, or on an HTTP/2 stream.
pub enum Next {
    /// A tunnel to a service: what is spoken inside is looked into.
    Inside(Inside),
    /// A tunnel to another host, or the protocol that both sides have changed to.
    Relay(Box<Tunnel>),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, next: None }
    }
}

/// Serves one request.
pub async fn serve(connection: Rc<Connection>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let mut head = Box::new(head);
    let mut call = Call::new(&connection, &head);
    if head.method == Method::CONNECT && head.extensions.get::<ExtendedConnect>().is_none() {
        return connect(&connection, &head, &body, &call).await;
    }
    let terms = call.read_terms(&connection, &mut head, &body);
    let destination = match terms.and_then(|()| find_destination(&connection, &head)) {
        Ok(destination) => destination,
        Err(refusal) => return call.refused(&refusal, &connection.worker.unrouted),
    };
    let body = match call.begun(&connection, &destination, &head, body).await {
        Ok(body) => body,
        Err(refusal) => return call.refused(&refusal, destination.stats(&connection.worker)),
    };
    match destination {
        Destination::Service(local) => to_service(&connection, &local, head, body, call).await,
        Destination::Host(pool) => to_host(&connection, &pool, head, body, call).await,
    }
}

/// Opens a tunnel (RFC 9110, 9.3.6).
async fn connect(connection: &Connection, head: &Parts, body: &Body, call: &Call) -> Answer {
    let opened = match target(head, body) {
        Ok(_) if connection.worker.common().signature.is_on(&head.headers) => Err(Refusal::Loop),
        Ok((host, port)) => destination::open(connection, host, port).await,
        Err(refusal) => Err(refusal),
    };
    match opened {
        Ok(next) => Answer { response: Response::default(), next: Some(next) },
        Err(refusal) => call.refused(&refusal, &connection.worker.unrouted),
    }
}

fn find_destination(connection: &Connection, head: &Parts) -> Result<Destination, Refusal> {
    if connection.worker.common().signature.is_on(&head.headers) {
        return Err(Refusal::Loop);
    }
    check_asterisk(head)?;
    let Named { host, absolute } = named(head)?;
    destination::find(connection, host, absolute.map(|target| target.port_u16().unwrap_or(80)))
}

async fn to_service(
    connection: &Connection,
    local: &Rc<LocalService>,
    mut head: Box<Parts>,
    body: Body,
    mut call: Call,
) -> Answer {
    let Connection { client, peer, .. } = connection;
    let settings = &local.service.settings;
    if connection.listener.settings.asks_for_certificates() && settings.protocol != UpstreamProtocol::Opaque {
        // What follows a change to an unknown protocol could be requests: see [`super::layer`].
        call.upgrade = call.upgrade.take().and_then(Upgrade::to_websocket);
    }
    if call.upgrade.is_some() && settings.protocol == UpstreamProtocol::Http2 {
        return call
            .refused(&Refusal::Unsupported("an upgrade for a service whose endpoints speak HTTP/2"), &local.stats);
    }
    prepare_request(&mut head, connection, settings.protocol, settings.tls.is_some(), call.upgrade.as_ref());
    identify(&mut head.headers, peer.as_ref().and_then(|peer| peer.identity.as_deref()));
    let facts = Facts::new(head, client.ip(), peer.clone());
    match attempts::send(connection, local, &call, facts, body).await {
        Ok(answered) => {
            let way = Way {
                stats: &local.stats,
                stream_idle_timeout: settings.stream_idle_timeout,
                tunnel_idle_timeout: settings.tunnel_idle_timeout,
            };
            way.back(answered, call, &connection.worker.timers)
        }
        Err(refusal) => call.refused(&refusal, &local.stats),
    }
}

async fn to_host(connection: &Connection, pool: &Rc<Pool>, mut head: Box<Parts>, body: Body, call: Call) -> Answer {
    let Pool { target, .. } = &**pool;
    let stats = &connection.worker.passed_through;
    prepare_request(&mut head, connection, target.protocol, target.tls.is_some(), call.upgrade.as_ref());
    // Who the client is, is for services only.
    identify(&mut head.headers, None);
    let deadline_header = connection.listener.settings.deadline_header.as_ref();
    // Not what the client has not said itself.
    let deadline_header = deadline_header.filter(|name| head.headers.contains_key(*name));
    if let Err(refusal) = call.tell_time_left(&mut head.headers, deadline_header) {
        return call.refused(&refusal, stats);
    }
    let in_flight = Some(target.load.begin());
    let attempt = Attempt {
        pool,
        client: Client::of(connection.client.ip()),
        stats,
        timeout: passthrough::REQUEST_TIMEOUT,
        body: call.body_limits(target.stream_idle_timeout, connection),
        idle_timeout: target.stream_idle_timeout,
        until: call.deadline.as_ref().map(Deadline::tick),
        stage: &Cell::default(),
    };
    let result = attempt.run(&connection.worker.timers, &head, body).await;
    match result.and_then(|(reply, upload)| Ok((call.checked(reply, pool)?, upload))) {
        Ok((reply, upload)) => {
            let way = Way {
                stats,
                stream_idle_timeout: target.stream_idle_timeout,
                tunnel_idle_timeout: tunnel::IDLE_TO_HOST,
            };
            let held = Held { in_flight, ..Held::default() };
            way.back(Answered { reply, upload, held }, call, &connection.worker.timers)
        }
        Err(refusal) => {
            stats.failed_attempts.add(1);
            call.refused(&refusal, stats)
        }
    }
}

/// What holds for a request from its head to the end of its response.
pub(super) struct Call {
    pub started: Instant,
    /// Whether the client expects errors to be told in gRPC's way.
    pub is_grpc: bool,
    version: Version,
    /// When the response must have ended: by the listener's setting, or by what the caller says, if that is sooner.
    /// It is kept on the coarse clock of [`Timers`], up to a tenth of a second late.
    pub deadline: Option<Deadline>,
    /// The same to the microsecond, to be passed on.
    due: Option<Due>,
    /// Whether it is the caller that waits no longer.
    is_impatient: bool,
    /// The protocol that the client wants to change to.
    pub upgrade: Option<Upgrade>,
    /// Whether a refusal may name addresses.
    shows_addresses: bool,
    /// Whether the client has to send the body at a pace while there is no response.
    is_paced: bool,
}

impl Call {
    fn new(connection: &Connection, head: &Parts) -> Self {
        let is_grpc = grpc::is_call(&head.headers);
        Self {
            started: Instant::now(),
            is_grpc,
            version: head.version,
            deadline: None,
            due: None,
            is_impatient: false,
            upgrade: None,
            shows_addresses: connection.listener.settings.expose_addresses,
            is_paced: false,
        }
    }

    /// The request's body, once it has begun, if it has to before the request goes on.
    ///
    /// # Errors
    ///
    /// When nothing of it comes in time, or it breaks.
    async fn begun(
        &mut self,
        connection: &Connection,
        destination: &Destination,
        head: &Parts,
        body: Body,
    ) -> Result<Body, Refusal> {
        let Body::Stream(stream) = body else { return Ok(body) };
        // What becomes another protocol has no body in the sense of HTTP.
        if self.upgrade.is_some() {
            return Ok(Body::Stream(stream));
        }
        self.is_paced = !grpc::is_of_grpc(&head.headers);
        if first_byte::is_needed_first(&head.headers, head.version) || !destination.may_be_reached() {
            return Ok(Body::Stream(stream));
        }
        let patience = connection.listener.settings.body_timeout;
        first_byte::arrived(stream, patience, self.deadline.as_mut(), &connection.worker.timers).await
    }

    /// How long the client may take for the body while there is no response, at a destination with this idle timeout.
    pub fn body_limits(&self, idle_timeout: Duration, connection: &Connection) -> BodyLimits {
        if self.is_paced {
            let timeout = idle_timeout.min(connection.listener.settings.body_timeout);
            BodyLimits { timeout, least: Some(LEAST_PACE) }
        } else {
            BodyLimits { timeout: idle_timeout, least: None }
        }
    }

    /// Reads how long the client waits, and what it wants to change to. An extended CONNECT becomes the request that
    /// asks an endpoint for the same.
    fn read_terms(&mut self, connection: &Connection, head: &mut Parts, body: &Body) -> Result<(), Refusal> {
        let mut limit = connection.listener.settings.request_deadline;
        if self.is_grpc {
            let timeout = grpc::timeout(&head.headers).map_err(|_| Refusal::BadRequest("a malformed grpc-timeout"))?;
            limit = limit.into_iter().chain(timeout).min();
        }
        if let Some(name) = &connection.listener.settings.deadline_header {
            let said = deadline::read(&head.headers, name);
            let said =
                said.map_err(|_| Refusal::BadRequest("a deadline header that is not a number of milliseconds"))?;
            limit = limit.into_iter().chain(said).min();
        }
        self.is_impatient = limit != connection.listener.settings.request_deadline;
        self.due = limit.map(|limit| Due { since: self.started, limit });
        self.deadline = limit.map(|limit| connection.worker.timers.deadline(limit));
        self.upgrade = match head.extensions.remove::<ExtendedConnect>() {
            Some(connect) => Some(Upgrade::by_connect(&connect, head).map_err(Refusal::Unsupported)?),
            None if matches!(body, Body::Empty) => Upgrade::asked_by(head),
            None => None,
        };
        Ok(())
    }

    /// Whether a deadline at this tick is one that the caller has set.
    pub fn is_own_deadline(&self, until: Option<u64>) -> bool {
        self.is_impatient && self.deadline.as_ref().map(Deadline::tick) == until
    }

    /// The reply of an endpoint, where it answers what was asked for.
    pub fn checked(&self, reply: Reply, pool: &Pool) -> Result<Reply, Refusal> {
        let headers = reply.response.headers();
        let what = match (&reply.upgraded, &self.upgrade) {
            (Some(_), Some(upgrade)) if upgrade.is_granted_by(headers) => return Ok(reply),
            (Some(_), _) => Malformed::Upgrade,
            // The client would take it for a tunnel.
            (None, Some(upgrade)) if upgrade.is_by_connect() && reply.response.status().is_success() => {
                Malformed::NoUpgrade
            }
            (None, _) => return Ok(reply),
        };
        Err(Failure::Malformed { address: pool.target.address.to_string(), what }.into())
    }

    /// Tells the endpoint how long the caller still waits. To be said anew before each attempt.
    ///
    /// # Errors
    ///
    /// When nobody waits any longer.
    pub fn tell_time_left(&self, headers: &mut HeaderMap, in_header: Option<&HeaderName>) -> Result<(), Refusal> {
        let Some(due) = self.due else { return Ok(()) };
        let left = due.left(Instant::now()).ok_or(Refusal::Deadline)?;
        deadline::write(headers, left, self.is_grpc, in_header);
        Ok(())
    }

    /// Answers with a refusal.
    fn refused(&self, refusal: &Refusal, stats: &ServiceStats) -> Answer {
        refusal.record(stats, self.started);
        let response = match self.is_grpc {
            true => refusal.grpc_response(self.shows_addresses),
            false => refusal.response(self.shows_addresses),
        };
        response.into()
    }
}

/// The way of a response back to the client.
struct Way<'a> {
    stats: &'a Arc<ServiceStats>,
    stream_idle_timeout: Duration,
    tunnel_idle_timeout: Duration,
}

impl Way<'_> {
    fn back(self, answered: Answered, mut call: Call, timers: &Rc<Timers>) -> Answer {
        let Answered { reply: Reply { response, upgraded, hold }, upload, held } = answered;
        if let Some((upgraded, upgrade)) = upgraded.zip(call.upgrade.as_ref()) {
            let (other, permit) = *upgraded;
            let response = upgrade.tell(response);
            self.stats.ended(response.status().as_u16(), call.started.elapsed());
            // What has been through this proxy before shows it by `Via`.
            let held = tunnel::Held { permit, in_flight: held.in_flight, admitted: held.admitted, link: None };
            let tunnel = Tunnel::new(other, hold, held, self.stats, self.tunnel_idle_timeout);
            return Answer { response, next: Some(Next::Relay(Box::new(tunnel))) };
        }
        let record = Record { stats: self.stats.clone(), started: call.started, held };
        let limits = Limits {
            idle_timeout: self.stream_idle_timeout,
            deadline: call.deadline.take(),
            tells_in_trailers: call.is_grpc && call.version == Version::HTTP_2,
            upload,
        };
        record.at_end_of(prepare_response(response), hold, limits, timers).into()
    }
}

/// Answers a request that is not served, in the way of its protocol.
pub fn refuse(connection: &Connection, head: &Parts, refusal: &Refusal) -> Answer {
    Call::new(connection, head).refused(refusal, &connection.worker.unrouted)
}

/// Makes the request ready for endpoints that speak this protocol, with or without TLS.
fn prepare_request(
    head: &mut Parts,
    connection: &Connection,
    protocol: UpstreamProtocol,
    tls: bool,
    upgrade: Option<&Upgrade>,
) {
    let trailers = protocol.may_be_http2(tls) && takes_trailers(&head.headers);
    strip_hop_by_hop(&mut head.headers);
    strip_lookalikes(&mut head.headers, connection.listener.settings.deadline_header.as_ref());
    if let Some(upgrade) = upgrade {
        upgrade.ask(&mut head.headers);
    }
    strip_expect(&mut head.headers);
    if trailers {
        // The one value that HTTP/2 knows (RFC 9113, 8.2.2); gRPC servers ask for it.
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if head.version == Version::HTTP_2 && protocol != UpstreamProtocol::Http2 {
        join_cookies(&mut head.headers);
    }
    connection.worker.common().signature.sign(&mut head.headers, head.version);
    let how = connection.listener.settings.forwarded;
    if how != Forwarded::Off {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = head.uri.authority().map(Authority::as_str).or(host).map(str::to_owned);
        let client = ClientSide { address: connection.client, tls: connection.peer.is_some() };
        forward(&mut head.headers, how, client, host.as_deref());
    }
}

fn prepare_response(mut response: Response) -> Response {
    strip_hop_by_hop(response.headers_mut());
    strip_lookalikes(response.headers_mut(), None);
    *response.version_mut() = Version::HTTP_11;
    response
}
