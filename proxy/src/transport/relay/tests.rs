use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, ready};
use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What one side sends, piece by piece, before it says that there is no more.
type Pieces = Vec<Vec<u8>>;

/// Runs to the end, with time passing.
fn run<T>(with: impl AsyncFnOnce(Rc<Timers>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let timers: Rc<Timers> = Rc::default();
        tokio::select! {
            biased;
            result = with(timers.clone()) => result,
            () = timers.run() => panic!("time ends"),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("not in time"),
        }
    })
}

const LONG: Duration = Duration::from_secs(60);

async fn join(timers: &Rc<Timers>, client: impl Into<Stream>, other: impl Into<Stream>) -> (Parted, [usize; 2]) {
    let relays = Relays::new(timers);
    let moved = [Cell::new(0), Cell::new(0)];
    let count = |direction, bytes| {
        let moved = &moved[usize::from(direction == Direction::Received)];
        moved.set(moved.get() + bytes);
    };
    let parted = relays.join(client.into(), other.into(), LONG, count).await;
    (parted, moved.map(Cell::into_inner))
}

/// Sends pieces, then the end.
async fn send(to: &mut (impl AsyncWrite + Unpin), pieces: Pieces) {
    for piece in pieces {
        to.write_all(&piece).await.unwrap();
        to.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    to.shutdown().await.unwrap();
}

/// Sends and receives until both have ended: what was received.
async fn converse(stream: impl AsyncRead + AsyncWrite, pieces: Pieces) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut got = Vec::new();
    let ((), result) = tokio::join!(send(&mut write, pieces), read.read_to_end(&mut got));
    result.unwrap();
    got
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn other(stream: DuplexStream) -> Stream {
    Stream::other(stream)
}

fn assert_moved(pieces: &Pieces, got: &[u8], moved: usize) {
    let all = pieces.concat();
    assert!(got == all, "{} of {} bytes arrived, or others", got.len(), all.len());
    assert_eq!(moved, all.len());
}

fn pieces() -> impl Strategy<Value = Pieces> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)
}

proptest! {
    /// Whatever is sent in whatever pieces arrives, in both directions, whichever ends first.
    #[test]
    fn everything_arrives(out in pieces(), back in pieces(), room in 1_usize..300, ahead in 0_usize..300) {
        run(async |timers| {
            let (client, near) = duplex(room);
            let (far, endpoint) = duplex(300 - room + 1);
            let mut near = other(near);
            // Some of what the client sends was read before.
            let all = out.concat();
            let ahead = ahead.min(all.len());
            near.put_back(Bytes::copy_from_slice(&all[..ahead]));
            let rest = vec![all[ahead..].to_vec()];
            let rest = if ahead == 0 { out.clone() } else { rest };
            let ((parted, [sent, received]), at_client, at_endpoint) = tokio::join!(
                join(&timers, near, other(far)),
                converse(client, rest),
                converse(endpoint, back.clone())
            );
            assert!(matches!(parted, Parted::Ended), "{parted:?}");
            assert_moved(&out, &at_endpoint, sent);
            assert_moved(&back, &at_client, received);
        });
    }
}

/// Pieces large and small, so that sockets change over to splicing and back.
fn many(seed: usize) -> Pieces {
    let size = |i: usize| if i % 7 < 3 { 300_000 + seed } else { i * 31 % 900 };
    (0..40).map(|i| (0..size(i)).map(|b| (b * 7 + i + seed) as u8).collect()).collect()
}

#[test]
fn sockets_are_spliced_and_lose_nothing() {
    run(async |timers| {
        let ((client, near), (far, endpoint)) = (sockets().await, sockets().await);
        let (out, back) = (many(1), many(2));
        let ((parted, [sent, received]), at_client, at_endpoint) =
            tokio::join!(join(&timers, near, far), converse(client, out.clone()), converse(endpoint, back.clone()));
        assert!(matches!(parted, Parted::Ended), "{parted:?}");
        assert_moved(&out, &at_endpoint, sent);
        assert_moved(&back, &at_client, received);
    });
}

