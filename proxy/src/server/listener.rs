//! Listeners: what holds for the connections that arrive at an address, and how workers accept them.
//!
//! The kernel spreads new connections over the workers' sockets (see [`super::socket`]) by hash, whatever the workers
//! have to do: so a worker that accepts while another has clearly fewer connections hands the new one over.
//!
//! A [`Listener`] is what the configuration of one moment says. Another configuration puts another one in its place, for
//! the connections that are accepted from then on; what is counted goes on.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connection;
use super::worker::{Shared, Worker};
use crate::config::checked;
use crate::descriptors::{self, Descriptors};
use crate::drain::{self, Phase};
use crate::per_client::{OneOfClient, PerClient};
use crate::seldom::Seldom;
use crate::transport::tls::Terminator;
use crate::upstream::Reach;

/// How long accepting pauses when the process has no more descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A worker hands a connection over when another has at least this many fewer.
const UNEVEN: usize = 2;

/// A listener, as the connections to it see it.
pub struct Listener {
    /// The address is the one that was bound.
    pub settings: checked::Listener,
    /// Ends TLS: that of clients, and that inside tunnels.
    pub tls: Arc<Terminator>,
    /// Where connections to hosts that are no services may go; none for nowhere.
    pub reach: Option<Arc<Reach>>,
    counts: Arc<Counts>,
}

/// What is counted, whatever the settings are.
struct Counts {
    permits: Arc<Semaphore>,
    /// A client is who the socket says, and is counted before anything is read; or who the PROXY protocol header says,
    /// where there is one.
    clients: Arc<PerClient>,
    descriptors: Arc<Descriptors>,
    /// By [`Refused`].
    refused: [AtomicU64; Refused::ALL.len()],
}

impl Listener {
    /// A listener on this address, of which there was none before.
    pub fn new(
        settings: &checked::Listener,
        address: SocketAddr,
        tls: Arc<Terminator>,
        descriptors: Arc<Descriptors>,
    ) -> Self {
        let settings = checked::Listener { address, ..settings.clone() };
        let permits = Arc::new(Semaphore::new(permits(&settings)));
        let counts = Counts { permits, clients: Arc::default(), descriptors, refused: Default::default() };
        Self { reach: reach(&settings), counts: Arc::new(counts), settings, tls }
    }

    /// Whether these are its settings, apart from the address.
    pub fn is_as(&self, settings: &checked::Listener, tls: &Arc<Terminator>) -> bool {
        let settings = checked::Listener { address: self.settings.address, ..settings.clone() };
        settings == self.settings && Arc::ptr_eq(tls, &self.tls)
    }

