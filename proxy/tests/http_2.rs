//! HTTP/2 from clients and to endpoints.

#![cfg(test)]

#[path = "support/frames.rs"]
mod frames;
#[path = "support/http.rs"]
mod http1;
#[path = "support/http2.rs"]
mod http2;

use std::thread;

use frames::{CONTINUATION, END_HEADERS, END_STREAM, Frames, HEADERS, STATUS_200, literal};
use http::Request;
use http1::{Endpoint, OK, Proxy, bytes, one_listener, wait_until};
use http2::{Body, Http2Client, Http2Endpoint, Manners, body};

fn to(endpoint: &Http2Endpoint, listener: &str, service: &str) -> Proxy {
    Proxy::start(&format!(
        "{}[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n{service}\n",
        one_listener(listener),
        endpoint.address
    ))
}

fn get(target: &str) -> Request<Body> {
    Request::get(target).body(body(&[], &[])).expect("a request")
}

#[test]
fn clients_may_speak_http_2() {
    let endpoint = Endpoint::saying(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive, x-own\r\nx-own: 1\r\n\
         trailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let proxy = Proxy::to(&endpoint);
    let client = Http2Client::connect(proxy.addresses[0]);
    let request = Request::post("http://users.mesh/a?b")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(body(&[b"hello ", b"world"], &[("x-sum", "11")]))
        .expect("a request");
    let response = client.send(request);
    assert_eq!((response.head.status.as_u16(), &response.body[..]), (200, &b"ok"[..]));
    assert_eq!(response.trailers.expect("trailers")["x-sum"], "7");
    assert!(response.head.headers.get("x-own").is_none() && response.head.headers.get("connection").is_none());
    let seen = endpoint.last();
    assert_eq!((seen.start.as_str(), seen.text().as_str()), ("POST /a?b HTTP/1.1", "hello world"));
    assert_eq!(seen.header("host").as_deref(), Some("users.mesh"));
    assert_eq!(seen.trailers, [("x-sum".to_owned(), "11".to_owned())]);
    assert_eq!(seen.headers.iter().filter(|(name, _)| name == "cookie").count(), 1);
    assert_eq!(seen.header("cookie").as_deref(), Some("a=1; b=2"));
    assert!(seen.header("via").is_some_and(|via| via.starts_with("2 ")));
    assert_eq!(seen.header("te"), None);

    // HTTP/2 asks for no proxy: an unknown host is unknown.
    let refusal = client.send(get(&format!("http://{}/", endpoint.address)));
    assert_eq!(refusal.head.status, 404);
    assert!(refusal.head.headers["proxy-status"].to_str().expect("text").contains("destination_not_found"));
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn endpoints_may_speak_http_2() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let proxy = to(&endpoint, "", "");
    let mut client = proxy.client();
    for number in 1..4 {
        client.send(
            "POST /a?b HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-end\r\n\
             Connection: x-own\r\nX-Own: 1\r\nX-Kept: 1\r\n\r\n5\r\nhello\r\n0\r\nX-End: 2\r\n\r\n",
        );
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (200, "hello"));
        let seen = endpoint.requests().pop().expect("a request");
        assert_eq!(seen.head.uri, "http://users/a?b");
        assert_eq!(seen.head.headers["te"], "trailers");
        assert_eq!(seen.head.headers["x-kept"], "1");
        for gone in ["x-own", "connection", "host", "transfer-encoding"] {
            assert!(!seen.head.headers.contains_key(gone), "{gone}");
        }
        assert_eq!(seen.trailers.expect("trailers")["x-end"], "2");
        assert_eq!((endpoint.requests().len(), endpoint.connections()), (number, 1));
    }
    client.send("HEAD / HTTP/1.1\r\nHost: users\r\n\r\n");
    assert_eq!(client.head().expect("a head").status(), 200);
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(endpoint.requests().pop().expect("a request").head.headers.get("te"), None, "nobody asked for trailers");
    wait_until("nothing is under way", || proxy.in_flight() == 0);

    // HTTP/2 from end to end, with trailers both ways and more than any window.
    let client = Http2Client::connect(proxy.addresses[0]);
    let large = bytes(8 << 20);
    let pieces: Vec<&[u8]> = large.chunks(100_000).collect();
    let request = Request::put("http://users/").header("te", "trailers").body(body(&pieces, &[("x-end", "2")]));
    let response = client.send(request.expect("a request"));
    assert!(response.body == large);
    assert_eq!(response.trailers.expect("trailers")["x-sum"], "1");
    assert_eq!(endpoint.connections(), 1);
}

