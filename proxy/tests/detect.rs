//! What is spoken is found out: where the listener leaves it open, and where it says so.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/client.rs"]
mod client;
#[path = "support/http.rs"]
mod http;
#[path = "support/tls.rs"]
mod tls;

use client::{curl, echo, greeter, named};
use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};
use rustls::ClientConnection;
use tls::{Authority, TlsWire};

/// A listener that leaves it open.
fn open(settings: &str) -> String {
    one_listener(&format!("protocol = \"auto\"\n{settings}"))
}

#[test]
fn one_port_takes_everything() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let (web, mail) = (named("web"), greeter());
    let tls = format!("tls = {{ {} }}", pair.keys());
    let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
    let listeners = open(&format!("{tls}\nservice = \"users\"\ndetect_timeout = \"10s\""))
        + &open(&format!("{tls}\nservice = \"mail\""))
        + &open(&format!("{tls}\nservice = \"mail\"\ndetect_timeout = \"2s\""));
    let proxy = Proxy::start(&format!("{listeners}{}{mails}", users(&[&web], "")));
    let (at, ca) = (proxy.addresses[0].to_string(), authority.path());
    let to = format!("users:443:{at}");
    let url = format!("http://{at}/");
    for args in [
        &[&*url][..],
        &["--http2-prior-knowledge", &url],
        &["--cacert", &ca, "--connect-to", &to, "--http1.1", "https://users/"],
        &["--cacert", &ca, "--connect-to", &to, "--http2", "https://users/"],
        &["--proxy", &url, "http://users/"],
        &["--proxy", &url, "--proxytunnel", "http://users/"],
        &["--socks5-hostname", &at, "http://users/"],
    ] {
        assert_eq!(curl(args, &[]), "web GET / HTTP/1.1\n", "{args:?}");
    }
    // A protocol in which the server speaks first, plain and inside of TLS, and one that looks like HTTP for a moment.
    let mut client = proxy.client_of(1);
    assert_eq!(client.line(), "220 hello\r\n");
    client.send("GET me\r\n");
    assert_eq!(client.line(), "echo GET me\r\n");
    for start in ["GET me\r\n", "\0\r\n", "\u{5}\0\r\n", "\u{16}\u{3}\u{1}\0\u{1}\u{2}\r\n"] {
        let mut client = proxy.client_of(1);
        client.send(start);
        assert_eq!((client.line(), client.line()), ("220 hello\r\n".into(), format!("echo {start}")));
    }
    let mut session = ClientConnection::new(authority.client_config(), "users".try_into().unwrap()).unwrap();
    let mut client = proxy.client_of(2);
    let mut line = vec![0; 11];
    let mut stream = rustls::Stream::new(&mut session, &mut client.stream);
    std::io::Read::read_exact(&mut stream, &mut line).expect("a greeting");
    assert_eq!(line, b"220 hello\r\n");
}

/// By default a server that speaks first is heard soon. How soon is for benchmarks; here it must not be some other timeout.
#[test]
fn a_greeting_does_not_take_long_by_default() {
    let mail = greeter();
    let proxy = Proxy::with(&[&mail], "protocol = \"auto\"\nservice = \"users\"", "");
    let mut client = proxy.client();
    client.stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
    assert_eq!(client.line(), "220 hello\r\n");
}

/// A client whose bytes could still become a request is not waited for longer than one that says nothing.
#[test]
fn what_stays_ambiguous_is_passed_on() {
    for start in ["GE", "P", "\u{5}", "\u{16}\u{3}", "GET users"] {
        let endpoint = echo();
        let proxy = Proxy::with(&[&endpoint], "protocol = \"auto\"\nservice = \"users\"", "");
        let mut client = proxy.client();
        client.send(start);
        wait_until("passed on", || endpoint.connections() == 1);
        client.send("\r\n");
        assert_eq!(client.line(), format!("echo {start}\r\n"));
    }
}

/// A request may come in pieces, if they come at once.
#[test]
fn a_request_may_come_in_pieces() {
    let endpoint = named("a");
    let proxy = Proxy::with(&[&endpoint], "protocol = \"auto\"\nservice = \"users\"\ndetect_timeout = \"10s\"", "");
    for start in ["GET http://users/ HTTP/1.1\r\n", "GET / HTTP/1.1\r\n"] {
        let mut client = proxy.client();
        for byte in start.as_bytes() {
            client.send([*byte]);
        }
        client.send("Host: users\r\n\r\n");
        assert_eq!(client.response().text(), "a GET / HTTP/1.1\n");
    }
}

