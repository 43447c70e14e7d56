//! The framing of bodies (RFC 9112, 6 and 7): pure functions over buffers.

use std::io::Write as _;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::head::{all_lines_end_in_crlf, encode_line};
use super::scratch::{BODY, make_room};
use crate::proto::trailers::is_forbidden;
use crate::turn::Items;

/// Lines in one trailer section.
const MAX_TRAILERS: usize = 100;

/// Bytes in one trailer section. It is read anew whenever some of it has arrived, so that this bounds that work too.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// Bytes in the line of a chunk's size, extensions included.
const MAX_CHUNK_LINE: usize = 256;

/// Bytes of all chunk extensions of one body: they are for nobody, and could be most of what is sent.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Data of a chunk from this size on is passed on as it is. Smaller data that has arrived together is joined: a copy costs
/// less than another piece does on its way. RFC 9112, 7.1, leaves the sizes of chunks to each hop.
const LARGE: usize = 16 * 1024;

/// Parts that are joined at most, so that other tasks have their turn between pieces.
const MAX_JOINED: usize = 1024;

/// What is wrong with the framing of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a chunk whose size cannot be read")]
    Chunk,
    #[error("trailers that cannot be read")]
    Trailers,
    #[error("the connection ended before the body")]
    Cut,
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
    /// Bytes of chunk extensions so far.
    extensions: usize,
    /// Chunks that this turn of the task has to pay for.
    chunks: Items,
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
    /// Nothing can be read any more, because where the next thing begins is not known.
    Broken(Malformed),
}

impl BodyDecoder {
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0, chunks: Items::default() }
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

    /// Takes the next piece off the front of `buffer`. The data of small chunks is joined in `joined`, a buffer for any
    /// number of bodies.
    ///
    /// # Errors
    ///
    /// What is wrong with the framing, then and ever after.
    pub fn decode(&mut self, buffer: &mut Bytes, joined: &mut BytesMut) -> Result<Piece, Malformed> {
        self.step(buffer, joined).inspect_err(|malformed| self.state = State::Broken(*malformed))
    }

    fn step(&mut self, buffer: &mut Bytes, joined: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match self.state {
                State::End => return Ok(Piece::End),
                State::Broken(malformed) => return Err(malformed),
                _ if buffer.is_empty() => return Ok(Piece::More),
                State::UntilClose => return Ok(Piece::Data(std::mem::take(buffer))),
                State::Length(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let data = buffer.split_to(length);
                    let left = left.saturating_sub(length as u64);
                    self.state = if left == 0 { State::End } else { State::Length(left) };
                    return Ok(Piece::Data(data));
                }
                State::ChunkSize | State::ChunkData(_) | State::ChunkEnd => {
                    if let Some(data) = self.take_chunks(buffer, joined)? {
                        return Ok(Piece::Data(data));
                    }
                    if self.state != State::Trailers {
                        return Ok(Piece::More);
                    }
                }
                State::Trailers => {
                    let Some(trailers) = take_trailers(buffer)? else { return Ok(Piece::More) };
                    self.state = State::End;
                    return Ok(if trailers.is_empty() { Piece::End } else { Piece::Trailers(trailers) });
                }
            }
        }
    }

    /// Takes the data of chunks off the front of `buffer`; none where a line is incomplete, or the last chunk begins.
    fn take_chunks(&mut self, buffer: &mut Bytes, joined: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        let (mut at, mut parts, mut only) = (0, 0, 0..0);
        let decoded = loop {
            let rest = buffer.get(at..).unwrap_or_default();
            if rest.is_empty() || parts == MAX_JOINED {
                break Ok(());
            }
            match self.state {
                State::ChunkData(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let is_large = length >= LARGE;
                    if parts > 0 && is_large {
                        break Ok(());
                    }
                    if parts == 0 {
                        only = at..at + length;
                    } else {
                        if parts == 1 {
                            make_room(joined, buffer.len(), buffer.len(), BODY);
                            joined.extend_from_slice(buffer.get(only.clone()).unwrap_or_default());
                        }
                        joined.extend_from_slice(rest.get(..length).unwrap_or_default());
                    }
                    (at, parts) = (at + length, parts + 1);
                    let left = left.saturating_sub(length as u64);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    if is_large {
                        break Ok(());
                    }
                }
                State::ChunkEnd => match rest {
                    [b'\r'] => break Ok(()),
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::ChunkSize;
                    }
                    _ => break Err(Malformed::Chunk),
                },
                State::ChunkSize => match chunk_line(rest) {
                    Err(malformed) => break Err(malformed),
                    Ok(None) => break Ok(()),
                    Ok(Some(line)) => {
                        self.chunks.add(1);
                        self.extensions += line.extensions;
                        if self.extensions > MAX_EXTENSIONS {
                            break Err(Malformed::Chunk);
                        }
                        at += line.length;
                        self.state = if line.size == 0 { State::Trailers } else { State::ChunkData(line.size) };
                    }
                },
                _ => break Ok(()),
            }
        };
        let data = match parts {
            0 => None,
            1 => Some(buffer.slice(only)),
            _ => Some(joined.split().freeze()),
        };
        if at < buffer.len() {
            buffer.advance(at);
        } else {
            // Not only empty: it would keep the block.
            *buffer = Bytes::new();
        }
        match decoded {
            // What came before is passed on first.
            Err(malformed) if data.is_some() => self.state = State::Broken(malformed),
            decoded => decoded?,
        }
        Ok(data)
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// When the body was not complete.
    pub fn at_end_of_stream(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::End | State::UntilClose => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(Malformed::Cut),
        }
    }
}

