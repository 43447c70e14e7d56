//! HTTP/2 to an endpoint, by hyper: one connection carries many exchanges.
//!
//! So one that has died unnoticed, as when a firewall forgets it, would fail all requests of a worker until the kernel
//! gives it up after many minutes. Two things notice sooner. While something is under way and nothing comes, the
//! endpoint is sent PINGs, and one that is not answered in time ends the connection. And a request that is given up,
//! for whatever reason, after nothing at all has come for a moment is the last one on its connection: the next has
//! another, also where the time for a request is shorter than that for a PING.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Timer;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::fault::{Fault, Noting};
use super::h1::{MAX_HEAD, MAX_HEADERS};
use super::pool::{Failed, Open};
use super::{Failure, Permit, Pool};
use crate::proto::http2::{From, Incoming, Outgoing, describe, is_going_away, reset_code};
use crate::proto::{Body, BodyError, Response};
use crate::service::{Ending, Reuse};
use crate::timer::Timers;
use crate::transport::Stream;

/// Runs hyper's tasks on this thread.
#[derive(Clone)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// The worker's connections to one endpoint. A second one is opened when the first has as many streams as the endpoint
/// allows, and so on.
#[derive(Default)]
pub(super) struct Shared {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Held while a connection is being opened: the others wait for it rather than open one each.
    pub(super) opening: tokio::sync::Mutex<()>,
}

type Driver = hyper::client::conn::http2::Connection<TokioIo<Noting>, Outgoing, LocalExecutor>;

struct Connection {
    sender: SendRequest<Outgoing>,
    /// Exchanges under way.
    streams: Cell<usize>,
    /// What moves the bytes; none once it has ended, since exchanges are told so by its being dropped.
    driver: Rc<RefCell<Option<Driver>>>,
    /// What TLS had to say at its end.
    fault: Fault,
    silence: Rc<Silence>,
    /// Tick at which the last exchange ended.
    since: Cell<u64>,
}

/// Since when an endpoint has left a connection unanswered.
#[derive(Default)]
pub(super) struct Silence {
    /// Tick of the first request after the last byte that came; none where no request came after it.
    since: Cell<Option<u64>>,
}

impl Silence {
    /// Something has come.
    pub(super) fn broken(&self) {
        self.since.set(None);
    }

    fn asked(&self, now: u64) {
        self.since.set(self.since.get().or(Some(now)));
    }

    /// Whether the endpoint can be taken for gone.
    fn is_long(&self, timers: &Timers) -> bool {
        self.since.get().is_some_and(|since| timers.since(since) >= SILENCE)
    }
}

impl Connection {
    /// Whether the endpoint allows another stream now.
    fn has_room(&self) -> bool {
        self.driver.borrow().as_ref().is_some_and(|driver| self.streams.get() < driver.current_max_send_streams())
    }
}

/// An exchange under way, or about to begin.
pub(super) struct Exchange {
    connection: Rc<Connection>,
    pool: Rc<Pool>,
}

impl Exchange {
    fn begin(connection: Rc<Connection>, pool: &Rc<Pool>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection, pool: pool.clone() }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get().saturating_sub(1));
        connection.since.set(self.pool.timers().now());
        if self.pool.target.connections.is_awaited() {
            self.pool.h2().freed(connection, &self.pool);
        }
    }
}

/// What the endpoint may send on a stream before its client takes it. RFC 9113 (6.9.2) starts with 64 KiB; four times
/// as much lets one download have 2 Gbit/s over a millisecond's distance.
const STREAM_WINDOW: u32 = 256 << 10;

/// The same for a connection, which is the worker's only one to the endpoint: what slow clients leave lying on their
/// streams must not keep everybody else's responses back. It is the windows of 256 unread streams, so that each of
/// those is stopped by its own window and by none but its own. It bounds, and does not take, memory: only what has
/// arrived and was not taken is kept.
const CONNECTION_WINDOW: u32 = 256 * STREAM_WINDOW;

/// The most that a response's head may have, as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113, 6.5.2): what HTTP/1
/// may, with 32 bytes more for each header.
const HEAD: u32 = (MAX_HEAD + 32 * MAX_HEADERS) as u32;

/// How long nothing may come while something is under way before a PING is sent, and how long its answer may take. An
/// idle connection is sent none: it is closed soon (`pool.idle_timeout`).
const PING: Duration = Duration::from_secs(10);

/// A request that is given up after nothing has come for this long is its connection's last. It is longer than a client
/// that changes its mind, or a hedged attempt, usually takes: those must not cost a connection each.
const SILENCE: Duration = Duration::from_secs(1);