/// Where there is no service, nobody could speak first: silence is waited out, and what is unknown is closed.
#[test]
fn without_a_service_only_what_is_known_is_served() {
    let endpoint = named("a");
    let first = open("");
    // Has waited longer than the first could have, once it passes on.
    let second = open("service = \"mail\"\ndetect_timeout = \"400ms\"");
    let mail = greeter();
    let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
    let proxy = Proxy::start(&format!("{first}{second}{}{mails}", users(&[&endpoint], "")));
    let mut silent = proxy.client();
    assert_eq!(proxy.client_of(1).line(), "220 hello\r\n");
    assert!(silent.is_silent());
    assert_eq!(silent.get("/").text(), "a GET / HTTP/1.1\n");
    for bytes in [&b"SET a b\r\n"[..], b"\0\x01", b"\x05\0"] {
        let mut client = proxy.client();
        client.send(bytes);
        client.expect_end();
    }
    // TLS that nobody is here to end is told so.
    let authority = Authority::new();
    let mut client = proxy.client();
    client.send(hello(&authority, "users"));
    assert_eq!(client.exactly(7).expect("an alert"), UNRECOGNIZED_NAME);
    client.expect_end();
    assert_eq!(endpoint.requests().len(), 1);
}

#[test]
fn where_http_is_spoken_clients_speak_first_and_nothing_else() {
    let endpoint = named("a");
    let mail = greeter();
    let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
    let clock = open("service = \"mail\"\ndetect_timeout = \"400ms\"");
    let proxy =
        Proxy::start(&format!("{}{clock}{}{mails}", one_listener("service = \"users\""), users(&[&endpoint], "")));
    let mut silent = proxy.client();
    let mut partial = proxy.client();
    partial.send("G");
    assert_eq!(proxy.client_of(1).line(), "220 hello\r\n");
    assert!(silent.is_silent());
    assert_eq!(silent.get("/").text(), "a GET / HTTP/1.1\n");
    partial.send("ET / HTTP/1.1\r\nHost: users\r\n\r\n");
    assert_eq!(partial.response().text(), "a GET / HTTP/1.1\n");
    let authority = Authority::new();
    for bytes in [b"SET a b\r\n\r\n".to_vec(), b"\0\x01\r\n\r\n".to_vec(), hello(&authority, "users")] {
        let mut client = proxy.client();
        client.send(&bytes);
        assert_eq!(client.response().status(), 400, "{bytes:?}");
    }
    assert_eq!(endpoint.requests().len(), 2);
}

/// Nothing is read before the service is connected to: a client that says nothing is one whose server speaks first, and
/// one that speaks HTTP is passed on like any other.
#[test]
fn where_tcp_is_spoken_nothing_is_looked_at() {
    let endpoint = greeter();
    let proxy = Proxy::with(&[&endpoint], "protocol = \"tcp\"\nservice = \"users\"", "");
    let mut silent = proxy.client();
    assert_eq!(silent.line(), "220 hello\r\n");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\n");
    assert_eq!((client.line(), client.line()), ("220 hello\r\n".into(), "echo GET / HTTP/1.1\r\n".into()));
}

#[test]
fn where_tls_ends_plain_clients_are_told() {
    let authority = Authority::new();
    let endpoint = named("a");
    let tls = format!("tls = {{ {} }}", authority.issue("users", &["users"]).keys());
    let proxy = Proxy::with(&[&endpoint], &tls, "");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    client.response().assert_refused(400, "router", "http_request_error");
    client.expect_end();
    let mut client = proxy.client();
    client.send([5, 1, 0]);
    client.expect_end();
    assert_eq!(endpoint.connections(), 0);
}

