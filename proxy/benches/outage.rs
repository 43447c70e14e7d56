//! How long endpoints that fail stay in use, and how soon they are back: the real binary with retry, circuit breaking and
//! health checks, before servers that are processes of their own, under 100 requests a second for each.
//!
//! In turn, several times: one of ten answers 500 until it is ejected, and is mended; then all of them are killed, and
//! started again. Requests have a fixed rate and no client waits for another, so an outage takes as many as it would
//! anywhere. Ends badly where a bound does not hold: ejected within a second; back within an interval of the checks and
//! the probes; of a service that is down 503 within milliseconds and at most 1.2 attempts a request and ten more, and
//! the first success within a second after it is back.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/chaos/load.rs"]
#[allow(dead_code, reason = "the test uses the rest")]
mod load;
#[path = "../tests/support/process.rs"]
mod process;
#[path = "../tests/chaos/server.rs"]
#[allow(dead_code, reason = "the test uses the rest")]
mod server;

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use process::{Heddle, command, figure};
use server::{Behaviour, Server};

const SERVERS: usize = 10;
const CLIENTS: u32 = 50;
/// Of each client: 1,000 requests a second in all.
const BETWEEN: Duration = Duration::from_millis(50);
const ROUNDS: usize = 5;
/// How long all of the servers are down.
const DOWN: Duration = Duration::from_secs(3);
/// Between two health checks of an endpoint.
const INTERVAL: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return server::serve();
    }
    let mut servers: Vec<Server> = (0..SERVERS).map(|_| Server::start()).collect();
    let proxy = Proxy::start(&servers);
    let load = Load::start(proxy.address);
    proxy.wait(|proxy| proxy.figure("heddle_endpoints_eligible") == SERVERS as f64);
    let (mut ejected, mut healed) = (Vec::new(), Vec::new());
    for server in servers.iter_mut().take(ROUNDS) {
        let ejections = proxy.figure("heddle_ejections_total");
        server.behave(Behaviour::Errors);
        ejected.push(proxy.wait(|proxy| proxy.figure("heddle_ejections_total") > ejections));
        server.behave(Behaviour::Well);
        healed.push(proxy.wait(|proxy| proxy.figure("heddle_endpoints_ejected") == 0.0));
        sleep(SECOND);
    }
    say("one of ten answers 500: out after", &mut ejected, SECOND);
    say("mended: back in use after", &mut healed, INTERVAL + INTERVAL / 2);
    let mut first_success = Vec::new();
    for _ in 0..ROUNDS {
        let (attempts, began) = (proxy.figure("heddle_failed_attempts_total"), Instant::now());
        servers.iter_mut().for_each(Server::kill);
        sleep(DOWN);
        let attempts = proxy.figure("heddle_failed_attempts_total") - attempts;
        let mut refused = load.between(began, Instant::now());
        refused.retain(|request| request.status == Some(503) || request.status == Some(502));
        let restarting = Instant::now();
        servers.iter_mut().for_each(Server::restart);
        let restarted = Instant::now();
        sleep(2 * SECOND);
        let answered = load.between(restarting, Instant::now());
        let first = answered.iter().filter(|request| request.status == Some(200)).map(|request| request.ended).min();
        first_success.push(first.expect("answers").saturating_duration_since(restarted));
        let mut times: Vec<Duration> = refused.iter().map(|request| request.ended - request.due).collect();
        times.sort_unstable();
        let (middle, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let requests = refused.len();
        println!("all down: {requests} requests refused, p50 {middle:.1?}, p99 {most:.1?}; {attempts} attempts");
        assert!(attempts <= 1.2 * requests as f64 + 10.0, "a storm of retries");
    }
    say("all are back: first success after", &mut first_success, SECOND);
    load.stop();
}

/// Prints what was measured, and ends badly where the median is beyond its bound.
fn say(what: &str, times: &mut [Duration], bound: Duration) {
    times.sort_unstable();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what} {median:.0?}, at most {most:.0?} in {} rounds", times.len());
    assert!(median <= bound, "more than {bound:?}");
}

struct Proxy {
    _process: Heddle,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    fn start(servers: &[Server]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = format!(
            r#"workers = 1
[admin]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[service.users]
retry = {{ plugin = "retry", statuses = [500, 502, 503, 504] }}
breaker = "circuit-breaker"
health_check = {{ type = "http", path = "/health", interval = "{}ms" }}
endpoints = ["#,
            INTERVAL.as_millis()
        );
        servers.iter().for_each(|server| write!(config, "\"{}\", ", server.address).unwrap());
        config.push(']');
        let file = folder.path().join("heddle.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = command(&["run", "--config", file.to_str().unwrap()]);
        command.env("NO_COLOR", "1").env("HEDDLE_LOG", "info,heddle::health=warn");
        let process = Heddle::start(command);
        let (address, admin) = (process.address("listening on "), process.address("health and metrics on "));
        Self { _process: process, address, admin }
    }

    fn figure(&self, name: &str) -> f64 {
        figure(self.admin, name)
    }

    /// How long it takes until this holds.
    fn wait(&self, holds: impl Fn(&Self) -> bool) -> Duration {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < Duration::from_secs(30), "in vain");
            sleep(Duration::from_millis(5));
        }
        started.elapsed()
    }
}

/// A request that has ended.
#[derive(Clone, Copy)]
struct Request {
    due: Instant,
    ended: Instant,
    /// None for a connection that broke.
    status: Option<u16>,
}

struct Load {
    stop: Arc<AtomicBool>,
    ended: Arc<Mutex<Vec<Request>>>,
}

impl Load {
    fn start(proxy: SocketAddr) -> Self {
        let load = Self { stop: Arc::default(), ended: Arc::default() };
        let began = Instant::now();
        for number in 0..CLIENTS {
            let (stop, ended) = (load.stop.clone(), load.ended.clone());
            let first = began + BETWEEN * number / CLIENTS;
            thread::spawn(move || {
                let mut connection = None;
                for due in (0..).map(|count| first + BETWEEN * count).take_while(|_| !stop.load(Relaxed)) {
                    sleep(due.saturating_duration_since(Instant::now()));
                    let status = load::ask(proxy, &mut connection, "/").ok();
                    ended.lock().unwrap().push(Request { due, ended: Instant::now(), status });
                }
            });
        }
        load
    }

    /// Those that were due after one moment and had ended before another.
    fn between(&self, one: Instant, other: Instant) -> Vec<Request> {
        let is_between = |request: &&Request| request.due >= one && request.ended <= other;
        self.ended.lock().unwrap().iter().filter(is_between).copied().collect()
    }

    fn stop(self) {
        self.stop.store(true, Relaxed);
        let statuses = self.ended.lock().unwrap();
        let broken = statuses.iter().filter(|request| request.status.is_none()).count();
        println!("{} requests in all, {broken} connections of clients broken", statuses.len());
    }
}
