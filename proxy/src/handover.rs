//! Handing every listening socket over to another process, so that an upgrade refuses and resets nothing.
//!
//! The new process asks on the old one's Unix socket for commands (`POST /take-over` with `Upgrade`), and is sent a
//! descriptor of every socket (`SCM_RIGHTS`, unix(7)). Both then have the same sockets, with one queue each, so that it
//! does not matter which of the two accepts a connection. When the new one is ready it says which addresses it listens
//! on. Only then the old one stops: it leaves those to the new one at once, empties the queues of all others, and
//! finishes what is under way. Should the new process end before it has said so, or take too long, nothing has happened.
//! As long as it may still say so the old one opens and closes no listeners: the new one would not have them.
//!
//! Each side deals only with its own user and with root: the old one by whom it takes commands from, the new one by who
//! has bound the Unix socket.
//!
//! What is said: the old process sends `commands` with the Unix socket, lines `KIND CONFIGURED ADDRESS COUNT` each with so
//! many descriptors, and an empty line; the new one `ready`, with the addresses it listens on and maybe `commands`, and a
//! newline; the old one `leaving` and a newline.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{socket_acceptconn, socket_peercred};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};

use crate::admin::{self, Socket};
use crate::server::socket::Bound;

/// Descriptors in one message; Linux takes 253 (unix(7)).
const BATCH: usize = 64;

/// How long the other process may take for what it has to do at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the old process waits for the new one to be ready: the new one compiles plugins, and waits a minute for its
/// registry.
const SUCCESSOR: Duration = Duration::from_secs(120);

/// By so much earlier the new one gives up by itself, so that never both believe that the other one has.
const MARGIN: Duration = Duration::from_secs(10);

/// The longest line of a new process in bytes: more than a thousand addresses.
const LINE: u64 = 1 << 16;

/// The name of what is spoken after the request for it.
pub const PROTOCOL: &str = "heddle-sockets";

/// The path at which the old process is asked.
pub const TARGET: &str = "/take-over";

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Listener,
    Admin,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Listener, Self::Admin];

    fn name(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Admin => "admin",
        }
    }
}

/// The sockets of one address.
#[derive(Debug)]
pub struct Passed {
    pub kind: Kind,
    /// As it is configured, maybe with port 0.
    pub wanted: SocketAddr,
    pub address: SocketAddr,
    pub sockets: Vec<OwnedFd>,
}

/// A descriptor of every socket.
#[derive(Debug)]
pub struct Sockets {
    pub passed: Vec<Passed>,
    /// The Unix socket for commands.
    pub commands: OwnedFd,
}

/// What another process serves, once it is ready.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    pub addresses: Vec<SocketAddr>,
    /// Whether it takes commands on the Unix socket of before.
    pub commands: bool,
}

/// What another process asks of this one.
#[derive(Debug)]
pub enum Ask {
    Sockets(oneshot::Sender<io::Result<Sockets>>),
    /// To leave this to it, and to stop.
    Leave(Ready, oneshot::Sender<()>),
}

/// By which other processes are served.
#[derive(Debug, Clone)]
pub struct Handover {
    asks: UnboundedSender<Ask>,
    /// Held while there is one that takes over.
    taking: Arc<Semaphore>,
}

impl Handover {
    /// And what they ask for.
    pub fn new() -> (Self, UnboundedReceiver<Ask>) {
        let (asks, asked) = unbounded_channel();
        (Self { asks, taking: Arc::new(Semaphore::new(1)) }, asked)
    }

    /// Serves another process that has asked for the sockets, to the end: it has taken over when this returns.
    ///
    /// # Errors
    ///
    /// When it has not: it went away, broke the protocol, or was not ready within 120 s. Nothing has changed then.
    pub async fn give(&self, stream: tokio::net::UnixStream) -> io::Result<()> {
        self.give_within(stream, SUCCESSOR).await
    }

