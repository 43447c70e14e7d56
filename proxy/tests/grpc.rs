//! gRPC from end to end, with grpcio on both sides, and frame by frame where it hides what happens.

#![cfg(test)]

#[path = "support/frames.rs"]
mod frames;
#[path = "support/http.rs"]
mod http1;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/peer.rs"]
mod peer;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use frames::{DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, STATUS_200, WINDOW_UPDATE};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use http1::{Endpoint, Proxy, Wire, one_listener, wait_until};
use http2::{Body, Http2Client, body};
use hyper::body::Frame;
use peer::Peer;
use tokio_stream::StreamExt as _;

/// HTTP/2's error codes (RFC 9113, 7).
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// A gRPC message.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";

struct Server {
    peer: Peer,
    address: String,
}

impl Server {
    fn start(name: &str) -> Self {
        let peer = Peer::start("grpc_server", "grpc", &[name]);
        let address = format!("127.0.0.1:{}", peer.wait_for("port "));
        Self { peer, address }
    }
}

fn proxy(endpoints: &[&str], listener: &str, service: &str) -> Proxy {
    Proxy::start(&format!(
        "{}[service.users]\nprotocol = \"http2\"\nendpoints = {endpoints:?}\n{service}\n",
        one_listener(listener)
    ))
}

fn client(proxy: &Proxy, scenario: &str) -> Peer {
    client_of(proxy, "users", &[scenario])
}

fn client_of(proxy: &Proxy, authority: &str, scenario: &[&str]) -> Peer {
    let address = proxy.addresses[0].to_string();
    Peer::start("grpc_client", "grpc", &[&[&address, authority][..], scenario].concat())
}

fn call(path: &str) -> http::request::Builder {
    Request::post(format!("http://users{path}")).header("content-type", "application/grpc").header("te", "trailers")
}

/// The header block of a request for `users`.
fn request(method: &str) -> Vec<u8> {
    let lines = [(":method", method), (":scheme", "http"), (":authority", "users"), (":path", "/")];
    lines.map(|(name, value)| frames::literal(name, value)).concat()
}

/// A body of one message that does not end.
fn endless() -> Body {
    let message = tokio_stream::once(Ok(Frame::data(Bytes::from_static(MESSAGE))));
    StreamBody::new(message.chain(tokio_stream::pending())).boxed()
}

#[test]
fn all_four_kinds() {
    let server = Server::start("one");
    let proxy = proxy(&[&server.address], "", "");
    client(&proxy, "kinds").finish();
    wait_until("nothing is under way", || proxy.in_flight() == 0);
    assert_eq!(proxy.upstream_connections(), 1);
}

#[test]
fn each_call_is_balanced_on_its_own() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    let proxy = proxy(&[&one.address, &two.address], "", "");
    client(&proxy, "balanced").finish();
}

