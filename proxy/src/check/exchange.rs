//! One request on a connection of its own.
//!
//! The exchange and its connection are driven by the one task that makes the check: when that is dropped, because the
//! time is over or the proxy stops, nothing is left behind. Only the closing of a connection that has served goes on by
//! itself, for a moment: it lets the endpoint see an end (for HTTP/2 a GOAWAY), and not a break.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::Failed;
use crate::transport::Stream;

/// An answer's head is no longer than this.
const MOST_OF_HEAD: u32 = 16 << 10;

/// Of an answer's body no more than this is waited for.
const MOST_OF_BODY: usize = 16 << 10;

/// How long a connection may take to end.
const CLOSING: Duration = Duration::from_millis(500);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Or its beginning.
    pub body: Bytes,
    /// None where there are none, or where the body was not read to its end.
    pub trailers: HeaderMap,
}

/// Asks over HTTP/1.1, without a body.
///
/// # Errors
///
/// When there is no whole answer.
pub async fn http1(stream: Stream, request: Request<()>) -> Result<Answer, Failed> {
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(MOST_OF_HEAD as usize);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let (head, mut body) = sender.send_request(request.map(|()| Empty::<Bytes>::new())).await?.into_parts();
        let mut read = BytesMut::new();
        while read.len() < MOST_OF_BODY
            && let Some(frame) = body.frame().await
        {
            if let Ok(data) = frame?.into_data() {
                keep(&mut read, data);
            }
        }
        let (status, headers) = (head.status, head.headers);
        Ok(Answer { status, headers, body: read.freeze(), trailers: HeaderMap::new() })
    };
    drive(exchange, Box::pin(connection)).await
}

/// Asks over HTTP/2, which the endpoint is known to speak.
///
/// # Errors
///
/// When there is no whole answer.
pub async fn http2(stream: Stream, request: Request<()>, body: Bytes) -> Result<Answer, Failed> {
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(MOST_OF_HEAD);
    let (sender, connection) = builder.handshake(stream).await?;
    let exchange = async move {
        let mut sender = sender.ready().await?;
        let (response, mut sending) = sender.send_request(request, !body.has_remaining())?;
        if body.has_remaining() {
            sending.send_data(body, true)?;
        }
        let (head, mut body) = response.await?.into_parts();
        let mut read = BytesMut::new();
        // Less than the window that a stream begins with (RFC 9113, 6.9.2): none of it needs to be given back.
        while read.len() < MOST_OF_BODY
            && let Some(data) = body.data().await
        {
            keep(&mut read, data?);
        }
        let trailers = if body.is_end_stream() || read.len() < MOST_OF_BODY { body.trailers().await? } else { None };
        let (status, headers) = (head.status, head.headers);
        Ok(Answer { status, headers, body: read.freeze(), trailers: trailers.unwrap_or_default() })
    };
    drive(exchange, Box::pin(connection)).await
}

fn keep(read: &mut BytesMut, data: Bytes) {
    let room = MOST_OF_BODY.saturating_sub(read.len());
    read.extend_from_slice(data.get(..room).unwrap_or(&data));
}

/// Drives both, the connection for as long as its exchange takes, and then to its end.
async fn drive<C: Future + 'static>(
    exchange: impl Future<Output = Result<Answer, Failed>>,
    mut connection: Pin<Box<C>>,
) -> Result<Answer, Failed> {
    let mut exchange = std::pin::pin!(exchange);
    let answer = tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // What arrived before its end is still to be read.
        _ = &mut connection => return exchange.await,
    };
    tokio::task::spawn_local(timeout(CLOSING, connection));
    answer
}
