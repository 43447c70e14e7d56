//! HTTP/2 to an endpoint, by hyper: one connection carries many exchanges.
//!
//! So one that has died unnoticed, as when a firewall forgets it, would fail all requests of a worker until the kernel
//! gives it up after many minutes. A request whose time is over while nothing at all has come since it was sent is
//! therefore the last one on its connection, if that was a while or not the first: the next has another. The endpoint is
//! sent no PINGs: servers of gRPC end a connection that has more than one in five minutes (gRPC proposal A8).

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
use hyper_util::rt::TokioIo;

use super::fault::{Fault, Noting};
use super::h1::{MAX_HEAD, MAX_HEADERS};
use super::pool::{Failed, Open, Stage};
use super::{Failure, Permit, Pool};
use crate::proto::http2::{From, Incoming, Outgoing, SEND_BUFFER, describe, is_going_away, reset_code};
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

/// Whether an endpoint still answers on a connection.
#[derive(Default)]
pub(super) struct Silence {
    /// How often something has come.
    heard: Cell<u64>,
    /// Requests whose time was over since then.
    late: Cell<u32>,
}

impl Silence {
    /// Something has come.
    pub(super) fn broken(&self) {
        self.heard.set(self.heard.get().wrapping_add(1));
        self.late.set(0);
    }

    /// A request's time is over, `waited` after it was sent, when so much had been heard. Whether the endpoint is to be
    /// taken for gone.
    fn lasts(&self, heard: u64, waited: Duration) -> bool {
        if self.heard.get() != heard {
            return false;
        }
        self.late.set(self.late.get().saturating_add(1));
        waited >= SILENCE || self.late.get() >= LATE
    }
}

impl Connection {
    /// How many streams the endpoint allows, as far as is known: its SETTINGS come after the first requests have gone.
    /// None once the connection has ended.
    fn allowed(&self) -> Option<usize> {
        self.driver.borrow().as_ref().map(Driver::current_max_send_streams)
    }

    fn has_room(&self) -> bool {
        self.allowed().is_some_and(|allowed| self.streams.get() < allowed)
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

/// What the endpoint may send on a stream before its client takes it. With what waits to be written to the client, a
/// blocked download holds less than 64 KiB. It lets one download have 400 Mbit/s over a millisecond's distance.
const STREAM_WINDOW: u32 = 48 << 10;

/// The same for a connection, which is the worker's only one to the endpoint: what slow clients leave lying on their
/// streams must not keep everybody else's responses back. It is the windows of 256 unread streams, so that each of
/// those is stopped by its own window and by none but its own. It bounds, and does not take, memory: only what has
/// arrived and was not taken is kept.
const CONNECTION_WINDOW: u32 = 256 * STREAM_WINDOW;

/// The most that a response's head may have, as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113, 6.5.2): what HTTP/1
/// may, with 32 bytes more for each header.
const HEAD: u32 = (MAX_HEAD + 32 * MAX_HEADERS) as u32;

/// A request whose time is over after nothing has come for this long is its connection's last; and so is one that had
/// less time, where so many in a row heard nothing.
const SILENCE: Duration = Duration::from_secs(1);
const LATE: u32 = 3;

fn builder() -> Builder<LocalExecutor> {
    let mut builder = Builder::new(LocalExecutor);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .max_send_buf_size(SEND_BUFFER);
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
        let io = Noting::new(io, fault.clone(), silence.clone());
        // What it allows on one connection it most likely allows on the next.
        let allowed = self.connections.borrow().iter().rev().find_map(|connection| connection.allowed());
        let mut builder = builder();
        builder.initial_max_send_streams(allowed);
        let (sender, connection) =
            builder.handshake(TokioIo::new(io)).await.map_err(|error| failure(pool, describe(&error)))?;
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
    pub(super) async fn run(self, head: &Parts, body: Body, stage: &Cell<Stage>) -> Result<Response, Failed> {
        let is_whole = body.is_end_stream();
        let allowed = self.connection.allowed();
        let request =
            request_for(head, &self.pool, body).map_err(|failure| Failed { failure, again: None, sent: false })?;
        let mut sender = self.connection.sender.clone();
        let waiting = Waiting::begin(&self, stage);
        let mut error = match sender.try_send_request(request).await {
            Ok(response) => {
                drop(waiting);
                return Ok(answered(response, self));
            }
            Err(error) => error,
        };
        drop(waiting);
        // Where the connection was found closed, the request was not given to it.
        let unsent = error.take_message().map(|request| request.into_body().into_body());
        // That an endpoint wants another certificate of ours is known only when it answers.
        let failure = match self.connection.fault.borrow().clone() {
            Some(fault) => Failure::Tls { address: self.pool.target.address.to_string(), source: fault.into() },
            None => broken(&self.pool, &error.into_error()),
        };
        let sent = unsent.is_none() && !failure.is_unprocessed();
        // It was one too many, which could not be known when it was sent, or the connection was about to end.
        let was_turned_away = !sent && self.connection.allowed() < allowed;
        let has_died = self.connection.sender.is_closed() && head.method.is_idempotent();
        let again = unsent.or_else(|| (is_whole && (was_turned_away || has_died)).then_some(Body::Empty));
        Err(Failed { failure, again, sent })
    }
}

/// A request without a response yet.
struct Waiting<'a> {
    exchange: &'a Exchange,
    stage: &'a Cell<Stage>,
    /// What had been heard on the connection when it was sent, and the tick of that.
    heard: u64,
    since: u64,
}

impl<'a> Waiting<'a> {
    fn begin(exchange: &'a Exchange, stage: &'a Cell<Stage>) -> Self {
        let heard = exchange.connection.silence.heard.get();
        Self { exchange, stage, heard, since: exchange.pool.timers().now() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Exchange { connection, pool } = self.exchange;
        let waited = || pool.timers().since(self.since);
        if self.stage.get() == Stage::Late && connection.silence.lasts(self.heard, waited()) {
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
    let mut request = http::Request::new(Outgoing::new(body));
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
    use super::*;

    #[test]
    fn who_hears_nothing_for_long_or_three_times_is_alone() {
        let silence = Silence::default();
        let heard = || silence.heard.get();
        assert!(silence.lasts(heard(), SILENCE));
        silence.broken();
        let short = SILENCE / 2;
        assert!(!silence.lasts(heard(), short) && !silence.lasts(heard(), short) && silence.lasts(heard(), short));
        silence.broken();
        assert!(!silence.lasts(heard(), short) && !silence.lasts(heard(), short));
        let before = heard();
        silence.broken();
        assert!(!silence.lasts(before, 60 * SILENCE), "something has come since");
        assert!(!silence.lasts(heard(), short), "and the others do not count any more");
    }
}
