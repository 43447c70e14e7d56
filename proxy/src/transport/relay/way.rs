//! One direction of two joined streams.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Relays;
use super::pace::Pace;
use super::pipe::{Pipe, is_unsupported};
use crate::transport::Stream;
use crate::turn;

/// Reads of one direction before other tasks have their turn, and bytes: a quarter of a millisecond's worth. Both
/// directions together move 1 MiB at most.
const TURNS: usize = 16;
pub(super) const TURN_BYTES: usize = 1 << 19;

/// From one stream to the other.
pub(super) struct Way {
    /// Read, and not taken yet.
    held: Bytes,
    /// What comes after it; none once it is empty.
    pipe: Option<Pipe>,
    pace: Pace,
    state: State,
    /// The stream may hold back what it has taken.
    unflushed: bool,
    moved: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// There is no more to read.
    Ending,
    /// The other side has been told so.
    Ended,
}

impl Way {
    /// A direction in which these bytes come first.
    pub(super) fn new(ahead: Bytes) -> Self {
        Self { held: ahead, pipe: None, pace: Pace::new(), state: State::Open, unflushed: false, moved: 0 }
    }

    /// Bytes taken by the other side since this was asked last.
    pub(super) fn take_moved(&mut self) -> usize {
        std::mem::take(&mut self.moved)
    }

    /// Holds bytes in a pipe, and cannot splice them.
    #[cfg(test)]
    pub(super) fn hold(&mut self, relays: &Relays, bytes: &[u8]) {
        let mut pipe = relays.pipes.take().expect("a pipe");
        pipe.write(bytes);
        self.pipe = Some(pipe);
        self.pace.never_splice();
    }

    /// Moves what can be moved now. Ready once the end has been passed on.
    pub(super) fn poll(
        &mut self,
        relays: &Relays,
        from: &mut Stream,
        to: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..TURNS {
            ready!(self.poll_write(relays, to, cx))?;
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(pin!(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            if self.state == State::Open && self.poll_read(relays, from, to, cx)?.is_pending() {
                ready!(self.poll_flush(to, cx))?;
                return Poll::Pending;
            }
            if self.moved >= TURN_BYTES {
                break;
            }
        }
        turn::yield_now(cx);
        Poll::Pending
    }

    /// Writes what is held. Ready once nothing is.
    fn poll_write(&mut self, relays: &Relays, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.held.is_empty() {
                let bytes = ready!(pin!(&mut *to).poll_write(cx, &self.held))?;
                self.wrote(bytes)?;
                self.held.advance(bytes);
            }
            let Some(pipe) = self.pipe.as_mut().filter(|pipe| !pipe.is_empty()) else {
                self.pipe = None;
                return Poll::Ready(Ok(()));
            };
            match to.as_tcp().filter(|_| self.pace.may_splice()) {
                Some(tcp) => match ready!(pipe.poll_drain(tcp, cx)) {
                    Err(error) if is_unsupported(&error) => self.pace.never_splice(),
                    drained => self.wrote(drained?)?,
                },
                None => self.held = relays.with_buffer(|buffer| pipe.read(buffer).map(Bytes::copy_from_slice))?,
            }
        }
    }

    fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.moved += bytes;
        self.unflushed = true;
        Ok(())
    }

    fn poll_flush(&mut self, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(pin!(to).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and passes on what can be passed on at once.
    fn poll_read(
        &mut self,
        relays: &Relays,
        from: &mut Stream,
        to: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pace.splices()
            && let (Some(source), Some(_)) = (from.as_tcp(), to.as_tcp())
            && let Some(mut pipe) = relays.pipes.take()
        {
            match ready!(pipe.poll_fill(source, cx)) {
                Err(error) if is_unsupported(&error) => self.pace.never_splice(),
                filled => {
                    self.read(filled, to)?;
                    self.pipe = Some(pipe);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        relays.with_buffer(|buffer| {
            let mut read = ReadBuf::new(buffer);
            let result = ready!(pin!(from).poll_read(cx, &mut read));
            let mut bytes = read.filled();
            self.read(result.map(|()| bytes.len()), to)?;
            while !bytes.is_empty() {
                match pin!(&mut *to).poll_write(cx, bytes)? {
                    Poll::Ready(written) => {
                        self.wrote(written)?;
                        bytes.advance(written);
                    }
                    Poll::Pending => {
                        self.held = Bytes::copy_from_slice(bytes);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Takes notice of what was read.
    fn read(&mut self, read: io::Result<usize>, to: &Stream) -> io::Result<()> {
        match read {
            Ok(0) => self.state = State::Ending,
            Ok(bytes) => self.pace.read(bytes),
            // TLS that ends without a farewell is far too common to be taken for a break.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.state = State::Ending,
            Err(error) => {
                // Who only saw the end might take a part for the whole.
                to.break_off();
                return Err(error);
            }
        }
        Ok(())
    }
}
