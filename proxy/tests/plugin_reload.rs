//! Under load a reload loses no request and leaves no memory behind, whatever is loaded.

#![cfg(test)]

#[path = "support/plugins/mod.rs"]
mod support;

use support::reload::{REPLACEMENTS, REQUESTS, run};

#[test]
fn a_hundred_replacements_lose_no_request_and_no_memory() {
    let outcome = run();
    println!("{outcome:#?}");
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert!(outcome.requests >= REQUESTS);
    // One in six is broken; one in six each traps, loops, and allocates.
    assert!(outcome.refusals >= REPLACEMENTS / 6 && outcome.quarantines >= REPLACEMENTS / 6 * 3, "{outcome:#?}");
    let (before, after) = (outcome.before, outcome.after);
    assert!(after <= before + before / 10, "{before} KiB before, {after} KiB after");
}
