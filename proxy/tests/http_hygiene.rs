//! Messages that two readers could understand differently, or that are too large or too slow: refused, the connection
//! closed, and nothing of them seen by an endpoint.

#![cfg(test)]

#[path = "support/http.rs"]
mod http1;
#[path = "support/http2.rs"]
mod http2;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use http::Request;
use http1::{DEADLINE, Endpoint, OK, Proxy, SECOND_HAND, bytes, one_listener, users, wait_until};
use http2::{Http2Client, Http2Endpoint, Manners, body};

/// An endpoint that answers nothing and counts the bytes that reach it.
fn counting() -> (Endpoint, Arc<AtomicUsize>) {
    let seen: Arc<AtomicUsize> = Arc::default();
    let counter = seen.clone();
    let endpoint = Endpoint::start(move |_, mut wire| {
        while wire.exactly(1).is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (endpoint, seen)
}

/// Sends each of these on a connection of its own, alone and then behind a request that is answered; a second request
/// stands behind it. It is refused with the status, the connection ends, and no endpoint sees any of it.
#[track_caller]
fn assert_refused(status: u16, messages: &[&str]) {
    refused(status, messages, &[false, true]);
}

/// The same for what is not taken for HTTP at all, unless the connection is known to be.
#[track_caller]
fn assert_refused_behind_another(status: u16, messages: &[&str]) {
    refused(status, messages, &[true]);
}

#[track_caller]
fn refused(status: u16, messages: &[&str], places: &[bool]) {
    let (endpoint, seen) = counting();
    let before = Endpoint::saying(OK);
    let config = format!(
        "{}{}[service.before]\nendpoints = [\"{}\"]\n",
        one_listener(""),
        users(&[&endpoint], ""),
        before.address
    );
    let proxy = Proxy::start(&config);
    for message in messages {
        for behind in places.iter().copied() {
            let mut client = proxy.client();
            let first = if behind { "GET / HTTP/1.1\r\nHost: before\r\n\r\n" } else { "" };
            client.send(format!("{first}{message}GET /smuggled HTTP/1.1\r\nHost: users\r\n\r\n"));
            if behind {
                assert_eq!(client.response().text(), "ok", "before {message:?}");
            }
            let refusal = client.try_response().unwrap_or_else(|error| panic!("{message:?}: {error}"));
            assert_eq!(refusal.status(), status, "{message:?}: {}", refusal.text());
            assert_eq!(refusal.header("connection").as_deref(), Some("close"), "{message:?}");
            let said = refusal.header("proxy-status").unwrap_or_default();
            assert!(said.starts_with("heddle; error=http_request_"), "{message:?}: {said:?}");
            client.expect_end();
        }
    }
    wait_until("nothing is under way", || proxy.in_flight() == 0);
    assert_eq!(seen.load(Ordering::SeqCst), 0, "an endpoint has seen some of it");
}

/// A POST with these headers and what follows the head.
fn post(headers: &str, rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: users\r\n{headers}\r\n{rest}")
}

fn refused_with_headers(status: u16, cases: &[(&str, &str)]) {
    let messages: Vec<String> = cases.iter().map(|(headers, rest)| post(headers, rest)).collect();
    assert_refused(status, &messages.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn lengths_that_are_ambiguous() {
    refused_with_headers(
        400,
        &[
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            ("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
            ("Content-Length: 3, 4\r\n", "abcd"),
            ("Content-Length: 3, 3\r\n", "abc"),
            ("Content-Length: +3\r\n", "abc"),
            ("Content-Length: -3\r\n", "abc"),
            ("Content-Length: 0x3\r\n", "abc"),
            ("Content-Length: 3 3\r\n", "abc"),
            ("Content-Length: 3;\r\n", "abc"),
            ("Content-Length: 3.0\r\n", "abc"),
            ("Content-Length: three\r\n", "abc"),
            ("Content-Length:\r\n", "abc"),
            ("Content-Length: 18446744073709551616\r\n", "abc"),
            ("Content-Length: 99999999999999999999999999999999\r\n", "abc"),
        ],
    );
}

#[test]
fn codings_that_are_not_chunked_once() {
    refused_with_headers(
        400,
        &[
            ("Transfer-Encoding: gzip\r\n", "abc"),
            ("Transfer-Encoding: identity\r\n", "abc"),
            ("Transfer-Encoding:\r\n", "abc"),
            ("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: ,chunked,\r\n", "0\r\n\r\n"),
            ("Transfer-Encoding: chunked\x0b\r\n", "0\r\n\r\n"),
        ],
    );
    refused_with_headers(501, &[("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")]);
    assert_refused(400, &["POST / HTTP/1.0\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]);
}

#[test]
fn lines_that_do_not_end_in_crlf() {
    assert_refused(
        400,
        &[
            "GET / HTTP/1.1\nHost: users\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\r\nX: a\nContent-Length: 3\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\r\nX: a\r\n\n",
            "GET / HTTP/1.1\nHost: users\n\n",
            "GET / HTTP/1.1\rHost: users\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\rX: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\r\nX: a\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\r\n\rX: a\r\n\r\n",
        ],
    );
}

#[test]
fn headers_that_are_folded_or_no_headers() {
    refused_with_headers(
        400,
        &[
            ("X: a\r\n b\r\n", ""),
            ("X: a\r\n\tb\r\n", ""),
            ("X: a\r\n Content-Length: 3\r\n", ""),
            ("X : a\r\n", ""),
            ("X\t: a\r\n", ""),
            (" X: a\r\n", ""),
            (": a\r\n", ""),
            ("X\r\n", ""),
            ("X a\r\n", ""),
            ("X(y): a\r\n", ""),
            ("X\u{e9}: a\r\n", ""),
            ("X\0: a\r\n", ""),
            ("X: a\0b\r\n", ""),
            ("X: a\x01b\r\n", ""),
            ("X: a\x7fb\r\n", ""),
            ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
            ("Content-Length : 3\r\n", "abc"),
        ],
    );
    assert_refused(400, &["GET / HTTP/1.1\r\n Host: users\r\n\r\n", "GET / HTTP/1.1\r\n\tX: a\r\nHost: users\r\n\r\n"]);
}

#[test]
fn chunks_that_are_none() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases = [
        "\r\nabc\r\n0\r\n\r\n",
        "x\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\r\nabc\r\n0\r\n\r\n",
        "10000000000000000\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3;a=\"b\r\nabc\r\n0\r\n\r\n",
        "3;a=\"b\nc\"\r\nabc\r\n0\r\n\r\n",
        "3;a=\"\\\"\r\nabc\r\n0\r\n\r\n",
        "3;a\0\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3 a=b\r\nabc\r\n0\r\n\r\n",
        "0\r\nX : a\r\n\r\n",
        "0\r\nX: a\n\r\n",
        "0\r\nX: a\r\n b\r\n\r\n",
        "0\r\nX\r\n\r\n",
        "0\r\n\nX: a\r\n\r\n",
        "0\r\nX: a\0\r\n\r\n",
    ];
    refused_with_headers(400, &cases.map(|rest| (chunked, rest)));
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(300));
    let many = format!("0\r\n{}\r\n", "x: y\r\n".repeat(101));
    let large = format!("0\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    refused_with_headers(400, &[&long, &many, &large].map(|rest| (chunked, rest.as_str())));
}

/// What comes after data that is not as long as its chunk says is no request; an endpoint may have seen what was right.
#[test]
fn chunks_that_do_not_end_where_they_say() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    for rest in ["3\r\nabcde\r\n0\r\n\r\n", "3\r\nabc0\r\n\r\n", "3\r\nabc\n0\r\n\r\n", "3\r\nabc\r0\r\n\r\n"] {
        let mut client = proxy.client();
        client.send(post("Transfer-Encoding: chunked\r\n", rest));
        client.send("GET /smuggled HTTP/1.1\r\nHost: users\r\n\r\n");
        client.response().assert_refused(400, "upstream", "http_request_error");
        client.expect_end();
    }
    let mut client = proxy.client();
    client.send(post(
        "Transfer-Encoding: chunked\r\n",
        &format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "y".repeat(200)).repeat(100)),
    ));
    client.response().assert_refused(400, "upstream", "http_request_error");
    client.expect_end();
    wait_until("nothing is under way", || proxy.in_flight() == 0);
    assert_eq!(endpoint.requests().len(), 0);
}

#[test]
fn request_lines_that_are_none() {
    assert_refused(
        400,
        &[
            "GET /\r\n\r\n",
            "GET / \r\nHost: users\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: users\r\n\r\n",
            "GET /  HTTP/1.1\r\nHost: users\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: users\r\n\r\n",
            "GET /\tHTTP/1.1\r\nHost: users\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: users\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: users\r\n\r\n",
            "GET / http/1.1\r\nHost: users\r\n\r\n",
            "GET / HTTP/1.10\r\nHost: users\r\n\r\n",
            "GET / HTTP/11\r\nHost: users\r\n\r\n",
            "GET / HTTP/1,1\r\nHost: users\r\n\r\n",
            "GET / HTTP1.1\r\nHost: users\r\n\r\n",
            "GET users:80 HTTP/1.1\r\nHost: users\r\n\r\n",
            "GET /#a HTTP/1.1\r\nHost: users\r\n\r\n",
            "CONNECT users:80 HTTP/1.1\r\nHost: users:80\r\nContent-Length: 3\r\n\r\nabc",
        ],
    );
    assert_refused_behind_another(
        400,
        &[
            "GET\t/ HTTP/1.1\r\nHost: users\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: users\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: users\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03 a TLS hello",
        ],
    );
    assert_refused(
        505,
        &[
            "GET / HTTP/2.0\r\nHost: users\r\n\r\n",
            "GET / HTTP/3.0\r\nHost: users\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: users\r\n\r\n",
            "GET / HTTP/0.9\r\nHost: users\r\n\r\n",
        ],
    );
}

#[test]
fn hosts_that_are_none_or_two() {
    assert_refused(
        400,
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET http://users/ HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\r\nHost: users\r\n\r\n",
            "GET http://users/ HTTP/1.1\r\nHost: users\r\nHost: other\r\n\r\n",
            "CONNECT users:80 HTTP/1.1\r\nHost: users:80\r\nHost: other:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users, other\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: us ers\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users/a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users?a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users#a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: me@users\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: us\"ers\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: us\\ers\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: users\u{e9}\r\n\r\n",
            "GET http://us\"ers/ HTTP/1.1\r\nHost: users\r\n\r\n",
        ],
    );
}

/// Issue 10, 17: what stands in `Host` has to be one also where the target names the host that counts.
#[test]
fn hosts_that_are_none_beside_a_target() {
    let (endpoint, seen) = counting();
    let proxy = Proxy::to(&endpoint);
    for host in
        ["a:b", "users:99999", "users:65536", "users:-1", ":80", "[::1", "[::1]x", "::1", "users:80:80", "us%41"]
    {
        for start in ["GET /", "GET http://users/", "GET http://users:80/", "CONNECT users:80", "OPTIONS *"] {
            let mut client = proxy.client();
            client.send(format!("{start} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            let refusal = client.response();
            refusal.assert_refused(400, "router", "http_request_error");
        }
    }
    for target in ["http://users:99999/", "http://users:a/", "http://a:b/", "http://:80/"] {
        let mut client = proxy.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: users\r\n\r\n"));
        client.response().assert_refused(400, "router", "http_request_error");
    }
    let client = Http2Client::connect(proxy.addresses[0]);
    for host in ["a:b", "users:99999"] {
        let request = Request::get("http://users/").header("host", host).body(body(&[], &[])).expect("a request");
        assert_eq!(client.send(request).head.status, 400, "{host}");
    }
    wait_until("nothing is under way", || proxy.in_flight() == 0);
    assert_eq!(seen.load(Ordering::SeqCst), 0, "an endpoint has seen some of it");
}

/// Names that many readers take for those of the proxy's own: `_` is `-` to them.
const LOOKALIKES: [&str; 12] = [
    "content_length",
    "transfer_encoding",
    "keep_alive",
    "proxy_connection",
    "proxy_authorization",
    "x_real_ip",
    "x-real_ip",
    "x_forwarded_for",
    "x_forwarded-host",
    "x_forwarded_proto",
    "x_forwarded_client_cert",
    "x-forwarded-client_cert",
];

/// Issue 10, 12: in heads and trailers of requests and responses, over both versions and between them.
#[test]
fn lookalikes_of_the_proxys_own_names_are_left_out() {
    let lines: String = LOOKALIKES.iter().map(|name| format!("{name}: 7\r\n")).collect();
    let answer: &'static str = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx_own: 1\r\nx_secret: 1\r\nconnection: x-secret\r\n{lines}\r\n\
         2\r\nok\r\n0\r\nx_own: 2\r\n{lines}\r\n"
    )
    .leak();
    let endpoint = Endpoint::saying(answer);
    for forwarded in ["off", "standard", "legacy"] {
        let settings = format!("forwarded = \"{forwarded}\"\ndeadline_header = \"x-time-left\"");
        let proxy = Proxy::with(&[&endpoint], &settings, "");
        let check = |names: Vec<String>, expected: &[&str], what: &str| {
            let odd: Vec<&String> = names.iter().filter(|name| name.contains('_')).collect();
            assert_eq!(odd, expected, "{forwarded}: {what} {names:?}");
        };
        let names = |fields: &[(String, String)]| fields.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();

        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: users\r\nTE: trailers\r\nConnection: TE, x-secret, x_other\r\nx_secret: 1\r\n\
             x-other: 1\r\nx_own: 1\r\nx_time_left: 5\r\nx-time-left: 9000\r\nTransfer-Encoding: chunked\r\n{lines}\r\n\
             2\r\nhi\r\n0\r\nx_own: 2\r\n{lines}\r\n"
        ));
        let answered = client.response();
        let asked = endpoint.last();
        check(names(&asked.headers), &["x_own"], "head of a request");
        assert_eq!((asked.header("x-other"), asked.text().as_str()), (None, "hi"));
        assert!(asked.header("x-time-left").is_some());
        check(names(&asked.trailers), &["x_own"], "trailers of a request");
        check(names(&answered.headers), &["x_own"], "head of a response");
        check(names(&answered.trailers), &["x_own"], "trailers of a response");

        // From HTTP/2.
        let client = Http2Client::connect(proxy.addresses[0]);
        let mut request = Request::post("http://users/");
        for name in LOOKALIKES.iter().chain(&["x_own", "x_time_left"]) {
            request = request.header(*name, "7");
        }
        let trailers: Vec<(&'static str, &'static str)> =
            LOOKALIKES.iter().chain(&["x_own"]).map(|name| (*name, "7")).collect();
        let answered = client.send(request.body(body(&[b"hi"], &trailers)).expect("a request"));
        let asked = endpoint.last();
        let of = |headers: &http::HeaderMap| headers.keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
        check(names(&asked.headers), &["x_own"], "head of a request over HTTP/2");
        check(names(&asked.trailers), &["x_own"], "trailers of a request over HTTP/2");
        check(of(&answered.head.headers), &["x_own"], "head of a response over HTTP/2");
        check(of(&answered.trailers.expect("trailers")), &["x_own"], "trailers of a response over HTTP/2");
    }
}

/// Issue 10, 12: between HTTP/2 and HTTP/2 as well, where nothing writes trailers anew.
#[test]
fn lookalikes_are_left_out_of_trailers_of_http_2() {
    const FORBIDDEN: &[(&str, &str)] =
        &[("x_real_ip", "7"), ("content_length", "7"), ("x-forwarded-client-cert", "7"), ("x_sum", "1")];
    let endpoint = Http2Endpoint::start(Manners { trailers: FORBIDDEN, ..Manners::default() });
    let listener = one_listener("");
    let proxy = Proxy::start(&format!(
        "{listener}[service.users]\nendpoints = [\"{}\"]\nprotocol = \"http2\"\n",
        endpoint.address
    ));
    let client = Http2Client::connect(proxy.addresses[0]);
    let request = Request::post("http://users/").body(body(&[b"hi"], FORBIDDEN)).expect("a request");
    let answered = client.send(request);
    let only = |trailers: Option<http::HeaderMap>| {
        let trailers = trailers.expect("trailers");
        assert_eq!(trailers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x_sum"]);
    };
    only(answered.trailers);
    only(endpoint.requests()[0].trailers.clone());
}

/// Issue 10, 17: who is not on this machine learns no addresses of what is behind the proxy, unless the listener says so.
#[test]
fn addresses_of_endpoints_are_told_where_that_is_allowed() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let service = format!("[service.users]\nendpoints = [\"{gone}\"]\n");
    let outside = "[[listener]]\naddress = \"0.0.0.0:0\"\n";
    let listeners = [
        (one_listener(""), true),
        (one_listener("expose_addresses = false"), false),
        (one_listener("proxy_protocol = [\"10.0.0.0/8\"]"), false),
        (outside.to_owned(), false),
        (format!("{outside}expose_addresses = true\n"), true),
    ];
    let all: String = listeners.iter().map(|(listener, _)| listener.as_str()).collect();
    let proxy = Proxy::start(&format!("{all}{service}"));
    for (number, (listener, shown)) in listeners.iter().enumerate() {
        let port = proxy.addresses[number].port();
        let mut client = http1::Wire::connect(([127, 0, 0, 1], port).into());
        for call in ["", "content-type: application/grpc\r\nte: trailers\r\n"] {
            client.send(format!("GET / HTTP/1.1\r\nHost: users\r\n{call}\r\n"));
            let refusal = client.response();
            let said = format!("{refusal:?} {}", refusal.text());
            assert!(said.contains("connection_refused"), "{said}");
            let address = gone.to_string();
            assert_eq!(said.contains(&address), *shown, "{listener} {said}");
            assert_eq!(said.contains(&gone.port().to_string()), *shown, "{listener} {said}");
        }
    }
}

/// One empty line before a request is forgiven (RFC 9112, 2.2): some clients end a body with one.
#[test]
fn empty_lines_before_a_request() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    let request = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";
    client.send(format!("{request}\r\n{request}"));
    for _ in 0..2 {
        assert_eq!(client.response().text(), "ok");
    }
    assert_eq!(endpoint.requests().len(), 2);
    for lines in ["\r\n\r\n", "\n", "\r\n\n", "\r\r\n"] {
        let mut client = proxy.client();
        client.send(format!("{request}{lines}{request}"));
        assert_eq!(client.response().text(), "ok");
        client.response().assert_refused(400, "router", "http_request_error");
        client.expect_end();
    }
    assert_eq!(endpoint.requests().len(), 6);
}