    async fn give_within(&self, mut stream: tokio::net::UnixStream, patience: Duration) -> io::Result<()> {
        let only = self.taking.try_acquire();
        let _only = only.map_err(|_| io::Error::other("there is another one that takes over"))?;
        let (answer, sockets) = oneshot::channel();
        let sockets = self.ask(Ask::Sockets(answer), sockets).await??;
        let ready = tokio::time::timeout(patience, offer(&mut stream, sockets)).await;
        let ready = ready.map_err(|_| {
            io::Error::new(ErrorKind::TimedOut, format!("it was not ready within {} s", patience.as_secs()))
        })??;
        let (answer, done) = oneshot::channel();
        self.ask(Ask::Leave(ready, answer), done).await?;
        // It has taken over, whether it hears this or not.
        let _ = stream.write_all(LEAVING).await;
        Ok(())
    }

    /// Whether another process is taking over, and may yet say that it has.
    pub fn is_under_way(&self) -> bool {
        self.taking.available_permits() == 0
    }

    /// Waits until none is.
    pub async fn over(&self) {
        drop(self.taking.acquire().await);
    }

    async fn ask<T>(&self, ask: Ask, answer: oneshot::Receiver<T>) -> io::Result<T> {
        let stopping = || io::Error::other("the proxy is stopping");
        self.asks.send(ask).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

const LEAVING: &[u8] = b"leaving\n";

/// The line, and the word, of the Unix socket.
const COMMANDS: &str = "commands";

impl Ready {
    fn line(&self) -> String {
        let addresses: String = self.addresses.iter().map(|address| format!(" {address}")).collect();
        let commands = if self.commands { format!(" {COMMANDS}") } else { String::new() };
        format!("ready{addresses}{commands}\n")
    }
}

fn parse_ready(line: &str) -> Option<Ready> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    words.next().filter(|word| *word == "ready")?;
    let mut ready = Ready { addresses: Vec::new(), commands: false };
    for word in words {
        match word.parse() {
            Ok(address) => ready.addresses.push(address),
            Err(_) if word == COMMANDS => ready.commands = true,
            Err(_) => return None,
        }
    }
    Some(ready)
}

/// Sends all sockets, and waits until the other process is ready.
async fn offer(stream: &mut tokio::net::UnixStream, sockets: Sockets) -> io::Result<Ready> {
    let Sockets { passed, commands } = sockets;
    send(stream, format!("{COMMANDS}\n").as_bytes(), &[commands]).await?;
    for passed in passed {
        for sockets in passed.sockets.chunks(BATCH) {
            let Passed { kind, wanted, address, .. } = &passed;
            let line = format!("{} {wanted} {address} {}\n", kind.name(), sockets.len());
            send(stream, line.as_bytes(), sockets).await?;
        }
    }
    stream.write_all(b"\n").await?;
    let mut said = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut said).await?;
    parse_ready(&said).ok_or_else(|| match said.is_empty() {
        true => io::Error::new(ErrorKind::UnexpectedEof, "it ended before it was ready"),
        false => io::Error::new(ErrorKind::InvalidData, format!("it said {:?}", said.get(..80).unwrap_or(&said))),
    })
}

async fn send(stream: &tokio::net::UnixStream, bytes: &[u8], sockets: &[OwnedFd]) -> io::Result<()> {
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("too many descriptors in one message"));
        }
        Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
    });
    // The first byte carries the descriptors; a line is shorter than any buffer.
    if sent.await? == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// What another process has handed over, for a configuration to take from.
#[derive(Debug, Default)]
pub struct Inherited {
    listeners: Vec<Bound>,
    admin: Option<Bound>,
    /// With the identity of its file.
    commands: Option<((u64, u64), OwnedFd)>,
}

impl Inherited {
    /// The sockets of a listener, by its address or by how it was configured.
    pub fn take(&mut self, wanted: SocketAddr) -> Option<Bound> {
        let place = self.listeners.iter().position(|bound| bound.address == wanted || bound.wanted == wanted)?;
        Some(Bound { wanted, ..self.listeners.remove(place) })
    }

    /// The admin server's socket, likewise.
    pub fn take_admin(&mut self, wanted: SocketAddr) -> Option<TcpListener> {
        let admin = self.admin.take_if(|bound| bound.address == wanted || bound.wanted == wanted)?;
        admin.sockets.into_iter().next()
    }

    /// The Unix socket for commands, if its file is there.
    pub fn take_commands(&mut self, path: &Path) -> Option<Socket> {
        let (identity, socket) = self.commands.take_if(|(identity, _)| Socket::identity(path) == Some(*identity))?;
        Socket::inherit(path, identity, socket)
    }

