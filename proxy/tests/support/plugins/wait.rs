//! Waiting for what must happen.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `holds` does.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        #[allow(clippy::disallowed_methods, reason = "polling")]
        thread::sleep(Duration::from_millis(5));
    }
}
