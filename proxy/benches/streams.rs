//! What 10 GiB cost over TCP, in a tunnel and over HTTP, in each direction: throughput, CPU time, and the most memory.
//! And what memory a reader takes that is given them at 10 KB a second, for half a minute.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/process.rs"]
mod process;
#[path = "../tests/support/streams.rs"]
mod streams;

use std::time::Instant;

use streams::{Far, Proxy, Way};

const GIB: u64 = 10;

fn main() {
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
