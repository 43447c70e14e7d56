//! What a layer of a connection is: found out from where it is, from its first bytes, or from the lack of them.
//!
//! Where the listener says what is spoken, nobody waits: clients of HTTP speak first, and what a TCP listener takes is
//! not looked at. Where anything may be spoken, the protocol may be one in which the server speaks first. A client that
//! has not said within `detect_timeout` what it speaks is therefore passed on to its service, which it waits for. The
//! same holds inside of a tunnel to a service. Silence changes nothing where nobody could break it: without a service,
//! and where what the service speaks is stated, since that is HTTP.
//!
//! Who must prove by a certificate who it is can do so over TLS only: where a listener ends TLS and requires one, nothing
//! else is served, whatever else may be spoken.
//!
//! # Who the client is
//!
//! What is passed on unread could be a request that says by a header who the client is (see [`crate::proto::headers`]),
//! and nobody would have removed that. A service that states that it speaks HTTP is therefore sent nothing else: what is
//! not recognized is refused, TLS that does not end here too. Only a TCP listener, where it is stated that nothing is
//! looked into, passes it on.
//!
//! On a listener that asks for certificates, where services are told who the client is, the same holds for every service
//! and every kind of listener: only a service of `protocol = "opaque"` is sent what is not recognized. Neither silence nor
//! a tunnel, SOCKS5, TLS inside of TLS or a change to an unknown protocol (see [`super::exchange`]) is a way around it.
//! [`crate::config::bypasses`] names the ways that a configuration leaves open.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::connection::{Connection, FAREWELL, Inside};
use super::h1;
use super::listener::Refused;
use super::refusal::Refusal;
use crate::config::checked::{self, ClientCertificates, ListenerTls, Protocol, UpstreamProtocol};
use crate::policy::Peer;
use crate::transport::Stream;
use crate::transport::detect::{Spoken, spoken_of_any, spoken_of_known};
use crate::transport::tls::{Hello, HelloReader};

/// A client's first TLS message, with the headers of its records, is no longer than the longest record where it is of any
/// use (RFC 8446, 5.1).
const LONGEST_HELLO: usize = 5 + 16 * 1024;

/// How long a client may take to begin its first request: what nginx allows (`client_header_timeout`).
const FIRST_REQUEST: Duration = Duration::from_secs(60);

/// What a layer is.
pub enum Layer {
    Http1,
    Http2,
    Socks5,
    /// TLS that ends here.
    Tls,
    /// Bytes for the connection's service.
    Opaque,
    /// TLS that passes on untouched, as this connection: it knows the server's name, and the service of that name.
    OpaqueTls(Box<Connection>),
}

/// What may be spoken on a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Opaque,
    Tls,
    /// What clients of HTTP speak.
    Known,
    Any,
}

fn expected(connection: &Connection) -> Expected {
    let settings = &connection.listener.settings;
    if connection.tunnel.is_some() {
        return Expected::Any;
    }
    outside_of_tunnels(settings, connection.ends_tls)
}

fn outside_of_tunnels(settings: &checked::Listener, ends_tls: bool) -> Expected {
    match (settings.protocol, &settings.tls) {
        (Protocol::Auto, ListenerTls::Terminate(tls))
            if !ends_tls && matches!(tls.client, ClientCertificates::Required(_)) =>
        {
            Expected::Tls
        }
        (Protocol::Auto, _) => Expected::Any,
        (_, ListenerTls::Terminate(_)) if !ends_tls => Expected::Tls,
        (Protocol::Tcp, ListenerTls::Passthrough) => Expected::Tls,
        (Protocol::Tcp, _) => Expected::Opaque,
        (Protocol::Http, _) => Expected::Known,
    }
}

