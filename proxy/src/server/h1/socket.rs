//! What the task of a client's connection and the body of the request on it share: the stream and what was read of it.
//!
//! Whoever needs bytes reads them, in the name of the connection's task: it is that task which the stream wakes. A
//! request's body may be read by another task (HTTP/2 towards the endpoint has one); it leaves its waker here and is
//! woken by the connection's task.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::AsyncWrite;

use crate::proto::BodyError;
use crate::proto::h1::{self, BodyDecoder, Framing, Malformed, Piece, Scratch, joined};
use crate::transport::Stream;
use crate::turn;

/// A client's stream, and the body of the request that is being served on it.
pub struct Socket {
    scratch: Rc<Scratch>,
    inner: RefCell<Inner>,
}

struct Inner {
    /// None once it has been taken away.
    stream: Option<Stream>,
    /// Read, but not used yet.
    input: Bytes,
    body: BodyDecoder,
    /// Nobody will read the rest of the body.
    abandoned: bool,
    interim: Interim,
    /// The connection's task.
    task: Waker,
    /// Another task that waits for more of the body.
    reader: Option<Waker>,
}

/// Whether the client is to be told to go on (RFC 9110, 10.1.1).
#[derive(PartialEq, Eq)]
enum Interim {
    /// It does not wait for a word, or has had one.
    None,
    /// Once the body is asked for.
    Waited,
    Due,
}

impl Socket {
    pub fn new(mut stream: Stream, scratch: &Rc<Scratch>) -> Rc<Self> {
        let input = stream.take_ahead();
        let inner = Inner {
            stream: Some(stream),
            input,
            body: BodyDecoder::new(Framing::Length(0)),
            abandoned: false,
            interim: Interim::None,
            task: Waker::noop().clone(),
            reader: None,
        };
        Rc::new(Self { scratch: scratch.clone(), inner: RefCell::new(inner) })
    }

    /// Takes the stream away, with what was read of it too early. A body that is still being read breaks.
    pub fn take(&self) -> Option<Stream> {
        let inner = &mut *self.inner.borrow_mut();
        let mut stream = inner.stream.take()?;
        if !inner.input.is_empty() {
            stream.put_back(std::mem::take(&mut inner.input));
        }
        if let Some(reader) = inner.reader.take() {
            reader.wake();
        }
        Some(stream)
    }

    /// Bytes that were read and not used yet.
    pub fn take_input(&self) -> Bytes {
        std::mem::take(&mut self.inner.borrow_mut().input)
    }

    pub fn put_input(&self, bytes: Bytes) {
        self.inner.borrow_mut().input = bytes;
    }

    pub fn has_input(&self) -> bool {
        !self.inner.borrow().input.is_empty()
    }

    /// What has arrived; empty at the end of the stream.
    pub fn poll_read(&self, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match &mut self.inner.borrow_mut().stream {
            Some(stream) => self.scratch.poll_read(stream, most, cx),
            None => Poll::Ready(Ok(Bytes::new())),
        }
    }

    /// The connection's task looks after the stream now.
    pub fn attend(&self, cx: &Context<'_>) {
        let inner = &mut *self.inner.borrow_mut();
        inner.task.clone_from(cx.waker());
        if let Some(reader) = inner.reader.take() {
            reader.wake();
        }
    }

