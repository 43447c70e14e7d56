//! Runs what a damaged file may do, many times over: mutations of plugins, each compiled in a process of its own.

use std::ffi::OsString;

use crate::setup;
use crate::step::{self, Failure, cargo};

/// `plugins [HOW_MANY]`, by default 10,000.
///
/// # Errors
///
/// When the arguments are others, and when cargo does not start.
pub fn run(args: &[OsString]) -> Result<(), Failure> {
    let usage = || Failure { message: "expected fuzz plugins, or fuzz plugins HOW_MANY".into(), code: 64 };
    let count = match args {
        [what] if what == "plugins" => "10000",
        [what, count] if what == "plugins" => count.to_str().ok_or_else(usage)?,
        _ => return Err(usage()),
    };
    if count.parse::<u32>().is_err() {
        return Err(usage());
    }
    setup::for_build()?;
    let mut test = cargo(&["test", "--locked", "--package", "heddle", "--test", "plugin_compile"]);
    step::become_command("the fuzzer", test.args(["fuzz", "--", "--ignored", "--nocapture"]).env("HEDDLE_FUZZ", count))
}
