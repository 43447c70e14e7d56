//! HTTP/2 with prior knowledge on both sides, by hyper: an endpoint and a client.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Handle, Runtime};

pub type Body = BoxBody<Bytes, Infallible>;

/// A body of these pieces with these trailers; without either there is none.
pub fn body(pieces: &[&[u8]], trailers: &[(&'static str, &'static str)]) -> Body {
    let mut frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    if !trailers.is_empty() {
        frames.push(Ok(Frame::trailers(headers(trailers))));
    }
    if frames.is_empty() { Empty::new().boxed() } else { StreamBody::new(tokio_stream::iter(frames)).boxed() }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
}

/// What has arrived of a message.
#[derive(Debug, Clone)]
pub struct Received<H> {
    pub head: H,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

async fn collect<H>(head: H, body: Incoming) -> Received<H> {
    match body.collect().await {
        Ok(body) => Received { head, trailers: body.trailers().cloned(), body: body.to_bytes() },
        Err(error) => panic!("a body that broke: {error:?}"),
    }
}

/// How an [`Http2Endpoint`] treats its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// Streams at once on one connection; hyper's default where it is none.
    pub streams: Option<u32>,
    /// What it allows is said late: a while after the first requests have come.
    pub hesitates: bool,
    /// The first connection ends when the second request comes, which gets no answer.
    pub leaves: bool,
    /// What a GET is answered with: this many bytes.
    pub download: usize,
    /// In the place of `x-sum: 1`.
    pub trailers: &'static [(&'static str, &'static str)],
}

/// An endpoint that answers each request with its body and a trailer `x-sum: 1`.
pub struct Http2Endpoint {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Received<http::request::Parts>>>>,
    /// Requests wait while this is held.
    pub gate: Arc<tokio::sync::Semaphore>,
}

