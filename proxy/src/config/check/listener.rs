//! A listener's defaults, and what only shows when its table is looked at as a whole.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::super::checked::{
    self, ClientCertificates, Forwarded, ListenerTls, Network, Passthrough, Protocol, TlsServer,
};
use super::super::listener::{self as written, Hosts, Listener, Terminate, Tls};
use super::super::problem::Problems;
use super::super::read::At;
use super::report_doubles;
use super::tls::{check_authorities, check_revocations};

/// None without an address, which has been reported. `has_common` says whether there are certificates for all listeners.
pub(super) fn check(listener: Listener, has_common: bool, problems: &mut Problems) -> Option<checked::Listener> {
    let protocol = listener.protocol.unwrap_or(Protocol::Http);
    let tls = listener.tls.map_or(ListenerTls::Off, |at| tls(at, has_common, problems));
    report_same_networks(&listener.proxy_protocol, problems);
    let max_connections = listener.max_connections.unwrap_or(checked::DEFAULT_MAX_CONNECTIONS);
    if let Some(at) = listener.max_connections_per_client.as_ref().filter(|at| at.value > max_connections) {
        let found = format!("{} is more than all clients may have together", at.value);
        problems.add(at.problem(found, format!("expected at most max_connections, which is {max_connections}")));
    }
    let max_header_bytes = listener.max_header_bytes.unwrap_or(64 << 10);
    if let Some(at) = listener.max_uri_bytes.as_ref().filter(|at| at.value > max_header_bytes) {
        let found = format!("{} is more than a whole head may have", at.value);
        problems.add(at.problem(found, format!("expected at most max_header_bytes, which is {max_header_bytes}")));
    }

    let passthrough = listener.passthrough.map(|at| match at.value {
        written::Passthrough::Off => None,
        written::Passthrough::To(hosts) => Some(passthrough(&hosts, problems)),
    });
    let address = listener.address?.value;
    // Behind somebody who speaks for others, clients are not on this machine.
    let local = address.ip().to_canonical().is_loopback() && listener.proxy_protocol.is_empty();
    let by_default = || (local && listener.service.is_none() && protocol != Protocol::Tcp).then(Passthrough::default);
    Some(checked::Listener {
        address,
        protocol,
        tls,
        passthrough: passthrough.unwrap_or_else(by_default),
        service: listener.service,
        proxy_protocol: listener.proxy_protocol.into_iter().map(|at| at.value).collect(),
        forwarded: listener.forwarded.unwrap_or(Forwarded::Off),
        expose_addresses: listener.expose_addresses.unwrap_or(local),
        detect_timeout: listener.detect_timeout.unwrap_or(Duration::from_millis(200)),
        header_timeout: listener.header_timeout.unwrap_or(Duration::from_secs(10)),
        body_timeout: listener.body_timeout.unwrap_or(Duration::from_secs(60)),
        request_deadline: listener.request_deadline,
        deadline_header: listener.deadline_header,
        idle_timeout: listener.idle_timeout.unwrap_or(Duration::from_secs(60 * 60)),
        max_connections,
        max_connections_per_client: listener.max_connections_per_client.map(|at| at.value),
        max_headers: listener.max_headers.unwrap_or(100),
        max_header_bytes,
        max_uri_bytes: listener.max_uri_bytes.map_or((16 << 10).min(max_header_bytes), |at| at.value),
        max_body_bytes: listener.max_body_bytes.map(|bytes| bytes as u64),
    })
}

fn tls(at: At<Tls>, has_common: bool, problems: &mut Problems) -> ListenerTls {
    let terminate = match &at.value {
        Tls::Off => return ListenerTls::Off,
        Tls::Passthrough => return ListenerTls::Passthrough,
        Tls::Terminate(terminate) => terminate,
    };
    let pairs = || std::iter::once(&terminate.pair).chain(&terminate.certificates);
    if pairs().all(|pair| pair.certificate.is_none() && pair.key.is_none()) && !has_common {
        let remedy = "expected certificate and key in it, or a [[certificate]] for all listeners";
        problems.add(at.problem("there is no certificate to present", remedy));
    }
    let files = pairs().filter_map(|pair| pair.certificate.as_ref());
    report_doubles(files.map(|at| (at.value.clone(), at)), "expected each certificate once", problems);
    ListenerTls::Terminate(TlsServer {
        certificates: pairs().filter_map(|pair| pair.check(problems)).collect(),
        client: client(terminate, problems),
        client_crl: revocations(terminate, problems),
        only_tls13: terminate.only_tls13.unwrap_or(false),
        session_tickets: terminate.session_tickets.unwrap_or(true),
        handshake_timeout: terminate.handshake_timeout.unwrap_or(Duration::from_secs(10)),
    })
}

fn client(terminate: &Terminate, problems: &mut Problems) -> ClientCertificates {
    check_authorities(terminate.client_ca.as_ref(), problems);
    let ca = terminate.client_ca.as_ref().map(|at| at.value.clone());
    match (terminate.client, ca) {
        (Some(written::ClientCertificates::Optional), Some(ca)) => ClientCertificates::Optional(ca),
        (Some(written::ClientCertificates::Required), Some(ca)) => ClientCertificates::Required(ca),
        _ => ClientCertificates::Off,
    }
}

fn revocations(terminate: &Terminate, problems: &mut Problems) -> Option<PathBuf> {
    check_revocations(terminate.client_crl.as_ref(), problems);
    terminate.client_crl.as_ref().map(|at| at.value.clone())
}

fn passthrough(hosts: &Hosts, problems: &mut Problems) -> Passthrough {
    report_same_networks(&hosts.allow_networks, problems);
    report_same_networks(&hosts.deny_networks, problems);
    report_denied(&hosts.allow_ports, &hosts.deny_ports, covers, shown, problems);
    report_denied(&hosts.allow_networks, &hosts.deny_networks, Network::covers, Network::to_string, problems);
    Passthrough {
        allow_ports: values(&hosts.allow_ports),
        deny_ports: values(&hosts.deny_ports),
        allow_networks: values(&hosts.allow_networks),
        deny_networks: values(&hosts.deny_networks),
    }
}

/// Reports what is allowed to no effect, because all of it is denied too.
fn report_denied<T>(
    allowed: &[At<T>],
    denied: &[At<T>],
    covers: impl Fn(&T, &T) -> bool,
    shown: impl Fn(&T) -> String,
    problems: &mut Problems,
) {
    for at in allowed {
        if let Some(by) = denied.iter().find(|by| covers(&by.value, &at.value)) {
            let found = format!("{} is denied by {} ({})", shown(&at.value), by.key, shown(&by.value));
            problems.add(at.problem(found, "expected it in only one of the two lists: what is denied stays so"));
        }
    }
}

fn covers(range: &RangeInclusive<u16>, other: &RangeInclusive<u16>) -> bool {
    range.contains(other.start()) && range.contains(other.end())
}

fn shown(ports: &RangeInclusive<u16>) -> String {
    match (ports.start(), ports.end()) {
        (from, to) if from == to => from.to_string(),
        (from, to) => format!("{from}-{to}"),
    }
}

fn report_same_networks(networks: &[At<Network>], problems: &mut Problems) {
    let all = networks.iter().map(|at| (at.value.to_string(), at));
    report_doubles(all, "expected each network once", problems);
}

fn values<T: Clone>(all: &[At<T>]) -> Vec<T> {
    all.iter().map(|at| at.value.clone()).collect()
}
