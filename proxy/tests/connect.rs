//! CONNECT over HTTP/1.1 and HTTP/2: what tunnels lead to, and what is found inside of them.

#![cfg(test)]

#[path = "support/client.rs"]
mod client;
#[path = "support/frames.rs"]
mod frames;
#[path = "support/http.rs"]
mod http;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/tls.rs"]
mod tls;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};

use self::http as http1;
use client::{curl, echo, greeter, named, python};
use frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, STATUS_200, literal};
use http::{Endpoint, OK, Proxy, Wire, bytes, one_listener, users};
use http2::{Http2Client, Http2Endpoint, Manners};
use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};
use tls::Authority;

/// For clients that speak first, however slow the machine is.
const PATIENT: &str = "detect_timeout = \"10s\"";

/// A proxy with `users` at these endpoints, and certificates for what is inside of tunnels.
fn with_certificate(endpoints: &[&Endpoint], authority: &Authority, names: &[&str]) -> Proxy {
    let pair = authority.issue("inside", names);
    let certificate = format!("[[certificate]]\ncertificate = {:?}\nkey = {:?}\n", pair.certificate, pair.key);
    Proxy::start(&format!("{certificate}{}{}", one_listener(PATIENT), users(endpoints, "")))
}

#[test]
fn each_request_in_a_tunnel_to_a_service_is_balanced() {
    let (a, b) = (named("a"), named("b"));
    let proxy = Proxy::with(&[&a, &b], PATIENT, "");
    let at = format!("http://{}", proxy.addresses[0]);
    let answers = curl(&["--proxytunnel", "--proxy", &at, "http://users.mesh/[1-4]"], &[]);
    let by: Vec<&str> = answers.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!((by.len(), by.iter().collect::<BTreeSet<_>>().len()), (4, 2), "{answers}");
    assert_eq!((a.requests().len(), b.requests().len()), (2, 2));
    assert_eq!(a.last().header("host").as_deref(), Some("users.mesh"));
}

#[test]
fn inside_of_a_tunnel_the_host_leads_nowhere_else() {
    let (endpoint, other) = (named("users"), named("other"));
    let others = format!("[service.other]\nendpoints = [\"{}\"]\n", other.address);
    let proxy = Proxy::start(&format!("{}{}{others}", one_listener(PATIENT), users(&[&endpoint], "")));
    let mut client = proxy.client();
    assert_eq!(client.connect_to("users:80").status(), 200);
    client.send("GET / HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(client.response().text(), "users GET / HTTP/1.1\n");
    assert_eq!(other.connections(), 0);
}

#[test]
fn http2_inside_of_a_tunnel_is_served_too() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let proxy = Proxy::start(&format!(
        "{}[service.users]\nendpoints = [\"{}\"]\nprotocol = \"http2\"\n",
        one_listener(PATIENT),
        endpoint.address
    ));
    let at = format!("http://{}", proxy.addresses[0]);
    let args = ["--proxytunnel", "--proxy", &at, "--http2-prior-knowledge", "-d", "hello", "-w", " %{http_version}"];
    assert_eq!(curl(&[&args[..], &["http://users/"]].concat(), &[]), "hello 2");
}

#[test]
fn tls_in_a_tunnel_ends_where_its_certificate_is_held() {
    let authority = Authority::new();
    let (a, b) = (named("a"), named("b"));
    let proxy = with_certificate(&[&a, &b], &authority, &["users", "users.mesh"]);
    let (at, ca) = (format!("http://{}", proxy.addresses[0]), authority.path());
    for (version, args) in
        [("1.1", &["--http1.1"][..]), ("2", &["--http2"]), ("1.1", &["--http1.1", "--tls-max", "1.2"])]
    {
        let common = ["--proxy", &at, "--cacert", &ca, "-w", "%{http_version}\n", "https://users.mesh/[1-4]"];
        let answers = curl(&[args, &common[..]].concat(), &[]);
        let of = |name: &str| answers.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!((of("a "), of("b "), of(version)), (2, 2, 4), "{answers}");
    }
    let script = "
import sys, requests
session = requests.Session()
session.trust_env = False
session.proxies = {'http': 'http://' + sys.argv[1], 'https': 'http://' + sys.argv[1]}
session.verify = sys.argv[2]
answers = [session.get(f'https://users/{n}', timeout=20).text for n in range(4)]
assert sorted(answer[0] for answer in answers) == ['a', 'a', 'b', 'b'], answers
body = bytes(range(256)) * 5000
assert session.post('https://users/', data=body, timeout=20).status_code == 200
assert session.get('http://users/', timeout=20).status_code == 200
";
    python(script, &[&proxy.addresses[0].to_string(), &ca], &[]);
}

