//! TLS that ends at the proxy, with the clients that people use.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;
#[path = "support/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};
use rustls::{HandshakeKind, NamedGroup};
use tls::{Authority, TlsWire, der, run, s_client, s_client_sending};

/// A proxy with the service `users` for everything, behind a listener with this `tls`.
fn proxy(endpoint: &Endpoint, tls: &str) -> Proxy {
    Proxy::with(&[endpoint], &format!("service = \"users\"\nforwarded = \"legacy\"\ntls = {{ {tls} }}"), "")
}

#[test]
fn openssl_speaks_both_versions() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    let at = proxy.addresses[0];
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said =
            s_client(at, &authority, &[flag, "-servername", "users", "-verify_return_error", "-alpn", "http/1.1"]);
        let cipher = if version == "TLSv1.3" { "TLS_AES_128_GCM_SHA256" } else { "ECDHE-ECDSA-AES128-GCM-SHA256" };
        said.assert_has(&format!("New, {version}, Cipher is {cipher}"));
        said.assert_has("Verify return code: 0 (ok)").assert_has("ALPN protocol: http/1.1").assert_has("200 OK");
        assert_eq!(endpoint.last().header("x-forwarded-proto").as_deref(), Some("https"));
    }
    // Without ALPN it is found out by what is said.
    s_client(at, &authority, &["-servername", "users"]).assert_has("No ALPN negotiated").assert_has("200 OK");
    s_client(at, &authority, &["-alpn", "h2,http/1.1"]).assert_has("ALPN protocol: h2");
    let refused = s_client(at, &authority, &["-alpn", "spdy/1"]);
    refused.assert_has("no application protocol").assert_lacks("200 OK");

    let modern = self::proxy(&endpoint, &format!("{}, min_version = \"1.3\"", pair.keys()));
    s_client(modern.addresses[0], &authority, &["-tls1_3"]).assert_has("200 OK");
    s_client(modern.addresses[0], &authority, &["-tls1_2"]).assert_has("protocol version").assert_lacks("200 OK");
}

#[test]
fn the_certificate_is_that_of_the_name() {
    let authority = Authority::new();
    let first = authority.issue("first", &["first.example"]);
    let wild = authority.issue("wild", &["*.users.example"]);
    let exact = authority.issue("exact", &["A.users.example"]);
    let shared = authority.issue("shared", &["shared.example"]);
    let endpoint = Endpoint::saying(OK);
    let table = format!("{}, certificates = [{{ {} }}, {{ {} }}]", first.keys(), wild.keys(), exact.keys());
    let proxy = Proxy::start(&format!(
        "[[certificate]]\n{}\n{}{}{}",
        shared.keys().replace(", ", "\n"),
        one_listener(&format!("service = \"users\"\ntls = {{ {table} }}")),
        one_listener("service = \"users\"\ntls = true"),
        users(&[&endpoint], "")
    ));
    let shown = |listener: usize, name: &[&str]| {
        let said = s_client(proxy.addresses[listener], &authority, name);
        said.assert_has("200 OK").assert_has("Verify return code: 0 (ok)");
        let (_, subject) = said.out.split_once("subject=CN = ").expect("a subject");
        subject.lines().next().expect("a name").to_owned()
    };
    for (name, expected) in [
        ("first.example", "first"),
        ("a.users.example", "exact"),
        ("A.Users.Example", "exact"),
        ("b.users.example", "wild"),
        ("c.b.users.example", "first"),
        ("users.example", "first"),
        ("shared.example", "shared"),
        ("unknown.example", "first"),
    ] {
        assert_eq!(shown(0, &["-servername", name]), expected, "{name}");
    }
    assert_eq!(shown(0, &["-noservername"]), "first");
    assert_eq!(shown(1, &["-servername", "first.example"]), "shared");
}

#[test]
fn the_key_is_one_that_the_client_knows() {
    let authority = Authority::new();
    let ecdsa = authority.issue("ecdsa", &["users"]);
    let rsa = authority.issue_with("rsa", &["users"], &rcgen::PKCS_RSA_SHA256, |_| {});
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &format!("certificates = [{{ {} }}, {{ {} }}]", ecdsa.keys(), rsa.keys()));
    for version in ["-tls1_2", "-tls1_3"] {
        for (algorithms, expected) in
            [("ECDSA+SHA256:rsa_pss_rsae_sha256", "ecdsa"), ("rsa_pss_rsae_sha256", "rsa"), ("ECDSA+SHA256", "ecdsa")]
        {
            for name in [&["-servername", "users"][..], &["-noservername"]] {
                let args = [&[version, "-sigalgs", algorithms], name].concat();
                let said = s_client(proxy.addresses[0], &authority, &args);
                said.assert_has("200 OK").assert_has(&format!("subject=CN = {expected}"));
            }
        }
    }
}

