//! TLS to endpoints: whom it trusts, what it shows, and what is spoken inside.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/nginx.rs"]
mod nginx;
#[path = "support/process.rs"]
mod process;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use http::{Endpoint, Message, OK, Proxy, Wire, one_listener, users, wait_until};
use http2::{Http2Endpoint, Manners};
use nginx::Nginx;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tls::{Authority, Pair};
use tokio::sync::watch;

/// A proxy whose service `users` is at this address.
fn proxy_to(address: SocketAddr, service: &str) -> Proxy {
    // A busy machine takes its time.
    let patience = if service.contains("connect_timeout") { "" } else { "connect_timeout = \"10s\"\n" };
    let listener = one_listener("");
    Proxy::start(&format!("{listener}[service.users]\nendpoints = [\"{address}\"]\n{patience}{service}\n"))
}

fn trusting(authority: &Authority, more: &str) -> String {
    format!("tls = {{ ca = {:?}{more} }}\n", authority.file())
}

fn get(proxy: &Proxy) -> Message {
    proxy.client().get("/")
}

#[test]
fn what_is_spoken_is_agreed_on() {
    let authority = Authority::new();
    let pair = authority.issue("server", &["127.0.0.1"]);
    let folder = authority.folder.path();
    let (old, new) = (Nginx::start(folder, &pair, "", ""), Nginx::start(folder, &pair, "http2", ""));
    for (nginx, protocol, spoken) in [
        (&old, "negotiated", "HTTP/1.1"),
        (&new, "negotiated", "HTTP/2.0"),
        (&old, "http1", "HTTP/1.1"),
        (&new, "http1", "HTTP/1.1"),
        (&new, "http2", "HTTP/2.0"),
    ] {
        let proxy = proxy_to(nginx.address, &format!("{}protocol = \"{protocol}\"", trusting(&authority, "")));
        for _ in 0..3 {
            let answer = get(&proxy);
            assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{protocol}: {answer:?}");
            assert_eq!(answer.header("x-protocol").as_deref(), Some(spoken), "{protocol}");
            // An address is no name to ask for.
            assert_eq!(answer.header("x-name").unwrap_or_default(), "");
        }
        assert_eq!(proxy.upstream_connections(), 1, "{protocol}");
    }
    let proxy = proxy_to(old.address, &format!("{}protocol = \"http2\"", trusting(&authority, "")));
    get(&proxy).assert_refused(502, "upstream", "tls_protocol_error");
}

