//! What hostile streams cost the others (`hostile-streams`): the time of another client's requests beside six connections
//! on which chunks of one byte come without end, down or up, or whose endpoint sends interim responses without end.
//!
//! Beside nginx in the same run, where it is installed: for each kind, the median over the rounds of the 50th percentile
//! may be twice nginx's, and of the 99th three times. Times count from when a request was due. Both proxies have one
//! worker. `cargo bench -p heddle --bench hostile_streams`.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/plugins/process.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod process;
#[path = "../tests/support/plugins/wait.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod wait;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fs, thread};

use process::{Client, Proxy, serve};

const PHASE: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 6;
/// Of the client whose requests are measured.
const REQUESTS_A_SECOND: u32 = 50;

/// How often nginx's percentiles ours may be.
const MOST: [f64; 2] = [2.0, 3.0];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Down,
    Up,
    Interim,
}

const KINDS: [Kind; 3] = [Kind::Down, Kind::Up, Kind::Interim];

fn main() {
    let folder = tempfile::TempDir::new().unwrap();
    let (good, hostile) = (serve(), endpoint());
    let config = folder.path().join("heddle.toml");
    let text = format!(
        "workers = 1\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [service.users]\nendpoints = [\"{good}\"]\n[service.hostile]\nendpoints = [\"{hostile}\"]\n"
    );
    fs::write(&config, text).unwrap();
    let ours = Proxy::start(&config);
    let nginx = Nginx::start(folder.path(), good, hostile);
    let mut missed = Vec::new();
    for kind in KINDS {
        let round = |name: &str, address| {
            let times = beside(kind, address);
            let at = |thousandths: usize| times[(times.len() * thousandths / 1000).min(times.len() - 1)];
            println!("{kind:?} {name}: {} requests, p50 {:?}, p99 {:?}", times.len(), at(500), at(990));
            [at(500), at(990)]
        };
        let (mut of_ours, mut of_nginx) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_ours.push(round("heddle", ours.address));
            of_nginx.extend(nginx.as_ref().map(|nginx| round("nginx", nginx.address)));
        }
        for (number, percentile) in ["p50", "p99"].into_iter().enumerate() {
            let ours = median(&of_ours, number);
            let Some(nginx) = (!of_nginx.is_empty()).then(|| median(&of_nginx, number)) else { continue };
            let ratio = ours.as_secs_f64() / nginx.as_secs_f64();
            println!("{kind:?} {percentile}: {ours:?}, nginx {nginx:?}: {ratio:.2} times");
            if ratio > MOST[number] {
                missed.push(format!("{kind:?} {percentile}: {ratio:.2} times, and may be {}", MOST[number]));
            }
        }
    }
    println!("{} KiB resident at the end", ours.memory());
    assert!(missed.is_empty(), "{missed:#?}");
}

fn median(rounds: &[[Duration; 2]], number: usize) -> Duration {
    let mut times: Vec<_> = rounds.iter().map(|round| round[number]).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// An endpoint that sends what it is asked for without end, and reads the bodies of requests.
fn endpoint() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut read = BufReader::new(&stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && read.read_line(&mut head).is_ok_and(|length| length > 0) {}
                let mut write = &stream;
                if head.starts_with("GET /down ") {
                    let chunks = b"1\r\nx\r\n".repeat(10_000);
                    let _ = write.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
                    while write.write_all(&chunks).is_ok() {}
                } else if head.starts_with("GET /interim ") {
                    let interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(1000);
                    while write.write_all(&interim).is_ok() {}
                } else {
                    let mut buffer = vec![0; 64 * 1024];
                    while read.read(&mut buffer).is_ok_and(|length| length > 0) {}
                }
            });
        }
    });
    address
}

/// The times of requests beside six such connections, sorted.
fn beside(kind: Kind, address: SocketAddr) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    disturb(kind, address, &stop);
                }
            })
        })
        .collect();
    let mut client = Client::new(address);
    let between = Duration::from_secs(1) / REQUESTS_A_SECOND;
    let start = Instant::now() + Duration::from_millis(500);
    let mut times = Vec::new();
    while start.elapsed() < PHASE {
        let due = start + between * u32::try_from(times.len()).unwrap();
        thread::sleep(due.saturating_duration_since(Instant::now()));
        client.get("users", "/").unwrap();
        times.push(due.elapsed());
    }
    stop.store(true, Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    times.sort_unstable();
    times
}

/// One hostile connection, until it ends.
fn disturb(kind: Kind, address: SocketAddr, stop: &AtomicBool) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut read, mut write) = (&stream, &stream);
    let head = match kind {
        Kind::Down => "GET /down HTTP/1.1\r\nHost: hostile\r\n\r\n",
        Kind::Up => "POST /up HTTP/1.1\r\nHost: hostile\r\nTransfer-Encoding: chunked\r\n\r\n",
        Kind::Interim => "GET /interim HTTP/1.1\r\nHost: hostile\r\nConnection: close\r\n\r\n",
    };
    write.write_all(head.as_bytes()).unwrap();
    let chunks = b"1\r\nx\r\n".repeat(10_000);
    let mut rest: &[u8] = &[];
    let mut buffer = vec![0; 64 * 1024];
    while !stop.load(Relaxed) {
        let moved = if matches!(kind, Kind::Up) {
            if rest.is_empty() {
                rest = &chunks;
            }
            write.write(rest).inspect(|taken| rest = &rest[*taken..])
        } else {
            read.read(&mut buffer)
        };
        match moved {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// nginx on a port of its own, which it inherits as if it replaced another one; stopped when dropped.
struct Nginx {
    address: SocketAddr,
    child: Child,
}

impl Nginx {
    /// None where it is not installed.
    fn start(folder: &Path, good: SocketAddr, hostile: SocketAddr) -> Option<Self> {
        Command::new("nginx").arg("-v").stderr(Stdio::null()).status().ok()?;
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let config = format!(
            "daemon off; pid {folder}/pid; error_log stderr crit; worker_processes 1; events {{ }}
             http {{
                 access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2;
                 fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
                 proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
                 proxy_request_buffering off; client_max_body_size 0;
                 upstream users {{ server {good}; keepalive 16; }} upstream hostile {{ server {hostile}; }}
                 server {{ listen {address}; server_name users; location / {{ proxy_pass http://users; }} }}
                 server {{ listen {address}; server_name hostile; location / {{ proxy_pass http://hostile; }} }}
             }}",
            folder = folder.display(),
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        command.env("NGINX", "0;").arg("-p").arg(folder).arg("-e").arg("stderr").arg("-c").arg(&file);
        command.stdin(OwnedFd::from(socket)).stdout(Stdio::null());
        Some(Self { address, child: command.spawn().unwrap() })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its worker along when it is told to stop.
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
