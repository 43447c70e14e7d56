//! Writing messages, without copying what is large.
//!
//! Frames that are ready together leave in one write: what is small is copied behind what was encoded before, up to
//! [`COALESCED`] bytes, and what is large is written from where it is. Nothing waits for more to be joined with. What a
//! message holds here is so bounded by [`COALESCED`] and one piece of its body: bytes that were written make room before
//! others are added, and no frame is taken while the stream itself holds back what it was given, as TLS does. A part
//! of a piece that the stream does not take is copied: it may wait for long, and must not keep a larger block.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use super::body::{Framing, encode_chunk_size, encode_last_chunk};
use super::scratch::BODY;
use crate::proto::{Body, BodyError};
use crate::turn;

/// Encoded bytes up to this size leave in one piece. It also bounds what is taken of a body before the stream has taken
/// what came before.
const COALESCED: usize = 16 * 1024;

/// What a chunk of any size has around its data.
const CHUNK: usize = 16 + 2 + 2;

/// What one poll takes of a body, in bytes, before it goes on in another turn. Where a request and its response move at
/// once, this is also what keeps one from taking the turns of the other.
const TURN: usize = 256 * 1024;

/// What taking a frame costs, in bytes that could be moved in the same time.
const FRAME: usize = 256;

/// Room that a connection keeps for the next message.
const KEPT: usize = 2 * 1024;

/// Why a message was not written to its end.
#[derive(Debug)]
pub enum SendError {
    /// The stream takes no more bytes.
    Stream(io::Error),
    /// The message's own body broke.
    Body(BodyError),
}

/// What is to be written on a connection: heads, and the body of one message at a time.
#[derive(Default)]
pub struct Sender {
    /// To be written first, from `written` on.
    output: Vec<u8>,
    written: usize,
    /// To be written next.
    data: Bytes,
    /// The size of the piece that `data` was a part of; 0 once it has memory of its own.
    piece: usize,
    /// Whether `data` is a chunk, whose end is yet to be written.
    chunk_open: bool,
    sending: Option<Sending>,
    /// Whether a frame of the last message's body was taken, or its end was.
    begun: bool,
    /// The stream may hold back what it has taken, as TLS does.
    unflushed: bool,
    taken: u64,
}

/// A body that has not been taken to its end.
struct Sending {
    body: Body,
    framing: Framing,
    trailers: bool,
}

impl Sender {
    /// Where heads are encoded.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The body that follows the head which was just encoded: none, or one that is framed so. Trailers go with a
    /// chunked body only, and only where `trailers` says so.
    pub fn follow_with(&mut self, body: Body, framing: Option<Framing>, trailers: bool) {
        self.sending = framing.map(|framing| Sending { body, framing, trailers });
        self.begun = false;
    }

    /// The message's body, where nothing of it was taken; none where it cannot be had back.
    pub fn take_body_back(&mut self) -> Option<Body> {
        match self.sending.take() {
            _ if self.begun => None,
            Some(sending) => Some(sending.body),
            None => Some(Body::Empty),
        }
    }

    /// Ends the message where its body broke off: what was encoded before can still be written.
    pub fn cut(&mut self) {
        self.sending = None;
    }

    /// Whether the message's body has been taken to its end.
    pub fn has_whole_body(&self) -> bool {
        self.sending.is_none()
    }

    /// Whether all of it has been written.
    pub fn is_done(&self) -> bool {
        self.has_whole_body() && !self.is_blocked()
    }

    /// Whether the stream has not passed on all that was given to it.
    pub fn is_blocked(&self) -> bool {
        self.encoded() > 0 || !self.data.is_empty() || self.chunk_open || self.unflushed
    }

    /// Gives up room that no message of the usual size needs.
    pub fn shrink(&mut self) {
        if self.output.is_empty() && self.output.capacity() > KEPT {
            self.output = Vec::new();
        }
    }

    /// Bytes that are encoded and not written.
    fn encoded(&self) -> usize {
        self.output.len() - self.written
    }

