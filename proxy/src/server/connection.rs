//! A client's connection: what is spoken on it, layer by layer.
//!
//! A connection may begin with a PROXY protocol header. Then come layers: TLS that ends here, and inside of it, or of a
//! tunnel to a service, what is spoken there. Each layer is served to its end or opens the next one; how many there may
//! be is bounded, since a tunnel within a tunnel is refused.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

use super::exchange::Next;
use super::layer::{self, Layer};
use super::listener::Listener;
use super::local::LocalService;
use super::tunnel::Content;
use super::worker::Worker;
use super::{h1, h2, socks, tunnel};
use crate::policy::Peer;
use crate::transport::Stream;
use crate::transport::proxy_protocol::{self, Addresses};
use crate::transport::tls::{Proof, Standing};

/// How long a client may take nothing of what there is for it: Envoy's idle time of a stream.
pub(super) const BLOCKED: Duration = Duration::from_secs(300);

/// How long a client may take to take the last that is said to it, and to stop sending.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// A client's connection, as requests see it.
#[derive(Clone)]
pub struct Connection {
    pub worker: Rc<Worker>,
    pub listener: Arc<Listener>,
    pub client: SocketAddr,
    /// Where the connection comes from: the client, or who speaks for it.
    pub source: SocketAddr,
    /// The address that the client connected to.
    pub local: SocketAddr,
    /// What the client's TLS handshake said; none without TLS.
    pub peer: Option<Arc<Peer>>,
    /// The certificate that the client has proved itself by; it stays one only for as long as it would be accepted.
    pub proof: Option<Rc<Proof>>,
    /// Whether TLS was ended here, on this connection or in this tunnel: there is none inside of it.
    pub ends_tls: bool,
    /// The tunnel to a service that the client has asked for: everything inside is for it.
    pub tunnel: Option<Inside>,
}

/// The inside of a tunnel to a service.
#[derive(Clone)]
pub struct Inside {
    pub service: Arc<str>,
    /// The host that the client asked for, in lower case.
    pub host: Rc<str>,
}

impl Connection {
    /// Whether everything on this connection goes to one service, and no request is asked for its host.
    pub fn is_bound(&self) -> bool {
        self.tunnel.is_some() || self.listener.settings.service.is_some()
    }

    /// Whether the client's certificate has been revoked since, or its authority is trusted no more: no more requests are
    /// served.
    pub fn is_revoked(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.standing() == Standing::Revoked)
    }

    /// Whether the client is to be asked to come again, with a certificate that is good now.
    pub fn is_outlived(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.standing() != Standing::Good)
    }

    /// The service that everything on this connection goes to.
    pub fn service(&self) -> Option<Rc<LocalService>> {
        match &self.tunnel {
            // As it is now: a tunnel may outlive a configuration.
            Some(tunnel) => self.worker.service(&tunnel.service),
            None => self.worker.service(self.listener.settings.service.as_deref()?),
        }
    }
}

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, listener: Arc<Listener>, stream: TcpStream, client: SocketAddr) {
    let _a_slower_connection_is_still_one = stream.set_nodelay(true);
    let address = listener.settings.address;
    // Of a listener on all addresses only the socket knows.
    let local = address.ip().is_unspecified().then(|| stream.local_addr().ok()).flatten().unwrap_or(address);
    let mut connection = Connection {
        worker,
        listener,
        client,
        source: client,
        local,
        peer: None,
        proof: None,
        ends_tls: false,
        tunnel: None,
    };
    let mut stream = stream.into();
    let named = if connection.listener.begins_with_header(client.ip()) {
        if !Box::pin(accept_header(&mut connection, &mut stream)).await {
            return;
        }
        let Ok(named) = connection.listener.enter(connection.client.ip()) else { return };
        Some(named)
    } else {
        None
    };
    go_on(Rc::new(connection), stream).await;
    drop(named);
}

/// Takes the PROXY protocol header; false where none came in time.
async fn accept_header(connection: &mut Connection, stream: &mut Stream) -> bool {
    let worker = &connection.worker;
    let timeout = connection.listener.settings.header_timeout;
    let accept = worker.timers.within(timeout, proxy_protocol::accept(stream));
    let Some(accepted) = before_requests(worker, accept).await else { return false };
    match accepted.map_err(io::Error::other).flatten() {
        Ok(Some(Addresses { source, destination })) => (connection.client, connection.local) = (source, destination),
        Ok(None) => {}
        Err(error) => {
            tracing::debug!(target: "heddle::server", client = %connection.client, "PROXY protocol: {error}");
            return false;
        }
    }
    true
}

