//! A client's connection: what is spoken on it, and what it costs while nothing is.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::exchange::Connection;
use super::worker::Worker;
use super::{h1, h2};
use crate::config::checked::Listener;
use crate::timer::TICK;

/// An HTTP/2 connection with prior knowledge begins with this method, and no other request does (RFC 9113, 3.4).
const PREFACE: &[u8; 4] = b"PRI ";

/// Serves a connection to its end.
///
/// A connection on which nothing happens is put away: of HTTP/1's state nothing is kept, only the socket and this
/// task, until the client sends something again.
pub async fn serve(worker: Rc<Worker>, listener: Arc<Listener>, stream: TcpStream, client: SocketAddr) {
    let _a_slower_connection_is_still_one = stream.set_nodelay(true);
    let connection = Rc::new(Connection { worker, listener, client });
    let idle_timeout = connection.listener.idle_timeout;
    if !is_readable(&connection, &stream, idle_timeout).await {
        return;
    }
    match is_http2(&connection, &stream).await {
        None => {}
        Some(true) => Box::pin(h2::serve(connection, stream)).await,
        Some(false) => {
            let mut stream = stream;
            while let Some(parked) = Box::pin(h1::serve(connection.clone(), stream)).await {
                stream = parked;
                if !is_readable(&connection, &stream, idle_timeout).await {
                    return;
                }
            }
        }
    }
}

/// Waits until the client has sent something; false when it should not be waited for any longer.
async fn is_readable(connection: &Connection, stream: &TcpStream, timeout: Duration) -> bool {
    let worker = &connection.worker;
    let mut deadline = worker.timers.deadline(timeout);
    poll_fn(|cx| {
        // Peeked, because readiness alone may be reported of a connection on which nothing has arrived yet.
        match stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
            Poll::Ready(length) => Poll::Ready(length.is_ok_and(|length| length > 0)),
            Poll::Pending if worker.is_draining() => Poll::Ready(false),
            Poll::Pending => deadline.poll_passed(cx).map(|()| false),
        }
    })
    .await
}

/// Whether the first bytes are those of HTTP/2. None when the connection ended, or took too long to say.
async fn is_http2(connection: &Connection, stream: &TcpStream) -> Option<bool> {
    let timers = &connection.worker.timers;
    let since = timers.now();
    let mut start = [0; PREFACE.len()];
    while timers.since(since) < connection.listener.header_timeout {
        let length = stream.peek(&mut start).await.ok().filter(|length| *length > 0)?;
        let start = start.get(..length).unwrap_or_default();
        if start.len() == PREFACE.len() || !PREFACE.starts_with(start) {
            return Some(start == PREFACE);
        }
        // Nothing announces that there is more to peek at.
        let _ = timers.within(TICK, std::future::pending::<()>()).await;
    }
    None
}