    fn parse(lines: &str, sockets: Vec<OwnedFd>, file: Option<(u64, u64)>) -> io::Result<Self> {
        let broken = |line: &str| io::Error::new(ErrorKind::InvalidData, format!("it said {line:?}"));
        let mut inherited = Self::default();
        let mut sockets = sockets.into_iter();
        for line in lines.lines().filter(|line| !line.is_empty()) {
            if line == COMMANDS {
                let socket = sockets.next().filter(listens).ok_or_else(|| broken(line))?;
                inherited.commands = file.map(|file| (file, socket));
                continue;
            }
            let Some((kind, wanted, address, count)) = parse_line(line) else { return Err(broken(line)) };
            let of_line: Vec<TcpListener> = sockets.by_ref().take(count).map(TcpListener::from).collect();
            let is_at = |socket: &TcpListener| socket.local_addr().is_ok_and(|local| local == address);
            let is_there = |socket: &TcpListener| listens(socket) && is_at(socket);
            if of_line.len() != count || !of_line.iter().all(is_there) {
                return Err(broken(line));
            }
            let known = match kind {
                Kind::Listener => inherited.listeners.iter_mut().find(|bound| bound.address == address),
                Kind::Admin => inherited.admin.as_mut(),
            };
            match (known, kind) {
                (Some(known), _) => known.sockets.extend(of_line),
                (None, Kind::Listener) => inherited.listeners.push(Bound { wanted, address, sockets: of_line }),
                (None, Kind::Admin) => inherited.admin = Some(Bound { wanted, address, sockets: of_line }),
            }
        }
        Ok(inherited)
    }
}

/// Whether a descriptor is one that connections are accepted from.
fn listens(socket: &impl AsFd) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
}

fn parse_line(line: &str) -> Option<(Kind, SocketAddr, SocketAddr, usize)> {
    let mut words = line.split(' ');
    let kind = words.next().and_then(|name| Kind::ALL.into_iter().find(|kind| kind.name() == name))?;
    let (wanted, address) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let count = words.next()?.parse().ok()?;
    words.next().is_none().then_some((kind, wanted, address, count))
}

/// A process whose sockets have been handed over, and which goes on until it is told that this one is ready.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    /// When it was asked.
    since: Instant,
}

