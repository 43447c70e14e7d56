//! WebSockets and other changes of protocol, over HTTP/1.1 and by HTTP/2's extended CONNECT.

#![cfg(test)]

#[path = "support/frames.rs"]
mod frames;
#[path = "support/http.rs"]
mod http1;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/peer.rs"]
mod peer;

use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, mpsc};

use frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, SETTINGS, STATUS_200};
use http::{Method, Request};
use http1::{DEADLINE, Endpoint, Message, OK, Proxy, Wire, one_listener, wait_until};
use http2::{Http2Client, Http2Endpoint, Manners, body};
use peer::Peer;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A WebSocket's request, with the example key of RFC 6455.
const ASK: &str = "GET /chat HTTP/1.1\r\nHost: users\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const GRANT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441, 3), switched on.
const CONNECT_PROTOCOL: [u8; 6] = [0, 8, 0, 0, 0, 1];

fn server() -> (Peer, String) {
    let peer = Peer::start("ws_server", "websockets", &[]);
    let address = format!("127.0.0.1:{}", peer.wait_for("port "));
    (peer, address)
}

fn to(endpoint: &str) -> Proxy {
    Proxy::start(&format!("{}[service.users]\nendpoints = [\"{endpoint}\"]\n", one_listener("")))
}

/// Whether nothing is left of an exchange or a tunnel.
fn is_free(proxy: &Proxy) -> bool {
    proxy.in_flight() == 0 && proxy.upstream_connections() == 0
}

#[test]
fn python_on_both_sides() {
    let (server, address) = server();
    let proxy = to(&address);
    let at = proxy.addresses[0];
    Peer::start("ws_client", "websockets", &[&at.ip().to_string(), &at.port().to_string()]).finish();
    server.wait_for("opened chat");
    server.wait_for("closed 4000");
    server.wait_for("closed 4001");
    wait_until("nothing is left", || is_free(&proxy));
}

#[test]
fn curl_is_upgraded() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
        wire.send([GRANT, "and more"].concat());
    });
    let proxy = Proxy::to(&endpoint);
    let url = format!("http://{}/chat", proxy.addresses[0]);
    let output = Command::new("curl")
        .args([
            "-sSiN",
            "--http1.1",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "-H",
            "Host: users",
            "-H",
            "Upgrade: websocket",
        ])
        .args(["-H", "Connection: Upgrade", "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", &url])
        .output()
        .expect("curl");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("HTTP/1.1 101 ") && said.ends_with("\r\n\r\nand more"), "{said:?}");
}

