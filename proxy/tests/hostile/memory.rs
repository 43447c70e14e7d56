//! What hurts most, at a real proxy with the memory of the Kubernetes manifest (256 MiB), 1,024 descriptors and one
//! worker: it stays alive, and another client is served.
//!
//! The process runs in a memory cgroup of its own where the test may make one; its peak is looked at in any case, and is
//! at most 240 MiB where there is none.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::etcd::Etcd;
use crate::frames::{END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE};
use crate::guests::guest;
use crate::http1::{Endpoint, OK, Wire, connect_from};
use crate::notation::{frame, literal};
use crate::process::{self, Heddle, figure, wait_for};
use crate::soak::serve;
use crate::tls::{Authority, TlsWire};

const MIB: u64 = 1024;

/// Of the whole process, in KiB.
const LIMIT: u64 = 256 * MIB;

/// Where nothing else enforces the limit, in KiB.
const LIMIT_OF_PEAK: u64 = 240 * MIB;

/// A folder of the memory controller, of version 2 or 1, with the limit set.
struct Cgroup(PathBuf);

impl Cgroup {
    /// None where there is no such controller, or this test may not use it.
    fn new() -> Option<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("heddle-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        for (root, file) in [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")] {
            let this = Self(Path::new(root).join(&name));
            let is_made = fs::create_dir(&this.0).is_ok()
                && this.0.join(file).exists()
                && fs::write(this.0.join(file), (LIMIT * 1024).to_string()).is_ok();
            if is_made {
                return Some(this);
            }
        }
        None
    }

    fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is empty a moment after its last process has ended.
        for _ in 0..200 {
            if !self.0.exists() || fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Held by the proxy under test: together they would need more than the machine may have, and slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A proxy with little.
struct Small {
    heddle: Heddle,
    /// After the process, which has to end first.
    cgroup: Option<Cgroup>,
    address: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
    _fine: Endpoint,
    /// The last to go.
    _turn: MutexGuard<'static, ()>,
}

impl Small {
    /// With this configuration beside a listener, an admin server, and the service `fine`. `FOLDER` in it is a folder.
    fn start(config: &str) -> Self {
        // One that failed leaves nothing behind that matters here.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (fine, folder) = (Endpoint::saying(OK), tempfile::tempdir().unwrap());
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("plugins")).unwrap();
        let text = format!(
            "workers = 1\nplugins = {{ folder = {:?}, rescan = \"200ms\" }}\nstate = {:?}\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n{}\n\
             [service.fine]\nendpoints = [\"{}\"]\n",
            at("plugins"),
            at("state"),
            config.replace("FOLDER", folder.path().to_str().unwrap()),
            fine.address
        );
        fs::write(at("heddle.toml"), text).unwrap();
        let cgroup = Cgroup::new();
        let joins = cgroup.as_ref().map(|cgroup| format!("echo $$ > {} && ", cgroup.processes().display()));
        let script = format!("{}ulimit -n 1024 && exec \"$0\" \"$@\"", joins.unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_heddle"), "run", "--config"]).arg(at("heddle.toml"));
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        let heddle = Heddle::start(command);
        let said = heddle.after("listening on ", 0);
        let address = said.split_whitespace().next().unwrap().parse().unwrap();
        let admin = heddle.address("health and metrics on ");
        let mut small = Self { heddle, cgroup, address, admin, folder, _fine: fine, _turn: turn };
        wait_for("it serves", || small.ask_fine().ok());
        small.check("at the start");
        small
    }

    fn ask_fine(&self) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut other = connect_from([127, 0, 0, 9], self.address).map_err(failed)?;
        other.write_all(b"GET / HTTP/1.1\r\nhost: fine\r\nconnection: close\r\n\r\n").map_err(failed)?;
        let mut answer = String::new();
        other.read_to_string(&mut answer).map_err(failed)?;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(format!("{answer:?}")) }
    }

    /// It is alive, another client is served, and it never had more memory than it may.
    #[track_caller]
    fn check(&mut self, what: &str) {
        assert!(self.heddle.is_running(), "{what}: it has ended: {:?}", self.heddle.said().last());
        let began = Instant::now();
        if let Err(error) = self.ask_fine() {
            panic!("{what}: another client is not served: {error}");
        }
        let limit = if self.cgroup.is_some() { LIMIT } else { LIMIT_OF_PEAK };
        let peak = self.heddle.peak_memory();
        println!("{what}: another client waited {:?}; the peak is {} MiB", began.elapsed(), peak / MIB);
        assert!(peak <= limit, "{what}: {} MiB", peak / MIB);
    }

    /// Waits until its memory has not grown for half a second.
    fn settle(&self) {
        let mut last = (0, Instant::now());
        wait_for("its memory stops growing", || {
            let now = self.heddle.memory();
            if now > last.0 + 256 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(500)).then_some(())
        });
    }

    fn connect(&self) -> Wire {
        Wire::connect(self.address)
    }
}

