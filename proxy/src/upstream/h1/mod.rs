//! HTTP/1.1 to an endpoint.

mod codec;
mod connection;

pub use codec::Malformed;
pub use connection::{Connection, ExchangeError, ResponseBody};