#[test]
fn a_socket_and_another_stream_are_joined_too() {
    run(async |timers| {
        let ((client, near), (far, endpoint)) = (sockets().await, duplex(5000));
        let (out, back) = (many(3), many(4));
        let (_, at_client, at_endpoint) = tokio::join!(
            join(&timers, near, other(far)),
            converse(client, out.clone()),
            converse(endpoint, back.clone())
        );
        assert!(at_endpoint == out.concat() && at_client == back.concat());
    });
}

#[test]
fn the_end_of_one_direction_leaves_the_other() {
    run(async |timers| {
        let ((mut client, near), (far, mut endpoint)) = (sockets().await, sockets().await);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            endpoint.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"question");
            // Only now, when the other direction is long over.
            endpoint.write_all(b"answer").await.unwrap();
            drop(endpoint);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"answer");
        };
        let ((parted, moved), ()) = tokio::join!(join(&timers, near, far), talk);
        assert!(matches!(parted, Parted::Ended), "{parted:?}");
        assert_eq!(moved, [8, 6]);
    });
}

/// As TLS whose other side closes the socket and says nothing before.
struct Abrupt(DuplexStream);

impl AsyncRead for Abrupt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        let ended = buf.filled().len() == before;
        Poll::Ready(if ended { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }
}

impl crate::transport::Io for Abrupt {}

impl AsyncWrite for Abrupt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn an_end_without_a_farewell_is_an_end() {
    run(async |timers| {
        let ((client, near), (far, endpoint)) = (duplex(64), duplex(64));
        let (out, back) = (many(5), many(6));
        let (near, far) = (Stream::other(Abrupt(near)), Stream::other(Abrupt(far)));
        let ((parted, _), at_client, at_endpoint) =
            tokio::join!(join(&timers, near, far), converse(client, out.clone()), converse(endpoint, back.clone()));
        assert!(matches!(parted, Parted::Ended), "{parted:?}");
        assert!(at_endpoint == out.concat() && at_client == back.concat());
    });
}

#[test]
fn a_break_is_passed_on_as_a_break() {
    run(async |timers| {
        let ((mut client, near), (far, mut endpoint)) = (sockets().await, sockets().await);
        let talk = async {
            client.write_all(b"a part").await.unwrap();
            endpoint.read_exact(&mut [0; 6]).await.unwrap();
            client.set_zero_linger().unwrap();
            drop(client);
            endpoint.read(&mut [0]).await.expect_err("a break").kind()
        };
        let ((parted, _), seen) = tokio::join!(join(&timers, near, far), talk);
        assert!(matches!(parted, Parted::Broken(_)), "{parted:?}");
        assert_eq!(seen, io::ErrorKind::ConnectionReset);
    });
}

/// What the endpoint said before it stopped listening is for the client.
#[test]
fn what_came_before_a_break_still_arrives() {
    run(async |timers| {
        let ((client, near), (far, endpoint)) = (duplex(64), duplex(64));
        let (mut endpoint_read, mut endpoint_write) = tokio::io::split(endpoint);
        let talk = async {
            endpoint_write.write_all(b"no more").await.unwrap();
            endpoint_read.read_exact(&mut [0; 4]).await.unwrap();
            drop((endpoint_read, endpoint_write));
        };
        let (_, at_client, ()) = tokio::join!(
            join(&timers, other(near), other(far)),
            async {
                let (mut read, mut write) = tokio::io::split(client);
                let mut got = Vec::new();
                let flood = async { while write.write_all(&[0; 16]).await.is_ok() {} };
                tokio::join!(flood, read.read_to_end(&mut got)).1.unwrap();
                got
            },
            talk
        );
        assert_eq!(at_client, b"no more");
    });
}

#[test]
fn only_standing_still_in_both_directions_is_idle() {
    run(async |timers| {
        let idle = Duration::from_millis(600);
        let ((mut client, near), (far, _endpoint)) = (duplex(64), duplex(4096));
        let relays = Relays::new(&timers);
        let started = Instant::now();
        let last = Cell::new(started);
        let talk = async {
            for _ in 0..8 {
                tokio::time::sleep(idle / 4).await;
                client.write_all(b"still here").await.unwrap();
                last.set(Instant::now());
            }
        };
        let (parted, ()) = tokio::join!(relays.join(other(near), other(far), idle, |_, _| {}), talk);
        assert!(matches!(parted, Parted::Idle), "{parted:?}");
        assert!(last.get().elapsed() >= idle && started.elapsed() >= idle * 2);
    });
}

