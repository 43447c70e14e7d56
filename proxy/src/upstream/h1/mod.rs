//! HTTP/1.1 to an endpoint.

mod codec;
mod connection;

pub use codec::{Framing, Malformed};
pub use connection::{Connection, ExchangeError, ResponseBody, Scratch};
