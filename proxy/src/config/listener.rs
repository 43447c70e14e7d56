//! A listener's table as it is written: `[[listener]]`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::checked::{Forwarded, Network, Protocol};
use super::file::WAIT;
use super::read::{At, Section, take_item};
use super::tls::KeyPair;
use super::tree::Value;
use super::value::{
    choice, duration, flag, header_name, integer, network, path, ports, refuse, service_name, size, socket_address,
};

/// More than this is no protocol that the client leaves to the server, but a client that does not answer.
const DETECT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);

/// One `[[listener]]`.
pub(super) struct Listener {
    pub address: Option<At<SocketAddr>>,
    pub protocol: Option<Protocol>,
    pub service: Option<Arc<str>>,
    pub tls: Option<At<Tls>>,
    pub passthrough: Option<At<Passthrough>>,
    pub proxy_protocol: Vec<At<Network>>,
    pub forwarded: Option<Forwarded>,
    pub expose_addresses: Option<bool>,
    pub detect_timeout: Option<Duration>,
    pub header_timeout: Option<Duration>,
    pub body_timeout: Option<Duration>,
    pub request_deadline: Option<Duration>,
    pub deadline_header: Option<HeaderName>,
    pub idle_timeout: Option<Duration>,
    pub max_connections: Option<usize>,
    pub max_connections_per_client: Option<At<usize>>,
    pub max_headers: Option<usize>,
    pub max_header_bytes: Option<usize>,
    pub max_uri_bytes: Option<At<usize>>,
    pub max_body_bytes: Option<usize>,
}

/// `tls` of a listener.
pub(super) enum Tls {
    Off,
    Passthrough,
    Terminate(Box<Terminate>),
}

/// `tls` of a listener as a table, or `tls = true`.
#[derive(Default)]
pub(super) struct Terminate {
    pub pair: KeyPair,
    pub certificates: Vec<KeyPair>,
    pub client: Option<ClientCertificates>,
    pub client_ca: Option<At<PathBuf>>,
    pub client_crl: Option<At<PathBuf>>,
    pub only_tls13: Option<bool>,
    pub session_tickets: Option<bool>,
    pub handshake_timeout: Option<Duration>,
}

/// `client` of a listener's TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientCertificates {
    Off,
    Optional,
    Required,
}

/// `passthrough` of a listener.
pub(super) enum Passthrough {
    Off,
    To(Hosts),
}

/// `passthrough` as a table, or `passthrough = true`.
#[derive(Default)]
pub(super) struct Hosts {
    pub allow_ports: Vec<At<RangeInclusive<u16>>>,
    pub deny_ports: Vec<At<RangeInclusive<u16>>>,
    pub allow_networks: Vec<At<Network>>,
    pub deny_networks: Vec<At<Network>>,
}

impl Listener {
    /// Relative paths start from `base`.
    pub fn read(s: &mut Section<'_>, base: &Path) -> Listener {
        let said = s.has("protocol");
        let protocol = s.get("protocol", choice("a protocol", PROTOCOLS));
        match protocol {
            Some(Protocol::Tcp) => report_senseless_for_tcp(s),
            Some(Protocol::Http) => report_passthrough_of_tls(s),
            None if !said => report_passthrough_of_tls(s),
            Some(Protocol::Auto) | None => {}
        }
        if s.has("service") && matches!(s.peek("passthrough"), Some(Value::Flag(true) | Value::Table(_))) {
            let found = "nothing passes through: service takes all requests of this listener";
            s.refuse("passthrough", found, "expected only one of the two keys");
        }
        Listener {
            address: s.required("address", "IP:PORT such as \"127.0.0.1:4140\"", socket_address),
            protocol,
            service: s.get("service", service_name),
            tls: tls(s, base),
            passthrough: passthrough(s),
            proxy_protocol: networks(s, "proxy_protocol"),
            forwarded: s.get("forwarded", choice("a way to tell services about the client", FORWARDED)),
            expose_addresses: s.get("expose_addresses", flag),
            detect_timeout: s.get("detect_timeout", duration(DETECT)),
            header_timeout: s.get("header_timeout", duration(WAIT)),
            body_timeout: s.get("body_timeout", duration(WAIT)),
            request_deadline: s.get("request_deadline", duration(WAIT)),
            deadline_header: s.get("deadline_header", header_name),
            idle_timeout: s.get("idle_timeout", duration(WAIT)),
            max_connections: s.get("max_connections", integer(1..=10_000_000)),
            max_connections_per_client: s.at("max_connections_per_client", integer(1..=10_000_000)),
            max_headers: s.get("max_headers", integer(1..=1000)),
            max_header_bytes: s.get("max_header_bytes", size(1 << 10..=1 << 20)),
            max_uri_bytes: s.at("max_uri_bytes", size(64..=1 << 20)),
            max_body_bytes: s.get("max_body_bytes", size(0..=1 << 40)),
        }
    }
}

