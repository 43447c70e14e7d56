//! Where requests go, what the proxy changes in them on the way, and what it refuses.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::net::TcpListener;

use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};

#[test]
fn a_host_names_a_service_in_absolute_and_origin_form() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for host in ["users", "users:80", "users:8080", "users.mesh", "USERS", "Users.Mesh.", "users.mesh:80"] {
        client.send(format!("GET http://{host}/a?b HTTP/1.1\r\nHost: elsewhere\r\n\r\n"));
        assert_eq!(client.response().text(), "ok", "absolute-form for {host}");
        let seen = endpoint.last();
        assert_eq!(seen.start, "GET /a?b HTTP/1.1");
        assert_eq!(seen.header("host").as_deref(), Some(host), "the target's host counts (RFC 9112, 3.2.2)");

        client.send(format!("GET /a?b HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response().text(), "ok", "origin-form for {host}");
        assert_eq!(endpoint.last().header("host").as_deref(), Some(host));
    }
    client.send("GET http://users HTTP/1.1\r\nHost: users\r\n\r\nGET http://users?q HTTP/1.1\r\nHost: users\r\n\r\n");
    assert_eq!((client.response().status(), client.response().status()), (200, 200));
    let starts: Vec<String> = endpoint.requests().into_iter().rev().take(2).map(|request| request.start).collect();
    assert_eq!(starts, ["GET /?q HTTP/1.1", "GET / HTTP/1.1"]);
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn the_suffix_can_be_another_or_none() {
    let endpoint = Endpoint::saying(OK);
    for (suffix, name, status) in
        [("", "users.mesh", 404), ("svc.local", "users.svc.local", 200), ("svc.local", "users.mesh", 404)]
    {
        let config = format!("suffix = {suffix:?}\n{}{}", one_listener(""), users(&[&endpoint], ""));
        let proxy = Proxy::start(&config);
        let mut client = proxy.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        assert_eq!(client.response().status(), status, "{name} with suffix {suffix:?}");
        assert_eq!(client.get("/").status(), 200);
    }
}

#[test]
fn unknown_hosts_are_refused_unless_absolute_and_passed_through() {
    let elsewhere = Endpoint::saying("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nelsewhere");
    let listeners =
        format!("{}{}[[listener]]\naddress = \"0.0.0.0:0\"\n", one_listener(""), one_listener("passthrough = false"));
    let proxy = Proxy::start(&listeners);
    let at = elsewhere.address;
    let origin = format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let absolute = format!("GET http://{at}/p HTTP/1.1\r\nHost: {at}\r\n\r\n");

    let mut client = proxy.client_of(0);
    client.send(&absolute);
    assert_eq!(client.response().text(), "elsewhere", "on a loopback listener by default");
    assert_eq!(elsewhere.last().start, "GET /p HTTP/1.1");
    assert_eq!(elsewhere.last().header("host"), Some(at.to_string()));
    client.send(&absolute);
    assert_eq!((client.response().status(), elsewhere.connections()), (200, 1), "its connections are kept too");
    client.send(&origin);
    client.response().assert_refused(404, "router", "destination_not_found");

    for listener in [1, 2] {
        let mut client = Wire::connect(([127, 0, 0, 1], proxy.addresses[listener].port()).into());
        for request in [&absolute, &origin] {
            client.send(request);
            let refusal = client.response();
            refusal.assert_refused(404, "router", "destination_not_found");
            assert_eq!(refusal.header("content-type").as_deref(), Some("text/plain; charset=utf-8"));
            assert!(refusal.body.len() < 400 && refusal.text().contains("127.0.0.1"), "{}", refusal.text());
        }
    }
    assert_eq!(elsewhere.connections(), 1);
}

#[test]
fn addresses_that_nobody_means_are_denied_after_name_resolution() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::start(&format!(
        "{}[[listener]]\naddress = \"0.0.0.0:0\"\npassthrough = true\n",
        one_listener("passthrough = true")
    ));
    let ask = |listener: usize, target: &str| {
        let mut client = Wire::connect(([127, 0, 0, 1], proxy.addresses[listener].port()).into());
        client.send(format!("GET http://{target}/ HTTP/1.1\r\nHost: x\r\n\r\n"));
        client.response()
    };
    // 2852039166 is no address as URLs have them: the resolver makes 169.254.169.254 of it.
    for target in ["169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "0.0.0.0", "100.100.100.200"] {
        for listener in [0, 1] {
            ask(listener, target).assert_refused(403, "upstream", "destination_ip_prohibited");
        }
    }
    // What is on loopback is for those who are.
    let port = endpoint.address.port();
    for name in ["127.0.0.1", "localhost", "2130706433"] {
        ask(1, &format!("{name}:{port}")).assert_refused(403, "upstream", "destination_ip_prohibited");
    }
    assert_eq!(endpoint.connections(), 0);
    assert_eq!(ask(0, &format!("localhost:{port}")).status(), 200);
}

#[test]
fn a_target_that_cannot_be_meant_is_a_bad_request() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: users\r\nHost: users\r\n\r\n",
        "GET http://me:secret@users/ HTTP/1.1\r\nHost: users\r\n\r\n",
        "GET https://users/ HTTP/1.1\r\nHost: users\r\n\r\n",
        "GET http://127.0.0.1:99999/ HTTP/1.1\r\nHost: users\r\n\r\n",
    ] {
        let mut client = proxy.client();
        client.send(request);
        client.response().assert_refused(400, "router", "http_request_error");
    }
    assert_eq!(endpoint.connections(), 0);
}

