//! HTTP/2 from clients, by hyper. What it does not bound is looked at by [`watch`].
//!
//! `header_timeout` is the time for the preface with its SETTINGS, from the beginning of the connection, and for each
//! request's head, from its first frame. Who has said hello may then be silent for `idle_timeout`, as long as pings are
//! answered.

mod heads;
mod parts;
mod watch;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::Method;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use self::parts::{ResponseBody, Tunnelled, Watched, Written};
use self::watch::{Open, Watch};
use super::client_body::within_limits;
use super::connection::{self, BLOCKED, Connection, FAREWELL};
use super::exchange::{self, Answer, Next};
use super::refusal::Refusal;
use crate::config::checked::Listener;
use crate::proto::Request;
use crate::proto::http2::{self, From, Outgoing, SEND_BUFFER};
use crate::proto::upgrade::ExtendedConnect;
use crate::transport::Stream;

/// Streams at once on one connection; this and the windows are what Envoy advises at an edge.
const STREAMS: u32 = 100;

/// What a client may send on one stream before the endpoint takes it, which is what a blocked upload holds. Less would slow
/// down uploads over long distances: this lets one have 26 Mbit/s over 20 ms.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The same for a connection that is itself in a stream of another: there may be as many of these as that has streams.
const INNER_STREAMS: u32 = 10;
const INNER_WINDOW: u32 = 2 * STREAM_WINDOW;

/// What the library takes of a head on top of twice the listener's limit. It answers a larger head by itself, without a
/// reason and without counting it; what is between the two is answered by us.
const HEAD_ROOM: usize = 16 * 1024;

/// What a header counts on top of its name and value (RFC 9113, 6.5.2).
const PER_HEADER: usize = 32;

/// Streams that were reset before they were seen, and streams that we reset because the client broke the protocol on
/// them (CVE-2025-8671): a connection with more is ended.
const UNSEEN_RESETS: usize = 20;
const OWN_RESETS: usize = 100;

/// A client that does not answer a ping within this time is gone; it is sent one as often while it is silent.
const PING: Duration = Duration::from_secs(30);

/// GOAWAY with ENHANCE_YOUR_CALM, which tells of no stream that it was not served (RFC 9113, 6.8 and 7).
const CALM: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0xb];

