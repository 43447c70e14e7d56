//! What a client's HTTP/2 connection is doing, told from outside of the library that speaks on it, and whether that is
//! still reasonable.
//!
//! The library bounds what it keeps. It stops reading while the answer to a PING or to SETTINGS cannot be written, so
//! that neither piles up; it counts CONTINUATION frames and empty DATA frames; and it ends a connection with too many
//! streams that were reset before anybody saw them. What it does not bound is work: streams that are opened and reset
//! for ever, and frames that lead to nothing. And it waits for ever for a client that opens no window, as long as pings
//! are answered. Those are looked at here.
//!
//! A stream whose client takes nothing is the only one that is reset: a call whose reader takes its time must not end
//! the others on the same connection, and what those do must not keep it. The library has no way to reset a stream from
//! outside; but each of its streams is a task, which it asks us to run, and a task that is dropped resets its stream.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use super::heads::Heads;
use crate::proto::BodyError;
use crate::proto::http2::Outgoing;
use crate::timer::Timers;
use crate::transport::{Io, Stream};

/// From this many streams on, more than half of which the client reset at once, a connection is closed: Envoy's advice
/// against rapid resets (CVE-2023-44487).
const STREAMS: u32 = 500;

/// A stream that was reset within this time was opened to be reset.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Bytes that may be read within a minute during which no stream gets on. The window of the connection is open while
/// an endpoint reads nothing, and what comes on top is PINGs and the like, of 9 to 17 bytes.
const FRUITLESS: u64 = super::CONNECTION_WINDOW as u64 + (1 << 20);
const MINUTE: Duration = Duration::from_secs(60);

/// The most that a response's stream is given at once: that of a frame, unless the client asks for more (RFC 9113, 6.5.2).
const PIECE: usize = 16 << 10;

/// What the parts of a connection tell its task.
pub struct Watch {
    timers: Rc<Timers>,
    /// Streams, and tunnels, that have not ended.
    open: RefCell<Slab<Running>>,
    /// Which of them the library is about to begin a task for.
    begun: Cell<Option<usize>>,
    /// Streams so far, and those of them that the client reset at once.
    streams: Cell<u32>,
    reset: Cell<u32>,
    /// Bytes read since a stream got on, or since this tick.
    fruitless: Cell<u64>,
    since: Cell<u64>,
    heads: RefCell<Heads>,
}

/// A stream that is open.
#[derive(Default)]
struct Running {
    /// Tick since which the client has yet to take what it was given.
    untaken: Option<u64>,
    /// What sends it.
    task: Option<AbortHandle>,
}

impl Watch {
    pub fn new(timers: &Rc<Timers>) -> Rc<Self> {
        Rc::new(Self {
            timers: timers.clone(),
            open: RefCell::default(),
            begun: Cell::new(None),
            streams: Cell::new(0),
            reset: Cell::new(0),
            fruitless: Cell::new(0),
            since: Cell::new(0),
            heads: RefCell::default(),
        })
    }

    /// Whether anything is being served.
    pub fn is_busy(&self) -> bool {
        !self.open.borrow().is_empty()
    }

    /// Whether anything has been asked for.
    pub fn has_served(&self) -> bool {
        self.streams.get() > 0
    }

    /// Resets the streams whose client has taken nothing for `longest` of what it was given. Until none can have for so
    /// long: `longest` at most, and never nothing.
    pub fn reset_untaken(&self, longest: Duration) -> Duration {
        let mut soonest = longest;
        for stream in self.open.borrow().iter().map(|(_, stream)| stream) {
            let Some(since) = stream.untaken else { continue };
            match longest.checked_sub(self.timers.since(since)).filter(|left| !left.is_zero()) {
                Some(left) => soonest = soonest.min(left),
                None => stream.task.iter().for_each(AbortHandle::abort),
            }
        }
        soonest
    }

    /// The library has begun a task, which is dropped when it is aborted.
    pub fn runs(&self, task: AbortHandle) {
        if let Some(key) = self.begun.take()
            && let Some(stream) = self.open.borrow_mut().get_mut(key)
        {
            stream.task = Some(task);
        }
    }

    /// The number of the head that the client has begun and not finished.
    pub fn unfinished_head(&self) -> Option<u64> {
        self.heads.borrow().unfinished()
    }

    /// Whether the client does what nobody would who wants an answer.
    pub fn is_abused(&self) -> bool {
        let streams = self.streams.get();
        (streams >= STREAMS && self.reset.get() > streams / 2) || self.fruitless.get() > FRUITLESS
    }

    fn got_on(&self) {
        self.fruitless.set(0);
    }

    fn has_read(&self, bytes: usize) {
        let read = if self.timers.since(self.since.get()) > MINUTE {
            self.since.set(self.timers.now());
            0
        } else {
            self.fruitless.get()
        };
        self.fruitless.set(read + bytes as u64);
    }
}

/// A stream that has not ended.
pub struct Open {
    watch: Rc<Watch>,
    /// Its place among those of the connection.
    key: usize,
    /// Tick.
    since: u64,
    ended: bool,
}

