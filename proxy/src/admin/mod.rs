//! Health, metrics and commands over HTTP, on the control thread: a worker that is busy or stuck cannot hide here.
//!
//! `GET /live` answers 200 while the process runs, `GET /ready` 200 when requests should be sent here and 503 when
//! not, `GET /metrics` the figures in the text format of OpenMetrics, `GET /state` services, endpoints, plugins and
//! registry as JSON. That is served at a TCP port, and on a Unix socket, which takes commands too: `routes` has them.
//! The last two are made on another thread and kept for a second: see `report`.

mod command;
mod host;
mod metrics;
mod open;
mod process;
mod report;
mod routes;
mod socket;
mod state;

use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE, X_CONTENT_TYPE_OPTIONS};
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use self::open::Open;
use self::report::Kind;
use self::routes::{Action, Asked};
use crate::app::State;
use crate::drain::Phase;
use crate::handover::PROTOCOL;
use crate::seldom::Seldom;
use crate::server::socket::BindError;

pub use self::report::Reports;
pub use self::socket::{Socket, SocketError, is_trusted};

/// Connections at once at each door; for a further one another has to go (see [`open`]).
const CONNECTIONS: usize = 64;

/// How long a client may take for the head of a request, the next one on its connection included.
const HEAD: Duration = Duration::from_secs(2);

/// Bytes of a connection that are read ahead: a request's head, or pipelined ones. More wait in the socket.
const READ_AHEAD: usize = 16 << 10;

/// A connection ends after this long, so that nobody holds one for good.
const PATIENCE: Duration = Duration::from_secs(30);

/// Binds the admin server's port.
///
/// # Errors
///
/// When the address is in use, is not this machine's, or may not be bound.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, BindError> {
    let listener = std::net::TcpListener::bind(address).map_err(|source| BindError { address, source })?;
    listener.set_nonblocking(true).map_err(|source| BindError { address, source })?;
    Ok(listener)
}

/// Serves at a port for ever.
pub async fn serve_port(listener: io::Result<std::net::TcpListener>, state: Arc<State>) {
    match listener.and_then(TcpListener::from_std) {
        Ok(listener) => serve(listener, state).await,
        Err(error) => tracing::error!(target: "heddle::admin", "does not start: {error}"),
    }
}

/// Serves on a Unix socket, and takes commands there, for ever.
pub async fn serve_commands(listener: io::Result<OwnedFd>, state: Arc<State>) {
    match listener.and_then(|listener| UnixListener::from_std(listener.into())) {
        Ok(listener) => serve(listener, state).await,
        Err(error) => tracing::error!(target: "heddle::admin", "does not start: {error}"),
    }
}

/// What connections are accepted from.
trait Entrance: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    fn door(state: &State) -> Door<'_>;
}

/// What a connection came in by.
#[derive(Debug, Clone, Copy)]
pub enum Door<'a> {
    /// A port, with the path of the Unix socket, if there is one.
    Tcp {
        socket: Option<&'a Path>,
    },
    Unix,
}

impl Door<'_> {
    /// Where to go instead, if this method is not for here.
    fn keeps_out(&self, method: &Method) -> Option<String> {
        match self {
            Self::Tcp { socket: Some(path) } if method == Method::POST => {
                Some(format!("on this machine: curl --unix-socket {} -X POST http://heddle/...", path.display()))
            }
            Self::Tcp { socket: None } if method == Method::POST => {
                Some("set admin_socket in the configuration for a Unix socket that takes it".to_owned())
            }
            Self::Tcp { .. } | Self::Unix => None,
        }
    }
}

impl Entrance for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    fn door(state: &State) -> Door<'_> {
        Door::Tcp { socket: state.admin_socket.as_deref() }
    }
}

impl Entrance for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.accept().await?;
            if socket::is_allowed(&stream)? {
                return Ok(stream);
            }
            tracing::warn!(target: "heddle::admin", "a peer was turned away that is neither this user nor root");
        }
    }

    fn door(_: &State) -> Door<'_> {
        Door::Unix
    }
}

