//! One connection, driven by whoever has an exchange on it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use http::header::UPGRADE;
use http::request::Parts;
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::codec::{
    BodyDecoder, Framing, Head, Malformed, Piece, decode_response, encode_chunk_size, encode_last_chunk, encode_request,
};
use crate::proto::{Body, BodyError};
use crate::transport::Stream;
use crate::transport::tls::TlsFailure;
use crate::upstream::{Permit, Pool};

/// The thread's read buffer. Connections hold the bytes that they have not used yet, never a buffer to read into.
pub struct Scratch(RefCell<BytesMut>);

/// A new block of read buffer.
const BLOCK: usize = 256 * 1024;

/// A read is given at least this much room.
const ROOM: usize = 64 * 1024;

impl Default for Scratch {
    fn default() -> Self {
        Self(RefCell::new(BytesMut::new()))
    }
}

impl Scratch {
    /// What has arrived; empty at the end of the stream.
    fn poll_read(&self, io: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut buffer = self.0.borrow_mut();
        if buffer.capacity() < ROOM {
            buffer.reserve(BLOCK);
        }
        ready!(pin!(io.read_buf(&mut *buffer)).poll(cx))?;
        Poll::Ready(Ok(buffer.split().freeze()))
    }
}

/// Why there is no response.
pub enum ExchangeError {
    /// The connection ended before a byte of the response. `body` is the request's body, if none of it was taken.
    Closed {
        body: Option<Body>,
    },
    Broken(io::Error),
    Malformed(Malformed),
    ClientBody(BodyError),
}

/// Data up to this size is copied behind the head, so that both leave in one piece.
const COALESCED: usize = 16 * 1024;

/// A connection to an endpoint.
pub struct Connection {
    io: Stream,
    scratch: Rc<Scratch>,
    /// Read, but not used yet.
    input: Bytes,
    /// To be written first, from `written` on.
    output: Vec<u8>,
    written: usize,
    /// To be written next.
    data: Bytes,
    /// Whether `data` is a chunk, whose end is yet to be written.
    chunk_open: bool,
    sending: Sending,
    /// The endpoint takes no more bytes; its response may still be read.
    deaf: bool,
    permit: Permit,
}

/// Where the request's body stands.
enum Sending {
    Done,
    Body { body: Body, chunked: bool, started: bool },
}

impl Connection {
    pub fn new(io: Stream, scratch: Rc<Scratch>, permit: Permit) -> Self {
        Self {
            io,
            scratch,
            input: Bytes::new(),
            output: Vec::new(),
            written: 0,
            data: Bytes::new(),
            chunk_open: false,
            sending: Sending::Done,
            deaf: false,
            permit,
        }
    }

    /// Whether an idle connection can be used: the endpoint has neither closed it nor sent what nobody asked for.
    pub fn is_usable(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.input.is_empty() && self.scratch.poll_read(&mut self.io, &mut cx).is_pending()
    }

    /// Sends a request and waits for the response's head. The body goes on being sent while the response is read.
    pub async fn exchange(&mut self, head: &Parts, address: &str, body: Body) -> Result<Head, ExchangeError> {
        let framing = match body.size_hint().exact() {
            Some(0) => None,
            Some(length) => Some(Framing::Length(length)),
            None => Some(Framing::Chunked),
        };
        encode_request(head, address, framing, &mut self.output);
        self.sending = match framing {
            None => Sending::Done,
            Some(framing) => Sending::Body { body, chunked: framing == Framing::Chunked, started: false },
        };
        std::future::poll_fn(|cx| self.poll_head(head, cx)).await
    }

