//! Connections of clients and to endpoints: kept, put away, given up, counted, timed out, and ended at a stop.

#![allow(clippy::disallowed_methods, reason = "a test may block its own thread")]
#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::net::Shutdown;
use std::sync::{Mutex, mpsc};
use std::thread;

use heddle::app::{App, StartError};
use http::{DEADLINE, Endpoint, OK, Proxy, SECOND_HAND, Wire, bytes, one_listener, users, wait_until};

#[test]
fn connections_are_kept_on_both_sides() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    let (mut one, mut other) = (proxy.client(), proxy.client());
    for _ in 0..10 {
        assert_eq!(one.get("/").status(), 200);
        assert_eq!(other.get("/").status(), 200);
    }
    assert_eq!(endpoint.connections(), 1);
    one.send("GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n");
    assert_eq!(one.response().status(), 200);
    one.expect_end();
    assert_eq!((other.get("/").status(), endpoint.connections()), (200, 1));
}

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

#[test]
fn a_pool_keeps_so_many_idle_connections_and_opens_so_many() {
    let (endpoint, open) = gated();
    let proxy = Proxy::with(&[&endpoint], "", "pool = { max_idle = 1, max_connections = 3 }");
    let mut clients = [(); 3].map(|()| proxy.client());
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    }
    wait_until("three requests are under way", || proxy.in_flight() == 3 && endpoint.connections() == 3);
    proxy.client().get("/").assert_refused(503, "upstream", "connection_limit_reached");
    for () in [(); 3] {
        open.send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    wait_until("two of three are closed", || proxy.upstream_connections() == 1);
    open.send(()).unwrap();
    assert_eq!((clients[0].get("/").status(), endpoint.connections()), (200, 3));
}

#[test]
fn idle_connections_to_endpoints_are_closed_in_time() {
    let (told, ended) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        wire.request();
        wire.send(OK);
        wire.expect_end();
        told.send(()).unwrap();
    });
    let proxy = Proxy::with(&[&endpoint], "", "pool = { idle_timeout = \"100ms\" }");
    assert_eq!(proxy.client().get("/").status(), 200);
    ended.recv_timeout(DEADLINE).expect("the endpoint sees the end");
    wait_until("none is counted", || proxy.upstream_connections() == 0);
}

/// What becomes of a request on a pooled connection that the endpoint ends.
fn on_a_dying_connection(request: &str, on_request: bool) -> (http::Message, usize) {
    let (told, ended) = mpsc::channel();
    let endpoint = Endpoint::start(move |number, mut wire| {
        wire.request();
        wire.send(OK);
        if number == 0 {
            if on_request {
                wire.head();
            }
            drop(wire);
            told.send(()).unwrap();
            return;
        }
        while wire.request().is_some() {
            wire.send(OK);
        }
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 200);
    if !on_request {
        ended.recv_timeout(DEADLINE).expect("the end of the first connection");
    }
    client.send(request);
    (client.response(), endpoint.connections())
}

const POST: &str = "POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 2\r\n\r\nhi";
const PUT: &str = "PUT / HTTP/1.1\r\nHost: users\r\nContent-Length: 0\r\n\r\n";
const PUT_BODY: &str = "PUT / HTTP/1.1\r\nHost: users\r\nContent-Length: 2\r\n\r\nhi";
const GET: &str = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";

#[test]
fn a_dead_pooled_connection_costs_nothing_where_the_request_can_be_sent_again() {
    for request in [GET, POST, PUT] {
        let (response, connections) = on_a_dying_connection(request, false);
        assert_eq!((response.status(), connections), (200, 2), "closed before {request}");
    }
    for request in [GET, PUT] {
        let (response, connections) = on_a_dying_connection(request, true);
        assert_eq!((response.status(), connections), (200, 2), "closed upon {request}");
    }
    // What may have been done is not done twice, and a body that was sent is not there to be sent again.
    for request in [POST, PUT_BODY] {
        let (response, connections) = on_a_dying_connection(request, true);
        response.assert_refused(502, "upstream", "connection_terminated");
        assert_eq!(connections, 1, "closed upon {request}");
    }
}

#[test]
fn a_new_connection_that_dies_is_not_tried_again() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
    });
    let proxy = Proxy::to(&endpoint);
    proxy.client().get("/").assert_refused(502, "upstream", "connection_terminated");
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn a_client_that_goes_away_cancels_its_request() {
    let (told, ended) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        let request = wire.head().expect("a head");
        if request.start.contains("/body") {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome");
        }
        wire.expect_end();
        told.send(()).unwrap();
    });
    let proxy = Proxy::with(&[&endpoint], SECOND_HAND, "");
    for target in ["/nothing", "/body"] {
        let mut client = proxy.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: users\r\n\r\n"));
        wait_until("the request is under way", || proxy.in_flight() == 1);
        if target == "/body" {
            assert_eq!(client.head().expect("a head").status(), 200);
        }
        drop(client);
        ended.recv_timeout(DEADLINE).expect("the endpoint sees the end");
        wait_until("nothing is under way", || proxy.in_flight() == 0 && proxy.upstream_connections() == 0);
    }
}

