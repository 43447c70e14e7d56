//! What both sides of HTTP/1.1 (RFC 9112) have in common: how bodies are framed and how messages are written.
//!
//! The side that reads requests (`server::h1`) and the one that reads responses (`upstream::h1`) differ in their heads
//! only. Of two ways to read a message the stricter is taken, and what is ambiguous is refused: the next message on a
//! connection must not begin where somebody else says.
//!
//! A connection holds the bytes that it has not used yet and never a buffer to read into: that is the thread's
//! [`Scratch`]. What a transfer holds is bounded by one read and the size up to which [`Sender`] coalesces.

mod body;
mod date;
pub mod head;
mod joined;
mod scratch;
mod sender;

pub use body::{BodyDecoder, Framing, Malformed, Piece};
pub use date::Date;
pub use joined::joined;
pub use scratch::{BODY, HEAD, RESPONSE, Scratch};
pub use sender::{SendError, Sender};