    /// This listener with other settings. Connections that are open count with those to come; where there are more of
    /// them than the settings allow, further ones wait.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn changed(&self, settings: &checked::Listener, tls: Arc<Terminator>) -> Self {
        let settings = checked::Listener { address: self.settings.address, ..settings.clone() };
        let is_as_before = settings.passthrough == self.settings.passthrough
            && settings.proxy_protocol.is_empty() == self.settings.proxy_protocol.is_empty();
        let reach = if is_as_before { self.reach.clone() } else { reach(&settings) };
        let (before, now) = (permits(&self.settings), permits(&settings));
        if let Some(more) = now.checked_sub(before) {
            self.counts.permits.add_permits(more);
        } else {
            let fewer = before.saturating_sub(now);
            let taken = fewer.saturating_sub(self.counts.permits.forget_permits(fewer));
            let taken = u32::try_from(taken).unwrap_or(u32::MAX);
            let mut taken = Box::pin(self.counts.permits.clone().acquire_many_owned(taken));
            // Asked for now: before all that will wait for one.
            match taken.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(taken) => taken.into_iter().for_each(OwnedSemaphorePermit::forget),
                Poll::Pending => {
                    tokio::spawn(async move { taken.await.into_iter().for_each(OwnedSemaphorePermit::forget) });
                }
            }
        }
        Self { reach, counts: self.counts.clone(), settings, tls }
    }

    /// Counts a connection that is closed without having been served.
    pub fn refused(&self, reason: Refused) {
        if let Some(count) = self.counts.refused.get(reason as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Whether connections from this address begin with a header that says whom they are for.
    pub fn begins_with_header(&self, peer: IpAddr) -> bool {
        self.settings.proxy_protocol.iter().any(|network| network.contains(peer))
    }

    /// Counts a connection of a client for as long as what is returned is kept: nothing where there is no limit, and an
    /// error, counted as such, when one has been reached: the listener's, or that of the process' descriptors.
    pub fn enter(&self, client: IpAddr) -> Result<Entered, Refused> {
        let entered = self.try_enter(client);
        entered.inspect_err(|reason| self.refused(*reason))
    }

    fn try_enter(&self, client: IpAddr) -> Result<Entered, Refused> {
        let _of_process = self.counts.descriptors.enter(client).map_err(|_| Refused::Client)?;
        let limit = self.settings.max_connections_per_client;
        let of_listener = |limit| self.counts.clients.enter(client, limit as u64).ok_or(Refused::Client);
        Ok(Entered { _of_process, _of_listener: limit.map(of_listener).transpose()? })
    }

    /// Connections closed without having been served, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().zip(&self.counts.refused).map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

impl Counts {
    /// A place among the listener's connections, and then one among those of the process.
    async fn permit(&self) -> Option<(OwnedSemaphorePermit, descriptors::OfClient)> {
        let of_listener = self.permits.clone().acquire_owned().await.ok()?;
        Some((of_listener, self.descriptors.clone().client().await.ok()?))
    }
}

/// As many as can be counted, at most.
fn permits(settings: &checked::Listener) -> usize {
    settings.max_connections.min(u32::MAX as usize)
}

fn reach(settings: &checked::Listener) -> Option<Arc<Reach>> {
    // Who speaks for others may speak for those that are not on this machine.
    let is_local = settings.address.ip().to_canonical().is_loopback() && settings.proxy_protocol.is_empty();
    settings.passthrough.as_ref().map(|passthrough| Arc::new(Reach::new(passthrough, is_local)))
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

/// An accepted connection on its way to a worker.
pub struct Accepted {
    pub listener: Arc<Listener>,
    pub stream: std::net::TcpStream,
    pub client: SocketAddr,
    pub permit: Permit,
}

/// One of a listener's connections, and of the client's, until it is dropped.
pub struct Permit {
    /// None for one that is served beyond the limit.
    _of_listener: Option<(OwnedSemaphorePermit, descriptors::OfClient)>,
    _of_client: Option<Entered>,
}

/// One of a client's connections, until it is dropped.
pub struct Entered {
    _of_process: Option<OneOfClient>,
    _of_listener: Option<OneOfClient>,
}

/// Whether a listener is to accept, apart from the proxy's being told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It accepts.
    Open,
    /// It is not configured any more: what waits already is accepted, and no more, since closing a socket resets that.
    Finish,
    /// Another process accepts from the same sockets.
    Leave,
}

/// One of a listener's sockets, for a worker to accept from.
pub struct Part {
    pub address: SocketAddr,
    /// What holds now.
    pub listener: Arc<ArcSwap<Listener>>,
    pub socket: std::net::TcpListener,
    pub closing: watch::Receiver<Closing>,
    /// To each worker, by number.
    pub workers: Arc<[UnboundedSender<Accepted>]>,
}

/// A [`Part`] as the worker has it that accepts from it.
#[derive(Clone)]
pub struct Accepting {
    pub socket: Rc<TcpListener>,
    pub address: SocketAddr,
    listener: Arc<ArcSwap<Listener>>,
    closing: watch::Receiver<Closing>,
    workers: Arc<[UnboundedSender<Accepted>]>,
}

impl Accepting {
    /// On this worker's thread.
    ///
    /// # Errors
    ///
    /// When the socket cannot be used here.
    pub fn new(part: Part) -> io::Result<Self> {
        let Part { address, listener, socket, closing, workers } = part;
        Ok(Self { socket: Rc::new(TcpListener::from_std(socket)?), address, listener, closing, workers })
    }
}

/// Accepts connections until it is time to stop, and then those that wait already: closing a socket resets them. Those
/// of a socket that somebody else accepts from too are left to them. The one that waits for a permit meanwhile can be
/// left to nobody, and might wait until everything is cut off: it is served without one.
pub async fn accept(worker: Rc<Worker>, part: Accepting, mut watcher: drain::Watcher) {
    let Accepting { address, socket, listener, closing, workers } = part;
    let (mut closing, mut leaving, mut ending) = (closing.clone(), closing.clone(), closing);
    let mut finishing = watcher.clone();
    let ended = &mut pin!(async move {
        tokio::select! {
            () = finishing.reached(Phase::Finishing) => {}
            _ = ending.wait_for(|closing| *closing != Closing::Open) => {}
        }
    });
    let mut has_spare = true;
    let left = &mut pin!(async move {
        // An error means that nobody will say so any more.
        if leaving.wait_for(|closing| *closing == Closing::Leave).await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let stopped = &mut pin!(async move {
        tokio::select! {
            () = watcher.reached(Phase::Finishing) => {}
            _ = closing.wait_for(|closing| *closing != Closing::Open) => {}
        }
    });
    let mut failures = Seldom::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut *left => return,
            accepted = socket.accept() => accepted,
            () = &mut *stopped => return,
        };
        match accepted {
            Ok((stream, client)) => {
                // An IPv4 client of an IPv6 socket is the same client as on an IPv4 socket.
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                let listener = listener.load_full();
                // Who speaks for others is not their client: those count, once it has said who they are.
                let is_counted = !listener.begins_with_header(client.ip());
                let entered = if is_counted { listener.enter(client.ip()).map(Some) } else { Ok(None) };
                let Ok(of_client) = entered else { continue };
                // Only now: a worker that took a permit before there is a connection would keep it from the others.
                let of_listener = tokio::select! {
                    biased;
                    permit = listener.counts.permit() => permit,
                    () = &mut *ended, if has_spare => {
                        has_spare = false;
                        None
                    }
                };
                let permit = Permit { _of_listener: of_listener, _of_client: of_client };
                hand_on(&worker, &workers, listener, stream, client, permit);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(times) = failures.count(Instant::now()) {
                    tracing::error!(target: "heddle::server", listener = %address, times, "cannot accept: {error}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Starts to serve a connection, here or on a worker that has clearly fewer.
fn hand_on(
    worker: &Rc<Worker>,
    workers: &[UnboundedSender<Accepted>],
    listener: Arc<Listener>,
    stream: TcpStream,
    client: SocketAddr,
    permit: Permit,
) {
    let Some(other) = less_loaded(&worker.shared, worker.number) else {
        return start(worker, listener, stream, client, permit);
    };
    let Ok(stream) = stream.into_std() else { return };
    let accepted = Accepted { listener, stream, client, permit };
    count(&worker.shared, other, 1);
    let refused = match workers.get(other) {
        Some(worker) => worker.send(accepted).map_err(|refused| refused.0).err(),
        None => Some(accepted),
    };
    if let Some(accepted) = refused {
        // It has ended: what waited to be accepted is served here.
        count(&worker.shared, other, -1);
        start_accepted(worker, accepted);
    }
}

/// Serves the connections that other workers hand over, for ever.
pub async fn take_over(worker: Rc<Worker>, handed: &mut UnboundedReceiver<Accepted>) {
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