#[test]
fn a_cancelled_call_is_cancelled_at_its_server() {
    let server = Server::start("one");
    let proxy = proxy(&[&server.address], "", "");
    for (scenario, method) in [("cancel", "Wait"), ("cancel_unary", "WaitUnary")] {
        let mut client = client(&proxy, scenario);
        server.peer.wait_for(&format!("started {method}"));
        assert!(!server.peer.said().contains(&format!("ended {method}")));
        client.tell("cancel");
        server.peer.wait_for(&format!("ended {method}"));
        client.finish();
    }
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn a_caller_that_vanishes_is_cancelled_at_its_server() {
    let server = Server::start("one");
    let proxy = proxy(&[&server.address], "", "");
    let mut client = client(&proxy, "hang");
    client.wait_for("hanging");
    client.kill();
    server.peer.wait_for("ended Wait");
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn deadlines_hold() {
    let server = Server::start("one");
    let own = proxy(&[&server.address], "", "");
    client(&own, "deadline").finish();
    wait_until("nothing is under way", || own.in_flight() == 0);

    // The proxy's own, which the caller does not know of.
    let server = Server::start("one");
    let proxy = proxy(&[&server.address], "request_deadline = \"1500ms\"", "");
    client(&proxy, "proxy_deadline").finish();
    server.peer.wait_for("ended WaitUnary");
    server.peer.wait_for("ended Wait");
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn the_sooner_of_two_deadlines_holds() {
    for (listener, timeout) in
        [("", "500m"), ("request_deadline = \"1h\"", "500m"), ("request_deadline = \"500ms\"", "1H")]
    {
        let (resets, reset) = mpsc::channel();
        let endpoint = Endpoint::start(move |_, wire| {
            let mut frames = Frames::server(wire);
            frames.until(HEADERS);
            resets.send(frames.reset_code()).expect("somebody listens");
        });
        let proxy = proxy(&[&endpoint.address.to_string()], listener, "");
        let client = Http2Client::connect(proxy.addresses[0]);
        let request = call("/test.Echo/Wait").header("grpc-timeout", timeout).body(endless()).expect("a request");
        let response = client.send(request);
        assert_eq!((response.head.status.as_u16(), response.head.headers["grpc-status"].as_bytes()), (200, &b"4"[..]));
        assert_eq!(response.head.headers["content-type"], "application/grpc");
        assert!(response.head.headers["proxy-status"].to_str().expect("text").contains("error=http_response_timeout"));
        assert!(response.trailers.is_none() && response.body.is_empty());
        assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(CANCEL));
    }
}

#[test]
fn a_deadline_that_passes_in_a_stream_ends_it_with_a_status() {
    let (resets, reset) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, wire| {
        let mut frames = Frames::server(wire);
        let stream = frames.until(HEADERS).stream;
        frames.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        frames.send(DATA, 0, stream, MESSAGE);
        resets.send(frames.reset_code()).expect("somebody listens");
    });
    let proxy = proxy(&[&endpoint.address.to_string()], "", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    let request = call("/test.Echo/Wait").header("grpc-timeout", "1S").body(endless()).expect("a request");
    let response = client.send(request);
    assert_eq!((response.head.status.as_u16(), &response.body[..]), (200, MESSAGE));
    assert_eq!(response.trailers.expect("trailers")["grpc-status"], "4");
    assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(CANCEL));
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn a_deadline_of_the_listener_holds_for_every_request() {
    let endpoint = Endpoint::start(|number, mut wire| {
        wire.head();
        if number > 0 {
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
        }
        wire.expect_end();
    });
    let proxy = Proxy::with(&[&endpoint], "request_deadline = \"1s\"", "");
    proxy.client().get("/").assert_refused(504, "deadline", "http_response_timeout");
    // A response that has begun is cut off, and does not look complete.
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    assert!(client.try_response().is_err_and(|error| error.contains("ended")));
    let mut client = Frames::client(Wire::connect(proxy.addresses[0]));
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET"));
    assert_eq!(client.until(HEADERS).payload[0], STATUS_200);
    assert_eq!(client.reset_code(), CANCEL);
    wait_until("nothing is under way", || proxy.in_flight() == 0 && proxy.upstream_connections() == 0);
}

#[test]
fn a_deadline_passes_also_while_the_client_takes_nothing() {
    let (resets, reset) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, wire| {
        let mut frames = Frames::server(wire);
        let stream = frames.until(HEADERS).stream;
        frames.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        // More than the client's window, and less than the proxy's.
        for _ in 0..3 {
            frames.send(DATA, 0, stream, &[0; 16_000]);
        }
        resets.send(frames.reset_code()).expect("somebody listens");
    });
    let proxy = proxy(&[&endpoint.address.to_string()], "request_deadline = \"1s\"", "");
    let mut client = Frames::client(Wire::connect(proxy.addresses[0]));
    // SETTINGS_INITIAL_WINDOW_SIZE.
    client.send(4, 0, 0, &[0, 4, 0, 0, 0x20, 0]);
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET"));
    assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(CANCEL));
    // The client learns of it when it goes on.
    for stream in [0, 1] {
        client.send(WINDOW_UPDATE, 0, stream, &(1_u32 << 20).to_be_bytes());
    }
    assert_eq!(client.reset_code(), CANCEL);
}