/// Also where the listener leaves open what is spoken: who must prove who it is has no other way in.
#[test]
fn where_a_certificate_is_required_nothing_plain_is_served() {
    let authority = Authority::new();
    let endpoint = named("a");
    let client = authority.issue("client", &["client.example"]);
    let tls = format!(
        "tls = {{ {}, client = \"required\", client_ca = {:?} }}",
        authority.issue("users", &["users"]).keys(),
        authority.file()
    );
    let listeners = open(&tls) + &open(&format!("{tls}\nservice = \"users\""));
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], "")));
    for listener in 0..2 {
        let mut plain = proxy.client_of(listener);
        plain.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
        plain.response().assert_refused(400, "router", "http_request_error");
        plain.expect_end();
        let mut http2 = proxy.client_of(listener);
        http2.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        http2.response().assert_refused(400, "router", "http_request_error");
        http2.expect_end();
        let mut socks = proxy.client_of(listener);
        socks.send([5, 1, 0]);
        socks.expect_end();
        assert_eq!(endpoint.connections(), 0, "listener {listener}");
    }
    let (ca, to) = (authority.path(), format!("users:443:{}", proxy.addresses[0]));
    let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
    let args = ["--cacert", &ca, "--connect-to", &to, "--cert", &certificate, "--key", &key, "https://users/"];
    assert!(curl(&args, &[]).starts_with("a GET / HTTP/1.1"));
}

const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The first message of a client for this server.
fn hello(authority: &Authority, name: &'static str) -> Vec<u8> {
    let mut session = ClientConnection::new(authority.client_config(), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).expect("a message");
    bytes
}

/// Says its name once it has heard a first message, which it says back.
fn untouched(name: &'static str) -> Endpoint {
    Endpoint::start(move |_, mut wire: Wire| {
        let start = wire.exactly(5).expect("a record");
        let rest = wire.exactly(usize::from(u16::from_be_bytes([start[3], start[4]]))).expect("a record");
        wire.send([name.as_bytes(), b"\n", &start, &rest].concat());
    })
}

#[test]
fn tls_passes_untouched_to_the_service_of_its_name() {
    let authority = Authority::new();
    let (a, b) = (untouched("a"), untouched("b"));
    let services = format!(
        "[service.a]\nendpoints = [\"{}\"]\n[service.\"b.example\"]\nendpoints = [\"{}\"]\n",
        a.address, b.address
    );
    let listeners = ["tcp", "auto"].map(|protocol| {
        let common = format!("protocol = \"{protocol}\"\ntls = \"passthrough\"");
        one_listener(&common) + &one_listener(&format!("{common}\nservice = \"a\""))
    });
    let proxy = Proxy::start(&format!("{}{services}", listeners.concat()));
    for listener in 0..4 {
        let has_own = listener % 2 == 1;
        for (name, expected) in [
            ("a", Some("a")),
            ("A.Mesh", Some("a")),
            ("b.example", Some("b")),
            ("nobody", has_own.then_some("a")),
            ("10.0.0.1", has_own.then_some("a")),
        ] {
            let hello = hello(&authority, name);
            for pieces in [1, hello.len()] {
                let mut client = proxy.client_of(listener);
                for piece in hello.chunks(hello.len().div_ceil(pieces)) {
                    client.send(piece);
                }
                match expected {
                    Some(service) => {
                        assert_eq!(client.line(), format!("{service}\n"), "{name}");
                        assert_eq!(client.exactly(hello.len()).expect("the message"), hello);
                    }
                    None => {
                        assert_eq!(client.exactly(7).expect("an alert"), UNRECOGNIZED_NAME, "{name}");
                        client.expect_end();
                    }
                }
            }
        }
    }
    // What is no TLS has no name.
    let mut client = proxy.client_of(0);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 400);
}

