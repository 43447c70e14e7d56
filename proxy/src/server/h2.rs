//! HTTP/2 from clients, by hyper.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::Method;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::activity::{Activity, Open};
use super::connection::{self, Connection};
use super::exchange::{self, Next};
use crate::proto::Body;
use crate::proto::http2::{self, From, Outgoing};
use crate::proto::upgrade::ExtendedConnect;
use crate::transport::Stream;
use crate::upstream::LocalExecutor;

/// Streams at once on one connection; this and the windows are what Envoy advises at an edge.
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A client that does not answer a ping within this time is gone; it is sent one as often while it is silent.
const PING: Duration = Duration::from_secs(30);

/// All headers of one request together.
const HEADERS: u32 = 60 * 1024;

/// Serves a connection to its end.
pub async fn serve(connection: Rc<Connection>, stream: Stream) {
    let activity: Rc<Activity> = Rc::default();
    let service = {
        let (connection, activity) = (connection.clone(), activity.clone());
        service_fn(move |mut request: http::Request<Incoming>| {
            let (connection, open) = (connection.clone(), Open::new(&activity));
            let upgrade = (request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
            async move {
                if let Some(protocol) = request.extensions_mut().remove::<hyper::ext::Protocol>() {
                    request.extensions_mut().insert(ExtendedConnect(protocol.as_str().into()));
                }
                let request = request.map(request_body);
                let answer = exchange::serve(connection.clone(), request).await;
                if let (Some(next), Some(upgrade)) = (answer.next, upgrade) {
                    tokio::task::spawn_local(go_on(connection, upgrade, next, Open::new(&open.0)));
                }
                Ok::<_, Infallible>(open.until_end_of(answer.response).map(Outgoing))
            }
        })
    };
    let served = Builder::new(LocalExecutor)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .enable_connect_protocol()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let worker = &connection.worker;
    let idle_timeout = connection.listener.settings.idle_timeout;
    let mut idle = worker.timers.deadline(idle_timeout);
    let mut told = false;
    poll_fn(|cx| {
        if served.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if activity.is_busy() {
            idle.reset(idle_timeout);
        }
        // Asked for also while busy: a stop wakes those who wait for a deadline.
        let is_over = idle.poll_passed(cx).is_ready();
        if is_over && told {
            return Poll::Ready(());
        }
        if (is_over || worker.is_draining()) && !told {
            told = true;
            idle.reset(idle_timeout);
            served.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

/// Goes on with a stream that is a tunnel (RFC 9113, 8.5), once the head of its response has been sent.
async fn go_on(connection: Rc<Connection>, upgrade: OnUpgrade, next: Next, _open: Open) {
    if let Ok(upgraded) = upgrade.await {
        connection::go_on_with(connection, Stream::other(TokioIo::new(upgraded)), next).await;
    }
}

fn request_body(incoming: Incoming) -> Body {
    if incoming.is_end_stream() {
        Body::Empty
    } else {
        Body::Stream(Box::pin(http2::Incoming::new(incoming, From::Client)))
    }
}
