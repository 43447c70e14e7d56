//! SOCKS5 from clients (RFC 1928): CONNECT only, without authentication, names resolved here.
//!
//! A target leads where one of an HTTP CONNECT does, and is refused for the same reasons.

mod codec;

use std::time::Instant;

use bytes::Buf;
use tokio::io::AsyncWriteExt;

pub use self::codec::Reply;
use self::codec::{Parsed, Target, greeting, method, reply, request};
use super::connection::{Connection, FAREWELL, before_requests};
use super::destination;
use super::exchange::Next;
use crate::transport::Stream;

/// Takes the client's request and answers it; the stream, and where it leads.
pub async fn serve(connection: &Connection, mut stream: Stream) -> Option<(Stream, Next)> {
    let timers = &connection.worker.timers;
    let asked = timers.within(connection.listener.settings.header_timeout, ask(&mut stream));
    let asked = before_requests(&connection.worker, asked).await?.ok()??;
    let _under_way = connection.worker.begin();
    let started = Instant::now();
    let opened = match asked {
        Ok(Target { host, port }) => destination::open(connection, &host, port).await.map_err(|refusal| {
            refusal.record(&connection.worker.unrouted, started);
            refusal.socks_reply()
        }),
        Err(reply) => Err(reply),
    };
    let bound = match &opened {
        Ok(Next::Relay(tunnel)) if connection.listener.settings.expose_addresses => tunnel.local_address(),
        Ok(Next::Relay(_) | Next::Inside(_)) | Err(_) => None,
    };
    let said = reply(opened.as_ref().err().copied().unwrap_or(Reply::Succeeded), bound);
    let replied = async {
        stream.write_all(&said).await?;
        if opened.is_ok() { stream.flush().await } else { stream.shutdown().await }
    };
    timers.within(FAREWELL, replied).await.ok()?.ok()?;
    Some((stream, opened.ok()?))
}

/// What the client asks for, or the reply to what cannot be served; none when it has gone.
async fn ask(stream: &mut Stream) -> Option<Result<Target, Reply>> {
    let is_served = matches!(read(stream, greeting).await?, Ok(true));
    stream.write_all(&method(is_served)).await.ok()?;
    stream.flush().await.ok()?;
    if !is_served {
        let _who_is_gone_needs_no_end = stream.shutdown().await;
        return None;
    }
    read(stream, request).await
}

/// Reads one message. What follows it stays where it is.
async fn read<T>(stream: &mut Stream, parse: fn(&[u8]) -> Result<Parsed<T>, Reply>) -> Option<Result<T, Reply>> {
    loop {
        match parse(stream.ahead()) {
            Ok(Some((message, length))) => {
                let mut bytes = stream.take_ahead();
                bytes.advance(length.min(bytes.len()));
                stream.put_back(bytes);
                return Some(Ok(message));
            }
            Ok(None) if stream.read_ahead().await.ok()? => {}
            Ok(None) => return None,
            Err(reply) => return Some(Err(reply)),
        }
    }
}
