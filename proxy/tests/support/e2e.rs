//! The whole chain for tests against a real etcd: endpoints that answer with their names, clients that send requests
//! all the time, and a proxy in this process or in one of its own.
//!
//! Everything blocks and waits for conditions with a deadline. Needs `support/etcd.rs` and `support/process.rs` beside it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::disallowed_methods, reason = "threads of a test may block")]

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcd_client::{Txn, TxnOp};
use heddle::app::App;
use heddle::config;
use heddle::registry::Report;
use rustix::process::Signal;
use tempfile::TempDir;

use super::etcd::{DEADLINE, Etcd, wait_until};
use super::process::{Heddle, ask, command};

/// Longer than a response takes, shorter than the [`DEADLINE`].
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that answers every request with 200 and its name.
pub struct Endpoint {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// What it answers; `None`: the address at which it was reached.
    name: Option<String>,
    served: AtomicUsize,
    ended: AtomicBool,
}

impl Endpoint {
    pub fn start(name: &str) -> Self {
        Self::listen(Ipv4Addr::LOCALHOST, Some(name.to_owned()))
    }

    /// Serves at all addresses of the loopback network 127.0.0.0/8, and answers with the one at which it was reached.
    pub fn everywhere() -> Self {
        Self::listen(Ipv4Addr::UNSPECIFIED, None)
    }

    fn listen(ip: Ipv4Addr, name: Option<String>) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared { name, served: AtomicUsize::new(0), ended: AtomicBool::new(false) });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(SeqCst) {
                    return;
                }
                let local = |stream: &TcpStream| stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
                let Some(stream) = stream.ok().filter(local) else { continue };
                let shared = accepting.clone();
                // A proxy that goes away ends the connection.
                std::thread::spawn(move || shared.serve(stream).ok());
            }
        });
        Self { address, shared }
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        self.shared.name.as_deref().expect("an endpoint with a name")
    }

    /// Its registration in the layout `heddle`.
    pub fn heddle(&self) -> String {
        format!(r#"{{"address":"{}"}}"#, self.address)
    }

    /// Its registration in the layout `go-kit`.
    pub fn go_kit(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Requests that reached it.
    pub fn served(&self) -> usize {
        self.shared.served.load(SeqCst)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.address.port()));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => stream.local_addr()?.to_string(),
        };
        let mut stream = BufReader::new(stream);
        while let Some(head) = read_head(&mut stream)? {
            assert!(head[0].starts_with("GET "), "the only request of these tests");
            self.served.fetch_add(1, SeqCst);
            // In one piece: small ones would wait for each other's acknowledgement (RFC 896).
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            stream.get_mut().write_all(answer.as_bytes())?;
        }
        Ok(())
    }
}

/// 10,000 endpoints of the service `many`, and the services `s0` to `s999` of one endpoint each: every one at an address
/// of its own, behind all of which is one server that answers with the address.
pub struct Fleet {
    server: Endpoint,
}

