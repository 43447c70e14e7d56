//! HTTP/1 from clients, by hyper.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, IoSlice};
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
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::exchange::{self, Connection};
use super::refusal::Refusal;
use super::worker::Worker;
use crate::proto::body::Stream;
use crate::proto::{Body, BodyError, Request, Response};

/// A connection that was idle for this long is put away.
const PARKED_AFTER: Duration = Duration::from_millis(200);

/// The most that is read ahead; a request head that needs more is refused with 431.
const BUFFER: usize = 64 * 1024;

/// How long a client may take nothing of what is written to it: Envoy's idle time of a stream.
const BLOCKED: Duration = Duration::from_secs(300);

/// How long a client may go on sending what nobody reads any more.
const LINGER: Duration = Duration::from_secs(5);

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// A part of a request's head has arrived.
    Head,
    /// A request is being served.
    Busy,
    /// The client does not take what is written to it.
    Blocked,
}

/// How serving a connection ended.
enum Ended {
    /// All that was asked for is answered, and the client knows that there is no more.
    Served,
    /// Nothing has happened for a while.
    Idle,
    /// It took too long, or the proxy stops.
    GivenUp,
}

/// What the parts of a connection tell its task.
#[derive(Default)]
pub(super) struct Activity {
    /// A part of a request's head has arrived.
    head_begun: Cell<bool>,
    /// Requests, and bodies of requests and responses, that have not ended.
    open: Cell<u32>,
    /// The last write was not taken.
    write_blocked: Cell<bool>,
    /// Writes that were taken, in whole or in part.
    writes: Cell<u64>,
    /// hyper may know more of this connection than is seen from here: its state is kept.
    never_parked: Cell<bool>,
    /// A request has been taken whose response may not have been written to its end.
    answering: Cell<bool>,
    /// hyper refused what it read, and said so where there was no request to answer.
    refused: Cell<Option<Unreadable>>,
}

/// Why hyper takes something for no request.
#[derive(Debug, Clone, Copy)]
enum Unreadable {
    TooLarge,
    Malformed,
}

impl Activity {
    /// Whether anything is being served.
    pub(super) fn is_busy(&self) -> bool {
        self.open.get() > 0
    }

    fn phase(&self) -> Phase {
        if self.write_blocked.get() {
            Phase::Blocked
        } else if self.open.get() > 0 {
            Phase::Busy
        } else if self.head_begun.get() {
            Phase::Head
        } else {
            Phase::Idle
        }
    }
}

/// Something that keeps a connection busy.
pub(super) struct Open(Rc<Activity>);

impl Open {
    pub(super) fn new(activity: &Rc<Activity>) -> Self {
        activity.open.set(activity.open.get() + 1);
        Self(activity.clone())
    }

    /// The response, which keeps the connection busy until its body has ended.
    pub(super) fn until_end_of(self, response: Response) -> Response {
        response.map(|body| match body {
            Body::Stream(stream) => Body::Stream(Box::pin(ResponseBody { stream, _open: self })),
            body => body,
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
    }
}

/// Serves a connection until it ends, or until nothing has happened on it for a while: then the socket comes back.
pub async fn serve(connection: Rc<Connection>, stream: TcpStream) -> Option<TcpStream> {
    let mut io = Watched { stream, read_ahead: Bytes::new(), activity: Rc::default() };
    loop {
        io = serve_until_idle(&connection, io).await?;
        if io.read_ahead.is_empty() {
            return Some(io.stream);
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
            Phase::Idle if activity.never_parked.get() => connection.listener.idle_timeout,
            Phase::Idle => PARKED_AFTER,
            Phase::Head => connection.listener.header_timeout,
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
        Ended::Idle => {
            io.read_ahead = parts.read_buf;
            return Some(io);
        }
        Ended::Served => {
            if let Some(unreadable) = activity.refused.get() {
                refuse(worker, &mut io.stream, unreadable).await;
            }
            if activity.never_parked.get() || activity.head_begun.get() {
                linger(worker, &mut io.stream).await;
            }
        }
        Ended::GivenUp => {}
    }
    None
}

/// Says why what has arrived is no request, in hyper's stead.
async fn refuse(worker: &Worker, stream: &mut TcpStream, unreadable: Unreadable) {
    let refusal = match unreadable {
        Unreadable::TooLarge => Refusal::HeadTooLarge,
        Unreadable::Malformed => Refusal::BadRequest("a request head that is not HTTP/1"),
    };
    worker.unrouted.ended(refusal.status().as_u16(), Duration::ZERO);
    let bytes = refusal.last_bytes();
    let say = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    let _who_is_gone_needs_no_reason = worker.timers.within(LINGER, say).await;
}

/// Takes what a client still sends whose request was answered before its end. Were the socket closed instead, the
/// client would be told that the connection was reset, and might never see the answer (RFC 9112, 9.6).
async fn linger(worker: &Worker, stream: &mut TcpStream) {
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
    open.until_end_of(exchange::serve(connection, Request::from_parts(head, body)).await)
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
    stream: Stream,
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

/// Keeps the connection busy until the response's body has ended.
struct ResponseBody {
    stream: Stream,
    _open: Open,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.stream.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}

/// The socket, with an eye on what goes through it.
struct Watched {
    stream: TcpStream,
    /// Read from the socket already, and to be read first.
    read_ahead: Bytes,
    activity: Rc<Activity>,
}

impl Watched {
    /// Whether bytes are hyper's own refusal of what it could not read: kept here, because it gives no reason.
    fn is_refusal(&self, bytes: &[u8]) -> bool {
        if self.activity.answering.get() || !self.activity.head_begun.get() || !bytes.starts_with(b"HTTP/1.1 4") {
            return false;
        }
        let too_large = matches!(bytes.get(9..12), Some(b"431" | b"414"));
        self.activity.refused.set(Some(if too_large { Unreadable::TooLarge } else { Unreadable::Malformed }));
        true
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.write_blocked.set(result.is_pending());
        if result.is_ready() {
            self.activity.writes.set(self.activity.writes.get().wrapping_add(1));
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let length = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(pin!(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before && self.activity.open.get() == 0 {
            self.activity.head_begun.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_refusal(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = pin!(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_refusal(bufs.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let result = pin!(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.refused.get().is_some() {
            return Poll::Ready(Ok(()));
        }
        pin!(&mut self.stream).poll_shutdown(cx)
    }
}
