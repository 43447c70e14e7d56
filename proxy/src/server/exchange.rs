//! The path of one request, from its head to its response's head.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, TE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::connection::Connection;
use super::decide::Choice;
use super::passthrough;
use super::record::Record;
use super::refusal::Refusal;
use super::route::{Named, named};
use super::tunnel::Tunnel;
use super::worker::LocalService;
use crate::config::checked::{Forwarded, UpstreamProtocol};
use crate::policy::Facts;
use crate::proto::body::Stream;
use crate::proto::headers::{forward, join_cookies, strip_expect, strip_hop_by_hop, takes_trailers};
use crate::proto::{Body, BodyError, Request, Response};
use crate::service::ServiceStats;
use crate::timer::Timers;
use crate::upstream::{Failure, Pool};

/// What a request is answered with.
pub struct Answer {
    pub response: Response,
    /// What becomes of the connection, or of the HTTP/2 stream, once the response's head has been written.
    pub next: Option<Next>,
}

/// What follows the last response on a connection, or on an HTTP/2 stream.
pub enum Next {
    /// A tunnel to a service: what is spoken inside is looked into.
    Inside(Rc<LocalService>),
    /// A tunnel to another host, or the protocol that both sides have changed to.
    Relay(Box<Tunnel>),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, next: None }
    }
}

/// Where a request goes.
enum Destination {
    Service(Rc<LocalService>),
    Host(Rc<Pool>),
}

/// Serves one request.
pub async fn serve(connection: Rc<Connection>, request: Request) -> Answer {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        return connect(&connection, &head, started);
    }
    let response = match find_destination(&connection, &head) {
        Ok(Destination::Service(service)) => to_service(&connection, &service, head, body, started).await,
        Ok(Destination::Host(pool)) => to_host(&connection, &pool, head, body, started).await,
        Err(refusal) => refused(&refusal, &connection.worker.unrouted, started),
    };
    response.into()
}

/// Opens a tunnel.
fn connect(connection: &Connection, head: &Parts, started: Instant) -> Answer {
    let service = head.uri.host().and_then(|host| connection.worker.service_of_host(host));
    match connection.service().or(service) {
        Some(service) => Answer { response: Response::default(), next: Some(Next::Inside(service)) },
        None => refused(&Refusal::Unsupported("CONNECT"), &connection.worker.unrouted, started).into(),
    }
}

fn find_destination(connection: &Connection, head: &Parts) -> Result<Destination, Refusal> {
    let Connection { worker, listener, .. } = connection;
    if worker.shared.signature.is_on(&head.headers) {
        return Err(Refusal::Loop);
    }
    let Named { host, absolute } = named(head)?;
    let settings = &listener.settings;
    let service = if connection.is_bound() { connection.service() } else { worker.service_of_host(host) };
    if let Some(service) = service {
        return Ok(Destination::Service(service));
    }
    if let Some(name) = &settings.service {
        return Err(Refusal::NoEndpoint { service: name.to_string() });
    }
    match absolute {
        Some(target) if settings.passthrough.is_some() => {
            let from_loopback = settings.address.ip().to_canonical().is_loopback();
            let port = target.port_u16().unwrap_or(80);
            let pool = worker.passthrough.pool(host, port, from_loopback, &worker.timers, &worker.scratch);
            Ok(Destination::Host(pool))
        }
        _ => Err(Refusal::UnknownService { host: host.chars().take(255).collect() }),
    }
}

async fn to_service(
    connection: &Connection,
    local: &Rc<LocalService>,
    head: Parts,
    body: Body,
    started: Instant,
) -> Response {
    let Connection { worker, client, peer, .. } = connection;
    let service = &local.service;
    let mut facts = Facts::new(head, client.ip(), peer.clone());
    let endpoint = match local.choose(&mut facts) {
        Choice::Endpoint(endpoint) => endpoint,
        Choice::NoneEligible => {
            return refused(&Refusal::NoEndpoint { service: service.name.to_string() }, &local.stats, started);
        }
        Choice::Declined => {
            return refused(&Refusal::Declined { service: service.name.to_string() }, &local.stats, started);
        }
    };
    let mut head = facts.head;
    prepare_request(&mut head, connection, service.settings.protocol);
    let in_flight = endpoint.load.begin();
    let pool = local.pool(&endpoint, worker);
    let attempt = Attempt { pool: &pool, stats: &local.stats, timeout: service.settings.request_timeout };
    match attempt.run(&worker.timers, &head, body, service.settings.stream_idle_timeout).await {
        Ok(response) => {
            let micros = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
            endpoint.load.observe_latency(micros);
            let record = Record { stats: local.stats.clone(), started, _in_flight: Some(in_flight) };
            record.at_end_of(prepare_response(response))
        }
        Err(failure) => {
            local.stats.failed_attempts.add(1);
            refused(&Refusal::Upstream(failure), &local.stats, started)
        }
    }
}

