//! Active health checks: what they ask, of whom, how often, and what comes of it.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/nginx.rs"]
mod nginx;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use heddle::registry::{Change, Registered};
use heddle::service::{Condition, Endpoint as Registration, Service};
use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};
use http2::{Http2Endpoint, Manners};
use nginx::Nginx;
use peer::Peer;
use socket2::{Domain, Socket, Type};
use tls::Authority;

/// Often enough for tests, with a time that a busy machine keeps.
const OFTEN: &str = "interval = \"50ms\", timeout = \"5s\"";

fn service(proxy: &Proxy) -> Arc<Service> {
    proxy.app().state.directory.get("users").expect("a service")
}

fn registration(proxy: &Proxy, address: SocketAddr) -> Arc<Registration> {
    let snapshot = service(proxy).snapshot();
    let mut all = snapshot.endpoints();
    let found = all.find(|endpoint| endpoint.registered.address == address.to_string());
    found.expect("it is registered").clone()
}

fn fails(proxy: &Proxy, address: SocketAddr) -> bool {
    registration(proxy, address).health.check_fails()
}

fn is_eligible(proxy: &Proxy, address: SocketAddr) -> bool {
    let slot = registration(proxy, address).slot;
    service(proxy).snapshot().eligible_endpoint(slot).is_some()
}

/// Checks that have passed and failed so far.
fn counts(proxy: &Proxy) -> (u64, u64) {
    let service = service(proxy);
    let checks = &service.fleet.checks;
    (checks.passed.get(), checks.failed.get())
}

/// Waits for so many more checks of either kind.
#[track_caller]
fn wait_for_checks(proxy: &Proxy, passed: u64, failed: u64) {
    let before = counts(proxy);
    wait_until("checks have passed and failed", || {
        let now = counts(proxy);
        now.0 >= before.0 + passed && now.1 >= before.1 + failed
    });
}

/// A proxy whose service `users` is at these addresses.
fn proxy_to(addresses: &[SocketAddr], check: &str, more: &str) -> Proxy {
    let endpoints: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let check = format!("health_check = {{ {check}, {OFTEN} }}");
    Proxy::start(&format!("{}[service.users]\nendpoints = {endpoints:?}\n{check}\n{more}\n", one_listener("")))
}

/// An address at which connections are refused until somebody listens.
fn reserved() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("a port");
    let address = socket.local_addr().expect("an address").as_socket().expect("IP");
    (socket, address)
}

#[test]
fn an_endpoint_that_takes_no_connections_is_out_until_it_does() {
    let well = Endpoint::saying(OK);
    let (socket, address) = reserved();
    let proxy = proxy_to(&[well.address, address], "type = \"tcp\"", "");
    wait_until("it is out", || !is_eligible(&proxy, address));
    assert!(fails(&proxy, address) && !fails(&proxy, well.address) && is_eligible(&proxy, well.address));
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").status(), 200);
    }
    socket.listen(128).expect("it listens");
    wait_until("it is back", || is_eligible(&proxy, address));
    drop(socket);
    wait_until("it is out again", || !is_eligible(&proxy, address));
}

#[test]
fn the_status_of_an_answer_counts() {
    let status = Arc::new(AtomicU16::new(500));
    let said = status.clone();
    let ill = Endpoint::answering(move |request| match request.start.contains("/health") {
        true => format!("HTTP/1.1 {} Any\r\ncontent-length: 0\r\n\r\n", said.load(Ordering::Relaxed)),
        false => OK.to_owned(),
    });
    let well = Endpoint::saying(OK);
    let check = "type = \"http\", path = \"/health?deep=1\", status = [200, \"300-399\"]";
    let proxy = proxy_to(&[ill.address, well.address], check, "");
    wait_until("it is out", || !is_eligible(&proxy, ill.address));
    let asked = ill.last();
    assert_eq!(asked.start, "GET /health?deep=1 HTTP/1.1");
    assert_eq!(asked.header("host").as_deref(), Some("users"));
    assert_eq!(asked.header("connection").as_deref(), Some("close"));
    assert!(asked.header("user-agent").is_some_and(|name| name.starts_with("heddle-check/")), "{asked:?}");
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(client.get("/request").status(), 200);
    }
    assert!(ill.requests().iter().all(|request| request.start.contains("/health")));
    status.store(302, Ordering::Relaxed);
    wait_until("it is back", || is_eligible(&proxy, ill.address));
    status.store(404, Ordering::Relaxed);
    wait_until("it is out again", || !is_eligible(&proxy, ill.address));
    status.store(200, Ordering::Relaxed);
    wait_until("it is back again", || is_eligible(&proxy, ill.address));
    wait_until("it is used", || {
        client.get("/request");
        ill.requests().iter().any(|request| request.start.contains("/request"))
    });
}