/// A client that names no server in its handshake means the one that it has asked the tunnel for.
#[test]
fn tls_without_a_server_name_ends_by_the_tunnels_host() {
    let authority = Authority::new();
    let endpoint = named("a");
    let proxy = with_certificate(&[&endpoint], &authority, &["users"]);
    let proxied = format!("http://{}", proxy.addresses[0]);
    let (ca, script) = (
        authority.path(),
        "
import socket, ssl, sys
host, port = sys.argv[1].split(':')
for name, sni in (('users', None), ('users', 'users')):
    s = socket.create_connection((host, int(port)), 20)
    s.sendall(b'CONNECT users:443 HTTP/1.1\\r\\nHost: users:443\\r\\n\\r\\n')
    assert s.recv(4096).startswith(b'HTTP/1.1 200'), 'no tunnel'
    context = ssl.create_default_context(cafile=sys.argv[2])
    context.check_hostname = False
    t = context.wrap_socket(s, server_hostname=sni)
    t.sendall(b'GET /tls HTTP/1.1\\r\\nHost: users\\r\\nConnection: close\\r\\n\\r\\n')
    answer = b''
    while piece := t.recv(4096):
        answer += piece
    assert answer.endswith(b'a GET /tls HTTP/1.1\\n'), answer
",
    );
    python(script, &[proxied.trim_start_matches("http://"), &ca], &[]);
}

