//! The soak: mixed traffic of every kind at the real binary, while its configuration, registry, certificates and plugins
//! are replaced; afterwards memory, descriptors, threads, tasks and gauges are back where they were.
//!
//! It takes a minute, or as many seconds as `HEDDLE_SOAK_SECONDS` says: issue 10 asks for one run of 1,800. The start
//! that everything has to come back to is taken after a first sixth of the traffic, when caches and pools have been made.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS};
use crate::guests::{guest, instead, on_path};
use crate::http1::{Endpoint, Message, Wire};
use crate::notation::{frame, literal};
use crate::process::{Heddle, command, figure, wait_for};
use crate::table::{parsed, serve_http2};
use crate::tls::{Authority, TlsWire};

/// Threads that send.
const CLIENTS: u64 = 8;

/// How much more memory there may be at the end, in KiB: what an allocator keeps of a peak differs by as much.
const MORE_MEMORY: u64 = 16 * 1024;

/// Gauges that are 0 while nobody asks for anything.
const GAUGES: [&str; 6] = [
    "heddle_requests_in_flight",
    "heddle_client_connections",
    "heddle_tunnels_open",
    "heddle_connections",
    "heddle_requests_pending",
    "heddle_connections_pending",
];

/// Issue 10, "What must hold".
#[test]
fn mixed_traffic_and_reloads_leave_nothing_behind() {
    let seconds = std::env::var("HEDDLE_SOAK_SECONDS").map_or(60, |text| text.parse().expect("a number of seconds"));
    let stage = Stage::start();
    let mut done = [(); KINDS.len()].map(|()| 0);
    stage.traffic(Duration::from_secs(seconds) / 6, 1, &mut done);
    let before = stage.at_rest(None);
    stage.traffic(Duration::from_secs(seconds) * 5 / 6, 2, &mut done);
    let after = stage.at_rest(Some(before));
    let kinds = KINDS.iter().zip(done).fold(String::new(), |mut text, ((name, _), count)| {
        let _ = write!(text, "{name} {count}, ");
        text
    });
    println!("soak of {seconds} s: {kinds}before {before:?}, after {after:?}");
    assert!(done.iter().all(|count| *count > 0), "a kind of traffic never went well: {kinds}");
    assert!(after.memory <= before.memory + MORE_MEMORY, "memory grew: before {before:?}, after {after:?}");
}

/// What there is while nobody asks for anything.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// In KiB.
    memory: u64,
    descriptors: usize,
    threads: usize,
    tasks: usize,
}

struct Stage {
    heddle: Heddle,
    admin: SocketAddr,
    plain: SocketAddr,
    tls: SocketAddr,
    raw: SocketAddr,
    authority: Authority,
    folder: TempDir,
    /// How often each thing has been replaced.
    turn: AtomicU64,
    endpoints: Vec<Endpoint>,
    config: String,
}