#[test]
fn what_is_asked_can_be_chosen() {
    let endpoint = Endpoint::answering(|_| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    let check = "type = \"http\", method = \"HEAD\", host = \"health.internal:81\"";
    let proxy = proxy_to(&[endpoint.address], check, "");
    wait_for_checks(&proxy, 3, 0);
    let asked = endpoint.last();
    assert_eq!(
        (asked.start.as_str(), asked.header("host").as_deref()),
        ("HEAD / HTTP/1.1", Some("health.internal:81"))
    );
    // Each on a connection of its own.
    assert!(endpoint.connections() >= endpoint.requests().len());
    assert_eq!((counts(&proxy).1, proxy.upstream_connections()), (0, 0));
}

#[test]
fn where_http_2_is_spoken_it_is_asked_over_http_2() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let check = "type = \"http\", path = \"/health\"";
    let proxy = proxy_to(&[endpoint.address], check, "protocol = \"http2\"");
    wait_for_checks(&proxy, 3, 0);
    let asked = endpoint.requests().pop().expect("a request").head;
    assert_eq!((asked.version, asked.uri.to_string().as_str()), (::http::Version::HTTP_2, "http://users/health"));
    assert_eq!(counts(&proxy).1, 0);
}

/// A service whose endpoints all fail is better served by them than not at all.
#[test]
fn a_service_that_fails_as_a_whole_is_served() {
    let endpoint =
        Endpoint::answering(|request| if request.start.contains("/health") { "HTTP/1.1 500 No\r\n\r\n" } else { OK });
    let proxy = proxy_to(&[endpoint.address], "type = \"http\", path = \"/health\"", "");
    wait_until("it fails", || fails(&proxy, endpoint.address));
    assert_eq!(proxy.client().get("/").status(), 200);
}

#[test]
fn a_grpc_server_says_how_it_is() {
    let mut server = Peer::start("grpc_checked", "grpc", &[]);
    let address: SocketAddr = format!("127.0.0.1:{}", server.wait_for("port ")).parse().expect("an address");
    let well = Peer::start("grpc_checked", "grpc", &[]);
    let other: SocketAddr = format!("127.0.0.1:{}", well.wait_for("port ")).parse().expect("an address");
    let whole = proxy_to(&[address, other], "type = \"grpc\"", "protocol = \"http2\"");
    // Also where the protocol is not stated: gRPC is HTTP/2.
    let one = proxy_to(&[address, other], "type = \"grpc\", service = \"users.v1.Users\"", "");
    wait_until("it does not know the service", || fails(&one, address));
    wait_for_checks(&whole, 6, 0);
    assert!(is_eligible(&whole, address) && !fails(&whole, address));
    assert!(server.wait_for("asked users.v1.Users ").starts_with("heddle-check/"));

    server.tell("users.v1.Users 1");
    wait_until("the service serves", || !fails(&one, address));
    // NOT_SERVING.
    server.tell("- 2");
    wait_until("the server does not", || !is_eligible(&whole, address));
    wait_for_checks(&one, 4, 0);
    assert!(!fails(&one, address));
    server.tell("- 1");
    wait_until("the server does again", || is_eligible(&whole, address));
    server.kill();
    wait_until("it is gone", || !is_eligible(&whole, address));
    assert!(!fails(&whole, other));
}

#[test]
fn checks_are_made_inside_tls() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    let pair = authority.issue("server", &["127.0.0.1"]);
    let folder = authority.folder.path();
    let http1 = Nginx::start(folder, &pair, "", "");
    let http2 = Nginx::start(folder, &pair, "http2", "");
    for check in ["type = \"tcp\"", "type = \"http\""] {
        let both = [http1.address, http2.address];
        let trusting = proxy_to(&both, check, &format!("tls = {{ ca = {:?} }}", authority.file()));
        wait_until("nginx has started", || !both.iter().any(|of| fails(&trusting, *of)));
        let (_, failed) = counts(&trusting);
        wait_for_checks(&trusting, 6, 0);
        assert_eq!(counts(&trusting).1, failed, "{check}");
        let other = proxy_to(&both, check, &format!("tls = {{ ca = {:?} }}", stranger.file()));
        wait_until("it is a stranger", || both.iter().all(|of| fails(&other, *of)));
        assert_eq!(counts(&other).0, 0, "{check}");
    }
}

#[test]
fn a_check_says_that_the_proxy_speaks_for_itself() {
    for (version, header) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")] {
        let (told, heard) = std::sync::mpsc::channel();
        let endpoint = Endpoint::start(move |_, mut wire| {
            let said = wire.exactly(header.len());
            wire.expect_end();
            let _the_test_may_be_over = told.send(said);
        });
        let _proxy = proxy_to(&[endpoint.address], "type = \"tcp\"", &format!("proxy_protocol = \"{version}\""));
        assert_eq!(heard.recv_timeout(http::DEADLINE).expect("a check"), Ok(header.to_vec()));
    }
}