impl Open {
    /// A stream that the client has opened, and that the library begins a task for next.
    pub fn new(watch: &Rc<Watch>) -> Self {
        watch.streams.set(watch.streams.get().saturating_add(1));
        watch.got_on();
        Self::begin(watch, false)
    }

    /// The tunnel that an opened stream has become, and that the library begins another task for next. It is no other
    /// stream, and may be over as soon as it likes.
    pub fn tunnel(watch: &Rc<Watch>) -> Self {
        Self::begin(watch, true)
    }

    fn begin(watch: &Rc<Watch>, ended: bool) -> Self {
        let key = watch.open.borrow_mut().insert(Running::default());
        watch.begun.set(Some(key));
        Self { watch: watch.clone(), key, since: watch.timers.now(), ended }
    }

    /// Resets the stream. What the client has not taken yet is lost.
    fn reset(&self) {
        if let Some(task) = self.watch.open.borrow().get(self.key).and_then(|stream| stream.task.as_ref()) {
            task.abort();
        }
    }

    /// The request's body, whose frames are the connection's progress.
    pub fn request_body<B>(&self, body: B) -> RequestBody<B> {
        RequestBody { body, watch: self.watch.clone() }
    }

    /// Whether the client was given a frame, now, and has not taken it.
    fn set_untaken(&self, untaken: bool) {
        if let Some(stream) = self.watch.open.borrow_mut().get_mut(self.key) {
            stream.untaken = untaken.then(|| self.watch.timers.now());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let watch = &self.watch;
        let ended = watch.open.borrow_mut().try_remove(self.key);
        drop(ended);
        if !self.ended && watch.timers.since(self.since) < AT_ONCE {
            watch.reset.set(watch.reset.get().saturating_add(1));
        }
    }
}

/// Tells of a request's body that it is being read.
pub struct RequestBody<B> {
    body: B,
    watch: Rc<Watch>,
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> HttpBody for RequestBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.watch.got_on();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, with which its stream ends.
///
/// Data goes on in pieces of at most [`PIECE`]: that a client takes a stream is known only when the library asks for more.
pub struct ResponseBody {
    body: Outgoing,
    stream: Open,
    /// Data that has come from the body, and is still to go on.
    rest: Bytes,
}

impl ResponseBody {
    pub fn new(body: Outgoing, mut stream: Open) -> Self {
        stream.ended = body.is_end_stream();
        Self { body, stream, rest: Bytes::new() }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data(),
                other => return Poll::Ready(other),
            };
            match frame {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        // Asked for more, the client has taken what it was given.
        self.stream.set_untaken(false);
        let frame = ready!(self.poll_piece(cx));
        self.stream.watch.got_on();
        let is_data = matches!(&frame, Some(Ok(frame)) if frame.is_data());
        self.stream.set_untaken(is_data);
        self.stream.ended = !is_data || self.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

/// What goes through a tunnel, which gets on with every byte, whichever way.
pub struct Tunnelled<T> {
    io: T,
    stream: Open,
}

impl<T> Tunnelled<T> {
    pub fn new(io: T, stream: Open) -> Self {
        Self { io, stream }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for Tunnelled<T> {
    /// The library would take a tunnel that is dropped for one that has ended.
    fn break_off(&self) {
        self.stream.reset();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tunnelled<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.stream.watch.got_on();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tunnelled<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.stream.watch.got_on();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The connection's stream, with an eye on what goes through it. Whoever has another handle can say the last word.
pub struct Watched {
    pub stream: Rc<RefCell<Written>>,
    pub watch: Rc<Watch>,
}

/// A stream that is written to.
pub struct Written {
    pub stream: Stream,
    /// Whether the last write was taken as a whole: no frame has been written in part then.
    whole: bool,
}

impl Written {
    pub fn new(stream: Stream) -> Self {
        Self { stream, whole: true }
    }

    /// Whether another frame can be written.
    pub fn is_between_frames(&self) -> bool {
        self.whole
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        self.whole = matches!(result, Poll::Ready(Ok(taken)) if taken == offered);
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = pin!(&mut self.stream.borrow_mut().stream).poll_read(cx, buf);
        let read = buf.filled().get(before..).unwrap_or_default();
        self.watch.has_read(read.len());
        self.watch.heads.borrow_mut().follow(read);
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut written = self.stream.borrow_mut();
        let result = pin!(&mut written.stream).poll_write(cx, buf);
        written.wrote(result, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = self.stream.borrow_mut();
        let result = pin!(&mut written.stream).poll_write_vectored(cx, bufs);
        written.wrote(result, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream.borrow_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream.borrow_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::proto::Body;

    fn watch() -> Rc<Watch> {
        Watch::new(&Rc::default())
    }

    #[test]
    fn a_connection_whose_streams_are_mostly_reset_at_once_is_abused() {
        for (resets, abused) in [(STREAMS / 2, false), (STREAMS / 2 + 1, true)] {
            let watch = watch();
            for number in 0..STREAMS {
                assert!(!watch.is_abused(), "after {number} streams");
                let open = Open::new(&watch);
                if number >= resets {
                    drop(ResponseBody::new(Outgoing(Body::Empty), open));
                }
            }
            assert_eq!((watch.is_abused(), watch.is_busy()), (abused, false));
        }
    }

    #[test]
    fn tunnels_may_be_short() {
        let watch = watch();
        for _ in 0..STREAMS {
            drop(ResponseBody::new(Outgoing(Body::Empty), Open::new(&watch)));
            let tunnel = Open::tunnel(&watch);
            assert!(watch.is_busy());
            drop(tunnel);
        }
        assert_eq!((watch.streams.get(), watch.reset.get()), (STREAMS, 0));
        assert!(!watch.is_abused() && !watch.is_busy());
    }

    #[test]
    fn a_response_goes_on_in_pieces_that_are_taken_one_by_one() {
        let watch = watch();
        let whole = Bytes::from(vec![7; 2 * PIECE + 1]);
        let mut body = ResponseBody::new(Outgoing(Body::Full(whole.clone())), Open::new(&watch));
        let mut came = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - came.len()) as u64));
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else {
                panic!("it is all here")
            };
            let data = frame.into_data().unwrap();
            assert!(data.len() <= PIECE);
            came.extend_from_slice(&data);
            assert!(watch.open.borrow().iter().all(|(_, stream)| stream.untaken.is_some()));
        }
        assert_eq!(came, whole);
    }

    #[tokio::test]
    async fn each_byte_of_a_tunnel_gets_it_on() {
        let watch = watch();
        let (near, mut far) = tokio::io::duplex(64);
        let mut tunnel = Tunnelled::new(near, Open::tunnel(&watch));
        watch.has_read(FRUITLESS as usize);
        tunnel.write_all(b"w").await.unwrap();
        watch.has_read(FRUITLESS as usize);
        far.write_all(b"r").await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap(), b'r');
        watch.has_read(FRUITLESS as usize);
        assert!(!watch.is_abused());
        // Its end is no progress.
        drop(far);
        assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
        watch.has_read(1);
        assert!(watch.is_abused());
    }

    #[test]
    fn bytes_that_lead_to_nothing_are_counted_until_a_stream_gets_on() {
        let watch = watch();
        watch.has_read(FRUITLESS as usize);
        assert!(!watch.is_abused());
        let open = Open::new(&watch);
        watch.has_read(FRUITLESS as usize);
        assert!(!watch.is_abused());
        watch.has_read(1);
        assert!(watch.is_abused());
        drop(open);
    }

    const LONGEST: Duration = Duration::from_secs(10);

    /// A stream in a task of its own, as the library has it, whose response's body is asked for this many frames.
    fn serve(watch: &Rc<Watch>, frames: usize) -> tokio::task::JoinHandle<()> {
        let mut body = ResponseBody::new(Outgoing(Body::Full(Bytes::from_static(b"data"))), Open::new(watch));
        let task = tokio::task::spawn_local(async move {
            for _ in 0..frames {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
            }
            std::future::pending().await
        });
        watch.runs(task.abort_handle());
        task
    }

    /// Whatever goes on beside it, and nothing of that with it.
    #[tokio::test]
    async fn a_stream_that_its_client_does_not_take_is_reset_alone() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let timers = Rc::new(Timers::default());
                let watch = Watch::new(&timers);
                assert_eq!(watch.reset_untaken(LONGEST), LONGEST);
                let (unasked, taken, untaken) = (serve(&watch, 0), serve(&watch, 2), serve(&watch, 1));
                tokio::task::yield_now().await;
                timers.advance(timers.tick_after(LONGEST / 2));
                let later = serve(&watch, 1);
                tokio::task::yield_now().await;
                let until = watch.reset_untaken(LONGEST);
                assert!(until > Duration::ZERO && until <= LONGEST / 2, "{until:?}");
                timers.advance(timers.tick_after(until));
                let until = watch.reset_untaken(LONGEST);
                assert!(until > Duration::ZERO && until <= LONGEST / 2, "{until:?}");
                assert!(untaken.await.unwrap_err().is_cancelled());
                for task in [unasked, taken, later] {
                    assert!(!task.is_finished());
                }
                assert_eq!(watch.open.borrow().len(), 3);
            })
            .await;
    }

    #[test]
    fn a_stream_waits_for_its_client_until_it_is_asked_for_more() {
        let watch = watch();
        let waits = || watch.open.borrow().iter().any(|(_, stream)| stream.untaken.is_some());
        let mut body = ResponseBody::new(Outgoing(Body::Full(Bytes::from_static(b"data"))), Open::new(&watch));
        assert!(!waits());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        assert!(waits() && watch.is_busy());
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(None)));
        assert!(!waits());
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(None)));
        drop(body);
        assert!(!watch.is_busy());
        // Given up before it was taken.
        let mut body = ResponseBody::new(Outgoing(Body::Full(Bytes::from_static(b"data"))), Open::new(&watch));
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        drop(body);
        assert!(!waits());
    }
}