/// An endpoint that sends and takes what the path says, as in the soak.
fn users() -> (Endpoint, String) {
    let endpoint = Endpoint::start(|_, wire| serve(wire));
    // Hundreds of connections at once are more than its queue takes.
    let text = format!("[service.users]\nendpoints = [\"{}\"]\nconnect_timeout = \"30s\"\n", endpoint.address);
    (endpoint, text)
}

/// A client of HTTP/2 that takes everything at once, and has asked for these streams with `ends` as their flag.
fn http2_client(to: SocketAddr, method: &str, path: &str, streams: u32, ends: u8) -> Wire {
    let fields = [(":method", method), (":scheme", "http"), (":authority", "users"), (":path", path)];
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect();
    let most = 0x7000_0000_u32.to_be_bytes();
    let mut out = [PREFACE, &frame(SETTINGS, 0, 0, &[&[0, 4], &most[..]].concat())].concat();
    out.extend(frame(WINDOW_UPDATE, 0, 0, &most));
    for number in 0..streams {
        out.extend(frame(HEADERS, END_HEADERS | ends, 2 * number + 1, &block));
    }
    let mut client = Wire::connect(to);
    client.send(out);
    client
}

/// Issue 10, 1: chunks of 4 and 8 KiB at full speed.
#[test]
fn chunked_transfers() {
    const LENGTH: usize = 256 << 20;
    let (_users, config) = users();
    let mut small = Small::start(&config);
    let mut client = small.connect();
    client.send(format!("GET /chunks/{LENGTH}/8192 HTTP/1.1\r\nHost: users\r\n\r\n"));
    let (mut taken, mut piece) = (0, vec![0; 256 << 10]);
    while taken < LENGTH {
        let length = client.stream.read(&mut piece).unwrap();
        assert!(length > 0, "the download ended after {taken} bytes");
        taken += length;
    }
    small.check("a download in chunks");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = small.connect();
                client.send("POST /take HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n");
                let chunks = format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(64);
                for _ in 0..(64 << 20) / (64 * 4096) {
                    client.send(&chunks);
                }
                client.send("0\r\n\r\n");
                assert_eq!(client.response().status(), 200);
            });
        }
    });
    small.check("four uploads in chunks");
}

/// Issue 10, 2: clients that read nothing of what they asked for.
#[test]
fn stalled_readers() {
    let (_users, config) = users();
    let mut small = Small::start(&config);
    // As many as descriptors allow: one address has a quarter of the connections.
    let connect = |number: usize| connect_from([127, 0, 0, 10 + (number % 3) as u8], small.address).unwrap();
    let mut clients: Vec<Wire> = (0..300).map(|number| Wire::new(connect(number))).collect();
    for client in &mut clients {
        client.send("GET /bytes/8000000 HTTP/1.1\r\nHost: users\r\n\r\n");
    }
    wait_for("they are served", || (figure(small.admin, "heddle_requests_in_flight") >= 290.0).then_some(()));
    small.settle();
    small.check("300 stalled readers of HTTP/1");
    drop(clients);
    wait_for("they are gone", || (figure(small.admin, "heddle_requests_in_flight") < 10.0).then_some(()));
    let clients = [(); 8].map(|()| http2_client(small.address, "GET", "/bytes/8000000", 45, END_STREAM));
    wait_for("they are served", || (figure(small.admin, "heddle_requests_in_flight") >= 300.0).then_some(()));
    small.settle();
    small.check("360 stalled streams of HTTP/2");
    drop(clients);
}

