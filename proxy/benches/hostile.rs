//! What hostile clients cost the others: the time of requests at a fixed rate, alone, beside 2,000 connections that send
//! a byte of a request's head every second, and beside a client that resets each stream as soon as it has opened it.
//!
//! Times count from when a request was due, so that one that had to wait for another is charged for it. The three are
//! measured in turn, several times, and the median of each one's 99th percentiles counts: one that falls into a busy
//! moment of the machine says nothing. Ends badly if the one beside hostile clients is more than twice the one alone.

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

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fs, thread};

use process::{Client, Proxy, serve};

/// Each phase lasts this long, less than it takes for a slow head to be given up.
const PHASE: Duration = Duration::from_secs(8);
const ROUNDS: usize = 5;
const CLIENTS: u32 = 4;
/// Of each client.
const REQUESTS_A_SECOND: u32 = 200;
const SLOW: usize = 2_000;
/// Connections a second of the client that resets streams, and the most streams that it opens on one.
const RESETTING: u32 = 20;
const STREAMS: u32 = 2_000;
/// How often the 99th percentile alone others may make of it.
const MOST: f64 = 2.0;

fn main() {
    let folder = tempfile::TempDir::new().unwrap();
    let config = folder.path().join("heddle.toml");
    let text = format!(
        "workers = 1\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n[service.users]\nendpoints = [\"{}\"]\n",
        serve()
    );
    fs::write(&config, text).unwrap();
    let proxy = Proxy::start(&config);
    let address = proxy.address;
    let mut percentiles: [Vec<Duration>; 3] = Default::default();
    let [alone, slow, resets] = &mut percentiles;
    for _ in 0..ROUNDS {
        alone.push(report("alone", &measure(address)));
        slow.push(report(&format!("beside {SLOW} slow heads"), &beside_slow_heads(address)));
        let (times, streams) = beside_resets(address);
        resets.push(report(&format!("beside {streams} streams that are reset"), &times));
    }
    println!("{} KiB resident at the end", proxy.memory());

    let [alone, slow, resets] = percentiles.map(median);
    let ratios = [("slow heads", slow), ("streams that are reset", resets)];
    let ratios = ratios.map(|(what, time)| (what, time.as_secs_f64() / alone.as_secs_f64()));
    for (what, ratio) in ratios {
        println!("p99 beside {what}: {ratio:.2} times the one alone");
    }
    for (what, ratio) in ratios {
        assert!(ratio <= MOST, "p99 beside {what} is {ratio:.2} times the one alone, and may be {MOST}");
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Each connection sends a byte a second, all of them together a steady trickle.
fn beside_slow_heads(address: SocketAddr) -> Vec<Duration> {
    let slow: Vec<TcpStream> = (0..SLOW).map(|_| TcpStream::connect(address).unwrap()).collect();
    beside(
        |stop| {
            for streams in slow.chunks(SLOW / 100).cycle() {
                if stop.load(Relaxed) {
                    return;
                }
                for mut stream in streams {
                    let _closed_is_fine = stream.write_all(b"G");
                }
                thread::sleep(Duration::from_millis(10));
            }
        },
        address,
    )
}

/// And how many streams were opened in the meantime.
fn beside_resets(address: SocketAddr) -> (Vec<Duration>, u64) {
    let streams = AtomicU64::new(0);
    let times = beside(
        |stop| {
            while !stop.load(Relaxed) {
                let started = Instant::now();
                streams.fetch_add(u64::from(reset_streams(address)), Relaxed);
                thread::sleep((Duration::from_secs(1) / RESETTING).saturating_sub(started.elapsed()));
            }
        },
        address,
    );
    (times, streams.load(Relaxed))
}

/// Of sorted times, the one that so many in a thousand do not exceed.
fn percentile(times: &[Duration], thousandths: usize) -> Duration {
    times[(times.len() * thousandths / 1000).min(times.len() - 1)]
}

/// Prints how long requests took; their 99th percentile.
fn report(what: &str, times: &[Duration]) -> Duration {
    let at = |thousandths| percentile(times, thousandths).as_micros();
    println!("{what}: {} requests, p50 {} us, p99 {} us, p99.9 {} us", times.len(), at(500), at(990), at(999));
    percentile(times, 990)
}

/// The times of requests while somebody else is busy.
fn beside(busy: impl FnOnce(&AtomicBool) + Send, address: SocketAddr) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| busy(&stop));
        let times = measure(address);
        stop.store(true, Relaxed);
        times
    })
}

/// The times of requests at a fixed rate, sorted.
fn measure(address: SocketAddr) -> Vec<Duration> {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            thread::spawn(move || {
                let mut client = Client::new(address);
                let between = Duration::from_secs(1) / REQUESTS_A_SECOND;
                let start = Instant::now() + between * number / CLIENTS;
                let mut times = Vec::new();
                while start.elapsed() < PHASE {
                    let due = start + between * u32::try_from(times.len()).unwrap();
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    client.get("users", "/").unwrap();
                    times.push(due.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    times.sort_unstable();
    times
}

/// Opens streams and resets them until the proxy has had enough; how many.
fn reset_streams(address: SocketAddr) -> u32 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // :method GET, :scheme http, :path / from the static table of HPACK (RFC 7541, appendix A), :authority as a literal.
    let head = b"\x82\x86\x84\x01\x05users";
    for number in 0..STREAMS {
        let id = (number * 2 + 1).to_be_bytes();
        bytes.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 5]);
        bytes.extend(id);
        bytes.extend(head);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(id);
        bytes.extend([0, 0, 0, 8]);
        if bytes.len() > 4096 {
            if stream.write_all(&bytes).is_err() {
                return number;
            }
            bytes.clear();
            let _what_it_says = stream.read(&mut [0; 4096]);
        }
    }
    STREAMS
}
