//! The policies in a simulated fleet: seeds stand for scenarios, and certain things hold in all of them.
//!
//! A seed replays: `cargo xtask simulate --seed 1234` runs one and prints all that happens in it. A thousand are run with
//! the other tests; `cargo xtask simulate --seeds 1000000` runs a million.

#![cfg(test)]

mod checks;
mod journal;
mod machine;
mod plugins;
mod queue;
mod random;
mod request;
mod scenario;
mod watch;
mod world;

use std::env;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Instant;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use plugins::Compiled;
use scenario::Scenario;
use world::{Report, Stage, World};

/// Seeds that are run with the other tests.
const SEEDS: u64 = 1_000;

/// After so many failures no more seeds are begun.
const FAILURES: usize = 5;

static COMPILED: LazyLock<Compiled> = LazyLock::new(|| {
    // A machine that is busy with other tests must not make a policy late.
    let text = "[plugins]\ndecision = \"1s\"\n[[listener]]\naddress = \"127.0.0.1:0\"";
    Compiled::new(&heddle::config::parse(text, "simulation".as_ref(), &[]).unwrap().config)
});

fn runtime() -> LocalRuntime {
    Builder::new_current_thread().build_local(LocalOptions::default()).unwrap()
}

/// Runs one seed.
///
/// # Errors
///
/// What did not hold, what happened before, and how to see it again.
fn run(runtime: &LocalRuntime, seed: u64, aloud: bool) -> Result<Report, String> {
    let scenario = Scenario::of(seed);
    if aloud {
        println!("{scenario:#?}\n{}", scenario.config());
    }
    let stage = Stage::new(&scenario, &COMPILED);
    let mut world = World::new(&stage, &scenario, &COMPILED, aloud);
    let ended = runtime.block_on(async {
        let ended = world.run().await;
        // What is still under way, where something did not hold, is given up where workers can make policies anew.
        world.requests.clear();
        ended
    });
    ended.map_err(|broken| {
        let last = if aloud { String::new() } else { world.journal.last() };
        let at = world.now.as_secs_f64();
        format!("{last}\nseed {seed}, at {at:.6} s: {}\nTo see it: cargo xtask simulate --seed {seed}", broken.0)
    })
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn what_must_hold_does() {
    if let Some(seed) = number("HEDDLE_SEED") {
        let report = run(&runtime(), seed, true).unwrap_or_else(|failure| panic!("{failure}"));
        println!("{report:?}");
        return;
    }
    let seeds = number("HEDDLE_SEEDS").unwrap_or(SEEDS);
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let (requests, attempts) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                let runtime = runtime();
                while failures.lock().unwrap().len() < FAILURES {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    match run(&runtime, seed, false) {
                        Ok(report) => {
                            requests.fetch_add(report.requests, Relaxed);
                            attempts.fetch_add(report.attempts, Relaxed);
                        }
                        Err(failure) => failures.lock().unwrap().push(failure),
                    }
                    if seed % 10_000 == 9_999 {
                        println!("{} seeds", seed + 1);
                    }
                }
            });
        }
    });
    println!("{seeds} seeds, {requests:?} requests, {attempts:?} attempts in {:?}", started.elapsed());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_seed_is_always_the_same_run() {
    let runtime = runtime();
    for seed in 0..20 {
        let hash = || run(&runtime, seed, false).unwrap_or_else(|failure| panic!("{failure}")).hash;
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}
