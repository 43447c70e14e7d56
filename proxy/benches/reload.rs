//! The slowest request while one plugin is replaced a hundred times: at most 100 ms.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/plugins/guests.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod guests;
#[path = "../tests/support/plugins/process.rs"]
mod process;
#[path = "../tests/support/plugins/reload.rs"]
mod reload;
#[path = "../tests/support/plugins/wait.rs"]
mod wait;

use std::process::ExitCode;
use std::time::Duration;

/// What must hold.
const BOUND: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let outcome = reload::run();
    println!("{outcome:#?}");
    if outcome.slowest.iter().all(|slowest| *slowest <= BOUND) && outcome.failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("expected no failure, and no request slower than {BOUND:?}");
    ExitCode::FAILURE
}