/// A policy may decide on a connection by the name that its TLS begins with, wherever that passes by: on a listener, in
/// a tunnel, and inside of TLS that has ended here.
#[test]
fn policies_are_told_the_name_of_untouched_tls() {
    let authority = Authority::new();
    let endpoints: Vec<Endpoint> = ["a", "b", "c", "d"].map(untouched).into();
    let all: Vec<&Endpoint> = endpoints.iter().collect();
    let patient = "detect_timeout = \"10s\"";
    let outer = format!("tls = {{ {} }}", authority.issue("proxy", &["proxy"]).keys());
    let listeners = open(&format!("service = \"users\"\n{patient}"))
        + &one_listener("protocol = \"tcp\"\ntls = \"passthrough\"\nservice = \"users\"")
        + &one_listener(patient)
        + &open(&format!("service = \"users\"\n{patient}\n{outer}"));
    let services = users(&all, "balancer = { plugin = \"url-hash\", by = \"sni\" }");
    let proxy = Proxy::start(&format!("{listeners}{services}"));
    let names = ["one.example", "two.example", "three.example", "four.example", "five.example", "six.example"];
    let chosen = |listener: usize, name: &'static str| {
        let mut client = proxy.client_of(listener);
        let hello = hello(&authority, name);
        match listener {
            2 => drop(client.connect_to("users:443")),
            3 => {
                let mut session =
                    ClientConnection::new(authority.client_config(), "proxy".try_into().unwrap()).unwrap();
                let mut tls = rustls::Stream::new(&mut session, &mut client.stream);
                std::io::Write::write_all(&mut tls, &hello).expect("sent");
                let mut line = [0; 2];
                std::io::Read::read_exact(&mut tls, &mut line).expect("a name");
                return String::from_utf8_lossy(&line).into_owned();
            }
            _ => {}
        }
        client.send(hello);
        client.line()
    };
    let expected = names.map(|name| chosen(0, name));
    assert!(expected.iter().any(|name| *name != expected[0]), "{expected:?}");
    for listener in 0..4 {
        assert_eq!(names.map(|name| chosen(listener, name)), expected, "listener {listener}");
    }
}

/// A policy may decide by who the client has proved to be: the same whatever it speaks and by whichever key, and not the
/// same as another.
#[test]
fn policies_are_told_whom_a_certificate_proves() {
    let authority = Authority::new();
    let endpoints = ["a", "b", "c", "d"].map(named);
    let tls = format!(
        "tls = {{ {}, client = \"optional\", client_ca = {:?} }}",
        authority.issue("users", &["users"]).keys(),
        authority.file()
    );
    let services = users(&endpoints.each_ref(), "balancer = { plugin = \"url-hash\", by = \"identity\" }");
    let proxy = Proxy::start(&format!("{}{services}", one_listener(&tls)));
    let (to, ca) = (format!("users:443:{}", proxy.addresses[0]), authority.path());
    let chosen = |args: &[&str]| {
        let common = ["--cacert", &ca, "--connect-to", &to, "https://users/[1-2]"];
        let answers = curl(&[&common[..], args].concat(), &[]);
        let by: Vec<&str> = answers.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(by.len() == 2 && by[0] == by[1], "{answers}");
        by[0].to_owned()
    };
    let accounts = ["cart", "shop", "mail", "search", "stock", "price", "login", "offers"];
    let by = accounts.map(|account| {
        let id = format!("spiffe://mesh/ns/shop/sa/{account}");
        let [first, second] = ["first", "second"].map(|key| {
            let pair = authority.issue(&format!("{account}-{key}"), &[&id]);
            let (certificate, key) = (pair.certificate.display().to_string(), pair.key.display().to_string());
            let of = |version| chosen(&[version, "--cert", &certificate, "--key", &key]);
            let [old, new] = ["--http1.1", "--http2"].map(of);
            assert_eq!(old, new, "{account}");
            old
        });
        assert_eq!(first, second, "{account}");
        first
    });
    assert!(by.iter().any(|name| *name != by[0]), "{by:?}");
}

#[test]
fn tls_passes_to_a_real_server_by_its_name() {
    let authority = Authority::new();
    let web = named("web");
    let tls = format!("tls = {{ {} }}", authority.issue("users", &["users"]).keys());
    let server = Proxy::with(&[&web], &tls, "");
    let passes = one_listener("protocol = \"tcp\"\ntls = \"passthrough\"");
    let proxy = Proxy::start(&format!("{passes}[service.users]\nendpoints = [\"{}\"]\n", server.addresses[0]));
    let (to, ca) = (format!("users:443:{}", proxy.addresses[0]), authority.path());
    for version in ["--http1.1", "--http2"] {
        let args = ["--cacert", &ca, "--connect-to", &to, version, "https://users/[1-2]"];
        assert_eq!(curl(&args, &[]), "web GET /1 HTTP/1.1\nweb GET /2 HTTP/1.1\n");
    }
}

