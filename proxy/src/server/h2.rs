//! HTTP/2 from clients, by hyper.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::exchange::{self, Connection};
use super::h1::request_body;
use crate::proto::Request;

/// Streams at once on one connection; this and the windows are what Envoy advises at an edge.
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// All headers of one request together.
const HEADERS: u32 = 60 * 1024;

/// How often a connection looks whether it is to end.
const LOOK: Duration = Duration::from_secs(60);

/// Runs hyper's tasks on this thread.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves a connection to its end.
pub async fn serve(connection: Rc<Connection>, stream: TcpStream) {
    let context = connection.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let context = context.clone();
        async move {
            let (head, incoming) = request.into_parts();
            let request = Request::from_parts(head, request_body(incoming));
            Ok::<_, Infallible>(exchange::serve(context, request).await)
        }
    });
    let served = Builder::new(LocalExecutor)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let worker = &connection.worker;
    let mut look = worker.timers.deadline(LOOK);
    let mut told = false;
    poll_fn(|cx| {
        if served.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if worker.is_draining() && !told {
            told = true;
            served.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        while look.poll_passed(cx).is_ready() {
            look.reset(LOOK);
        }
        Poll::Pending
    })
    .await;
}
