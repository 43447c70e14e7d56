//! Limits on a service and its endpoints, over all workers, and deadlines that travel.

#![cfg(test)]

#[path = "support/http.rs"]
mod http1;
#[path = "support/http2.rs"]
mod http2;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use heddle::service::{Class, Fleet, Limit};
use http::Request;
use http1::{DEADLINE, Endpoint, Message, OK, Proxy, Wire, one_listener, users, wait_until};
use http2::{Http2Client, Http2Endpoint, Manners, body};
use socket2::{Domain, Socket, Type};

/// Answers once told to, so that requests are under way at the same time.
fn gated() -> (Endpoint, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let endpoint = Endpoint::answering(move |_| {
        let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        OK
    });
    (endpoint, open)
}

fn fleet(proxy: &Proxy) -> Arc<Fleet> {
    proxy.app().state.directory.get("users").expect("a service").fleet.clone()
}

/// How many were refused for this limit.
fn limited(proxy: &Proxy, by: Limit) -> u64 {
    proxy.app().state.directory.get("users").expect("a service").stats().limited[by as usize]
}

fn ask(client: &mut Wire, path: &str) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: users\r\n\r\n"));
}

/// Sends a request that is under way at an endpoint afterwards.
fn under_way(proxy: &Proxy, client: &mut Wire, path: &str) {
    let before = proxy.in_flight();
    ask(client, path);
    wait_until("it is under way", || proxy.in_flight() == before + 1);
}

/// Sends a request that waits for its service afterwards.
fn pending(proxy: &Proxy, client: &mut Wire, path: &str) {
    let before = fleet(proxy).requests.pending();
    ask(client, path);
    wait_until("it waits", || fleet(proxy).requests.pending() == before + 1);
}

/// Sends a request that waits for a connection afterwards.
fn awaiting(proxy: &Proxy, client: &mut Wire, path: &str) {
    let before = fleet(proxy).connections.pending();
    ask(client, path);
    wait_until("it waits", || fleet(proxy).connections.pending() == before + 1);
}

#[track_caller]
fn assert_full(refused: &Message) {
    refused.assert_refused(503, "limits", "connection_limit_reached");
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
}

/// Paths in the order in which they reached the endpoint.
fn paths(endpoint: &Endpoint) -> Vec<String> {
    endpoint.requests().iter().map(|request| request.start.split(' ').nth(1).unwrap().to_owned()).collect()
}

/// A connection to each of two workers, with the settings of a proxy that has two.
fn on_both_workers(proxy: &Proxy) -> [Wire; 2] {
    let counts =
        || -> Vec<usize> { proxy.app().state.workers.connections.iter().map(|count| count.load(SeqCst)).collect() };
    let mut found: [Option<Wire>; 2] = [None, None];
    let mut others = Vec::new();
    while found.iter().any(Option::is_none) {
        let before = counts();
        let mut client = proxy.client();
        // Once this is answered the connection is where it stays.
        client.send("GET / HTTP/1.1\r\nHost: nobody\r\n\r\n");
        assert_eq!(client.response().status(), 404);
        let after = counts();
        // Another that has just ended may hide it.
        match (0..2).find(|&worker| after[worker] > before[worker]) {
            Some(worker) => others.extend(found[worker].replace(client)),
            None => others.push(client),
        }
    }
    found.map(|client| client.expect("a connection"))
}

fn two_workers(endpoints: &[&Endpoint], service: &str) -> Proxy {
    Proxy::start(&format!("workers = 2\n{}{}", one_listener("passthrough = false"), users(endpoints, service)))
}