impl Stage {
    fn start() -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let pair = authority.issue("proxy", &["localhost"]);
        let endpoints = vec![
            Endpoint::start(|_, wire| serve(wire)),
            Endpoint::start(|_, wire| serve(wire)),
            Endpoint::start(|_, mut wire| echo(&mut wire)),
            Endpoint::start(|_, wire| serve_http2(wire, &Mutex::default())),
        ];
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        let config = format!(
            r#"workers = 2
drain = "1s"
plugins = {{ folder = {plugins:?}, rescan = "200ms" }}
state = {:?}
[admin]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
tls = {{ {} }}
[[listener]]
address = "127.0.0.1:0"
protocol = "tcp"
service = "raw"
[registry.file]
path = {:?}
rescan = "200ms"
[service.two]
protocol = "http2"
[service.default]
retry = "retry"
breaker = "circuit-breaker"
pool = {{ idle_timeout = "1s" }}
"#,
            folder.path().join("state"),
            pair.keys(),
            folder.path().join("services.toml"),
        );
        register(folder.path(), &endpoints, 0);
        let file = folder.path().join("heddle.toml");
        fs::write(&file, &config).unwrap();
        let mut command = command(&["run", "--config", file.to_str().unwrap()]);
        command.env("NO_COLOR", "1");
        let heddle = Heddle::start(command);
        let address = |skip| heddle.after("listening on ", skip).split_whitespace().next().unwrap().parse().unwrap();
        let (plain, tls, raw) = (address(0), address(1), address(2));
        let admin = heddle.address("health and metrics on ");
        wait_for("it is ready", || (figure(admin, "heddle_ready") == 1.0).then_some(()));
        wait_for("it serves", || get(plain, "users", "/bytes/1").ok());
        Self { heddle, admin, plain, tls, raw, authority, folder, turn: AtomicU64::new(0), endpoints, config }
    }

    /// Sends for so long, and replaces things meanwhile. `done` counts what went well, by kind.
    fn traffic(&self, time: Duration, seed: u64, done: &mut [u64; KINDS.len()]) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let over = &over;
                    scope.spawn(move || {
                        let mut random = Random(seed * 1_000 + number + 1);
                        let mut done = [0; KINDS.len()];
                        while !over.load(Relaxed) {
                            let kind = random.below(KINDS.len());
                            done[kind] += u64::from(KINDS[kind].1(self, &mut random).is_ok());
                        }
                        done
                    })
                })
                .collect();
            let end = Instant::now() + time;
            while Instant::now() < end {
                thread::sleep(Duration::from_millis(500));
                self.replace_something();
            }
            over.store(true, Relaxed);
            for client in clients {
                for (sum, count) in done.iter_mut().zip(client.join().expect("a client")) {
                    *sum += count;
                }
            }
        });
        // As it was at the start.
        register(self.folder.path(), &self.endpoints, 0);
        let _ = fs::remove_file(self.plugin());
    }

    fn plugin(&self) -> std::path::PathBuf {
        self.folder.path().join("plugins/round-robin.wasm")
    }

    /// One thing after the other.
    fn replace_something(&self) {
        let turn = self.turn.fetch_add(1, Relaxed);
        match turn % 5 {
            0 => {
                let seconds = 10 + turn % 7;
                let text = format!("{}request_timeout = \"{seconds}s\"\n", self.config);
                fs::write(self.folder.path().join("heddle.toml"), text).unwrap();
                self.heddle.signal(Signal::HUP);
            }
            1 | 3 => register(self.folder.path(), &self.endpoints, turn),
            2 => drop(self.authority.issue("proxy", &["localhost"])),
            _ => {
                // One that is well, one that traps on some requests, one that is cut short, and none.
                let content = match turn / 5 % 4 {
                    0 => guest(&[]),
                    1 => guest(&[("pick", &on_path('c', instead::TRAP))]),
                    2 => guest(&[]).split_off(100),
                    _ => return drop(fs::remove_file(self.plugin())),
                };
                let aside = self.folder.path().join("aside");
                fs::write(&aside, content).unwrap();
                fs::rename(aside, self.plugin()).unwrap();
            }
        }
    }

    /// What there is once all is at rest; where that was measured before, once it is as it was then.
    fn at_rest(&self, before: Option<Rest>) -> Rest {
        let gauges = || GAUGES.map(|name| (name, figure(self.admin, name)));
        let mut last = String::new();
        let is_quiet = || gauges().iter().all(|(_, value)| *value == 0.0);
        let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("gauges are at 0", || is_quiet().then_some(()));
            wait_for("counts are as they were", || {
                thread::sleep(Duration::from_millis(200));
                let rest = self.rest();
                let is_as_before = before.is_none_or(|before| {
                    rest.descriptors <= before.descriptors + 2
                        && rest.threads <= before.threads + 2
                        && rest.tasks <= before.tasks
                        && rest.memory <= before.memory + MORE_MEMORY
                });
                last = format!("{rest:?}");
                is_as_before.then_some(())
            });
        }));
        assert!(settled.is_ok(), "not at rest: {:?}; {last}; before {before:?}", gauges());
        // Caches are filled, and blocking threads end, for a while.
        thread::sleep(Duration::from_secs(if before.is_none() { 12 } else { 0 }));
        self.rest()
    }

    fn rest(&self) -> Rest {
        Rest {
            memory: self.heddle.memory(),
            descriptors: self.heddle.count_of("fd"),
            threads: self.heddle.count_of("task"),
            tasks: figure(self.admin, "heddle_worker_tasks") as usize,
        }
    }

    fn connect(&self) -> Result<Wire, String> {
        connect(self.plain)
    }
}

