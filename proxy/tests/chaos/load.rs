//! Clients that ask at a steady rate, whatever happens.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const CLIENTS: u32 = 16;
/// Of each client.
const BETWEEN: Duration = Duration::from_millis(50);

/// A request has to be answered within this time, which is more than the retry policy takes for all attempts together.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// One request in this many is for what no server has: its answer is 404, which the retry policy is asked about.
const MISSING: u32 = 10;

pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub answered: usize,
    /// By what went wrong.
    pub errors: BTreeMap<String, usize>,
    times: Vec<Duration>,
}

impl Seen {
    pub fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    fn percentile(&self, percent: usize) -> Duration {
        self.times
            .get((self.times.len() * percent / 100).min(self.times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, errors, .. } = self;
        let (p50, p99, most) = (self.percentile(50), self.percentile(99), self.percentile(100));
        write!(f, "{answered} requests answered, p50 {p50:.1?}, p99 {p99:.1?}, longest {most:.1?}, errors {errors:?}")
    }
}

impl Load {
    pub fn start(proxy: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let stop = stop.clone();
            thread::spawn(move || run_client(proxy, number, &stop))
        };
        Self { clients: (0..CLIENTS).map(client).collect(), stop }
    }

    pub fn finish(self) -> Seen {
        self.stop.store(true, Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.join().unwrap();
            all.answered += seen.answered;
            all.times.extend(seen.times);
            for (what, count) in seen.errors {
                *all.errors.entry(what).or_default() += count;
            }
        }
        all.times.sort_unstable();
        all
    }
}

fn run_client(proxy: SocketAddr, number: u32, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut connection = None;
    let start = Instant::now() + BETWEEN * number / CLIENTS;
    for count in 0.. {
        thread::sleep((start + BETWEEN * count).saturating_duration_since(Instant::now()));
        if stop.load(Relaxed) {
            break;
        }
        let (path, expected) = if count % MISSING == number % MISSING { ("/missing", 404) } else { ("/", 200) };
        let asked = Instant::now();
        let result = ask(proxy, &mut connection, path);
        let time = asked.elapsed();
        match result {
            Ok(status) if status == expected && time <= DEADLINE => {
                seen.answered += 1;
                seen.times.push(time);
            }
            Ok(status) => *seen.errors.entry(format!("status {status} after {time:.1?}")).or_default() += 1,
            Err(error) => *seen.errors.entry(format!("{error} after {time:.1?}")).or_default() += 1,
        }
    }
    seen
}

/// The status of an answer. A connection that was used before and is closed before the first byte of an answer is one
/// that the other side has given up in the meantime, and the request is sent again (RFC 9112, 9.3.1).
pub fn ask(proxy: SocketAddr, kept: &mut Option<BufReader<TcpStream>>, path: &str) -> io::Result<u16> {
    if let Some(mut connection) = kept.take()
        && let Some(status) = exchange(&mut connection, path).or_else(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(None),
            _ => Err(error),
        })?
    {
        *kept = Some(connection);
        return Ok(status);
    }
    let stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut connection = BufReader::new(stream);
    let status = exchange(&mut connection, path)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    *kept = Some(connection);
    Ok(status)
}

/// None where the connection is closed before the first byte.
fn exchange(connection: &mut BufReader<TcpStream>, path: &str) -> io::Result<Option<u16>> {
    write!(connection.get_mut(), "GET {path} HTTP/1.1\r\nhost: users\r\n\r\n")?;
    let mut first = String::new();
    if connection.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the answer broke"));
        }
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    connection.read_exact(&mut vec![0; length])?;
    first.split(' ').nth(1).and_then(|status| status.parse().ok()).map(Some).ok_or_else(|| io::Error::other(first))
}