#[test]
fn a_body_that_stands_still_is_given_up() {
    let (told, ended) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        let request = wire.head().expect("a head");
        if request.start.starts_with("GET") {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome");
        }
        told.send(wire.exactly(100)).unwrap();
    });
    let proxy = Proxy::with(&[&endpoint], "", "stream_idle_timeout = \"200ms\"\nrequest_timeout = \"10s\"");
    let mut client = proxy.client();
    client.send(GET);
    assert!(client.try_response().is_err());
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 100\r\n\r\nsome");
    assert_eq!(client.response().status(), 408);
    for _ in 0..2 {
        assert!(ended.recv_timeout(DEADLINE).expect("the endpoint sees the end").is_err());
    }
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn slow_heads_and_idle_connections_are_ended() {
    let endpoint = Endpoint::saying(OK);
    let config = format!(
        "{}{}{}",
        one_listener("header_timeout = \"200ms\""),
        one_listener("idle_timeout = \"400ms\""),
        users(&[&endpoint], "")
    );
    let proxy = Proxy::start(&config);
    // Who might be about to speak HTTP/2 could not read an answer of HTTP/1.
    let mut client = proxy.client();
    client.send("PRI");
    client.expect_end();
    for (begins, start) in [(true, "G"), (true, "GET / HTTP/1.1\r\nHost: us"), (false, "GET / HTTP/1.1\r\nHost: us")] {
        let mut client = proxy.client();
        if !begins {
            assert_eq!(client.get("/").status(), 200);
        }
        client.send(start);
        client.response().assert_refused(408, "router", "http_request_error");
        client.expect_end();
    }
    let mut client = proxy.client_of(1);
    client.expect_end();
    let mut client = proxy.client_of(1);
    assert_eq!(client.get("/").status(), 200);
    client.expect_end();
}

/// The time of a head begins with its first byte, not with the last of the body before it.
#[test]
fn a_connection_is_idle_after_a_request_with_a_body() {
    let endpoint = Endpoint::saying(OK);
    let config = format!("{}{}{SECOND_HAND}", one_listener("header_timeout = \"100ms\""), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config);
    for end in ["", "0\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n"] {
        let framing = if end.is_empty() { "Content-Length: 5" } else { "Transfer-Encoding: chunked" };
        let body = if end.is_empty() { "hello" } else { "5\r\nhello\r\n" };
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: users\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"));
        assert_eq!(client.head().expect("an interim response").status(), 100);
        client.send(format!("{body}{end}"));
        assert_eq!(client.response().status(), 200);
        proxy.until_parked();
        assert_eq!(client.get("/").status(), 200, "after {framing} {end:?}");
    }
}