#[test]
fn an_endpoint_has_to_be_who_it_should_be() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    let folder = authority.folder.path();
    let by_address = Nginx::start(folder, &authority.issue("address", &["127.0.0.1"]), "", "");
    let by_name = Nginx::start(folder, &authority.issue("name", &["users.example"]), "", "");
    let unknown = Nginx::start(folder, &stranger.issue("unknown", &["127.0.0.1"]), "", "");
    let expired = authority.issue_with("expired", &["127.0.0.1"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let expired = Nginx::start(folder, &expired, "", "");
    let refused = |nginx: &Nginx, more: &str| {
        get(&proxy_to(nginx.address, &trusting(&authority, more))).assert_refused(
            502,
            "upstream",
            "tls_certificate_error",
        );
    };
    assert_eq!(get(&proxy_to(by_address.address, &trusting(&authority, ""))).status(), 200);
    let answer = get(&proxy_to(by_name.address, &trusting(&authority, ", server_name = \"users.example\"")));
    assert_eq!((answer.status(), answer.header("x-name").as_deref()), (200, Some("users.example")));
    refused(&by_address, ", server_name = \"users.example\"");
    refused(&by_name, "");
    refused(&unknown, "");
    refused(&expired, "");
    // An endpoint without TLS, and TLS where none is expected.
    let plain = Endpoint::start(|_, mut wire| wire.send(OK));
    get(&proxy_to(plain.address, &trusting(&authority, ""))).assert_refused(502, "upstream", "tls_protocol_error");
    assert_eq!(get(&proxy_to(by_address.address, "")).status(), 400);
}

#[test]
fn the_proxy_proves_who_it_is() {
    let authority = Authority::new();
    let (server, own) = (authority.issue("server", &["127.0.0.1"]), authority.issue("proxy", &["proxy.example"]));
    let verify = format!("ssl_verify_client on; ssl_client_certificate {};", authority.path());
    for listen in ["", "http2"] {
        let nginx = Nginx::start(authority.folder.path(), &server, listen, &verify);
        let answer = get(&proxy_to(nginx.address, &trusting(&authority, &format!(", {}", own.keys()))));
        assert_eq!((answer.status(), answer.header("x-client").as_deref()), (200, Some("CN=proxy")), "{answer:?}");
        // This is how nginx says that there was no certificate.
        assert_eq!(get(&proxy_to(nginx.address, &trusting(&authority, ""))).status(), 400);
    }
    // Others break the connection off, which with TLS 1.3 is known only after the request has been sent.
    let endpoint = Endpoint::saying(OK);
    let required = format!(
        "service = \"users\"\ntls = {{ {}, client = \"required\", client_ca = {:?} }}",
        server.keys(),
        authority.file()
    );
    let behind = Proxy::start(&format!("via = \"behind\"\n{}{}", one_listener(&required), users(&[&endpoint], "")));
    for protocol in ["http1", "http2", "negotiated"] {
        let answer = |client: &str| {
            let service = format!("{}protocol = \"{protocol}\"", trusting(&authority, client));
            get(&proxy_to(behind.addresses[0], &service))
        };
        answer("").assert_refused(502, "upstream", "tls_protocol_error");
        assert_eq!(answer(&format!(", {}", own.keys())).status(), 200);
        assert_eq!(endpoint.last().header("x-forwarded-client-cert").as_deref(), Some("DNS=proxy.example"));
    }
}

#[test]
fn the_system_says_whom_to_trust() {
    let authority = Authority::new();
    let nginx = Nginx::start(authority.folder.path(), &authority.issue("server", &["127.0.0.1"]), "", "");
    let config = authority.folder.path().join("heddle.toml");
    let text = format!(
        "workers = 1\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n[service.users]\nendpoints = [\"{}\"]\ntls = true\nconnect_timeout = \"10s\"\n",
        nginx.address
    );
    fs::write(&config, text).expect("written");
    for (trusted, status) in [(&authority, 200), (&Authority::named("stranger"), 502)] {
        let mut command = process::command(&["run", "--config", &config.display().to_string()]);
        command.env("HEDDLE_LOG", "info").env("SSL_CERT_FILE", trusted.file()).env_remove("SSL_CERT_DIR");
        let heddle = process::Heddle::start(command);
        let address = heddle.address("listening on ");
        let answer = process::wait_for("it is ready", || {
            let answer = process::get(address, "/");
            (answer.status != 503).then_some(answer)
        });
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[test]
fn sessions_are_resumed() {
    let authority = Authority::new();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let pair = authority.issue("server", &["127.0.0.1"]);
        let more = format!("keepalive_requests 1; ssl_protocols {version};");
        let nginx = Nginx::start(authority.folder.path(), &pair, "", &more);
        let proxy = proxy_to(nginx.address, &trusting(&authority, ""));
        let reused = || get(&proxy).header("x-reused").expect("a header");
        assert_eq!([reused(), reused(), reused()], [".", "r", "r"], "{version}");
    }
}

/// What a service trusts and shows is followed like everything else.
#[test]
fn files_are_followed() {
    let (authority, second) = (Authority::new(), Authority::named("second"));
    let path = |name: &str| authority.folder.path().join(name);
    let server = second.issue("server", &["127.0.0.1"]);
    let verify = format!("keepalive_requests 1; ssl_verify_client on; ssl_client_certificate {};", second.path());
    let nginx = Nginx::start(authority.folder.path(), &server, "", &verify);
    let (ca, own) = (path("trusted.pem"), authority.issue("own", &["proxy.example"]));
    fs::copy(authority.file(), &ca).expect("copied");
    let proxy = proxy_to(nginx.address, &format!("tls = {{ ca = {ca:?}, {} }}", own.keys()));
    get(&proxy).assert_refused(502, "upstream", "tls_certificate_error");
    fs::copy(second.file(), path("new.pem")).expect("copied");
    fs::rename(path("new.pem"), &ca).expect("renamed");
    wait_until("the endpoint is trusted", || get(&proxy).status() == 400);
    let new = second.issue("new", &["proxy.example"]);
    fs::copy(&new.key, &own.key).expect("copied");
    fs::copy(&new.certificate, &own.certificate).expect("copied");
    wait_until("the proxy is trusted", || get(&proxy).status() == 200);
}

#[test]
fn connecting_includes_the_handshake() {
    let authority = Authority::new();
    let silent = Endpoint::start(|_, mut wire| while wire.exactly(1).is_ok() {});
    let proxy = proxy_to(silent.address, &format!("{}connect_timeout = \"200ms\"", trusting(&authority, "")));
    get(&proxy).assert_refused(504, "upstream", "connection_timeout");
    wait_until("it is given up", || proxy.upstream_connections() == 0);
}

/// TLS in front of two endpoints, one for each protocol: which of them is agreed on changes when a test says so.
struct Front {
    address: SocketAddr,
    http2: watch::Sender<bool>,
}

impl Front {
    /// With HTTP/2 at first.
    fn start(pair: &Pair, h1: SocketAddr, h2: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a mode");
        let address = listener.local_addr().expect("an address");
        let (http2, told) = watch::channel(true);
        let configs = [b"http/1.1".to_vec(), b"h2".to_vec()].map(|protocol| Arc::new(server_config(pair, protocol)));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let mut told = told.clone();
                    let http2 = *told.borrow_and_update();
                    let (config, to) = (configs[usize::from(http2)].clone(), if http2 { h2 } else { h1 });
                    tokio::spawn(async move {
                        let Ok(mut tls) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else { return };
                        let mut behind = tokio::net::TcpStream::connect(to).await.expect("an endpoint");
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut tls, &mut behind) => {}
                            _ = told.changed() => {}
                        }
                    });
                }
            });
        });
        Self { address, http2 }
    }
}