#[test]
fn nothing_passes_before_the_endpoint_has_agreed() {
    let (heads, head) = mpsc::channel();
    let (granted, grant) = mpsc::channel::<()>();
    let grant = std::sync::Mutex::new(grant);
    let endpoint = Endpoint::start(move |number, mut wire| {
        if number == 1 {
            wire.head();
            wire.send(OK);
            return;
        }
        heads.send(wire.head().expect("a head")).expect("somebody listens");
        grant.lock().unwrap().recv().expect("the word");
        assert!(wire.is_silent(), "bytes that came too early");
        // What follows the head at once belongs to what is spoken from now on.
        wire.send([GRANT, "at once"].concat());
        assert_eq!(wire.exactly(5).expect("bytes"), b"early");
        wire.send("late");
        wire.expect_end();
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send([ASK, "early"].concat());
    let asked = head.recv_timeout(DEADLINE).expect("a head");
    assert_eq!(asked.start, "GET /chat HTTP/1.1");
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("host", "users"),
    ] {
        assert_eq!(asked.header(name).as_deref(), Some(value));
    }
    assert!(asked.header("via").is_some());
    // The worker has served another request since: had it anything to pass on, that would have been sent.
    assert_eq!(proxy.client().get("/").status(), 200);
    assert!(client.is_silent());
    granted.send(()).expect("somebody listens");
    let answer = client.head().expect("a head");
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(answer.header("connection").as_deref(), Some("upgrade"));
    assert_eq!(answer.header("sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!((answer.header("content-length"), answer.header("transfer-encoding")), (None, None));
    assert_eq!(client.exactly(11).expect("bytes"), b"at oncelate");
    assert_eq!(proxy.in_flight(), 1, "a tunnel is under way");
    drop(client);
    wait_until("nothing is left", || proxy.in_flight() == 0);
}

/// CVE-2026-2833: what a client sends behind a request for an upgrade is HTTP again when the answer is no 101.
#[test]
fn an_upgrade_that_is_not_granted_leaves_http() {
    for answer in ["HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", OK] {
        let endpoint = Endpoint::saying(answer);
        let proxy = Proxy::to(&endpoint);
        let mut client = proxy.client();
        client.send([ASK, "GET /next HTTP/1.1\r\nHost: users\r\nX-Bare: 1\r\nConnection: x-bare\r\n\r\n"].concat());
        let status = Message { start: answer.to_owned(), ..Message::default() }.status();
        assert_eq!(client.response().status(), status);
        assert_eq!(client.response().status(), status);
        assert_eq!(client.get("/third").status(), status);
        let [asked, next, third] = &endpoint.requests()[..] else { panic!("{:?}", endpoint.requests()) };
        assert_eq!(asked.header("upgrade").as_deref(), Some("websocket"));
        // It was read, and written anew.
        assert_eq!((next.start.as_str(), next.header("x-bare")), ("GET /next HTTP/1.1", None));
        assert!(next.header("via").is_some() && third.header("via").is_some());
        // One that no longer makes sense is refused by the proxy, and not the endpoint's to see.
        client.send([ASK, "\x01\x02no HTTP at all\r\n\r\n"].concat());
        assert_eq!(client.response().status(), status);
        assert_eq!(client.response().status(), 400);
        client.expect_end();
        assert_eq!((endpoint.requests().len(), endpoint.connections()), (4, 1));
    }
}

#[test]
fn only_what_was_asked_for_can_be_granted() {
    for granted in ["h2c", "websocket, h2c", "x"] {
        let endpoint = Endpoint::start(move |_, mut wire| {
            wire.head();
            wire.send(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {granted}\r\n\r\n"));
            wire.expect_end();
        });
        let proxy = Proxy::to(&endpoint);
        let mut client = proxy.client();
        client.send([ASK, "GET / HTTP/1.1\r\nHost: users\r\n"].concat());
        client.response().assert_refused(502, "upstream", "http_protocol_error");
        wait_until("nothing is left", || is_free(&proxy));
    }
}

#[test]
fn nobody_is_upgraded_who_has_not_asked() {
    let endpoint = Endpoint::saying(GRANT);
    let proxy = Proxy::to(&endpoint);
    let requests = [
        "GET / HTTP/1.1\r\nHost: users\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: users\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: users\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
        "GET / HTTP/1.1\r\nHost: users\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
    ];
    for request in requests {
        let mut client = proxy.client();
        client.send(request);
        client.response().assert_refused(502, "upstream", "http_protocol_error");
        let seen = endpoint.last();
        let kept = ["connection", "upgrade", "http2-settings"].map(|name| seen.header(name));
        assert_eq!(kept, [None, None, None], "{request:?}");
    }
    assert_eq!(endpoint.requests().len(), requests.len());
}

#[test]
fn any_protocol_may_be_changed_to_on_a_pooled_connection() {
    let endpoint = Endpoint::start(|_, mut wire| {
        while let Some(request) = wire.request() {
            if request.header("upgrade").is_none() {
                wire.send(OK);
                continue;
            }
            assert_eq!(request.header("upgrade").as_deref(), Some("echo/1"));
            wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ECHO/1\r\n\r\n");
            let bytes = wire.exactly(1 << 20).expect("bytes");
            wire.send(bytes);
            return;
        }
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 200);
    client.send("POST / HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: echo/1, h2c\r\n\r\n");
    assert_eq!(client.head().expect("a head").header("upgrade").as_deref(), Some("ECHO/1"));
    let bytes = http1::bytes(1 << 20);
    client.send(&bytes);
    assert!(client.exactly(1 << 20).expect("bytes") == bytes);
    client.expect_end();
    drop(client);
    assert_eq!(endpoint.connections(), 1);
    wait_until("nothing is left", || is_free(&proxy));
}

#[test]
fn hosts_that_are_no_services_may_be_upgraded_too() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
        wire.send([GRANT, "hello"].concat());
    });
    let proxy = Proxy::start(&one_listener(""));
    let mut client = proxy.client();
    client.send(ASK.replace("GET /", &format!("GET http://{}/", endpoint.address)));
    assert_eq!(client.head().expect("a head").status(), 101);
    assert_eq!(client.exactly(5).expect("bytes"), b"hello");
    client.expect_end();
}

#[test]
fn a_tunnel_that_stands_still_is_ended() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
        wire.send(GRANT);
        wire.expect_end();
    });
    let proxy = Proxy::with(&[&endpoint], "", "tunnel_idle_timeout = \"200ms\"");
    let mut client = proxy.client();
    client.send(ASK);
    assert_eq!(client.head().expect("a head").status(), 101);
    client.expect_end();
    wait_until("nothing is left", || is_free(&proxy));
}

#[test]
fn endpoints_of_http_2_cannot_be_upgraded() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let proxy = Proxy::start(&format!(
        "{}[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n",
        one_listener(""),
        endpoint.address
    ));
    let mut client = proxy.client();
    client.send(ASK);
    client.response().assert_refused(501, "router", "http_request_denied");
    assert_eq!(client.get("/").status(), 200, "the connection goes on");
}