#[test]
fn a_connection_that_was_put_away_goes_on_where_it_was() {
    let endpoint = Endpoint::answering(|request| OK.replace("ok", request.start.get(5..7).unwrap_or("??")));
    let proxy = Proxy::start(&format!("{}{}{SECOND_HAND}", one_listener(""), users(&[&endpoint], "")));
    let mut client = proxy.client();
    let check = |client: &mut Wire, sent: &str, expected: &[&str]| {
        client.send(sent);
        for text in expected {
            assert_eq!(client.response().text(), *text, "after {sent:?}");
        }
        assert!(client.is_silent());
    };
    check(&mut client, "GET /a1 HTTP/1.1\r\nHost: users\r\n\r\n", &["a1"]);
    proxy.until_parked();
    check(&mut client, "GET /a2 HTTP/1.1\r\nHost: users\r\n\r\n", &["a2"]);
    proxy.until_parked();
    // Pipelined, the last one in part.
    let two = "GET /a3 HTTP/1.1\r\nHost: users\r\n\r\nGET /a4 HTTP/1.1\r\nHost: users\r\n\r\n";
    check(&mut client, &format!("{two}GET /a5 HT"), &["a3", "a4"]);
    proxy.until_parked();
    check(&mut client, "TP/1.1\r\nHos", &[]);
    proxy.until_parked();
    check(&mut client, "t: users\r\n\r\n", &["a5"]);
    proxy.until_parked();
    check(&mut client, "GET /a6 HTTP/1.1\r\nHost: users\r\n\r\nG", &["a6"]);
    check(&mut client, "ET /a7 HTTP/1.1\r\nHost: users\r\n\r\n", &["a7"]);
    proxy.until_parked();
    // A head alone, its body later.
    check(&mut client, "PUT /b1 HTTP/1.1\r\nHost: users\r\nContent-Length: 33\r\n\r\n", &[]);
    proxy.until_parked();
    check(&mut client, "GET /no HTTP/1.1\r\nHost: users\r\n", &[]);
    proxy.until_parked();
    check(&mut client, "\r\nGET ", &["b1"]);
    proxy.until_parked();
    check(&mut client, "/b2 HTTP/1.1\r\nHost: users\r\n\r\n", &["b2"]);
    assert_eq!(endpoint.requests().iter().filter(|request| !request.body.is_empty()).count(), 1);
    proxy.until_parked();
    client.stream.shutdown(Shutdown::Write).expect("shut down");
    client.expect_end();
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn a_slow_reader_gets_all_of_a_large_response_and_is_then_put_away() {
    let body = bytes(16 << 20);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = [head.into_bytes(), body.clone()].concat();
    let endpoint =
        Endpoint::answering(move |request| if request.start.contains("/big") { answer.clone() } else { OK.into() });
    let proxy = Proxy::start(&format!("{}{}{SECOND_HAND}", one_listener(""), users(&[&endpoint], "")));
    let mut client = proxy.client();
    client.send("GET /big HTTP/1.1\r\nHost: users\r\n\r\n");
    proxy.until_parked();
    let mut got = client.head().expect("a head");
    // Not one byte for longer than an idle connection would be kept as it is.
    got.body = client.exactly(8 << 20).expect("the first half");
    proxy.until_parked();
    got.body.extend(client.exactly(8 << 20).expect("the second half"));
    assert!(got.body == body);
    proxy.until_parked();
    assert_eq!(client.get("/").text(), "ok");
}

#[test]
fn a_body_that_was_not_read_is_not_taken_for_requests() {
    // Each answers before the body has come, and leaves the rest of it unread.
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
        wire.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
        while wire.exactly(1).is_ok() {}
    });
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: users\r\n\r\n";
    let config = format!("{}{}[service.empty]\n{SECOND_HAND}", one_listener(""), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config);
    for host in ["users", "empty", "unknown"] {
        for framing in ["Content-Length: 41", "Transfer-Encoding: chunked"] {
            for expects in ["", "Expect: 100-continue\r\n"] {
                let mut client = proxy.client();
                // Without a byte of the body, or the word that it waits for, the request would not reach the endpoint.
                let begun = match (host, expects, framing) {
                    ("users", "", "Content-Length: 41") => "x",
                    ("users", "", _) => "1\r\nx\r\n",
                    _ => "",
                };
                client.send(format!("PUT / HTTP/1.1\r\nHost: {host}\r\n{expects}{framing}\r\n\r\n{begun}"));
                let mut response = client.response();
                if response.status() == 100 {
                    response = client.response();
                }
                assert!(response.status() >= 400, "{response:?}");
                // Whatever comes now is the body, even after the connection could have been put away.
                let _ = client.try_send(smuggled);
                proxy.until_parked();
                let _ = client.try_send(smuggled);
                client.expect_end();
            }
        }
    }
    assert_eq!(endpoint.connections(), 4, "one for each PUT");
}

#[test]
fn request_heads_have_limits() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    let ask = |headers: usize, length: usize| {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: users\r\n");
        client.send(format!("x: {}\r\n", "y".repeat(length)).repeat(headers));
        client.send("\r\n");
        client.response()
    };
    assert_eq!(ask(99, 1).status(), 200);
    assert_eq!(ask(1, 60_000).status(), 200);
    assert_eq!(ask(100, 1).status(), 431);
    // Some more may have been read with the last bytes of what is allowed.
    assert_eq!(ask(3, 50_000).status(), 431);
    assert_eq!(endpoint.requests().len(), 2);
}

