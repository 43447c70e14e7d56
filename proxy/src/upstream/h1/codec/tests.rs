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

proptest! {
    /// No bytes make the decoder panic.
    #[test]
    fn arbitrary_bytes_are_read_or_refused(wire in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_response(&mut Bytes::copy_from_slice(&wire), &Method::GET);
    }
}