/// Serves for ever.
async fn serve<E: Entrance>(entrance: E, state: Arc<State>) {
    let mut open = Open::new(CONNECTIONS);
    let mut errors = Seldom::default();
    loop {
        match entrance.accept().await {
            Ok(stream) => open.begin(|has_asked| serve_connection::<E>(stream, state.clone(), has_asked)),
            Err(error) => {
                if let Some(times) = errors.count(Instant::now()) {
                    tracing::warn!(target: "heddle::admin", times, "cannot accept: {error}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection<E: Entrance>(stream: E::Stream, state: Arc<State>, has_asked: Arc<AtomicBool>) {
    let then = Arc::new(OnceLock::new());
    let service = {
        let (state, then) = (state.clone(), then.clone());
        service_fn(move |mut request: http::Request<Incoming>| {
            has_asked.store(true, Relaxed);
            let (state, then) = (state.clone(), then.clone());
            async move {
                let answer = answer(&request, &state, &E::door(&state)).await;
                if answer.status == StatusCode::SWITCHING_PROTOCOLS {
                    tokio::spawn(hand_over(hyper::upgrade::on(&mut request), state.clone()));
                }
                if let Some(phase) = answer.then {
                    let _the_first_was_the_last = then.set(phase);
                }
                Ok::<_, Infallible>(answer.into_response())
            }
        })
    };
    let served = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(READ_AHEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // A client that goes away, or does not read, is no event.
    let _ = tokio::time::timeout(PATIENCE, served).await;
    if let Some(phase) = then.get() {
        state.stop.advance(*phase);
    }
}

/// Hands the listening sockets over to another process, once it has been told that it gets them.
async fn hand_over(upgrade: hyper::upgrade::OnUpgrade, state: Arc<State>) {
    let Ok(upgraded) = upgrade.await else { return };
    // Only a Unix socket can carry descriptors, and this is asked for only there.
    let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() else { return };
    tracing::info!(target: "heddle", "handing the listening sockets over to another process");
    if let Err(error) = state.handover.give(parts.io.into_inner()).await {
        tracing::warn!(target: "heddle", "the other process takes over no more: {error}");
    }
}

/// A status and a text.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    text: Bytes,
    /// The method that would have been right.
    allow: Option<&'static Method>,
    /// How far to stop once the answer has been given, which is the last on its connection.
    then: Option<Phase>,
}

const JSON: &str = "application/json";

impl Answer {
    fn new(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Self {
        Self { status, content_type, text: text.into(), allow: None, then: None }
    }

    fn plain(status: StatusCode, text: &str) -> Self {
        Self::new(status, PLAIN, format!("{text}\n"))
    }

    fn of<T: Into<Bytes>, E: Display>(content_type: &'static str, text: Result<T, E>) -> Self {
        match text {
            Ok(text) => Self::new(StatusCode::OK, content_type, text),
            Err(error) => Self::plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn json(status: StatusCode, said: &impl Serialize) -> Self {
        let text = serde_json::to_string_pretty(said).map(|text| text + "\n");
        Self { status, ..Self::of(JSON, text) }
    }

    /// Why a command was not followed, and what is worth knowing about that.
    fn error(status: StatusCode, error: &str, mut details: Value) -> Self {
        if let Value::Object(details) = &mut details {
            details.insert("error".to_owned(), error.into());
        }
        Self::json(status, &details)
    }

    fn into_response(self) -> http::Response<Full<Bytes>> {
        let mut response = http::Response::new(Full::new(self.text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(method) = self.allow.and_then(|method| HeaderValue::from_str(method.as_str()).ok()) {
            headers.insert(ALLOW, method);
        }
        if self.then.is_some() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::SWITCHING_PROTOCOLS {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        }
        response
    }
}

async fn answer(request: &http::Request<Incoming>, state: &Arc<State>, door: &Door<'_>) -> Answer {
    if let Door::Tcp { .. } = door
        && let Err(wrong) = host::check(request, &state.admin_hosts())
    {
        return Answer::plain(wrong.status, wrong.text);
    }
    let Asked { action, names } = match routes::find(request.method(), request.uri().path(), door) {
        Ok(asked) => asked,
        Err(answer) => return answer,
    };
    match action {
        Action::Live => Answer::plain(StatusCode::OK, "live"),
        Action::Ready => ready(state),
        Action::Metrics | Action::State if request.method() == Method::HEAD => {
            state.reports.wait().await;
            Answer::new(StatusCode::OK, content_type(action), Bytes::new())
        }
        Action::Metrics => {
            let make = |state: &Arc<State>| metrics::text(state).map_err(|error| error.to_string());
            Answer::of(content_type(action), state.reports.get(Kind::Metrics, state, make).await)
        }
        Action::State => {
            let make = |state: &Arc<State>| state::json(state).map_err(|error| error.to_string());
            Answer::of(content_type(action), state.reports.get(Kind::State, state, make).await)
        }
        Action::Pause => command::set_paused(state, &names, true),
        Action::Resume => command::set_paused(state, &names, false),
        Action::Drain => command::stop(Phase::Leaving),
        Action::TakeOver => take_over(request),
        Action::Shutdown => command::stop(Phase::Cutting),
    }
}

const fn content_type(action: Action) -> &'static str {
    if matches!(action, Action::Metrics) { metrics::CONTENT_TYPE } else { JSON }
}

/// Services that `/ready` names at most.
const MAX_UNSERVED: usize = 100;

const PLAIN: &str = "text/plain; charset=utf-8";

/// A service that waits for its policy is named. Once the policy's file has been refused, the others are served.
fn ready(state: &Arc<State>) -> Answer {
    let (status, first) = match state.is_ready() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let unserved = state.unserved();
    if unserved.is_empty() {
        return Answer::plain(status, first);
    }
    let lines = unserved.iter().take(MAX_UNSERVED).map(String::as_str);
    Answer::new(status, PLAIN, format!("{first}\n{}\n", lines.collect::<Vec<_>>().join("\n")))
}

/// What is spoken then is no HTTP.
fn take_over(request: &http::Request<Incoming>) -> Answer {
    if request.headers().get(UPGRADE).is_some_and(|protocol| protocol == PROTOCOL) {
        Answer::new(StatusCode::SWITCHING_PROTOCOLS, JSON, Bytes::new())
    } else {
        Answer::plain(StatusCode::UPGRADE_REQUIRED, "expected a process that takes over: heddle run --take-over")
    }
}
