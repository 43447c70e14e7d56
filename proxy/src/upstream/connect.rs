//! Opening a connection.
//!
//! Connections are kept alive by the kernel's probes: the other side of one that is idle, as tunnels may be for long,
//! may vanish without a word, and a firewall on the way forgets what is silent. Where a name has several addresses they
//! are tried as [`happy_eyeballs`](super::happy_eyeballs) says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::chain::Link;
use super::happy_eyeballs::{ATTEMPT_DELAY, interleaved, race};
use super::own::OwnSockets;
use super::{Failure, Reach};
use crate::egress::Egress;
use crate::timer::Timers;
use crate::transport::Stream;
use crate::transport::tls::Connector;

/// A connection on which nothing comes for a minute is probed every half a minute, and ends when four probes in a row are
/// not answered: after three minutes in all, so that no short outage ends what is only idle.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(30)).with_retries(4);

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectSettings {
    /// For all addresses of a name together.
    pub timeout: Duration,
    /// Which addresses may be connected to for a host that a client names.
    pub reach: Option<Arc<Reach>>,
    /// Which addresses an endpoint may have, by the source that announces it.
    pub egress: Option<Arc<Egress>>,
    /// The names that may be looked up at once with others of their kind; none for any number.
    pub lookups: Option<Arc<Semaphore>>,
    /// Where no connection goes: the proxy's own listeners.
    pub own: Arc<OwnSockets>,
}

/// TLS to an endpoint: by whom, and the protocols to offer, the preferred one first.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    pub connector: &'a Connector,
    pub protocols: &'a [&'a [u8]],
}

/// What a connection begins with, before any protocol.
#[derive(Clone, Copy)]
pub struct Opening<'a> {
    /// A PROXY protocol header, or nothing.
    pub header: &'a [u8],
    pub tls: Option<Offer<'a>>,
    /// Of a tunnel, its place in its chain.
    pub link: Option<&'a Link>,
}

/// Connects to `host:port`, or to `socket` where the address is known. The address that was found allowed is the one
/// that is connected to: a name is resolved once. Tells the stream, and whether TLS has agreed on HTTP/2.
///
/// # Errors
///
/// Refused, unreachable, denied, no TLS, or all of it not in time.
pub async fn connect(
    timers: &Rc<Timers>,
    address: &str,
    socket: Option<SocketAddr>,
    settings: &ConnectSettings,
    opening: Opening<'_>,
) -> Result<(Stream, bool), Failure> {
    let connected = timers.within(settings.timeout, open(address, socket, settings, opening)).await;
    connected.unwrap_or_else(|_| Err(Failure::ConnectTimeout { address: address.to_owned() }))
}

/// As [`connect`], for a caller who keeps the time.
///
/// # Errors
///
/// As of [`connect`], but for the time.
pub async fn open(
    address: &str,
    socket: Option<SocketAddr>,
    settings: &ConnectSettings,
    opening: Opening<'_>,
) -> Result<(Stream, bool), Failure> {
    let connected = match socket {
        Some(socket) => connect_to_any(vec![socket], address, settings, opening.link).await,
        None => match look_up(address, settings.lookups.as_ref()).await {
            Ok(sockets) => connect_to_any(sockets, address, settings, opening.link).await,
            Err(source) => Err(Failure::Resolve { address: address.to_owned(), source }),
        },
    };
    let mut stream = connected?;
    let _a_slower_connection_is_still_one = stream.set_nodelay(true);
    let _so_is_one_that_is_not_probed = SockRef::from(&stream).set_tcp_keepalive(&KEEP_ALIVE);
    let said = stream.write_all(opening.header).await;
    said.map_err(|source| Failure::Connect { address: address.to_owned(), source })?;
    match opening.tls {
        None => Ok((stream.into(), false)),
        Some(Offer { connector, protocols }) => {
            let secured = Box::pin(connector.connect(address, protocols, stream.into())).await;
            secured.map_err(|source| Failure::Tls { address: address.to_owned(), source })
        }
    }
}

/// The addresses of a name. A lookup that nobody waits for any longer goes on, and counts for as long.
async fn look_up(address: &str, lookups: Option<&Arc<Semaphore>>) -> io::Result<Vec<SocketAddr>> {
    let permit = match lookups {
        Some(lookups) => Some(lookups.clone().acquire_owned().await.map_err(io::Error::other)?),
        None => None,
    };
    let address = address.to_owned();
    let found = tokio::task::spawn_local(async move {
        let found = tokio::net::lookup_host(address).await.map(Vec::from_iter);
        drop(permit);
        found
    });
    found.await.map_err(io::Error::other)?
}

