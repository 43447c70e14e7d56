//! HTTP/2 to an endpoint, by hyper: one connection carries many exchanges.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use super::{Failure, Pool};
use crate::proto::{Body, BodyError, Response};
use crate::timer::Deadline;

/// Runs hyper's tasks on this thread.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// The worker's connection to one endpoint. A second one is opened when the first has as many streams as the endpoint
/// allows, and so on.
#[derive(Default)]
pub(super) struct Shared {
    connections: RefCell<Vec<SendRequest<Body>>>,
}

/// What the endpoint may send before we take it, per stream and per connection. RFC 9113 starts with 64 KiB for both.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

impl Shared {
    pub(super) async fn attempt(&self, pool: &Rc<Pool>, head: &Parts, body: Body) -> Result<Response, Failure> {
        let request = request_for(head, &pool.target.address, body).ok_or_else(|| Failure::Http2 {
            address: pool.target.address.to_string(),
            what: "a request without a target".into(),
        })?;
        let mut sender = self.connection(pool).await?;
        let broke =
            |error: &hyper::Error| Failure::Http2 { address: pool.target.address.to_string(), what: describe(error) };
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            // The connection was found closed before the request was given to it.
            Err(mut error) => match error.take_message() {
                Some(request) => {
                    let mut sender = self.connection(pool).await?;
                    sender.send_request(request).await.map_err(|error| broke(&error))?
                }
                None => return Err(broke(error.error())),
            },
        };
        let (parts, incoming) = response.into_parts();
        let body = if incoming.is_end_stream() {
            Body::Empty
        } else {
            Body::Stream(Box::pin(ResponseBody::new(incoming, pool)))
        };
        Ok(Response::from_parts(parts, body))
    }

    /// A connection that takes another request.
    async fn connection(&self, pool: &Rc<Pool>) -> Result<SendRequest<Body>, Failure> {
        {
            let mut connections = self.connections.borrow_mut();
            connections.retain(|connection| !connection.is_closed());
            if let Some(ready) = connections.iter().find(|connection| connection.is_ready()) {
                return Ok(ready.clone());
            }
        }
        let (io, permit) = pool.connect().await?;
        let (sender, connection) = Builder::new(LocalExecutor)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| Failure::Http2 { address: pool.target.address.to_string(), what: describe(&error) })?;
        tokio::task::spawn_local(async move {
            // How it ended is told to the exchanges on it.
            let _ = connection.await;
            drop(permit);
        });
        self.connections.borrow_mut().push(sender.clone());
        Ok(sender)
    }

    pub(super) fn retire(&self) {
        self.connections.borrow_mut().clear();
    }
}

/// The request as HTTP/2 has it: an absolute target, no Host.
fn request_for(head: &Parts, address: &str, body: Body) -> Option<http::Request<Body>> {
    let mut request = http::Request::new(body);
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = head.uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or(address);
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build().ok()?;
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.clone_from(&head.headers);
    headers.remove(header::HOST);
    Some(request)
}

fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

struct ResponseBody {
    incoming: Incoming,
    idle: Deadline,
    idle_timeout: Duration,
    _pool: Rc<Pool>,
}

impl ResponseBody {
    fn new(incoming: Incoming, pool: &Rc<Pool>) -> Self {
        let idle_timeout = pool.target.stream_idle_timeout;
        Self { incoming, idle: pool.timers().deadline(idle_timeout), idle_timeout, _pool: pool.clone() }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Pending => {
                ready!(this.idle.poll_passed(cx));
                Poll::Ready(Some(Err(BodyError::Idle)))
            }
            Poll::Ready(frame) => {
                this.idle.reset(this.idle_timeout);
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::Endpoint(describe(&error)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