    /// Bytes that the stream has taken so far; the count may wrap.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Writes what there is. Ready once the whole message has been written, or cannot be.
    ///
    /// # Errors
    ///
    /// When the stream or the body breaks.
    pub fn poll_send(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        let mut turn = 0;
        loop {
            if self.data.is_empty() && !self.chunk_open {
                if self.unflushed {
                    ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(SendError::Stream)?;
                    self.unflushed = false;
                }
                if self.encoded() < COALESCED && turn < TURN && self.poll_next_frame(&mut turn, cx)?.is_ready() {
                    continue;
                }
                if self.encoded() == 0 {
                    self.output.clear();
                    self.written = 0;
                    if self.has_whole_body() {
                        return Poll::Ready(Ok(()));
                    }
                    if turn >= TURN {
                        turn::yield_now(cx);
                    }
                    return Poll::Pending;
                }
            }
            let taken = match ready!(self.poll_write(io, cx)).map_err(SendError::Stream)? {
                0 => return Poll::Ready(Err(SendError::Stream(io::ErrorKind::WriteZero.into()))),
                taken => taken,
            };
            self.unflushed = true;
            self.taken = self.taken.wrapping_add(taken as u64);
            self.advance(taken);
        }
    }

    fn poll_write(&mut self, io: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let encoded = self.output.get(self.written..).unwrap_or_default();
        let io = Pin::new(io);
        let end: &[u8] = if self.chunk_open { b"\r\n" } else { b"" };
        let wrote = match (encoded, &self.data[..], end) {
            (encoded, [], []) => io.poll_write(cx, encoded),
            ([], data, []) => io.poll_write(cx, data),
            (encoded, data, end) => {
                io.poll_write_vectored(cx, &[IoSlice::new(encoded), IoSlice::new(data), IoSlice::new(end)])
            }
        };
        // A piece that is most of its block keeps little more. And where only this turn is over, it goes on at once.
        let is_small_part = self.data.len() <= COALESCED || self.piece > BODY;
        if wrote.is_pending() && self.piece > 0 && is_small_part && turn::may_go_on() {
            self.data = Bytes::copy_from_slice(&self.data);
            self.piece = 0;
        }
        wrote
    }

    /// The stream has taken so much: of what was encoded, then of `data`, then of the end of its chunk.
    fn advance(&mut self, taken: usize) {
        let of_encoded = taken.min(self.encoded());
        let of_data = (taken - of_encoded).min(self.data.len());
        let of_end = taken - of_encoded - of_data;
        self.written += of_encoded;
        if of_data < self.data.len() {
            self.data.advance(of_data);
            return;
        }
        // Not only empty: it would keep the block.
        self.data = Bytes::new();
        self.piece = 0;
        if of_end > 0 {
            self.chunk_open = false;
            self.make_room();
            self.output.extend_from_slice(b"\r\n".get(of_end..).unwrap_or_default());
        }
    }

    /// What was written makes room, before anything is added: at most [`COALESCED`] bytes are moved.
    fn make_room(&mut self) {
        self.output.drain(..self.written);
        self.written = 0;
    }

    /// Takes the next frame of the body to be written. Pending when there is none, now or ever.
    fn poll_next_frame(&mut self, turn: &mut usize, cx: &mut Context<'_>) -> Result<Poll<()>, SendError> {
        let Some(Sending { body, .. }) = &mut self.sending else { return Ok(Poll::Pending) };
        let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Ok(Poll::Pending) };
        self.begun = true;
        *turn += FRAME;
        self.make_room();
        let Some(Sending { framing, trailers, .. }) = &mut self.sending else { return Ok(Poll::Pending) };
        match frame.transpose().map_err(SendError::Body)?.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(data)) => {
                *turn += data.len();
                let is_chunk = *framing == Framing::Chunked;
                match framing {
                    Framing::Chunked => encode_chunk_size(data.len(), &mut self.output),
                    Framing::Length(left) => {
                        *left = left.checked_sub(data.len() as u64).ok_or(SendError::Body(BodyError::Length))?;
                    }
                    Framing::UntilClose => {}
                }
                if self.output.len() + data.len() + CHUNK <= COALESCED {
                    self.output.extend_from_slice(&data);
                    if is_chunk {
                        self.output.extend_from_slice(b"\r\n");
                    }
                } else {
                    self.piece = data.len();
                    self.data = data;
                    self.chunk_open = is_chunk;
                }
            }
            end => {
                match framing {
                    Framing::Chunked => {
                        let sent = end.and_then(Result::err).and_then(|frame| frame.into_trailers().ok());
                        encode_last_chunk(sent.as_ref().filter(|_| *trailers), &mut self.output);
                    }
                    Framing::Length(1..) => return Err(SendError::Body(BodyError::Length)),
                    Framing::Length(0) | Framing::UntilClose => {}
                }
                self.sending = None;
            }
        }
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests;
