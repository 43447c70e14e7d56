//! Byte streams: what a connection is before anybody speaks a protocol on it, and what two of them joined are.
//!
//! A [`Stream`] is a TCP socket, TLS over another stream, or one stream of an HTTP/2 connection. Everything above reads
//! and writes a `Stream` and does not ask which. [`detect`] tells protocols apart by their first bytes, [`tls`] ends and
//! begins TLS, and [`Relays`] join two streams for bytes that are nobody's business.

pub mod detect;
pub mod proxy_protocol;
pub mod relay;
pub mod stream;
pub mod tls;

pub use relay::{Direction, Parted, Relays};
pub use stream::{Io, Stream};