#[test]
fn other_tls_in_a_tunnel_stays_untouched() {
    let authority = Authority::new();
    let seen = Endpoint::start(|_, mut wire| {
        let start = wire.exactly(5).expect("a record");
        let rest = wire.exactly(usize::from(u16::from_be_bytes([start[3], start[4]]))).expect("a record");
        wire.send([&start[..], &rest].concat());
    });
    let proxy = with_certificate(&[&seen], &authority, &["somebody.else"]);
    let mut session = ClientConnection::new(authority.client_config(), "users".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a message");
    // However the message arrives, it is what the endpoint gets.
    for pieces in [1, 7, hello.len()] {
        let mut client = proxy.client();
        assert_eq!(client.connect_to("users:443").status(), 200);
        for piece in hello.chunks(hello.len().div_ceil(pieces)) {
            client.send(piece);
        }
        assert_eq!(client.exactly(hello.len()).expect("the message"), hello);
    }
}

#[test]
fn tls_and_a_tunnel_may_be_inside_of_tls() {
    let authority = Authority::new();
    let endpoint = named("a");
    let pair = authority.issue("outside", &["proxy.example", "users"]);
    let listener = one_listener(&format!("tls = {{ {} }}\n{PATIENT}", pair.keys()));
    let proxy = Proxy::start(&format!("{listener}{}", users(&[&endpoint], "")));
    let (at, ca) = (format!("https://proxy.example:{}", proxy.addresses[0].port()), authority.path());
    let resolve = format!("proxy.example:{}:127.0.0.1", proxy.addresses[0].port());
    let common = ["--proxy", &at, "--proxy-cacert", &ca, "--cacert", &ca, "--resolve", &resolve];
    for target in ["http://users/", "https://users/"] {
        assert_eq!(curl(&[&common[..], &[target]].concat(), &[]), "a GET / HTTP/1.1\n");
    }
    assert_eq!(curl(&[&common[..], &["--proxytunnel", "http://users/"]].concat(), &[]), "a GET / HTTP/1.1\n");
}

#[test]
fn a_server_that_speaks_first_is_heard_through_a_tunnel() {
    let endpoint = greeter();
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.connect_to("users:25");
    assert_eq!(client.line(), "220 hello\r\n");
    client.send("EHLO me\r\n");
    assert_eq!(client.line(), "echo EHLO me\r\n");
    client.finish();
    assert_eq!(client.line(), "bye\r\n");
    client.expect_end();
}

#[test]
fn what_is_no_http_is_passed_on_as_it_is() {
    let endpoint = echo();
    let proxy = Proxy::to(&endpoint);
    // Redis in plain words, memcached, and bytes that might become a request and never do.
    for start in ["SET a b\r\n", "get a\r\n", "\u{1}\u{2}\r\n", "GE"] {
        let mut client = proxy.client();
        client.connect_to("users:6379");
        client.send(start);
        if !start.ends_with('\n') {
            http::wait_until("passed on", || endpoint.connections() == 4);
            client.send("T\r\n");
            assert_eq!(client.line(), "echo GET\r\n");
            continue;
        }
        assert_eq!(client.line(), format!("echo {start}"));
    }
}

/// Bytes as they come to an endpoint could say who the client is. A service that is spoken HTTP to gets requests only,
/// however a client asks for a tunnel, and however long it says nothing.
#[test]
fn a_service_that_states_what_it_speaks_gets_requests_only() {
    const FORGED: &str = "GET / HTTP/1.1\r\nHost: users\r\nX-Forwarded-Client-Cert: URI=spiffe://mesh/admin\r\n\r\n";
    let authority = Authority::new();
    let (endpoint, mail) = (named("a"), greeter());
    let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
    let settings = "detect_timeout = \"20ms\"";
    let listeners = one_listener(settings)
        + &one_listener(&format!("protocol = \"auto\"\nservice = \"users\"\n{settings}"))
        + &one_listener("detect_timeout = \"400ms\"")
        + &one_listener("protocol = \"tcp\"\nservice = \"users\"");
    let stated = |protocol: &str| users(&[&endpoint], &format!("protocol = {protocol:?}"));
    let proxy = Proxy::start(&format!("{listeners}{}{mails}", stated("http1")));
    let open = |proxy: &Proxy, way: &str| {
        let mut client = proxy.client_of(usize::from(way == "auto"));
        match way {
            "connect" => drop(client.connect_to("users:80")),
            "socks" => {
                client.send(b"\x05\x01\0\x05\x01\0\x03\x05users\0\x50");
                assert_eq!(client.exactly(12).expect("replies")[..4], [5, 0, 5, 0]);
            }
            _ => {}
        }
        client
    };
    let refused = || {
        let listeners = proxy.app().state.listeners();
        listeners.iter().flat_map(|one| one.refusals()).map(|(_, count)| count).sum::<u64>()
    };
    let mut session = ClientConnection::new(authority.client_config(), "users".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a message");
    for (n, way) in (0..).zip(["connect", "socks", "auto"]) {
        for start in [b"\r\n", &hello[..], b"\x05\0", b"SET a b\r\n"] {
            let mut client = open(&proxy, way);
            client.send([start, FORGED.as_bytes()].concat());
            assert_eq!(client.exactly(1), Err("ended 1 bytes too early".to_owned()), "{way} {start:?}");
        }
        assert_eq!(refused(), 4 * (n + 1), "{way}");
        // No connection but the one for the requests of those before.
        assert_eq!(endpoint.connections(), usize::from(n > 0), "{way}");
        // By then this client has been silent for longer than its listener waits for a server to speak.
        let mut client = open(&proxy, way);
        let mut clock = proxy.client_of(2);
        clock.connect_to("mail:25");
        assert_eq!(clock.line(), "220 hello\r\n");
        client.send(FORGED);
        assert_eq!(client.response().text(), "a GET / HTTP/1.1\n");
        assert_eq!(endpoint.last().header("x-forwarded-client-cert"), None);
    }
    // Where it is said that nothing is looked into, nothing is.
    let mut client = proxy.client_of(3);
    client.send(FORGED);
    assert_eq!(client.response().status(), 200);
    assert!(endpoint.last().header("x-forwarded-client-cert").is_some());
    // And where nothing is stated, anything goes on.
    let echo = echo();
    let proxy = Proxy::start(&format!("{listeners}{}{mails}", users(&[&echo], "protocol = \"negotiated\"")));
    for way in ["connect", "socks", "auto"] {
        let mut client = open(&proxy, way);
        client.send("SET a b\r\n");
        assert_eq!(client.line(), "echo SET a b\r\n");
    }
}

/// Nesting is bounded: a tunnel within a tunnel is refused, and SOCKS5 inside is the service's own affair.
#[test]
fn a_tunnel_within_a_tunnel_is_refused() {
    let endpoint = Endpoint::start(|_, mut wire| {
        let start = wire.exactly(3).expect("bytes");
        wire.send([b"got ", &start[..], b"\n"].concat());
    });
    let proxy = Proxy::with(&[&endpoint], PATIENT, "");
    for target in ["users:80", "127.0.0.1:80", "nobody:80"] {
        let mut client = proxy.client();
        client.connect_to("users:80");
        client.connect_to(target).assert_refused(501, "router", "http_request_denied");
    }
    assert_eq!(endpoint.connections(), 0);
    let mut client = proxy.client();
    client.connect_to("users:1080");
    client.send([5, 1, 0]);
    assert_eq!(client.line(), "got \u{5}\u{1}\0\n");
}

#[test]
fn a_tunnel_leads_to_a_host_where_that_is_allowed() {
    let (host, service) = (echo(), Endpoint::saying(OK));
    let proxy = Proxy::to(&service);
    for target in [format!("127.0.0.1:{}", host.address.port()), format!("localhost:{}", host.address.port())] {
        let mut client = proxy.client();
        client.connect_to(&target);
        // Nothing is looked into: what would be a request is passed on as it is, and answered by nobody else.
        client.send("GET / HTTP/1.1\r\nHost: users\r\n");
        assert_eq!((client.line(), client.line()), ("echo GET / HTTP/1.1\r\n".into(), "echo Host: users\r\n".into()));
        client.finish();
        assert_eq!(client.line(), "bye\r\n");
        client.expect_end();
    }
    // Sent without waiting for the answer.
    let mut client = proxy.client();
    let target = host.address;
    client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\neager\r\n"));
    assert_eq!(client.head().expect("an answer").status(), 200);
    assert_eq!(client.line(), "echo eager\r\n");
    // HTTPS to a host, whose TLS is its own.
    let authority = Authority::new();
    let pair = authority.issue("host", &["127.0.0.1"]);
    let listener = one_listener(&format!("tls = {{ {} }}", pair.keys()));
    let https = Proxy::start(&format!("{listener}{}", users(&[&named("a")], "")));
    let (at, ca) = (format!("http://{}", proxy.addresses[0]), authority.path());
    let url = format!("https://{}/", https.addresses[0]);
    assert_eq!(curl(&["--proxy", &at, "--cacert", &ca, "-H", "Host: users", &url], &[]), "a GET / HTTP/1.1\n");
    assert_eq!(service.connections(), 0);
}

#[test]
fn a_tunnel_to_nowhere_is_refused_with_the_reason() {
    let endpoint = Endpoint::saying(OK);
    let listeners = one_listener("") + &one_listener("passthrough = false");
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], "")));
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    proxy.client().connect_to(&closed.to_string()).assert_refused(502, "upstream", "connection_refused");
    proxy.client_of(1).connect_to(&closed.to_string()).assert_refused(404, "router", "destination_not_found");
    proxy.client_of(1).connect_to("nobody:80").assert_refused(404, "router", "destination_not_found");
    for target in ["users", "users:", "users:0", "users:99999", "me@users:80", "me:secret@users:80", ":80"] {
        let mut client = proxy.client();
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: users\r\n\r\n"));
        assert_eq!(client.response().status(), 400, "{target}");
    }
    for header in ["Content-Length: 4", "Transfer-Encoding: chunked"] {
        let mut client = proxy.client();
        client.send(format!("CONNECT users:80 HTTP/1.1\r\nHost: users\r\n{header}\r\n\r\n0\r\n\r\n"));
        client.response().assert_refused(400, "router", "http_request_error");
    }
    assert_eq!(endpoint.connections(), 0);
}

