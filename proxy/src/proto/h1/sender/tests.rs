use std::task::Waker;

use proptest::prelude::*;

use super::super::body::{BodyDecoder, Piece};
use super::*;

/// A body that is ready with frames of these sizes, over and over, and counts those that were taken.
struct Frames {
    sizes: Vec<usize>,
    block: Bytes,
    left: usize,
    taken: std::rc::Rc<std::cell::Cell<usize>>,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let taken = self.taken.get();
        self.taken.set(taken + 1);
        let size = self.sizes[taken % self.sizes.len()];
        Poll::Ready(Some(Ok(Frame::data(self.block.slice(taken % 99..taken % 99 + size)))))
    }
}

/// A stream that takes so much at each write, for so many writes, and then nothing until it is let go on.
struct Sink {
    took: Vec<u8>,
    each: usize,
    writes: usize,
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.writes == 0 {
            return Poll::Pending;
        }
        self.writes -= 1;
        let length = self.each.min(bytes.len());
        self.took.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.writes == 0 {
            return Poll::Pending;
        }
        self.writes -= 1;
        let mut left = self.each;
        for part in parts {
            let length = left.min(part.len());
            self.took.extend_from_slice(&part[..length]);
            left -= length;
        }
        Poll::Ready(Ok(self.each - left))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn block() -> Bytes {
    (0..100_000_u32).map(|number| (number % 251) as u8).collect::<Vec<_>>().into()
}

/// A message of so many frames, and the count of those that were taken.
fn message(sizes: &[usize], frames: usize, framing: Framing) -> (Sender, std::rc::Rc<std::cell::Cell<usize>>) {
    let mut sender = Sender::default();
    sender.output().extend_from_slice(b"HEAD\r\n");
    let taken = std::rc::Rc::<std::cell::Cell<usize>>::default();
    let body = Frames { sizes: sizes.to_vec(), block: block(), left: frames, taken: taken.clone() };
    sender.follow_with(Body::Stream(Box::pin(body)), Some(framing), false);
    (sender, taken)
}

/// Issue 10, 1: what was written does not stay, whatever the sizes of frames, however much the stream takes at once.
#[test]
fn a_transfer_holds_no_more_than_what_is_coalesced_and_a_piece() {
    for sizes in [&[1][..], &[64], &[1024], &[4096], &[8192], &[16_384], &[65_536], &[1, 9000, 20_000, 3]] {
        for (each, writes) in [(usize::MAX, usize::MAX), (5000, usize::MAX), (7, 3), (5000, 1)] {
            let (mut sender, taken) = message(sizes, 20_000, Framing::UntilClose);
            let mut sink = Sink { took: Vec::new(), each, writes };
            for _ in 0..400 {
                sink.took.clear();
                sink.writes = writes;
                let sent = sender.poll_send(&mut sink, &mut cx());
                assert!(sender.output.capacity() <= 2 * COALESCED, "{}", sender.output.capacity());
                assert!(sender.encoded() <= COALESCED, "{} bytes wait", sender.encoded());
                if sent.is_ready() {
                    break;
                }
            }
            assert!(taken.get() > 0, "{sizes:?}");
        }
    }
}

/// Issue 10, 3: counts, for bodies that are always ready: one poll takes so many frames and so many bytes.
#[test]
fn one_poll_takes_a_bounded_number_of_frames_and_bytes() {
    for size in [1, 100, 4096, 65_536] {
        let (mut sender, taken) = message(&[size], 1 << 20, Framing::Chunked);
        let mut sink = Sink { took: Vec::new(), each: usize::MAX, writes: usize::MAX };
        for _ in 0..10 {
            let before = taken.get();
            assert!(sender.poll_send(&mut sink, &mut cx()).is_pending());
            let frames = taken.get() - before;
            assert!((1..=TURN / FRAME).contains(&frames), "{frames} frames");
            assert!(frames * size <= TURN + size, "{frames} frames of {size}");
            assert!(sink.took.len() <= 1 << 20);
            sink.took.clear();
        }
    }
}

/// Many small frames that are ready together leave together.
#[test]
fn what_is_ready_leaves_in_one_write() {
    let (mut sender, _) = message(&[100], 100, Framing::Chunked);
    let mut sink = Sink { took: Vec::new(), each: usize::MAX, writes: 1 };
    let sent = sender.poll_send(&mut sink, &mut cx());
    assert!(matches!(sent, Poll::Ready(Ok(()))), "{sent:?} after {} bytes", sink.took.len());
}

/// Issue 10, 2: a part of a piece that is not taken does not keep the block that it was read into.
#[test]
fn what_waits_has_memory_of_its_own() {
    let mut sender = Sender::default();
    for (size, is_own) in [(COALESCED, true), (20_000, false), (40_000, true)] {
        (sender, _) = message(&[size], 1, Framing::Length(size as u64));
        let mut sink = Sink { took: Vec::new(), each: 1000, writes: 3 };
        assert!(sender.poll_send(&mut sink, &mut cx()).is_pending());
        assert_eq!(sender.data.len(), size + 6 - 3000);
        assert_eq!((sender.piece == 0, sender.data.is_unique()), (is_own, is_own), "{size}");
        sink.writes = usize::MAX;
        assert!(sender.poll_send(&mut sink, &mut cx()).is_ready());
        assert_eq!(sink.took[6..], block()[..size]);
    }
    sender.output = Vec::with_capacity(1 << 16);
    sender.shrink();
    assert_eq!(sender.output.capacity(), 0);
}

proptest! {
    /// What is written is what the body had, wherever writes end.
    #[test]
    fn every_byte_is_written_once(
        (sizes, each) in prop_oneof![
            (prop::collection::vec(1_usize..200, 1..12), 1_usize..5),
            (prop::collection::vec(prop_oneof![1_usize..200, 1000_usize..40_000], 1..12), 500_usize..50_000),
        ],
        writes in 1_usize..20,
    ) {
        let (mut sender, _) = message(&sizes, sizes.len(), Framing::Chunked);
        let mut sink = Sink { took: Vec::new(), each, writes };
        while sender.poll_send(&mut sink, &mut cx()).is_pending() {
            sink.writes = writes;
        }
        prop_assert!(sender.is_done());
        let mut wire = Bytes::from(sink.took).split_off(6);
        let (mut decoder, mut data) = (BodyDecoder::new(Framing::Chunked), Vec::new());
        while let Piece::Data(piece) = decoder.decode(&mut wire, &mut bytes::BytesMut::new()).unwrap() {
            data.extend_from_slice(&piece);
        }
        let expected: Vec<u8> = sizes.iter().enumerate().flat_map(|(n, size)| block().slice(n..n + size)).collect();
        prop_assert!(decoder.is_done() && wire.is_empty() && data == expected);
    }
}
