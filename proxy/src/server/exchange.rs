//! The path of one request, from its head to its response's head.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, TE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Version};

use super::attempt::{Attempt, Upload};
use super::connection::{Connection, Inside};
use super::decide::Picked;
use super::destination::{self, Destination};
use super::passthrough;
use super::record::{Limits, Record};
use super::refusal::Refusal;
use super::route::{Named, named, target};
use super::tunnel::{self, Tunnel};
use super::worker::LocalService;
use crate::config::checked::{Forwarded, UpstreamProtocol};
use crate::policy::{Facts, Kind, Outcome};
use crate::proto::headers::{
    ClientSide, forward, identify, join_cookies, strip_expect, strip_hop_by_hop, takes_trailers,
};
use crate::proto::upgrade::{ExtendedConnect, Upgrade};
use crate::proto::{Body, Request, Response, grpc};
use crate::service::{InFlight, ServiceStats};
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
    let (mut head, body) = request.into_parts();
    let mut call = Call::new(&head);
    if head.method == Method::CONNECT && head.extensions.get::<ExtendedConnect>().is_none() {
        return connect(&connection, &head, &body, &call).await;
    }
    let terms = call.read_terms(&connection, &mut head, &body);
    match terms.and_then(|()| find_destination(&connection, &head)) {
        Ok(Destination::Service(local)) => to_service(&connection, &local, head, body, call).await,
        Ok(Destination::Host(pool)) => to_host(&connection, &pool, head, body, call).await,
        Err(refusal) => call.refused(&refusal, &connection.worker.unrouted),
    }
}

/// Opens a tunnel (RFC 9110, 9.3.6), within the listener's deadline for requests.
async fn connect(connection: &Connection, head: &Parts, body: &Body, call: &Call) -> Answer {
    let opened = match target(head, body) {
        Ok(_) if connection.worker.common().signature.is_on(&head.headers) => Err(Refusal::Loop),
        Ok((host, port)) => {
            let open = destination::open(connection, host, port);
            match connection.listener.settings.request_deadline {
                Some(limit) => connection.worker.timers.within(limit, open).await.unwrap_or(Err(Refusal::Deadline)),
                None => open.await,
            }
        }
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
    let Named { host, absolute } = named(head)?;
    destination::find(connection, host, absolute.map(|target| target.port_u16().unwrap_or(80)))
}

async fn to_service(connection: &Connection, local: &Rc<LocalService>, head: Parts, body: Body, call: Call) -> Answer {
    let Connection { worker, client, peer, .. } = connection;
    let settings = &local.service.settings;
    if call.upgrade.is_some() && settings.protocol == UpstreamProtocol::Http2 {
        return call
            .refused(&Refusal::Unsupported("an upgrade for a service whose endpoints speak HTTP/2"), &local.stats);
    }
    let mut facts = Facts::new(head, client.ip(), peer.clone());
    let (_service_probe, picked) = match local.enter().and_then(|probe| Ok((probe, local.decide(&mut facts)?))) {
        Ok(entered) => entered,
        Err(refusal) => return call.refused(&refusal, &local.stats),
    };
    let Picked { endpoint, in_flight, probe: _probe } = picked;
    let started = call.started;
    let mut head = std::mem::replace(&mut facts.head, Facts::placeholder().head);
    let pool = local.pool(&endpoint, worker);
    prepare_request(&mut head, connection, &pool, call.upgrade.as_ref());
    identify(&mut head.headers, peer.as_ref().and_then(|peer| peer.identity.as_deref()));
    let way = Way {
        pool: &pool,
        stats: &local.stats,
        request_timeout: settings.request_timeout,
        stream_idle_timeout: settings.stream_idle_timeout,
        tunnel_idle_timeout: settings.tunnel_idle_timeout,
    };
    let answer = way.go(connection, &head, body, call, in_flight).await;
    let status = Some(answer.response.status());
    let outcome = Outcome { status, ..Outcome::of(Kind::Response, started.elapsed()) };
    local.ended(&mut facts, &endpoint, &outcome);
    answer
}

async fn to_host(connection: &Connection, pool: &Rc<Pool>, mut head: Parts, body: Body, call: Call) -> Answer {
    prepare_request(&mut head, connection, pool, call.upgrade.as_ref());
    // Who the client is, is for services only.
    identify(&mut head.headers, None);
    let way = Way {
        pool,
        stats: &connection.worker.passed_through,
        request_timeout: passthrough::REQUEST_TIMEOUT,
        stream_idle_timeout: pool.target.stream_idle_timeout,
        tunnel_idle_timeout: tunnel::IDLE_TO_HOST,
    };
    way.go(connection, &head, body, call, pool.target.load.begin()).await
}

/// What holds for a request from its head to the end of its response.
struct Call {
    started: Instant,
    /// Whether the client expects errors to be told in gRPC's way.
    is_grpc: bool,
    version: Version,
    /// When the response must have ended: by the listener's setting, or by what a gRPC caller says, if that is sooner.
    /// It is kept on the coarse clock of [`Timers`], up to a tenth of a second late.
    deadline: Option<Deadline>,
    /// The protocol that the client wants to change to.
    upgrade: Option<Upgrade>,
}

impl Call {
    fn new(head: &Parts) -> Self {
        let is_grpc = grpc::is_call(&head.headers);
        Self { started: Instant::now(), is_grpc, version: head.version, deadline: None, upgrade: None }
    }

    /// Reads how long the client waits, and what it wants to change to. An extended CONNECT becomes the request that
    /// asks an endpoint for the same.
    fn read_terms(&mut self, connection: &Connection, head: &mut Parts, body: &Body) -> Result<(), Refusal> {
        let mut limit = connection.listener.settings.request_deadline;
        if self.is_grpc {
            let timeout = grpc::timeout(&head.headers).map_err(|_| Refusal::BadRequest("a malformed grpc-timeout"))?;
            limit = limit.into_iter().chain(timeout).min();
        }
        self.deadline = limit.map(|limit| connection.worker.timers.deadline(limit));
        self.upgrade = match head.extensions.remove::<ExtendedConnect>() {
            Some(connect) => Some(Upgrade::by_connect(&connect, head).map_err(Refusal::Unsupported)?),
            None if matches!(body, Body::Empty) => Upgrade::asked_by(head),
            None => None,
        };
        Ok(())
    }

    /// Answers with a refusal.
    fn refused(&self, refusal: &Refusal, stats: &ServiceStats) -> Answer {
        refusal.record(stats, self.started);
        if self.is_grpc { refusal.grpc_response().into() } else { refusal.response().into() }
    }
}

/// Where a request goes, and how long that may take.
struct Way<'a> {
    pool: &'a Rc<Pool>,
    stats: &'a Arc<ServiceStats>,
    request_timeout: Duration,
    stream_idle_timeout: Duration,
    tunnel_idle_timeout: Duration,
}

