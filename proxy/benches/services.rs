//! Resident memory of the proxy with 1,000 services, before and after each of them has been asked for.

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

use std::fmt::Write;
use std::fs;

use process::{Client, Proxy, serve};

const SERVICES: usize = 1_000;

fn main() {
    let folder = tempfile::TempDir::new().unwrap();
    let config = folder.path().join("heddle.toml");
    let (one, two, three) = (serve(), serve(), serve());
    let mut text = "workers = 1\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n".to_owned();
    for number in 0..SERVICES {
        writeln!(text, "[service.s{number}]\nendpoints = [\"{one}\", \"{two}\", \"{three}\"]").unwrap();
    }
    fs::write(&config, text).unwrap();
    let proxy = Proxy::start(&config);
    let idle = proxy.memory();
    let mut client = Client::new(proxy.address);
    client.get("s0", "/").unwrap();
    let first = proxy.memory();
    for number in 1..SERVICES {
        client.get(&format!("s{number}"), "/").unwrap();
    }
    let active = proxy.memory();
    println!("{SERVICES} services, one worker: {idle} KiB idle, {first} KiB with one active, {active} KiB with all");
    println!(
        "{} KiB an active service, one connection to an endpoint counted",
        (active - first) / (SERVICES as u64 - 1)
    );
}
