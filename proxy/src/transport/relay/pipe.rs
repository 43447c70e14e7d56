//! Pipes that bytes go through on their way from socket to socket.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::way::TURN_BYTES;

/// What a pipe holds where the system allows it (by default it does to every user, up to 64 MiB together); else 64 KiB.
const CAPACITY: usize = TURN_BYTES;

/// Pipes at once on one thread, which bounds the memory and the descriptors that slow readers take. A direction that
/// gets none copies.
const AT_ONCE: usize = 32;

/// Empty pipes that are kept. One is enough for any number of readers that take what they are given.
const KEPT: usize = 4;

/// The pipes of one thread.
#[derive(Default)]
pub(super) struct Pipes {
    empty: RefCell<Vec<Ends>>,
    lent: Cell<usize>,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe that is lent. It goes back empty when dropped, and is closed where bytes are left in it.
pub(super) struct Pipe {
    /// None only while it is being dropped.
    ends: Option<Ends>,
    bytes: usize,
    home: Rc<Pipes>,
}

impl Pipes {
    /// An empty pipe; none when there are too many, or the system gives no more.
    pub(super) fn take(self: &Rc<Self>) -> Option<Pipe> {
        if self.lent.get() >= AT_ONCE {
            return None;
        }
        let kept = self.empty.borrow_mut().pop();
        let ends = match kept {
            Some(ends) => ends,
            None => Ends::open().ok()?,
        };
        self.lent.set(self.lent.get() + 1);
        Some(Pipe { ends: Some(ends), bytes: 0, home: self.clone() })
    }
}

#[cfg(test)]
impl Pipes {
    pub(super) fn kept(&self) -> usize {
        self.empty.borrow().len()
    }
}

impl Ends {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let _a_smaller_one_will_do = fcntl_setpipe_size(&write, CAPACITY);
        Ok(Self { read, write })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.home.lent.set(self.home.lent.get().saturating_sub(1));
        let mut empty = self.home.empty.borrow_mut();
        if self.bytes == 0 && empty.len() < KEPT {
            empty.extend(self.ends.take());
        }
    }
}

impl Pipe {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Takes what has arrived into the empty pipe: how much, 0 at the end of the stream.
    pub(super) fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        // Nothing fits a full pipe, which the kernel tells no other way than that nothing has arrived: hence empty.
        let bytes = ready!(poll_io(from, Interest::READABLE, cx, || {
            Ok(splice(from, None, &ends.write, None, TURN_BYTES, FLAGS)?)
        }))?;
        self.bytes = bytes;
        Poll::Ready(Ok(bytes))
    }

    /// Passes on what the socket takes: how much.
    pub(super) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        let length = self.bytes;
        let bytes =
            ready!(poll_io(to, Interest::WRITABLE, cx, || { Ok(splice(&ends.read, None, to, None, length, FLAGS)?) }))?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Poll::Ready(Ok(bytes))
    }

    /// Takes bytes back out.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let Some(ends) = &self.ends else { return Ok(&[]) };
        let bytes = rustix::io::read(&ends.read, &mut *buffer)?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Ok(buffer.get(..bytes).unwrap_or_default())
    }

    /// Puts bytes in as they are.
    #[cfg(test)]
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let ends = self.ends.as_ref().expect("a pipe");
        self.bytes += rustix::io::write(&ends.write, bytes).expect("room");
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// Whether the kernel does not splice these streams, and never will.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

fn poll_io(
    tcp: &TcpStream,
    interest: Interest,
    cx: &mut Context<'_>,
    io: impl Fn() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(if interest.is_readable() { tcp.poll_read_ready(cx) } else { tcp.poll_write_ready(cx) })?;
        match tcp.try_io(interest, &io) {
            // Not ready after all, which is noted: the next look waits.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}
