//! One connection, driven by whoever has an exchange on it.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::UPGRADE;
use http::request::Parts;
use http::{StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::unconstrained;

use super::codec::{Head, MAX_HEAD, Malformed, decode_response, encode_request};
use crate::proto::h1::{self, BodyDecoder, Framing, Piece, Scratch, SendError, Sender, joined};
use crate::proto::{Body, BodyError};
use crate::transport::Stream;
use crate::transport::tls::TlsFailure;
use crate::turn;
use crate::upstream::{Permit, Pool};

/// Why there is no response.
pub enum ExchangeError {
    /// The connection ended before a byte of the response. `body` is the request's body, if none of it was taken;
    /// `sent` says whether the connection took a byte of the request.
    Closed {
        body: Option<Body>,
        sent: bool,
    },
    Broken(io::Error),
    Malformed(Malformed),
    ClientBody(BodyError),
}

/// Interim responses before a response (RFC 9110, 15.2). Servers send one or two; one that sends them without end would
/// keep the worker from everything else.
const MAX_INTERIM: u8 = 16;

/// A connection to an endpoint.
pub struct Connection {
    io: Stream,
    scratch: Rc<Scratch>,
    /// Read, but not used yet.
    input: Bytes,
    sender: Sender,
    /// What the sender had written when the exchange began.
    written: u64,
    /// The endpoint takes no more bytes; its response may still be read.
    deaf: bool,
    permit: Permit,
}

impl Connection {
    pub fn new(io: Stream, scratch: Rc<Scratch>, permit: Permit) -> Self {
        Self { io, scratch, input: Bytes::new(), sender: Sender::default(), written: 0, deaf: false, permit }
    }

    /// Whether an idle connection can be used: the endpoint has neither closed it nor sent what nobody asked for.
    pub fn is_usable(&mut self) -> bool {
        let Self { io, scratch, input, .. } = self;
        // Nothing to read has to mean that, and not that this turn of the task is over.
        let mut read = pin!(unconstrained(poll_fn(|cx| scratch.poll_read(io, 1, cx))));
        input.is_empty() && read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Sends a request and waits for the response's head. The body goes on being sent while the response is read.
    pub async fn exchange(&mut self, head: &Parts, address: &str, body: Body) -> Result<Head, ExchangeError> {
        let framing = match body.size_hint().exact() {
            Some(0) => None,
            Some(length) => Some(Framing::Length(length)),
            None => Some(Framing::Chunked),
        };
        self.written = self.sender.taken();
        encode_request(head, address, framing, self.sender.output());
        self.sender.follow_with(body, framing, true);
        // A client of HTTP/2 may take its time for each of its streams: less is read for it ahead.
        let most = if head.version == Version::HTTP_2 { h1::BODY } else { h1::RESPONSE };
        let mut reading = ReadingHead { most, ends_a_line: true, interim: 0 };
        poll_fn(|cx| self.poll_head(head, &mut reading, cx)).await
    }

    /// Ready with the head. What there is of it is not read anew before another line has ended, of which a head has few.
    fn poll_head(
        &mut self,
        request: &Parts,
        reading: &mut ReadingHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, ExchangeError>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(ExchangeError::ClientBody(error)));
        }
        loop {
            let decoded = if reading.ends_a_line || self.input.len() > MAX_HEAD {
                decode_response(&mut self.input, &request.method)
            } else {
                Ok(None)
            };
            match decoded {
                Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    let asked = request.headers.contains_key(UPGRADE) && self.has_sent_all();
                    let unasked = || ExchangeError::Malformed(Malformed::Upgrade);
                    return Poll::Ready(asked.then_some(head).ok_or_else(unasked));
                }
                // Interim responses are for us, who have announced no interest in any (RFC 9110, 15.2).
                Ok(Some(head)) if head.status.is_informational() && reading.interim == MAX_INTERIM => {
                    return Poll::Ready(Err(ExchangeError::Malformed(Malformed::Interim)));
                }
                Ok(Some(head)) if head.status.is_informational() => {
                    reading.interim += 1;
                    continue;
                }
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => reading.ends_a_line = false,
                Err(malformed) => return Poll::Ready(Err(ExchangeError::Malformed(malformed))),
            }
            let before = self.input.len();
            match ready!(self.poll_fill(reading.most, cx)) {
                Ok(true) => {
                    let read = self.input.get(before..).unwrap_or_default();
                    reading.ends_a_line = before == 0 || read.contains(&b'\n');
                }
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
        ExchangeError::Closed { body: self.sender.take_body_back(), sent: self.sender.taken() != self.written }
    }

    /// Reads once, at most so many bytes; false at the end of the stream.
    fn poll_fill(&mut self, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let read = ready!(self.scratch.poll_read(&mut self.io, most, cx))?;
        if read.is_empty() {
            return Poll::Ready(Ok(false));
        }
        self.input = match std::mem::take(&mut self.input) {
            input if input.is_empty() => read,
            input => joined(input, &read),
        };
        Poll::Ready(Ok(true))
    }

    /// Sends what there is of the request. Ready once all of it is sent, or cannot be.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(match ready!(self.sender.poll_send(&mut self.io, cx)) {
            Ok(()) => Ok(()),
            Err(SendError::Body(error)) => Err(error),
            Err(SendError::Stream(_)) => {
                self.deaf = true;
                Ok(())
            }
        })
    }

    /// Whether the endpoint has taken the whole request.
    fn has_sent_all(&self) -> bool {
        self.sender.is_done() && !self.deaf
    }

    /// Whether the connection can carry another exchange, now that the response has been read to its end.
    fn is_reusable(&self) -> bool {
        self.has_sent_all() && self.input.is_empty()
    }

    /// Gives up what the next exchange has no use for: an idle connection holds little memory, and no part of a block.
    fn shrink(&mut self) {
        self.input = Bytes::new();
        self.sender.shrink();
    }

    /// What is left when the connection is no longer HTTP: the stream, with all that has arrived since the last head.
    pub fn into_stream(self) -> (Stream, Permit) {
        let mut stream = self.io;
        stream.put_back(self.input);
        (stream, self.permit)
    }
}

