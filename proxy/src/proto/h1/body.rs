//! The framing of bodies (RFC 9112, 6 and 7): pure functions over buffers.

use std::io::Write as _;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::head::{all_lines_end_in_crlf, encode_line};
use crate::proto::trailers::is_forbidden;

/// Lines in one trailer section.
const MAX_TRAILERS: usize = 100;

/// Bytes in one trailer section. It is read anew whenever some of it has arrived, so that this bounds that work too.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// Bytes in the line of a chunk's size, extensions included.
const MAX_CHUNK_LINE: usize = 256;

/// Bytes of all chunk extensions of one body: they are for nobody, and could be most of what is sent.
const MAX_EXTENSIONS: usize = 16 * 1024;

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
        Self { state, extensions: 0 }
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
    /// What is wrong with the framing, then and ever after.
    pub fn decode(&mut self, buffer: &mut Bytes) -> Result<Piece, Malformed> {
        self.step(buffer).inspect_err(|malformed| self.state = State::Broken(*malformed))
    }

    fn step(&mut self, buffer: &mut Bytes) -> Result<Piece, Malformed> {
        loop {
            match self.state {
                State::End => return Ok(Piece::End),
                State::Broken(malformed) => return Err(malformed),
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
                    Some(ChunkLine { size, extensions }) => {
                        self.extensions += extensions;
                        if self.extensions > MAX_EXTENSIONS {
                            return Err(Malformed::Chunk);
                        }
                        self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                    }
                },
                State::ChunkData(left) => {
                    let data = take(buffer, left);
                    let left = left.saturating_sub(data.len() as u64);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Piece::Data(data));
                }
                State::ChunkEnd => match &buffer[..] {
                    [b'\r'] => return Ok(Piece::More),
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::ChunkSize;
                    }
                    _ => return Err(Malformed::Chunk),
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

/// Up to `most` bytes off the front.
fn take(buffer: &mut Bytes, most: u64) -> Bytes {
    buffer.split_to(usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len()))
}

struct ChunkLine {
    size: u64,
    /// Bytes of extensions, which are ignored as RFC 9112, 7.1.1, says.
    extensions: usize,
}

/// RFC 9112, 7.1; none while the line is incomplete.
fn take_chunk_size(buffer: &mut Bytes) -> Result<Option<ChunkLine>, Malformed> {
    let Some(end) = buffer.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
        let may_become_a_line = buffer.len() < MAX_CHUNK_LINE && buffer.first().is_some_and(u8::is_ascii_hexdigit);
        return if may_become_a_line { Ok(None) } else { Err(Malformed::Chunk) };
    };
    let line = buffer.split_to(end + 1);
    let line = line.strip_suffix(b"\r\n").ok_or(Malformed::Chunk)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at_checked(digits).ok_or(Malformed::Chunk)?;
    if number.is_empty() || !is_extensions(rest) {
        return Err(Malformed::Chunk);
    }
    let number = std::str::from_utf8(number).map_err(|_| Malformed::Chunk)?;
    let size = u64::from_str_radix(number, 16).map_err(|_| Malformed::Chunk)?;
    Ok(Some(ChunkLine { size, extensions: rest.len() }))
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