fn server_config(pair: &Pair, protocol: Vec<u8>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let chain = vec![CertificateDer::from_pem_file(&pair.certificate).expect("PEM")];
    let key = PrivateKeyDer::from_pem_file(&pair.key).expect("PEM");
    let builder = builder.expect("versions").with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).expect("a pair");
    config.alpn_protocols = vec![protocol];
    config
}

#[test]
fn an_endpoint_may_change_its_mind() {
    let authority = Authority::new();
    let (h1, h2) = (Endpoint::saying(OK), Http2Endpoint::start(Manners::default()));
    let front = Front::start(&authority.issue("front", &["127.0.0.1"]), h1.address, h2.address);
    let proxy = proxy_to(front.address, &trusting(&authority, ""));
    for round in 1..3 {
        // A connection that was broken off may be found so only when it is used.
        wait_until("HTTP/2 is spoken", || get(&proxy).status() == 200 && h2.requests().len() >= round);
        front.http2.send_replace(false);
        wait_until("HTTP/1.1 is spoken", || get(&proxy).status() == 200 && h1.requests().len() >= round);
        front.http2.send_replace(true);
        let before = h2.requests().len();
        wait_until("HTTP/2 is spoken again", || get(&proxy).status() == 200 && h2.requests().len() > before);
    }
    assert_eq!(h2.requests()[0].head.uri.scheme_str(), Some("https"));
}

/// What came in parallel before anything was agreed on.
#[test]
fn first_requests_share_a_connection_where_they_can() {
    let authority = Authority::new();
    let (h1, h2) = (Endpoint::saying(OK), Http2Endpoint::start(Manners::default()));
    let front = Front::start(&authority.issue("front", &["127.0.0.1"]), h1.address, h2.address);
    for http2 in [true, false] {
        front.http2.send_replace(http2);
        let proxy = proxy_to(front.address, &trusting(&authority, ""));
        let mut clients: Vec<Wire> = (0..20).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n"));
        clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
        let spoken = if http2 { h2.connections() } else { h1.connections() };
        assert!(if http2 { spoken == 1 } else { (1..=20).contains(&spoken) }, "{spoken} with HTTP/2: {http2}");
        assert_eq!(proxy.upstream_connections() as usize, spoken);
    }
}

