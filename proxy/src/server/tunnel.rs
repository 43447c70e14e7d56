//! Bytes that are passed on as they are: TCP listeners, tunnels to services and to other hosts, upgraded connections.
//! A tunnel is balanced once, when it begins, by the same balancers and with the same deadlines as a request.

use std::time::Duration;

use super::connection::Connection;
use crate::transport::{Stream, relay};

/// A tunnel whose other end is there.
pub struct Tunnel {
    other: Stream,
    idle_timeout: Duration,
}

impl Tunnel {
    /// Passes on bytes until the tunnel ends.
    pub async fn run(self, connection: &Connection, stream: Stream) {
        let _how_it_ended = relay(&connection.worker.timers, stream, self.other, self.idle_timeout).await;
    }
}

/// Passes on what is none of the protocols that are looked into.
pub async fn serve(_connection: &Connection, _stream: Stream) {}