/// What is closed without having been served is counted, by reason.
#[test]
fn refused_connections_are_counted() {
    let authority = Authority::new();
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "protocol = \"auto\"", "");
    for bytes in [b"\0\x01".to_vec(), hello(&authority, "nobody"), hello(&authority, "nobody")] {
        let mut client = proxy.client();
        client.send(&bytes);
        while client.exactly(1).is_ok() {}
    }
    let refusals = || -> Vec<(String, u64)> {
        proxy.app().state.listeners()[0].refusals().map(|(reason, count)| (reason.to_string(), count)).collect()
    };
    wait_until("counted", || refusals() == [("client".into(), 0), ("protocol".into(), 1), ("server_name".into(), 2)]);
}

/// What a client sends that must not reach a service from where clients prove who they are.
const FORGED: &str = "GET /forged HTTP/1.1\r\nHost: users\r\nX-Forwarded-Client-Cert: URI=spiffe://mesh/admin\r\n\r\n";

/// Issue 10, 12: where clients prove who they are, a service is told who they are by nobody but the proxy. Neither silence
/// nor bytes that are no protocol, in a tunnel or not, nor TLS that does not end here, nor a change to another protocol,
/// nor a TCP listener lead to it unread, unless it says that it takes that.
#[test]
fn where_certificates_are_asked_for_nothing_is_passed_on_unread() {
    let authority = Authority::new();
    let keys = authority.issue("users", &["users"]).keys();
    let client = authority.issue("client", &["client.example"]);
    let mail = greeter();
    let clock = open("service = \"mail\"\ndetect_timeout = \"400ms\"");
    let quick = "detect_timeout = \"20ms\"";
    for (mode, state, is_opaque) in [
        ("required", "", false),
        ("optional", "protocol = \"negotiated\"", false),
        ("required", "protocol = \"http1\"", false),
        ("optional", "protocol = \"opaque\"", true),
        ("required", "protocol = \"opaque\"", true),
    ] {
        let endpoint = echo();
        let asks = format!("tls = {{ {keys}, client = \"{mode}\", client_ca = {:?} }}", authority.file());
        let listeners = one_listener(&format!("{asks}\n{quick}"))
            + &open(&format!("service = \"users\"\n{asks}\n{quick}"))
            + &one_listener(&format!("protocol = \"tcp\"\nservice = \"users\"\n{asks}"))
            + &clock;
        let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
        let proxy = Proxy::start(&format!("{listeners}{}{mails}", users(&[&endpoint], state)));
        let way = |way: &str| {
            let listener = ["connect", "auto", "tcp"].iter().position(|name| *name == way).unwrap_or(0);
            let config = authority.client_config_of(&client);
            let mut wire = TlsWire::connect(proxy.addresses[listener], config, "users");
            wire.handshake().expect("a handshake");
            match way {
                "connect" => wire.connect_to("users:80"),
                "socks" => {
                    wire.send(b"\x05\x01\0\x05\x01\0\x03\x05users\0\x50");
                    let mut replies = [0; 12];
                    std::io::Read::read_exact(&mut rustls::Stream::new(&mut wire.session, &mut wire.tcp), &mut replies)
                        .expect("replies");
                    assert_eq!(replies[..4], [5, 0, 5, 0]);
                }
                _ => {}
            }
            wire
        };
        for name in ["connect", "socks", "auto", "tcp"] {
            let hello = hello(&authority, "other.example");
            // The bytes that come first are no request, and behind them is one.
            let starts: [&[u8]; 4] = [b"\r\n", b"SET a b\r\n", b"\x05\0\n", &hello];
            for start in starts {
                let mut wire = way(name);
                wire.send([start, FORGED.as_bytes()].concat());
                let said = wire.until("echo X-Forwarded-Client-Cert: URI=spiffe://mesh/admin\r\necho \r\n");
                assert_eq!(said.contains("/forged"), is_opaque, "{mode} {state} {name} {start:?}: {said}");
            }
        }
        // Who is silent for longer than a server may take to speak is waited for, as where HTTP is spoken.
        for name in ["connect", "socks", "auto"] {
            let before = endpoint.connections();
            let mut wire = way(name);
            assert_eq!(proxy.client_of(3).line(), "220 hello\r\n");
            assert_eq!(endpoint.connections() > before, is_opaque, "{mode} {state} {name}");
            if is_opaque {
                wire.send(FORGED);
                assert!(wire.until("echo \r\n").contains("/forged"), "{mode} {state} {name}");
            }
        }
        let refused = |listener: usize| proxy.app().state.listeners()[listener].refusals().map(|(_, n)| n).sum::<u64>();
        let counts = if is_opaque { [0, 0, 0] } else { [8, 4, 4] };
        wait_until("they are counted", || [0, 1, 2].map(refused) == counts);
    }
}

