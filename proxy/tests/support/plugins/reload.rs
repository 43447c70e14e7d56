//! One plugin replaced a hundred times while requests go on, through the real binary.

use std::array;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::guests::{guest, instead, on_path};
use super::process::{Client, Proxy, serve};
use super::wait::{DEADLINE, wait_until};

/// Requests in all, while the plugin is replaced.
pub const REQUESTS: usize = 50_000;

/// How often it is replaced.
pub const REPLACEMENTS: usize = 100;

const CLIENTS: usize = 4;

/// Kinds of plugins.
const KINDS: usize = 6;

/// What came of it.
#[derive(Debug)]
#[allow(dead_code, reason = "the test and the benchmark each look at their part")]
pub struct Outcome {
    pub requests: usize,
    /// What the failed ones were answered, and by whom.
    pub failures: Vec<String>,
    /// Resident memory of the process in KiB: with the first plugin under load, after each kind of plugin was there
    /// once, and at the end.
    pub first: u64,
    pub before: u64,
    pub after: u64,
    /// The highest in between.
    pub peak: u64,
    /// The slowest request while each kind of plugin was the last: good, broken, trapping, looping, allocating,
    /// answering nonsense.
    pub slowest: [Duration; KINDS],
    /// What 99 of 100 requests stay below.
    pub p99: Duration,
    /// Lines of the log about generations that were put in quarantine, and files that were refused.
    pub quarantines: usize,
    pub refusals: usize,
}

/// Replaces the plugin as often as that under so many requests. Waits for the memory to come back to 1.1 times of what
/// it was, and gives up after [`DEADLINE`].
pub fn run() -> Outcome {
    let folder = TempDir::new().unwrap();
    let plugins = folder.path().join("plugins");
    fs::create_dir(&plugins).unwrap();
    let endpoints: Vec<String> = (0..3).map(|_| format!("{:?}", serve().to_string())).collect();
    let config = folder.path().join("heddle.toml");
    let text = format!(
        "workers = 2\nplugins = \"plugins\"\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [service.users]\nbalancer = \"round-robin\"\nendpoints = [{}]\n",
        endpoints.join(", ")
    );
    fs::write(&config, text).unwrap();
    let file = plugins.join("round-robin.wasm");
    replace(&file, &variant(0, 0));
    let proxy = Proxy::start(&config);

    let load = Load::default();
    let mut outcome = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| load.client(proxy.address))).collect();
        load.wait_for_more(5_000);
        let first = proxy.memory();
        // Each way to go wrong once, and the good one again: what is needed once is not a leak.
        for number in 1..=KINDS {
            load.wait_for_more(500);
            replace_and_wait(&proxy, &file, number, &load);
        }
        load.wait_for_more(5_000);
        let before = proxy.memory();
        let begun = load.done.load(Relaxed);
        let mut peak = 0;
        for number in KINDS + 1..=KINDS + REPLACEMENTS {
            load.wait_for_more(REQUESTS / REPLACEMENTS);
            replace_and_wait(&proxy, &file, number, &load);
            peak = peak.max(proxy.memory());
        }
        load.wait_for_more(500);
        while load.done.load(Relaxed) < begun + REQUESTS {
            load.wait_for_more(100);
        }
        replace_and_wait(&proxy, &file, KINDS * REPLACEMENTS, &load);
        load.wait_for_more(5_000);
        let start = Instant::now();
        while proxy.memory() > before + before / 10 && start.elapsed() < DEADLINE {
            load.wait_for_more(500);
        }
        let after = proxy.memory();
        load.stop.store(true, Relaxed);
        let mut times: Vec<(Duration, usize)> = Vec::new();
        let mut failures = Vec::new();
        for client in clients {
            let (took, failed) = client.join().unwrap();
            times.extend(took);
            failures.extend(failed);
        }
        times.sort_unstable();
        let requests = times.len();
        Outcome {
            requests,
            failures,
            first,
            before,
            after,
            peak,
            slowest: array::from_fn(|kind| {
                times.iter().rev().find(|(_, of)| *of == kind).map_or(Duration::ZERO, |(time, _)| *time)
            }),
            p99: times[requests * 99 / 100].0,
            quarantines: 0,
            refusals: 0,
        }
    });
    let lines = proxy.stop();
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    (outcome.quarantines, outcome.refusals) = (count("in quarantine"), count("refused: "));
    outcome
}

/// One of the six kinds of plugin, with a content of its own.
fn variant(kind: usize, number: usize) -> Vec<u8> {
    let own = format!("(drop (i32.const {number}))");
    // An allocator's blocks are written to.
    let allocate = "(loop $more
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))
        (memory.fill (i32.mul (i32.sub (memory.size) (i32.const 16)) (i32.const 65536)) (i32.const 1) (i32.const 1048576))
        (br $more))";
    let does = match kind {
        2 => instead::TRAP,
        3 => instead::LOOP,
        4 => allocate,
        5 => instead::NONSENSE,
        _ => "",
    };
    let mut content = guest(&[("pick", &on_path('g', does)), ("configure", &own)]);
    if kind == 1 {
        content.truncate(content.len() - 100 - number % 100);
    }
    content
}

/// Puts a content in the place of a file in one step.
fn replace(file: &Path, content: &[u8]) {
    let part = file.with_extension("part");
    fs::write(&part, content).unwrap();
    fs::rename(part, file).unwrap();
}

/// Requests that go on until they are told to stop.
#[derive(Default)]
struct Load {
    done: AtomicUsize,
    stop: AtomicBool,
    /// Of the plugin that was put in place last.
    kind: AtomicUsize,
}

impl Load {
    fn wait_for_more(&self, requests: usize) {
        let until = self.done.load(Relaxed) + requests;
        wait_until("requests are answered", || self.done.load(Relaxed) >= until);
    }

    /// Sends one request after the other; how long each took, and what went wrong.
    fn client(&self, address: SocketAddr) -> (Vec<(Duration, usize)>, Vec<String>) {
        let (mut times, mut failures) = (Vec::new(), Vec::new());
        let mut client = Client::new(address);
        while !self.stop.load(Relaxed) {
            let start = Instant::now();
            failures.extend(client.get("users", "/go").err());
            times.push((start.elapsed(), self.kind.load(Relaxed)));
            self.done.fetch_add(1, Relaxed);
        }
        (times, failures)
    }
}

/// Puts the plugin of this number in the file's place, and waits until it has come into force or was refused, and for
/// those that are at fault until they are out of force again.
fn replace_and_wait(proxy: &Proxy, file: &Path, number: usize, load: &Load) {
    let kind = number % KINDS;
    load.kind.store(kind, Relaxed);
    replace(file, &variant(kind, number));
    proxy.wait_for_lines(match kind {
        1 => &["refused: "],
        2..=4 => &["loaded from", "in quarantine"],
        _ => &["loaded from"],
    });
    load.wait_for_more(CLIENTS);
}