/// Serves one layer after another.
async fn go_on(connection: Rc<Connection>, stream: Stream) {
    let mut layer = Some((connection, stream));
    while let Some((connection, stream)) = layer {
        layer = serve_layer(connection, stream).await;
    }
}

/// Goes on with a connection, or an HTTP/2 stream, that is no longer HTTP.
pub async fn go_on_with(connection: Rc<Connection>, stream: Stream, next: Next) {
    if let Some((connection, stream)) = follow(connection, stream, next).await {
        go_on(connection, stream).await;
    }
}

async fn follow(connection: Rc<Connection>, stream: Stream, next: Next) -> Option<(Rc<Connection>, Stream)> {
    match next {
        Next::Inside(tunnel) => {
            let inside = Connection { tunnel: Some(tunnel), ends_tls: false, ..Connection::clone(&connection) };
            Some((Rc::new(inside), stream))
        }
        Next::Relay(tunnel) => {
            tunnel.run(&connection, stream).await;
            None
        }
    }
}

/// Serves what is spoken on a stream; the stream inside, if it opens one.
async fn serve_layer(connection: Rc<Connection>, mut stream: Stream) -> Option<(Rc<Connection>, Stream)> {
    let worker = &connection.worker;
    match Box::pin(before_requests(worker, layer::find(&connection, &mut stream))).await?? {
        Layer::Http1 => {
            let (stream, next) = Box::pin(h1::serve(connection.clone(), stream)).await?;
            Box::pin(follow(connection, stream, next)).await
        }
        Layer::Http2 => {
            Box::pin(h2::serve(connection, stream)).await;
            None
        }
        Layer::Tls => {
            let tls = connection.listener.tls.clone();
            match Box::pin(before_requests(worker, tls.accept(&worker.timers, stream))).await? {
                Ok((stream, mut peer, proof)) => {
                    // Who has opened a tunnel is also who speaks in it.
                    peer.identity = peer.identity.or_else(|| connection.peer.as_ref()?.identity.clone());
                    let outer = connection.proof.as_ref();
                    let proof = proof.map(|proof| Rc::new(proof.inside(outer))).or_else(|| outer.cloned());
                    let peer = Some(Arc::new(peer));
                    let inside = Connection { peer, proof, ends_tls: true, ..Connection::clone(&connection) };
                    Some((Rc::new(inside), stream))
                }
                Err(error) => {
                    tracing::debug!(target: "heddle::server", client = %connection.client, "{error}");
                    None
                }
            }
        }
        Layer::Socks5 => {
            let (stream, next) = Box::pin(socks::serve(&connection, stream)).await?;
            Box::pin(follow(connection, stream, next)).await
        }
        Layer::Opaque => {
            Box::pin(tunnel::serve(&connection, stream, Content::Plain)).await;
            None
        }
        Layer::OpaqueTls(connection) => {
            Box::pin(tunnel::serve(&connection, stream, Content::Tls)).await;
            None
        }
    }
}

/// Does what comes before a client can ask for anything, for as long as a worker that stops has time for that.
pub async fn before_requests<T>(worker: &Worker, first: impl Future<Output = T>) -> Option<T> {
    let since = worker.timers.now();
    let mut first = pin!(first);
    // Never passes; but who waits for a deadline is woken when the worker stops.
    let mut stop = worker.timers.deadline(Duration::MAX);
    poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if worker.has_no_time_for(since) => Poll::Ready(None),
        Poll::Pending => stop.poll_passed(cx).map(|()| None),
    })
    .await
}

/// Waits until the client has sent something; false when it should not be waited for any longer.
pub async fn is_readable(connection: &Connection, stream: &mut Stream, timeout: Duration) -> bool {
    let worker = &connection.worker;
    let mut deadline = worker.timers.deadline(timeout);
    poll_fn(|cx| match stream.poll_readable(cx) {
        Poll::Ready(readable) => Poll::Ready(readable),
        Poll::Pending if worker.is_draining() => Poll::Ready(false),
        Poll::Pending => deadline.poll_passed(cx).map(|()| false),
    })
    .await
}