/// Issue 10, 3: bytes one by one, and heads without end.
#[test]
fn endless_small_things() {
    let endless = Endpoint::start(|_, mut wire| {
        let Ok(head) = wire.until(b"\r\n\r\n") else { return };
        let (first, then) = if head.starts_with(b"GET /interim") {
            ("", "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n".repeat(500))
        } else {
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\nx\r\n".repeat(5_000))
        };
        let mut sent = wire.try_send(first);
        while sent.is_ok() {
            sent = wire.try_send(&then);
        }
    });
    let mut small = Small::start(&format!("[service.users]\nendpoints = [\"{}\"]\n", endless.address));
    for path in ["/interim", "/chunks"] {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                let mut client = small.connect();
                client.send(format!("GET {path} HTTP/1.1\r\nHost: users\r\n\r\n"));
                let mut stream = client.stream.try_clone().unwrap();
                let reading =
                    thread::spawn(move || while stream.read(&mut [0; 65_536]).is_ok_and(|length| length > 0) {});
                (client, reading)
            })
            .collect();
        for round in 0..20 {
            small.check(&format!("{path}, round {round}"));
        }
        for (client, reading) in clients {
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
            reading.join().unwrap();
        }
    }
}

/// Issue 10, 4: requests whose bodies never come.
#[test]
fn silent_requests() {
    let (_users, config) = users();
    let mut small = Small::start(&config);
    let clients = [(); 11].map(|()| http2_client(small.address, "POST", "/take", 99, 0));
    small.settle();
    for round in 0..5 {
        small.check(&format!("990 silent requests, round {round}"));
    }
    drop(clients);
}

/// Issue 10, 5: a tunnel that leads back to where it began.
#[test]
fn a_tunnel_to_oneself() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\nprotocol = \"tcp\"\nservice = \"loop\"\n\
         [service.loop]\nendpoints = [\"127.0.0.1:{port}\"]\n"
    );
    let mut small = Small::start(&config);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _it_may_be_refused_at_once = client.write_all(b"\x01hello");
    small.settle();
    for round in 0..5 {
        small.check(&format!("a loop, round {round}"));
        assert_eq!(process::get(small.admin, "/live").status, 200);
    }
    assert!(small.heddle.count_of("fd") < 200, "{} descriptors", small.heddle.count_of("fd"));
}

/// Files that cost more than they look.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let whole = guest(&[]);
    let size = |mut number: usize| {
        let mut bytes = Vec::new();
        loop {
            let more = number >= 128;
            bytes.push((number % 128) as u8 | if more { 128 } else { 0 });
            number /= 128;
            if !more {
                return bytes;
            }
        }
    };
    let section = |id: u8, content: &[u8]| [&[id], &size(content.len())[..], content].concat();
    let module = |sections: &[Vec<u8>]| [b"\0asm\x01\0\0\0", &sections.concat()[..]].concat();
    let types = section(1, &[1, 0x60, 0, 0]);
    let functions = |count: usize, body: &[u8]| {
        let body = [&size(body.len())[..], body].concat();
        let declared = section(3, &[size(count), vec![0; count]].concat());
        module(&[types.clone(), declared, section(10, &[size(count), body.repeat(count)].concat())])
    };
    let mut doubling = String::from("(component (component $c0 (core module $m) (core instance (instantiate $m)))");
    for number in 1..31 {
        let before = number - 1;
        let _ = write!(
            doubling,
            "(component $c{number} (instance (instantiate $c{before})) (instance (instantiate $c{before})))"
        );
    }
    doubling += "(instance (instantiate $c30)))";
    let mut nested = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..5_000 {
        nested = [b"\0asm\x0d\0\x01\0", &section(4, &nested)[..]].concat();
    }
    let blocks = [&[0][..], &b"\x02\x40".repeat(100_000), &b"\x0b".repeat(100_001)].concat();
    // 4 KiB of additions that are thrown away.
    let sums = [&[0, 0x41, 1][..], &b"\x41\x01\x6a".repeat(1_300), b"\x1a\x0b"].concat();
    vec![
        ("cut at its end", whole[..whole.len() - 1].to_vec()),
        ("cut in its middle", whole[..whole.len() / 2].to_vec()),
        ("cut at its beginning", whole[..9].to_vec()),
        ("components that double", wat::parse_str(&doubling).unwrap()),
        ("5,000 nested components", nested),
        ("100,000 nested blocks", functions(1, &blocks)),
        ("100,000 functions", functions(100_000, b"\0\x0b")),
        ("12 MB of code", functions(3_000, &sums)),
        ("16 MiB of nothing", vec![0; 16 << 20]),
        ("a module of nothing", module(&[section(0, &vec![0; 15 << 20])])),
    ]
}