#[test]
fn who_takes_nothing_makes_nothing_pile_up() {
    run(async |timers| {
        let ((client, near), (far, endpoint)) = (duplex(1024), duplex(1024));
        let (parted, taken) = tokio::join!(join(&timers, other(near), other(far)), async {
            let mut client = client;
            let mut taken = 0;
            let flood = async {
                loop {
                    taken += client.write(&[7; 1000]).await.unwrap();
                }
            };
            // Every task has had its turn many times.
            let turns = async {
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { () = flood => {}, () = turns => {} }
            drop((client, endpoint));
            taken
        });
        assert!(matches!(parted.0, Parted::Broken(_)), "{:?}", parted.0);
        assert!(taken <= 2 * 1024 + ROOM, "{taken}");
    });
}

/// Issue 10, 3: counts, where both directions always have something to move.
#[test]
fn one_poll_moves_a_mebibyte_at_most() {
    run(async |timers| {
        const LENGTH: usize = 4 << 20;
        let ((mut client, near), (far, mut endpoint)) = (duplex(LENGTH), duplex(LENGTH));
        client.write_all(&vec![1; LENGTH]).await.unwrap();
        endpoint.write_all(&vec![2; LENGTH]).await.unwrap();
        let (relays, moved) = (Relays::new(&timers), Cell::new([0; 2]));
        let count = |direction, bytes| {
            let mut now = moved.get();
            now[usize::from(direction == Direction::Received)] += bytes;
            moved.set(now);
        };
        let mut joined = std::pin::pin!(relays.join(other(near), other(far), LONG, count));
        poll_fn(|cx| {
            let before = moved.get().iter().sum::<usize>();
            assert!(joined.as_mut().poll(cx).is_pending());
            let now = moved.get();
            let sum = now.iter().sum::<usize>();
            assert!(sum - before <= (1 << 20) + 2 * ROOM, "{} bytes", sum - before);
            assert!(now[0].abs_diff(now[1]) <= 2 << 20 || sum > LENGTH, "one direction waits: {now:?}");
            if sum == 2 * LENGTH { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
}

#[test]
fn bytes_in_a_pipe_that_cannot_be_spliced_are_copied() {
    run(async |timers| {
        let relays = Relays::new(&timers);
        let bytes: Vec<u8> = (0..60_000).map(|i| (i % 251) as u8).collect();
        let mut way = Way::new(Bytes::from_static(b"first "));
        way.hold(&relays, &bytes);
        let (mut from, mut to, mut endpoint) = {
            let ((near, _), (far, endpoint)) = (sockets().await, sockets().await);
            (Stream::from(near), Stream::from(far), endpoint)
        };
        let mut got = vec![0; 6 + bytes.len()];
        let moving = poll_fn(|cx| way.poll(&relays, &mut from, &mut to, cx));
        tokio::join!(async { endpoint.read_exact(&mut got).await.unwrap() }, moving).1.unwrap();
        assert!(got == [b"first ", &bytes[..]].concat());
        assert_eq!(way.take_moved(), got.len());
    });
}

#[test]
fn pipes_are_kept_when_empty_and_no_more_than_so_many() {
    let pipes: Rc<Pipes> = Rc::default();
    let mut all: Vec<_> = std::iter::from_fn(|| pipes.take()).collect();
    assert_eq!((all.len(), pipes.kept()), (32, 0));
    let mut full = all.pop().unwrap();
    full.write(b"left over");
    drop(full);
    assert_eq!(pipes.kept(), 0);
    assert!(pipes.take().is_some());
    drop(all);
    assert_eq!(pipes.kept(), 4);
    let mut again = pipes.take().unwrap();
    again.write(b"ab");
    assert_eq!(again.read(&mut [0; 9]).unwrap(), b"ab");
    assert!(again.is_empty());
}