/// The deadline of requests is that of a CONNECT too, and it is sooner here than the one for connecting.
#[test]
fn a_tunnel_is_opened_within_the_deadline() {
    // An address that is listened on by nobody who accepts: the queue of one is full, and connecting takes for ever.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bound");
    full.listen(0).expect("listening");
    let stuck = full.local_addr().expect("an address").as_socket().expect("of IP");
    let _queued = Wire::connect(stuck);
    let endpoint = named("a");
    let proxy = Proxy::with(&[&endpoint], "request_deadline = \"500ms\"", "");
    proxy.client().connect_to(&stuck.to_string()).assert_refused(504, "deadline", "http_response_timeout");
    // A tunnel that is open may live for longer.
    let mut client = proxy.client();
    client.connect_to(&endpoint.address.to_string());
    proxy.client().connect_to(&stuck.to_string()).assert_refused(504, "deadline", "http_response_timeout");
    assert_eq!(client.get("/").text(), "a GET / HTTP/1.1\n");
}

#[test]
fn a_listener_of_one_service_opens_tunnels_to_it_alone() {
    let (endpoint, other) = (named("a"), named("b"));
    let others = format!("[service.other]\nendpoints = [\"{}\"]\n", other.address);
    let listeners = one_listener("service = \"users\"") + &one_listener("service = \"not-yet\"");
    let proxy = Proxy::start(&format!("{listeners}{}{others}", users(&[&endpoint], "")));
    for target in ["users:80", "other:80", "169.254.169.254:80"] {
        let mut client = proxy.client();
        client.connect_to(target);
        assert_eq!(client.get("/").text(), "a GET / HTTP/1.1\n");
    }
    proxy.client_of(1).connect_to("users:80").assert_refused(503, "registry", "destination_unavailable");
    assert_eq!(other.connections(), 0);
}