#[test]
fn a_full_service_says_so_at_once_and_has_room_again() {
    let (endpoint, open) = gated();
    let proxy = Proxy::with(&[&endpoint], "", "max_requests = 1\nmax_pending_time = \"1h\"");
    let mut client = proxy.client();
    under_way(&proxy, &mut client, "/");
    assert_full(&proxy.client().get("/"));
    let mut call = proxy.client();
    call.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(call.response().header("grpc-status").as_deref(), Some("14"));
    assert_eq!(limited(&proxy, Limit::Requests), 2);
    for () in [(); 2] {
        open.send(()).unwrap();
    }
    assert_eq!(client.response().status(), 200);
    assert_eq!(proxy.client().get("/").status(), 200);
    // One that is given up makes room too.
    under_way(&proxy, &mut client, "/");
    drop(client);
    wait_until("it has been given up", || fleet(&proxy).requests.under_way() == 0);
}

#[test]
fn who_waits_is_served_in_turn() {
    let (endpoint, open) = gated();
    let service = "max_requests = 1\nmax_pending = 4\nmax_pending_time = \"1h\"";
    let proxy = two_workers(&[&endpoint], service);
    let [mut a, mut b] = on_both_workers(&proxy);
    let [mut c, mut d] = on_both_workers(&proxy);
    let mut gone = proxy.client();
    under_way(&proxy, &mut a, "/a");
    pending(&proxy, &mut b, "/b");
    pending(&proxy, &mut gone, "/gone");
    pending(&proxy, &mut c, "/c");
    pending(&proxy, &mut d, "/d");
    assert_full(&proxy.client().get("/"));
    drop(gone);
    wait_until("it has left", || fleet(&proxy).requests.pending() == 3);
    let mut e = proxy.client();
    pending(&proxy, &mut e, "/e");
    for client in [&mut a, &mut b, &mut c, &mut d, &mut e] {
        open.send(()).unwrap();
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(paths(&endpoint), ["/a", "/b", "/c", "/d", "/e"]);
    wait_until("all have left", || fleet(&proxy).requests.under_way() == 0);
}

#[test]
fn nobody_waits_beyond_the_deadline_or_for_too_long() {
    let (endpoint, open) = gated();
    let listener = "deadline_header = \"x-timeout\"";
    let patient = Proxy::with(&[&endpoint], listener, "max_requests = 1\nmax_pending = 9\nmax_pending_time = \"1h\"");
    let mut client = patient.client();
    under_way(&patient, &mut client, "/");
    let mut late = patient.client();
    late.send("GET / HTTP/1.1\r\nHost: users\r\nX-Timeout: 200\r\n\r\n");
    late.response().assert_refused(504, "deadline", "http_response_timeout");
    assert_eq!(fleet(&patient).requests.pending(), 0);
    open.send(()).unwrap();
    assert_eq!(client.response().status(), 200);

    let service = "max_requests = 1\nmax_pending = 9\nmax_pending_time = \"200ms\"";
    let impatient = Proxy::with(&[&endpoint], "", service);
    let mut client = impatient.client();
    under_way(&impatient, &mut client, "/");
    assert_full(&impatient.client().get("/"));
    assert_eq!((limited(&impatient, Limit::Pending), fleet(&impatient).requests.pending()), (1, 0));
    open.send(()).unwrap();
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_full_endpoint_is_passed_over() {
    let gates = [gated(), gated()];
    let service = "balancer = { plugin = \"url-hash\", by = \"path\" }\npool = { max_requests = 1 }";
    let proxy = Proxy::with(&[&gates[0].0, &gates[1].0], "", service);
    let mut clients = [(); 2].map(|()| proxy.client());
    for client in &mut clients {
        // Both of the same endpoint, were there room.
        under_way(&proxy, client, "/");
    }
    wait_until("each endpoint has one", || gates.iter().all(|(endpoint, _)| endpoint.connections() == 1));
    assert_full(&proxy.client().get("/"));
    assert_eq!(limited(&proxy, Limit::EndpointRequests), 1);
    for (_, open) in &gates {
        open.send(()).unwrap();
        open.send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(proxy.client().get("/").status(), 200);
}

#[test]
fn limits_hold_over_all_workers() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (now.clone(), most.clone());
    let endpoint = Endpoint::answering(move |_| {
        seen.fetch_max(counted.fetch_add(1, SeqCst) + 1, SeqCst);
        thread::yield_now();
        counted.fetch_sub(1, SeqCst);
        OK
    });
    let proxy = two_workers(&[&endpoint], "max_requests = 2\nmax_pending = 99\nmax_pending_time = \"1h\"");
    thread::scope(|scope| {
        for _ in 0..4 {
            for mut client in on_both_workers(&proxy) {
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert_eq!(client.get("/").status(), 200);
                    }
                });
            }
        }
    });
    assert!((1..=2).contains(&most.load(SeqCst)), "{most:?}");
    wait_until("all have left", || fleet(&proxy).requests.under_way() == 0);
    assert_eq!(fleet(&proxy).requests.pending(), 0);
}