/// PKCS#8 is what the other tests have; SEC1 and PKCS#1 are what older tools write, and parameters may come first.
#[test]
fn keys_of_every_form_are_read() {
    let authority = Authority::new();
    let endpoint = Endpoint::saying(OK);
    let path = |name: &str| authority.folder.path().join(name);
    for (stem, algorithm, convert) in
        [("sec1", &rcgen::PKCS_ECDSA_P256_SHA256, "ec"), ("pkcs1", &rcgen::PKCS_RSA_SHA256, "rsa")]
    {
        let pair = authority.issue_with(stem, &["users"], algorithm, |_| {});
        let (from, to) = (pair.key.display().to_string(), path("converted").display().to_string());
        let traditional = if convert == "rsa" { &["-traditional"][..] } else { &[] };
        let converted = run("openssl", &[&[convert, "-in", &from, "-out", &to], traditional].concat(), "");
        assert!(converted.ok, "{converted:?}");
        let mut key = std::fs::read_to_string(&to).expect("a key");
        let label = key.lines().next().expect("a line").to_owned();
        let expected = ["-----BEGIN EC PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----"];
        assert!(expected.contains(&label.as_str()), "{label}");
        if convert == "ec" {
            key = run("openssl", &["ecparam", "-name", "prime256v1"], "").out + &key;
        }
        std::fs::write(&pair.key, key).expect("written");
        let proxy = proxy(&endpoint, &pair.keys());
        s_client(proxy.addresses[0], &authority, &["-verify_return_error"]).assert_has("200 OK");
    }
}

/// What the service reads about the client, whatever the client says itself.
#[test]
fn only_a_certificate_proves_who_the_client_is() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    let pair = authority.issue("users", &["users"]);
    let spiffe = authority.issue("spiffe", &["a.example", "spiffe://mesh/ns/shop/sa/cart"]);
    let dns = authority.issue("dns", &["Cart.example", "other.example"]);
    let bad = stranger.issue("bad", &["a.example", "spiffe://mesh/ns/shop/sa/cart"]);
    let endpoint = Endpoint::saying(OK);
    let with = |mode: &str| {
        let ca = format!(", client_ca = {:?}", authority.file());
        let ca = if mode == "off" { "" } else { &ca };
        proxy(&endpoint, &format!("{}, client = \"{mode}\"{ca}", pair.keys()))
    };
    let forged = "GET / HTTP/1.1\r\nHost: users\r\nX-Forwarded-Client-Cert: URI=spiffe://mesh/admin\r\n\
                  Connection: close, X-Forwarded-Client-Cert\r\n\r\n";
    let shown = |client: Option<&tls::Pair>| {
        let files = client.map(|pair| [pair.certificate.display().to_string(), pair.key.display().to_string()]);
        files.map_or(Vec::new(), |[certificate, key]| vec!["-cert".to_owned(), certificate, "-key".to_owned(), key])
    };
    for (mode, client, identity) in [
        ("optional", None, Some(None)),
        ("optional", Some(&spiffe), Some(Some("URI=spiffe://mesh/ns/shop/sa/cart"))),
        ("optional", Some(&dns), Some(Some("DNS=cart.example"))),
        ("optional", Some(&bad), None),
        ("required", None, None),
        ("required", Some(&spiffe), Some(Some("URI=spiffe://mesh/ns/shop/sa/cart"))),
        ("required", Some(&bad), None),
        ("off", Some(&spiffe), Some(None)),
    ] {
        let proxy = with(mode);
        for version in ["-tls1_2", "-tls1_3"] {
            let before = endpoint.requests().len();
            let client = shown(client);
            let args: Vec<&str> = [version].into_iter().chain(client.iter().map(String::as_str)).collect();
            let said = s_client_sending(proxy.addresses[0], &authority, &args, forged);
            match identity {
                Some(identity) => {
                    said.assert_has("200 OK");
                    assert_eq!(
                        endpoint.last().header("x-forwarded-client-cert").as_deref(),
                        identity,
                        "{mode} {args:?}"
                    );
                }
                None => {
                    said.assert_has("alert").assert_lacks("200 OK");
                    assert_eq!(endpoint.requests().len(), before, "{mode} {args:?}");
                }
            }
        }
    }
    // Nor without TLS.
    let plain = Proxy::to(&endpoint);
    let mut client = plain.client();
    client.send(forged);
    assert_eq!(client.response().status(), 200);
    assert_eq!(endpoint.last().header("x-forwarded-client-cert"), None);
}

