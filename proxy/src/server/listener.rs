//! Listening sockets: one a worker for each address.
//!
//! The kernel spreads new connections over the sockets that share an address (`SO_REUSEPORT`). Two things it does not
//! do. It lets a second proxy of the same user share the address too, which would silently take half of the traffic:
//! so the first socket is bound alone, which fails if anyone is there, and shares the address only then. And it spreads
//! by hash, whatever the workers have to do: so a worker that accepts while another has clearly fewer connections
//! hands the new one over.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection;
use super::worker::{Shared, Worker};
use crate::config::checked;
use crate::drain::{self, Phase};
use crate::transport::tls::Terminator;
use crate::upstream::Reach;

/// Connections that wait to be accepted, on each socket.
const BACKLOG: i32 = 4096;

/// How long accepting pauses when the process has no more descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A worker hands a connection over when another has at least this many fewer.
const UNEVEN: usize = 2;

/// A listener that is open, as the connections to it see it.
pub struct Listener {
    pub settings: checked::Listener,
    /// Ends TLS: that of clients, and that inside tunnels.
    pub tls: Arc<Terminator>,
    /// Where connections to hosts that are no services may go; none for nowhere.
    pub reach: Option<Arc<Reach>>,
    permits: Arc<Semaphore>,
    clients: Clients,
    /// By [`Refused`].
    refused: [AtomicU64; Refused::ALL.len()],
}

impl Listener {
    fn new(settings: checked::Listener, tls: Arc<Terminator>) -> Self {
        // Who speaks for others may speak for those that are not on this machine.
        let is_local = settings.address.ip().to_canonical().is_loopback() && settings.proxy_protocol.is_empty();
        Self {
            reach: settings.passthrough.as_ref().map(|passthrough| Arc::new(Reach::new(passthrough, is_local))),
            permits: Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS))),
            clients: Clients::default(),
            refused: Default::default(),
            settings,
            tls,
        }
    }

    /// Counts a connection that is closed without having been served.
    pub fn refused(&self, reason: Refused) {
        if let Some(count) = self.refused.get(reason as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Whether connections from this address begin with a header that says whom they are for.
    pub fn begins_with_header(&self, peer: IpAddr) -> bool {
        self.settings.proxy_protocol.iter().any(|network| network.contains(peer))
    }

    /// Counts a connection of a client for as long as what is returned is kept: nothing where there is no limit, and an
    /// error, counted as such, when it has been reached.
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Result<Option<OfClient>, Refused> {
        let Some(limit) = self.settings.max_connections_per_client else { return Ok(None) };
        let client = one_client(client);
        let mut clients = self.clients.lock();
        let count = clients.entry(client).or_default();
        if *count >= limit {
            self.refused(Refused::Client);
            return Err(Refused::Client);
        }
        *count += 1;
        Ok(Some(OfClient { listener: self.clone(), client }))
    }

    /// Connections closed without having been served, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().zip(&self.refused).map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

/// Why a connection was closed without having been served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its client had as many as it may.
    Client,
    /// What is spoken on it is not for here.
    Protocol,
    /// TLS for a server that is no service.
    ServerName,
}

impl Refused {
    pub const ALL: [Self; 3] = [Self::Client, Self::Protocol, Self::ServerName];
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Protocol => "protocol",
            Self::ServerName => "server_name",
        })
    }
}