/// Issue 10, 12: after silence a request is still a request, and says who the client is as the proxy knows it.
#[test]
fn after_silence_a_request_is_read() {
    let authority = Authority::new();
    let keys = authority.issue("users", &["users"]).keys();
    let client = authority.issue("client", &["spiffe://mesh/ns/shop/sa/cart"]);
    let (web, mail) = (named("a"), greeter());
    let asks = format!("tls = {{ {keys}, client = \"required\", client_ca = {:?} }}", authority.file());
    let listeners = one_listener(&format!("{asks}\ndetect_timeout = \"20ms\""))
        + &open("service = \"mail\"\ndetect_timeout = \"400ms\"");
    let mails = format!("[service.mail]\nendpoints = [\"{}\"]\n", mail.address);
    let proxy = Proxy::start(&format!("{listeners}{}{mails}", users(&[&web], "")));
    let mut wire = TlsWire::connect(proxy.addresses[0], authority.client_config_of(&client), "users");
    wire.connect_to("users:80");
    assert_eq!(proxy.client_of(1).line(), "220 hello\r\n");
    wire.send(FORGED);
    assert!(wire.until("a GET /forged HTTP/1.1\n").starts_with("HTTP/1.1 200 "));
    let told = web.last().header("x-forwarded-client-cert");
    assert_eq!(told.as_deref(), Some("URI=spiffe://mesh/ns/shop/sa/cart"));
}

/// Issue 10, 12: a protocol that nobody knows may be changed to where no certificates are asked for, or where the service
/// says so; a WebSocket everywhere.
#[test]
fn where_certificates_are_asked_for_only_websockets_are_changed_to() {
    let authority = Authority::new();
    let keys = authority.issue("users", &["users"]).keys();
    let client = authority.issue("client", &["client.example"]);
    for (asks, state, other_passes) in [(true, "", false), (false, "", true), (true, "protocol = \"opaque\"", true)] {
        // Grants whatever it is asked for, or answers.
        let endpoint = Endpoint::start(|_, mut wire| {
            while let Some(request) = wire.request() {
                match request.header("upgrade") {
                    Some(protocol) => {
                        wire.send(format!("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n"));
                        let line = wire.until(b"\n").unwrap_or_default();
                        wire.send([b"raw ", &line[..]].concat());
                        return;
                    }
                    None => wire.send(OK),
                }
            }
        });
        let ca = format!(", client = \"required\", client_ca = {:?}", authority.file());
        let tls = format!("tls = {{ {keys}{} }}", if asks { &ca } else { "" });
        let proxy = Proxy::with(&[&endpoint], &tls, state);
        for (upgrade, passes) in [
            ("websocket", true),
            ("smuggle", other_passes),
            ("smuggle, websocket", true),
            ("websocket/13", other_passes),
        ] {
            let mut wire = TlsWire::connect(proxy.addresses[0], authority.client_config_of(&client), "users");
            wire.send(format!("GET / HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\n"));
            let head = wire.until("\r\n\r\n");
            let is_changed = head.starts_with("HTTP/1.1 101 ");
            assert_eq!(is_changed, passes, "{asks} {state} {upgrade}: {head}");
            if is_changed {
                let granted = if other_passes { upgrade } else { "websocket" };
                assert!(head.to_ascii_lowercase().contains(&format!("upgrade: {granted}\r\n")), "{head}");
                wire.send("bytes\n");
                assert_eq!(wire.until("\n"), "raw bytes\n");
            }
        }
    }
}

/// Issue 10, 12: the beginning of an HTTP/2 preface and then the end is no protocol where HTTP is spoken.
#[test]
fn a_preface_that_breaks_off_reaches_nobody() {
    let endpoint = echo();
    let proxy = Proxy::with(&[&endpoint], "service = \"users\"", "");
    for start in ["P", "PRI * HTTP/2.0"] {
        let mut client = proxy.client();
        client.send(start);
        client.finish();
        let mut said = Vec::new();
        let _the_end = std::io::Read::read_to_end(&mut client.stream, &mut said);
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400 "), "{said:?}");
    }
    assert_eq!(endpoint.connections(), 0);
}