#[test]
fn a_resumed_session_keeps_the_identity() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let client = authority.issue("client", &["spiffe://mesh/ns/shop/sa/cart"]);
    let endpoint = Endpoint::saying(OK);
    let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
    let session = authority.folder.path().join("session").display().to_string();
    let settings = format!("{}, client = \"required\", client_ca = {:?}", pair.keys(), authority.file());
    let proxy = proxy(&endpoint, &settings);
    for version in ["-tls1_2", "-tls1_3"] {
        let first = [version, "-cert", &certificate, "-key", &key, "-sess_out", &session];
        s_client(proxy.addresses[0], &authority, &first).assert_has("New, TLSv1").assert_has("200 OK");
        // Without the certificate: it is the ticket that proves it.
        let resumed = s_client(proxy.addresses[0], &authority, &[version, "-sess_in", &session]);
        resumed.assert_has("Reused, TLSv1").assert_has("200 OK");
        let identity = endpoint.last().header("x-forwarded-client-cert");
        assert_eq!(identity.as_deref(), Some("URI=spiffe://mesh/ns/shop/sa/cart"));
    }
    // A ticket is good for the listener that gave it: another may ask for more.
    let other = self::proxy(&endpoint, &settings);
    s_client(other.addresses[0], &authority, &["-tls1_3", "-sess_in", &session]).assert_lacks("200 OK");

    let without = self::proxy(&endpoint, &format!("{}, session_tickets = false", pair.keys()));
    for version in ["-tls1_2", "-tls1_3"] {
        std::fs::remove_file(&session).expect("removed");
        s_client(without.addresses[0], &authority, &[version, "-sess_out", &session]).assert_has("200 OK");
        if std::fs::exists(&session).expect("looked") {
            let again = s_client(without.addresses[0], &authority, &[version, "-sess_in", &session]);
            again.assert_has("New, TLSv1").assert_has("200 OK");
        } else {
            std::fs::write(&session, "").expect("written");
        }
    }
}

#[test]
fn curl_and_python() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users.mesh", "127.0.0.1"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], &format!("tls = {{ {} }}", pair.keys()), "");
    let at = proxy.addresses[0];
    let resolve = format!("users.mesh:{}:127.0.0.1", at.port());
    let url = format!("https://users.mesh:{}/[1-3]", at.port());
    let ca = authority.path();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let common = ["-sS", "--max-time", "20", "--cacert", &ca, "--resolve", &resolve, "-w", " %{http_version}\n"];
        let said = run("curl", &[&common[..], &[flag, &url]].concat(), "");
        assert_eq!(said.out, format!("ok {version}\n").repeat(3), "{said:?}");
    }
    assert_eq!(endpoint.connections(), 1);
    // A proxy that is itself spoken to over TLS.
    let proxy_at = format!("https://127.0.0.1:{}", at.port());
    let said =
        run("curl", &["-sS", "--max-time", "20", "--proxy-cacert", &ca, "--proxy", &proxy_at, "http://users/"], "");
    assert_eq!(said.out, "ok", "{said:?}");

    let script = "
import sys, requests
session = requests.Session()
session.trust_env = False
for n in range(3):
    answer = session.get(f'https://127.0.0.1:{sys.argv[1]}/{n}', headers={'host': 'users'}, verify=sys.argv[2], timeout=20)
    assert answer.status_code == 200 and answer.text == 'ok', answer
";
    // Debian's own sees Debian's packages, also where another Python comes first.
    let has_requests = |python: &&&str| {
        Command::new(python).args(["-c", "import requests"]).output().is_ok_and(|output| output.status.success())
    };
    let python = ["python3", "/usr/bin/python3"].iter().find(has_requests).expect("Debian's python3-requests");
    let said = run(python, &["-c", script, &at.port().to_string(), &ca], "");
    assert!(said.ok, "{said:?}");
}