/// gRPC asks whether trailers are taken, and is told by an endpoint that speaks HTTP/2 only. Cookies are one header for
/// those that do not.
#[test]
fn a_request_is_made_ready_for_either() {
    let authority = Authority::new();
    let (h1, h2) = (Endpoint::saying(OK), Http2Endpoint::start(Manners::default()));
    let front = Front::start(&authority.issue("front", &["127.0.0.1"]), h1.address, h2.address);
    for http2 in [true, false] {
        front.http2.send_replace(http2);
        let proxy = proxy_to(front.address, &trusting(&authority, ""));
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: users\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
        assert_eq!(client.response().status(), 200);
        if http2 {
            assert_eq!(h2.requests()[0].head.headers["te"], "trailers");
        } else {
            assert_eq!(h1.last().header("te"), None);
        }
    }
}

/// Passes on what a client of TLS sends to a server in pieces of this size, and says how long its first message is.
fn in_pieces(server: SocketAddr, size: usize) -> (Endpoint, Arc<Mutex<Vec<usize>>>) {
    let lengths: Arc<Mutex<Vec<usize>>> = Arc::default();
    let seen = lengths.clone();
    let relay = Endpoint::start(move |_, mut wire| {
        let start = wire.exactly(5).expect("a record");
        let rest = wire.exactly(usize::from(u16::from_be_bytes([start[3], start[4]]))).expect("a record");
        let hello = [start, rest].concat();
        seen.lock().unwrap().push(hello.len());
        let mut behind = std::net::TcpStream::connect(server).expect("a server");
        behind.set_nodelay(true).expect("no delay");
        for piece in hello.chunks(size) {
            behind.write_all(piece).expect("sent");
        }
        let (mut from, mut to) = (behind.try_clone().expect("a clone"), wire.stream.try_clone().expect("a clone"));
        let back = thread::spawn(move || {
            let _the_end = std::io::copy(&mut from, &mut to);
            let _it_may_have_ended = to.shutdown(std::net::Shutdown::Write);
        });
        let _the_end = std::io::copy(&mut wire.stream, &mut behind);
        let _it_may_have_ended = behind.shutdown(std::net::Shutdown::Write);
        back.join().expect("no panic");
    });
    (relay, lengths)
}

/// Issue 10, 11: what is agreed on with endpoints. The first message is larger than a packet, and reaches endpoints that
/// know the group and those that do not, however it is cut up on the way.
#[test]
fn the_key_exchange_with_endpoints_withstands_a_quantum_computer() {
    let authority = Authority::new();
    let name = [&*"a".repeat(60), &*"b".repeat(60), &*"c".repeat(60), "example"].join(".");
    let pair = authority.issue("server", &[&name]);
    let web = Endpoint::saying(OK);
    let tls = one_listener(&format!("service = \"users\"\ntls = {{ {} }}", pair.keys()));
    let known = Proxy::start(&format!("via = \"behind\"\n{tls}{}", users(&[&web], "")));
    // Servers of OpenSSL that have not heard of it: the client's second choice stands in the first message, too.
    let [unknown, old] = ["1.3", "1.2"]
        .map(|version| Nginx::start(authority.folder.path(), &pair, "", &format!("ssl_protocols TLSv{version};")));
    let trust = trusting(&authority, &format!(", server_name = \"{name}\""));
    for (server, version, group) in [
        (known.addresses[0], "1.3", "X25519MLKEM768"),
        (unknown.address, "1.3", "x25519"),
        (old.address, "1.2", "x25519"),
    ] {
        for size in [1, 1000, 1 << 16] {
            let (relay, lengths) = in_pieces(server, size);
            let proxy = proxy_to(relay.address, &trust);
            assert_eq!(get(&proxy).text(), "ok", "{group} by {size}");
            let lengths = lengths.lock().unwrap().clone();
            assert!(lengths.iter().all(|length| *length > 1500), "{lengths:?}");
            let counted = proxy.app().state.endpoint_handshakes.totals();
            assert_eq!(counted, [([version, group, "full"], 1)], "by {size}");
        }
    }
}