/// What the layer is; none when the connection has ended, took too long to say, or was refused.
pub async fn find(connection: &Connection, stream: &mut Stream) -> Option<Layer> {
    let settings = &connection.listener.settings;
    let expected = expected(connection);
    let spoken = match expected {
        Expected::Opaque => return opaque(connection),
        _ if connection.ends_tls && connection.peer.as_ref().is_some_and(|peer| peer.http2) => Spoken::Http2,
        Expected::Any if takes_anything(connection) => {
            // By a clock of its own, since the worker's is too coarse for a moment that servers wait, too.
            let found = tokio::time::timeout(settings.detect_timeout, begin(stream, spoken_of_any));
            found.await.unwrap_or(Some(Spoken::Other))?
        }
        Expected::Any | Expected::Known | Expected::Tls => {
            let readable = poll_fn(|cx| stream.poll_readable(cx));
            if connection.worker.timers.within(patience(settings, expected), readable).await != Ok(true) {
                return None;
            }
            let tell = if expected == Expected::Any { spoken_of_any } else { spoken_of_known };
            connection.worker.timers.within(settings.header_timeout, begin(stream, tell)).await.ok()??
        }
    };
    match (expected, spoken) {
        (_, Spoken::Tls) => tls(connection, stream, expected).await,
        (Expected::Tls, Spoken::Http1 | Spoken::Http2) => {
            let refusal = Refusal::PlainToTls;
            refusal.record(&connection.worker.unrouted, Instant::now());
            say(connection, stream, &h1::last_bytes(&connection.worker, &refusal)).await;
            refuse(connection, Refused::Protocol)
        }
        (Expected::Tls, Spoken::Socks5 | Spoken::Other) => refuse(connection, Refused::Protocol),
        // Also the beginning of a preface and then the end.
        (_, Spoken::Http1) | (Expected::Known, Spoken::Other) => Some(Layer::Http1),
        (_, Spoken::Http2) => Some(Layer::Http2),
        // A tunnel within a tunnel is not opened: the service may speak SOCKS5 itself.
        (_, Spoken::Socks5) if connection.tunnel.is_none() => Some(Layer::Socks5),
        (_, Spoken::Socks5 | Spoken::Other) => opaque(connection),
    }
}

/// How long a client may say nothing at all. One of TLS speaks first, and at once; one of HTTP may connect before it has
/// a request, as browsers do, but who never has one must not keep a place for as long as who has had one.
fn patience(settings: &checked::Listener, expected: Expected) -> Duration {
    match (expected, &settings.tls) {
        (Expected::Tls, ListenerTls::Terminate(tls)) => tls.handshake_timeout,
        (Expected::Tls, _) => settings.header_timeout,
        _ => settings.idle_timeout.min(FIRST_REQUEST),
    }
}

/// Reads until it is told what is spoken; none when the stream ends before.
async fn begin(stream: &mut Stream, tell: fn(&[u8]) -> Option<Spoken>) -> Option<Spoken> {
    loop {
        if let Some(spoken) = tell(stream.ahead()) {
            return Some(spoken);
        }
        if !stream.read_ahead().await.ok()? {
            return (!stream.ahead().is_empty()).then_some(Spoken::Other);
        }
    }
}

fn opaque(connection: &Connection) -> Option<Layer> {
    if takes_anything(connection) { Some(Layer::Opaque) } else { refuse(connection, Refused::Protocol) }
}

/// Whether there is a service that takes bytes of which nobody knows what they are.
fn takes_anything(connection: &Connection) -> bool {
    let settings = &connection.listener.settings;
    let speaks = connection.service().map(|local| local.service.settings.protocol);
    connection.is_bound() && passes_on(settings, speaks)
}

/// Whether a listener passes on what is not recognized to a service that speaks this; none where it is not known yet.
fn passes_on(settings: &checked::Listener, speaks: Option<UpstreamProtocol>) -> bool {
    match speaks {
        Some(UpstreamProtocol::Opaque) => true,
        _ if settings.asks_for_certificates() => false,
        Some(UpstreamProtocol::Negotiated) | None => true,
        Some(UpstreamProtocol::Http1 | UpstreamProtocol::Http2) => settings.protocol == Protocol::Tcp,
    }
}

fn refuse<T>(connection: &Connection, reason: Refused) -> Option<T> {
    connection.listener.refused(reason);
    tracing::debug!(target: "heddle::server", client = %connection.client, "refused: {reason}");
    None
}

