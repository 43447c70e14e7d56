//! What 10 GiB cost over TCP, in a tunnel and over HTTP, in each direction: throughput, CPU time, and the most memory.
//! And what memory a reader takes that is given them at 10 KB a second, for half a minute; and what chunks cost: 8 KiB at
//! most 1.25 times the CPU time that 32 KiB do, 4 KiB at most 1.6 times. `-- chunks` is that alone.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/chunks.rs"]
mod chunks;
#[path = "../tests/support/process.rs"]
mod process;
#[path = "../tests/support/streams.rs"]
mod streams;

use std::time::Instant;

use chunks::{Endpoint, Shape};
use streams::{Far, Proxy, Way};

const GIB: u64 = 10;

/// Sizes of chunks in KiB, and how often the CPU time of the first one they may take.
const CHUNKS: [(usize, f64); 4] = [(32, 1.0), (16, 1.25), (8, 1.25), (4, 1.6)];

/// In turn, five times; the median of the ratios of each round counts.
fn chunked() {
    let endpoint = Endpoint::start();
    let proxy = chunks::Proxy::start(&endpoint);
    let mut missed = Vec::new();
    for (direction, transfer) in
        [("down", chunks::Proxy::download as fn(&chunks::Proxy, bool, Shape, usize)), ("up", chunks::Proxy::upload)]
    {
        let mut ratios = vec![Vec::new(); CHUNKS.len()];
        for _ in 0..5 {
            let costs = CHUNKS.map(|(kib, _)| {
                let (shape, cpu) = (Shape::Chunks(kib << 10), proxy.heddle.cpu());
                transfer(&proxy, false, shape, shape.blocks(1 << 30));
                (proxy.heddle.cpu() - cpu).as_secs_f64()
            });
            println!("{direction}: {costs:.2?} s of CPU a GiB in chunks of 32, 16, 8 and 4 KiB");
            costs.iter().zip(&mut ratios).for_each(|(cost, ratios)| ratios.push(cost / costs[0]));
        }
        for ((kib, most), mut ratios) in CHUNKS.into_iter().zip(ratios) {
            ratios.sort_unstable_by(f64::total_cmp);
            let ratio = ratios[ratios.len() / 2];
            println!("{direction}: chunks of {kib} KiB cost {ratio:.2} times what those of 32 KiB do");
            if ratio > most {
                missed.push(format!("{direction}, {kib} KiB: {ratio:.2}, and may be {most}"));
            }
        }
    }
    println!("{} KiB at most", proxy.heddle.peak_memory());
    assert!(missed.is_empty(), "{missed:?}");
}

fn main() {
    chunked();
    if std::env::args().any(|arg| arg == "chunks") {
        return;
    }
    for way in [Way::Tcp, Way::Connect, Way::Http] {
        let far = Far::start();
        let proxy = Proxy::start(way, &far);
        for (direction, transfer) in [("up", Proxy::upload as fn(&Proxy, u64) -> u64), ("down", Proxy::download)] {
            let (started, cpu) = (Instant::now(), proxy.heddle.cpu());
            assert_eq!(transfer(&proxy, GIB << 30), GIB << 30);
            let (elapsed, cpu) = (started.elapsed(), proxy.heddle.cpu() - cpu);
            let mib = (GIB << 10) as f64;
            println!(
                "{way:?} {direction}: {GIB} GiB in {:.1} s, {:.0} MiB/s, {:.1} s of CPU, {:.0} us a MiB, {} KiB at most",
                elapsed.as_secs_f64(),
                mib / elapsed.as_secs_f64(),
                cpu.as_secs_f64(),
                cpu.as_secs_f64() * 1e6 / mib,
                proxy.heddle.peak_memory()
            );
        }
    }
    std::thread::scope(|scope| {
        for way in [Way::Tcp, Way::Connect, Way::Http] {
            scope.spawn(move || {
                let far = Far::start();
                let proxy = Proxy::start(way, &far);
                proxy.sip(GIB << 30, 300);
                println!("{way:?}, slowly: {} KiB at most", proxy.heddle.peak_memory());
            });
        }
    });
}
