use http::header::TE;
use proptest::prelude::*;

use super::*;
use crate::proto::h1::{BodyDecoder, Piece};

const LIMITS: Limits = Limits { headers: 100, bytes: 64 << 10, target: 16 << 10 };

fn read(text: &str) -> Head {
    decode_request(text.as_bytes(), LIMITS).unwrap().expect("a whole head")
}

/// The status that it is refused with.
fn refused(text: &str) -> u16 {
    match decode_request(text.as_bytes(), LIMITS) {
        Err(refusal) => refusal.status().as_u16(),
        Ok(head) => panic!("{text:?} was taken: {head:?}"),
    }
}

fn with(headers: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: users\r\n{headers}\r\n")
}

#[test]
fn a_head_is_read_up_to_its_empty_line() {
    let text = "PUT /a?b HTTP/1.1\r\nHost: users\r\nX-A:  b c \r\nx-a:\r\nContent-Length: 5\r\n\r\nhello";
    let head = read(text);
    assert_eq!((&head.parts.method, head.parts.uri.to_string().as_str()), (&Method::PUT, "/a?b"));
    let values: Vec<_> = head.parts.headers.get_all("x-a").iter().collect();
    assert_eq!(values, ["b c", ""]);
    assert_eq!((head.framing, &text.as_bytes()[head.length..]), (Framing::Length(5), &b"hello"[..]));
    for end in 0..head.length {
        assert!(decode_request(&text.as_bytes()[..end], LIMITS).unwrap().is_none(), "{end} bytes of it");
    }
    assert_eq!(read(&format!("\r\n{text}")).length, head.length + 2);
}

#[test]
fn targets_have_the_form_of_their_method() {
    for line in [
        "GET / HTTP/1.1",
        "GET //a HTTP/1.1",
        "GET http://users HTTP/1.1",
        "GET http://users?q HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT users:80 HTTP/1.1",
        "CONNECT [::1]:80 HTTP/1.1",
    ] {
        read(&format!("{line}\r\nHost: users\r\n\r\n"));
    }
    for line in [
        "GET users:80 HTTP/1.1",
        "GET * HTTP/1.1",
        "GET a/b HTTP/1.1",
        "GET ?q HTTP/1.1",
        "GET /#f HTTP/1.1",
        "OPTIONS *a HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT users HTTP/1.1",
        "CONNECT http://users:80/ HTTP/1.1",
    ] {
        assert_eq!(refused(&format!("{line}\r\nHost: users\r\n\r\n")), 400, "{line}");
    }
}

#[test]
fn a_connection_is_kept_as_the_client_asks() {
    for (head, keeps) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false),
    ] {
        assert_eq!(read(head).asks.keep_alive, keeps, "{head:?}");
    }
}

#[test]
fn only_a_client_that_has_a_body_to_send_waits_for_a_word() {
    let waits = |headers: &str| read(&with(headers)).asks.to_continue;
    assert!(waits("Expect: 100-Continue\r\nContent-Length: 1\r\n"));
    assert!(waits("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"));
    assert!(!waits("Expect: 100-continue\r\n"));
    assert!(!waits("Expect: something\r\nContent-Length: 1\r\n"));
    let old = "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    assert!(!read(old).asks.to_continue);
}