    /// Ready when the client has gone away. What it sends in the meantime is kept, up to some point.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let inner = &mut *self.inner.borrow_mut();
        // Before the body has ended it is for its reader to see.
        let (true, true, Some(stream)) = (inner.body.is_done(), inner.input.is_empty(), &mut inner.stream) else {
            return Poll::Pending;
        };
        match ready!(self.scratch.poll_read(stream, h1::HEAD, cx)) {
            Ok(read) if !read.is_empty() => {
                // A copy: it may be kept for long.
                inner.input = Bytes::copy_from_slice(&read);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// The body that follows a head.
    pub fn begin_body(self: &Rc<Self>, framing: Framing, to_continue: bool) -> Begun {
        let inner = &mut *self.inner.borrow_mut();
        inner.abandoned = false;
        inner.interim = Interim::None;
        if let Framing::Length(length) = framing
            && let Ok(length) = usize::try_from(length)
            && length <= inner.input.len()
        {
            inner.body = BodyDecoder::new(Framing::Length(0));
            return Begun::Whole(inner.input.split_to(length));
        }
        inner.body = BodyDecoder::new(framing);
        if to_continue && inner.input.is_empty() {
            inner.interim = Interim::Waited;
        }
        Begun::Rest(RequestBody { socket: self.clone(), ended: false })
    }

    /// Whether the client is to be told now to send the body: true once.
    pub fn takes_word_to_continue(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        inner.interim == Interim::Due && {
            inner.interim = Interim::None;
            true
        }
    }

    /// The response begins: no interim one may follow. Whether the connection can go on after it, as far as that
    /// depends on the request's body: it has been read, or is being read.
    pub fn begin_response(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        inner.interim = Interim::None;
        inner.skip_what_is_here(&self.scratch);
        inner.body.is_done() || !inner.abandoned
    }

    /// Whether the next byte is that of another request, after a response.
    pub fn is_at_end_of_body(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        inner.skip_what_is_here(&self.scratch);
        inner.body.is_done()
    }
}

impl Inner {
    /// Passes over what is left of a body that nobody reads, as far as it has arrived: one read of it at most.
    fn skip_what_is_here(&mut self, scratch: &Scratch) {
        while self.abandoned
            && matches!(scratch.decode(&mut self.body, &mut self.input), Ok(Piece::Data(_) | Piece::Trailers(_)))
        {
        }
    }

    fn poll_body(&mut self, scratch: &Scratch, cx: &Context<'_>) -> Poll<Result<Piece, BodyError>> {
        let broken = |why: &dyn std::fmt::Display| BodyError::Client(why.to_string());
        loop {
            ready!(turn::poll_more(cx));
            match scratch.decode(&mut self.body, &mut self.input).map_err(|error| broken(&error))? {
                Piece::More => {}
                piece => return Poll::Ready(Ok(piece)),
            }
            if self.interim == Interim::Waited {
                self.interim = Interim::Due;
                self.task.wake_by_ref();
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(Err(broken(&"the connection has ended"))) };
            let Poll::Ready(read) = scratch.poll_read(stream, h1::BODY, &mut Context::from_waker(&self.task)) else {
                if !cx.waker().will_wake(&self.task) {
                    self.reader = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            let read = read.map_err(|error| broken(&error))?;
            if read.is_empty() {
                return Poll::Ready(Err(broken(&Malformed::Cut)));
            }
            self.input = if self.input.is_empty() { read } else { joined(std::mem::take(&mut self.input), &read) };
        }
    }
}

/// A body whose head has been read.
pub enum Begun {
    /// All of it is here.
    Whole(Bytes),
    /// It is to be read.
    Rest(RequestBody),
}

/// The body of the request that is being served.
pub struct RequestBody {
    socket: Rc<Socket>,
    /// What the socket holds is no longer this body.
    ended: bool,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let socket = self.socket.clone();
        let inner = &mut *socket.inner.borrow_mut();
        let piece = ready!(inner.poll_body(&socket.scratch, cx))?;
        self.ended = inner.body.is_done();
        Poll::Ready(match piece {
            Piece::Data(data) => Some(Ok(Frame::data(data))),
            Piece::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Piece::End | Piece::More => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.socket.inner.borrow().body.remaining() {
            _ if self.ended => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended {
            self.socket.inner.borrow_mut().abandoned = true;
        }
    }
}

/// Writes to a socket.
pub struct Writer<'a>(pub &'a Socket);

impl Writer<'_> {
    fn with<T>(&self, write: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut self.0.inner.borrow_mut().stream {
            Some(stream) => write(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::turn::MAX_ITEMS;

    /// Chunks of so many bytes.
    fn chunks(size: usize, count: usize) -> Vec<u8> {
        [format!("{size:x}\r\n").as_bytes(), &vec![b'x'; size], b"\r\n"].concat().repeat(count)
    }

    /// The most chunks, and the most bytes of data, that one poll brings of a body that has arrived.
    async fn most_in_one_poll(size: usize, count: usize) -> (usize, usize) {
        let (near, mut far) = tokio::io::duplex(16 << 20);
        far.write_all(&chunks(size, count)).await.unwrap();
        let socket = Socket::new(Stream::other(near), &Rc::default());
        let Begun::Rest(mut body) = socket.begin_body(Framing::Chunked, false) else { panic!("it is chunked") };
        let (mut data, mut most) = (0, 0);
        poll_fn(|cx| {
            socket.attend(cx);
            let before = data;
            while data < size * count {
                let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) else { break };
                data += frame.unwrap().unwrap().into_data().unwrap().len();
            }
            most = most.max(data - before);
            if data < size * count { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        (most / size, most)
    }

    /// Issue 10, 3: one poll of a connection handles so many chunks and 1 MiB, and what its last read brought.
    #[tokio::test]
    async fn one_poll_handles_a_bounded_number_of_chunks_and_bytes() {
        for (size, count) in [(1, 100_000), (64, 20_000), (8192, 1000), (100_000, 100)] {
            let (chunks, bytes) = most_in_one_poll(size, count).await;
            assert!(chunks <= MAX_ITEMS + 1024, "{chunks} chunks of {size}");
            assert!(bytes <= (1 << 20) + h1::BODY, "{bytes} bytes in chunks of {size}");
            assert!(chunks >= 1, "{size}");
        }
    }
}
