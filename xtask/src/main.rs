//! Set-up and checks: `cargo xtask demo`, `cargo xtask test`, `cargo xtask simulate`, `cargo xtask fuzz`,
//! `cargo xtask plugin`, `cargo xtask licences`.

mod checks;
mod fuzz;
mod licences;
mod plugin;
mod setup;
mod simulate;
mod step;
#[path = "../../proxy/build/toolchain.rs"]
mod toolchain;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use step::{Failure, cargo};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [ARGS]          set up what is missing, then run `heddle demo ARGS`
  test [ARGS]          set up what is missing, also for the tests, then check everything as CI does;
                       with ARGS only the tests of proxy and xtask, given ARGS as `cargo test` is
  simulate --seed N    replay one seed of the simulated fleet, printing all that happens
  simulate --seeds N   run so many seeds, as fast as can be: 1000000 take some hours
  fuzz plugins [N]     compile so many mutations of plugins (10000) and see that each is loaded or refused
  plugin FOLDER INTO   set up what is missing, then compile the plugin in FOLDER to INTO/<name of its package>.wasm
  licences FILE        write the licences of all that is linked into heddle to FILE

In need of packages, these call apt-get as root or through sudo.";

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    let result = match (command.to_str(), rest.as_slice()) {
        (Some("demo"), args) => demo(args),
        (Some("test"), args) => checks::run_all(args),
        (Some("simulate"), args) => simulate::run(args),
        (Some("licences"), [file]) => licences::write(file.as_ref()),
        (Some("fuzz"), args) => fuzz::run(args),
        (Some("plugin"), [folder, into]) => plugin::run(folder.as_ref(), into.as_ref()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn demo(args: &[OsString]) -> Result<(), Failure> {
    setup::for_build()?;
    step::become_command("the demo", cargo(&["run", "--locked", "--package", "heddle", "--", "demo"]).args(args))
}
