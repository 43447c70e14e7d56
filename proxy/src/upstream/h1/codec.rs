//! HTTP/1.1 heads as bytes (RFC 9112): requests out, responses in. Pure functions over buffers.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::proto::h1::Framing;
use crate::proto::h1::head::{encode_content_length, encode_line, has_option, number};

/// Headers in one response head, as for requests.
pub const MAX_HEADERS: usize = 100;

/// Bytes in one response head.
pub const MAX_HEAD: usize = 64 * 1024;

/// What an endpoint sent that is not HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a response head that is not HTTP/1.1")]
    Head,
    #[error("a response head of more than 64 KiB or 100 headers")]
    HeadTooLarge,
    #[error("a Content-Length that is no number, or several that differ")]
    ContentLength,
    #[error("a Transfer-Encoding that is not chunked, or chunked and something after it")]
    TransferEncoding,
    #[error("an upgrade that nobody asked for")]
    Upgrade,
    #[error("a success that is not the upgrade that was asked for")]
    NoUpgrade,
    #[error("more than 16 interim responses")]
    Interim,
}

/// A response's head, and what it says about what follows.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub framing: Framing,
    /// Whether the connection can be used again after the body.
    pub keep_alive: bool,
}

/// Writes a request's head. `body` is how the body will be framed, or none without a body; `address` stands for the
/// host where the request names none. Hop-by-hop headers have been removed before, but for those that ask for an upgrade
/// and `TE`, which is for HTTP/2: it is left out here.
pub fn encode_request(head: &Parts, address: &str, body: Option<Framing>, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    match head.uri.path_and_query() {
        Some(path) if !path.as_str().is_empty() => {
            // An empty path with a query is `/?query` in origin form (RFC 9112, 3.2.1).
            if !path.as_str().starts_with(['/', '*']) {
                out.push(b'/');
            }
            out.extend_from_slice(path.as_str().as_bytes());
        }
        _ => out.push(b'/'),
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    // An absolute-form target or an :authority replaces what Host says (RFC 9112, 3.2.2).
    match (head.uri.authority(), head.headers.get(HOST)) {
        (Some(authority), _) => out.extend_from_slice(authority.as_str().as_bytes()),
        (None, Some(host)) => out.extend_from_slice(host.as_bytes()),
        (None, None) => out.extend_from_slice(address.as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        // What TE says is of use on HTTP/2 only, which the request was made ready for too.
        if *name != HOST && *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING && *name != TE {
            encode_line(name, value, out);
        }
    }
    match body {
        Some(Framing::Length(length)) => encode_content_length(length, out),
        Some(_) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // A method that usually has a body says that this one has none (RFC 9110, 8.6).
        None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => encode_content_length(0, out),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads a response head from the front of `buffer`, and takes it away; none while it is incomplete. The values share
/// the buffer's memory.
///
/// # Errors
///
/// What is wrong with it; the connection is then of no more use.
pub fn decode_response(buffer: &mut Bytes, method: &Method) -> Result<Option<Head>, Malformed> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, buffer, &mut lines);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if buffer.len() <= MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
        Err(_) => return Err(Malformed::Head),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::Head)?;
    let version = if response.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for line in response.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed::Head)?;
        let value = HeaderValue::from_maybe_shared(buffer.slice_ref(line.value)).map_err(|_| Malformed::Head)?;
        headers.append(name, value);
    }
    buffer.advance(length);
    let (framing, keep_alive) = response_framing(status, version, method, &headers)?;
    Ok(Some(Head { status, headers, framing, keep_alive }))
}

/// RFC 9112, 6.3.
fn response_framing(
    status: StatusCode,
    version: Version,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(Framing, bool), Malformed> {
    let mut keep_alive = match headers.get(CONNECTION) {
        None => version == Version::HTTP_11,
        Some(_) => {
            !has_option(headers, b"close") && (version == Version::HTTP_11 || has_option(headers, b"keep-alive"))
        }
    };
    let length = content_length(headers)?;
    let chunked = is_chunked(headers)?;
    if status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok((Framing::Length(0), keep_alive));
    }
    if *method == Method::HEAD {
        return Ok((Framing::Length(0), keep_alive));
    }
    if chunked {
        if version == Version::HTTP_10 {
            return Err(Malformed::TransferEncoding);
        }
        // Both at once may be an attempt to make two readers disagree: this message is the connection's last.
        keep_alive &= length.is_none();
        return Ok((Framing::Chunked, keep_alive));
    }
    Ok(match length {
        Some(length) => (Framing::Length(length), keep_alive),
        None => (Framing::UntilClose, false),
    })
}

/// The one length that all `Content-Length` values agree on.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for digits in value.as_bytes().split(|byte| *byte == b',') {
            match (number(digits.trim_ascii()), length) {
                (Some(number), None) => length = Some(number),
                (Some(number), Some(before)) if number == before => {}
                _ => return Err(Malformed::ContentLength),
            }
        }
    }
    Ok(length)
}

fn is_chunked(headers: &HeaderMap) -> Result<bool, Malformed> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(only), None) if only.trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(Malformed::TransferEncoding),
    }
}

#[cfg(test)]
mod tests;
