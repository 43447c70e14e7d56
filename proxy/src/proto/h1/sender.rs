//! Writing messages, without copying what is large.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use super::body::{Framing, encode_chunk_size, encode_last_chunk};
use crate::proto::{Body, BodyError};

/// Data up to this size is copied behind what was encoded before, so that both leave in one piece. It also bounds what
/// is taken of a body before the stream has taken what came before.
const COALESCED: usize = 16 * 1024;

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
        self.written < self.output.len() || !self.data.is_empty() || self.unflushed
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
        loop {
            if self.data.is_empty() {
                if self.chunk_open {
                    self.chunk_open = false;
                    self.output.extend_from_slice(b"\r\n");
                }
                if self.output.len() - self.written < COALESCED && self.poll_next_frame(cx)?.is_ready() {
                    continue;
                }
            }
            let encoded = self.output.get(self.written..).unwrap_or_default();
            if encoded.is_empty() && self.data.is_empty() {
                self.output.clear();
                self.written = 0;
                if self.unflushed {
                    ready!(Pin::new(io).poll_flush(cx)).map_err(SendError::Stream)?;
                    self.unflushed = false;
                }
                return if self.has_whole_body() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let parts = [IoSlice::new(encoded), IoSlice::new(&self.data)];
            let io = Pin::new(&mut *io);
            let wrote =
                if self.data.is_empty() { io.poll_write(cx, encoded) } else { io.poll_write_vectored(cx, &parts) };
            let taken = match ready!(wrote).map_err(SendError::Stream)? {
                0 => return Poll::Ready(Err(SendError::Stream(io::ErrorKind::WriteZero.into()))),
                taken => taken,
            };
            self.unflushed = true;
            self.taken = self.taken.wrapping_add(taken as u64);
            let of_encoded = taken.min(self.output.len() - self.written);
            self.written += of_encoded;
            self.data.advance(taken - of_encoded);
        }
    }

    /// Takes the next frame of the body to be written. Pending when there is none, now or ever.
    fn poll_next_frame(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, SendError> {
        let Some(Sending { body, framing, trailers }) = &mut self.sending else { return Ok(Poll::Pending) };
        let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Ok(Poll::Pending) };
        self.begun = true;
        match frame.transpose().map_err(SendError::Body)?.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(data)) => {
                match framing {
                    Framing::Chunked => {
                        encode_chunk_size(data.len(), &mut self.output);
                        self.chunk_open = true;
                    }
                    Framing::Length(left) => {
                        *left = left.checked_sub(data.len() as u64).ok_or(SendError::Body(BodyError::Length))?;
                    }
                    Framing::UntilClose => {}
                }
                if data.len() <= COALESCED {
                    self.output.extend_from_slice(&data);
                } else {
                    self.data = data;
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
