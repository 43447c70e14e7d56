use std::collections::VecDeque;
use std::task::Waker;

use proptest::prelude::*;

use super::*;

/// A body in these pieces; nothing comes after the last while `open`.
struct Pieces {
    left: VecDeque<Frame<Bytes>>,
    open: bool,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.left.pop_front() {
            None if self.open => Poll::Pending,
            frame => Poll::Ready(frame.map(Ok)),
        }
    }
}

fn replay(pieces: &[Bytes], trailers: Option<HeaderMap>, open: bool, limit: usize) -> Replay {
    let left = pieces.iter().cloned().map(Frame::data).chain(trailers.map(Frame::trailers)).collect();
    Replay::new(Body::Stream(Box::pin(Pieces { left, open })), Some(limit))
}

fn next(body: &mut Body) -> Poll<Option<Frame<Bytes>>> {
    let frame = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    frame.map(|frame| frame.transpose().expect("no error"))
}

/// All that a body gives until it has ended, or nothing more has arrived.
fn read(body: &mut Body) -> (Vec<u8>, Option<HeaderMap>) {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Poll::Ready(Some(frame)) = next(body) {
        match frame.into_data() {
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (data, trailers)
}

fn texts<const N: usize>(texts: [&'static str; N]) -> [Bytes; N] {
    texts.map(|text| Bytes::from_static(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())])
}

#[test]
fn what_is_here_is_lent_as_it_is() {
    for body in [Body::Empty, Body::Full(Bytes::from_static(b"all of it"))] {
        let expected = if let Body::Full(bytes) = &body { bytes.to_vec() } else { Vec::new() };
        let mut replay = Replay::new(body, Some(100));
        for _ in 0..2 {
            assert!(replay.is_replayable() && replay.whole().is_some());
            assert_eq!(read(&mut replay.body()).0, expected);
        }
    }
}

#[test]
fn without_retries_it_is_given_away() {
    let mut replay = Replay::new(Body::Full(Bytes::from_static(b"once")), None);
    assert!(!replay.is_replayable() && replay.whole().is_none());
    assert!(matches!(replay.body(), Body::Full(bytes) if bytes == "once"));
    assert!(matches!(replay.body(), Body::Empty));
}

#[test]
fn one_that_is_here_and_too_large_is_sent_once() {
    let mut replay = Replay::new(Body::Full(Bytes::from_static(b"too large")), Some(8));
    assert!(replay.is_replayable() && replay.whole().is_none(), "nothing of it was taken");
    let mut body = replay.body();
    assert_eq!(body.size_hint().exact(), Some(9));
    assert_eq!(read(&mut body).0, b"too large");
    assert!(!replay.is_replayable());
}

#[test]
fn an_attempt_goes_on_where_the_last_one_was_given_up() {
    let mut replay = replay(&texts(["one", "two", "three"]), Some(trailers()), false, 100);
    let mut first = replay.body();
    assert!(matches!(next(&mut first), Poll::Ready(Some(frame)) if frame.data_ref().unwrap() == "one"));
    drop(first);
    assert!(replay.is_replayable() && replay.whole().is_none());
    for attempt in 0..2 {
        let mut body = replay.body();
        // Trailers need a framing of which the length is not said.
        assert_eq!((attempt, body.size_hint().exact()), (attempt, None));
        assert_eq!(read(&mut body), (b"onetwothree".to_vec(), Some(trailers())));
        assert!(body.is_end_stream() && replay.whole().is_some());
    }
}

#[test]
fn two_attempts_at_once_get_the_same() {
    let mut replay = replay(&texts(["a", "b", "c"]), None, false, 100);
    read(&mut replay.body());
    let (mut first, mut second) = (replay.body(), replay.body());
    assert_eq!(first.size_hint().exact(), Some(3));
    assert_eq!((read(&mut second).0, read(&mut first).0), (b"abc".to_vec(), b"abc".to_vec()));
}

#[test]
fn one_that_outgrows_the_bound_goes_on_and_cannot_be_sent_again() {
    let large = Bytes::from(vec![7; 600]);
    let mut replay = replay(&[large.clone(), large.clone()], None, true, 1000);
    let mut body = replay.body();
    assert!(next(&mut body).is_ready() && replay.is_replayable());
    assert!(next(&mut body).is_ready() && !replay.is_replayable());
    let Replay::Stream(kept) = &replay else { panic!("a stream") };
    assert!(kept.borrow().pieces.is_empty() && kept.borrow().small.is_empty());
}

/// A block as connections are read with, of which nobody else has a part.
fn block() -> Bytes {
    BytesMut::zeroed(128 << 10).freeze()
}

#[test]
fn no_piece_holds_on_to_a_block_that_is_more_than_four_times_as_large() {
    for size in [1, 1024, 4 << 10, 16 << 10, (32 << 10) - 1] {
        let block = block();
        let mut replay = replay(&[block.slice(..size)], None, false, 64 << 10);
        read(&mut replay.body());
        assert!(block.is_unique(), "{size}");
        assert_eq!(read(&mut replay.body()).0.len(), size);
        let mut whole = Replay::new(Body::Full(block.slice(..size)), Some(64 << 10));
        assert!(block.is_unique(), "{size}, at once");
        assert_eq!(read(&mut whole.body()).0.len(), size);
    }
    let block = block();
    let mut replay = replay(&[block.slice(..64 << 10)], None, false, 64 << 10);
    read(&mut replay.body());
    assert!(!block.is_unique(), "not copied without need");
}

#[test]
fn small_pieces_do_not_hold_on_to_large_buffers() {
    let buffer = Bytes::from(vec![1; 64 << 10]);
    let pieces: Vec<Bytes> = (0..100).map(|n| buffer.slice(n..n + 1)).collect();
    let mut replay = replay(&pieces, None, false, 1000);
    drop(buffer);
    read(&mut replay.body());
    drop(pieces);
    let Replay::Stream(kept) = &replay else { panic!("a stream") };
    assert!(kept.borrow().small.capacity() < 8192 && kept.borrow().pieces.is_empty());
    assert_eq!(read(&mut replay.body()).0, [1; 100]);
}

proptest! {
    /// However a body comes, and however much of it each attempt takes, every attempt gets it from its beginning.
    #[test]
    fn every_attempt_gets_the_same(
        lengths in prop::collection::vec(prop_oneof![1_usize..3000, LARGE - 2..LARGE + 2], 0..12),
        taken in prop::collection::vec(0_usize..14, 0..5),
        ends in any::<bool>(),
    ) {
        let all: Vec<u8> = (0..lengths.iter().sum()).map(|n: usize| n as u8).collect();
        let mut rest = Bytes::from(all.clone());
        let pieces: Vec<Bytes> = lengths.iter().map(|length| rest.split_to(*length)).collect();
        let mut replay = replay(&pieces, ends.then(trailers), false, all.len());
        for frames in taken {
            let mut body = replay.body();
            let mut sent = Vec::new();
            for _ in 0..frames {
                if let Poll::Ready(Some(frame)) = next(&mut body) && let Ok(data) = frame.into_data() {
                    sent.extend_from_slice(&data);
                }
            }
            prop_assert!(all.starts_with(&sent));
            prop_assert!(replay.is_replayable());
        }
        prop_assert_eq!(read(&mut replay.body()), (all, ends.then(trailers)));
    }
}
