//! The configuration after checking: every name resolved, every default filled in, nothing left to go wrong.

mod services;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::names::NamePattern;

pub use services::{
    CLIENT_SHARE, CheckKind, Ejection, GrpcCheck, HealthCheck, HttpCheck, Policy, Pool, ProxyProtocol, RetryBudget,
    Service, Services, TlsClient, UpstreamProtocol,
};

/// Everything that one proxy process runs by.
#[derive(Debug, Clone)]
pub struct Config {
    /// Worker threads; by default one for each core that this process may use.
    pub workers: usize,
    /// How long requests under way may take once nothing more is accepted; 8 s by default.
    pub drain: Duration,
    /// How long connections are still accepted once the proxy has been told to stop; 0 s by default. In the meantime it
    /// is not ready, and asks clients to leave.
    pub drain_delay: Duration,
    /// Folder for what must survive a restart (the registry's last answer); without one nothing is kept.
    pub state: Option<PathBuf>,
    /// Where health, metrics and state are served; `127.0.0.1:4191` by default, none when switched off.
    pub admin: Option<SocketAddr>,
    /// Names, in lower case, by which the admin server may be called over TCP besides addresses and `localhost`; none by
    /// default.
    pub admin_hosts: Vec<String>,
    /// Unix socket on which commands are taken too; none by default.
    pub admin_socket: Option<PathBuf>,
    /// This proxy's name in `Via`. Unique to the process by default, so that a loop is told from a chain of proxies.
    pub via: String,
    /// A host `NAME.SUFFIX` calls the service `NAME`; `mesh` by default, empty for none. Without leading dot.
    pub suffix: String,
    pub plugins: Plugins,
    /// Certificates for every listener that ends TLS, and for TLS inside tunnels to services.
    pub certificates: Vec<KeyPair>,
    pub listeners: Vec<Listener>,
    pub registry: Registry,
    pub services: Services,
}

/// Where policies come from, and their bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugins {
    /// The folder whose `*.wasm` files are policies; it need not exist yet. None: the built-in ones only.
    pub folder: Option<PathBuf>,
    /// How often the folder is read anew although nothing announced a change; 5 s by default.
    pub rescan: Duration,
    /// CPU time of one decision; 10 ms by default, 5 ms at least.
    pub decision: Duration,
    /// CPU time of one `configure`, `update` or `eligible`; 100 ms by default.
    pub change: Duration,
    /// Memory of one instance in bytes; 64 MiB by default.
    pub memory: usize,
    /// Memory of all instances in bytes; by default half of what the process may have, and no less than one instance may.
    pub memory_total: usize,
    /// This many faults within 10 s put a generation in quarantine, for the service at fault or for all; 4 by default.
    pub faults: u32,
    /// What one service's policies may use of a worker's CPU time within a second, in percent, while the worker is busy and
    /// another service asks too; 25 by default.
    pub share: u32,
    /// Where compiled plugins are kept: a folder below `state`; none without one.
    pub cache: Option<PathBuf>,
    pub compile: Compile,
}

/// `plugin_compile` and `plugin_cache`: what compiling one plugin may take, and how much of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compile {
    /// CPU time, in whole seconds; 5 s by default.
    pub cpu: Duration,
    /// Memory in bytes. None, the default: 512 MiB, or half of what the process's own cgroup leaves if that is less.
    pub memory: Option<u64>,
    /// Bytes of all compiled plugins that are kept; 32 MiB by default, 0 for none.
    pub cache: u64,
}

impl Default for Compile {
    fn default() -> Self {
        Self { cpu: Duration::from_secs(5), memory: None, cache: 32 << 20 }
    }
}

/// What a listener's `max_connections` is by default.
pub const DEFAULT_MAX_CONNECTIONS: usize = 65_536;