/// Writes the registry's file: both endpoints of `users`, or one of them, and others that nobody asks for.
fn register(folder: &Path, endpoints: &[Endpoint], turn: u64) {
    let [one, other, raw, two] = [0, 1, 2, 3].map(|index| format!("\"{}\"", endpoints[index].address));
    let users = match turn % 3 {
        0 => format!("{one}, {other}"),
        1 => one,
        _ => other,
    };
    let mut text = format!(
        "[services.users]\nendpoints = [{users}]\n[services.raw]\nendpoints = [{raw}]\n[services.two]\nendpoints = [{two}]\n"
    );
    for number in 0..turn % 10 {
        let _ = write!(text, "[services.other-{number}]\nendpoints = [\"127.0.0.1:{}\"]\n", 10_000 + number);
    }
    let aside = folder.join("services.new");
    fs::write(&aside, text).unwrap();
    fs::rename(aside, folder.join("services.toml")).unwrap();
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    /// A size from 1 byte to 1 MiB, each power of two as likely as another.
    fn size(&mut self) -> usize {
        let power = 1_usize << self.below(21);
        power - self.below(power.div_ceil(2))
    }
}

/// What the endpoints of `users` do: they send as many bytes as the path says, or fail in the way that it says.
pub fn serve(mut wire: Wire) {
    while let Ok(raw) = wire.until(b"\r\n\r\n") {
        let head = parsed(&raw);
        let path = head.start.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut parts = path.split('/').skip(1);
        let kind = parts.next().unwrap_or_default();
        let mut number = || parts.next().and_then(|text| text.parse().ok()).unwrap_or(1_usize);
        let result = match kind {
            "bytes" => {
                let length = number();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                wire.try_send(head).and_then(|()| wire.try_send(vec![b'x'; length]))
            }
            "chunks" => {
                let (length, chunk) = (number(), number());
                send_chunked(&mut wire, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", length, chunk)
            }
            // Half of it, and then the end, a reset, or nothing for a while.
            "half" => {
                let (length, how) = (number(), number());
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                let _ = wire.try_send(head).and_then(|()| wire.try_send(vec![b'x'; length / 2]));
                match how {
                    1 => reset(&wire),
                    2 => thread::sleep(Duration::from_millis(300)),
                    _ => {}
                }
                return;
            }
            "upgrade" => {
                let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                if wire.try_send(head).is_ok() {
                    echo(&mut wire);
                }
                return;
            }
            _ => {
                // It answers before the body, in the middle of it, or after it.
                if kind != "early" && wire.with_body(head, false).is_err() {
                    return;
                }
                let sent = wire.try_send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                if kind == "early" {
                    return;
                }
                sent
            }
        };
        if result.is_err() {
            return;
        }
    }
}

fn send_chunked(wire: &mut Wire, head: &str, length: usize, chunk: usize) -> std::io::Result<()> {
    wire.try_send(head)?;
    let mut out = Vec::new();
    let mut left = length;
    while left > 0 {
        let size = left.min(chunk.max(1));
        out.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        out.resize(out.len() + size, b'x');
        out.extend_from_slice(b"\r\n");
        left -= size;
        if out.len() > 32 << 10 {
            wire.try_send(&out)?;
            out.clear();
        }
    }
    out.extend_from_slice(b"0\r\n\r\n");
    wire.try_send(out)
}

fn echo(wire: &mut Wire) {
    while let Ok(byte) = wire.exactly(1) {
        if wire.try_send(byte).is_err() {
            return;
        }
    }
}

fn reset(wire: &Wire) {
    let _ = socket2::SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO));
}