fn builder(timer: impl Timer + Send + Sync + 'static) -> Builder<LocalExecutor> {
    let mut builder = Builder::new(LocalExecutor);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .timer(timer)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

impl Shared {
    /// A place on a connection that takes another request.
    pub(super) fn pooled(&self, pool: &Rc<Pool>) -> Option<Exchange> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.sender.is_closed());
        let pooled = connections.iter().find(|connection| connection.has_room())?;
        Some(Exchange::begin(pooled.clone(), pool))
    }

    /// A place on a new connection, over this stream.
    pub(super) async fn begin(&self, pool: &Rc<Pool>, io: Stream, permit: Permit) -> Result<Exchange, Failure> {
        let (fault, silence) = (Fault::default(), Rc::<Silence>::default());
        let io = Noting { stream: io, fault: fault.clone(), silence: silence.clone() };
        let (sender, connection) = builder(TokioTimer::new())
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| failure(pool, describe(&error)))?;
        let driver = Rc::new(RefCell::new(Some(connection)));
        let driven = driver.clone();
        tokio::task::spawn_local(async move {
            poll_fn(|cx| match &mut *driven.borrow_mut() {
                Some(driver) => Pin::new(driver).poll(cx).map(drop),
                None => Poll::Ready(()),
            })
            .await;
            // Dropped after it was taken out, should that wake somebody who looks.
            let ended = driven.borrow_mut().take();
            drop((ended, permit));
        });
        let since = Cell::new(pool.timers().now());
        let connection = Rc::new(Connection { sender, streams: Cell::new(0), driver, fault, silence, since });
        self.connections.borrow_mut().push(connection.clone());
        Ok(Exchange::begin(connection, pool))
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&self, timers: &Timers, timeout: Duration) {
        self.connections
            .borrow_mut()
            .retain(|connection| connection.streams.get() > 0 || timers.since(connection.since.get()) < timeout);
    }

    pub(super) fn retire(&self) {
        self.connections.borrow_mut().clear();
    }

    /// An exchange has ended while somebody waits for a connection: one of the same pool can have its place, or the
    /// connection is closed for another once nothing is under way on it.
    fn freed(&self, connection: &Rc<Connection>, pool: &Rc<Pool>) {
        let takes_more = !connection.sender.is_closed() && self.position(connection).is_some();
        if !takes_more {
            return;
        }
        let (connections, home) = (&pool.target.connections, pool.home());
        let fits = |reuse| reuse == Reuse::Any;
        let ending = match connection.streams.get() {
            0 => connections.ending(&pool.target.load, home, fits),
            _ => connections.share(home, fits).map_or(Ending::Nobody, Ending::Own),
        };
        match ending {
            Ending::Own(number) => pool.hand(number, Open::Http2(Exchange::begin(connection.clone(), pool))),
            Ending::Another => self.close(connection),
            Ending::Nobody => {}
        }
    }

    /// Closes up to so many connections on which nothing is under way. Each has ended only a moment later.
    pub(super) fn give_up_idle(&self, most: usize) {
        let idle = |connection: &&Rc<Connection>| connection.streams.get() == 0;
        let idle: Vec<_> = self.connections.borrow().iter().filter(idle).take(most).cloned().collect();
        idle.iter().for_each(|connection| self.close(connection));
    }

    /// Lets a connection end once nothing is under way on it.
    fn close(&self, connection: &Rc<Connection>) {
        if let Some(place) = self.position(connection) {
            let closed = self.connections.borrow_mut().remove(place);
            drop(closed);
        }
    }

    fn position(&self, connection: &Rc<Connection>) -> Option<usize> {
        self.connections.borrow().iter().position(|other| Rc::ptr_eq(other, connection))
    }
}

impl Exchange {
    /// Sends a request and waits for the response's head.
    pub(super) async fn run(self, head: &Parts, body: Body) -> Result<Response, Failed> {
        let may_be_sent_again = body.is_end_stream() && head.method.is_idempotent();
        let request =
            request_for(head, &self.pool, body).map_err(|failure| Failed { failure, again: None, sent: false })?;
        let mut sender = self.connection.sender.clone();
        let waiting = Waiting::begin(&self);
        let mut error = match sender.try_send_request(request).await {
            Ok(response) => {
                drop(waiting);
                return Ok(answered(response, self));
            }
            Err(error) => error,
        };
        drop(waiting);
        let (again, sent) = match error.take_message() {
            // The connection was found closed before the request was given to it.
            Some(request) => (Some(request.into_body().0), false),
            None => ((may_be_sent_again && self.connection.sender.is_closed()).then_some(Body::Empty), true),
        };
        // That an endpoint wants another certificate of ours is known only when it answers.
        let failure = match self.connection.fault.borrow().clone() {
            Some(fault) => Failure::Tls { address: self.pool.target.address.to_string(), source: fault.into() },
            None => broken(&self.pool, &error.into_error()),
        };
        let sent = sent && !failure.is_unprocessed();
        Err(Failed { failure, again, sent })
    }
}

