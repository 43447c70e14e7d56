//! HTTP/1.1 messages as bytes (RFC 9112): request heads out, response heads in, and the framing of bodies.
//!
//! Pure functions over buffers. Of two ways to read a message the stricter is taken, and what is ambiguous is refused:
//! the next response on the connection must not begin where somebody else says.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

/// Headers in one response head, as for requests.
pub const MAX_HEADERS: usize = 100;

/// Bytes in one response head or one trailer section.
pub const MAX_HEAD: usize = 64 * 1024;

/// Bytes in the line of a chunk's size, extensions included.
const MAX_CHUNK_LINE: usize = 256;

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
    #[error("a chunk whose size cannot be read")]
    Chunk,
    #[error("trailers that cannot be read")]
    Trailers,
    #[error("an upgrade that nobody asked for")]
    Upgrade,
    #[error("a success that is not the upgrade that was asked for")]
    NoUpgrade,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Bytes left.
    Length(u64),
    Chunked,
    /// It ends with the connection.
    UntilClose,
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
    for (name, value) in &head.headers {
        // What TE says is of use on HTTP/2 only, which the request was made ready for too.
        if *name != HOST && *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING && *name != TE {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
        }
    }
    match body {
        Some(Framing::Length(length)) => {
            out.extend_from_slice(b"\r\ncontent-length: ");
            out.extend_from_slice(length.to_string().as_bytes());
        }
        Some(_) => out.extend_from_slice(b"\r\ntransfer-encoding: chunked"),
        // A method that usually has a body says that this one has none (RFC 9110, 8.6).
        None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            out.extend_from_slice(b"\r\ncontent-length: 0");
        }
        None => {}
    }
    out.extend_from_slice(b"\r\n\r\n");
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
        Some(_) => !has_token(headers, b"close") && (version == Version::HTTP_11 || has_token(headers, b"keep-alive")),
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

fn has_token(headers: &HeaderMap, token: &[u8]) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|t| t.trim_ascii().eq_ignore_ascii_case(token))
}

/// The one length that all `Content-Length` values agree on.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for number in value.as_bytes().split(|byte| *byte == b',') {
            let number = number.trim_ascii();
            let digits = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(number).ok().filter(|_| digits).and_then(|n| n.parse::<u64>().ok());
            match (number, length) {
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

/// What a step of decoding a body gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// More bytes are needed.
    More,
    End,
}

/// Reads a body out of the connection's bytes.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    End,
}

impl BodyDecoder {
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Whether the whole body has been read.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// Bytes left, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::End => Some(0),
            _ => None,
        }
    }

    /// Takes the next piece off the front of `buffer`.
    ///
    /// # Errors
    ///
    /// What is wrong with the framing.
    pub fn decode(&mut self, buffer: &mut Bytes) -> Result<Piece, Malformed> {
        loop {
            match self.state {
                State::End => return Ok(Piece::End),
                _ if buffer.is_empty() => return Ok(Piece::More),
                State::UntilClose => return Ok(Piece::Data(take(buffer, u64::MAX))),
                State::Length(left) => {
                    let data = take(buffer, left);
                    let left = left.saturating_sub(data.len() as u64);
                    self.state = if left == 0 { State::End } else { State::Length(left) };
                    return Ok(Piece::Data(data));
                }
                State::ChunkSize => match take_chunk_size(buffer)? {
                    None => return Ok(Piece::More),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::ChunkData(left) => {
                    let data = take(buffer, left);
                    let left = left.saturating_sub(data.len() as u64);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Piece::Data(data));
                }
                State::ChunkEnd => match buffer.get(..2) {
                    None => return Ok(Piece::More),
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        self.state = State::ChunkSize;
                    }
                    Some(_) => return Err(Malformed::Chunk),
                },
                State::Trailers => {
                    let Some(trailers) = take_trailers(buffer)? else { return Ok(Piece::More) };
                    self.state = State::End;
                    return Ok(if trailers.is_empty() { Piece::End } else { Piece::Trailers(trailers) });
                }
            }
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// When the body was not complete.
    pub fn at_end_of_stream(&mut self) -> Result<(), ()> {
        match self.state {
            State::End | State::UntilClose => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(()),
        }
    }
}

/// Up to `most` bytes off the front.
fn take(buffer: &mut Bytes, most: u64) -> Bytes {
    buffer.split_to(usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len()))
}

/// RFC 9112, 7.1; extensions are ignored, as 7.1.1 says.
fn take_chunk_size(buffer: &mut Bytes) -> Result<Option<u64>, Malformed> {
    let Some(end) = buffer.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
        return if buffer.len() < MAX_CHUNK_LINE { Ok(None) } else { Err(Malformed::Chunk) };
    };
    let line = buffer.split_to(end + 1);
    let line = line.strip_suffix(b"\r\n").ok_or(Malformed::Chunk)?;
    if line.contains(&b'\r') {
        return Err(Malformed::Chunk);
    }
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at_checked(digits).ok_or(Malformed::Chunk)?;
    let rest = rest.trim_ascii_start();
    if number.is_empty() || !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(Malformed::Chunk);
    }
    let number = std::str::from_utf8(number).map_err(|_| Malformed::Chunk)?;
    u64::from_str_radix(number, 16).map(Some).map_err(|_| Malformed::Chunk)
}

fn take_trailers(buffer: &mut Bytes) -> Result<Option<HeaderMap>, Malformed> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match httparse::parse_headers(buffer, &mut lines) {
        Ok(httparse::Status::Complete((length, lines))) if length <= MAX_HEAD => {
            let mut trailers = HeaderMap::with_capacity(lines.len());
            for line in lines {
                let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed::Trailers)?;
                let value = HeaderValue::from_bytes(line.value).map_err(|_| Malformed::Trailers)?;
                if !is_forbidden_trailer(&name) {
                    trailers.append(name, value);
                }
            }
            buffer.advance(length);
            Ok(Some(trailers))
        }
        Ok(httparse::Status::Partial) if buffer.len() <= MAX_HEAD => Ok(None),
        _ => Err(Malformed::Trailers),
    }
}

/// RFC 9110, 6.5.1: framing and routing are not for trailers.
fn is_forbidden_trailer(name: &HeaderName) -> bool {
    *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING || *name == HOST || *name == CONNECTION
}

/// Writes the head of a chunk of this size.
pub fn encode_chunk_size(size: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{size:x}\r\n").as_bytes());
}

/// Writes the last chunk with its trailers.
pub fn encode_last_chunk(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| !is_forbidden_trailer(name)) {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