/// The request leaves together with the last message of the handshake, so that nothing more arrives to wake anybody.
/// HTTP/2 by ALPN, and with prior knowledge: a transfer with flow control, and many streams at once.
#[test]
fn nghttp_and_h2load() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users", "127.0.0.1"]);
    let endpoint = Endpoint::answering(|request| {
        let length = if request.start.contains("/large") { 3 << 20 } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        [head.into_bytes(), vec![b'o'; length]].concat()
    });
    let plain = one_listener("service = \"users\"");
    let secure = one_listener(&format!("service = \"users\"\ntls = {{ {} }}", pair.keys()));
    let proxy = Proxy::start(&format!("{plain}{secure}{}", users(&[&endpoint], "")));
    for url in [format!("http://{}", proxy.addresses[0]), format!("https://{}", proxy.addresses[1])] {
        let (small, large) = (format!("{url}/"), format!("{url}/large"));
        assert_eq!(run("nghttp", &["--no-verify-peer", &small], "").out, "oo");
        assert_eq!(run("nghttp", &["--no-verify-peer", &large], "").out.len(), 3 << 20);
        // Each stream may need a connection of its own, and only so many wait at once for the endpoint to accept them.
        let said = run("h2load", &["-n", "2000", "-c", "4", "-m", "10", &small], "");
        assert!(said.out.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said:?}");
    }
}

#[test]
fn a_request_may_come_with_the_end_of_the_handshake() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    for protocols in [&[][..], &["http/1.1"]] {
        let mut config = (*authority.client_config()).clone();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut client = TlsWire::connect(proxy.addresses[0], config.into(), "users");
        client.session.writer().write_all(b"GET / HTTP/1.1\r\nHost: users\r\n\r\n").expect("buffered");
        let mut out = Vec::new();
        client.session.write_tls(&mut out).expect("a hello");
        client.tcp.write_all(&out).expect("sent");
        while client.session.is_handshaking() {
            client.session.read_tls(&mut client.tcp).expect("an answer");
            client.session.process_new_packets().expect("TLS");
        }
        let mut out = Vec::new();
        while client.session.wants_write() {
            client.session.write_tls(&mut out).expect("the end of the handshake, and the request");
        }
        client.tcp.write_all(&out).expect("sent");
        let mut stream = rustls::Stream::new(&mut client.session, &mut client.tcp);
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
}

#[test]
fn plain_http_is_told_that_tls_is_spoken() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    let answer = client.response();
    answer.assert_refused(400, "router", "http_request_error");
    assert!(answer.text().contains("https://"), "{answer:?}");
    client.expect_end();
    for other in [&b"\x05\x01\x00"[..], b"\x00\x01\x02\x03 anything"] {
        let mut client = proxy.client();
        client.send(other);
        let mut said = Vec::new();
        let _the_end_of_the_connection = client.stream.read_to_end(&mut said);
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400 "), "{said:?}");
    }
    assert_eq!(endpoint.connections(), 0);
    // Where both are spoken, both are served.
    let both = Proxy::with(&[&endpoint], &format!("protocol = \"auto\"\ntls = {{ {} }}", pair.keys()), "");
    assert_eq!(both.client().get("/").status(), 200);
    s_client(both.addresses[0], &authority, &[]).assert_has("200 OK");
}

#[test]
fn a_slow_handshake_stops_nobody_and_is_given_up() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::start(&format!(
        "{}{}",
        one_listener(&format!("service = \"users\"\ntls = {{ {}, handshake_timeout = \"2s\" }}", pair.keys())),
        users(&[&endpoint], "")
    ));
    let mut slow: Vec<Wire> = (0..200).map(|_| proxy.client()).collect();
    // The beginning of a record, of which no more comes.
    slow.iter_mut().for_each(|client| client.send(b"\x16\x03\x01\x02\x00\x01\x00"));
    s_client(proxy.addresses[0], &authority, &[]).assert_has("200 OK");
    slow.iter_mut().for_each(Wire::expect_end);
    let terminator = &proxy.app().state.listeners()[0].tls;
    wait_until("each has been counted", || terminator.failures() == 200);
}

/// A client of TLS speaks first, and has no reason to wait; one of HTTP may connect before it has anything to ask.
#[test]
fn who_never_begins_tls_is_given_up() {
    let authority = Authority::new();
    let endpoint = Endpoint::saying(OK);
    let keys = authority.issue("users", &["users"]).keys();
    let ends = format!("service = \"users\"\ntls = {{ {keys}, handshake_timeout = \"200ms\" }}");
    let passes = "protocol = \"tcp\"\nservice = \"users\"\ntls = \"passthrough\"\nheader_timeout = \"200ms\"";
    let short = "service = \"users\"\nheader_timeout = \"200ms\"";
    let listeners = [short, &ends, &format!("protocol = \"tcp\"\n{ends}"), passes].map(one_listener).concat();
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], "")));
    let mut plain = proxy.client();
    for listener in 1..4 {
        proxy.client_of(listener).expect_end();
    }
    assert!(plain.is_silent());
    assert_eq!(plain.get("/").status(), 200);
}