/// Nothing that an endpoint does holds a check up, or lets it take more than a bounded part of an answer.
#[test]
fn whatever_answers_is_bounded() {
    let endless = |start: &'static str, more: &'static str| {
        Endpoint::start(move |_, mut wire| {
            if wire.head().is_some() && wire.try_send(start).is_ok() {
                while wire.try_send(more).is_ok() {}
            }
        })
    };
    let silent = Endpoint::start(|_, mut wire| while wire.head().is_some() {});
    let head = endless("HTTP/1.1 200 OK\r\n", "x-more: and more\r\n");
    let body = endless("HTTP/1.1 200 OK\r\n\r\n", "and more\n");
    let nonsense = Endpoint::saying("SSH-2.0-OpenSSH\r\n");
    let closing = Endpoint::start(|_, mut wire| drop(wire.head()));
    let all = [&silent, &head, &body, &nonsense, &closing];
    let endpoints = users(&all, "health_check = { type = \"http\", interval = \"50ms\", timeout = \"300ms\" }");
    let proxy = Proxy::start(&format!("{}{endpoints}", one_listener("")));
    for ill in [&silent, &head, &nonsense, &closing] {
        wait_until("it is found out", || fails(&proxy, ill.address));
    }
    let before = body.connections();
    wait_until("its beginning is enough", || body.connections() > before + 5 && !fails(&proxy, body.address));
}

/// However many workers there are. A second checker would make twice as many.
#[test]
fn checks_are_made_once_a_proxy() {
    let endpoint = Endpoint::saying(OK);
    let started = Instant::now();
    let service = users(&[&endpoint], "health_check = { type = \"http\", interval = \"20ms\", timeout = \"5s\" }");
    let proxy = Proxy::start(&format!("workers = 2\n{}{service}", one_listener("")));
    for _ in 0..4 {
        assert_eq!(proxy.client().get("/").status(), 200);
    }
    wait_until("some checks", || endpoint.connections() >= 50);
    let asked = endpoint.requests().iter().filter(|request| request.header("connection").is_some()).count();
    // An interval is shortened by a tenth at most.
    let most = started.elapsed().as_micros() / Duration::from_millis(18).as_micros() + 1;
    assert!(asked as u128 <= most, "{asked} checks, {most} at most");
}

#[test]
fn endpoints_are_followed() {
    let (one, two) = (Endpoint::saying(OK), Endpoint::saying(OK));
    let (_socket, refusing) = reserved();
    let proxy = proxy_to(&[one.address], "type = \"tcp\"", "");
    let registered = |address: SocketAddr, weight| Registered {
        id: format!("test#{address}"),
        address: address.to_string(),
        weight,
        order: 0,
        metadata: Vec::new(),
        egress: Arc::default(),
    };
    let change = |removed: &[SocketAddr], added: Vec<Registered>| {
        let removed = removed.iter().map(|address| format!("test#{address}")).collect();
        proxy.app().state.directory.apply(vec![Change {
            service: "users".to_owned(),
            removed,
            added,
            paused: None,
            proxied: None,
        }]);
    };
    change(&[], vec![registered(two.address, 1), registered(refusing, 1)]);
    wait_until("the new one is checked", || two.connections() > 0);
    wait_until("one is out", || fails(&proxy, refusing));

    // Its registration changes, and what is known of it stays.
    change(&[refusing], vec![registered(refusing, 5)]);
    assert!(fails(&proxy, refusing) && !is_eligible(&proxy, refusing));
    wait_for_checks(&proxy, 6, 6);
    assert!(fails(&proxy, refusing));

    // It leaves, and comes back as a new one, which is in use until its first check has failed.
    change(&[refusing], vec![]);
    change(&[], vec![registered(refusing, 1)]);
    wait_until("it is out again", || fails(&proxy, refusing));

    change(&[two.address, refusing], vec![]);
    let more_of_the_other = || {
        let before = one.connections();
        wait_until("the other is checked on", || one.connections() >= before + 20);
    };
    more_of_the_other();
    let (two_so_far, (_, failed)) = (two.connections(), counts(&proxy));
    more_of_the_other();
    assert_eq!((two.connections(), counts(&proxy).1), (two_so_far, failed));
}