#[test]
fn a_timeout_that_cannot_be_read_is_refused() {
    let endpoint = Endpoint::saying(http1::OK);
    let proxy = Proxy::to(&endpoint);
    let client = Http2Client::connect(proxy.addresses[0]);
    let send = |kind: &str, timeout: &str| {
        let request = Request::post("http://users/").header("content-type", kind).header("grpc-timeout", timeout);
        client.send(request.body(body(&[], &[])).expect("a request")).head
    };
    let refused = send("application/grpc+proto", "1 day");
    assert_eq!((refused.status.as_u16(), refused.headers["grpc-status"].as_bytes()), (200, &b"13"[..]));
    assert_eq!(refused.headers["grpc-message"], "heddle: router: a malformed grpc-timeout");
    assert_eq!(endpoint.connections(), 0);
    assert!(!send("application/json", "1 day").headers.contains_key("grpc-status"), "it is none of ours");
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn refusals_are_grpcs() {
    let expect = |proxy: &Proxy, authority: &str, code: &str, details: &str| {
        client_of(proxy, authority, &["expect_status", code, details]).finish();
    };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let unreachable = proxy(&[&nobody.to_string()], "", "");
    expect(&unreachable, "users", "UNAVAILABLE", "heddle: upstream: cannot connect to");
    expect(&unreachable, "nobody", "UNIMPLEMENTED", "heddle: router: no service is called \"nobody\"");
    let none = Proxy::start(&format!(
        "{}[service.users]\nendpoints = [{{ address = \"{nobody}\", weight = 0 }}]\n",
        one_listener("")
    ));
    expect(&none, "users", "UNAVAILABLE", "heddle: registry: no endpoint of users is eligible");
    let silent = Endpoint::start(|_, mut wire| while wire.exactly(1).is_ok() {});
    let slow = proxy(&[&silent.address.to_string()], "", "request_timeout = \"200ms\"");
    expect(&slow, "users", "DEADLINE_EXCEEDED", "heddle: upstream: no response from");
    // In HTTP/1.1 too, and to nobody else.
    let mut client = none.client();
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n");
    let refused = client.response();
    assert_eq!((refused.status(), refused.header("grpc-status").as_deref()), (200, Some("14")));
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n");
    client.response().assert_refused(503, "registry", "destination_unavailable");
}

/// What an endpoint saw of a stream that ended early.
fn endpoint_that_answers(head: bool) -> (Endpoint, mpsc::Receiver<u32>) {
    let (resets, reset) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, wire| {
        let mut frames = Frames::server(wire);
        let stream = frames.until(HEADERS).stream;
        frames.until(DATA);
        if head {
            frames.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        }
        resets.send(0).expect("somebody listens");
        resets.send(frames.reset_code()).expect("somebody listens");
    });
    (endpoint, reset)
}

#[test]
fn streams_that_nobody_wants_are_reset_with_cancel() {
    for head in [false, true] {
        for lost in [false, true] {
            let (endpoint, reset) = endpoint_that_answers(head);
            let proxy = proxy(&[&endpoint.address.to_string()], "", "");
            let mut client = Frames::client(Wire::connect(proxy.addresses[0]));
            client.send(HEADERS, END_HEADERS, 1, &request("POST"));
            client.send(DATA, 0, 1, MESSAGE);
            assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(0));
            if head {
                assert_eq!(client.until(HEADERS).payload[0], STATUS_200);
            }
            if lost {
                drop(client);
            } else {
                client.send(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
            }
            assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(CANCEL), "head: {head}, lost: {lost}");
            wait_until("nothing is under way", || proxy.in_flight() == 0);
        }
    }
}

#[test]
fn a_request_that_is_cut_short_never_looks_complete() {
    let (endpoint, reset) = endpoint_that_answers(false);
    let proxy = proxy(&[&endpoint.address.to_string()], "", "");
    let mut client = Frames::client(Wire::connect(proxy.addresses[0]));
    client.send(HEADERS, END_HEADERS, 1, &request("POST"));
    client.send(DATA, 0, 1, MESSAGE);
    assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(0));
    // NO_ERROR: hyper ends such a body as though it were complete.
    client.send(RST_STREAM, 0, 1, &0_u32.to_be_bytes());
    assert_eq!(reset.recv_timeout(http1::DEADLINE), Ok(CANCEL));
}