/// A tunnel to a service whose name a certificate is held of: what is inside is for the proxy, request by request.
#[test]
fn tls_inside_a_tunnel_is_ended_where_a_certificate_is_held() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users", "users.mesh"]);
    let endpoints = [Endpoint::saying(OK), Endpoint::saying(OK)];
    let proxy = Proxy::start(&format!(
        "[[certificate]]\n{}\n{}{}",
        pair.keys().replace(", ", "\n"),
        one_listener(""),
        users(&[&endpoints[0], &endpoints[1]], "balancer = \"round-robin\"")
    ));
    let (at, ca) = (format!("http://{}", proxy.addresses[0]), authority.path());
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let before = endpoints.each_ref().map(|endpoint| endpoint.requests().len());
        let common = ["-sS", "--max-time", "20", "--cacert", &ca, "--proxy", &at, "-w", " %{http_version}\n"];
        let said = run("curl", &[&common[..], &[flag, "https://users.mesh/[1-6]"]].concat(), "");
        assert_eq!(said.out, format!("ok {version}\n").repeat(6), "{said:?}");
        let after = endpoints.each_ref().map(|endpoint| endpoint.requests().len());
        assert_eq!([after[0] - before[0], after[1] - before[1]], [3, 3]);
    }
}

/// A name of which no certificate is held: the endpoint's own TLS reaches the client untouched.
#[test]
fn tls_inside_a_tunnel_is_passed_on_where_none_is_held() {
    let authority = Authority::new();
    let pair = authority.issue("other", &["other.example"]);
    let own = authority.issue("users", &["users"]);
    let behind = Endpoint::saying(OK);
    let endpoint = proxy(&behind, &own.keys());
    let proxy = Proxy::start(&format!(
        "[[certificate]]\n{}\n{}[service.users]\nendpoints = [\"{}\"]\n",
        pair.keys().replace(", ", "\n"),
        one_listener(""),
        endpoint.addresses[0]
    ));
    let curl = |proxy: &Proxy, url: &str| {
        let (at, ca) = (format!("http://{}", proxy.addresses[0]), authority.path());
        run("curl", &["-sS", "--max-time", "20", "--cacert", &ca, "--proxy", &at, url], "")
    };
    let said = curl(&proxy, "https://users/[1-3]");
    assert_eq!(said.out, "ok".repeat(3), "{said:?}");
    assert_eq!(behind.requests().len(), 3);
    // Also where the service is said to speak TLS: that is for those who do not bring their own.
    let proxy = Proxy::start(&format!(
        "via = \"front\"\n{}[service.users]\nendpoints = [\"{}\"]\ntls = {{ ca = {:?}, server_name = \"users\" }}\n",
        one_listener(""),
        endpoint.addresses[0],
        authority.file()
    ));
    for url in ["https://users/", "http://users/"] {
        let said = curl(&proxy, url);
        assert_eq!(said.out, "ok", "{said:?}");
    }
}

/// TLS on a TCP listener: the bytes inside go to the service.
#[test]
fn a_tcp_listener_ends_tls() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::start(|_, mut wire| {
        let line = wire.exactly(5).expect("a line");
        wire.send(line.to_ascii_uppercase());
    });
    let settings = format!("protocol = \"tcp\"\nservice = \"users\"\ntls = {{ {} }}", pair.keys());
    let proxy = Proxy::with(&[&endpoint], &settings, "");
    let mut client = TlsWire::connect(proxy.addresses[0], authority.client_config(), "users");
    assert_eq!(client.ask("hello", "HELLO").expect("an answer"), "HELLO");
    assert_eq!(client.certificate(), der(&pair.certificate));
    // Whatever the client offers to speak inside.
    s_client_sending(proxy.addresses[0], &authority, &["-alpn", "h2"], "hello").assert_has("HELLO");
}