#[test]
fn a_target_that_names_another_host_counts_alone() {
    let (endpoint, other) = (Endpoint::saying(OK), Endpoint::saying(OK));
    let config = format!(
        "{}{}[service.other]\nendpoints = [\"{}\"]\n",
        one_listener(""),
        users(&[&endpoint], ""),
        other.address
    );
    let proxy = Proxy::start(&config);
    let mut client = proxy.client();
    client.send("GET http://users/a HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    assert_eq!(endpoint.last().header("host").as_deref(), Some("users"));
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn trailers_that_would_change_the_message_are_left_out() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send(post(
        "Transfer-Encoding: chunked\r\n",
        "1\r\nx\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\nHost: other\r\nConnection: close\r\n\
         Authorization: Basic eA==\r\nTrailer: a\r\nTE: gzip\r\nX-Kept: 1\r\n\r\n",
    ));
    assert_eq!(client.response().text(), "ok");
    assert_eq!(endpoint.last().trailers, [("x-kept".to_owned(), "1".to_owned())]);
    assert_eq!(client.get("/").text(), "ok");
}

/// The body of a request that is refused, or answered before it has come, holds what looks like a request.
#[test]
fn a_body_that_nobody_reads_is_never_the_next_request() {
    let smuggled_in: Arc<AtomicUsize> = Arc::default();
    let counter = smuggled_in.clone();
    // What comes after the head is its body, of which it reads nothing before it answers.
    let endpoint = Endpoint::start(move |_, mut wire| {
        let Some(head) = wire.head() else { return };
        counter.fetch_add(usize::from(!head.start.starts_with("POST")), Ordering::SeqCst);
        wire.send("HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno");
        while wire.exactly(1).is_ok() {}
    });
    let config = format!("{}{}[service.empty]\n{SECOND_HAND}", one_listener(""), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: users\r\n\r\n";
    for (host, status) in [("users", 403), ("empty", 503), ("unknown", 404)] {
        for (framing, body) in [
            (format!("Content-Length: {}", smuggled.len()), smuggled.to_owned()),
            ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len())),
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n");
            // All at once: what is left of the body is here, and can be passed over.
            let mut client = proxy.client();
            client.send(format!("{head}{body}GET / HTTP/1.1\r\nHost: unknown\r\n\r\n"));
            assert_eq!(client.response().status(), status);
            match client.try_response() {
                Ok(next) => next.assert_refused(404, "router", "destination_not_found"),
                Err(error) => assert!(error.contains("ended without a response"), "{error}"),
            }
            // In parts: the rest comes when the response is there already.
            let mut client = proxy.client();
            let (first, rest) = body.split_at(5);
            client.send(format!("{head}{first}"));
            let response = client.response();
            assert_eq!(response.status(), status);
            let _ = client.try_send(rest);
            let _ = client.try_send(smuggled);
            client.expect_end();
        }
    }
    assert_eq!(smuggled_in.load(Ordering::SeqCst), 0);
}