/// What becomes of TLS.
async fn tls(connection: &Connection, stream: &mut Stream, expected: Expected) -> Option<Layer> {
    let listener = &connection.listener;
    let is_outside = connection.tunnel.is_none() && !connection.ends_tls;
    if is_outside && matches!(listener.settings.tls, ListenerTls::Terminate(_)) {
        return Some(Layer::Tls);
    }
    let passes = is_outside && listener.settings.tls == ListenerTls::Passthrough;
    if expected == Expected::Known {
        // HTTP/1 has a status for those who speak TLS where there is none.
        return Some(Layer::Http1);
    }
    let Hello::Whole(name) = hello(connection, stream).await? else { return opaque(connection) };
    let ends = connection
        .tunnel
        .as_ref()
        .is_some_and(|tunnel| !connection.ends_tls && listener.tls.covers(name.as_deref().unwrap_or(&tunnel.host)));
    if ends {
        return Some(Layer::Tls);
    }
    let mut onward = connection.clone();
    let before = connection.peer.as_deref();
    onward.peer = Some(Arc::new(Peer {
        server_name: name.as_deref().map(Arc::from),
        identity: before.and_then(|peer| peer.identity.clone()),
        http2: false,
    }));
    if passes
        && let Some(host) = name.as_deref()
        && let Some(service) = connection.worker.service_of_host(host)
    {
        onward.tunnel = Some(Inside { service: service.service.name().clone(), host: host.into() });
    }
    if takes_anything(&onward) {
        return Some(Layer::OpaqueTls(Box::new(onward)));
    }
    if onward.is_bound() {
        return refuse(connection, Refused::Protocol);
    }
    say(connection, stream, &UNRECOGNIZED_NAME).await;
    refuse(connection, Refused::ServerName)
}

/// A fatal alert that nobody of that name is here (RFC 8446, 6.2; RFC 6066, 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client begins TLS with; none when it takes too long.
async fn hello(connection: &Connection, stream: &mut Stream) -> Option<Hello> {
    let mut reader = HelloReader::default();
    let read = async {
        loop {
            match reader.read(stream.ahead()) {
                Hello::Incomplete if stream.ahead().len() > LONGEST_HELLO => return Some(Hello::Other),
                Hello::Incomplete if stream.read_ahead().await.ok()? => {}
                Hello::Incomplete => return Some(Hello::Other),
                hello => return Some(hello),
            }
        }
    };
    connection.worker.timers.within(connection.listener.settings.header_timeout, read).await.ok()?
}

/// Says something last.
async fn say(connection: &Connection, stream: &mut Stream, bytes: &[u8]) {
    let said = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    let _who_is_gone_needs_no_reason = connection.worker.timers.within(FAREWELL, said).await;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn listener(settings: &str) -> checked::Listener {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{settings}\n");
        let config = crate::config::parse(&text, Path::new("test"), &[]).expect("a configuration").config;
        config.listeners.into_iter().next().expect("a listener")
    }

    #[test]
    fn what_requires_a_certificate_is_spoken_over_tls() {
        let ca = std::path::PathBuf::from("ca.pem");
        for protocol in ["auto", "http"] {
            let inside = if protocol == "auto" { Expected::Any } else { Expected::Known };
            for (client, open) in [
                (ClientCertificates::Off, protocol == "auto"),
                (ClientCertificates::Optional(ca.clone()), protocol == "auto"),
                (ClientCertificates::Required(ca.clone()), false),
            ] {
                let mut settings = listener(&format!("protocol = \"{protocol}\""));
                settings.tls = ListenerTls::Terminate(checked::TlsServer {
                    certificates: Vec::new(),
                    client: client.clone(),
                    client_crl: None,
                    only_tls13: false,
                    session_tickets: true,
                    handshake_timeout: Duration::from_secs(10),
                });
                let outside = if open { inside } else { Expected::Tls };
                let found = [false, true].map(|ends_tls| outside_of_tunnels(&settings, ends_tls));
                assert_eq!(found, [outside, inside], "{protocol} {client:?}");
            }
        }
    }

    #[test]
    fn who_has_said_nothing_at_all_is_waited_for_less_than_who_has() {
        assert_eq!(patience(&listener(""), Expected::Known), FIRST_REQUEST);
        assert_eq!(patience(&listener("protocol = \"auto\""), Expected::Any), FIRST_REQUEST);
        let impatient = listener("idle_timeout = \"5s\"");
        assert_eq!(patience(&impatient, Expected::Known), Duration::from_secs(5));
    }
}