/// How the reading of a head gets on.
struct ReadingHead {
    /// Bytes that are read at once.
    most: usize,
    /// Whether a line has ended since what there is was read last.
    ends_a_line: bool,
    /// Interim responses so far.
    interim: u8,
}

/// The body of a response, which carries its connection home at its end.
pub struct ResponseBody {
    /// None once the body has ended.
    connection: Option<Box<Connection>>,
    decoder: BodyDecoder,
    keep_alive: bool,
    pool: Rc<Pool>,
}

impl ResponseBody {
    /// What follows this head on this connection, as a body: held in full where all of it has arrived.
    pub fn read(mut connection: Box<Connection>, head: &Head, pool: &Rc<Pool>) -> Body {
        if let Framing::Length(length) = head.framing
            && connection.input.len() as u64 == length
        {
            let all = std::mem::take(&mut connection.input);
            if head.keep_alive && connection.is_reusable() {
                connection.shrink();
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
        if let Some(mut connection) = self.connection.take()
            && self.keep_alive
            && connection.is_reusable()
        {
            connection.shrink();
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
            ready!(turn::poll_more(cx));
            let Connection { scratch, input, .. } = &mut **connection;
            match scratch.decode(&mut self.decoder, input).map_err(|error| broken(&error))? {
                Piece::More => {}
                piece => return Poll::Ready(Ok(piece)),
            }
            if !ready!(connection.poll_fill(h1::BODY, cx)).map_err(|error| broken(&error))? {
                let complete = self.decoder.at_end_of_stream();
                return Poll::Ready(complete.map(|()| Piece::End).map_err(|error| broken(&error)));
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