/// One address that applications connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// What clients speak here; HTTP by default.
    pub protocol: Protocol,
    /// Everything that arrives goes to this service, whatever it names. None: the request, or the tunnel, names it.
    pub service: Option<Arc<str>>,
    pub tls: ListenerTls,
    /// Where requests and tunnels for hosts that are no services may go; none for nowhere. By default on loopback only, and
    /// where no PROXY protocol is taken.
    pub passthrough: Option<Passthrough>,
    /// The networks whose connections begin with a PROXY protocol header (version 1 or 2); empty for none.
    pub proxy_protocol: Vec<Network>,
    /// What the proxy tells services about the client.
    pub forwarded: Forwarded,
    /// Whether clients may learn the addresses of endpoints and of the proxy itself: in the reasons of refusals (body,
    /// `Proxy-Status`, `grpc-message`), and in replies of SOCKS5. By default on loopback only, and where no PROXY
    /// protocol is taken.
    pub expose_addresses: bool,
    /// How long a client may leave it open what it speaks, with [`Protocol::Auto`] on a listener of a service, and in
    /// tunnels to services: after that it is taken for one whose server speaks first. 200 ms by default; a client's round
    /// trip has to fit into it.
    pub detect_timeout: Duration,
    /// From the first byte of a request to the end of its head, and for all that comes before a first request: a PROXY
    /// protocol header, a SOCKS5 greeting; 10 s by default.
    pub header_timeout: Duration,
    /// How long a request waits for the first byte of the body that it announces, before it goes to an endpoint; and how
    /// long the client may let the body stand still while the response has not begun; 60 s by default. In all the client
    /// may take as long, and a second more for each 500 bytes. Neither holds for gRPC, nor does the first for
    /// `Expect: 100-continue`. The service's `stream_idle_timeout` holds too, and alone once the response has begun.
    pub body_timeout: Duration,
    /// From a request's head to the end of its response; none, the default, for as long as it takes. A gRPC call has the
    /// sooner of this and its own `grpc-timeout`. Kept to a tenth of a second, never early.
    pub request_deadline: Option<Duration>,
    /// The header in which a client may say how long it waits, in milliseconds: the sooner of this and the other deadlines
    /// holds, and what is left of it is what endpoints are told in the same header. None by default.
    pub deadline_header: Option<HeaderName>,
    /// How long a connection may stay open without a request; 1 h by default. For the first byte it is 60 s at most, since
    /// browsers connect ahead of time, but not by so much. For the first byte of TLS it is `handshake_timeout`, or
    /// `header_timeout` where TLS passes through.
    pub idle_timeout: Duration,
    /// Connections at once over all workers; 65,536 by default. Further ones wait in the listen queue. All listeners
    /// together have what the process' descriptors allow (see [`crate::descriptors`]).
    pub max_connections: usize,
    /// Connections at once of one client address over all workers; none, the default, for any number. Further ones are
    /// closed at once. The address is the socket's, or for those of `proxy_protocol` the one that the header names.
    pub max_connections_per_client: Option<usize>,
    /// Headers of one request; 100 by default.
    pub max_headers: usize,
    /// Bytes in a request's head; 64 KiB by default.
    pub max_header_bytes: usize,
    /// Bytes in a request's target; 16 KiB by default.
    pub max_uri_bytes: usize,
    /// Bytes in a request's body; none, the default, for any number.
    pub max_body_bytes: Option<u64>,
}

/// What clients speak to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2 with prior knowledge, and SOCKS5: in each the client speaks first, and none can be taken for
    /// another.
    Http,
    /// Anything, which goes to the listener's service as it is.
    Tcp,
    /// What [`Protocol::Http`] knows, TLS, and anything else for the listener's service.
    Auto,
}

/// What a listener does with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerTls {
    Off,
    /// Clients speak TLS, which ends here; with [`Protocol::Auto`] they may.
    Terminate(TlsServer),
    /// TLS goes untouched to the service that its server name (SNI) names, or to the listener's own.
    Passthrough,
}

/// How TLS to clients ends at a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsServer {
    /// The first is presented to clients that name no server, or one that no certificate covers. Those of
    /// [`Config::certificates`] come after these.
    pub certificates: Vec<KeyPair>,
    pub client: ClientCertificates,
    /// PEM file with the revocation lists (CRLs) of all authorities that sign clients' certificates: one that is on its
    /// list is refused. None, the default: nothing is revoked.
    pub client_crl: Option<PathBuf>,
    /// Whether TLS 1.2 is refused; false by default.
    pub only_tls13: bool,
    /// Whether sessions can be resumed by tickets; true by default. A ticket is good for an hour from the handshake in
    /// which the client last proved who it is, and no longer than the certificates, authorities and revocation lists of
    /// that moment; where no client is asked for a certificate, as long as its key: at most twelve hours.
    pub session_tickets: bool,
    /// From the first byte of a handshake to its end, and before that for the first byte, unless clients may speak
    /// without TLS too ([`Protocol::Auto`]); 10 s by default.
    pub handshake_timeout: Duration,
}

impl Listener {
    /// Whether clients may prove here who they are by a certificate.
    pub fn asks_for_certificates(&self) -> bool {
        matches!(&self.tls, ListenerTls::Terminate(tls) if tls.client != ClientCertificates::Off)
    }
}

/// Whether clients prove who they are, to the authorities of a PEM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificates {
    Off,
    /// A certificate that is presented must be good.
    Optional(PathBuf),
    Required(PathBuf),
}

/// PEM files of a certificate chain, the server's or client's own first, and of its key (PKCS#8, SEC1 or PKCS#1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Where connections to hosts that are no services may go. What is never meant (metadata services of clouds, the link,
/// multicast, and loopback where the listener is not on it) is denied also where nothing is listed; a network in
/// `allow_networks` that lies within one of these allows it again. This machine's other addresses are like loopback, but
/// only a network of just one address allows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passthrough {
    /// Only these; empty for all.
    pub allow_ports: Vec<RangeInclusive<u16>>,
    pub deny_ports: Vec<RangeInclusive<u16>>,
    /// Only these; empty for all.
    pub allow_networks: Vec<Network>,
    /// Denied whatever else allows them.
    pub deny_networks: Vec<Network>,
}