/// Not before idle connections were given up: every second request was answered 503.
#[test]
fn one_connection_serves_two_workers_in_turn() {
    let endpoint = Endpoint::saying(OK);
    for limit in ["pool = { max_connections = 1 }", "max_connections = 1"] {
        let proxy = two_workers(&[&endpoint], &format!("connect_timeout = \"1h\"\n{limit}"));
        let mut clients = on_both_workers(&proxy);
        for _ in 0..10 {
            for client in &mut clients {
                assert_eq!(client.get("/").status(), 200);
                assert_eq!(proxy.upstream_connections(), 1);
            }
        }
    }
}

#[test]
fn a_limit_of_the_service_is_shared_by_its_endpoints() {
    let endpoints = [Endpoint::saying(OK), Endpoint::saying(OK)];
    let service = "connect_timeout = \"1h\"\nmax_connections = 1";
    let proxy = two_workers(&[&endpoints[0], &endpoints[1]], service);
    let mut clients = on_both_workers(&proxy);
    for _ in 0..5 {
        for client in &mut clients {
            // In rotation: the worker's own idle connection is to the other endpoint.
            for () in [(); 3] {
                assert_eq!(client.get("/").status(), 200);
                assert_eq!((proxy.upstream_connections(), fleet(&proxy).connections.open()), (1, 1));
            }
        }
    }
    assert!(endpoints.iter().all(|endpoint| endpoint.requests().len() > 10));
}

#[test]
fn idle_connections_of_http2_are_given_up_too() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let service = format!("protocol = \"http2\"\nendpoints = [\"{}\"]\nconnect_timeout = \"1h\"", endpoint.address);
    for limit in ["pool = { max_connections = 1 }", "max_connections = 1"] {
        let listener = one_listener("passthrough = false");
        let proxy = Proxy::start(&format!("workers = 2\n{listener}[service.users]\n{service}\n{limit}\n"));
        let mut clients = on_both_workers(&proxy);
        for _ in 0..10 {
            for client in &mut clients {
                assert_eq!(client.get("/").status(), 200);
                assert!(proxy.upstream_connections() <= 1);
            }
        }
    }
}

