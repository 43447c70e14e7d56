//! Three small servers that answer with their names and what they were asked.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Name and weight of each server.
pub const SERVERS: [(&str, u32); 3] = [("users-1", 1), ("users-2", 2), ("users-3", 3)];

/// One server.
#[derive(Debug, Clone)]
pub struct Server {
    pub name: &'static str,
    pub weight: u32,
    pub address: SocketAddr,
}

/// The servers, on a thread of their own; dropped, they stop.
pub struct Servers {
    servers: Vec<Server>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Servers {
    /// Starts the servers on free ports of the loopback address.
    ///
    /// # Errors
    ///
    /// When no port can be listened on, or no thread be started.
    pub fn start() -> io::Result<Self> {
        let mut servers = Vec::new();
        let mut listeners = Vec::new();
        for (name, weight) in SERVERS {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let server = Server { name, weight, address: listener.local_addr()? };
            listeners.push((listener, Arc::new(server.clone())));
            servers.push(server);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                for (listener, server) in listeners {
                    tokio::spawn(accept(listener, server));
                }
                let _or_dropped = stopped.await;
            });
        };
        let thread = thread::Builder::new().name("demo-servers".into()).spawn(serve)?;
        Ok(Self { servers, stop: Some(stop), thread: Some(thread) })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

async fn accept(listener: std::net::TcpListener, server: Arc<Server>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let server = server.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let text = answer(&server, &request);
                async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
            });
            // A client that goes away is no event.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Name and address, then the request as it arrived.
fn answer(server: &Server, request: &Request<Incoming>) -> String {
    let mut text = format!("{} at {}\n{} {}\n", server.name, server.address, request.method(), request.uri());
    for (name, value) in request.headers() {
        let _writing_to_a_string_cannot_fail =
            writeln!(text, "  {name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}
