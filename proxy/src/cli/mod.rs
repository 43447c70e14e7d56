//! The commands.

pub mod check;
mod demo;
mod descriptors;
mod policies;
mod reload;
mod run;
mod signals;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::plugin;

/// What sysexits.h calls a usage error.
const USAGE: u8 = 64;

/// A TCP/HTTP forward proxy whose routing decisions are WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration to run by; the same as `run --config`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what it does: three small servers, the proxy, and commands to copy
    Demo(demo::Options),
    /// Run the proxy until SIGTERM or Ctrl-C; SIGHUP has it read its configuration anew
    Run {
        /// Configuration to run by
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take over every listening socket of the proxy that takes commands on this Unix socket (by default the
        /// configuration's admin_socket), which then stops; a start as any other where there is none
        #[arg(long, value_name = "SOCKET")]
        take_over: Option<Option<PathBuf>>,
    },
    /// Say everything that is wrong with a configuration, or what it says
    Check {
        /// Configuration to check
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Compile the plugin on standard input, for the proxy that started this process
    #[command(hide = true)]
    CompilePlugin,
}

/// Does what the command line says. Exit codes: 0 done, 1 failed, 64 a command line that cannot be understood.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing is left to be done when the terminal cannot be written to.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(Command::CompilePlugin) = arguments.command {
        return plugin::compile::child::main();
    }
    // The executable of this very process, also where another one has taken its place on disk.
    plugin::compile_in_children("/proc/self/exe".into());
    match (arguments.command, arguments.config) {
        (Some(Command::CompilePlugin), _) => ExitCode::from(USAGE),
        (Some(Command::Run { config, take_over }), _) => run::run(&config, take_over.as_ref().map(Option::as_deref)),
        (None, Some(config)) => run::run(&config, None),
        (Some(Command::Check { config }), _) => check::check(&config, policies::check),
        (Some(Command::Demo(options)), _) => demo::run(&options),
        (None, None) => {
            eprintln!(
                "heddle: nothing to do: expected a command such as `demo` or `run --config FILE`; see `heddle --help`"
            );
            ExitCode::from(USAGE)
        }
    }
}