#[test]
fn a_connection_that_comes_home_goes_to_who_is_next() {
    let (endpoint, open) = gated();
    let service = "connect_timeout = \"1h\"\npool = { max_connections = 1 }";
    let proxy = two_workers(&[&endpoint], service);
    let [mut a, mut b] = on_both_workers(&proxy);
    let [mut c, mut d] = on_both_workers(&proxy);
    let [mut gone, mut other_gone] = on_both_workers(&proxy);
    under_way(&proxy, &mut a, "/a");
    awaiting(&proxy, &mut gone, "/gone");
    // Of the same worker, to which it is handed.
    awaiting(&proxy, &mut c, "/c");
    // Of the other, for which it is closed.
    awaiting(&proxy, &mut b, "/b");
    awaiting(&proxy, &mut other_gone, "/gone");
    awaiting(&proxy, &mut d, "/d");
    drop((gone, other_gone));
    wait_until("they have left", || fleet(&proxy).connections.pending() == 3);
    for client in [&mut a, &mut c, &mut b, &mut d] {
        open.send(()).unwrap();
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(paths(&endpoint), ["/a", "/c", "/b", "/d"]);
    assert_eq!(endpoint.connections(), 2);
    assert_eq!((proxy.upstream_connections(), fleet(&proxy).connections.pending()), (1, 0));
}

#[test]
fn a_stream_that_ends_goes_to_who_waits() {
    let endpoint = Http2Endpoint::start(Manners { streams: Some(1), ..Manners::default() });
    let service = format!("protocol = \"http2\"\nendpoints = [\"{}\"]", endpoint.address);
    let limits = "connect_timeout = \"1h\"\npool = { max_connections = 1 }";
    let proxy = Proxy::start(&format!("{}[service.users]\n{service}\n{limits}\n", one_listener("")));
    let mut clients = [(); 4].map(|()| proxy.client());
    // Only now it is known how many streams there may be.
    assert_eq!(clients[0].get("/").status(), 200);
    let closed = endpoint.gate.try_acquire_many(1 << 20).expect("nothing is under way");
    under_way(&proxy, &mut clients[0], "/");
    awaiting(&proxy, &mut clients[1], "/");
    for client in &mut clients[2..] {
        under_way(&proxy, client, "/");
    }
    drop(closed);
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!((endpoint.requests().len(), endpoint.connections()), (5, 1));
}

#[test]
fn tunnels_wait_for_connections_and_count_as_requests() {
    let endpoint = Endpoint::saying(OK);
    let listeners = format!("{}{}", one_listener(""), one_listener("protocol = \"tcp\"\nservice = \"users\""));
    let service = users(&[&endpoint], "max_requests = 2\npool = { max_connections = 1 }\nconnect_timeout = \"1s\"");
    let proxy = Proxy::start(&format!("{listeners}{service}"));
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 200);
    // The idle connection is closed for it.
    let mut tunnel = proxy.client_of(1);
    assert_eq!(tunnel.get("/").status(), 200);
    assert_eq!((proxy.upstream_connections(), endpoint.connections()), (1, 2));
    let refused = client.get("/");
    refused.assert_refused(503, "upstream", "connection_limit_reached");
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
    proxy.client_of(1).expect_end();
    assert_eq!(limited(&proxy, Limit::Connections), 2);
    assert_eq!(fleet(&proxy).requests.under_way(), 1);
    drop(tunnel);
    wait_until("it has ended", || fleet(&proxy).requests.under_way() == 0);
    assert_eq!(client.get("/").status(), 200);

    let service = users(&[&endpoint], "max_requests = 1");
    let proxy = Proxy::start(&format!("{listeners}{service}"));
    let mut tunnel = proxy.client_of(1);
    assert_eq!(tunnel.get("/").status(), 200);
    assert_full(&proxy.client().get("/"));
    proxy.client_of(1).expect_end();
}

/// An address that is listened on by nobody who accepts: the queue of one is full, and connecting takes for ever. For as
/// long as what else is returned is held.
fn stuck() -> (SocketAddr, (Socket, Wire)) {
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bound");
    full.listen(0).expect("listening");
    let stuck = full.local_addr().expect("an address").as_socket().expect("of IP");
    (stuck, (full, Wire::connect(stuck)))
}

#[test]
fn an_attempt_that_is_late_says_what_it_waited_for() {
    let endpoint = Endpoint::saying(OK);
    let listeners = format!("{}{}", one_listener(""), one_listener("protocol = \"tcp\"\nservice = \"users\""));
    let late = "connect_timeout = \"1h\"\nbreaker = \"circuit-breaker\"\n\
                retry = { plugin = \"retry\", attempts = 1, per_try_timeout = \"500ms\" }\n";
    let service = users(&[&endpoint], &format!("{late}pool = {{ max_connections = 1 }}"));
    let proxy = Proxy::start(&format!("{listeners}{service}"));
    let mut tunnel = proxy.client_of(1);
    assert_eq!(tunnel.get("/").status(), 200);
    let refused = proxy.client().get("/");
    refused.assert_refused(503, "upstream", "connection_limit_reached");
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
    assert_eq!(fleet(&proxy).health.consecutive(), 0, "no fault of the endpoint");

    let (stuck, _held) = stuck();
    let proxy = Proxy::start(&format!("{}[service.users]\nendpoints = [\"{stuck}\"]\n{late}", one_listener("")));
    proxy.client().get("/").assert_refused(504, "upstream", "connection_timeout");
    let endpoint = fleet(&proxy).snapshot().endpoints().next().expect("an endpoint").clone();
    assert_eq!(endpoint.health.consecutive(Class::Connect), 1);
}