/// Also those refusals that are made before there is a request.
#[test]
fn every_error_says_what_refused_and_why() {
    let proxy = Proxy::start(&one_listener(""));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost : users\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03 a TLS hello".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: users\r\n{}\r\n", "x: y\r\n".repeat(101)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: users\r\n\r\n", "y".repeat(65_600)), 414),
    ] {
        let mut client = proxy.client();
        client.send(request);
        client.response().assert_refused(status, "router", "http_request_error");
        client.expect_end();
    }
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let endpoint = Endpoint::saying(OK);
    for workers in [1, 2] {
        let config = format!("workers = {workers}\n{}{}", one_listener("max_connections = 1"), users(&[&endpoint], ""));
        let proxy = Proxy::start(&config);
        let mut first = proxy.client();
        assert_eq!(first.get("/").status(), 200);
        let mut waiting = [(); 4].map(|()| proxy.client());
        for client in &mut waiting {
            client.send(GET);
        }
        assert_eq!(first.get("/").status(), 200);
        assert!(waiting.iter_mut().all(Wire::is_silent));
        drop(first);
        // In any order: each worker has a queue of its own.
        thread::scope(|scope| {
            for mut client in waiting {
                scope.spawn(move || assert_eq!(client.response().status(), 200));
            }
        });
    }
}

#[test]
fn accepted_connections_go_to_the_worker_with_fewer() {
    let endpoint = Endpoint::saying(OK);
    let config = format!("workers = 2\n{}{}", one_listener(""), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config);
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = proxy.client();
        assert_eq!(client.get("/").status(), 200);
        clients.push(client);
    }
    let loads = || -> Vec<usize> {
        let connections = &proxy.app().state.workers.connections;
        connections.iter().map(|count| count.load(std::sync::atomic::Ordering::SeqCst)).collect()
    };
    assert_eq!(loads().iter().sum::<usize>(), 40);
    assert!(loads().iter().all(|load| (19..=21).contains(load)), "{:?}", loads());
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    clients.clear();
    wait_until("all are gone", || loads() == [0, 0]);
}

#[test]
fn an_address_in_use_ends_the_start_also_for_a_second_heddle() {
    let proxy = Proxy::start(&format!("workers = 2\n{}", one_listener("")));
    let text = format!("admin = false\n[[listener]]\naddress = \"{}\"\n", proxy.addresses[0]);
    let config = heddle::config::parse(&text, std::path::Path::new("test"), &[]).expect("a configuration").config;
    match App::start(config) {
        Err(StartError::Bind(error)) => assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two proxies share an address"),
    }
    // Another Heddle that went its own way about it, as an older version might.
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    other.set_reuse_address(true).expect("an option");
    assert!(other.bind(&proxy.addresses[0].into()).is_err());
}

#[test]
fn a_stop_finishes_what_is_under_way_and_ends_the_rest() {
    let (endpoint, open) = gated();
    let proxy = Proxy::start(&format!("drain = \"20s\"\n{}{}", one_listener(""), users(&[&endpoint], "")));
    let (mut idle, mut parked, mut slow, mut silent) = (proxy.client(), proxy.client(), proxy.client(), proxy.client());
    for client in [&mut idle, &mut parked] {
        open.send(()).unwrap();
        assert_eq!(client.get("/").status(), 200);
    }
    slow.send(GET);
    wait_until("the request is under way", || proxy.in_flight() == 1);
    let address = proxy.addresses[0];
    let stopping = thread::spawn(move || proxy.stop());
    for client in [&mut idle, &mut parked, &mut silent] {
        client.expect_end();
    }
    wait_until("nobody listens any more", || std::net::TcpStream::connect(address).is_err());
    assert!(slow.is_silent());
    open.send(()).unwrap();
    assert_eq!(slow.response().text(), "ok");
    slow.expect_end();
    assert!(stopping.join().expect("stopped"), "nothing was cut off");
}

/// It was accepted before the stop, and what it waits for may last for as long as the stop.
#[test]
fn a_stop_serves_who_waits_for_a_place() {
    let (endpoint, open) = gated();
    let config = format!("drain = \"20s\"\n{}{}", one_listener("max_connections = 1"), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config);
    let (mut slow, mut waiting) = (proxy.client(), proxy.client());
    slow.send(GET);
    wait_until("the request is under way", || proxy.in_flight() == 1);
    waiting.send(GET);
    let service = proxy.app().state.directory.get("users").expect("a service");
    let stopping = thread::spawn(move || proxy.stop());
    wait_until("both are under way", || service.snapshot().in_flight().iter().sum::<u32>() == 2);
    for _ in 0..2 {
        open.send(()).unwrap();
    }
    for client in [&mut slow, &mut waiting] {
        assert_eq!(client.response().status(), 200);
    }
    assert!(stopping.join().expect("stopped"), "nothing was cut off");
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let (endpoint, _open) = gated();
    let proxy = Proxy::to(&endpoint);
    let mut slow = proxy.client();
    slow.send(GET);
    wait_until("the request is under way", || proxy.in_flight() == 1);
    assert!(!proxy.stop(), "it was cut off");
    slow.expect_end();
}