async fn to_host(connection: &Connection, pool: &Rc<Pool>, mut head: Parts, body: Body, started: Instant) -> Response {
    let worker = &connection.worker;
    prepare_request(&mut head, connection, UpstreamProtocol::Http1);
    let stats = &worker.passed_through;
    let attempt = Attempt { pool, stats, timeout: passthrough::REQUEST_TIMEOUT };
    match attempt.run(&worker.timers, &head, body, pool.target.stream_idle_timeout).await {
        Ok(response) => {
            let record = Record { stats: stats.clone(), started, _in_flight: None };
            record.at_end_of(prepare_response(response))
        }
        Err(failure) => {
            stats.failed_attempts.add(1);
            refused(&Refusal::Upstream(failure), stats, started)
        }
    }
}

fn refused(refusal: &Refusal, stats: &ServiceStats, started: Instant) -> Response {
    stats.ended(refusal.status().as_u16(), started.elapsed());
    tracing::debug!(target: "heddle::server", status = refusal.status().as_u16(), "{refusal}");
    refusal.response()
}

fn prepare_request(head: &mut Parts, connection: &Connection, protocol: UpstreamProtocol) {
    let trailers = protocol == UpstreamProtocol::Http2 && takes_trailers(&head.headers);
    strip_hop_by_hop(&mut head.headers);
    strip_expect(&mut head.headers);
    if trailers {
        // The one value that HTTP/2 knows (RFC 9113, 8.2.2); gRPC servers ask for it.
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if head.version == Version::HTTP_2 && protocol != UpstreamProtocol::Http2 {
        join_cookies(&mut head.headers);
    }
    connection.worker.shared.signature.sign(&mut head.headers, head.version);
    if connection.listener.settings.forwarded != Forwarded::Off {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = head.uri.authority().map(Authority::as_str).or(host).map(str::to_owned);
        forward(&mut head.headers, connection.listener.settings.forwarded, connection.client, host.as_deref());
    }
}

fn prepare_response(mut response: Response) -> Response {
    strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    response
}

/// One attempt of a request, with its deadline.
struct Attempt<'a> {
    pool: &'a Rc<Pool>,
    stats: &'a ServiceStats,
    /// From the end of the request to the response's head.
    timeout: Duration,
}

impl Attempt<'_> {
    async fn run(
        self,
        timers: &Rc<Timers>,
        head: &Parts,
        body: Body,
        stream_idle_timeout: Duration,
    ) -> Result<Response, Failure> {
        let (body, upload) = Upload::follow(body, timers, stream_idle_timeout);
        let mut attempt = pin!(self.pool.attempt(head, body, || self.stats.resent.add(1)));
        let mut deadline = timers.deadline(self.timeout);
        poll_fn(|cx| {
            if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            loop {
                ready!(deadline.poll_passed(cx));
                // While the request is still being sent, its own progress counts.
                match upload.as_ref().and_then(|upload| upload.time_left(timers, self.timeout)) {
                    Some(left) => deadline.reset(left),
                    None if upload.as_ref().is_some_and(|upload| upload.waiting.get()) => {
                        return Poll::Ready(Err(Failure::ClientBody(BodyError::Idle)));
                    }
                    None => {
                        return Poll::Ready(Err(Failure::Timeout { address: self.pool.target.address.to_string() }));
                    }
                }
            }
        })
        .await
    }
}

/// How the sending of a request's body gets on.
struct Upload {
    /// Tick of the last frame.
    last: Cell<u64>,
    done: Cell<bool>,
    /// The next frame is the client's to send.
    waiting: Cell<bool>,
    idle_timeout: Duration,
}

impl Upload {
    /// Follows a body that is yet to arrive; one that is here needs nobody to follow it.
    fn follow(body: Body, timers: &Rc<Timers>, idle_timeout: Duration) -> (Body, Option<Rc<Self>>) {
        let Body::Stream(stream) = body else { return (body, None) };
        let upload = Rc::new(Self {
            last: Cell::new(timers.now()),
            done: Cell::new(false),
            waiting: Cell::new(false),
            idle_timeout,
        });
        let body = Followed { stream, upload: upload.clone(), timers: timers.clone() };
        (Body::Stream(Box::pin(body)), Some(upload))
    }

    /// How much longer the response may take to come, if the last frame gives it any time at all.
    fn time_left(&self, timers: &Timers, timeout: Duration) -> Option<Duration> {
        let allowed = if self.done.get() { timeout } else { self.idle_timeout };
        allowed.checked_sub(timers.since(self.last.get())).filter(|left| !left.is_zero())
    }
}

struct Followed {
    stream: Stream,
    upload: Rc<Upload>,
    timers: Rc<Timers>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = self.stream.as_mut().poll_frame(cx);
        self.upload.waiting.set(frame.is_pending());
        let frame = ready!(frame);
        self.upload.last.set(self.timers.now());
        self.upload.done.set(frame.is_none() || self.stream.is_end_stream());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}