#[test]
fn a_retry_policys_time_is_for_waiting_too() {
    let endpoint = Endpoint::saying(OK);
    let listeners = format!("{}{}", one_listener(""), one_listener("protocol = \"tcp\"\nservice = \"users\""));
    let service = "max_requests = 1\nmax_pending = 9\nmax_pending_time = \"1h\"\n\
                   retry = { plugin = \"retry\", timeout = \"200ms\" }";
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], service)));
    let mut tunnel = proxy.client_of(1);
    assert_eq!(tunnel.get("/").status(), 200);
    proxy.client().get("/").assert_refused(504, "deadline", "http_response_timeout");
    // So it is with tunnels.
    proxy.client_of(1).expect_end();
    assert_eq!(fleet(&proxy).requests.pending(), 0);
}

#[test]
fn a_tunnel_by_socks_is_opened_within_the_deadline() {
    let (stuck, _held) = stuck();
    let proxy = Proxy::start(&one_listener("request_deadline = \"200ms\""));
    let mut client = proxy.client();
    client.send([5, 1, 0]);
    assert_eq!(client.exactly(2).expect("a method"), [5, 0]);
    client.send([&[5, 1, 0, 1, 127, 0, 0, 1][..], &stuck.port().to_be_bytes()].concat());
    assert_eq!(client.exactly(2).expect("a reply"), [5, 6], "timed out");
    let failed = proxy.app().state.workers.passed_through[0].failed_attempts.get();
    assert_eq!(failed, 0, "not by the time for connecting");
}

/// What a gRPC endpoint was told, in microseconds.
fn told(endpoint: &Http2Endpoint) -> Option<u64> {
    let last = endpoint.requests().pop().expect("a request");
    let value = last.head.headers.get("grpc-timeout")?.to_str().expect("text").to_owned();
    let (amount, unit) = value.split_at(value.len() - 1);
    assert!(amount.len() <= 8, "{value}");
    let scale = match unit {
        "u" => 1,
        "m" => 1_000,
        "S" => 1_000_000,
        _ => panic!("{value}"),
    };
    Some(amount.parse::<u64>().expect("a number") * scale)
}

fn call(timeout: &str) -> Request<http2::Body> {
    let call = Request::post("http://users/test.Echo/Unary").header("content-type", "application/grpc");
    let call = if timeout.is_empty() { call } else { call.header("grpc-timeout", timeout) };
    call.body(body(&[], &[])).expect("a request")
}

