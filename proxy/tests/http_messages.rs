//! Messages on their way through: framing, bodies, trailers, interim responses, and what is not HTTP.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use http::{DEADLINE, Endpoint, Message, OK, Proxy, bytes, wait_until};
use sha2::{Digest, Sha256};

/// More than the sockets on the way hold together.
const LARGE: usize = 24 << 20;

#[test]
fn bodies_and_trailers_pass_both_ways() {
    let endpoint = Endpoint::saying(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         3;ext=\"a\"\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\nContent-Length: 1\r\n\r\n",
    );
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(
            "POST / HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nTE: trailers\r\n\r\n\
             5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n",
        );
        let response = client.response();
        assert_eq!(response.text(), "abcdefg");
        assert_eq!(response.trailers, [("x-sum".to_owned(), "7".to_owned())]);
        let seen = endpoint.last();
        assert_eq!(
            (seen.text().as_str(), seen.header("transfer-encoding").as_deref()),
            ("hello world", Some("chunked"))
        );
        assert_eq!(seen.trailers, [("x-sum".to_owned(), "11".to_owned())]);
    }
    // Who does not ask for trailers gets the body without.
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    let response = client.response();
    assert_eq!((response.text().as_str(), response.trailers.len()), ("abcdefg", 0));
    client.send("PUT / HTTP/1.1\r\nHost: users\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.response().status(), 200);
    assert_eq!(
        (endpoint.last().text().as_str(), endpoint.last().header("content-length").as_deref()),
        ("hello", Some("5"))
    );
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!(endpoint.last().header("content-length").as_deref(), Some("0"));
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn responses_without_a_body_end_with_their_head() {
    let endpoint = Endpoint::answering(|request| match request.start.split(' ').nth(1).unwrap() {
        "/length" => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
        "/chunked" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "/neither" => "HTTP/1.1 200 OK\r\n\r\n",
        "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
        "/304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\netag: \"a\"\r\n\r\n",
        _ => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    let mut ask = |method: &str, path: &str| {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: users\r\n\r\n"));
        client.head().expect("a head")
    };
    assert_eq!(ask("HEAD", "/length").header("content-length").as_deref(), Some("1000"));
    assert_eq!(ask("HEAD", "/chunked").status(), 200);
    let neither = ask("HEAD", "/neither");
    assert_eq!(neither.header("content-length"), None, "the length of what GET would give is not known");
    assert_eq!(ask("GET", "/204").header("content-length"), None);
    let not_modified = ask("GET", "/304");
    assert_eq!((not_modified.status(), not_modified.header("etag").as_deref()), (304, Some("\"a\"")));
    assert_eq!(ask("GET", "/empty").header("content-length").as_deref(), Some("0"));
    assert!(client.is_silent());
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn http_1_0_on_either_side() {
    let endpoint = Endpoint::answering(|request| match request.start.split(' ').nth(1).unwrap() {
        "/chunked" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        _ => OK,
    });
    let proxy = Proxy::to(&endpoint);
    for path in ["/", "/chunked"] {
        let mut client = proxy.client();
        client.send(format!("GET {path} HTTP/1.0\r\nHost: users\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("transfer-encoding")), ("ok", None));
        client.expect_end();
    }
    assert_eq!(endpoint.last().start, "GET /chunked HTTP/1.1");
    assert!(endpoint.last().header("via").is_some_and(|via| via.starts_with("1.0 ")), "{:?}", endpoint.last());
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: users\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection").as_deref()), ("ok", Some("keep-alive")));
    }
    assert_eq!(endpoint.connections(), 1);

    let old = Endpoint::start(|number, mut wire| {
        while wire.request().is_some() {
            let keeps = number == 1;
            let connection = if keeps { "Connection: Keep-Alive\r\nContent-Length: 3\r\n" } else { "" };
            wire.send(format!("HTTP/1.0 200 OK\r\n{connection}\r\nold"));
            if !keeps {
                return;
            }
        }
    });
    let proxy = Proxy::to(&old);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "old");
    }
    assert_eq!(old.connections(), 2, "the first ended with its body, the second was kept");
}

#[test]
fn a_body_that_ends_with_the_connection_is_framed_anew() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of");
        wire.send(" it");
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!(
            (response.text().as_str(), response.header("transfer-encoding").as_deref()),
            ("all of it", Some("chunked"))
        );
    }
}

#[test]
fn interim_responses_are_skipped_and_unasked_upgrades_refused() {
    let endpoint = Endpoint::answering(|request| match request.start.split(' ').nth(1).unwrap() {
        "/101" => "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nsecret".to_owned(),
        _ => format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-length: 5\r\n\r\n{OK}"
        ),
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for _ in 0..2 {
        assert_eq!(client.get("/").text(), "ok");
    }
    client.get("/101").assert_refused(502, "upstream", "http_protocol_error");
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(endpoint.connections(), 2, "what was upgraded is not used again");
}

/// Issue 10, 3: interim responses without end kept the worker, and the request, for good.
#[test]
fn at_most_so_many_interim_responses_are_skipped() {
    let endpoint = Endpoint::start(|_, mut wire| {
        let request = wire.request().expect("a request");
        let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        match request.start.split(' ').nth(1) {
            Some("/16") => wire.send(interim.repeat(16) + OK),
            Some("/17") => wire.send(interim.repeat(17) + OK),
            _ => while wire.try_send(interim.repeat(1000)).is_ok() {},
        }
    });
    let proxy = Proxy::to(&endpoint);
    assert_eq!(proxy.client().get("/16").text(), "ok");
    proxy.client().get("/17").assert_refused(502, "upstream", "http_protocol_error");
    proxy.client().get("/endless").assert_refused(502, "upstream", "http_protocol_error");
}

#[test]
fn what_is_no_response_is_a_bad_gateway() {
    let endpoint = Endpoint::start(|_, mut wire| {
        let request = wire.request().expect("a request");
        let path = request.start.split(' ').nth(1).unwrap().to_owned();
        let many = "x: y\r\n".repeat(101);
        let long = "x".repeat(70_000);
        let answer = match path.as_str() {
            "/garbage" => "SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(),
            "/lengths" => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
            "/length" => "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nabc".to_owned(),
            "/plus" => "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab".to_owned(),
            "/coding" => "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "/chunked-1.0" => "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "/headers" => format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            "/head" => format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"),
            "/folded" => "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "/space" => "HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n".to_owned(),
            "/half" => "HTTP/1.1 200 OK\r\ncontent-le".to_owned(),
            "/nothing" => String::new(),
            other => panic!("{other}"),
        };
        let _ = wire.try_send(answer);
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for (path, error) in [
        ("/garbage", "http_protocol_error"),
        ("/lengths", "http_protocol_error"),
        ("/length", "http_protocol_error"),
        ("/plus", "http_protocol_error"),
        ("/coding", "http_protocol_error"),
        ("/chunked-1.0", "http_protocol_error"),
        ("/headers", "http_protocol_error"),
        ("/head", "http_protocol_error"),
        ("/folded", "http_protocol_error"),
        ("/space", "http_protocol_error"),
        ("/half", "connection_terminated"),
        ("/nothing", "connection_terminated"),
    ] {
        client.get(path).assert_refused(502, "upstream", error);
    }
    assert_eq!(proxy.in_flight(), 0);
    assert_eq!(endpoint.connections(), 12, "none was used again");
}

#[test]
fn a_body_that_breaks_off_is_not_made_whole() {
    let endpoint = Endpoint::start(|_, mut wire| {
        let request = wire.request().expect("a request");
        wire.send(match request.start.split(' ').nth(1).unwrap() {
            "/short" => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
            "/cut" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "/size" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
            "/end" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
        });
    });
    let proxy = Proxy::to(&endpoint);
    for path in ["/short", "/cut", "/size", "/end", "/trailer"] {
        let mut client = proxy.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: users\r\n\r\n"));
        let outcome = client.try_response();
        let refused = outcome.as_ref().is_ok_and(|response| response.status() == 502);
        assert!(refused || outcome.is_err(), "{path}: {outcome:?}");
    }
    wait_until("nothing is under way", || proxy.in_flight() == 0);
    assert_eq!(proxy.upstream_connections(), 0);
}

/// HTTP/1.0 knows the end of such a body by the end of the connection alone.
#[test]
fn a_body_that_breaks_off_does_not_end_as_a_whole_one_would() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: users\r\n\r\n");
    let mut received = Vec::new();
    let ended = client.stream.read_to_end(&mut received);
    assert!(ended.is_err(), "{:?}", String::from_utf8_lossy(&received));
}

#[test]
fn both_framings_at_once_end_the_connection() {
    let endpoint = Endpoint::saying(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for connections in 1..3 {
        let response = client.get("/");
        assert_eq!((response.text().as_str(), response.header("content-length")), ("ok", None));
        assert_eq!(endpoint.connections(), connections);
    }
}

#[test]
fn a_broken_request_body_breaks_the_request() {
    let (told, bodies) = mpsc::channel();
    let (began, heads) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        if let Some(head) = wire.head() {
            began.send(()).unwrap();
            told.send(wire.with_body(head, false).map(|request| request.text())).unwrap();
        }
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    heads.recv_timeout(DEADLINE).expect("the request is under way");
    client.send("xyz\r\n");
    client.response().assert_refused(400, "upstream", "http_request_error");
    client.expect_end();
    assert!(bodies.recv_timeout(DEADLINE).expect("a request").is_err(), "the endpoint must not see a whole body");

    // The client goes away in the middle of its body.
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 10\r\n\r\nabc");
    heads.recv_timeout(DEADLINE).expect("the request is under way");
    drop(client);
    assert!(bodies.recv_timeout(DEADLINE).expect("a request").is_err());
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn the_client_is_told_to_continue_once_there_is_a_connection() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "", "[service.empty]");
    let mut client = proxy.client();
    for body in ["hello", "again"] {
        client.send("PUT / HTTP/1.1\r\nHost: users\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.head().expect("an interim response").status(), 100);
        client.send(body);
        assert_eq!(client.response().status(), 200);
        assert_eq!((endpoint.last().text().as_str(), endpoint.last().header("expect")), (body, None));
    }
    client.send("PUT / HTTP/1.1\r\nHost: empty\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let refusal = client.response();
    refusal.assert_refused(503, "registry", "destination_unavailable");
    // The client does not send the body then; were the connection kept, the next request would be taken for it.
    client.expect_end();
}

#[test]
fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "", "[service.empty]");
    let mut client = proxy.client();
    let length = 4 << 20;
    client.send(format!("POST / HTTP/1.1\r\nHost: empty\r\nContent-Length: {length}\r\n\r\n"));
    client.try_send(bytes(length)).expect("the connection stays open until the client is done");
    client.response().assert_refused(503, "registry", "destination_unavailable");
    client.expect_end();
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn large_bodies_arrive_as_they_were_sent() {
    let endpoint = Endpoint::answering(|request: &Message| {
        let head = format!("HTTP/1.1 200 OK\r\nx-sum: {}\r\n", sum(&request.body));
        let mut answer = Vec::new();
        if request.start.starts_with("POST /length ") {
            answer.extend(format!("{head}content-length: {}\r\n\r\n", request.body.len()).bytes());
            answer.extend(&request.body);
        } else {
            answer.extend(format!("{head}transfer-encoding: chunked\r\n\r\n").bytes());
            for (i, chunk) in request.body.chunks(40_000).enumerate() {
                let chunk = if i % 7 == 0 { &chunk[..1] } else { chunk };
                answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                answer.extend(chunk);
                answer.extend(b"\r\n");
            }
            answer.extend(b"0\r\n\r\n");
        }
        answer
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    let body = bytes(LARGE);
    client.send(format!("POST /length HTTP/1.1\r\nHost: users\r\nContent-Length: {LARGE}\r\n\r\n"));
    client.send(&body);
    let response = client.response();
    assert_eq!((response.header("x-sum"), sum(&response.body)), (Some(sum(&body)), sum(&body)));

    client.send("POST /chunked HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(70_001) {
        client.send(format!("{:X}\r\n", chunk.len()));
        client.send(chunk);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    let response = client.response();
    let expected: Vec<u8> =
        body.chunks(40_000).enumerate().flat_map(|(i, c)| if i % 7 == 0 { &c[..1] } else { c }).copied().collect();
    assert_eq!((response.header("x-sum"), sum(&response.body)), (Some(sum(&body)), sum(&expected)));
    assert_eq!(endpoint.connections(), 1);
}

#[test]
fn a_client_that_does_not_read_stops_the_endpoint() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let endpoint = Endpoint::start(move |_, mut wire| {
        wire.request();
        wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 64 * LARGE));
        let blocked = wire.send_until_blocked(&bytes(2 * LARGE));
        counter.store(blocked, Ordering::SeqCst);
        while wire.try_send(bytes(1 << 16)).is_ok() {}
        counter.store(usize::MAX, Ordering::SeqCst);
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    assert_eq!(client.head().expect("a head").status(), 200);
    wait_until("the endpoint is stopped", || sent.load(Ordering::SeqCst) > 0);
    let taken = sent.load(Ordering::SeqCst);
    assert!(taken < LARGE, "{taken} bytes were taken for a client that reads none");
    assert_eq!(proxy.in_flight(), 1);
    drop(client);
    wait_until("the endpoint sees that the client is gone", || sent.load(Ordering::SeqCst) == usize::MAX);
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn an_endpoint_that_does_not_read_stops_the_client() {
    let (resume, resumed) = mpsc::channel::<()>();
    let resumed = std::sync::Mutex::new(resumed);
    let endpoint = Endpoint::start(move |_, mut wire| {
        let head = wire.head().expect("a head");
        resumed.lock().unwrap().recv().expect("told to go on");
        let request = wire.with_body(head, false).expect("a body");
        let sum = sum(&request.body);
        wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{sum}", sum.len()));
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    let body = bytes(2 * LARGE);
    client.send(format!("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: {}\r\n\r\n", body.len()));
    let taken = client.send_until_blocked(&body);
    assert!(taken < LARGE, "{taken} bytes were taken for an endpoint that reads none");
    resume.send(()).expect("an endpoint");
    client.send(&body[taken..]);
    assert_eq!(client.response().text(), sum(&body));
}