const PROTOCOLS: &[(&str, Protocol)] = &[("http", Protocol::Http), ("tcp", Protocol::Tcp), ("auto", Protocol::Auto)];

const FORWARDED: &[(&str, Forwarded)] =
    &[("off", Forwarded::Off), ("standard", Forwarded::Standard), ("legacy", Forwarded::Legacy)];

const CLIENT: &[(&str, ClientCertificates)] = &[
    ("off", ClientCertificates::Off),
    ("optional", ClientCertificates::Optional),
    ("required", ClientCertificates::Required),
];

/// Keys about requests, of which a TCP listener sees none.
const OF_REQUESTS: &[&str] = &[
    "forwarded",
    "expose_addresses",
    "body_timeout",
    "request_deadline",
    "deadline_header",
    "max_headers",
    "max_header_bytes",
    "max_uri_bytes",
    "max_body_bytes",
];

const ELSEWHERE: &str = "expected it on a listener whose protocol is http or auto";

fn report_senseless_for_tcp(s: &mut Section<'_>) {
    let by_server_name = passes_tls(s);
    if !s.has("service") && !by_server_name {
        let expected = "the service that connections go to, or tls = \"passthrough\", which routes by server name";
        s.missing("service", expected);
    }
    for key in OF_REQUESTS {
        if s.has(key) {
            s.refuse(key, "a tcp listener sees no requests", ELSEWHERE);
        }
    }
    if matches!(s.peek("passthrough"), Some(Value::Flag(true) | Value::Table(_))) {
        s.refuse("passthrough", "a connection to a tcp listener names no host", ELSEWHERE);
    }
    if s.has("detect_timeout") {
        s.refuse("detect_timeout", "nothing is detected on a tcp listener", "expected it with protocol = \"auto\"");
    }
    let waits = s.has("proxy_protocol") || !matches!(s.peek("tls"), None | Some(Value::Flag(false)));
    let of_services = "expected it beside proxy_protocol or tls, or tunnel_idle_timeout in the table of the service";
    let of_clients = [("header_timeout", "expected it beside proxy_protocol or tls"), ("idle_timeout", of_services)];
    for (key, remedy) in of_clients {
        if !waits && s.has(key) {
            s.refuse(key, "nothing is read on this listener before a connection is passed on", remedy);
        }
    }
}

fn report_passthrough_of_tls(s: &mut Section<'_>) {
    if passes_tls(s) {
        let found = "an http listener has no use for TLS that does not end at it";
        s.refuse("tls", found, "expected a table with certificate and key, or protocol = \"auto\" or \"tcp\"");
    }
}

/// Whether `tls = "passthrough"` is there to be read.
fn passes_tls(s: &Section<'_>) -> bool {
    matches!(s.peek("tls"), Some(Value::Text(text)) if text == PASSTHROUGH)
}

const PASSTHROUGH: &str = "passthrough";