/// Serves a connection to its end.
pub async fn serve(connection: Rc<Connection>, stream: Stream) {
    let worker = &connection.worker;
    let settings = &connection.listener.settings;
    let watch = Watch::new(&worker.timers);
    let service = {
        let (connection, watch, tunnels) = (connection.clone(), watch.clone(), Tunnels::default());
        service_fn(move |mut request: http::Request<Incoming>| {
            let (connection, open) = (connection.clone(), Open::new(&watch));
            let upgrade = (request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
            let (watch, tunnels) = (watch.clone(), tunnels.clone());
            async move {
                let has_room = upgrade.is_none() || tunnels.have_room();
                let Answer { response, next } = answer(connection.clone(), request, &open, has_room).await;
                if let (Some(next), Some(upgrade)) = (next, upgrade) {
                    tunnels.spawn(go_on(connection, upgrade, next, Open::tunnel(&watch)));
                }
                Ok::<_, Infallible>(response.map(|body| ResponseBody::new(Outgoing::new(body), open)))
            }
        })
    };
    let (streams, window) =
        if stream.is_inside_http2() { (INNER_STREAMS, INNER_WINDOW) } else { (STREAMS, CONNECTION_WINDOW) };
    let stream = Rc::new(RefCell::new(Written::new(stream)));
    let mut served = Box::pin(
        Builder::new(Tasks(watch.clone()))
            .max_concurrent_streams(streams)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window)
            .max_header_list_size(library_limit(settings.max_header_bytes))
            .max_pending_accept_reset_streams(UNSEEN_RESETS)
            .max_local_error_reset_streams(OWN_RESETS)
            .max_send_buf_size(SEND_BUFFER)
            .enable_connect_protocol()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(TokioIo::new(Watched { stream: stream.clone(), watch: watch.clone() }), service),
    );
    let idle_timeout = settings.idle_timeout;
    let mut idle = worker.timers.deadline(idle_timeout);
    let mut blocked = worker.timers.deadline(BLOCKED);
    let mut head = watch.unfinished_head();
    let mut late = worker.timers.deadline(settings.header_timeout);
    let since = worker.timers.now();
    let mut told = None;
    let mut under_way = None;
    let calm = poll_fn(|cx| {
        let polled = served.as_mut().poll(cx);
        if watch.is_busy() {
            under_way.get_or_insert_with(|| worker.begin());
        } else {
            under_way = None;
        }
        if polled.is_ready() {
            return Poll::Ready(false);
        }
        if watch.is_abused() {
            return Poll::Ready(true);
        }
        if head != watch.unfinished_head() {
            head = watch.unfinished_head();
            late.reset(settings.header_timeout);
        }
        if head.is_some() && late.poll_passed(cx).is_ready() {
            return Poll::Ready(false);
        }
        while blocked.poll_passed(cx).is_ready() {
            blocked.reset(watch.reset_untaken(BLOCKED));
        }
        if watch.is_busy() {
            idle.reset(idle_timeout);
        }
        // Asked for also while busy: a stop wakes those who wait for a deadline.
        let is_over = idle.poll_passed(cx).is_ready();
        // Who has been told to leave says so; what waits for that word and nothing else is not waited for.
        if let Some(told) = told
            && (is_over || !watch.is_busy() && worker.has_no_time_for(told))
        {
            return Poll::Ready(false);
        }
        // Who has just connected is told with its first request: told before, it would come again with that at once.
        let leaves = if watch.has_served() {
            worker.is_leaving() || connection.is_outlived()
        } else {
            worker.has_no_time_for(since)
        };
        if (is_over || leaves) && told.is_none() {
            told = Some(worker.timers.now());
            idle.reset(idle_timeout);
            served.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
    drop(served);
    if let Some(mut last) =
        Rc::into_inner(stream).map(RefCell::into_inner).filter(|last| calm && last.is_between_frames())
    {
        let say = async {
            last.stream.write_all(&CALM).await?;
            last.stream.shutdown().await
        };
        let _who_abused_it_may_miss_the_reason = worker.timers.within(FAREWELL, say).await;
    }
}

/// Runs the library's tasks on this thread, and has the watch know them: it begins one for each stream, at once when it
/// has asked for the stream's service, and one for each tunnel, at once when it has the response that opens it.
#[derive(Clone)]
struct Tasks(Rc<Watch>);

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.0.runs(tokio::task::spawn_local(future).abort_handle());
    }
}

async fn answer(connection: Rc<Connection>, request: http::Request<Incoming>, open: &Open, has_room: bool) -> Answer {
    let room = if has_room { Ok(()) } else { Err(Refusal::TooManyTunnels) };
    let limited = room.and_then(|()| too_large(&request, &connection.listener.settings));
    let (mut head, incoming) = request.into_parts();
    if let Some(protocol) = head.extensions.remove::<hyper::ext::Protocol>() {
        head.extensions.insert(ExtendedConnect(protocol.as_str().into()));
    }
    let body = open.request_body(http2::Incoming::new(incoming, From::Client));
    match limited.and_then(|()| within_limits(body, &connection)) {
        Ok(body) => exchange::serve(connection, Request::from_parts(head, body)).await,
        Err(refusal) => exchange::refuse(&connection, &head, &refusal),
    }
}

fn library_limit(max_header_bytes: usize) -> u32 {
    u32::try_from(max_header_bytes.saturating_mul(2).saturating_add(HEAD_ROOM)).unwrap_or(u32::MAX)
}

/// The listener's limits. The library has its own, beyond these.
fn too_large(request: &http::Request<Incoming>, settings: &Listener) -> Result<(), Refusal> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if target.max(uri.authority().map_or(0, |authority| authority.as_str().len())) > settings.max_uri_bytes {
        return Err(Refusal::TargetTooLong);
    }
    if request.headers().len() > settings.max_headers || size(request) > settings.max_header_bytes {
        return Err(Refusal::HeadTooLarge);
    }
    Ok(())
}