    fn poll_head(&mut self, request: &Parts, cx: &mut Context<'_>) -> Poll<Result<Head, ExchangeError>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(ExchangeError::ClientBody(error)));
        }
        loop {
            match decode_response(&mut self.input, &request.method) {
                Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    let asked = request.headers.contains_key(UPGRADE) && self.has_sent_all();
                    let unasked = || ExchangeError::Malformed(Malformed::Upgrade);
                    return Poll::Ready(asked.then_some(head).ok_or_else(unasked));
                }
                // Interim responses are for us, who have announced no interest in any (RFC 9110, 15.2).
                Ok(Some(head)) if head.status.is_informational() => continue,
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Err(ExchangeError::Malformed(malformed))),
            }
            match ready!(self.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) if self.input.is_empty() => return Poll::Ready(Err(self.closed())),
                Ok(false) => return Poll::Ready(Err(ExchangeError::Broken(io::ErrorKind::UnexpectedEof.into()))),
                Err(error) if self.input.is_empty() && TlsFailure::of(&error).is_none() => {
                    return Poll::Ready(Err(self.closed()));
                }
                Err(error) => return Poll::Ready(Err(ExchangeError::Broken(error))),
            }
        }
    }

    fn closed(&mut self) -> ExchangeError {
        let body = match std::mem::replace(&mut self.sending, Sending::Done) {
            Sending::Done => Some(Body::Empty),
            Sending::Body { body, started: false, .. } => Some(body),
            Sending::Body { .. } => None,
        };
        ExchangeError::Closed { body }
    }

    /// Reads once; false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let read = ready!(self.scratch.poll_read(&mut self.io, cx))?;
        if read.is_empty() {
            return Poll::Ready(Ok(false));
        }
        self.input = if self.input.is_empty() { read } else { [&self.input[..], &read[..]].concat().into() };
        Poll::Ready(Ok(true))
    }

    /// Sends what there is of the request. Ready once all of it is sent, or cannot be.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while !self.deaf {
            if self.data.is_empty() {
                if self.chunk_open {
                    self.chunk_open = false;
                    self.output.extend_from_slice(b"\r\n");
                }
                if self.output.len() - self.written < COALESCED && self.poll_next_frame(cx)?.is_ready() {
                    continue;
                }
            }
            let head = self.output.get(self.written..).unwrap_or_default();
            if head.is_empty() && self.data.is_empty() {
                self.output.clear();
                self.written = 0;
                // TLS may hold back what it has taken.
                if ready!(Pin::new(&mut self.io).poll_flush(cx)).is_err() {
                    self.deaf = true;
                    continue;
                }
                return if self.is_sent() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let parts = [IoSlice::new(head), IoSlice::new(&self.data)];
            let io = Pin::new(&mut self.io);
            let wrote = if self.data.is_empty() { io.poll_write(cx, head) } else { io.poll_write_vectored(cx, &parts) };
            match ready!(wrote) {
                Ok(0) | Err(_) => self.deaf = true,
                Ok(n) => {
                    let of_head = n.min(self.output.len() - self.written);
                    self.written += of_head;
                    self.data.advance(n - of_head);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the next frame of the request's body to be written. Pending when there is none, now or ever.
    fn poll_next_frame(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, BodyError> {
        let Sending::Body { body, chunked, started } = &mut self.sending else { return Ok(Poll::Pending) };
        let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Ok(Poll::Pending) };
        *started = true;
        let chunked = *chunked;
        match frame.transpose()?.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(data)) => {
                if chunked {
                    encode_chunk_size(data.len(), &mut self.output);
                }
                self.chunk_open = chunked;
                if data.len() <= COALESCED {
                    self.output.extend_from_slice(&data);
                } else {
                    self.data = data;
                }
            }
            end => {
                if chunked {
                    let trailers = end.and_then(Result::err).and_then(|frame| frame.into_trailers().ok());
                    encode_last_chunk(trailers.as_ref(), &mut self.output);
                }
                self.sending = Sending::Done;
            }
        }
        Ok(Poll::Ready(()))
    }

    fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done)
    }

    /// Whether the endpoint has taken the whole request.
    fn has_sent_all(&self) -> bool {
        self.is_sent() && !self.deaf && self.written == self.output.len() && self.data.is_empty()
    }

    /// Whether the connection can carry another exchange, now that the response has been read to its end.
    fn is_reusable(&self) -> bool {
        self.has_sent_all() && self.input.is_empty()
    }

    /// What is left when the connection is no longer HTTP: the stream, with all that has arrived since the last head.
    pub fn into_stream(self) -> (Stream, Permit) {
        let mut stream = self.io;
        stream.put_back(self.input);
        (stream, self.permit)
    }
}

/// The body of a response, which carries its connection home at its end.
pub struct ResponseBody {
    /// None once the body has ended.
    connection: Option<Connection>,
    decoder: BodyDecoder,
    keep_alive: bool,
    pool: Rc<Pool>,
}

impl ResponseBody {
    /// What follows this head on this connection, as a body: held in full where all of it has arrived.
    pub fn read(mut connection: Connection, head: &Head, pool: &Rc<Pool>) -> Body {
        if let Framing::Length(length) = head.framing
            && connection.input.len() as u64 == length
        {
            let all = std::mem::take(&mut connection.input);
            if head.keep_alive && connection.is_reusable() {
                pool.put(connection);
            }
            return if all.is_empty() { Body::Empty } else { Body::Full(all) };
        }
        Body::Stream(Box::pin(Self {
            connection: Some(connection),
            decoder: BodyDecoder::new(head.framing),
            keep_alive: head.keep_alive,
            pool: pool.clone(),
        }))
    }

    fn finish(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && connection.is_reusable()
        {
            self.pool.put(connection);
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, BodyError>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(Piece::End)) };
        if let Poll::Ready(Err(error)) = connection.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        let broken = |error: &dyn std::error::Error| BodyError::Endpoint(error.to_string());
        loop {
            match self.decoder.decode(&mut connection.input).map_err(|error| broken(&error))? {
                Piece::More => {}
                piece => return Poll::Ready(Ok(piece)),
            }
            if !ready!(connection.poll_fill(cx)).map_err(|error| broken(&error))? {
                let complete = self.decoder.at_end_of_stream();
                return Poll::Ready(match complete {
                    Ok(()) => Ok(Piece::End),
                    Err(()) => Err(BodyError::Endpoint("the connection ended before the body".to_owned())),
                });
            }
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let piece = match ready!(this.poll_piece(cx)) {
            Ok(piece) => piece,
            Err(error) => {
                this.connection = None;
                return Poll::Ready(Some(Err(error)));
            }
        };
        if this.decoder.is_done() {
            this.finish();
        }
        Poll::Ready(match piece {
            Piece::Data(data) => Some(Ok(Frame::data(data))),
            Piece::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Piece::End | Piece::More => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.connection, self.decoder.remaining()) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(left)) => SizeHint::with_exact(left),
            (Some(_), None) => SizeHint::default(),
        }
    }
}