#[test]
fn limits_hold_for_what_has_arrived_too() {
    let limits = Limits { headers: 3, bytes: 200, target: 50 };
    let status =
        |text: &str| decode_request(text.as_bytes(), limits).map(|head| head.is_some()).map_err(|e| e.status());
    let long = "x".repeat(60);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nb: c\r\nd: e\r\n\r\n"), Ok(true));
    assert_eq!(
        status("GET / HTTP/1.1\r\nHost: a\r\nb: c\r\nd: e\r\nf: g\r\n\r\n"),
        Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    );
    assert_eq!(status(&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")), Err(StatusCode::URI_TOO_LONG));
    assert_eq!(status(&format!("GET /{long}")), Err(StatusCode::URI_TOO_LONG));
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\nx: {long}")), Ok(false));
    assert_eq!(
        status(&format!("GET / HTTP/1.1\r\nHost: a\r\nx: {long}{long}{long}")),
        Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    );
    let many = Limits { headers: 500, bytes: 64 << 10, target: 50 };
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "b: c\r\n".repeat(499));
    assert_eq!(decode_request(text.as_bytes(), many).unwrap().expect("a head").parts.headers.len(), 500);
}

#[test]
fn another_version_is_told_from_garbage() {
    for (version, status) in [
        ("HTTP/2.0", 505),
        ("HTTP/3.0", 505),
        ("HTTP/1.2", 505),
        ("HTTP/0.9", 505),
        ("HTTP/1.10", 400),
        ("http/1.1", 400),
    ] {
        assert_eq!(refused(&format!("GET / {version}\r\nHost: users\r\n\r\n")), status, "{version}");
    }
    assert_eq!(refused("GET /\r\n\r\n"), 400);
    assert_eq!(refused("GET / b HTTP/3.0\r\n\r\n"), 400);
}

fn form(status: u16, length: Option<u64>, asks: Asks) -> Form {
    response_form(StatusCode::from_u16(status).unwrap(), length, asks, true)
}

#[test]
fn responses_are_framed_as_rfc_9112_says() {
    let any = Asks { keep_alive: true, ..Asks::NOTHING_MORE };
    let head = Asks { method: Asked::Head, ..any };
    let old = Asks { version: Version::HTTP_10, ..any };
    let length = |length| (Says::Framing(Framing::Length(length)), Some(Framing::Length(length)), After::Open);
    for (form, expected) in [
        (form(200, Some(5), any), length(5)),
        (form(200, Some(0), any), length(0)),
        (form(200, None, any), (Says::Framing(Framing::Chunked), Some(Framing::Chunked), After::Open)),
        (form(200, None, old), (Says::Framing(Framing::UntilClose), Some(Framing::UntilClose), After::Closed)),
        (form(200, Some(5), old), length(5)),
        (form(200, Some(5), head), (Says::Framing(Framing::Length(5)), None, After::Open)),
        (form(200, Some(0), head), (Says::AsGiven, None, After::Open)),
        (form(304, Some(0), any), (Says::AsGiven, None, After::Open)),
        (form(204, Some(0), any), (Says::Nothing, None, After::Open)),
        (form(101, Some(0), any), (Says::Nothing, None, After::Changed)),
        (form(200, Some(0), Asks { method: Asked::Connect, ..any }), (Says::Nothing, None, After::Changed)),
        (form(501, Some(5), Asks { method: Asked::Connect, ..any }), (length(5).0, length(5).1, After::Closed)),
        (form(204, None, Asks::NOTHING_MORE), (Says::Nothing, None, After::Closed)),
    ] {
        assert_eq!((form.says, form.body, form.after), expected);
    }
}

fn encoded(response: response::Builder, form: Form, version: Version) -> String {
    let (parts, ()) = response.body(()).unwrap().into_parts();
    let mut out = Vec::new();
    encode_response(&parts, form, version, b"<now>", &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_response_says_how_it_ends_and_what_follows() {
    let any = Asks { keep_alive: true, ..Asks::NOTHING_MORE };
    let response = || http::Response::builder().header("X-A", "1").header("content-length", "9");
    assert_eq!(
        encoded(
            response().header("connection", "x").header("transfer-encoding", "gzip"),
            form(200, Some(5), any),
            any.version
        ),
        "HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 5\r\ndate: <now>\r\n\r\n"
    );
    assert_eq!(
        encoded(response().header("date", "then"), form(200, None, Asks::NOTHING_MORE), any.version),
        "HTTP/1.1 200 OK\r\nx-a: 1\r\ndate: then\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let head = Asks { method: Asked::Head, version: Version::HTTP_10, ..any };
    assert_eq!(
        encoded(response(), form(200, Some(0), head), Version::HTTP_10),
        "HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 9\r\ndate: <now>\r\nconnection: keep-alive\r\n\r\n"
    );
    let upgrade = http::Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
    assert_eq!(
        encoded(upgrade, form(101, Some(0), any), any.version),
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\ndate: <now>\r\n\r\n"
    );
}

/// Requests that are well formed, and some that are nearly so.
fn requests() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("GET / HTTP/1.1"),
        Just("POST /a?b=c HTTP/1.1"),
        Just("GET http://users/x HTTP/1.1"),
        Just("CONNECT users:443 HTTP/1.1"),
        Just("OPTIONS * HTTP/1.1"),
        Just("HEAD / HTTP/1.0"),
        Just("GET /  HTTP/1.1"),
        Just("GET / HTTP/1.3"),
    ];
    let header = prop_oneof![
        4 => "[a-zA-Z-]{1,12}: {0,2}[ -~]{0,20}",
        1 => "(content-length|transfer-encoding|connection|host|expect|te): [a-z0-9,]{0,9}",
        1 => Just("Content-Length: 5".to_owned()),
        1 => Just("Transfer-Encoding: chunked".to_owned()),
        1 => "[ -~\\t\r]{0,8}",
    ];
    let end = prop_oneof![20 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
    (line, prop::collection::vec((header, end), 0..8)).prop_map(|(line, headers)| {
        let headers: String = headers.into_iter().map(|(header, end)| header + end).collect();
        format!("{line}\r\nHost: users\r\n{headers}\r\nrest of it")
    })
}

/// What matters of a head.
fn seen(head: &Head) -> (String, String, HeaderMap, Framing, Asks) {
    let Parts { method, uri, headers, .. } = &head.parts;
    (method.to_string(), uri.to_string(), headers.clone(), head.framing, head.asks)
}

fn is_whole_or_refused(text: &[u8]) -> Option<Result<usize, u16>> {
    match decode_request(text, LIMITS) {
        Ok(None) => None,
        Ok(Some(head)) => Some(Ok(head.length)),
        Err(refusal) => Some(Err(refusal.status().as_u16())),
    }
}

proptest! {
    /// However the input is cut into reads: a part of a head that is taken is incomplete, never refused and never
    /// whole, and what is refused in part is not taken as a whole.
    #[test]
    fn a_part_is_never_read_differently_from_the_whole(text in requests()) {
        let whole = is_whole_or_refused(text.as_bytes());
        for end in 0..text.len() {
            match (is_whole_or_refused(&text.as_bytes()[..end]), whole) {
                (None, _) => {}
                (Some(Ok(length)), whole) => prop_assert_eq!(Some(Ok(length)), whole),
                (Some(Err(_)), whole) => prop_assert!(matches!(whole, Some(Err(_))), "{end} bytes of it"),
            }
        }
    }

    /// No bytes make a decoder panic.
    #[test]
    fn arbitrary_bytes_are_read_or_refused(
        start in prop_oneof![Just(""), Just("GET / HTTP/1.1\r\n"), Just("GET / HTTP/1.1\r\nHost: a\r\n")],
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = decode_request(&[start.as_bytes(), &bytes].concat(), LIMITS);
    }

    /// What is taken is written to an endpoint in a form that this very parser reads as the same request. What belongs to
    /// one connection is left out or said anew.
    #[test]
    fn what_is_taken_is_written_so_that_it_is_read_equally(text in requests()) {
        let Ok(Some(head)) = decode_request(text.as_bytes(), LIMITS) else { return Ok(()) };
        prop_assume!(head.asks.method != Asked::Connect);
        let body = Some(head.framing).filter(|framing| *framing != Framing::Length(0));
        let mut written = Vec::new();
        crate::upstream::h1::encode_request(&head.parts, "address:80", body, &mut written);
        let again = decode_request(&written, LIMITS).expect("well formed").expect("whole");
        prop_assert_eq!(again.length, written.len());
        let (before, after) = (seen(&head), seen(&again));
        prop_assert_eq!((&before.0, before.3), (&after.0, after.3));
        let path = |uri: &Uri| uri.path_and_query().map(ToString::to_string);
        prop_assert_eq!(path(&head.parts.uri), path(&again.parts.uri));
        for name in before.2.keys().filter(|name| ![&HOST, &CONTENT_LENGTH, &TRANSFER_ENCODING, &TE].contains(name)) {
            let values = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
            prop_assert_eq!(values(&before.2), values(&after.2));
        }
    }

    /// A chunked body ends at the same place however it is cut, and is refused however it is cut.
    #[test]
    fn bodies_are_read_the_same_however_they_are_cut(
        lines in prop::collection::vec("(3\r\nabc\r\n|1;a=b\r\nx\r\n|2 \r\nab\r\n|0\r\n\r\n|2\nab\r\n|0\r\na: b\r\n\r\n)", 1..6),
        step in 1_usize..9,
    ) {
        let wire = lines.concat();
        let read = |step: usize| {
            let (mut decoder, mut buffer, mut data) = (BodyDecoder::new(Framing::Chunked), Bytes::new(), Vec::new());
            let mut parts = wire.as_bytes().chunks(step);
            loop {
                match decoder.decode(&mut buffer, &mut bytes::BytesMut::new()) {
                    Ok(Piece::Data(piece)) => data.extend_from_slice(&piece),
                    Ok(Piece::Trailers(_) | Piece::End) => break Ok((data, buffer.len() + parts.map(<[u8]>::len).sum::<usize>())),
                    Err(malformed) => break Err(malformed),
                    Ok(Piece::More) => match parts.next() {
                        Some(part) => buffer = [&buffer[..], part].concat().into(),
                        None => break Ok((data, usize::MAX)),
                    },
                }
            }
        };
        prop_assert_eq!(read(step), read(wire.len()));
    }
}
