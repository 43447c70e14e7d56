//! HTTP/1 heads as bytes (RFC 9112): requests in, responses out. Pure functions over buffers.
//!
//! A request that two readers could understand differently is refused, also where a standard would have it repaired:
//! whoever means well sends none, and what is refused here cannot be read differently behind us. That is stricter than
//! the parser underneath, which takes a bare LF for the end of a line and leaves what headers say to us.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, response};

use crate::proto::h1::Framing;
use crate::proto::h1::head::{all_lines_end_in_crlf, encode_content_length, encode_line, has_option, number};
use crate::proto::headers::takes_trailers;
use crate::server::refusal::Refusal;

/// What a listener takes of one request's head.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub headers: usize,
    /// Of the whole head.
    pub bytes: usize,
    /// Of the target.
    pub target: usize,
}

/// A request's head, and what it says about what follows.
#[derive(Debug)]
pub struct Head {
    pub parts: Parts,
    /// Of the body; a length of 0 where there is none.
    pub framing: Framing,
    /// How much of the buffer it was.
    pub length: usize,
    pub asks: Asks,
}

/// What the client asks of the connection and of the response's framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asks {
    pub method: Asked,
    pub version: Version,
    /// Whether the client may send another request after this one.
    pub keep_alive: bool,
    /// Whether it waits for a word before it sends the body.
    pub to_continue: bool,
    pub trailers: bool,
}

impl Asks {
    /// Of a client that has sent what is no request.
    pub const NOTHING_MORE: Self =
        Self { method: Asked::Any, version: Version::HTTP_11, keep_alive: false, to_continue: false, trailers: false };
}

/// The methods whose responses are framed differently (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Head,
    Connect,
    Any,
}

/// Lines that are looked for without an allocation; a listener may allow more.
const LINES: usize = 128;

/// Reads a request head at the front of `buffer`; none while it is incomplete. What it holds is a copy of its own, since
/// a request may last for long and the buffer is a piece of a large one.
///
/// # Errors
///
/// Why it is refused. What follows it can then not be told from its body.
pub fn decode_request(buffer: &[u8], limits: Limits) -> Result<Option<Head>, Refusal> {
    if limits.headers <= LINES {
        let mut lines = [const { MaybeUninit::uninit() }; LINES];
        return decode(buffer, limits, lines.get_mut(..limits.headers).unwrap_or_default());
    }
    let mut lines = Vec::new();
    lines.resize_with(limits.headers, MaybeUninit::uninit);
    decode(buffer, limits, &mut lines)
}

fn decode<'b>(
    buffer: &'b [u8],
    limits: Limits,
    lines: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<Head>, Refusal> {
    // The parser would skip any number of empty lines; RFC 9112, 2.2, asks for one to be.
    let start = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
    let message = buffer.get(start..).unwrap_or_default();
    if message.first().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
        return Err(Refusal::BadRequest("empty lines before a request"));
    }
    let mut request = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, message, lines);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return is_within(message, limits).map(|()| None),
        Err(httparse::Error::TooManyHeaders) => {
            is_within(message, limits)?;
            return Err(Refusal::HeadTooLarge);
        }
        Err(error) => return Err(why_refused(message, error)),
    };
    let section = message.get(..length).unwrap_or_default();
    is_within(section, limits)?;
    if !all_lines_end_in_crlf(section, request.headers) {
        return Err(Refusal::BadRequest("a line that does not end in CRLF"));
    }
    let own = Bytes::copy_from_slice(section);
    let version = if request.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Refusal::BadRequest("a method that is no token"))?;
    let uri = read_target(same_bytes(&own, section, target.as_bytes()), &method)?;
    // Some room for what is added on the way.
    let mut headers = HeaderMap::with_capacity(request.headers.len() + 2);
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let name = name.map_err(|_| Refusal::BadRequest("a header name that is no token"))?;
        let value = HeaderValue::from_maybe_shared(same_bytes(&own, section, line.value));
        headers.append(name, value.map_err(|_| Refusal::BadRequest("a control character in a header's value"))?);
    }
    check_host(&headers, version, &method)?;
    let framing = request_framing(&headers, version, &method)?;
    let asks = Asks {
        method: match method {
            Method::HEAD => Asked::Head,
            Method::CONNECT => Asked::Connect,
            _ => Asked::Any,
        },
        version,
        keep_alive: wants_keep_alive(&headers, version),
        // HTTP/1.0 knows no interim responses (RFC 9110, 10.1.1).
        to_continue: version == Version::HTTP_11 && framing != Framing::Length(0) && expects_continue(&headers),
        trailers: takes_trailers(&headers),
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, headers);
    Ok(Some(Head { parts, framing, length: start + length, asks }))
}