#[test]
fn a_listener_of_one_service_serves_nothing_else() {
    let endpoint = Endpoint::saying(OK);
    let elsewhere = Endpoint::saying(OK);
    let config = format!(
        "{}{}{}",
        one_listener("service = \"users\""),
        one_listener("service = \"not-yet\""),
        users(&[&endpoint], "")
    );
    let proxy = Proxy::start(&config);
    let at = elsewhere.address;
    for request in [
        format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: whatever\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
    ] {
        let mut client = proxy.client_of(0);
        client.send(&request);
        assert_eq!(client.response().status(), 200, "{request}");
        let mut client = proxy.client_of(1);
        client.send(&request);
        client.response().assert_refused(503, "registry", "destination_unavailable");
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn a_loop_is_broken() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("services.toml");
    std::fs::write(&path, "[services]\n").expect("written");
    let config = format!("{}[registry.file]\npath = {path:?}\nrescan = \"100ms\"\n", one_listener(""));
    let proxy = Proxy::start(&config);
    let own = proxy.addresses[0];
    std::fs::write(&path, format!("[services.users]\nendpoints = ['{own}']\n")).expect("written");
    wait_until("the proxy is its own endpoint", || {
        proxy.app().state.directory.get("users").is_some_and(|service| service.snapshot().eligible_count() == 1)
    });
    let mut client = proxy.client();
    client.get("/").assert_refused(508, "router", "proxy_loop_detected");
    client.send(format!("GET http://{own}/ HTTP/1.1\r\nHost: {own}\r\n\r\n"));
    client.response().assert_refused(508, "router", "proxy_loop_detected");
}

#[test]
fn requests_are_signed_and_tell_of_the_client_as_the_listener_says() {
    let endpoint = Endpoint::saying(OK);
    let config = format!(
        "via = \"edge\"\n{}{}{}{}",
        one_listener(""),
        one_listener("forwarded = \"standard\""),
        one_listener("forwarded = \"legacy\""),
        users(&[&endpoint], "")
    );
    let proxy = Proxy::start(&config);
    let sent = |listener: usize, target: &str, headers: &str| {
        let mut client = proxy.client_of(listener);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: users\r\n{headers}\r\n"));
        let response = client.response();
        assert_eq!((response.status(), response.header("via")), (200, None));
        endpoint.last()
    };
    for target in ["http://users/", "/"] {
        let seen = sent(0, target, "Via: 1.0 before\r\nX-Forwarded-For: 10.0.0.1\r\n");
        assert_eq!(seen.header("via").as_deref(), Some("1.0 before, 1.1 edge"));
        assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("10.0.0.1"));
        assert_eq!(seen.header("forwarded"), None);

        let seen = sent(1, target, "Forwarded: for=10.0.0.1\r\n");
        let forwarded = "for=10.0.0.1, for=127.0.0.1;host=\"users\";proto=http";
        assert_eq!(seen.header("forwarded").as_deref(), Some(forwarded), "{target}");

        let seen = sent(2, target, "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n");
        assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("10.0.0.1, 127.0.0.1"));
        assert_eq!(seen.header("x-forwarded-host").as_deref(), Some("users"), "{target}");
        assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("http"));
    }
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: users\r\nVia: 1.1 edge\r\n\r\n");
    client.response().assert_refused(508, "router", "proxy_loop_detected");
}