/// A request without a response yet.
struct Waiting<'a>(&'a Exchange);

impl<'a> Waiting<'a> {
    fn begin(exchange: &'a Exchange) -> Self {
        exchange.connection.silence.asked(exchange.pool.timers().now());
        Self(exchange)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Exchange { connection, pool } = self.0;
        if connection.silence.is_long(pool.timers()) {
            pool.h2().close(connection);
        }
    }
}

fn answered(response: http::Response<hyper::body::Incoming>, exchange: Exchange) -> Response {
    response.map(|incoming| {
        if incoming.is_end_stream() {
            Body::Empty
        } else {
            let incoming = Incoming::new(incoming, From::Endpoint);
            Body::Stream(Box::pin(ResponseBody { incoming, _exchange: exchange }))
        }
    })
}

fn failure(pool: &Pool, what: String) -> Failure {
    Failure::Http2 { address: pool.target.address.to_string(), what }
}

/// What hyper found: a stream that was reset, or a connection that broke.
fn broken(pool: &Pool, error: &hyper::Error) -> Failure {
    let address = || pool.target.address.to_string();
    match reset_code(error) {
        Some(code) => Failure::Reset { address: address(), code },
        None if is_going_away(error) => Failure::GoingAway { address: address() },
        None => failure(pool, describe(error)),
    }
}

/// The request as HTTP/2 has it: an absolute target, no Host.
fn request_for(head: &Parts, pool: &Pool, body: Body) -> Result<http::Request<Outgoing>, Failure> {
    let mut request = http::Request::new(Outgoing(body));
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty());
    let authority = head.uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or(&pool.target.address);
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scheme = if pool.target.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let target = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    *request.uri_mut() = target.map_err(|error| Failure::Request { what: error.to_string() })?;
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.clone_from(&head.headers);
    headers.remove(header::HOST);
    Ok(request)
}

/// The body of a response, which keeps its place on the connection until its end.
struct ResponseBody {
    incoming: Incoming,
    _exchange: Exchange,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hyper::rt::Sleep;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// For which time passes a hundred times as fast.
    struct Hasty(Instant);

    struct Nap(Pin<Box<tokio::time::Sleep>>);

    impl Future for Nap {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.0.as_mut().poll(cx)
        }
    }

    impl Sleep for Nap {}

    impl Timer for Hasty {
        fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
            Box::pin(Nap(Box::pin(tokio::time::sleep(duration / 100))))
        }

        fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
            self.sleep(deadline.saturating_duration_since(self.now()))
        }

        fn now(&self) -> Instant {
            self.0 + self.0.elapsed() * 100
        }
    }

    /// An endpoint that is there, and from which nothing comes any more, is given up.
    #[tokio::test]
    async fn a_silent_endpoint_is_asked_whether_it_is_there() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        tokio::task::LocalSet::new()
            .run_until(async {
                let hasty = Hasty(Instant::now());
                let (mut sender, connection) = builder(hasty).handshake(TokioIo::new(near)).await.unwrap();
                let driver = tokio::task::spawn_local(connection);
                let request = http::Request::get("http://users/").body(Outgoing(Body::Empty)).unwrap();
                let answered = sender.try_send_request(request);
                let swallowed = async {
                    let mut buffer = Vec::new();
                    far.read_to_end(&mut buffer).await.unwrap();
                    buffer
                };
                let (answered, swallowed) = tokio::join!(answered, swallowed);
                assert!(answered.is_err() && sender.is_closed());
                let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0];
                assert!(swallowed.windows(ping.len()).any(|bytes| bytes == ping), "{swallowed:?}");
                assert!(driver.await.unwrap().is_err());
            })
            .await;
    }

    #[test]
    fn what_comes_ends_a_silence_and_what_is_asked_begins_one() {
        let (timers, silence) = (Timers::default(), Silence::default());
        let long = timers.tick_after(SILENCE);
        assert!(!silence.is_long(&timers));
        silence.asked(timers.now());
        timers.advance(long);
        silence.asked(timers.now());
        assert!(silence.is_long(&timers), "since the first of them");
        silence.broken();
        assert!(!silence.is_long(&timers));
        silence.asked(timers.now());
        assert!(!silence.is_long(&timers));
    }
}