#[test]
fn streams_of_http2_are_tunnels_as_well() {
    let (web, mail) = (named("a"), greeter());
    let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
    let proxy = Proxy::start(&format!("{}{}{mails}", one_listener(""), users(&[&web], "")));
    let client = Http2Client::connect(proxy.addresses[0]);
    // Several at once on one connection, each with something else inside.
    let mut web_tunnel = client.connect_to("users:80").1.expect("a tunnel");
    let mut mail_tunnel = client.connect_to("mail:25").1.expect("a tunnel");
    let mut host_tunnel = client.connect_to(&mail.address.to_string()).1.expect("a tunnel");
    for n in 0..2 {
        web_tunnel.send(format!("GET /{n} HTTP/1.1\r\nHost: users\r\n\r\n").as_bytes());
        assert!(web_tunnel.until("HTTP/1.1\n").ends_with(&format!("\r\n\r\na GET /{n} HTTP/1.1\n")));
    }
    for tunnel in [&mut mail_tunnel, &mut host_tunnel] {
        assert_eq!(tunnel.until("\n"), "220 hello\r\n");
        let much = [&bytes(300_000).iter().map(|byte| byte | 0x80).collect::<Vec<_>>()[..], b"\n"].concat();
        tunnel.send(&much);
        tunnel.finish();
        assert!(tunnel.rest() == [b"echo ", &much[..], b"bye\r\n"].concat());
    }
    let refused = |target: &str| client.connect_to(target).0;
    assert_eq!((refused("169.254.169.254:80"), refused("users")), (403, 400));
    // The connection is one of HTTP/2 still.
    let get = ::http::Request::get("http://users/").body(http2::body(&[], &[])).expect("a request");
    assert_eq!(client.send(get).head.status, 200);
}

