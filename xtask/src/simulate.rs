//! Runs the simulation of the policies (`proxy/tests/simulation`): one seed with all that happens, or many.

use std::ffi::OsString;

use crate::setup;
use crate::step::{self, Failure, cargo};

/// `--seed N` or `--seeds N`.
///
/// # Errors
///
/// When the arguments are others, and when cargo does not start.
pub fn run(args: &[OsString]) -> Result<(), Failure> {
    let usage =
        || Failure { message: "expected simulate --seed NUMBER, or simulate --seeds HOW_MANY".into(), code: 64 };
    let [option, number] = args else { return Err(usage()) };
    let is_number = number.to_str().is_some_and(|number| number.parse::<u64>().is_ok());
    let (variable, profile) = match option.to_str() {
        Some("--seed") if is_number => ("HEDDLE_SEED", "dev"),
        // Building that takes minutes, which a million seeds are worth.
        Some("--seeds") if is_number => ("HEDDLE_SEEDS", "release"),
        _ => return Err(usage()),
    };
    setup::for_build()?;
    let mut test = cargo(&["test", "--locked", "--package", "heddle", "--test", "simulation", "--profile", profile]);
    step::become_command(
        "the simulation",
        test.args(["what_must_hold_does", "--", "--nocapture"]).env(variable, number),
    )
}