/// Connects to one of these addresses that are allowed, as [`race`] says; the failure of the last.
async fn connect_to_any(
    mut sockets: Vec<SocketAddr>,
    address: &str,
    settings: &ConnectSettings,
    link: Option<&Link>,
) -> Result<TcpStream, Failure> {
    sockets.retain(|socket| {
        settings.reach.as_ref().is_none_or(|reach| reach.has(socket.ip()))
            && settings.egress.as_ref().is_none_or(|egress| egress.allows(socket.ip()))
    });
    let allowed = sockets.len();
    sockets.retain(|socket| !settings.own.has(*socket));
    let has_own = sockets.len() < allowed;
    let connected = match sockets.as_slice() {
        &[socket] => connect_to(socket, address, settings, link).await,
        _ => {
            let connect = |socket| connect_to(socket, address, settings, link);
            race(interleaved(sockets), ATTEMPT_DELAY, connect).await.unwrap_or_else(|| Err(denied(address)))
        }
    };
    // That one of them is the proxy itself says more than that another one is not there.
    connected.map_err(|failure| if has_own { Failure::Own { address: address.to_owned() } } else { failure })
}

/// Connects to an address, unless it turns out to be this machine's own, and may not be that.
async fn connect_to(
    socket: SocketAddr,
    address: &str,
    settings: &ConnectSettings,
    link: Option<&Link>,
) -> Result<TcpStream, Failure> {
    let reach = settings.reach.as_deref();
    let connected = match reach.filter(|reach| !reach.has_own(socket.ip())).map(|_| is_own(socket)) {
        Some(Ok(true)) => return Err(denied(address)),
        Some(Err(error)) => Err(error),
        Some(Ok(false)) | None => match link {
            Some(link) => link.connect(socket).await,
            None => TcpStream::connect(socket).await,
        },
    };
    connected.map_err(|source| Failure::Connect { address: address.to_owned(), source })
}

fn denied(address: &str) -> Failure {
    Failure::Denied { address: address.to_owned() }
}

/// Whether an address is one of this machine's own, as any of them is this machine: what is sent there comes from it.
/// It is told without a connection, whose success would tell the client which ports are open. Nothing is sent.
fn is_own(socket: SocketAddr) -> io::Result<bool> {
    let any = if socket.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let asking = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    asking.connect(socket)?;
    // Not the address that was asked for: the unspecified one stands for this machine, too.
    Ok(asking.local_addr()?.ip().to_canonical() == asking.peer_addr()?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_address_that_answers_and_is_allowed_is_used() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // Nobody listens there.
        let closed = SocketAddr::from(([127, 0, 0, 2], 1));
        let settings = |reach: Option<Reach>| ConnectSettings {
            timeout: Duration::from_secs(9),
            reach: reach.map(Arc::new),
            egress: None,
            lookups: None,
            own: Arc::default(),
        };
        let connect = async |sockets: &[SocketAddr], reach: Option<Reach>| {
            let settings = settings(reach);
            connect_to_any(sockets.to_vec(), "users:80", &settings, None)
                .await
                .map(|stream| stream.peer_addr().unwrap())
        };
        assert_eq!(connect(&[closed, open], None).await.unwrap(), open);
        assert_eq!(connect(&[open, closed], None).await.unwrap(), open);
        assert!(matches!(connect(&[closed, closed], None).await, Err(Failure::Connect { .. })));
        let elsewhere = Reach::new(&Default::default(), false);
        assert!(matches!(connect(&[open, closed], Some(elsewhere)).await, Err(Failure::Denied { .. })));
        assert!(matches!(connect(&[], None).await, Err(Failure::Denied { .. })));
    }

    #[test]
    fn an_own_address_is_told_without_a_connection() {
        // What is sent to the other addresses of loopback comes from the first.
        for (address, own) in
            [("127.0.0.1:1", true), ("0.0.0.0:1", true), ("[::ffff:127.0.0.1]:1", true), ("127.0.0.9:1", false)]
        {
            assert_eq!(is_own(address.parse().unwrap()).unwrap(), own, "{address}");
        }
    }
}
