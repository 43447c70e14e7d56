//! Services, as a checked configuration has them.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::uri::{Authority, PathAndQuery};

use super::KeyPair;
use crate::policy::Role;

/// What [`Service::client_share`] is by default, and for hosts that are no services.
pub const CLIENT_SHARE: u32 = 25;

/// Settings of the services: those named in the configuration, and what holds for all others.
#[derive(Debug, Clone)]
pub struct Services {
    pub default: Arc<Service>,
    pub named: HashMap<Arc<str>, Arc<Service>>,
}

impl Services {
    /// What holds for the service of this name.
    pub fn get(&self, name: &str) -> &Arc<Service> {
        self.named.get(name).unwrap_or(&self.default)
    }
}

/// How requests to one service are treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub balancer: Policy,
    /// What follows a failed attempt; none, the default, for an answer to the client.
    pub retry: Option<Policy>,
    /// Who judges endpoints by how attempts end; none by default.
    pub breaker: Option<Policy>,
    pub ejection: Ejection,
    pub retry_budget: RetryBudget,
    /// Bytes of a request's body that are kept while it is sent, so that it can be sent again; 64 KiB by default. Only
    /// with a retry policy.
    pub max_replay_bytes: usize,
    /// With [`UpstreamProtocol::Http1`] and [`UpstreamProtocol::Http2`] the service is sent requests and nothing else:
    /// what is not recognized, in a tunnel or with [`Protocol::Auto`](super::Protocol::Auto), is refused.
    /// [`Protocol::Tcp`](super::Protocol::Tcp) passes it on. Listeners that ask for clients' certificates pass it on with
    /// [`UpstreamProtocol::Opaque`] only.
    pub protocol: UpstreamProtocol,
    /// One connection attempt; 1 s by default.
    pub connect_timeout: Duration,
    /// From the end of the request to the response's head; 15 s by default.
    pub request_timeout: Duration,
    /// How long a body may stand still in either direction; 5 min by default.
    pub stream_idle_timeout: Duration,
    /// How long a connection that is passed on as it is (TCP, a tunnel, a WebSocket) may stand still in both
    /// directions; 1 h by default.
    pub tunnel_idle_timeout: Duration,
    /// TLS to the endpoints; none by default.
    pub tls: Option<TlsClient>,
    /// The header that connections to the endpoints begin with, to tell them the client's address. Only connections
    /// that carry one client's bytes have one: those that are passed on as they are.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Connections to all endpoints at once, idle or busy, over all workers; none, the default, for any number.
    pub max_connections: Option<u32>,
    /// The share of an endpoint's connections that one client address has while others wait for one, in percent; 25 by
    /// default, and 8 connections in any case. 100 for all of them. Of what is beyond it the slowest body is ended.
    pub client_share: u32,
    /// Requests and tunnels at once, over all workers; none, the default, for any number. A request counts from before
    /// its first attempt to the end of its response. Further ones wait in the queue, or are answered 503.
    pub max_requests: Option<u32>,
    /// How many wait where there are `max_requests`, over all workers; 0 by default: none does.
    pub max_pending: u32,
    /// How long one waits at most; 1 s by default. Its own deadline may be sooner.
    pub max_pending_time: Duration,
    pub pool: Pool,
    /// How the proxy finds out by itself whether endpoints are well; none by default.
    pub health_check: Option<Arc<HealthCheck>>,
}

/// Active health checks of a service's endpoints. See [`check`](crate::check) for what comes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// From the start of a check to the start of the next, of which up to a tenth is taken at random; 2 s by default. An
    /// endpoint that is out of use is checked `rise` times as often.
    pub interval: Duration,
    /// For one check, connecting included; 1 s by default.
    pub timeout: Duration,
    /// So many checks passed in a row put an endpoint back into use; 2 by default.
    pub rise: u32,
    /// So many checks failed in a row take it out of use; 3 by default. For an endpoint that has passed none yet, one
    /// failure does.
    pub fall: u32,
}

/// What is asked of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// Whether there is a connection, of TLS where the service has it.
    Tcp,
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcCheck),
}

/// A request, and what it is to be answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// GET, the default, or HEAD.
    pub method: Method,
    /// `/` by default.
    pub path: PathAndQuery,
    /// None, the default: the service's name.
    pub host: Option<Authority>,
    /// Any of these statuses passes; 200 by default.
    pub statuses: Vec<RangeInclusive<u16>>,
}

/// A question to gRPC's health service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Whose health is asked for; empty, the default, for the server as a whole.
    pub service: String,
    /// None, the default: the service's name.
    pub host: Option<Authority>,
}

impl Service {
    /// The service's policies, by what they decide.
    pub fn policies(&self) -> impl Iterator<Item = (&Policy, Role)> {
        let balancer = Some((&self.balancer, Role::Balancer));
        let retry = self.retry.as_ref().map(|policy| (policy, Role::RetryPolicy));
        let breaker = self.breaker.as_ref().map(|policy| (policy, Role::CircuitBreaker));
        [balancer, retry, breaker].into_iter().flatten()
    }
}

/// Bounds of what breakers and checks may take out of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// The share of endpoints that may be ejected at once, in percent; 10 by default. One may always be.
    pub max_percent: u8,
    /// When less than this share of the endpoints is well, all of them are used again; 50 by default, 0 for never.
    pub panic_percent: u8,
}

/// How many retries, hedges counted, may be under way at once for a service, over all workers: the greater of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the requests under way, in percent; 20 by default.
    pub percent: u32,
    /// However few requests there are; 3 by default.
    pub min: u32,
}

/// TLS to endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsClient {
    /// PEM file of the authorities to trust; none: the system's.
    pub ca: Option<PathBuf>,
    /// The proxy's own certificate, for endpoints that ask for one.
    pub client: Option<KeyPair>,
    /// The name to verify and to ask for; none: the host of the endpoint's address.
    pub server_name: Option<String>,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// A policy by name, with its settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy {
    pub plugin: Arc<str>,
    /// A JSON object, as the plugin's `configure` is given it; `{}` where nothing is said.
    pub config: Arc<str>,
}

/// What the service's endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// What is agreed on during the TLS handshake (ALPN), HTTP/2 if the endpoint takes it; HTTP/1.1 without TLS. The
    /// default.
    Negotiated,
    /// The same for requests. It is said that anything else may be passed on too, as it is and unread, also from clients
    /// whose certificate is to say who they are.
    Opaque,
    Http1,
    /// Without TLS, with prior knowledge (RFC 9113, 3.3).
    Http2,
}

impl UpstreamProtocol {
    /// Whether connections, with or without TLS, may turn out to carry HTTP/2.
    pub fn may_be_http2(self, tls: bool) -> bool {
        match self {
            Self::Negotiated | Self::Opaque => tls,
            Self::Http1 => false,
            Self::Http2 => true,
        }
    }
}

/// Connections to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Idle ones kept by each worker; 128 by default.
    pub max_idle: usize,
    /// How long an idle one is kept; 60 s by default.
    pub idle_timeout: Duration,
    /// At once, idle or busy, over all workers; 1,024 by default. A request that would need one more waits for
    /// `connect_timeout` while idle ones are given up, and is then answered 503.
    pub max_connections: usize,
    /// Requests and tunnels at once at the endpoint, over all workers; none, the default, for any number. An endpoint that
    /// has so many is passed over.
    pub max_requests: Option<u32>,
}
