//! A real etcd for tests: started, stopped, cut off, restored.
//!
//! The binaries are `etcd` and `etcdctl` from the PATH, or those of the folder that HEDDLE_ETCD names. Everything
//! blocks, waits for conditions with a deadline, and is stopped by its own process id when it is dropped.

#![allow(clippy::disallowed_methods, reason = "a test may block its own thread")]
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than anything takes on a machine that is busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks until `condition` holds; panics after the [`DEADLINE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn binary(name: &str) -> PathBuf {
    std::env::var_os("HEDDLE_ETCD").map_or(PathBuf::from(name), |folder| Path::new(&folder).join(name))
}

/// Ports that were free a moment ago, each another.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("its address").port())
}

/// Certificates for an etcd that speaks TLS and asks for the client's certificate.
pub struct Tls {
    folder: TempDir,
}

impl Tls {
    /// An authority, and a certificate for the name `etcd.test` that serves both sides.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let authority_key = rcgen::KeyPair::generate().expect("a key");
        let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = authority.self_signed(&authority_key).expect("an authority");
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut leaf = rcgen::CertificateParams::new(vec!["etcd.test".to_owned()]).expect("parameters");
        leaf.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        for (name, content) in [("ca.pem", ca.pem()), ("cert.pem", leaf.pem()), ("key.pem", key.serialize_pem())] {
            std::fs::write(folder.path().join(name), content).expect("write");
        }
        Self { folder }
    }

    /// `ca.pem`, `cert.pem` or `key.pem`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// How a member is to be started.
#[derive(Default)]
pub struct Options {
    /// Further arguments.
    pub args: Vec<String>,
    pub tls: Option<Arc<Tls>>,
    /// Of a cluster: this member's name, the peer address at which others reach it, and all members as
    /// `--initial-cluster` wants them.
    pub cluster: Option<(String, u16, String)>,
    /// The port to listen on for peers; any free one by default.
    pub peer_port: Option<u16>,
}

/// One member, by default the only one of its cluster.
pub struct Etcd {
    child: Option<Child>,
    folder: TempDir,
    data: PathBuf,
    options: Options,
    client_port: u16,
    peer_port: u16,
    health_port: u16,
    /// Arguments of every `etcdctl`, as for a login.
    pub ctl_args: Vec<String>,
}

impl Etcd {
    /// Starts a cluster of one, and waits until it serves.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let mut etcd = Self::spawn_with(options);
        etcd.wait_healthy();
        etcd
    }

    /// Starts a member without waiting, as for one of several that need each other.
    pub fn spawn_with(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let ctl_args = match &options.tls {
            Some(tls) => [("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")]
                .map(|(name, file)| format!("--{name}={}", tls.path(file).display()))
                .into_iter()
                .chain(["--insecure-skip-tls-verify".to_owned()])
                .collect(),
            None => Vec::new(),
        };
        let peer = options.peer_port;
        let mut etcd =
            Self { child: None, folder, data, options, client_port: 0, peer_port: 0, health_port: 0, ctl_args };
        // A port may be taken between being found free and etcd's own bind.
        for _ in 0..5 {
            let [client, free_peer, health] = free_ports();
            (etcd.client_port, etcd.peer_port, etcd.health_port) = (client, peer.unwrap_or(free_peer), health);
            etcd.spawn();
            if etcd.listens() {
                return etcd;
            }
        }
        panic!("etcd does not start:\n{}", etcd.log());
    }

    fn spawn(&mut self) {
        let scheme = self.scheme();
        let listen = format!("http://127.0.0.1:{}", self.peer_port);
        let (name, advertise, cluster) = match &self.options.cluster {
            Some((name, port, cluster)) => (name.clone(), format!("http://127.0.0.1:{port}"), cluster.clone()),
            None => ("one".to_owned(), listen.clone(), format!("one={listen}")),
        };
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log file");
        let mut command = Command::new(binary("etcd"));
        command.args(["--name", &name, "--initial-cluster", &cluster, "--initial-advertise-peer-urls", &advertise]);
        command.args(["--listen-peer-urls", &listen, "--listen-client-urls", &self.url()]);
        command.args(["--advertise-client-urls", &format!("{scheme}://127.0.0.1:{}", self.client_port)]);
        command.args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", self.health_port)]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500", "--max-txn-ops", "2000"]);
        command.args(["--logger", "zap", "--log-outputs", "stderr"]).arg("--data-dir").arg(&self.data);
        if let Some(tls) = &self.options.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.path("ca.pem"));
            command.arg("--cert-file").arg(tls.path("cert.pem")).arg("--key-file").arg(tls.path("key.pem"));
        }
        command.args(&self.options.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("etcd, from the PATH or the folder HEDDLE_ETCD"));
    }

    /// Whether it got as far as listening, as against having ended.
    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let child = self.child.as_mut().expect("a process");
            if child.try_wait().expect("its state").is_some() {
                self.child = None;
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.health_port)).is_ok() {
                return true;
            }
            assert!(Instant::now() < deadline, "etcd does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Until it answers linearizable reads.
    #[track_caller]
    pub fn wait_healthy(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.healthy() {
            assert!(Instant::now() < deadline, "etcd is not healthy:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.health_port)) else { return false };
        let mut answer = String::new();
        let sent = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        sent.is_ok() && answer.contains(r#""health":"true""#)
    }

    /// What it wrote since it was last started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn scheme(&self) -> &'static str {
        if self.options.tls.is_some() { "https" } else { "http" }
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client_port)
    }

    pub fn port(&self) -> u16 {
        self.client_port
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a process of ours");
            child.wait().expect("its end");
        }
    }

    /// Starts it again on the same ports, with its data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.respawn();
        self.wait_healthy();
    }

    fn respawn(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.spawn();
            if self.listens() {
                return;
            }
            assert!(Instant::now() < deadline, "etcd does not start again:\n{}", self.log());
        }
    }

    /// Writes a backup.
    pub fn save(&self, name: &str) {
        self.ctl(&["snapshot", "save", &self.backup(name)]);
    }

    /// Ends it, and starts it from a backup as a new cluster on the same ports.
    #[track_caller]
    pub fn restore(&mut self, name: &str) {
        self.kill();
        self.data = self.folder.path().join(format!("restored-{name}"));
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let data = self.data.to_str().expect("UTF-8").to_owned();
        let cluster = format!("one={peer}");
        let token = format!("--initial-cluster-token=restored-{name}");
        let args = ["--name", "one", "--initial-advertise-peer-urls", &peer, "--initial-cluster", &cluster];
        let command = ["snapshot", "restore", &self.backup(name), "--data-dir", &data, &token];
        self.ctl(&[&command[..], &args[..]].concat());
        self.restart();
    }

    fn backup(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Runs `etcdctl`; answers what it printed. Panics when it fails.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|error| panic!("etcdctl {args:?}: {error}"))
    }

    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.ctl_command(args).output().expect("etcdctl, from the PATH or the folder HEDDLE_ETCD");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// `etcdctl` with these arguments, to be run as the test wants it.
    pub fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(&self.ctl_args).args(args);
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", key, value]);
    }

    #[track_caller]
    pub fn delete(&self, key: &str) {
        assert_eq!(self.ctl(&["del", key]), "1", "{key} was there");
    }

    /// A new lease; answers its id in the form that `--lease` takes.
    #[track_caller]
    pub fn grant(&self, seconds: u32) -> String {
        let said = self.ctl(&["lease", "grant", &seconds.to_string()]);
        said.split_whitespace().nth(1).expect("lease ID granted").to_owned()
    }

    #[track_caller]
    pub fn put_leased(&self, key: &str, value: &str, lease: &str) {
        self.ctl(&["put", key, value, &format!("--lease={lease}")]);
    }

    /// Forgets all history up to now.
    #[track_caller]
    pub fn compact(&self) {
        let status = self.ctl(&["endpoint", "status", "--write-out=json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let revision = status[0]["Status"]["header"]["revision"].as_i64().expect("a revision");
        self.ctl(&["compact", &revision.to_string()]);
    }

    /// This member's id, as it calls itself to others.
    pub fn member_id(&self) -> String {
        let status = self.ctl(&["endpoint", "status", "--write-out=json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        format!("{:x}", status[0]["Status"]["header"]["member_id"].as_u64().expect("an id"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("etcd {} said at last:\n{}", self.url(), lines[lines.len().saturating_sub(10)..].join("\n"));
        }
        self.kill();
    }
}

/// `etcd grpc-proxy` in front of a member.
pub struct GrpcProxy {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl GrpcProxy {
    /// Starts one, and waits until it listens.
    pub fn start(of: &Etcd) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // A port may be taken between being found free and the proxy's own bind.
        for _ in 0..5 {
            let [port] = free_ports();
            let mut command = Command::new(binary("etcd"));
            command.args(["grpc-proxy", "start", "--endpoints", &format!("127.0.0.1:{}", of.port())]);
            command.args(["--listen-addr", &format!("127.0.0.1:{port}")]).arg("--data-dir").arg(folder.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().expect("etcd, from the PATH or the folder HEDDLE_ETCD");
            let deadline = Instant::now() + DEADLINE;
            while child.try_wait().expect("its state").is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { child, port, _folder: folder };
                }
                assert!(Instant::now() < deadline, "the grpc-proxy does not listen");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        panic!("the grpc-proxy does not start");
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }
}

impl Drop for GrpcProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three members whose traffic with each other can be cut.
pub struct Cluster {
    pub members: Vec<Etcd>,
    relays: Vec<Relay>,
}

impl Cluster {
    pub fn start() -> Self {
        let ports: [u16; 3] = free_ports();
        let relays: Vec<Relay> = ports.iter().map(|port| Relay::start(*port)).collect();
        let name = |index: usize| format!("m{index}");
        let url = |(index, relay): (usize, &Relay)| format!("{}=http://127.0.0.1:{}", name(index), relay.port());
        let all = relays.iter().enumerate().map(url).collect::<Vec<_>>().join(",");
        let mut members: Vec<Etcd> = (0..3)
            .map(|index| {
                let cluster = Some((name(index), relays[index].port(), all.clone()));
                Etcd::spawn_with(Options { cluster, peer_port: Some(ports[index]), ..Options::default() })
            })
            .collect();
        members.iter_mut().for_each(Etcd::wait_healthy);
        Self { members, relays }
    }

    /// Cuts one member off from the others, who stay together.
    pub fn isolate(&self, member: usize) {
        // Members say who they are at the beginning of each connection to a peer.
        let from = format!("X-Server-From: {}", self.members[member].member_id());
        for (index, relay) in self.relays.iter().enumerate() {
            if index == member { relay.cut() } else { relay.refuse(&from) }
        }
    }

    /// Lets everyone talk to everyone again.
    pub fn heal(&self) {
        self.relays.iter().for_each(Relay::open);
    }
}

/// A relay in front of a local TCP port, by which a connection can be cut, refused or made to stall.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    mode: Mode,
    target: u16,
    /// Connections that begin with this text are refused.
    refused: Option<String>,
    connections: Vec<Connection>,
    accepted: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Open,
    Cut,
    /// Bytes are taken and go nowhere until the relay is open again.
    Stalled,
    Ended,
}

struct Connection {
    beginning: String,
    ends: [TcpStream; 2],
}

impl Connection {
    fn close(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Relay {
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::new(Shared { state: Mutex::new(State { target, ..State::default() }), ..Shared::default() });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.lock().mode == Mode::Ended {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = accepting.clone();
                std::thread::spawn(move || shared.relay(stream));
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where clients reach the target through the relay, without TLS.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many connections were asked for since the start.
    pub fn accepted(&self) -> usize {
        self.shared.lock().accepted
    }

    /// Closes every connection and lets no further one through.
    pub fn cut(&self) {
        self.set(Mode::Cut);
        self.close(|_| true);
    }

    /// Keeps connections open and lets no byte through.
    pub fn stall(&self) {
        self.set(Mode::Stalled);
    }

    /// Lets everything through.
    pub fn open(&self) {
        self.shared.lock().refused = None;
        self.set(Mode::Open);
    }

    /// Closes, and lets no further one through, connections whose first bytes hold `text`.
    pub fn refuse(&self, text: &str) {
        self.shared.lock().refused = Some(text.to_owned());
        self.close(|connection| connection.beginning.contains(text));
    }

    fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
        self.shared.changed.notify_all();
    }

    fn close(&self, which: impl Fn(&Connection) -> bool) {
        self.shared.lock().connections.retain(|connection| {
            let close = which(connection);
            if close {
                connection.close();
            }
            !close
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
        self.set(Mode::Ended);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relay(self: Arc<Self>, mut client: TcpStream) {
        self.lock().accepted += 1;
        let mut first = [0; 4096];
        let Some(length) = self.passing(&mut client, &mut first) else { return };
        let beginning = String::from_utf8_lossy(&first[..length]).into_owned();
        let (mut server, [to_server, to_client]) = {
            let mut state = self.lock();
            let refused = state.refused.as_ref().is_some_and(|text| beginning.contains(text));
            if refused || state.mode == Mode::Cut {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", state.target)) else { return };
            // Else each page of a reading waits 40 ms for an acknowledgement.
            for end in [&client, &server] {
                end.set_nodelay(true).expect("an open socket");
            }
            let clone = |stream: &TcpStream| stream.try_clone().expect("a further handle");
            let ends = [clone(&server), clone(&client)];
            state.connections.push(Connection { beginning, ends: [clone(&server), clone(&client)] });
            (server, ends)
        };
        let back = self.clone();
        std::thread::spawn({
            let from = server.try_clone().expect("a further handle");
            move || back.copy(from, to_client)
        });
        if server.write_all(&first[..length]).is_ok() {
            self.copy(client, to_server);
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Some(length) = self.passing(&mut from, &mut buffer) {
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Reads, and holds back what was read for as long as the relay is stalled. `None`: the connection is over.
    fn passing(&self, from: &mut TcpStream, buffer: &mut [u8]) -> Option<usize> {
        let length = loop {
            match from.read(buffer) {
                Ok(0) => return None,
                Ok(length) => break length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        };
        let mut state = self.lock();
        while state.mode == Mode::Stalled {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.mode == Mode::Open).then_some(length)
    }
}