/// A configured listener, bound.
pub struct Bound {
    pub listener: Arc<Listener>,
    /// One a worker.
    pub sockets: Vec<std::net::TcpListener>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Binds one socket a worker. With port 0 all get the port that the first is given, and the listener says which.
///
/// # Errors
///
/// When the address is in use, is not this machine's, or may not be bound.
pub fn bind(settings: &checked::Listener, tls: Arc<Terminator>, workers: usize) -> Result<Bound, BindError> {
    let mut settings = settings.clone();
    let wanted = settings.address;
    let failed = |source| BindError { address: wanted, source };
    let first = socket(wanted).map_err(failed)?;
    first.bind(&wanted.into()).map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    let address = first.local_addr().map_err(failed)?.as_socket().unwrap_or(wanted);
    let mut sockets = vec![first];
    for _ in 1..workers {
        let next = socket(address).map_err(failed)?;
        next.set_reuse_port(true).map_err(failed)?;
        next.bind(&address.into()).map_err(failed)?;
        sockets.push(next);
    }
    for socket in &sockets {
        socket.listen(BACKLOG).map_err(failed)?;
    }
    settings.address = address;
    let listener = Arc::new(Listener::new(settings, tls));
    Ok(Bound { listener, sockets: sockets.into_iter().map(Into::into).collect() })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    Ok(socket)
}

/// An accepted connection on its way to a worker.
pub struct Accepted {
    pub listener: Arc<Listener>,
    pub stream: std::net::TcpStream,
    pub client: SocketAddr,
    pub permit: Permit,
}

/// One of a listener's connections, and of the client's, until it is dropped.
pub struct Permit {
    _of_listener: OwnedSemaphorePermit,
    _of_client: Option<OfClient>,
}

/// One worker's part of a bound listener.
pub struct Part {
    pub listener: Arc<Listener>,
    pub socket: std::net::TcpListener,
    /// To each worker, by number.
    pub workers: Arc<[UnboundedSender<Accepted>]>,
}

impl Bound {
    /// The part of each worker, in order.
    pub fn into_parts(self, workers: &Arc<[UnboundedSender<Accepted>]>) -> Vec<Part> {
        let Self { listener, sockets } = self;
        let part = |socket| Part { listener: listener.clone(), socket, workers: workers.clone() };
        sockets.into_iter().map(part).collect()
    }
}

/// Accepts connections until it is time to stop, and then those that wait already: closing a socket resets them.
///
/// # Errors
///
/// When the socket cannot be used on this thread.
pub async fn accept(worker: Rc<Worker>, part: Part, mut watcher: drain::Watcher) -> io::Result<()> {
    let Part { listener, socket, workers } = part;
    let socket = TcpListener::from_std(socket)?;
    let stopped = &mut pin!(watcher.reached(Phase::Finishing));
    loop {
        let accepted = async {
            let (stream, client) = socket.accept().await?;
            // An IPv4 client of an IPv6 socket is the same client as on an IPv4 socket.
            let client = SocketAddr::new(client.ip().to_canonical(), client.port());
            // Who speaks for others is not their client: those count, once it has said who they are.
            let entered = if listener.begins_with_header(client.ip()) { Ok(None) } else { listener.enter(client.ip()) };
            let Ok(of_client) = entered else { return Ok(None) };
            // Only now: a worker that took a permit before there is a connection would keep it from the others.
            let of_listener = listener.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok(Some((stream, client, Permit { _of_listener: of_listener, _of_client: of_client })))
        };
        let accepted = tokio::select! {
            biased;
            accepted = accepted => accepted,
            () = &mut *stopped => return Ok(()),
        };
        match accepted {
            Ok(None) => {}
            Ok(Some((stream, client, permit))) => match less_loaded(&worker.shared, worker.number) {
                None => start(&worker, listener.clone(), stream, client, permit),
                Some(other) => {
                    let Ok(stream) = stream.into_std() else { continue };
                    let accepted = Accepted { listener: listener.clone(), stream, client, permit };
                    count(&worker.shared, other, 1);
                    let refused = match workers.get(other) {
                        Some(worker) => worker.send(accepted).map_err(|refused| refused.0).err(),
                        None => Some(accepted),
                    };
                    if let Some(accepted) = refused {
                        // It has ended: what waited to be accepted is served here.
                        count(&worker.shared, other, -1);
                        start_accepted(&worker, accepted);
                    }
                }
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(target: "heddle::server", listener = %listener.settings.address, "cannot accept: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves the connections that other workers hand over, for ever.
pub async fn take_over(worker: Rc<Worker>, mut handed: UnboundedReceiver<Accepted>) {
    while let Some(accepted) = handed.recv().await {
        // The worker that handed it over has counted it already.
        count(&worker.shared, worker.number, -1);
        start_accepted(&worker, accepted);
    }
}

fn start_accepted(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted { listener, stream, client, permit } = accepted;
    match TcpStream::from_std(stream) {
        Ok(stream) => start(worker, listener, stream, client, permit),
        Err(error) => tracing::error!(target: "heddle::server", "a connection was lost on its way: {error}"),
    }
}

fn start(worker: &Rc<Worker>, listener: Arc<Listener>, stream: TcpStream, client: SocketAddr, permit: Permit) {
    let counted = Counted::new(worker.clone());
    let serve = connection::serve(worker.clone(), listener, stream, client);
    tokio::task::spawn_local(async move {
        serve.await;
        drop((counted, permit));
    });
}

/// The connections of each client, where a listener limits them. A client is who the socket says, and is counted before
/// anything is read; or who the PROXY protocol header says, where there is one.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

impl Clients {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one client: with IPv6 all of a network of 64 bits, the smallest that anybody is given (RFC 6177).
fn one_client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// One of a client's connections.
pub struct OfClient {
    listener: Arc<Listener>,
    client: IpAddr,
}

impl Drop for OfClient {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.listener.clients.lock().entry(self.client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// A connection that counts as its worker's.
struct Counted(Rc<Worker>);

impl Counted {
    fn new(worker: Rc<Worker>) -> Self {
        count(&worker.shared, worker.number, 1);
        Self(worker)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        count(&self.0.shared, self.0.number, -1);
    }
}

fn count(shared: &Shared, worker: usize, difference: isize) {
    if let Some(connections) = shared.connections.get(worker) {
        connections.fetch_add(difference.cast_unsigned(), Relaxed);
    }
}

/// The worker with the fewest connections, if it has clearly fewer than this one.
fn less_loaded(shared: &Shared, this: usize) -> Option<usize> {
    let own = shared.connections.get(this)?.load(Relaxed);
    let loads = shared.connections.iter().map(|connections| connections.load(Relaxed));
    let (other, least) = loads.enumerate().min_by_key(|(_, load)| *load)?;
    (least + UNEVEN <= own).then_some(other)
}

/// Whether only the connection that was to be accepted is lost.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_client() {
        let of = |address: &str| one_client(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