fn tls(s: &mut Section<'_>, base: &Path) -> Option<At<Tls>> {
    if matches!(s.peek("tls"), Some(Value::Table(_))) {
        return s.section("tls", |s| At {
            place: s.place.clone(),
            key: s.key.clone(),
            value: Tls::Terminate(Box::new(terminate(s, base))),
        });
    }
    s.at("tls", |node| match &node.value {
        Value::Flag(false) => Ok(Tls::Off),
        Value::Flag(true) => Ok(Tls::Terminate(Box::default())),
        Value::Text(text) if text == PASSTHROUGH => Ok(Tls::Passthrough),
        _ => {
            Err(refuse(node, "a way to treat TLS", "a table with certificate and key, true, false or \"passthrough\""))
        }
    })
}

fn terminate(s: &mut Section<'_>, base: &Path) -> Terminate {
    let said = s.has("client");
    let client = s.get("client", choice("a way to treat clients' certificates", CLIENT));
    match client {
        Some(ClientCertificates::Optional | ClientCertificates::Required) if !s.has("client_ca") => {
            s.missing("client_ca", "the PEM file with the authorities that sign clients' certificates");
        }
        Some(ClientCertificates::Off) => report_no_client(s),
        None if !said => report_no_client(s),
        _ => {}
    }
    let certificates = s
        .list("certificates", |node, key, problems| Section::read(node, key, problems, |s| KeyPair::required(s, base)));
    Terminate {
        pair: KeyPair::read(s, base),
        certificates: certificates.unwrap_or_default(),
        client,
        client_ca: s.at("client_ca", path(base)),
        client_crl: s.at("client_crl", path(base)),
        only_tls13: s.get("min_version", choice("a version of TLS", &[("1.2", false), ("1.3", true)])),
        session_tickets: s.get("session_tickets", flag),
        handshake_timeout: s.get("handshake_timeout", duration(WAIT)),
    }
}

fn report_no_client(s: &mut Section<'_>) {
    let remedy = "expected client = \"required\" or client = \"optional\" beside it";
    for key in ["client_ca", "client_crl"] {
        if s.has(key) {
            s.refuse(key, "no client is asked for a certificate", remedy);
        }
    }
}

fn passthrough(s: &mut Section<'_>) -> Option<At<Passthrough>> {
    if matches!(s.peek("passthrough"), Some(Value::Table(_))) {
        return s.section("passthrough", |s| At {
            place: s.place.clone(),
            key: s.key.clone(),
            value: Passthrough::To(hosts(s)),
        });
    }
    s.at("passthrough", |node| match node.value {
        Value::Flag(false) => Ok(Passthrough::Off),
        Value::Flag(true) => Ok(Passthrough::To(Hosts::default())),
        _ => Err(refuse(node, "a truth value", "true, false, or a table with allow_ports, deny_networks and the like")),
    })
}

/// An empty list of what is allowed could mean all or nothing, and is refused.
fn hosts(s: &mut Section<'_>) -> Hosts {
    for (key, all) in [
        ("allow_ports", "at least one port, or no such key"),
        ("allow_networks", "at least one network, or no such key"),
    ] {
        if s.has(key) {
            s.needs_items(key, all);
        }
    }
    Hosts {
        allow_ports: port_list(s, "allow_ports"),
        deny_ports: port_list(s, "deny_ports"),
        allow_networks: networks(s, "allow_networks"),
        deny_networks: networks(s, "deny_networks"),
    }
}

fn port_list(s: &mut Section<'_>, key: &'static str) -> Vec<At<RangeInclusive<u16>>> {
    s.list(key, |node, key, problems| take_item(node, key, problems, ports)).unwrap_or_default()
}

pub(super) fn networks(s: &mut Section<'_>, key: &'static str) -> Vec<At<Network>> {
    s.list(key, |node, key, problems| take_item(node, key, problems, network)).unwrap_or_default()
}