/// Issue 10, 6 and 7: plugin files that are damaged, or cost much.
#[test]
fn plugin_files() {
    let mut small = Small::start("");
    for (what, bytes) in bombs() {
        println!("{what}: {} bytes", bytes.len());
        let before = small.heddle.count("round-robin.wasm");
        let (aside, place) = (small.folder.path().join("aside"), small.folder.path().join("plugins/round-robin.wasm"));
        fs::write(&aside, bytes).unwrap();
        fs::rename(&aside, place).unwrap();
        let deadline = Instant::now() + process::DEADLINE;
        // Others are served all the time, and then it says what became of the file.
        while small.heddle.count("round-robin.wasm") == before {
            assert!(Instant::now() < deadline, "{what}: not a word about it");
            small.check(what);
            thread::sleep(Duration::from_millis(100));
        }
        small.check(what);
    }
    let aside = small.folder.path().join("aside");
    fs::write(&aside, guest(&[])).unwrap();
    fs::rename(&aside, small.folder.path().join("plugins/round-robin.wasm")).unwrap();
    wait_for("the good file is loaded", || {
        let is_loaded = |line: &String| line.contains("loaded from") && line.contains("round-robin.wasm");
        small.heddle.said().iter().any(is_loaded).then_some(())
    });
    small.check("a good file after all of them");
}

/// Issue 10, 11 and 12, as far as memory goes: handshakes that do not go on, and connections that wait.
#[test]
fn tls_connections() {
    let authority = Authority::new();
    let pair = authority.issue("proxy", &["localhost"]);
    let listener = format!("[[listener]]\naddress = \"127.0.0.1:0\"\ntls = {{ {} }}\n", pair.keys());
    let mut small = Small::start(&listener);
    let said = small.heddle.after("listening on ", 1);
    let to: SocketAddr = said.split_whitespace().next().unwrap().parse().unwrap();
    let hello = |length: usize| [b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", &vec![7; length][..]].concat();
    let connect = |number: usize| connect_from([127, 0, 0, 10 + (number % 3) as u8], to).unwrap();
    let half: Vec<TcpStream> = (0..180)
        .map(|number| {
            let mut stream = connect(number);
            stream.write_all(&hello(number * 90)).unwrap();
            stream
        })
        .collect();
    let whole: Vec<TlsWire> = (0..150)
        .map(|number| {
            let mut wire = TlsWire::over(connect(number), authority.client_config(), "localhost");
            wire.handshake().unwrap();
            wire
        })
        .collect();
    small.settle();
    small.check("330 connections of TLS");
    drop((half, whole));
}

/// Issue 10, 15: the admin server's state, asked for again and again.
#[test]
fn the_admin_server() {
    let mut services = String::new();
    for number in 0..1_000 {
        let _ = write!(services, "[service.some-{number}]\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n");
    }
    let mut small = Small::start(&services);
    for request in ["HEAD /state", "GET /state", "GET /metrics"] {
        let host = small.admin;
        let pipelined = format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(200);
        let mut clients: Vec<Wire> = (0..20).map(|_| Wire::connect(small.admin)).collect();
        for client in &mut clients {
            client.send(&pipelined);
        }
        for round in 0..5 {
            assert_eq!(process::get(small.admin, "/live").status, 200);
            small.check(&format!("{request}, round {round}"));
        }
        small.settle();
        small.check(request);
        drop(clients);
    }
}

/// Issue 10, 14: values of 1 MB, more than the proxy would take at once.
#[test]
fn large_registry_values() {
    let etcd = Etcd::start();
    let folder = tempfile::tempdir().unwrap();
    let value = folder.path().join("value");
    for number in 0..70 {
        let metadata = "x".repeat(1_000_000);
        let text = format!(r#"{{"address":"127.0.0.1:{}","metadata":{{"pad":"{metadata}"}}}}"#, number + 1);
        fs::write(&value, text).unwrap();
        let mut put = etcd.ctl_command(&["put", &format!("/services/large/{number}")]);
        assert!(put.stdin(fs::File::open(&value).unwrap()).stdout(Stdio::null()).status().unwrap().success());
    }
    etcd.put("/services/small/1", r#"{"address":"127.0.0.1:1"}"#);
    let config = format!(
        "[registry.etcd]\nendpoints = [\"{}\"]\n[[registry.etcd.watch]]\nprefix = \"/services/\"\n",
        etcd.url()
    );
    let mut small = Small::start(&config);
    wait_for("the registry is read", || (figure(small.admin, "heddle_registry_ready") == 1.0).then_some(()));
    wait_for("its services are known", || (figure(small.admin, "heddle_registry_services") >= 1.0).then_some(()));
    small.settle();
    small.check("70 keys of 1 MB");
}