#[test]
fn what_is_known_survives_a_reload_unless_checks_are_switched_off() {
    let well = Endpoint::saying(OK);
    let ill = Endpoint::answering(|request| match request.start.contains("/ill") {
        true => "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
        false => OK,
    });
    let config = |check: &str| format!("{}{}", one_listener(""), users(&[&well, &ill], check));
    let on = |path: &str| config(&format!("health_check = {{ type = 'http', path = '{path}', {OFTEN} }}"));
    let proxy = Proxy::start(&on("/ill"));
    wait_until("it is out", || !is_eligible(&proxy, ill.address));

    proxy.reload(&format!("{}request_timeout = '14s'\n", on("/ill"))).expect("in force");
    wait_for_checks(&proxy, 4, 4);
    assert!(!is_eligible(&proxy, ill.address) && is_eligible(&proxy, well.address));
    proxy.reload(&config("")).expect("in force");
    wait_until("nothing of it holds", || is_eligible(&proxy, ill.address));
    let so_far = counts(&proxy);
    proxy.reload(&on("/ill")).expect("in force");
    wait_until("it is out again", || !is_eligible(&proxy, ill.address));
    assert!(counts(&proxy).1 > so_far.1);
    proxy.reload(&on("/well")).expect("in force");
    wait_until("what is asked has changed", || is_eligible(&proxy, ill.address));

    // TLS that was not there before.
    let authority = Authority::new();
    let tls = format!("tls = {{ ca = {:?} }}\n", authority.file());
    proxy.reload(&format!("{}{tls}", on("/well"))).expect("in force");
    wait_until("neither speaks TLS", || fails(&proxy, ill.address) && fails(&proxy, well.address));
}

#[test]
fn a_passing_check_ends_an_ejection_early() {
    let status = Arc::new(AtomicU16::new(200));
    let said = status.clone();
    let ejected = Endpoint::answering(move |_| {
        format!("HTTP/1.1 {} Any\r\ncontent-length: 0\r\n\r\n", said.load(Ordering::Relaxed))
    });
    let well = Endpoint::saying(OK);
    // Out because of its traffic only: no number of failed checks takes it out.
    let check = "type = \"http\", fall = 100";
    let proxy = proxy_to(&[ejected.address, well.address], check, "breaker = \"circuit-breaker\"");
    wait_for_checks(&proxy, 6, 0);
    status.store(500, Ordering::Relaxed);
    wait_for_checks(&proxy, 0, 2);

    let endpoint = registration(&proxy, ejected.address);
    let fleet = &service(&proxy).fleet;
    assert!(fleet.eject(endpoint.slot, endpoint.health.seen(), Duration::from_secs(3600)));
    assert!(!is_eligible(&proxy, ejected.address));
    wait_for_checks(&proxy, 0, 5);
    assert_eq!(endpoint.health.condition(), Condition::Out);

    status.store(200, Ordering::Relaxed);
    wait_until("it is half-open", || endpoint.health.condition() == Condition::HalfOpen);
    assert!(is_eligible(&proxy, ejected.address));
    // One probe at a time; what comes of it is the breaker's to say.
    let probe = endpoint.health.probe().expect("a probe");
    assert!(endpoint.health.probe().is_none());
    drop(probe);
    assert!(endpoint.health.probe().is_some());
}

#[test]
fn checks_are_counted_and_shown() {
    let endpoint = Endpoint::saying(OK);
    let (_socket, refusing) = reserved();
    let service = format!(
        "[service.users]\nendpoints = [\"{}\", \"{refusing}\"]\nhealth_check = {{ type = \"http\", {OFTEN} }}\n\
         [service.unchecked]\nendpoints = [\"{refusing}\"]\n",
        endpoint.address
    );
    let proxy = Proxy::start(&format!("admin = {{ address = \"127.0.0.1:0\" }}\n{}{service}", one_listener("")));
    wait_until("one is out", || fails(&proxy, refusing));
    wait_for_checks(&proxy, 2, 2);
    let admin = proxy.app().admin.expect("an admin server");
    let get = |path: &str| {
        let mut wire = Wire::connect(admin);
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        wire.response().text()
    };
    let metrics = get("/metrics");
    let value = |series: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("{series} in {metrics}")).trim().parse().expect("a number")
    };
    assert!(value("heddle_health_checks_total{service=\"users\",result=\"passed\"}") >= 2.0);
    assert!(value("heddle_health_checks_total{service=\"users\",result=\"failed\"}") >= 2.0);
    assert!((value("heddle_endpoints_failing_check{service=\"users\"}") - 1.0).abs() < 0.1);
    assert!((value("heddle_endpoints_eligible{service=\"users\"}") - 1.0).abs() < 0.1);
    assert!(!metrics.contains("heddle_endpoints_failing_check{service=\"unchecked\"}"));

    let state: serde_json::Value = serde_json::from_str(&get("/state")).expect("JSON");
    let of = |name: &str| state["services"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap();
    assert!(of("users")["health_checks"]["failed"].as_u64() >= Some(2));
    assert!(of("unchecked")["health_checks"].is_null());
    for shown in of("users")["endpoints"].as_array().unwrap() {
        assert_eq!(shown["check_fails"], shown["address"] == refusing.to_string(), "{shown}");
        assert_ne!(shown["check_fails"], shown["eligible"], "{shown}");
    }
}