impl Http2Endpoint {
    pub fn start(manners: Manners) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a mode");
        let address = listener.local_addr().expect("an address");
        let endpoint = Self {
            address,
            accepted: Arc::default(),
            requests: Arc::default(),
            gate: Arc::new(tokio::sync::Semaphore::new(1 << 20)),
        };
        let (accepted, requests, gate) = (endpoint.accepted.clone(), endpoint.requests.clone(), endpoint.gate.clone());
        thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).expect("no delay");
                    let first = accepted.fetch_add(1, Ordering::SeqCst) == 0;
                    tokio::spawn(serve(stream, first, manners, requests.clone(), gate.clone()));
                }
            });
        });
        endpoint
    }

    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<Received<http::request::Parts>> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(
    stream: tokio::net::TcpStream,
    first: bool,
    manners: Manners,
    requests: Arc<Mutex<Vec<Received<http::request::Parts>>>>,
    gate: Arc<tokio::sync::Semaphore>,
) {
    if manners.hesitates {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let served = Arc::new(AtomicUsize::new(0));
    let (leave, left) = tokio::sync::watch::channel(false);
    let leave = Arc::new(leave);
    let service = service_fn(move |request: Request<Incoming>| {
        let (requests, gate, served, leave) = (requests.clone(), gate.clone(), served.clone(), leave.clone());
        async move {
            let (head, body) = request.into_parts();
            if manners.leaves && first && served.fetch_add(1, Ordering::SeqCst) == 1 {
                leave.send_replace(true);
                std::future::pending::<()>().await;
            }
            if manners.download > 0 && head.method == http::Method::GET {
                let piece = Bytes::from_static(&[b'd'; 1 << 14]);
                let pieces = (0..manners.download >> 14).map(move |_| Ok(Frame::data(piece.clone())));
                return Ok::<_, Infallible>(Response::new(StreamBody::new(tokio_stream::iter(pieces)).boxed()));
            }
            let received = collect(head, body).await;
            let _open = gate.acquire().await;
            let trailers = if manners.trailers.is_empty() { &[("x-sum", "1")] } else { manners.trailers };
            let answer = Response::new(self::body(&[&received.body], trailers));
            requests.lock().unwrap().push(received);
            Ok(answer)
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(manners.streams.or(Some(200)));
    let mut left = left;
    tokio::select! {
        _ = builder.serve_connection(TokioIo::new(stream), service) => {}
        _ = left.wait_for(|left| *left) => {}
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A client with one connection, driven by a thread of its own.
pub struct Http2Client {
    runtime: Handle,
    sender: hyper::client::conn::http2::SendRequest<Body>,
    connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Http2Client {
    pub fn connect(address: SocketAddr) -> Self {
        let own = runtime();
        let runtime = own.handle().clone();
        thread::spawn(move || own.block_on(std::future::pending::<()>()));
        let (sender, connection) = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
            stream.set_nodelay(true).expect("no delay");
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("a handshake")
        });
        let connection = runtime.spawn(connection);
        Self { runtime, sender, connection }
    }

    /// Sends a request; what comes back is waited for by [`Http2Client::wait`].
    pub fn start(
        &self,
        request: Request<Body>,
    ) -> tokio::task::JoinHandle<Result<Received<http::response::Parts>, hyper::Error>> {
        let mut sender = self.sender.clone();
        self.runtime.spawn(async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok(collect(head, body).await)
        })
    }

    pub fn wait<T>(&self, task: tokio::task::JoinHandle<T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), task).await })
            .expect("in time")
            .expect("no panic")
    }

    pub fn send(&self, request: Request<Body>) -> Received<http::response::Parts> {
        self.wait(self.start(request)).expect("a response")
    }

    /// Sends a request, and reads nothing of the response but its head.
    pub fn head(&self, request: Request<Body>) -> Response<Incoming> {
        let mut sender = self.sender.clone();
        self.wait(self.runtime.spawn(async move { sender.send_request(request).await })).expect("a response")
    }

    /// Asks for a tunnel: the status, and the tunnel where it is a success.
    pub fn connect_to(&self, authority: &str) -> (u16, Option<Tunnel>) {
        let mut sender = self.sender.clone();
        let request = Request::connect(authority).body(body(&[], &[])).expect("a request");
        let asked = self.runtime.spawn(async move {
            let mut response = sender.send_request(request).await.expect("a response");
            let status = response.status();
            if !status.is_success() {
                return (status.as_u16(), None);
            }
            assert!(response.headers().get("content-length").is_none(), "{response:?}");
            (status.as_u16(), Some(TokioIo::new(hyper::upgrade::on(&mut response).await.expect("a tunnel"))))
        });
        let (status, io) = self.wait(asked);
        (status, io.map(|io| Tunnel { runtime: self.runtime.clone(), io }))
    }

    /// Waits for the other side to end the connection.
    pub fn ended(self) {
        let Self { runtime, sender, connection } = self;
        let within = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), connection).await });
        let _ = within.expect("in time");
        drop(sender);
    }
}

/// A tunnel through one stream of an HTTP/2 connection.
pub struct Tunnel {
    runtime: Handle,
    io: TokioIo<hyper::upgrade::Upgraded>,
}

impl Tunnel {
    fn block_on<T>(
        &mut self,
        run: impl AsyncFnOnce(&mut TokioIo<hyper::upgrade::Upgraded>) -> std::io::Result<T>,
    ) -> T {
        let within = async { tokio::time::timeout(Duration::from_secs(20), run(&mut self.io)).await };
        self.runtime.block_on(within).expect("in time").expect("an open tunnel")
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.block_on(async |io| {
            io.write_all(bytes).await?;
            io.flush().await
        });
    }

    /// Ends this direction.
    pub fn finish(&mut self) {
        self.block_on(async |io| io.shutdown().await);
    }

    /// What comes up to and with `end`.
    pub fn until(&mut self, end: &str) -> String {
        self.block_on(async |io| {
            let mut got = Vec::new();
            while !got.ends_with(end.as_bytes()) {
                got.push(io.read_u8().await?);
            }
            Ok(String::from_utf8_lossy(&got).into_owned())
        })
    }

    /// Everything until the other side ends.
    pub fn rest(&mut self) -> Vec<u8> {
        self.block_on(async |io| {
            let mut got = Vec::new();
            io.read_to_end(&mut got).await.map(|_| got)
        })
    }
}
