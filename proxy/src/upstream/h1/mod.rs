//! HTTP/1.1 to an endpoint.

mod codec;
mod connection;

pub use codec::Malformed;
#[cfg(test)]
pub use codec::encode_request;
pub(super) use codec::{MAX_HEAD, MAX_HEADERS};
pub use connection::{Connection, ExchangeError, ResponseBody};