impl Fleet {
    /// Registers everyone in the layout `heddle`.
    pub fn register(etcd: &Etcd) -> Self {
        let fleet = Self { server: Endpoint::everywhere() };
        let many = (0..10_000).map(|i| (format!("/services/many/{i}"), fleet.of_many(i)));
        let single = (0..1_000).map(|i| (format!("/services/s{i}/1"), fleet.of_service(i)));
        put_all(etcd, many.chain(single).map(|(key, address)| (key, format!(r#"{{"address":"{address}"}}"#))));
        fleet
    }

    /// The address of the service `s0`, `s1` and so on.
    pub fn of_service(&self, service: u16) -> SocketAddr {
        self.address(2, service)
    }

    fn of_many(&self, endpoint: u16) -> SocketAddr {
        self.address(1, endpoint)
    }

    fn address(&self, kind: u8, i: u16) -> SocketAddr {
        let [high, low] = i.to_be_bytes();
        (Ipv4Addr::new(127, kind, high, low), self.server.address.port()).into()
    }
}

/// Puts many keys, by few large transactions.
pub fn put_all(etcd: &Etcd, entries: impl Iterator<Item = (String, String)>) {
    let puts: Vec<_> = entries.map(|(key, value)| TxnOp::put(key, value, None)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = etcd_client::Client::connect([etcd.url()], None).await.expect("a client");
        for chunk in puts.chunks(2_000) {
            client.txn(Txn::new().and_then(chunk)).await.expect("a transaction");
        }
    });
}

/// The lines of a message's head; `None`: the connection ended before it.
fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line)? {
            0 if lines.is_empty() => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if line == "\r\n" => return Ok(Some(lines)),
            _ => lines.push(line.trim_end().to_owned()),
        }
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// One connection to a proxy.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(proxy: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(proxy)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends `GET /` for the host in origin form, so that an unknown one is refused and not passed through.
    pub fn get(&mut self, host: &str) -> io::Result<Answer> {
        self.stream.get_mut().write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
        let head = read_head(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bad = |what: &str| io::Error::other(format!("{what} in {head:?}"));
        let status =
            head[0].split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| bad("no status"))?;
        let length = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let mut body = vec![0; length.ok_or_else(|| bad("no length"))?];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// One request on a connection of its own.
#[track_caller]
pub fn get(proxy: SocketAddr, host: &str) -> Answer {
    Client::connect(proxy).and_then(|mut client| client.get(host)).expect("a response")
}

/// How many clients [`Traffic`] has, each with its own connection.
const CLIENTS: usize = 2;

/// So many answers in a row of each client say which endpoints are in use.
const ENOUGH: usize = 20;

/// Requests for one service, one after the other on each of two connections, until the end of the test.
pub struct Traffic {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    stop: Vec<Sender<()>>,
    clients: Vec<JoinHandle<()>>,
}

/// What came back.
#[derive(Debug, Default)]
struct Seen {
    /// Each client's answers.
    names: [Vec<String>; CLIENTS],
    failures: Vec<String>,
}

impl Traffic {
    pub fn start(proxy: SocketAddr, service: &str) -> Self {
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let (stop, clients) = (0..CLIENTS)
            .map(|client| {
                let (stop, stopped) = channel();
                let (seen, service) = (seen.clone(), service.to_owned());
                (stop, std::thread::spawn(move || send(client, proxy, &service, &seen, &stopped)))
            })
            .unzip();
        Self { seen, stop, clients }
    }

    /// Until requests go to all of these endpoints and to no others.
    #[track_caller]
    pub fn wait_for(&self, endpoints: &[&Endpoint]) {
        let expected: BTreeSet<&str> = endpoints.iter().map(|endpoint| endpoint.name()).collect();
        let before = self.counts();
        self.wait(&format!("requests go to {expected:?}"), |seen| {
            let enough = |(names, before): (&Vec<String>, usize)| names.len() >= before + ENOUGH;
            let last = seen.names.iter().flat_map(|names| names.iter().rev().take(ENOUGH));
            seen.names.iter().zip(before).all(enough) && last.map(String::as_str).collect::<BTreeSet<_>>() == expected
        });
    }

    /// Until each client has had this many more answers.
    #[track_caller]
    pub fn wait_answers(&self, more: usize) {
        let before = self.counts();
        self.wait(&format!("there are {more} more answers"), |seen| {
            seen.names.iter().zip(before).all(|(names, before)| names.len() >= before + more)
        });
    }

    /// Waits until no more requests reach the endpoint, which has left, and asserts that none of a good many does
    /// later.
    #[track_caller]
    pub fn assert_leaves(&self, endpoint: &Endpoint) {
        let mut served = endpoint.served();
        wait_until("no requests reach the endpoint", || {
            self.wait_answers(ENOUGH);
            std::mem::replace(&mut served, endpoint.served()) == served
        });
        self.wait_answers(200);
        assert_eq!(endpoint.served(), served, "requests reach an endpoint that has left");
    }

    /// Ends it; not one request may have failed.
    #[track_caller]
    pub fn finish(mut self) {
        self.end();
        let seen = lock(&self.seen.0);
        let total = seen.failures.len() + seen.names.iter().map(Vec::len).sum::<usize>();
        assert!(seen.failures.is_empty(), "{} of {total} failed: {:?}", seen.failures.len(), seen.failures);
    }

    fn counts(&self) -> [usize; CLIENTS] {
        lock(&self.seen.0).names.each_ref().map(Vec::len)
    }

    #[track_caller]
    fn wait(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = lock(&self.seen.0);
        while !condition(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = |names: &Vec<String>| names.iter().rev().take(ENOUGH).cloned().collect::<Vec<_>>();
                let last = seen.names.each_ref().map(last);
                panic!("waited in vain until {what}: last answers {last:?}, failures {:?}", seen.failures);
            }
            seen = self.seen.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&mut self) {
        self.stop.clear();
        for client in self.clients.drain(..) {
            client.join().expect("a client does not panic");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn send(client: usize, proxy: SocketAddr, service: &str, seen: &(Mutex<Seen>, Condvar), stopped: &Receiver<()>) {
    let mut connection = None;
    loop {
        let answer = connection.take().map_or_else(|| Client::connect(proxy), Ok).and_then(|mut open: Client| {
            let answer = open.get(service)?;
            connection = Some(open);
            Ok(answer)
        });
        {
            let mut seen = lock(&seen.0);
            match answer {
                Ok(Answer { status: 200, body }) => seen.names[client].push(body),
                Ok(answer) => seen.failures.push(format!("{answer:?}")),
                Err(error) => seen.failures.push(error.to_string()),
            }
        }
        seen.1.notify_all();
        // Leaves the processors to others too.
        if stopped.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The configuration of a proxy with two workers that follows these members of a cluster: the layout `heddle` under
/// `/services/`, `go-kit` under `/kit/`. `root` are further keys at the top.
pub fn config(members: &[&str], root: &str) -> String {
    format!(
        r#"workers = 2
{root}
[admin]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[registry.etcd]
endpoints = {members:?}
[[registry.etcd.watch]]
prefix = "/services/"
layout = "heddle"
[[registry.etcd.watch]]
prefix = "/kit/"
layout = "go-kit"
"#
    )
}

/// A proxy in this process.
pub struct Proxy(Option<App>);

impl Proxy {
    /// Starts one by a [`config`], and returns at once.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    /// With variables of the environment, which are not this process's.
    pub fn start_with(config: &str, variables: &[(&str, &str)]) -> Self {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let checked = config::parse(config, Path::new("test"), &variables).expect("a configuration that holds");
        Self(Some(App::start(checked.config).expect("a start")))
    }

    fn app(&self) -> &App {
        self.0.as_ref().expect("it runs until it is dropped")
    }

    pub fn address(&self) -> SocketAddr {
        self.app().listeners[0]
    }

    pub fn admin(&self) -> SocketAddr {
        self.app().admin.expect("the admin server is configured")
    }

    pub fn report(&self) -> Report {
        self.app().state.registry.report()
    }

    /// Until the registry's status is as `condition` wants it.
    #[track_caller]
    pub fn wait_status(&self, what: &str, condition: impl Fn(&Report) -> bool) {
        wait_until(what, || condition(&self.report()));
    }

    /// Until requests may be sent and etcd's changes are followed.
    #[track_caller]
    pub fn wait_connected(&self) {
        wait_ready(self.admin());
        self.wait_status("etcd is followed", |report| report.sources[0].connected);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.take().map(App::stop);
    }
}

/// What `/ready` says.
#[track_caller]
pub fn is_ready(admin: SocketAddr) -> bool {
    let answer = ask(admin, "GET", "/ready", "localhost").expect("an admin server");
    match answer.status {
        200 => true,
        503 => false,
        _ => panic!("/ready says {answer:?}"),
    }
}

#[track_caller]
pub fn wait_ready(admin: SocketAddr) {
    wait_until("the proxy is ready", || is_ready(admin));
}

/// A proxy in a process of its own: the binary. Dropped, it is killed.
pub struct Process {
    heddle: Heddle,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    _folder: TempDir,
}

impl Process {
    /// Runs the binary by a [`config`], and waits until its sockets are open.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("heddle.toml");
        std::fs::write(&file, config).expect("write");
        let heddle = Heddle::start(command(&["run", "--config", file.to_str().expect("UTF-8")]));
        let (address, admin) = (heddle.address("listening on "), heddle.address("health and metrics on "));
        Self { heddle, address, admin, _folder: folder }
    }

    /// Asks it to stop (SIGTERM), which it is to do in order.
    #[track_caller]
    pub fn terminate(self) {
        self.heddle.signal(Signal::TERM);
        let (code, said) = self.heddle.wait();
        assert_eq!(code, Some(0), "{said:#?}");
    }
}

/// A client of etcd that is no part of the proxy, and watches all keys from when it is made.
pub struct Watcher {
    deleted: Receiver<String>,
    // Dropped before the thread is waited for.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub fn start(member: String) -> Self {
        let (tell, deleted) = channel();
        let (created, is_created) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = watch(member, &created, &tell) => {}
                    _ = stopped => {}
                }
            });
        });
        is_created.recv_timeout(DEADLINE).expect("a watch");
        Self { deleted, stop: Some(stop), thread: Some(thread) }
    }

    /// Until it has seen that the key was deleted.
    #[track_caller]
    pub fn wait_deleted(&self, key: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.deleted.recv_timeout(left).expect("the key is deleted in time") == key {
                return;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the watcher panicked");
    }
}

async fn watch(member: String, created: &Sender<()>, deleted: &Sender<String>) {
    let mut client = etcd_client::Client::connect([member], None).await.expect("a client");
    let options = etcd_client::WatchOptions::new().with_all_keys();
    let mut stream = client.watch("", Some(options)).await.expect("a watch");
    while let Some(response) = stream.message().await.expect("a response") {
        if response.created() {
            let _ = created.send(());
        }
        for kv in response.events().iter().filter(|event| event.event_type() == etcd_client::EventType::Delete) {
            let key = kv.kv().expect("a key").key_str().expect("UTF-8").to_owned();
            let _ = deleted.send(key);
        }
    }
}