impl Way<'_> {
    async fn go(
        self,
        connection: &Connection,
        head: &Parts,
        body: Body,
        mut call: Call,
        in_flight: InFlight,
    ) -> Answer {
        let timers = &connection.worker.timers;
        let load = &self.pool.target.load;
        let attempt = Attempt {
            pool: self.pool,
            stats: self.stats,
            timeout: self.request_timeout,
            body_timeout: self.stream_idle_timeout.min(connection.listener.settings.body_timeout),
            idle_timeout: self.stream_idle_timeout,
            deadline: call.deadline.as_mut(),
        };
        let answered = match attempt.run(timers, head, body).await {
            Ok((reply, upload)) => {
                load.observe_latency(u32::try_from(call.started.elapsed().as_micros()).unwrap_or(u32::MAX));
                self.answer(reply, upload, in_flight, &mut call, timers)
            }
            Err(refusal) => Err(refusal),
        };
        answered.unwrap_or_else(|refusal| {
            self.stats.failed_attempts.add(1);
            call.refused(&refusal, self.stats)
        })
    }

    fn answer(
        &self,
        reply: Reply,
        upload: Option<Upload>,
        in_flight: InFlight,
        call: &mut Call,
        timers: &Rc<Timers>,
    ) -> Result<Answer, Refusal> {
        let Reply { response, upgraded } = reply;
        let address = || self.pool.target.address.to_string();
        if let Some((other, permit)) = upgraded {
            let upgrade = call.upgrade.as_ref().filter(|upgrade| upgrade.is_granted_by(response.headers()));
            let upgrade = upgrade.ok_or_else(|| Failure::Malformed { address: address(), what: Malformed::Upgrade })?;
            let response = upgrade.tell(response);
            self.stats.ended(response.status().as_u16(), call.started.elapsed());
            let tunnel = Tunnel::new(other, permit, Some(in_flight), self.stats, self.tunnel_idle_timeout);
            return Ok(Answer { response, next: Some(Next::Relay(Box::new(tunnel))) });
        }
        if call.upgrade.as_ref().is_some_and(Upgrade::is_by_connect) && response.status().is_success() {
            // The client would take it for a tunnel.
            return Err(Failure::Malformed { address: address(), what: Malformed::NoUpgrade }.into());
        }
        let record = Record { stats: self.stats.clone(), started: call.started, _in_flight: Some(in_flight) };
        let limits = Limits {
            idle_timeout: self.stream_idle_timeout,
            deadline: call.deadline.take(),
            tells_in_trailers: call.is_grpc && call.version == Version::HTTP_2,
            upload,
        };
        Ok(record.at_end_of(prepare_response(response), limits, timers).into())
    }
}

/// Answers a request that is not served, in the way of its protocol.
pub fn refuse(connection: &Connection, head: &Parts, refusal: &Refusal) -> Answer {
    Call::new(head).refused(refusal, &connection.worker.unrouted)
}

fn prepare_request(head: &mut Parts, connection: &Connection, pool: &Pool, upgrade: Option<&Upgrade>) {
    let trailers = pool.target.may_speak_http2() && takes_trailers(&head.headers);
    strip_hop_by_hop(&mut head.headers);
    if let Some(upgrade) = upgrade {
        upgrade.ask(&mut head.headers);
    }
    strip_expect(&mut head.headers);
    if trailers {
        // The one value that HTTP/2 knows (RFC 9113, 8.2.2); gRPC servers ask for it.
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if head.version == Version::HTTP_2 && pool.target.protocol != UpstreamProtocol::Http2 {
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
    *response.version_mut() = Version::HTTP_11;
    response
}