impl Predecessor {
    /// Asks the process that takes commands on this Unix socket for its sockets; none where no process does.
    ///
    /// # Errors
    ///
    /// When it does not hand them over. It goes on then.
    pub fn ask(path: &Path) -> io::Result<Option<(Self, Inherited)>> {
        let (file, since) = (Socket::identity(path), Instant::now());
        let mut stream = match UnixStream::connect(path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            stream => stream?,
        };
        if !admin::is_trusted(socket_peercred(&stream)?.uid.as_raw()) {
            let who = "who answers there is neither this user nor root";
            return Err(io::Error::new(ErrorKind::PermissionDenied, who));
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = format!(
            "POST {TARGET} HTTP/1.1\r\nHost: heddle\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let head = read_head(&mut stream)?;
        if !head.starts_with("HTTP/1.1 101 ") {
            let status = head.lines().next().unwrap_or_default();
            return Err(io::Error::other(format!("it answers {status:?}")));
        }
        let (lines, sockets) = receive(&stream)?;
        let inherited = Inherited::parse(&lines, sockets, file)?;
        Ok(Some((Self { stream, since }, inherited)))
    }

    /// How long it can still be relieved: after that it may have given this process up, and goes on.
    pub fn time_left(&self) -> Duration {
        SUCCESSOR.saturating_sub(MARGIN).saturating_sub(self.since.elapsed())
    }

    /// Has it leave what this process serves, and stop.
    ///
    /// # Errors
    ///
    /// When it does not say that it does.
    pub fn relieve(mut self, ready: &Ready) -> io::Result<()> {
        self.stream.write_all(ready.line().as_bytes())?;
        let mut answer = [0; LEAVING.len()];
        self.stream.read_exact(&mut answer)?;
        if answer == LEAVING { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
    }
}

/// The head of an HTTP response, and not a byte more: the next one may carry descriptors, which reading would lose.
fn read_head(stream: &mut UnixStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
        if head.len() > 8 * 1024 {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// All lines up to the empty one, and the descriptors that came with them.
fn receive(stream: &UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    let (mut lines, mut sockets) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    while lines != b"\n" && !lines.ends_with(b"\n\n") {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it broke off"));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("this process may not have so many descriptors"));
        }
        lines.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
    }
    let lines = String::from_utf8(lines).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
    Ok((lines, sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ready_says_what_it_serves() {
        let addresses = vec!["127.0.0.1:80".parse().unwrap(), "[::1]:443".parse().unwrap()];
        for ready in [Ready { addresses, commands: true }, Ready { addresses: Vec::new(), commands: false }] {
            assert_eq!(parse_ready(&ready.line()), Some(ready));
        }
        for line in ["", "ready", "readyy\n", "ready 80\n", "ready  \n", "leaving\n"] {
            assert_eq!(parse_ready(line), None, "{line:?}");
        }
    }

    #[test]
    fn sockets_are_known_by_how_they_were_configured_and_where_they_are() {
        let bound = crate::server::socket::bind(([127, 0, 0, 1], 0).into(), 3).unwrap();
        let (wanted, address) = (bound.wanted, bound.address);
        let lines = format!("listener {wanted} {address} 2\nlistener {wanted} {address} 1\n\n");
        let sockets =
            || bound.sockets.iter().map(|socket| socket.try_clone().unwrap().into()).collect::<Vec<OwnedFd>>();
        for known_as in [wanted, address] {
            let mut inherited = Inherited::parse(&lines, sockets(), None).unwrap();
            assert!(inherited.take(([127, 0, 0, 1], 1).into()).is_none());
            assert_eq!(inherited.take(known_as).unwrap().sockets.len(), 3);
            assert!(inherited.take(known_as).is_none(), "only once");
        }
        let other = format!("listener {wanted} 127.0.0.1:1 1\n");
        // One that is bound there, and does not listen.
        let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let at = deaf.local_addr().unwrap().as_socket().unwrap();
        assert!(
            Inherited::parse(&format!("listener {at} {at} 1\n"), vec![deaf.try_clone().unwrap().into()], None).is_err()
        );
        assert!(Inherited::parse("commands\n", vec![deaf.into()], None).is_err());
        for (lines, count) in [(&lines, 2), (&other, 1), (&"listener\n".to_owned(), 0), (&"commands\n".to_owned(), 0)] {
            let sockets = sockets().into_iter().take(count).collect();
            assert!(Inherited::parse(lines, sockets, None).is_err(), "{lines:?}");
        }
    }

    /// What a process is answered that says this after it was sent the sockets, and no more.
    async fn answered_to(handover: &Handover, asks: &mut UnboundedReceiver<Ask>, says: &[u8]) -> io::Error {
        let (old, mut new) = tokio::net::UnixStream::pair().unwrap();
        let (given, ()) = tokio::join!(handover.give_within(old, Duration::from_millis(50)), async {
            let Some(Ask::Sockets(answer)) = asks.recv().await else { panic!("expected to be asked for sockets") };
            assert!(handover.is_under_way());
            let (commands, _) = UnixStream::pair().unwrap();
            answer.send(Ok(Sockets { passed: Vec::new(), commands: commands.into() })).unwrap();
            let _it_may_not_be_heard_to_the_end = new.write_all(says).await;
        });
        assert!(!handover.is_under_way() && asks.try_recv().is_err(), "nobody is told to leave");
        given.unwrap_err()
    }

    #[tokio::test]
    async fn a_process_that_is_not_ready_in_time_or_says_too_much_stands_in_nobodys_way() {
        let (handover, mut asks) = Handover::new();
        assert_eq!(answered_to(&handover, &mut asks, b"").await.kind(), ErrorKind::TimedOut);
        assert_eq!(answered_to(&handover, &mut asks, b"ready 127.0.0.1:80").await.kind(), ErrorKind::TimedOut);
        assert_eq!(answered_to(&handover, &mut asks, &[b'r'; 100_000]).await.kind(), ErrorKind::InvalidData);
        handover.over().await;
    }
}
