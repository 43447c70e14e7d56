//! SOCKS5 from clients (RFC 1928): CONNECT only, without authentication, names resolved here.

use super::connection::Connection;
use super::exchange::Next;
use crate::transport::Stream;

/// Takes the client's request and answers it; the stream, and where it leads.
pub async fn serve(_connection: &Connection, _stream: Stream) -> Option<(Stream, Next)> {
    None
}
