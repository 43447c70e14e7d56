use http::Request;
use proptest::prelude::*;

use super::*;

fn response(text: &str, method: Method) -> Result<Option<Head>, Malformed> {
    decode_response(&mut Bytes::copy_from_slice(text.as_bytes()), &method)
}

fn framing(headers: &str) -> Result<(Framing, bool), Malformed> {
    let head = response(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n"), Method::GET)?.expect("a whole head");
    Ok((head.framing, head.keep_alive))
}

fn encoded(request: http::request::Builder, body: Option<Framing>) -> String {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let mut out = Vec::new();
    encode_request(&parts, "address:80", body, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_request_head_names_its_host_once_and_frames_its_body_anew() {
    let request = Request::get("http://authority:80/a?b").header("host", "other").header("x-a", "1");
    assert_eq!(encoded(request, None), "GET /a?b HTTP/1.1\r\nhost: authority:80\r\nx-a: 1\r\n\r\n");
    let request = Request::post("/a").header("host", "kept").header("content-length", "9");
    assert_eq!(
        encoded(request, Some(Framing::Length(5))),
        "POST /a HTTP/1.1\r\nhost: kept\r\ncontent-length: 5\r\n\r\n"
    );
    let request = Request::put("http://authority:80?q").header("transfer-encoding", "gzip");
    assert_eq!(
        encoded(request, Some(Framing::Chunked)),
        "PUT /?q HTTP/1.1\r\nhost: authority:80\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    assert_eq!(encoded(Request::get("/"), None), "GET / HTTP/1.1\r\nhost: address:80\r\n\r\n");
    assert!(encoded(Request::post("/"), None).contains("\r\ncontent-length: 0\r\n"));
    assert!(encoded(Request::options("*"), None).starts_with("OPTIONS * HTTP/1.1\r\n"));
}

#[test]
fn a_response_head_is_taken_off_the_front() {
    let mut buffer = Bytes::from_static(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b c \r\n\r\nhi");
    let head = decode_response(&mut buffer, &Method::GET).unwrap().unwrap();
    assert_eq!((head.status, &head.headers["x-a"]), (StatusCode::OK, &HeaderValue::from_static("b c")));
    assert_eq!(&buffer[..], b"hi");
    assert!(response("HTTP/1.1 200 OK\r\nContent-", Method::GET).unwrap().is_none());
}

#[test]
fn the_end_of_a_body_is_read_as_rfc_9112_says() {
    assert_eq!(framing("content-length: 5\r\n"), Ok((Framing::Length(5), true)));
    assert_eq!(framing("content-length: 5\r\ncontent-length: 5\r\n"), Ok((Framing::Length(5), true)));
    assert_eq!(framing("content-length: 5, 5\r\n"), Ok((Framing::Length(5), true)));
    assert_eq!(framing("content-length: 5\r\nconnection: Close\r\n"), Ok((Framing::Length(5), false)));
    assert_eq!(framing("transfer-encoding: Chunked\r\n"), Ok((Framing::Chunked, true)));
    assert_eq!(framing("transfer-encoding: chunked\r\ncontent-length: 5\r\n"), Ok((Framing::Chunked, false)));
    assert_eq!(framing(""), Ok((Framing::UntilClose, false)));
    let head = response("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Method::HEAD).unwrap().unwrap();
    assert_eq!(head.framing, Framing::Length(0));
    let head = response("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Method::GET).unwrap().unwrap();
    assert_eq!(head.framing, Framing::Length(0));
    let head = response("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n", Method::GET);
    assert!(head.unwrap().unwrap().keep_alive);
    let head = response("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", Method::GET).unwrap().unwrap();
    assert!(!head.keep_alive);
}

#[test]
fn what_is_ambiguous_is_refused() {
    assert_eq!(framing("content-length: 5\r\ncontent-length: 6\r\n"), Err(Malformed::ContentLength));
    assert_eq!(framing("content-length: +5\r\n"), Err(Malformed::ContentLength));
    assert_eq!(framing("content-length: \r\n"), Err(Malformed::ContentLength));
    assert_eq!(framing("content-length: 99999999999999999999\r\n"), Err(Malformed::ContentLength));
    assert_eq!(framing("transfer-encoding: gzip, chunked\r\n"), Err(Malformed::TransferEncoding));
    assert_eq!(framing("transfer-encoding: identity\r\n"), Err(Malformed::TransferEncoding));
    assert_eq!(
        response("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Method::GET).unwrap_err(),
        Malformed::TransferEncoding
    );
    assert_eq!(response("SSH-2.0-OpenSSH\r\n\r\n", Method::GET).unwrap_err(), Malformed::Head);
    let many = "x: y\r\n".repeat(MAX_HEADERS + 1);
    assert_eq!(response(&format!("HTTP/1.1 200 OK\r\n{many}\r\n"), Method::GET).unwrap_err(), Malformed::HeadTooLarge);
    let long = "y".repeat(MAX_HEAD);
    assert_eq!(response(&format!("HTTP/1.1 200 OK\r\nx: {long}"), Method::GET).unwrap_err(), Malformed::HeadTooLarge);
}

/// Feeds the body in parts of `step` bytes; data, trailers, and what was left over.
fn decode_body(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), Malformed> {
    let (mut decoder, mut data, mut trailers) = (BodyDecoder::new(framing), Vec::new(), None);
    let mut buffer = Bytes::new();
    let mut parts = wire.chunks(step.max(1));
    loop {
        match decoder.decode(&mut buffer)? {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::Trailers(map) => trailers = Some(map),
            Piece::End => return Ok((data, trailers, buffer.len() + parts.map(<[u8]>::len).sum::<usize>())),
            Piece::More => match parts.next() {
                Some(part) => buffer = [&buffer[..], part].concat().into(),
                None => return decoder.at_end_of_stream().map(|()| (data, trailers, 0)).map_err(|()| Malformed::Chunk),
            },
        }
    }
}

#[test]
fn chunks_are_read_with_extensions_and_trailers() {
    let wire = b"4;name=\"v\"\r\nwiki\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 7\r\nContent-Length: 1\r\n\r\nHTTP";
    for step in [1, 2, 3, 7, wire.len()] {
        let (data, trailers, left) = decode_body(Framing::Chunked, wire, step).unwrap();
        assert_eq!(data, b"wiki0123456789");
        let trailers = trailers.unwrap();
        assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("7")));
        assert_eq!(left, 4);
    }
}

#[test]
fn bad_chunks_are_refused() {
    for wire in [
        &b"x\r\n"[..],
        b"\r\n",
        b"-1\r\n",
        b"4\n",
        b"4 x\r\nwiki\r\n",
        b"4\r\nwikixx",
        b"4\r\r\nwiki",
        b"11111111111111111\r\n",
        &[b'1'; 300],
    ] {
        assert!(decode_body(Framing::Chunked, wire, 3).is_err(), "{wire:?}");
    }
}

#[test]
fn a_body_that_ends_early_is_an_error_unless_the_connection_delimits_it() {
    assert!(decode_body(Framing::Length(5), b"hi", 1).is_err());
    assert!(decode_body(Framing::Chunked, b"5\r\nhi", 1).is_err());
    assert_eq!(decode_body(Framing::UntilClose, b"hi", 1).unwrap().0, b"hi");
}

proptest! {
    /// What is encoded is decoded to the same, however the bytes are cut.
    #[test]
    fn chunks_survive_the_wire(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8), step in 1_usize..50) {
        let mut wire = Vec::new();
        for piece in &pieces {
            encode_chunk_size(piece.len(), &mut wire);
            wire.extend_from_slice(piece);
            wire.extend_from_slice(b"\r\n");
        }
        encode_last_chunk(None, &mut wire);
        let (data, _, left) = decode_body(Framing::Chunked, &wire, step).unwrap();
        prop_assert_eq!(data, pieces.concat());
        prop_assert_eq!(left, 0);
    }

    /// No bytes make a decoder panic or loop.
    #[test]
    fn arbitrary_bytes_are_read_or_refused(wire in prop::collection::vec(any::<u8>(), 0..200), step in 1_usize..20) {
        let _ = decode_response(&mut Bytes::copy_from_slice(&wire), &Method::GET);
        for framing in [Framing::Chunked, Framing::Length(50), Framing::UntilClose] {
            let _ = decode_body(framing, &wire, step);
        }
    }
}