/// What is removed from a request's head does not come back after its body, whatever the endpoint speaks.
#[test]
fn trailers_say_nothing_that_is_for_heads() {
    let forged = [
        ("x-forwarded-client-cert", "URI=spiffe://mesh/admin"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("via", "1.1 nobody"),
        ("cookie", "a=1"),
    ];
    let old = Endpoint::saying(OK);
    let new = Http2Endpoint::start(Manners::default());
    let (to_old, to_new) = (Proxy::to(&old), to(&new, "", ""));
    for (kept, expected) in [(&[("x-sum", "11")][..], true), (&[], false)] {
        let trailers = [kept, &forged].concat();
        for proxy in [&to_old, &to_new] {
            let client = Http2Client::connect(proxy.addresses[0]);
            let request = Request::post("http://users/").header("te", "trailers").body(body(&[b"hello"], &trailers));
            assert_eq!(client.send(request.expect("a request")).head.status, 200);
        }
        let seen = old.last();
        assert_eq!((seen.text().as_str(), seen.trailers.len()), ("hello", usize::from(expected)));
        let seen = new.requests().pop().expect("a request");
        let names: Vec<String> = seen.trailers.iter().flat_map(|all| all.keys()).map(ToString::to_string).collect();
        assert_eq!((&seen.body[..], names.len()), (&b"hello"[..], usize::from(expected)));
    }
    // From a client of HTTP/1.1.
    let mut client = to_new.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 11\r\n\
         X-Forwarded-Client-Cert: URI=spiffe://mesh/admin\r\n\r\n",
    );
    assert_eq!(client.response().status(), 200);
    let seen = new.requests().pop().expect("a request").trailers.expect("trailers");
    assert_eq!((seen.len(), &seen["x-sum"]), (1, &::http::HeaderValue::from_static("11")));
}