#[test]
fn what_belongs_to_one_connection_stays_on_it() {
    let endpoint = Endpoint::saying(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: X-Own, keep-alive\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\nX-Kept: 1\r\nX-Kept: 2\r\n\r\nok",
    );
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send(
        "GET / HTTP/1.1\r\nHost: users\r\nConnection: X-Mine, keep-alive\r\nConnection: host, Content-Length, X-Other\r\n\
         X-Mine: 1\r\nX-Other: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers, gzip\r\n\
         Upgrade: websocket\r\nProxy-Authorization: Basic eA==\r\nX-Kept: 1\r\nX-Kept: 2\r\n\r\n",
    );
    let response = client.response();
    let mut names: Vec<&str> = response.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "x-kept", "x-kept"]);
    assert_eq!(response.header("x-kept").as_deref(), Some("1, 2"));
    let request = endpoint.last();
    let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "via", "x-kept", "x-kept"]);
}

#[test]
fn a_service_without_a_usable_endpoint_says_why() {
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    // An address that is listened on by nobody who accepts: the queue of one is full, and connecting takes for ever.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
    full.listen(0).expect("listening");
    let stuck = full.local_addr().expect("an address").as_socket().expect("of IP");
    let _queued = Wire::connect(stuck);
    let silent = Endpoint::start(|_, mut wire| {
        let _ = wire.request();
        wire.expect_end();
    });
    let config = format!(
        "{}[service.default]\nconnect_timeout = \"500ms\"\nrequest_timeout = \"1s\"\n\
         [service.empty]\n[service.paused]\nendpoints = [{{ address = \"127.0.0.1:1\", weight = 0 }}]\n\
         [service.gone]\nendpoints = [\"{gone}\"]\n[service.stuck]\nendpoints = [\"{stuck}\"]\n\
         [service.silent]\nendpoints = [\"{}\"]\n[service.nowhere]\nendpoints = [\"nowhere.invalid:80\"]\n",
        one_listener(""),
        silent.address
    );
    let proxy = Proxy::start(&config);
    let mut client = proxy.client();
    for (service, status, part, error) in [
        ("empty", 503, "registry", "destination_unavailable"),
        ("paused", 503, "registry", "destination_unavailable"),
        ("gone", 502, "upstream", "connection_refused"),
        ("stuck", 504, "upstream", "connection_timeout"),
        ("silent", 504, "upstream", "http_response_timeout"),
    ] {
        client.send(format!("GET http://{service}/ HTTP/1.1\r\nHost: x\r\n\r\n"));
        client.response().assert_refused(status, part, error);
    }
    client.send("GET http://nowhere/ HTTP/1.1\r\nHost: x\r\n\r\n");
    let refusal = client.response();
    assert!(matches!(refusal.status(), 502 | 504), "depends on the machine's resolver: {refusal:?}");
    assert!(refusal.header("proxy-status").is_some());
    client.send("HEAD http://empty/ HTTP/1.1\r\nHost: x\r\n\r\nHEAD http://empty/ HTTP/1.1\r\nHost: x\r\n\r\n");
    for _ in 0..2 {
        client.head().expect("a head without a body").assert_refused(503, "registry", "destination_unavailable");
    }
}

/// A proxy whose services come from a file with these lines of `[services]`, and more of `[registry]`.
fn by_file(folder: &tempfile::TempDir, services: &str, registry: &str) -> Proxy {
    let path = folder.path().join("services.toml");
    std::fs::write(&path, services).expect("write");
    let config = format!("{}[registry.file]\npath = {path:?}\n{registry}\n", one_listener("protocol = \"auto\""));
    Proxy::start(&config)
}

