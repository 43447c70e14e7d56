//! Two streams joined: what is read from one is written to the other, in both directions at once.
//!
//! One task drives both directions, so that nothing is handed from one to another and one timer tells that neither
//! moves. What is read goes straight on: a direction keeps only what the other side has not taken yet, at most one
//! buffer of it, and reads no further until that is gone. So a join on which nothing moves holds no buffer, and one
//! whose reader is slow holds little.
//!
//! Small messages are copied, with one read and one write each. Where both streams are bare sockets and a direction
//! reads whole buffers, it changes over to `splice(2)`: the bytes go from socket to socket through a pipe and are never
//! seen here. It changes back when little arrives at a time. The buffer and the pipes belong to the thread, and are
//! lent to whoever moves bytes just then.

mod pace;
mod pipe;
#[cfg(test)]
mod tests;
mod way;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use self::pipe::Pipes;
use self::way::Way;
use super::Stream;
use crate::timer::Timers;

/// What is read at once where bytes are copied. Halving and doubling it cost more CPU a byte when measured.
const ROOM: usize = 32 * 1024;

/// The joined streams of one thread, and what they share.
pub struct Relays {
    timers: Rc<Timers>,
    /// Read into; empty while it is lent.
    buffer: RefCell<Vec<u8>>,
    pipes: Rc<Pipes>,
}

/// One of the two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the other side.
    Sent,
    /// From the other side to the client.
    Received,
}

/// How two joined streams came apart.
#[derive(Debug)]
pub enum Parted {
    /// Both directions have ended.
    Ended,
    /// Nothing moved for too long.
    Idle,
    /// A stream broke.
    Broken(io::Error),
}

impl Relays {
    pub fn new(timers: &Rc<Timers>) -> Self {
        Self { timers: timers.clone(), buffer: RefCell::default(), pipes: Rc::default() }
    }

    /// Joins two streams until both directions have ended, or nothing has moved in either for `idle_timeout`. The end of
    /// one direction is passed on, and the other goes on. A stream that breaks ends both directions, after what has
    /// arrived in the other is passed on. `moved` is told of bytes that were taken, at once.
    pub async fn join(
        &self,
        mut client: Stream,
        mut other: Stream,
        idle_timeout: Duration,
        moved: impl Fn(Direction, usize),
    ) -> Parted {
        let mut out = Way::new(client.take_ahead());
        let mut back = Way::new(other.take_ahead());
        let mut idle = self.timers.deadline(idle_timeout);
        let mut back_first = false;
        poll_fn(|cx| {
            // In turn: what one moves is paid for with the turn of both.
            back_first = !back_first;
            let early = back_first.then(|| back.poll(self, &mut other, &mut client, cx));
            let sent = out.poll(self, &mut client, &mut other, cx);
            let received = early.unwrap_or_else(|| back.poll(self, &mut other, &mut client, cx));
            for (direction, way) in [(Direction::Sent, &mut out), (Direction::Received, &mut back)] {
                let bytes = way.take_moved();
                if bytes > 0 {
                    moved(direction, bytes);
                    idle.reset(idle_timeout);
                }
            }
            match (sent, received) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Parted::Broken(error)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Parted::Ended),
                _ => idle.poll_passed(cx).map(|()| Parted::Idle),
            }
        })
        .await
    }

    /// Lends the thread's buffer.
    fn with_buffer<R>(&self, with: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.buffer.take();
        buffer.resize(ROOM, 0);
        let result = with(&mut buffer);
        self.buffer.replace(buffer);
        result
    }
}