fn connect(to: SocketAddr) -> Result<Wire, String> {
    Ok(Wire::new(TcpStream::connect(to).map_err(|error| error.to_string())?))
}

/// Sends and waits for the whole answer.
fn exchange(wire: &mut Wire, request: impl AsRef<[u8]>) -> Result<Message, String> {
    wire.try_send(request).map_err(|error| error.to_string())?;
    answer(wire)
}

fn answer(wire: &mut Wire) -> Result<Message, String> {
    loop {
        let head = parsed(&wire.until(b"\r\n\r\n")?);
        let status = head.start.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).ok_or("no status")?;
        match status {
            100..200 if status != 101 => {}
            200 | 101 => return wire.with_body(head, status == 200),
            _ => return Err(format!("status {status}")),
        }
    }
}

fn head(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn get(to: SocketAddr, host: &str, path: &str) -> Result<Message, String> {
    exchange(&mut connect(to)?, head(host, path))
}

type Kind = fn(&Stage, &mut Random) -> Result<(), String>;

/// The kinds of traffic.
const KINDS: [(&str, Kind); 17] = [
    ("lengths", |stage, random| {
        let mut client = stage.connect()?;
        for _ in 0..=random.below(4) {
            let length = random.size();
            let answer = exchange(&mut client, head("users", &format!("/bytes/{length}")))?;
            ensure(answer.body.len() == length)?;
        }
        Ok(())
    }),
    ("chunks down", |stage, random| {
        let (chunk, most) = (random.size(), 200_000);
        let length = random.size().min(chunk * most);
        let answer = get(stage.plain, "users", &format!("/chunks/{length}/{chunk}"))?;
        ensure(answer.body.len() == length)
    }),
    ("chunks up", |stage, random| {
        let (length, chunk) = (random.size(), random.size());
        let mut client = stage.connect()?;
        let head = "POST /take HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n";
        send_chunked(&mut client, head, length, chunk).map_err(|error| error.to_string())?;
        answer(&mut client).map(drop)
    }),
    ("stalled readers", |stage, random| {
        let mut client = stage.connect()?;
        client.try_send(head("users", "/bytes/8000000")).map_err(|error| error.to_string())?;
        let first = client.exactly(100);
        thread::sleep(Duration::from_millis(200));
        if random.below(2) == 0 {
            reset(&client);
        }
        first.map(drop)
    }),
    ("stalled writers", |stage, random| {
        let mut client = stage.connect()?;
        let head = "POST /take HTTP/1.1\r\nHost: users\r\nContent-Length: 100000\r\n\r\n";
        let sent = client.try_send(head).and_then(|()| client.try_send(vec![b'x'; random.size() / 20]));
        thread::sleep(Duration::from_millis(200));
        if random.below(2) == 0 {
            reset(&client);
        }
        sent.map_err(|error| error.to_string())
    }),
    ("slow heads", |stage, _| {
        let mut client = stage.connect()?;
        let sent = client.try_send("GET / HTTP/1.1\r\nHos");
        thread::sleep(Duration::from_millis(50));
        sent.map_err(|error| error.to_string())
    }),
    ("responses that break", |stage, random| {
        let path = format!("/half/{}/{}", random.size() + 1, random.below(3));
        // The answer may break off, or be an error.
        let _ = get(stage.plain, "users", &path);
        Ok(())
    }),
    ("early answers", |stage, _| {
        let mut client = stage.connect()?;
        let body = vec![b'x'; 200_000];
        let sent = client.try_send("POST /early HTTP/1.1\r\nHost: users\r\nContent-Length: 200000\r\n\r\n");
        let _it_may_be_answered_first = sent.and_then(|()| client.try_send(body));
        answer(&mut client).map(drop)
    }),
    ("tunnels", |stage, random| {
        let mut client = stage.connect()?;
        client.try_send("CONNECT raw:1 HTTP/1.1\r\nHost: raw:1\r\n\r\n").map_err(|error| error.to_string())?;
        ensure(client.until(b"\r\n\r\n")?.starts_with(b"HTTP/1.1 200"))?;
        talk(&mut client, random)
    }),
    ("SOCKS", |stage, random| {
        let mut client = stage.connect()?;
        client.try_send(b"\x05\x01\x00").map_err(|error| error.to_string())?;
        ensure(client.exactly(2)? == [5, 0])?;
        client.try_send(b"\x05\x01\x00\x03\x03raw\x00\x01").map_err(|error| error.to_string())?;
        ensure(client.exactly(10)?[1] == 0)?;
        talk(&mut client, random)
    }),
    ("TCP", |stage, random| talk(&mut connect(stage.raw)?, random)),
    ("upgrades", |stage, random| {
        let mut client = stage.connect()?;
        let request = "GET /upgrade HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        ensure(exchange(&mut client, request)?.start.contains(" 101 "))?;
        talk(&mut client, random)
    }),
    ("TLS", |stage, random| {
        let failed = |error: std::io::Error| error.to_string();
        let mut client = TlsWire::connect(stage.tls, stage.authority.client_config(), "localhost");
        client.handshake().map_err(failed)?;
        let length = random.size().min(100_000);
        if random.below(4) > 0 {
            client.ask(&head("users", &format!("/bytes/{length}")), &"x".repeat(length)).map_err(failed)?;
        }
        Ok(())
    }),
    ("TLS that ends early", |stage, _| {
        let mut stream = TcpStream::connect(stage.tls).map_err(|error| error.to_string())?;
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").map_err(|error| error.to_string())
    }),
    ("HTTP/2 of clients", |stage, random| http2(stage, random, "users", "/bytes/1000")),
    ("HTTP/2 of endpoints", |stage, random| {
        ensure(get(stage.plain, "two", "/")?.text().starts_with("GET /probe"))?;
        http2(stage, random, "two", "/")
    }),
    ("noise", |stage, random| {
        let mut client = stage.connect()?;
        let noise: Vec<u8> = (0..random.size().min(2_000)).map(|_| random.below(256) as u8).collect();
        let _it_may_be_refused_on_the_way = client.try_send(noise);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let mut end = Vec::new();
        let _ = client.stream.read_to_end(&mut end);
        Ok(())
    }),
];

fn ensure(condition: bool) -> Result<(), String> {
    if condition { Ok(()) } else { Err("another answer than expected".to_owned()) }
}

/// Has bytes said back; then ends in one of several ways.
fn talk(client: &mut Wire, random: &mut Random) -> Result<(), String> {
    for _ in 0..=random.below(5) {
        let said = vec![b'a' + random.below(26) as u8; random.size().min(3_000)];
        client.try_send(&said).map_err(|error| error.to_string())?;
        ensure(client.exactly(said.len())? == said)?;
    }
    match random.below(3) {
        0 => reset(client),
        1 => drop(client.stream.shutdown(std::net::Shutdown::Write)),
        _ => {}
    }
    Ok(())
}

/// A few requests at once, of which some are reset.
fn http2(stage: &Stage, random: &mut Random, host: &str, path: &str) -> Result<(), String> {
    let mut client = stage.connect()?;
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", path)];
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect();
    let streams = 1 + random.below(8) as u32;
    let mut out = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut waiting = 0;
    for number in 0..streams {
        let stream = 2 * number + 1;
        out.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
        if random.below(4) == 0 {
            out.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        } else {
            waiting += 1;
        }
    }
    client.try_send(out).map_err(|error| error.to_string())?;
    while waiting > 0 {
        let head = client.exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        client.exactly(length)?;
        waiting -= u32::from(matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0 || head[3] == RST_STREAM);
    }
    Ok(())
}