#[test]
fn what_an_endpoint_resets_is_reset_for_its_caller() {
    // Before a head: the status that the error code stands for.
    let endpoint = |head: bool, code: u32| {
        Endpoint::start(move |_, wire| {
            let mut frames = Frames::server(wire);
            while let Some(frame) = frames.next() {
                if frame.kind == HEADERS {
                    if head {
                        frames.send(HEADERS, END_HEADERS, frame.stream, &[STATUS_200]);
                        frames.send(DATA, 0, frame.stream, MESSAGE);
                    }
                    frames.send(RST_STREAM, 0, frame.stream, &code.to_be_bytes());
                }
            }
        })
    };
    for (code, status) in [(REFUSED_STREAM, "14"), (CANCEL, "1"), (INTERNAL_ERROR, "13")] {
        let endpoint = endpoint(false, code);
        let proxy = proxy(&[&endpoint.address.to_string()], "", "");
        let client = Http2Client::connect(proxy.addresses[0]);
        let refused = client.send(call("/a/b").body(body(&[MESSAGE], &[])).expect("a request"));
        assert_eq!(refused.head.headers["grpc-status"], status, "{code}");
    }
    // In a stream: the same error code.
    for code in [CANCEL, INTERNAL_ERROR] {
        let endpoint = endpoint(true, code);
        let proxy = proxy(&[&endpoint.address.to_string()], "", "");
        let mut client = Frames::client(Wire::connect(proxy.addresses[0]));
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET"));
        assert_eq!(client.reset_code(), code);
    }
}

#[test]
fn an_endpoint_that_dies_in_a_stream_breaks_it() {
    let mut server = Server::start("one");
    let proxy = proxy(&[&server.address], "", "");
    let client = client(&proxy, "broken");
    client.wait_for("hanging");
    server.peer.kill();
    client.finish();
}

#[test]
fn an_endpoint_that_goes_away_finishes_its_streams() {
    let mut server = Server::start("one");
    let proxy = proxy(&[&server.address], "", "");
    let mut client = client(&proxy, "goaway");
    client.wait_for("streaming");
    server.peer.tell("stop");
    server.peer.wait_for("stopping");
    client.tell("go on");
    client.finish();
    server.peer.wait_for("stopped");
}

#[test]
fn a_connection_that_says_goodbye_takes_no_other_call() {
    let endpoint = Endpoint::start(|_, wire| {
        let mut frames = Frames::server(wire);
        while let Some(frame) = frames.next() {
            if frame.kind == HEADERS {
                frames.send(GOAWAY, 0, 0, &[frame.stream.to_be_bytes(), [0; 4]].concat());
                frames.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[STATUS_200]);
            }
        }
    });
    let proxy = proxy(&[&endpoint.address.to_string()], "", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    for number in 1..4 {
        assert_eq!(client.send(call("/a/b").body(body(&[MESSAGE], &[])).expect("a request")).head.status, 200);
        assert_eq!(endpoint.connections(), number);
    }
}

/// Not before this was fixed: the time that the listener gives a request's body ended what the client only listens to.
#[test]
fn a_client_may_be_silent_while_its_response_moves() {
    let endpoint = Endpoint::start(|_, wire| {
        let mut frames = Frames::server(wire);
        let stream = frames.until(HEADERS).stream;
        frames.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        for _ in 0..10 {
            frames.send(DATA, 0, stream, b"event ");
            #[expect(clippy::disallowed_methods, reason = "the endpoint is slow, which is what the test is about")]
            thread::sleep(Duration::from_millis(200));
        }
        frames.send(DATA, END_STREAM, stream, b"end");
        while frames.next().is_some() {}
    });
    let proxy = proxy(&[&endpoint.address.to_string()], "body_timeout = \"1s\"", "");
    let client = Http2Client::connect(proxy.addresses[0]);
    let response = client.send(call("/test.Echo/Wait").body(endless()).expect("a request"));
    assert_eq!(response.body, [b"event ".repeat(10), b"end".to_vec()].concat());
}

/// Not before this was fixed: a response whose head had come was taken for idle while only the request moved.
#[test]
fn an_upload_goes_on_after_an_early_head() {
    let server = Server::start("one");
    let proxy = proxy(&[&server.address], "", "stream_idle_timeout = \"1s\"");
    client(&proxy, "slow_upload").finish();

    let endpoint = Endpoint::start(|_, mut wire| {
        let head = wire.head().expect("a request");
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
        let request = wire.with_body(head, false).expect("a whole request");
        assert_eq!(request.body.len(), 1500);
        wire.send("ok");
    });
    let proxy = Proxy::with(&[&endpoint], "", "stream_idle_timeout = \"1s\"");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 1500\r\n\r\n");
    for _ in 0..15 {
        client.send([b'x'; 100]);
        #[expect(clippy::disallowed_methods, reason = "the client is slow, which is what the test is about")]
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(client.response().text(), "ok");
}
