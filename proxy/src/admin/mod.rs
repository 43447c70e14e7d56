//! Health and metrics over HTTP, on the control thread: a worker that is busy or stuck cannot hide here.
//!
//! `GET /live` answers 200 while the process runs, `GET /ready` 200 when requests should be sent here and 503 when
//! not, `GET /metrics` the figures in the text format of OpenMetrics, `GET /state` services, endpoints, plugins and
//! registry as JSON.

mod metrics;
mod process;
mod state;

use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::app::State;
use crate::server::socket::BindError;

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 64;

/// A connection ends after this long, so that nobody holds one for good.
const PATIENCE: Duration = Duration::from_secs(30);

/// Binds the admin server's socket.
///
/// # Errors
///
/// When the address is in use, is not this machine's, or may not be bound.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, BindError> {
    let listener = std::net::TcpListener::bind(address).map_err(|source| BindError { address, source })?;
    listener.set_nonblocking(true).map_err(|source| BindError { address, source })?;
    Ok(listener)
}

/// Serves for ever.
pub async fn serve(listener: std::net::TcpListener, state: Arc<State>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(target: "heddle::admin", "does not start: {error}");
            return;
        }
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = state.clone();
                tokio::spawn(async move {
                    serve_connection(stream, state).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(target: "heddle::admin", "cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = answer(&request, &state);
        async move { Ok::<_, Infallible>(answer.into_response()) }
    });
    let served = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or does not read, is no event.
    let _ = tokio::time::timeout(PATIENCE, served).await;
}

/// A status and a text.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    text: String,
}

impl Answer {
    fn plain(status: StatusCode, text: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", text: format!("{text}\n") }
    }

    fn of<E: Display>(content_type: &'static str, text: Result<String, E>) -> Self {
        match text {
            Ok(text) => Self { status: StatusCode::OK, content_type, text },
            Err(error) => Self::plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn into_response(self) -> http::Response<Full<Bytes>> {
        let mut response = http::Response::new(Full::new(Bytes::from(self.text)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        response
    }
}

fn answer(request: &http::Request<Incoming>, state: &Arc<State>) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Answer::plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET");
    }
    match request.uri().path() {
        "/live" => Answer::plain(StatusCode::OK, "live"),
        "/ready" if state.is_ready() => Answer::plain(StatusCode::OK, "ready"),
        "/ready" => Answer::plain(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        "/metrics" => Answer::of(metrics::CONTENT_TYPE, metrics::text(state)),
        "/state" => Answer::of("application/json", state::json(state)),
        _ => Answer::plain(StatusCode::NOT_FOUND, "expected /live, /ready, /metrics or /state"),
    }
}