/// Issue 10, 13: a registry does not take over what clients send to hosts of others. A name of several labels outside the
/// suffix is a service where a service is meant; proxy requests, CONNECT and SOCKS need the source's `names`.
#[test]
fn a_host_of_others_is_taken_over_only_where_names_allow_it() {
    let endpoint = Endpoint::saying(OK);
    let at = endpoint.address;
    let services =
        format!("[services.users]\nendpoints = [\"{at}\"]\n[services.\"api.invalid\"]\nendpoints = [\"{at}\"]\n");
    for (names, is_taken) in [
        ("", false),
        ("names = []", false),
        ("names = [\"*.other\", \"api.invalid.*\"]", false),
        ("names = [\"api.invalid\"]", true),
        ("names = [\"*.invalid\"]", true),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let proxy = by_file(&folder, &services, names);
        let origin = |host: &str| {
            let mut client = proxy.client();
            client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            client.response().status()
        };
        let absolute = |host: &str| {
            let mut client = proxy.client();
            client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            client.response().status()
        };
        let connect = |host: &str| {
            let mut client = proxy.client();
            client.send(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            client.head().expect("an answer").status()
        };
        let socks = |host: &str| {
            let mut client = proxy.client();
            client.send([5, 1, 0]);
            assert_eq!(client.exactly(2).expect("a method"), [5, 0]);
            let request = [&[5, 1, 0, 3, host.len() as u8], host.as_bytes(), &[0, 80]].concat();
            client.send(request);
            client.exactly(2).expect("a reply")[1]
        };
        for host in ["api.invalid", "API.Invalid."] {
            assert_eq!(origin(host), 200, "{names}: a service is meant");
            // `.invalid` resolves nowhere (RFC 2606), so that what is passed on fails.
            assert_eq!(absolute(host) == 200, is_taken, "{names}: {host}");
            assert_eq!(connect(host) == 200, is_taken, "{names}: CONNECT {host}");
            assert_eq!(socks(host) == 0, is_taken, "{names}: SOCKS {host}");
        }
        for host in ["users", "users.mesh", "api.invalid.mesh"] {
            assert_eq!(
                (origin(host), absolute(host), connect(host), socks(host)),
                (200, 200, 200, 0),
                "{names}: {host}"
            );
        }
    }
}

/// Issue 10, 13: services by the names of addresses and of this machine are refused, in the configuration too.
#[test]
fn addresses_and_localhost_are_no_services() {
    for name in ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "users.localhost"] {
        let config = format!("{}[service.{name:?}]\nendpoints = [\"127.0.0.1:9\"]\n", one_listener(""));
        let problems = heddle::config::parse(&config, std::path::Path::new("test"), &[]).expect_err(name).to_string();
        assert!(problems.contains("which no service can take over"), "{problems}");
    }
}

/// Issue 10, 13: keys that name addresses or this machine take over nothing, and others beside them are served.
#[test]
fn keys_that_name_addresses_take_over_nothing() {
    let (endpoint, elsewhere) = (Endpoint::saying(OK), Endpoint::saying(OK));
    let names = ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "users"];
    let of = |name: &&str| format!("[services.{name:?}]\nendpoints = [\"{}\"]\n", endpoint.address);
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = by_file(&folder, &names.iter().map(of).collect::<String>(), "names = [\"*\"]");
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    assert_eq!((client.response().status(), endpoint.connections()), (200, 1));
    for host in ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433"] {
        let target = format!("{host}:{}", elsewhere.address.port());
        let before = elsewhere.requests().len();
        client.send(format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(
            (client.response().status(), elsewhere.requests().len()),
            (200, before + 1),
            "{host} is passed through"
        );
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response().assert_refused(404, "router", "destination_not_found");
    }
    assert_eq!(endpoint.requests().len(), 1);
}

/// Issue 10, 13: an endpoint is judged by the address that its name resolves to, at each connect, under the rules that
/// hold by then.
#[test]
fn endpoints_are_judged_by_the_address_that_is_connected_to() {
    let endpoint = Endpoint::saying(OK);
    let port = endpoint.address.port();
    let folder = tempfile::tempdir().expect("a folder");
    let service = |name: &str, host: &str| format!("[services.{name}]\nendpoints = [\"{host}:{port}\"]\n");
    // The resolver makes 169.254.169.254, 0.0.0.0 and 127.0.0.1 of these.
    let services = [
        service("metadata", "0xa9fea9fe"),
        service("any", "0x0"),
        service("here", "0x7f000001"),
        service("named", "localhost"),
    ];
    let proxy = by_file(&folder, &services.concat(), "");
    let ask = |proxy: &Proxy, host: &str| {
        let mut client = proxy.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response()
    };
    ask(&proxy, "metadata").assert_refused(403, "upstream", "destination_ip_prohibited");
    ask(&proxy, "any").assert_refused(403, "upstream", "destination_ip_prohibited");
    assert_eq!(endpoint.connections(), 0);
    assert_eq!((ask(&proxy, "here").status(), ask(&proxy, "named").status()), (200, 200), "loopback stays allowed");

    let path = folder.path().join("services.toml");
    let denying = format!(
        "{}[registry.file]\npath = {path:?}\ndeny_networks = [\"127.0.0.0/8\", \"::1\"]\n",
        one_listener("protocol = \"auto\"")
    );
    proxy.reload(&denying).expect("a reload");
    wait_until("the other rules hold for kept connections, too", || {
        ["here", "named"].iter().all(|host| ask(&proxy, host).status() == 403)
    });
}