/// Issue 10, 11: a ticket stands for a certificate, and for no longer than that is valid. Each resumption brings another
/// ticket, which is no better.
#[test]
fn a_ticket_does_not_outlive_the_certificate() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    for mode in ["required", "optional"] {
        let settings = format!("{}, client = \"{mode}\", client_ca = {:?}", pair.keys(), authority.file());
        let proxy = proxy(&endpoint, &settings);
        let end = SystemTime::now() + Duration::from_secs(6);
        let since = end.duration_since(UNIX_EPOCH).expect("a time");
        let client = authority.issue_with("short", &["a.example"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since;
        });
        let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
        let sessions = ["-tls1_2", "-tls1_3"].map(|version| {
            let session = authority.folder.path().join(format!("session{version}")).display().to_string();
            let first = [version, "-cert", &certificate, "-key", &key, "-sess_out", &session];
            s_client(proxy.addresses[0], &authority, &first).assert_has("New, TLSv1").assert_has("200 OK");
            // The next ticket is that of a session that was resumed.
            let again = [version, "-sess_in", &session, "-sess_out", &session];
            s_client(proxy.addresses[0], &authority, &again).assert_has("Reused, TLSv1").assert_has("200 OK");
            (version, session)
        });
        wait_until("the certificate has expired", || SystemTime::now() > end + Duration::from_secs(1));
        for (version, session) in &sessions {
            let late = s_client(proxy.addresses[0], &authority, &[version, "-sess_in", session]);
            late.assert_lacks("Reused, TLSv1");
            if mode == "required" {
                late.assert_lacks("200 OK");
            } else {
                // One that has not proved who it is may go on as nobody.
                late.assert_has("200 OK");
                assert_eq!(endpoint.last().header("x-forwarded-client-cert"), None);
            }
        }
    }
}

/// Issue 10, 11: what is agreed on with clients, and what the figures say of it.
#[test]
fn the_key_exchange_withstands_a_quantum_computer() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    let config = authority.client_config();
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut client = TlsWire::connect(proxy.addresses[0], config.clone(), "users");
        client.ask("GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n", "ok").expect("an answer");
        let group = client.session.negotiated_key_exchange_group().expect("a group").name();
        assert_eq!((group, client.session.handshake_kind()), (NamedGroup::X25519MLKEM768, Some(kind)));
    }
    // Who does not know it, or another version, is served as before.
    for (args, version) in [
        (&["-tls1_3", "-groups", "X25519"][..], "1.3"),
        (&["-tls1_3", "-groups", "P-256"], "1.3"),
        (&["-tls1_2"], "1.2"),
    ] {
        s_client(proxy.addresses[0], &authority, args).assert_has("200 OK").assert_has(&format!("TLSv{version}"));
    }
    let terminator = &proxy.app().state.listeners()[0].tls;
    let counted = terminator.handshakes().totals();
    let count = |labels: [&str; 3]| counted.iter().find(|(of, _)| *of == labels).map_or(0, |(_, count)| *count);
    assert_eq!(count(["1.3", "X25519MLKEM768", "full"]), 1, "{counted:?}");
    assert_eq!(count(["1.3", "X25519MLKEM768", "resumed"]), 1, "{counted:?}");
    assert_eq!(count(["1.3", "x25519", "full"]), 1, "{counted:?}");
    assert_eq!(count(["1.3", "secp256r1", "full"]), 1, "{counted:?}");
    assert_eq!(counted.iter().map(|(_, count)| count).sum::<u64>(), 5, "{counted:?}");
}

/// Issue 10, 11: a first message is larger than a packet, and comes in pieces.
#[test]
fn a_first_message_may_come_in_any_pieces() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let tls = format!("tls = {{ {} }}", pair.keys());
    let listeners =
        [&*tls, &format!("protocol = \"auto\"\n{tls}"), &format!("{tls}\nproxy_protocol = [\"127.0.0.1\"]")];
    let listeners = listeners.map(|more| one_listener(&format!("service = \"users\"\n{more}"))).concat();
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], "")));
    for (listener, address) in proxy.addresses.iter().enumerate() {
        for size in [1, 100, 1000, 1448] {
            let mut client = TlsWire::connect(*address, authority.client_config(), "users");
            if listener == 2 {
                client.tcp.write_all(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n").expect("sent");
            }
            let mut hello = Vec::new();
            client.session.write_tls(&mut hello).expect("a message");
            assert!(hello.len() > 1400, "{}", hello.len());
            for piece in hello.chunks(size) {
                client.tcp.write_all(piece).expect("sent");
            }
            client.ask("GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n", "ok").expect("an answer");
        }
    }
}
