//! A byte stream of any kind, and what was read of it too early.
//!
//! What is read is paid for with the budget of the task's poll ([`turn`]), whoever reads it and whatever for: so no stream
//! takes a worker from the others, however much arrives on it.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::turn;

/// Anything else that carries bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite {
    /// See [`Stream::break_off`].
    fn break_off(&self) {}
}

#[cfg(test)]
impl Io for tokio::io::DuplexStream {}

/// A byte stream in both directions.
pub struct Stream {
    /// Read from it already, and to be read first.
    ahead: Bytes,
    kind: Kind,
    /// Bytes that a unit of the poll's budget pays for.
    unit: usize,
}

enum Kind {
    Tcp(TcpStream),
    Tls(Box<TlsStream<Stream>>),
    Other(Pin<Box<dyn Io>>),
}

/// Bytes that are read at once to find out what a stream begins with.
const START: usize = 4096;

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { ahead: Bytes::new(), kind: Kind::Tcp(tcp), unit: turn::UNIT }
    }
}

impl From<TlsStream<Stream>> for Stream {
    fn from(tls: TlsStream<Stream>) -> Self {
        // Paid for where they come in.
        Self { ahead: Bytes::new(), kind: Kind::Tls(Box::new(tls)), unit: usize::MAX }
    }
}

impl Stream {
    /// A stream of another kind.
    pub fn other(io: impl Io + 'static) -> Self {
        Self { ahead: Bytes::new(), kind: Kind::Other(Box::pin(io)), unit: turn::UNIT }
    }

    /// The stream, for TLS to be spoken on it.
    pub fn beneath_tls(mut self) -> Self {
        self.unit = turn::TLS_UNIT;
        self
    }

    /// What was read already and is yet to be used.
    pub fn ahead(&self) -> &Bytes {
        &self.ahead
    }

    /// Takes what was read already; whoever calls this reads it in the stream's stead.
    pub fn take_ahead(&mut self) -> Bytes {
        std::mem::take(&mut self.ahead)
    }

    /// Gives back what was read and not used: it is read first again.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.ahead = if self.ahead.is_empty() { bytes } else { [&bytes[..], &self.ahead[..]].concat().into() };
    }

    /// The socket, if the stream is nothing more and nothing was read ahead.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Tcp(tcp) if self.ahead.is_empty() => Some(tcp),
            _ => None,
        }
    }

    /// Whether the stream is one of an HTTP/2 connection's, or TLS over one.
    pub fn is_inside_http2(&self) -> bool {
        match &self.kind {
            Kind::Tcp(_) => false,
            Kind::Tls(tls) => tls.get_ref().0.is_inside_http2(),
            Kind::Other(_) => true,
        }
    }

    /// The TLS session, if the stream is one.
    pub fn as_tls(&self) -> Option<&TlsStream<Stream>> {
        match &self.kind {
            Kind::Tls(tls) => Some(tls),
            _ => None,
        }
    }

    /// Lets the other side see a break, and not an end, once the stream is dropped. What it has not taken yet is lost.
    pub fn break_off(&self) {
        match &self.kind {
            Kind::Tcp(tcp) => {
                let _it_ends_in_any_case = tcp.set_zero_linger();
            }
            Kind::Tls(tls) => tls.get_ref().0.break_off(),
            Kind::Other(io) => io.break_off(),
        }
    }

    /// Reads once more into what is [`ahead`](Self::ahead); false at the end of the stream. Nothing is lost when the
    /// caller stops waiting.
    pub async fn read_ahead(&mut self) -> io::Result<bool> {
        let mut more = BytesMut::with_capacity(START);
        self.kind.read_buf(&mut more).await?;
        let grown = !more.is_empty();
        self.ahead = match self.take_ahead() {
            ahead if ahead.is_empty() => more.freeze(),
            ahead => {
                let mut all = ahead.try_into_mut().unwrap_or_else(|ahead| BytesMut::from(&ahead[..]));
                all.extend_from_slice(&more);
                all.freeze()
            }
        };
        Ok(grown)
    }

    /// Ready once there is something to read; false at the end of the stream. Holds no buffer while it waits. Over TLS
    /// it may be told of a record that carries no data.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.ahead.is_empty() {
            return Poll::Ready(true);
        }
        match &mut self.kind {
            // Peeked, because readiness alone may be reported of a socket on which nothing has arrived yet.
            Kind::Tcp(tcp) => tcp.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map(|n| n.is_ok_and(|n| n > 0)),
            Kind::Tls(tls) => {
                let (inner, session) = tls.get_mut();
                // What came along with the end of the handshake is here already.
                if session.wants_read() { inner.poll_readable(cx) } else { Poll::Ready(true) }
            }
            Kind::Other(io) => {
                let mut byte = [0];
                let mut read = ReadBuf::new(&mut byte);
                let result = ready!(io.as_mut().poll_read(cx, &mut read));
                self.ahead = Bytes::copy_from_slice(read.filled());
                Poll::Ready(result.is_ok() && !self.ahead.is_empty())
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = pin!(&mut self.kind).poll_read(cx, buf);
        turn::spend((buf.filled().len() - before) / self.unit);
        result
    }
}

impl AsyncRead for Kind {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => pin!(tcp).poll_read(cx, buf),
            Self::Tls(tls) => pin!(tls).poll_read(cx, buf),
            Self::Other(io) => io.as_mut().poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Tcp(tcp) => pin!(tcp).poll_write(cx, buf),
            Kind::Tls(tls) => pin!(tls).poll_write(cx, buf),
            Kind::Other(io) => io.as_mut().poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Tcp(tcp) => pin!(tcp).poll_write_vectored(cx, bufs),
            Kind::Tls(tls) => pin!(tls).poll_write_vectored(cx, bufs),
            Kind::Other(io) => io.as_mut().poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.is_write_vectored(),
            Kind::Tls(tls) => tls.is_write_vectored(),
            Kind::Other(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(tcp) => pin!(tcp).poll_flush(cx),
            Kind::Tls(tls) => pin!(tls).poll_flush(cx),
            Kind::Other(io) => io.as_mut().poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(tcp) => pin!(tcp).poll_shutdown(cx),
            Kind::Tls(tls) => pin!(tls).poll_shutdown(cx),
            Kind::Other(io) => io.as_mut().poll_shutdown(cx),
        }
    }
}
