//! The thread's read buffers.
//!
//! Connections hold the bytes that they have not used yet, never a buffer to read into. What is read is a piece of a block
//! of memory that may have other pieces, and the block lives as long as any of them. So blocks are as small as their use
//! allows, since a piece that waits for a slow reader may be the only one left of its block:
//!
//! - [`HEAD`]: requests. Most are small, and many fit into a block.
//! - [`BODY`]: what a body continues with. A block is one read, which is reused for the next as soon as its bytes have been
//!   written, so that a fast transfer stays within one block and a blocked one holds one. Reads of this size cost the least
//!   CPU a byte; larger ones leave the processor's cache.
//! - [`RESPONSE`]: the beginning of a response. Large enough for a body of 64 KiB with its head, which is then passed on
//!   with one read and one write.

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::body::{BodyDecoder, Malformed, Piece};
use crate::transport::Stream;

/// The most that is read of requests at once, in bytes.
pub const HEAD: usize = 16 * 1024;

/// The most that is read of a body at once, after its first bytes.
pub const BODY: usize = 32 * 1024;

/// The most that is read at once of a response's head and what follows it.
pub const RESPONSE: usize = 66 * 1024;

/// Blocks for [`HEAD`] and [`RESPONSE`]. Most pieces have been dropped by the next read, which then begins anew in the
/// same block.
const HEADS: usize = 64 * 1024;
const RESPONSES: usize = 80 * 1024;

/// The thread's read buffers.
#[derive(Default)]
pub struct Scratch {
    heads: RefCell<BytesMut>,
    bodies: RefCell<BytesMut>,
    responses: RefCell<BytesMut>,
    /// Where the data of small chunks is joined.
    joined: RefCell<BytesMut>,
}

impl Scratch {
    /// What has arrived, at most `most` bytes: [`HEAD`], [`BODY`], [`RESPONSE`], or fewer. Empty at the end of the stream.
    ///
    /// # Errors
    ///
    /// When the stream is broken.
    pub fn poll_read(&self, io: &mut Stream, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let (buffer, room, least, block) = if most <= HEAD {
            (&self.heads, HEAD, HEAD, HEADS)
        } else if most <= BODY {
            (&self.bodies, BODY, BODY / 2, BODY)
        } else {
            (&self.responses, RESPONSE, RESPONSE, RESPONSES)
        };
        let mut buffer = buffer.borrow_mut();
        make_room(&mut buffer, room, least, block);
        ready!(pin!(io.read_buf(&mut (&mut *buffer).limit(most))).poll(cx))?;
        Poll::Ready(Ok(buffer.split().freeze()))
    }

    /// Takes the next piece of a body off the front of `input`.
    ///
    /// # Errors
    ///
    /// What is wrong with the framing.
    pub fn decode(&self, decoder: &mut BodyDecoder, input: &mut Bytes) -> Result<Piece, Malformed> {
        decoder.decode(input, &mut self.joined.borrow_mut())
    }
}

/// Makes room for so many bytes, or for `least` where the rest of the block is in use; else with a new block.
pub(super) fn make_room(buffer: &mut BytesMut, room: usize, least: usize, block: usize) {
    if !buffer.try_reclaim(room) && buffer.capacity() < least {
        *buffer = BytesMut::with_capacity(block.max(room));
    }
}