/// The part of `own`, a copy of `section`, that is where `part` is in that.
fn same_bytes(own: &Bytes, section: &[u8], part: &[u8]) -> Bytes {
    let start = part.as_ptr().addr().wrapping_sub(section.as_ptr().addr());
    match start.checked_add(part.len()) {
        // An empty part may be anywhere.
        Some(end) if !part.is_empty() && end <= own.len() => own.slice(start..end),
        _ => Bytes::new(),
    }
}

/// Whether a head, or what has arrived of it, is not too large.
fn is_within(head: &[u8], limits: Limits) -> Result<(), Refusal> {
    if head.len() > limits.target {
        let mut words = head.split(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
        // As much is allowed for the method: it is part of the same line.
        if words.by_ref().take(2).any(|word| word.len() > limits.target) {
            return Err(Refusal::TargetTooLong);
        }
    }
    if head.len() > limits.bytes { Err(Refusal::HeadTooLarge) } else { Ok(()) }
}

/// What the parser's error means.
fn why_refused(message: &[u8], error: httparse::Error) -> Refusal {
    Refusal::BadRequest(match error {
        httparse::Error::Version if has_another_version(message) => return Refusal::Version,
        httparse::Error::HeaderName => "a header name that is no token",
        httparse::Error::HeaderValue => "a control character in a header's value, or a line that was folded",
        httparse::Error::NewLine => "a line that does not end in CRLF",
        _ => "a request line that is not HTTP/1",
    })
}

/// Whether the first line is well formed and ends in a version of HTTP that is not spoken here.
fn has_another_version(message: &[u8]) -> bool {
    let line = message.split(|byte| *byte == b'\n').next().and_then(|line| line.strip_suffix(b"\r"));
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(_), Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None) => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

/// The target in the form that the method asks for (RFC 9112, 3.2).
fn read_target(target: Bytes, method: &Method) -> Result<Uri, Refusal> {
    let first = target.first().copied();
    // A fragment is no part of a target, and would be left out without a word.
    if target.contains(&b'#') {
        return Err(Refusal::BadRequest("a fragment in the request's target"));
    }
    let uri = Uri::from_maybe_shared(target).map_err(|_| Refusal::BadRequest("a target that is no URI"))?;
    let is_right = if *method == Method::CONNECT {
        uri.scheme().is_none() && uri.authority().is_some_and(|authority| authority.port_u16().is_some())
    } else {
        match first {
            Some(b'/') => true,
            Some(b'*') => *method == Method::OPTIONS && uri.path() == "*",
            _ => uri.scheme().is_some() && uri.authority().is_some(),
        }
    };
    if is_right { Ok(uri) } else { Err(Refusal::BadRequest("a target in a form that is not the method's")) }
}

/// RFC 9112, 3.2: one `Host`, and one that can be a host. CONNECT names it in the target, and is often sent without.
fn check_host(headers: &HeaderMap, version: Version, method: &Method) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(Refusal::BadRequest("more than one Host header; expected one")),
        (Some(host), None) if !host.as_bytes().iter().all(|byte| may_be_in_host(*byte)) => {
            Err(Refusal::BadRequest("a Host header that is no host"))
        }
        (None, _) if version == Version::HTTP_11 && *method != Method::CONNECT => {
            Err(Refusal::BadRequest("no Host header; expected one"))
        }
        _ => Ok(()),
    }
}

/// RFC 3986, 3.2.2, with a port, and without the comma: it would look like a second host.
fn may_be_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}

/// RFC 9112, 6.3, without what it lets a reader repair.
fn request_framing(headers: &HeaderMap, version: Version, method: &Method) -> Result<Framing, Refusal> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => None,
        (Some(digits), None) => Some(
            number(digits.as_bytes())
                .ok_or(Refusal::BadRequest("a Content-Length that is not one number of at most 64 bits"))?,
        ),
        (Some(_), Some(_)) => return Err(Refusal::BadRequest("more than one Content-Length; expected one")),
    };
    let chunked = is_chunked(headers)?;
    if chunked && length.is_some() {
        return Err(Refusal::BadRequest("both Content-Length and Transfer-Encoding; expected one"));
    }
    if chunked && version != Version::HTTP_11 {
        return Err(Refusal::BadRequest("a Transfer-Encoding, which HTTP/1.0 does not know"));
    }
    if *method == Method::CONNECT && (chunked || length.is_some_and(|length| length > 0)) {
        return Err(Refusal::BadRequest("a body for CONNECT, behind whose head the tunnel begins"));
    }
    Ok(if chunked { Framing::Chunked } else { Framing::Length(length.unwrap_or_default()) })
}