/// The size of a head as SETTINGS_MAX_HEADER_LIST_SIZE has it: uncompressed, with the pseudo-headers.
fn size(request: &http::Request<Incoming>) -> usize {
    let uri = request.uri();
    let pseudo = [
        (":method", Some(request.method().as_str())),
        (":scheme", uri.scheme_str()),
        (":authority", uri.authority().map(|authority| authority.as_str())),
        (":path", uri.path_and_query().map(|path| path.as_str())),
    ];
    let pseudo = pseudo.iter().filter_map(|(name, value)| Some((name.len(), (*value)?.len())));
    let headers = request.headers().iter().map(|(name, value)| (name.as_str().len(), value.len()));
    pseudo.chain(headers).map(|(name, value)| name + value + PER_HEADER).sum()
}

/// The tunnels on one connection, which end with it. The other end of a tunnel may outlive its stream, so that the limit
/// of streams is none of these.
#[derive(Clone, Default)]
struct Tunnels(Rc<RefCell<JoinSet<()>>>);

impl Tunnels {
    fn have_room(&self) -> bool {
        let mut tunnels = self.0.borrow_mut();
        while tunnels.try_join_next().is_some() {}
        tunnels.len() < STREAMS as usize
    }

    fn spawn(&self, tunnel: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().spawn_local(tunnel);
    }
}

/// Goes on with a stream that is a tunnel (RFC 9113, 8.5), once the head of its response has been sent.
async fn go_on(connection: Rc<Connection>, upgrade: OnUpgrade, next: Next, open: Open) {
    if let Ok(upgraded) = upgrade.await {
        let stream = Stream::other(Tunnelled::new(TokioIo::new(upgraded), open));
        connection::go_on_with(connection, stream, next).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;
    use crate::proto::{Body, BodyError};
    use crate::timer::Timers;

    /// A response that is larger than any window.
    fn download() -> Body {
        let pieces = (0..100).map(|_| Ok::<_, BodyError>(Frame::data(Bytes::from_static(&[b'd'; 1 << 14]))));
        Body::Stream(Box::pin(StreamBody::new(tokio_stream::iter(pieces))))
    }

    /// The library does so: a stream whose task is dropped is reset, and each stream has the task that began with it.
    #[tokio::test]
    async fn a_download_that_nobody_takes_is_reset_on_the_wire() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let timers: Rc<Timers> = Rc::default();
        let watch = Watch::new(&timers);
        let service = {
            let watch = watch.clone();
            service_fn(move |request: http::Request<Incoming>| {
                let open = Open::new(&watch);
                let body = if request.uri().path() == "/large" { download() } else { Body::Empty };
                async move { Ok::<_, Infallible>(http::Response::new(ResponseBody::new(Outgoing::new(body), open))) }
            })
        };
        let serve = async {
            let served = Builder::new(Tasks(watch.clone())).serve_connection(TokioIo::new(near), service);
            tokio::task::spawn_local(served);
            let mut client = h2::client::Builder::new();
            client.initial_window_size(65_535).initial_connection_window_size(1 << 20);
            let (mut sender, connection) = client.handshake::<_, Bytes>(far).await.unwrap();
            tokio::task::spawn_local(connection);
            let mut ask = |path: &str| {
                let request = http::Request::get(format!("http://users{path}")).body(()).unwrap();
                sender.send_request(request, true).unwrap().0
            };
            let mut untaken = ask("/large").await.unwrap().into_body();
            let mut taken = ask("/large").await.unwrap().into_body();
            for body in [&mut untaken, &mut taken] {
                let mut length = 0;
                while length < 65_535 {
                    length += body.data().await.unwrap().unwrap().len();
                }
            }
            timers.advance(timers.tick_after(BLOCKED / 2));
            taken.flow_control().release_capacity(65_535).unwrap();
            assert!(taken.data().await.unwrap().is_ok());
            timers.advance(timers.tick_after(BLOCKED / 2));
            watch.reset_untaken(BLOCKED);
            assert_eq!(untaken.data().await.unwrap().unwrap_err().reason(), Some(h2::Reason::CANCEL));
            assert!(taken.data().await.unwrap().is_ok());
            assert_eq!(ask("/").await.unwrap().status(), 200);
            assert!(watch.is_busy());
        };
        tokio::task::LocalSet::new().run_until(serve).await;
    }
}