/// The line that a chunk begins with.
struct ChunkLine {
    /// Bytes of the line itself.
    length: usize,
    size: u64,
    /// Bytes of extensions, which are ignored as RFC 9112, 7.1.1, says.
    extensions: usize,
}

/// RFC 9112, 7.1; none while the line is incomplete.
fn chunk_line(buffer: &[u8]) -> Result<Option<ChunkLine>, Malformed> {
    // As nearly all of them are: up to 64 bits in hexadecimal digits, and nothing else.
    let (mut size, mut digits) = (0, 0);
    while digits < 16
        && let Some(digit) = buffer.get(digits).and_then(|byte| char::from(*byte).to_digit(16))
    {
        size = size << 4 | u64::from(digit);
        digits += 1;
    }
    if digits > 0 && buffer.get(digits..digits + 2) == Some(b"\r\n") {
        return Ok(Some(ChunkLine { length: digits + 2, size, extensions: 0 }));
    }
    let Some(end) = buffer.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
        let may_become_a_line = buffer.len() < MAX_CHUNK_LINE && buffer.first().is_some_and(u8::is_ascii_hexdigit);
        return if may_become_a_line { Ok(None) } else { Err(Malformed::Chunk) };
    };
    let line = buffer.get(..=end).and_then(|line| line.strip_suffix(b"\r\n")).ok_or(Malformed::Chunk)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at_checked(digits).ok_or(Malformed::Chunk)?;
    if number.is_empty() || !is_extensions(rest) {
        return Err(Malformed::Chunk);
    }
    let number = std::str::from_utf8(number).map_err(|_| Malformed::Chunk)?;
    let size = u64::from_str_radix(number, 16).map_err(|_| Malformed::Chunk)?;
    Ok(Some(ChunkLine { length: end + 1, size, extensions: rest.len() }))
}

/// Whether this can be a list of chunk extensions: each after a semicolon, without control characters, and with every
/// quote closed before the line ends, since a reader that looks for the closing quote would go on in the data.
fn is_extensions(text: &[u8]) -> bool {
    if text.is_empty() {
        return true;
    }
    let (mut quoted, mut escaped) = (false, false);
    for byte in text {
        match byte {
            b'\t' => {}
            0..32 | 127 => return false,
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    !quoted && text.trim_ascii_start().starts_with(b";")
}

fn take_trailers(buffer: &mut Bytes) -> Result<Option<HeaderMap>, Malformed> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    match httparse::parse_headers(buffer, &mut lines) {
        Ok(httparse::Status::Complete((length, lines))) if length <= MAX_TRAILER_BYTES => {
            if !all_lines_end_in_crlf(buffer.get(..length).unwrap_or_default(), lines) {
                return Err(Malformed::Trailers);
            }
            let mut trailers = HeaderMap::with_capacity(lines.len());
            for line in lines {
                let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed::Trailers)?;
                let value = HeaderValue::from_bytes(line.value).map_err(|_| Malformed::Trailers)?;
                if !is_forbidden(&name) {
                    trailers.append(name, value);
                }
            }
            buffer.advance(length);
            Ok(Some(trailers))
        }
        Ok(httparse::Status::Partial) if buffer.len() <= MAX_TRAILER_BYTES => Ok(None),
        _ => Err(Malformed::Trailers),
    }
}

/// Writes the head of a chunk of this size.
pub fn encode_chunk_size(size: usize, out: &mut Vec<u8>) {
    let _writing_to_memory_cannot_fail = write!(out, "{size:x}\r\n");
}

/// Writes the last chunk with its trailers.
pub fn encode_last_chunk(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| !is_forbidden(name)) {
        encode_line(name, value, out);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
