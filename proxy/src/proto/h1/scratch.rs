//! The thread's read buffer.

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::transport::Stream;

/// The thread's read buffer. Connections hold the bytes that they have not used yet, never a buffer to read into. What
/// is read is a piece of a block that others have pieces of too: who keeps a small piece for long copies it.
pub struct Scratch(RefCell<BytesMut>);

/// A new block of read buffer.
const BLOCK: usize = 256 * 1024;

/// A read is given at least this much room.
const ROOM: usize = 64 * 1024;

impl Default for Scratch {
    fn default() -> Self {
        Self(RefCell::new(BytesMut::new()))
    }
}

impl Scratch {
    /// What has arrived, at most so many bytes or a block; empty at the end of the stream.
    ///
    /// # Errors
    ///
    /// When the stream is broken.
    pub fn poll_read(&self, io: &mut Stream, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut buffer = self.0.borrow_mut();
        if buffer.capacity() < ROOM {
            buffer.reserve(BLOCK);
        }
        ready!(pin!(io.read_buf(&mut (&mut *buffer).limit(most))).poll(cx))?;
        Poll::Ready(Ok(buffer.split().freeze()))
    }
}