#[test]
fn a_burst_opens_one_connection_to_an_endpoint() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let proxy = to(&endpoint, "", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    let requests: Vec<_> = (0..30).map(|_| client.start(get("http://users/"))).collect();
    for request in requests {
        assert_eq!(client.wait(request).expect("a response").head.status, 200);
    }
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn streams_beyond_an_endpoints_limit_have_another_connection() {
    let endpoint = Http2Endpoint::start(Manners { streams: Some(2), ..Manners::default() });
    let proxy = to(&endpoint, "", "pool = { idle_timeout = \"1s\" }");
    let client = Http2Client::connect(proxy.addresses[0]);
    // Its limit is known with the first answer.
    assert_eq!(client.send(get("http://users/")).head.status, 200);
    let closed = endpoint.gate.try_acquire_many(1 << 20).expect("the gate was open");
    let requests: Vec<_> = (1..6)
        .map(|number| {
            let request = client.start(get("http://users/"));
            wait_until("the request is under way", || proxy.in_flight() == number);
            wait_until("two share a connection", || endpoint.connections() == number.div_ceil(2) as usize);
            request
        })
        .collect();
    drop(closed);
    for request in requests {
        assert_eq!(client.wait(request).expect("a response").head.status, 200);
    }
    wait_until("idle connections are closed", || proxy.upstream_connections() == 0);
}

/// Those that are one too many are sent again, whatever their method: nothing has been done for them (RFC 9113, 8.7).
#[test]
fn a_burst_at_an_endpoint_that_allows_little_is_served() {
    let endpoint = Http2Endpoint::start(Manners { streams: Some(2), hesitates: true, ..Manners::default() });
    let proxy = to(&endpoint, "", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    let closed = endpoint.gate.try_acquire_many(1 << 20).expect("the gate was open");
    let post = || Request::post("http://users/").body(body(&[], &[])).expect("a request");
    let requests: Vec<_> = (0..5).map(|_| client.start(post())).collect();
    wait_until("two share a connection", || endpoint.connections() == 3);
    drop(closed);
    for request in requests {
        assert_eq!(client.wait(request).expect("a response").head.status, 200);
    }
    assert_eq!((endpoint.connections(), endpoint.requests().len()), (3, 5));
}

/// All share one connection to the endpoint: what nobody reads must not fill it.
#[test]
fn downloads_that_nobody_reads_leave_others_served() {
    let endpoint = Http2Endpoint::start(Manners { download: 4 << 20, ..Manners::default() });
    let proxy = to(&endpoint, "", "");
    let (slow, other) = (Http2Client::connect(proxy.addresses[0]), Http2Client::connect(proxy.addresses[0]));
    let unread: Vec<_> = (0..20).map(|_| slow.head(get("http://users/"))).collect();
    for _ in 0..200 {
        let request = Request::put("http://users/").body(body(&[b"hello"], &[])).expect("a request");
        assert_eq!(other.send(request).body, "hello");
    }
    assert!(unread.iter().all(|response| response.status() == 200));
}

#[test]
fn a_head_that_is_too_large_is_refused_with_the_reason() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "max_header_bytes = 2048", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    // `:method: GET`, `:scheme: http`, `:authority: users` and `:path: /`, and a header `x`, with 32 bytes for each.
    let room = 2048 - (7 + 3) - (7 + 4) - (10 + 5) - (5 + 1) - 1 - 5 * 32;
    let ask = |length: usize, kind: Option<&str>| {
        let mut request = Request::get("http://users/").header("x", "y".repeat(length));
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        client.send(request.body(body(&[], &[])).expect("a request")).head
    };
    assert_eq!(ask(room, None).status, 200);
    for length in [room + 1, 8000] {
        let refused = ask(length, None);
        assert_eq!(refused.status, 431);
        let reason = refused.headers["proxy-status"].to_str().expect("text");
        assert!(reason.contains("error=http_request_error"), "{reason}");
        let refused = ask(length, Some("application/grpc"));
        assert_eq!((refused.status.as_u16(), &refused.headers["grpc-status"]), (200, &"8".parse().unwrap()));
        assert!(refused.headers.contains_key("proxy-status"));
    }
    assert_eq!(endpoint.requests().len(), 1);
    let workers = &proxy.app().state.workers;
    let refused = |class: usize| workers.unrouted.iter().map(|stats| stats.responses[class].get()).sum::<u64>();
    assert_eq!(refused(4), 4, "all are counted");
}

#[test]
fn a_dead_http_2_connection_costs_a_request_nothing_that_can_be_sent_again() {
    for (method, status, connections) in [("GET", 200, 2), ("PUT", 502, 1)] {
        let endpoint = Http2Endpoint::start(Manners { leaves: true, ..Manners::default() });
        let proxy = to(&endpoint, "", "");
        let mut client = proxy.client();
        assert_eq!(client.get("/").status(), 200);
        let body = if method == "PUT" { "hello" } else { "" };
        client.send(format!("{method} / HTTP/1.1\r\nHost: users\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        assert_eq!((client.response().status(), endpoint.connections()), (status, connections), "{method}");
        assert_eq!(client.get("/").status(), 200);
    }
}

/// An endpoint whose connections are served by `serve`, with the number of those before, and a proxy that is impatient.
fn framed(serve: impl Fn(usize, &mut Frames) + Send + Sync + 'static) -> (Endpoint, Proxy) {
    let endpoint = Endpoint::start(move |number, wire| serve(number, &mut Frames::server(wire)));
    let proxy = Proxy::with(&[&endpoint], "", "protocol = \"http2\"\nrequest_timeout = \"1500ms\"");
    (endpoint, proxy)
}

/// As where a firewall forgets a connection that was in use: the endpoint is there, but nothing reaches it.
#[test]
fn a_connection_that_has_gone_silent_fails_one_request_and_not_all() {
    let (endpoint, proxy) = framed(|number, frames| {
        let mut answers = 0;
        while number > 0 || answers < 2 {
            let Some(frame) = frames.next() else { return };
            if frame.kind == HEADERS {
                answers += 1;
                frames.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[STATUS_200]);
            }
        }
        while frames.wire.exactly(1).is_ok() {}
    });
    let mut client = proxy.client();
    assert_eq!((client.get("/").status(), client.get("/").status()), (200, 200));
    client.get("/").assert_refused(504, "upstream", "http_response_timeout");
    assert_eq!(endpoint.connections(), 1);
    assert_eq!((client.get("/").status(), client.get("/").status()), (200, 200));
    assert_eq!(endpoint.connections(), 2);
    wait_until("the silent one is closed", || proxy.upstream_connections() == 1);
}

/// `:method: POST` in HPACK's static table (RFC 7541, A).
const POST: u8 = 0x83;

/// One that is slow with a request, and otherwise there, keeps its connection.
#[test]
fn a_connection_on_which_something_comes_is_kept() {
    let (endpoint, proxy) = framed(|_, frames| {
        while let Some(frame) = frames.next() {
            if frame.kind == HEADERS && frame.payload[0] != POST {
                frames.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[STATUS_200]);
            }
        }
    });
    let mut slow = proxy.client();
    slow.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 0\r\n\r\n");
    let answered = thread::scope(|scope| {
        let slow = scope.spawn(|| slow.response().status());
        let mut client = proxy.client();
        while !slow.is_finished() {
            assert_eq!(client.get("/").status(), 200);
        }
        slow.join().expect("an answer")
    });
    assert_eq!((answered, endpoint.connections()), (504, 1));
}

/// As large as over HTTP/1.
#[test]
fn the_head_of_a_response_may_be_large() {
    let (_endpoint, proxy) = framed(|_, frames| {
        while let Some(frame) = frames.next() {
            if frame.kind == HEADERS {
                let fields = (0..200).map(|number| literal(&format!("x-{number}"), &"y".repeat(100)));
                let block: Vec<u8> = [STATUS_200].into_iter().chain(fields.flatten()).collect();
                let mut parts = block.chunks(16 << 10).peekable();
                let mut kind = HEADERS;
                while let Some(part) = parts.next() {
                    let end = if parts.peek().is_none() { END_HEADERS } else { 0 };
                    let stream_ends = if kind == HEADERS { END_STREAM } else { 0 };
                    frames.send(kind, end | stream_ends, frame.stream, part);
                    kind = CONTINUATION;
                }
            }
        }
    });
    let response = proxy.client().get("/");
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers.iter().filter(|(name, value)| name.starts_with("x-") && value.len() == 100).count(),
        200
    );
}

