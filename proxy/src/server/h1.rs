//! HTTP/1 from clients, by hyper.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::activity::{Open, Phase, Unreadable, Watched};
use super::connection::{Connection, is_readable};
use super::exchange::{self, Next};
use super::refusal::Refusal;
use super::worker::Worker;
use crate::proto::{Body, BodyError, Request, Response, body};
use crate::transport::Stream;

/// A connection that was idle for this long is put away.
const PARKED_AFTER: Duration = Duration::from_millis(200);

/// The most that is read ahead; a request head that needs more is refused with 431.
const BUFFER: usize = 64 * 1024;

/// How long a client may take nothing of what is written to it: Envoy's idle time of a stream.
const BLOCKED: Duration = Duration::from_secs(300);

/// How long a client may go on sending what nobody reads any more.
const LINGER: Duration = Duration::from_secs(5);

/// How serving a connection ended.
enum Ended {
    /// All that was asked for is answered, and the client knows that there is no more.
    Served,
    /// Nothing has happened for a while.
    Idle,
    /// It took too long, or the proxy stops.
    GivenUp,
}

/// Serves a connection until it ends, or is no longer HTTP: then what it becomes.
///
/// A connection on which nothing happens is put away: nothing is kept but the stream and this task, until the client
/// sends something again.
pub async fn serve(connection: Rc<Connection>, stream: Stream) -> Option<(Stream, Next)> {
    let mut io = Watched { stream, read_ahead: Bytes::new(), activity: Rc::default() };
    loop {
        io = Box::pin(serve_until_idle(&connection, io)).await?;
        if let Some(next) = io.activity.next.take() {
            io.stream.put_back(io.read_ahead);
            return Some((io.stream, next));
        }
        if io.read_ahead.is_empty() {
            io.activity = Rc::default();
            if !is_readable(&connection, &mut io.stream, connection.listener.settings.idle_timeout).await {
                return None;
            }
            continue;
        }
        // A part of a head was read ahead: its time goes on where it is read anew.
        io.activity = Rc::default();
        io.activity.head_begun.set(true);
        io.activity.never_parked.set(true);
    }
}

async fn serve_until_idle(connection: &Rc<Connection>, io: Watched) -> Option<Watched> {
    let activity = io.activity.clone();
    let service = {
        let (connection, activity) = (connection.clone(), activity.clone());
        service_fn(move |request: http::Request<Incoming>| {
            activity.head_begun.set(false);
            activity.answering.set(true);
            let (connection, open) = (connection.clone(), Open::new(&activity));
            async move { Ok::<_, Infallible>(exchange_of(connection, open, request).await) }
        })
    };
    let mut served = Builder::new().max_buf_size(BUFFER).serve_connection(TokioIo::new(io), service);
    let worker = &connection.worker;
    let (mut phase, mut writes) = (Phase::Busy, 0);
    let mut deadline = worker.timers.deadline(PARKED_AFTER);
    let mut draining = false;
    let ended = poll_fn(|cx| {
        if Pin::new(&mut served).poll(cx).is_ready() {
            return Poll::Ready(Ended::Served);
        }
        let now = activity.phase();
        if matches!(now, Phase::Idle | Phase::Head) {
            activity.answering.set(false);
        }
        if worker.is_draining() {
            if now == Phase::Idle {
                return Poll::Ready(Ended::GivenUp);
            }
            if !draining {
                draining = true;
                Pin::new(&mut served).graceful_shutdown();
            }
        }
        let limit = match now {
            Phase::Busy => {
                phase = now;
                return Poll::Pending;
            }
            Phase::Idle if activity.never_parked.get() => connection.listener.settings.idle_timeout,
            Phase::Idle => PARKED_AFTER,
            Phase::Head => connection.listener.settings.header_timeout,
            Phase::Blocked => BLOCKED,
        };
        let progress = now == Phase::Blocked && writes != activity.writes.get();
        if phase != now || progress {
            (phase, writes) = (now, activity.writes.get());
            deadline.reset(limit);
        }
        ready!(deadline.poll_passed(cx));
        let idle = now == Phase::Idle && !activity.never_parked.get();
        Poll::Ready(if idle { Ended::Idle } else { Ended::GivenUp })
    })
    .await;
    let parts = served.into_parts();
    let mut io = parts.io.into_inner();
    match ended {
        Ended::Served if activity.has_next() => {
            io.read_ahead = parts.read_buf;
            return Some(io);
        }
        Ended::Idle => {
            io.read_ahead = parts.read_buf;
            return Some(io);
        }
        Ended::Served => {
            if let Some(unreadable) = activity.refused.get() {
                let refusal = match unreadable {
                    Unreadable::TooLarge => Refusal::HeadTooLarge,
                    Unreadable::Malformed => Refusal::BadRequest("a request head that is not HTTP/1"),
                };
                refuse(worker, &mut io.stream, &refusal).await;
            }
            if activity.never_parked.get() || activity.head_begun.get() {
                linger(worker, &mut io.stream).await;
            }
        }
        Ended::GivenUp => {}
    }
    None
}