#[test]
fn a_connection_goes_on_after_a_body_that_was_passed_over() {
    let proxy = Proxy::start(&format!("{}[service.empty]\n", one_listener("")));
    let mut client = proxy.client();
    for framing in
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n"]
    {
        for _ in 0..2 {
            client.send(format!("POST / HTTP/1.1\r\nHost: empty\r\n{framing}"));
            let refusal = client.response();
            refusal.assert_refused(503, "registry", "destination_unavailable");
            assert_eq!(refusal.header("connection"), None);
        }
    }
}

#[test]
fn bodies_have_a_limit() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "max_body_bytes = 10", "");
    let mut client = proxy.client();
    client.send(post("Content-Length: 10\r\n", "0123456789"));
    assert_eq!(client.response().text(), "ok");
    client.send(post("Transfer-Encoding: chunked\r\n", "a\r\n0123456789\r\n0\r\n\r\n"));
    assert_eq!(client.response().text(), "ok");
    assert_eq!(endpoint.requests().len(), 2);
    client.send(post("Content-Length: 11\r\n", ""));
    client.response().assert_refused(413, "router", "http_request_error");
    client.expect_end();
    let mut client = proxy.client();
    client.send(post("Expect: 100-continue\r\nContent-Length: 11\r\n", ""));
    client.response().assert_refused(413, "router", "http_request_error");
    client.expect_end();
    let mut client = proxy.client();
    client.send(post("Content-Length: 11\r\n", "01234567890"));
    client.response().assert_refused(413, "router", "http_request_error");
    assert_eq!(client.get("/").text(), "ok", "all of it was here and passed over");
    let mut client = proxy.client();
    client.send(post("Transfer-Encoding: chunked\r\n", "6\r\n012345\r\n"));
    client.send("6\r\n012345\r\n");
    client.response().assert_refused(413, "upstream", "http_request_error");
    client.expect_end();
    assert_eq!(endpoint.requests().len(), 3);

    let client = Http2Client::connect(proxy.addresses[0]);
    let put = |pieces: &[&[u8]]| {
        let request = Request::put("http://users/").body(body(pieces, &[("x", "y")])).expect("a request");
        client.send(request).head.status.as_u16()
    };
    assert_eq!(put(&[b"01234", b"56789"]), 200);
    assert_eq!(put(&[b"01234", b"56789", b"0"]), 413);
    assert_eq!(endpoint.requests().len(), 4);
}