#[test]
fn an_endpoint_that_does_not_speak_http_2_is_a_bad_gateway() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "", "protocol = \"http2\"");
    proxy.client().get("/").assert_refused(502, "upstream", "http_protocol_error");
    wait_until("nothing is kept", || proxy.in_flight() == 0 && proxy.upstream_connections() == 0);
}

#[test]
fn a_cancelled_stream_cancels_its_request() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
        wire.expect_end();
    });
    let proxy = Proxy::to(&endpoint);
    let client = Http2Client::connect(proxy.addresses[0]);
    let request = client.start(get("http://users/"));
    wait_until("the request is under way", || proxy.in_flight() == 1);
    request.abort();
    wait_until("the endpoint is free", || proxy.in_flight() == 0 && proxy.upstream_connections() == 0);
    assert_eq!(client.send(get("http://nobody/")).head.status, 404, "the connection goes on");
}

#[test]
fn idle_http_2_connections_are_ended() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "idle_timeout = \"200ms\"", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    assert_eq!(client.send(get("http://users/")).head.status, 200);
    client.ended();
}

#[test]
fn a_stop_finishes_the_streams_that_are_under_way() {
    let endpoint = Http2Endpoint::start(Manners::default());
    let config = format!(
        "drain = \"20s\"\n{}[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n",
        one_listener(""),
        endpoint.address
    );
    let proxy = Proxy::start(&config);
    let (busy, idle) = (Http2Client::connect(proxy.addresses[0]), Http2Client::connect(proxy.addresses[0]));
    assert_eq!(idle.send(get("http://users/")).head.status, 200);
    let closed = endpoint.gate.try_acquire_many(1 << 20).expect("the gate was open");
    let request = busy.start(get("http://users/"));
    wait_until("the request is under way", || proxy.in_flight() == 1);
    let stopping = thread::spawn(move || proxy.stop());
    idle.ended();
    drop(closed);
    assert_eq!(busy.wait(request).expect("a response").head.status, 200);
    busy.ended();
    assert!(stopping.join().expect("stopped"), "nothing was cut off");
}
