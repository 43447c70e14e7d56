//! The proxy's side of the contract: the imports in a guest, a stand-in for tests elsewhere.

use std::time::Duration;

#[cfg(target_family = "wasm")]
pub(crate) use crate::bindings::imports::{attention, clock, health, load, log, outcome, request, terms, verdicts};
#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::imports::{attention, clock, health, load, log, outcome, request, terms, verdicts};

/// The time since a fixed moment of the proxy's life, to the microsecond. It never goes back, and stands still during a
/// decision.
#[must_use]
pub fn now() -> Duration {
    Duration::from_micros(clock::now_micros())
}

/// How much a line in the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something is not as it should be.
    Warning,
    /// Something worth knowing has happened.
    Information,
    /// What only the policy's author wants to see.
    Debugging,
}

/// Writes a line to the proxy's log, under the policy's and the service's names. The proxy cuts it at 1,024 bytes and
/// writes at most 10 a second of one policy.
pub fn log(level: Level, message: &str) {
    log::write(level as u32, message);
}
