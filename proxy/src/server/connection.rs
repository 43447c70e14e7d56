//! A client's connection: what is spoken on it, layer by layer.
//!
//! A connection may begin with a PROXY protocol header. Then come layers: TLS that ends here, and inside of it, or of a
//! tunnel to a service, what is spoken there. Each layer is served to its end or opens the next one; how many there may
//! be is bounded, since a tunnel within a tunnel is refused.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

use super::exchange::Next;
use super::listener::Listener;
use super::refusal::Refusal;
use super::worker::{LocalService, Worker};
use super::{h1, h2, socks, tunnel};
use crate::config::checked::{ListenerTls, Protocol};
use crate::policy::Peer;
use crate::transport::Stream;
use crate::transport::detect::{Spoken, spoken};
use crate::transport::tls::{Hello, client_hello};

/// A client's connection, as requests see it.
#[derive(Clone)]
pub struct Connection {
    pub worker: Rc<Worker>,
    pub listener: Arc<Listener>,
    pub client: SocketAddr,
    /// What the client's TLS handshake said; none without TLS.
    pub peer: Option<Arc<Peer>>,
    /// Whether TLS was ended here, on this connection or in this tunnel: there is none inside of it.
    pub ends_tls: bool,
    /// The service that the client has asked for a tunnel to: everything inside is for it.
    pub tunnel: Option<Rc<LocalService>>,
}

impl Connection {
    /// Whether everything on this connection goes to one service, and no request is asked for its host.
    pub fn is_bound(&self) -> bool {
        self.tunnel.is_some() || self.listener.settings.service.is_some()
    }

    /// Whether the listener takes nothing but TLS, which has yet to begin.
    fn needs_tls(&self) -> bool {
        let Listener { settings, .. } = &*self.listener;
        matches!(settings.tls, ListenerTls::Terminate(_))
            && settings.protocol != Protocol::Auto
            && self.tunnel.is_none()
            && !self.ends_tls
    }

    /// The service that everything on this connection goes to.
    pub fn service(&self) -> Option<Rc<LocalService>> {
        self.tunnel.clone().or_else(|| self.worker.service(self.listener.settings.service.as_deref()?))
    }
}

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, listener: Arc<Listener>, stream: TcpStream, client: SocketAddr) {
    let _a_slower_connection_is_still_one = stream.set_nodelay(true);
    let connection = Rc::new(Connection { worker, listener, client, peer: None, ends_tls: false, tunnel: None });
    go_on(connection, stream.into()).await;
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
        Next::Inside(service) => {
            let inside = Connection { tunnel: Some(service), ends_tls: false, ..Connection::clone(&connection) };
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
    match find_spoken(&connection, &mut stream).await? {
        Spoken::Http1 => {
            let (stream, next) = Box::pin(h1::serve(connection.clone(), stream)).await?;
            Box::pin(follow(connection, stream, next)).await
        }
        Spoken::Http2 => {
            Box::pin(h2::serve(connection, stream)).await;
            None
        }
        Spoken::Tls => {
            let tls = connection.listener.tls.clone();
            match Box::pin(tls.accept(&connection.worker.timers, stream)).await {
                Ok((stream, mut peer)) => {
                    // Who has opened a tunnel is also who speaks in it.
                    peer.identity = peer.identity.or_else(|| connection.peer.as_ref()?.identity.clone());
                    let peer = Some(Arc::new(peer));
                    let inside = Connection { peer, ends_tls: true, ..Connection::clone(&connection) };
                    Some((Rc::new(inside), stream))
                }
                Err(error) => {
                    tracing::debug!(target: "heddle::server", client = %connection.client, "{error}");
                    None
                }
            }
        }
        Spoken::Socks5 => {
            let (stream, next) = Box::pin(socks::serve(&connection, stream)).await?;
            Box::pin(follow(connection, stream, next)).await
        }
        Spoken::Other => {
            Box::pin(tunnel::serve(&connection, stream)).await;
            None
        }
    }
}

/// What is spoken; none when the connection has ended, or took too long to say.
async fn find_spoken(connection: &Connection, stream: &mut Stream) -> Option<Spoken> {
    let settings = &connection.listener.settings;
    let needs_tls = connection.needs_tls();
    if settings.protocol == Protocol::Tcp && connection.tunnel.is_none() && !needs_tls {
        return Some(Spoken::Other);
    }
    if connection.ends_tls && connection.peer.as_ref().is_some_and(|peer| peer.http2) {
        return Some(Spoken::Http2);
    }
    if !is_readable(connection, stream, settings.idle_timeout).await {
        return None;
    }
    let timers = &connection.worker.timers;
    let detected = async {
        loop {
            if !stream.read_ahead().await.ok()? {
                return None;
            }
            if let Some(spoken) = spoken(stream.ahead()) {
                return Some(spoken);
            }
        }
    };
    match timers.within(settings.header_timeout, detected).await.ok()?? {
        Spoken::Tls if !is_for_us(connection, stream).await? => Some(Spoken::Other),
        Spoken::Tls => Some(Spoken::Tls),
        Spoken::Http1 if needs_tls => {
            h1::refuse(&connection.worker, stream, &Refusal::PlainToTls).await;
            None
        }
        _ if needs_tls => None,
        spoken => Some(spoken),
    }
}

/// Whether the TLS that a client has begun ends here. In a tunnel it does if a certificate of the name is held that the
/// client asks for; none when the client does not come to it in time.
async fn is_for_us(connection: &Connection, stream: &mut Stream) -> Option<bool> {
    let settings = &connection.listener.settings;
    if connection.ends_tls {
        return Some(false);
    }
    if connection.tunnel.is_none() {
        return Some(matches!(settings.tls, ListenerTls::Terminate(_)));
    }
    let asked = async {
        loop {
            match client_hello(stream.ahead()) {
                Hello::Whole(name) => return Some(name.is_some_and(|name| connection.listener.tls.covers(&name))),
                Hello::Other => return Some(false),
                Hello::Incomplete if stream.read_ahead().await.ok()? => {}
                Hello::Incomplete => return None,
            }
        }
    };
    connection.worker.timers.within(settings.header_timeout, asked).await.ok()?
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