/// Also where the other end neither reads nor closes.
#[test]
fn a_client_of_http2_that_goes_leaves_no_tunnel_behind() {
    let (held, holding) = std::sync::mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        wire.send("220 hello\r\n");
        let _the_test_has_ended = held.send(wire);
    });
    let proxy = Proxy::to(&endpoint);
    let client = Http2Client::connect(proxy.addresses[0]);
    let mut tunnel = client.connect_to("users:25").1.expect("a tunnel");
    assert_eq!(tunnel.until("\n"), "220 hello\r\n");
    tunnel.send(&bytes(64 << 10));
    drop((tunnel, client));
    http::wait_until("no connection is left", || proxy.upstream_connections() == 0);
    drop(holding);
}

/// More than may be read of a connection on which nothing gets on.
#[test]
fn a_tunnel_of_http2_takes_any_amount_both_ways() {
    const MUCH: usize = 8 << 20;
    let endpoint = Endpoint::start(|_, mut wire| {
        let all = wire.exactly(MUCH).expect("all of it");
        wire.send(all);
    });
    let proxy = Proxy::to(&endpoint);
    let client = Http2Client::connect(proxy.addresses[0]);
    let much: Vec<u8> = bytes(MUCH).iter().map(|byte| byte | 0x80).collect();
    for target in ["users:25".to_owned(), endpoint.address.to_string()] {
        let mut tunnel = client.connect_to(&target).1.expect("a tunnel");
        tunnel.send(&much);
        tunnel.finish();
        assert!(tunnel.rest() == much, "{target}");
    }
}

/// Whoever only saw an end might take a part for the whole.
#[test]
fn a_tunnel_of_http2_breaks_where_its_other_end_does() {
    const CANCEL: u32 = 8;
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.send("half of it");
        let ends_well = wire.exactly(4).expect("a word") == b"ends";
        if !ends_well {
            socket2::SockRef::from(&wire.stream).set_linger(Some(std::time::Duration::ZERO)).expect("a linger");
        }
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = Frames::client(proxy.client());
    for (stream, word) in [(1, b"ends"), (3, b"stop")] {
        let head = [literal(":method", "CONNECT"), literal(":authority", "users:25")].concat();
        client.send(HEADERS, END_HEADERS, stream, &head);
        assert_eq!(client.until(HEADERS).payload[0], STATUS_200);
        assert_eq!(client.until(DATA).payload, b"half of it");
        client.send(DATA, 0, stream, word);
        let last = loop {
            let frame = client.next().expect("a frame");
            if frame.stream == stream {
                break frame;
            }
        };
        match word {
            b"ends" => {
                assert_eq!((last.kind, last.flags), (DATA, END_STREAM));
                client.send(DATA, END_STREAM, stream, &[]);
            }
            _ => assert_eq!((last.kind, last.payload), (RST_STREAM, CANCEL.to_be_bytes().to_vec())),
        }
    }
}

/// The end of a tunnel's connection ends what is at its other end.
#[test]
fn a_client_that_goes_takes_its_tunnel_along() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.send("220 hello\r\n");
        wire.expect_end();
    });
    let proxy = Proxy::to(&endpoint);
    for target in ["users:25".to_owned(), endpoint.address.to_string()] {
        let mut client = proxy.client();
        client.connect_to(&target);
        assert_eq!(client.line(), "220 hello\r\n");
    }
    http::wait_until("no connection is left", || proxy.upstream_connections() == 0);
    let client = Http2Client::connect(proxy.addresses[0]);
    let mut tunnel = client.connect_to("users:25").1.expect("a tunnel");
    assert_eq!(tunnel.until("\n"), "220 hello\r\n");
    drop(tunnel);
    http::wait_until("no connection is left", || proxy.upstream_connections() == 0);
}