/// Over TLS the endpoint would rather speak HTTP/2, in which there is no upgrade: it is not offered to it.
#[test]
fn an_endpoint_that_negotiates_is_asked_in_http_1() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).expect("written");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let (heads, head) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, wire| {
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).expect("a session"), wire.stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            tls.read_exact(&mut byte).expect("a whole head");
            head.extend(byte);
        }
        heads.send((tls.conn.alpn_protocol().map(<[u8]>::to_vec), head)).expect("somebody listens");
        tls.write_all([GRANT, "hello"].concat().as_bytes()).expect("sent");
        let mut early = [0; 5];
        tls.read_exact(&mut early).expect("bytes");
        assert_eq!(early, *b"early");
        tls.write_all(b"bye").expect("sent");
    });
    let proxy = Proxy::with(&[&endpoint], "", &format!("tls = {{ ca = {ca:?}, server_name = \"localhost\" }}"));
    let mut client = proxy.client();
    client.send([ASK, "early"].concat());
    assert_eq!(client.head().expect("a head").status(), 101);
    assert_eq!(client.exactly(8).expect("bytes"), b"hellobye");
    let (agreed, head) = head.recv_timeout(DEADLINE).expect("a head");
    assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
    assert!(head.starts_with(b"GET /chat HTTP/1.1\r\n"));
}

/// The header block of an extended CONNECT for `users`.
fn extended_connect(protocol: &str) -> Vec<u8> {
    let lines = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", "/chat?room=1"),
        (":authority", "users"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
    ];
    lines.map(|(name, value)| frames::literal(name, value)).concat()
}

#[test]
fn a_websocket_over_http_2_is_one_over_http_1_to_its_endpoint() {
    let (server, address) = server();
    let proxy = to(&address);
    let mut client = Frames::client(Wire::connect(proxy.addresses[0]));
    let settings = client.until(SETTINGS).payload;
    assert!(settings.chunks(6).any(|setting| setting == CONNECT_PROTOCOL), "{settings:?}");
    client.send(HEADERS, END_HEADERS, 1, &extended_connect("websocket"));
    // A real server has agreed, with the right answer to a key that the client knows nothing of.
    let answer = client.until(HEADERS);
    assert_eq!((answer.payload[0], answer.flags & END_STREAM), (STATUS_200, 0));
    server.wait_for("opened chat");
    assert_eq!(proxy.in_flight(), 1);
    // A text of "hello", masked with zeroes, and its echo, which is not masked.
    client.send(DATA, 0, 1, b"\x81\x85\0\0\0\0hello");
    assert_eq!(client.until(DATA).payload, b"\x81\x05hello");
    // Another stream goes on beside it.
    client.send(HEADERS, END_HEADERS, 3, &extended_connect("websocket"));
    assert_eq!(client.until(HEADERS).stream, 3);
    client.send(DATA, 0, 1, b"\x81\x82\0\0\0\0hi");
    assert_eq!(client.until(DATA).payload, b"\x81\x02hi");
    // Closed by the client with 4000, which the server answers; then both ends end.
    client.send(DATA, 0, 1, b"\x88\x82\0\0\0\0\x0f\xa0");
    assert_eq!(client.until(DATA).payload[..4], *b"\x88\x02\x0f\xa0");
    client.send(DATA, END_STREAM, 1, b"");
    server.wait_for("closed 4000");
    wait_until("one is left", || proxy.in_flight() == 1);
    // Cancelled by the client: the server sees its connection end.
    client.send(frames::RST_STREAM, 0, 3, &8_u32.to_be_bytes());
    server.wait_for("closed 1006");
    wait_until("nothing is left", || is_free(&proxy));
}

#[test]
fn an_extended_connect_that_is_not_granted_is_no_tunnel() {
    let send = |answer: &'static str, protocol: &'static str| {
        let endpoint = Endpoint::saying(answer);
        let proxy = Proxy::to(&endpoint);
        let client = Http2Client::connect(proxy.addresses[0]);
        // Its settings are known with the first answer.
        client.send(Request::get("http://nobody/").body(body(&[], &[])).expect("a request"));
        let mut request = Request::new(body(&[], &[]));
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = "http://users/chat".parse().expect("a URI");
        request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
        (client.send(request), endpoint.requests())
    };
    // The endpoint's own refusal is the client's.
    let (refused, seen) = send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "websocket");
    assert_eq!((refused.head.status.as_u16(), &refused.body[..]), (403, &b"no"[..]));
    assert_eq!((seen[0].start.as_str(), seen[0].header("host").as_deref()), ("GET /chat HTTP/1.1", Some("users")));
    assert!(seen[0].header("sec-websocket-key").is_some_and(|key| key.len() == 24));
    // An answer to another key, no key at all, and a success that is none.
    for answer in [GRANT, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", OK] {
        let (refused, _) = send(answer, "websocket");
        assert_eq!(refused.head.status, 502, "{answer}");
        assert!(refused.head.headers["proxy-status"].to_str().expect("text").contains("http_protocol_error"));
    }
    let (refused, seen) = send(OK, "connect-udp");
    assert_eq!((refused.head.status.as_u16(), seen.len()), (501, 0));
}
