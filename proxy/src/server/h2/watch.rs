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
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;
use tokio::task::AbortHandle;

use super::heads::Heads;
use super::parts::RequestBody;
use crate::timer::Timers;
use crate::turn::Items;

/// From this many streams on, more than half of which the client reset at once, a connection is closed: Envoy's advice
/// against rapid resets (CVE-2023-44487).
const STREAMS: u32 = 500;

/// A stream that was reset within this time was opened to be reset.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Bytes that may be read within a minute during which no stream gets on. The window of the connection is open while
/// an endpoint reads nothing, and what comes on top is PINGs and the like, of 9 to 17 bytes.
const FRUITLESS: u64 = super::CONNECTION_WINDOW as u64 + (1 << 20);
const MINUTE: Duration = Duration::from_secs(60);

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
    /// Frames that this turn of the connection's task has to pay for.
    frames: RefCell<Items>,
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
            frames: RefCell::default(),
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

    /// A stream has got on.
    pub(super) fn got_on(&self) {
        self.fruitless.set(0);
    }

    /// These bytes have come.
    pub(super) fn has_read(&self, bytes: &[u8]) {
        self.frames.borrow_mut().add(self.heads.borrow_mut().follow(bytes));
        self.count(bytes.len());
    }

    fn count(&self, bytes: usize) {
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
    pub(super) watch: Rc<Watch>,
    /// Its place among those of the connection.
    key: usize,
    /// Tick.
    since: u64,
    /// Whether all of the response has gone on, so that its end is no reset.
    pub(super) ended: bool,
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
    pub(super) fn reset(&self) {
        if let Some(task) = self.watch.open.borrow().get(self.key).and_then(|stream| stream.task.as_ref()) {
            task.abort();
        }
    }

    /// The request's body, whose frames are the connection's progress.
    pub fn request_body<B>(&self, body: B) -> RequestBody<B> {
        RequestBody::new(body, &self.watch)
    }

    /// Whether the client was given a frame, now, and has not taken it.
    pub(super) fn set_untaken(&self, untaken: bool) {
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

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http_body::Body as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::parts::{ResponseBody, Tunnelled};
    use super::*;
    use crate::proto::Body;
    use crate::proto::http2::{Outgoing, PIECE};

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
                    drop(ResponseBody::new(Outgoing::new(Body::Empty), open));
                }
            }
            assert_eq!((watch.is_abused(), watch.is_busy()), (abused, false));
        }
    }

    #[test]
    fn tunnels_may_be_short() {
        let watch = watch();
        for _ in 0..STREAMS {
            drop(ResponseBody::new(Outgoing::new(Body::Empty), Open::new(&watch)));
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
        let mut body = ResponseBody::new(Outgoing::new(Body::Full(whole.clone())), Open::new(&watch));
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
        watch.count(FRUITLESS as usize);
        tunnel.write_all(b"w").await.unwrap();
        watch.count(FRUITLESS as usize);
        far.write_all(b"r").await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap(), b'r');
        watch.count(FRUITLESS as usize);
        assert!(!watch.is_abused());
        // Its end is no progress.
        drop(far);
        assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
        watch.count(1);
        assert!(watch.is_abused());
    }

    #[test]
    fn bytes_that_lead_to_nothing_are_counted_until_a_stream_gets_on() {
        let watch = watch();
        watch.count(FRUITLESS as usize);
        assert!(!watch.is_abused());
        let open = Open::new(&watch);
        watch.count(FRUITLESS as usize);
        assert!(!watch.is_abused());
        watch.count(1);
        assert!(watch.is_abused());
        drop(open);
    }

    const LONGEST: Duration = Duration::from_secs(10);

    /// A stream in a task of its own, as the library has it, whose response's body is asked for this many frames.
    fn serve(watch: &Rc<Watch>, frames: usize) -> tokio::task::JoinHandle<()> {
        let mut body = ResponseBody::new(Outgoing::new(Body::Full(Bytes::from_static(b"data"))), Open::new(watch));
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
        let mut body = ResponseBody::new(Outgoing::new(Body::Full(Bytes::from_static(b"data"))), Open::new(&watch));
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
        let mut body = ResponseBody::new(Outgoing::new(Body::Full(Bytes::from_static(b"data"))), Open::new(&watch));
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        drop(body);
        assert!(!waits());
    }
}