/// Addresses with a common beginning, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    pub address: IpAddr,
    /// Bits that count: at most 32 or 128.
    pub prefix: u8,
}

impl Network {
    /// Whether an address is one of these. An IPv4 address inside an IPv6 one has to be taken out before.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= u32::from(self.prefix)
    }

    /// Whether all of another network is within this one.
    pub fn covers(&self, other: &Network) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Which header carries the client's address, the host it asked for and the scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// None is added, and those that came in are passed on. The default: beside an application the client is local.
    Off,
    /// `Forwarded` (RFC 7239), appended to what came in.
    Standard,
    /// `X-Forwarded-For`, `X-Forwarded-Host` and `X-Forwarded-Proto`; the first is appended to what came in.
    Legacy,
}

/// Where endpoints are announced. Several sources may be in use at once; each announces services of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    pub etcd: Option<Etcd>,
    pub file: Option<FileSource>,
    /// Endpoints written in the configuration itself (`endpoints` of a service).
    pub fixed: HashMap<Arc<str>, Vec<FixedEndpoint>>,
    pub fixed_rules: SourceRules,
    pub limits: RegistryLimits,
}

/// What of a source's contents is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceRules {
    /// Services with several labels outside the suffix that take proxy requests, CONNECT and SOCKS for their name as a
    /// host. All others do.
    pub names: Vec<NamePattern>,
    /// Endpoints may be at these addresses only; empty for all but those that are never meant.
    pub allow_networks: Vec<Network>,
    /// Denied whatever else allows them.
    pub deny_networks: Vec<Network>,
}

/// How much of what all sources announce is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryLimits {
    /// Registrations: endpoints as often as keys announce them.
    pub max_endpoints: usize,
    /// Their memory, as estimated from their text.
    pub max_bytes: usize,
}

impl Default for RegistryLimits {
    fn default() -> Self {
        Self::within(None)
    }
}

impl RegistryLimits {
    /// The defaults of a process that may have so much memory: a quarter of it is for registrations, and there may be as
    /// many as need a quarter when each takes 2 KiB.
    pub fn within(memory: Option<u64>) -> Self {
        let memory = memory.and_then(|memory| usize::try_from(memory).ok()).unwrap_or(usize::MAX);
        Self {
            max_endpoints: (memory / (8 << 10)).clamp(1_000, 250_000),
            max_bytes: (memory / 4).clamp(8 << 20, 1 << 30),
        }
    }
}

/// An endpoint written in a configuration or services file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedEndpoint {
    /// `host:port`.
    pub address: String,
    /// 1 by default; 0 keeps it registered and takes it out of use.
    pub weight: u32,
    pub metadata: Vec<(String, String)>,
}

/// A watched file with services and endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSource {
    /// `.toml` or `.json`.
    pub path: PathBuf,
    /// How often it is read anew although nothing announced a change; 5 s by default.
    pub rescan: Duration,
    pub rules: SourceRules,
}

/// An etcd cluster (v3 API, 3.4 or later).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// One URL a member: `http://host:port` or `https://host:port`. Tried in turn.
    pub members: Vec<String>,
    pub login: Option<EtcdLogin>,
    pub tls: Option<EtcdTls>,
    pub watches: Vec<EtcdWatch>,
    /// One connection attempt; 2 s by default.
    pub connect_timeout: Duration,
    /// One request; 5 s by default.
    pub request_timeout: Duration,
    /// Without a sign of life for this long a watch is given up and another member tried; 15 s by default. Progress is
    /// asked for at a third of it.
    pub liveness: Duration,
    /// Longest wait between two rounds over all members, jittered by half; 1 s by default.
    pub backoff: Duration,
    /// Keys read at once; 1,000 by default.
    pub page: u32,
    /// The largest answer that is taken, in bytes: a page of keys, or the changes of one moment. 64 MiB, less where
    /// there is little memory.
    pub largest: usize,
    pub rules: SourceRules,
    /// Of the registry as a whole, so that a reading collects no more than is kept.
    pub limits: RegistryLimits,
}

/// User and password; the token is renewed when the server no longer takes it.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdLogin {
    pub user: String,
    pub password: Password,
}

/// Where a password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// In the configuration.
    Text(String),
    /// In a file, read at each login; line breaks at its end do not belong to it.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(a password)"),
            Self::File(path) => path.fmt(f),
        }
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Debug for EtcdLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

/// TLS to etcd. The files were readable when the configuration was checked; they are read again at each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// PEM file of the authorities to trust; none: the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's certificate and key, for a cluster that asks for them.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name to verify; none: the host of the member's URL.
    pub server_name: Option<String>,
}

/// One part of the key space and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdWatch {
    pub prefix: Vec<u8>,
    pub layout: Layout,
}

/// How a fleet writes an endpoint into the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    Heddle,
    GoKit,
}