/// Says why what has arrived is no request that can be served, and that nothing more is read.
pub(super) async fn refuse(worker: &Worker, stream: &mut Stream, refusal: &Refusal) {
    worker.unrouted.ended(refusal.status().as_u16(), Duration::ZERO);
    let bytes = refusal.last_bytes();
    let say = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    let _who_is_gone_needs_no_reason = worker.timers.within(LINGER, say).await;
}

/// Closes a connection of which not everything has been read, or may not have been.
pub(super) async fn close(worker: &Worker, mut stream: Stream, all_read: bool) {
    let ended = worker.timers.within(LINGER, stream.shutdown()).await;
    if !all_read && matches!(ended, Ok(Ok(()))) {
        linger(worker, &mut stream).await;
    }
}

/// Takes what a client still sends whose request was answered before its end. Were the socket closed instead, the
/// client would be told that the connection was reset, and might never see the answer (RFC 9112, 9.6).
async fn linger(worker: &Worker, stream: &mut Stream) {
    let mut deadline = worker.timers.deadline(LINGER);
    let mut buffer = vec![0; 16 * 1024];
    poll_fn(|cx| {
        while !worker.is_draining() {
            let mut taken = ReadBuf::new(&mut buffer);
            match pin!(&mut *stream).poll_read(cx, &mut taken) {
                Poll::Ready(Ok(())) if !taken.filled().is_empty() => {}
                Poll::Ready(_) => break,
                Poll::Pending => return deadline.poll_passed(cx),
            }
            if deadline.poll_passed(cx).is_ready() {
                break;
            }
        }
        Poll::Ready(())
    })
    .await;
}

async fn exchange_of(connection: Rc<Connection>, open: Open, request: http::Request<Incoming>) -> Response {
    let (head, incoming) = request.into_parts();
    let body = match request_body(incoming) {
        Body::Stream(stream) => Body::Stream(Box::pin(RequestBody { stream, ended: false, open: Open::new(&open.0) })),
        body => body,
    };
    let answer = exchange::serve(connection, Request::from_parts(head, body)).await;
    open.0.next.replace(answer.next);
    open.until_end_of(answer.response)
}

/// hyper's body as ours.
pub(super) fn request_body(incoming: Incoming) -> Body {
    if incoming.is_end_stream() { Body::Empty } else { Body::Stream(Box::pin(ClientBody(incoming))) }
}

struct ClientBody(Incoming);

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::Client(error.to_string()))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Notices when a request's body is given up: what is left of it must not be taken for a request.
struct RequestBody {
    stream: body::Stream,
    ended: bool,
    open: Open,
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // What arrived since the head was the body, and no other head.
        self.open.0.head_begun.set(false);
        if !self.ended && !self.stream.is_end_stream() {
            self.open.0.never_parked.set(true);
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.stream.as_mut().poll_frame(cx));
        self.ended = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers(),
            Some(Err(_)) => false,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}