#[test]
fn a_body_that_stands_still_is_given_up() {
    let (told, ended) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        let head = wire.head().expect("a head");
        told.send(wire.with_body(head, false).is_err()).unwrap();
    });
    let proxy = Proxy::with(&[&endpoint], "body_timeout = \"200ms\"", "request_timeout = \"1m\"");
    for head in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: users\r\n{head}"));
        let refusal = client.response();
        refusal.assert_refused(408, "upstream", "http_request_error");
        assert_eq!(refusal.header("connection").as_deref(), Some("close"));
        client.expect_end();
        assert!(ended.recv_timeout(DEADLINE).expect("the endpoint sees the end"));
    }
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn a_client_whose_head_never_ends_is_told_so() {
    let (endpoint, seen) = counting();
    let proxy = Proxy::with(&[&endpoint], "header_timeout = \"200ms\"", "");
    for start in ["GET / HT", "GET / HTTP/1.1\r\nHost: users\r\nX: ", "\r\n\r"] {
        let mut client = proxy.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: unknown\r\n\r\n{start}"));
        assert_eq!(client.response().status(), 404);
        let refusal = client.response();
        refusal.assert_refused(if start.starts_with('\r') { 400 } else { 408 }, "router", "http_request_error");
        assert_eq!(refusal.header("connection").as_deref(), Some("close"));
        client.expect_end();
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[test]
fn heads_have_limits_of_the_listeners_own() {
    let endpoint = Endpoint::saying(OK);
    let listener = "max_headers = 5\nmax_header_bytes = \"1KiB\"\nmax_uri_bytes = 100";
    let proxy = Proxy::with(&[&endpoint], listener, "");
    let ask = |target: &str, headers: &str| {
        let mut client = proxy.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: users\r\n{headers}\r\n"));
        let response = client.response();
        if response.status() != 200 {
            response.assert_refused(response.status(), "router", "http_request_error");
            client.expect_end();
        }
        response.status()
    };
    let (short, long) = (format!("/{}", "a".repeat(99)), format!("/{}", "a".repeat(100)));
    assert_eq!(ask(&short, &"x: y\r\n".repeat(4)), 200);
    assert_eq!(ask(&long, ""), 414);
    assert_eq!(ask("/", &"x: y\r\n".repeat(5)), 431);
    assert_eq!(ask("/", &format!("x: {}\r\n", "y".repeat(1024))), 431);
    // Also where the end of it never comes.
    for (start, status) in [
        (format!("GET {long}"), 414),
        (format!("GET / HTTP/1.1\r\nHost: users\r\nx: {}", "y".repeat(1024)), 431),
        ("GET / HTTP/1.1\r\nHost: users\r\n".to_owned() + &"x: y\r\n".repeat(6), 431),
    ] {
        let mut client = proxy.client();
        client.send(start);
        client.response().assert_refused(status, "router", "http_request_error");
        client.expect_end();
    }
    assert_eq!(endpoint.requests().len(), 1);

    let client = Http2Client::connect(proxy.addresses[0]);
    let ask = |target: &str, headers: usize| {
        let mut request = Request::get(format!("http://users{target}"));
        for number in 0..headers {
            request = request.header(format!("x-{number}"), "y");
        }
        client.send(request.body(body(&[], &[])).expect("a request")).head.status.as_u16()
    };
    assert_eq!((ask(&short, 5), ask(&long, 0), ask("/", 6)), (200, 414, 431));
    assert_eq!(endpoint.requests().len(), 2);
}

/// A head that comes byte by byte is the same head.
#[test]
fn heads_and_bodies_may_come_in_any_parts() {
    let endpoint = Endpoint::answering(|request| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", request.body.len(), request.text())
    });
    let proxy = Proxy::to(&endpoint);
    let wire = post("Transfer-Encoding: chunked\r\nX-A: b\r\n", "3;x=\"y\"\r\nabc\r\n2\r\nde\r\n0\r\nX-T: u\r\n\r\n")
        .repeat(2);
    for step in [1, 2, 7, 50] {
        let mut client = proxy.client();
        for part in wire.as_bytes().chunks(step) {
            client.send(part);
        }
        for _ in 0..2 {
            assert_eq!(client.response().text(), "abcde", "in parts of {step}");
        }
        let seen = endpoint.last();
        assert_eq!((seen.header("x-a").as_deref(), seen.trailers.len()), (Some("b"), 1));
    }
    assert_eq!(endpoint.requests().len(), 8);
}

/// Requests that are sent ahead wait in the client's own buffers, all but a few KiB.
#[test]
fn what_is_sent_ahead_is_bounded() {
    let (open, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let endpoint = Endpoint::answering(move |_| {
        gate.lock().unwrap().recv_timeout(DEADLINE).expect("told to go on");
        OK
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    let request =
        format!("GET / HTTP/1.1\r\nHost: users\r\nX: {}\r\n\r\n", String::from_utf8(vec![b'x'; 1 << 10]).unwrap());
    let many = request.repeat(32 << 10);
    client.send(&request);
    wait_until("the request is under way", || proxy.in_flight() == 1);
    let taken = client.send_until_blocked(many.as_bytes());
    assert!(taken < 24 << 20, "{taken} bytes were taken while one request was served");
    let answers = 1 + taken / request.len();
    for _ in 0..answers.min(100) {
        open.send(()).unwrap();
        assert_eq!(client.response().text(), "ok");
    }
    drop(open);
}

#[test]
fn a_body_that_comes_after_the_answer_ends_the_connection() {
    let endpoint = Endpoint::start(|_, mut wire| {
        wire.head();
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        while wire.exactly(1).is_ok() {}
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    let body = bytes(1 << 20);
    client.send(format!("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: {}\r\n\r\n", body.len()));
    // Without a byte of it the request would wait.
    client.send(&body[..1]);
    assert_eq!(client.response().text(), "ok");
    let _ = client.try_send(&body[1..]);
    client.expect_end();
}