/// RFC 9112, 6.1: `chunked` is the one coding that is known here, and has to be the last.
fn is_chunked(headers: &HeaderMap) -> Result<bool, Refusal> {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = match (values.next(), values.next()) {
        (None, _) => return Ok(false),
        (Some(codings), None) => codings.as_bytes(),
        (Some(_), Some(_)) => return Err(Refusal::BadRequest("more than one Transfer-Encoding; expected one")),
    };
    let is_the_known = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut codings = codings.rsplit(|byte| *byte == b',');
    if !codings.next().is_some_and(is_the_known) {
        return Err(Refusal::BadRequest("a Transfer-Encoding that does not end in chunked"));
    }
    match codings.next() {
        None => Ok(true),
        Some(before) if is_the_known(before) || codings.any(is_the_known) => {
            Err(Refusal::BadRequest("a Transfer-Encoding that is chunked twice"))
        }
        Some(_) => Err(Refusal::Unsupported("a Transfer-Encoding other than chunked")),
    }
}

fn wants_keep_alive(headers: &HeaderMap, version: Version) -> bool {
    match version {
        Version::HTTP_11 => !headers.contains_key(CONNECTION) || !has_option(headers, b"close"),
        _ => has_option(headers, b"keep-alive") && !has_option(headers, b"close"),
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// How a response is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub says: Says,
    /// What follows the head; none where nothing does.
    pub body: Option<Framing>,
    pub after: After,
}

/// What a response's head says of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Nothing,
    /// What came with the response: it may tell the length of a body that is not here.
    AsGiven,
    Framing(Framing),
}

/// What becomes of the connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Another request may follow.
    Open,
    Closed,
    /// Something else than HTTP/1.
    Changed,
}

/// How the response to a request is framed (RFC 9112, 6.3). `length` is its body's, where that is known; `keep_alive`
/// says whether the connection can go on as far as we know.
pub fn response_form(status: StatusCode, length: Option<u64>, asks: Asks, keep_alive: bool) -> Form {
    // What follows a CONNECT that is refused may have been meant for the other end of the tunnel.
    let keep_alive = keep_alive && asks.keep_alive && asks.method != Asked::Connect;
    let after = if keep_alive { After::Open } else { After::Closed };
    let changes = status == StatusCode::SWITCHING_PROTOCOLS || (asks.method == Asked::Connect && status.is_success());
    if changes {
        return Form { says: Says::Nothing, body: None, after: After::Changed };
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        return Form { says: Says::Nothing, body: None, after };
    }
    if status == StatusCode::NOT_MODIFIED {
        return Form { says: Says::AsGiven, body: None, after };
    }
    let framing = |framing, after| Form { says: Says::Framing(framing), body: Some(framing), after };
    match (asks.method, length) {
        (Asked::Head, None | Some(0)) => Form { says: Says::AsGiven, body: None, after },
        (Asked::Head, Some(length)) => Form { body: None, ..framing(Framing::Length(length), after) },
        (_, Some(length)) => framing(Framing::Length(length), after),
        (_, None) if asks.version == Version::HTTP_11 => framing(Framing::Chunked, after),
        (_, None) => framing(Framing::UntilClose, After::Closed),
    }
}

/// Writes a response's head for a client of this version. Hop-by-hop headers have been removed before, but for those of
/// an upgrade.
pub fn encode_response(head: &response::Parts, form: Form, version: Version, date: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        let is_ours = (*name == CONTENT_LENGTH && form.says != Says::AsGiven)
            || *name == TRANSFER_ENCODING
            || (*name == CONNECTION && form.after != After::Changed);
        if !is_ours {
            encode_line(name, value, out);
        }
    }
    match form.says {
        Says::Framing(Framing::Length(length)) => encode_content_length(length, out),
        Says::Framing(Framing::Chunked) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Says::Framing(Framing::UntilClose) | Says::AsGiven | Says::Nothing => {}
    }
    if !head.headers.contains_key(DATE) {
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
    }
    match form.after {
        After::Closed => out.extend_from_slice(b"connection: close\r\n"),
        After::Open if version == Version::HTTP_10 => out.extend_from_slice(b"connection: keep-alive\r\n"),
        After::Open | After::Changed => {}
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