#[test]
fn a_call_takes_its_deadline_along() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let service = format!("[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n", endpoint.address);
    for (listener, timeout, at_most) in [
        ("", "", None),
        ("", "50S", Some(50_000_000)),
        ("", "2H", Some(7_200_000_000)),
        ("request_deadline = \"40s\"", "50S", Some(40_000_000)),
        ("request_deadline = \"60s\"", "50S", Some(50_000_000)),
        ("request_deadline = \"40s\"", "", Some(40_000_000)),
    ] {
        let proxy = Proxy::start(&format!("{}{service}", one_listener(listener)));
        let response = Http2Client::connect(proxy.addresses[0]).send(call(timeout));
        assert_eq!(response.head.status, 200);
        match (told(&endpoint), at_most) {
            (None, None) => {}
            (Some(told), Some(most)) => assert!(told <= most && told > most - 30_000_000, "{told} of {most}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_spent_waiting_is_taken_off() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let service = "max_requests = 1\nmax_pending = 1\nmax_pending_time = \"1h\"";
    let service = format!("[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n{service}\n", endpoint.address);
    let proxy = Proxy::start(&format!("{}{service}", one_listener("")));
    let client = Http2Client::connect(proxy.addresses[0]);
    let closed = endpoint.gate.try_acquire_many(1 << 20).expect("nothing is under way");
    let first = client.start(call(""));
    wait_until("it is under way", || proxy.in_flight() == 1);
    let second = client.start(call("50S"));
    wait_until("it waits", || fleet(&proxy).requests.pending() == 1);
    let since = Instant::now();
    wait_until("some time has passed", || since.elapsed() > Duration::from_millis(300));
    drop(closed);
    assert_eq!(client.wait(first).expect("a response").head.status, 200);
    assert_eq!(client.wait(second).expect("a response").head.status, 200);
    assert!(told(&endpoint).is_some_and(|told| told < 49_700_000), "{:?}", told(&endpoint));
}

const HEADER: &str = "deadline_header = \"X-Request-Timeout-Ms\"";

fn said(line: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: users\r\n{line}\r\n")
}

#[test]
fn a_header_says_the_deadline_and_shrinks() {
    let endpoint = Endpoint::saying(OK);
    for (deadline, line, at_most) in [
        ("", "", None),
        ("", "X-Request-Timeout-Ms: 50000\r\n", Some(50_000)),
        ("request_deadline = \"40s\"", "x-request-timeout-ms: 50000\r\n", Some(40_000)),
        ("request_deadline = \"40s\"", "", Some(40_000)),
        // What is said to be for this connection only is for the proxy all the same.
        ("", "X-Request-Timeout-Ms: 50000\r\nConnection: x-request-timeout-ms\r\n", Some(50_000)),
    ] {
        let proxy = Proxy::with(&[&endpoint], &format!("{HEADER}\n{deadline}"), "");
        let mut client = proxy.client();
        client.send(said(line));
        assert_eq!(client.response().status(), 200);
        let told = endpoint.last().header("x-request-timeout-ms").map(|told| told.parse::<u64>().expect("one number"));
        match (told, at_most) {
            (None, None) => {}
            (Some(told), Some(most)) => assert!(told <= most && told > most - 30_000, "{told} of {most}"),
            other => panic!("{other:?}"),
        }
    }
    // Only where it is configured.
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send(said("X-Request-Timeout-Ms: never\r\n"));
    assert_eq!(client.response().status(), 200);
    assert_eq!(endpoint.last().header("x-request-timeout-ms").as_deref(), Some("never"));
}

#[test]
fn a_deadline_in_a_header_holds() {
    let (endpoint, open) = gated();
    let proxy = Proxy::with(&[&endpoint], HEADER, "");
    let mut client = proxy.client();
    client.send(said("X-Request-Timeout-Ms: 200\r\n"));
    client.response().assert_refused(504, "deadline", "http_response_timeout");
    wait_until("it is given up", || proxy.in_flight() == 0 && proxy.upstream_connections() == 0);
    open.send(()).unwrap();
    let connections = endpoint.connections();
    client.send(said("X-Request-Timeout-Ms: 0\r\n"));
    client.response().assert_refused(504, "deadline", "http_response_timeout");
    for bad in ["1s", "-1", "1, 2", "18446744073709551616", "1\r\nX-Request-Timeout-Ms: 1"] {
        client.send(said(&format!("X-Request-Timeout-Ms: {bad}\r\n")));
        client.response().assert_refused(400, "router", "http_request_error");
    }
    assert_eq!(endpoint.connections(), connections);
}

#[test]
fn other_hosts_are_told_what_the_client_said() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::start(&one_listener(&format!("{HEADER}\nrequest_deadline = \"40s\"")));
    let mut client = proxy.client();
    for (line, is_told) in [("", false), ("X-Request-Timeout-Ms: 50000\r\n", true)] {
        client.send(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n{line}\r\n", endpoint.address));
        assert_eq!(client.response().status(), 200);
        let told = endpoint.last().header("x-request-timeout-ms").map(|told| told.parse::<u64>().expect("a number"));
        assert_eq!(told.is_some_and(|told| told <= 40_000), is_told, "{told:?}");
    }
}
