//! `heddle demo`: three small servers as one service, a proxy before them, and commands to copy. With `--check` it
//! gives the commands itself and looks at what they do.
//!
//! What a person changes are files: the services file, as any registry of the kind `file`, and the folder of plugins.
//! They are in a folder of their own in the system's temporary folder, removed at the end.

mod check;
mod client;
mod lines;
mod servers;
mod stage;

use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::servers::Servers;
use self::stage::{POLICY, Stage};
use super::signals::Signals;
use crate::app::{App, StartError};
use crate::drain;

/// The name of the service.
const SERVICE: &str = "users";

/// The longest that a start may take until the services file has been read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of the demo.
#[derive(Debug, Args)]
pub struct Options {
    /// Let the demo try itself: exit code 0 when every step had its effect, else 1
    #[arg(long)]
    check: bool,
    /// Port of the proxy, 0 for any that is free; 4140 by default, 0 with --check
    #[arg(long)]
    port: Option<u16>,
    /// Port of health, metrics and state, 0 for any that is free; 4191 by default, 0 with --check
    #[arg(long)]
    admin_port: Option<u16>,
}

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Stage(#[from] stage::StageError),
    #[error("{error}{}", hint(.error))]
    Start { error: StartError },
    #[error("the services file was not read within {} s", PATIENCE.as_secs())]
    NotReady,
    #[error("{0}")]
    Check(#[from] check::CheckError),
    #[error("stopping: not everything was finished in time")]
    CutOff,
}

/// What to do about ports that are taken.
fn hint(error: &StartError) -> &'static str {
    match error {
        StartError::Bind(error) if error.source.kind() == io::ErrorKind::AddrInUse => {
            "; choose others with --port and --admin-port, 0 for any that is free"
        }
        _ => "",
    }
}

/// Runs the demo until SIGTERM or Ctrl-C, or checks it.
pub fn run(options: &Options) -> ExitCode {
    match demonstrate(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heddle demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(options: &Options) -> Result<(), DemoError> {
    let signals = Signals::listen()?;
    let usual = |port| if options.check { 0 } else { port };
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let proxy = local(options.port.unwrap_or_else(|| usual(4140)));
    let admin = local(options.admin_port.unwrap_or_else(|| usual(4191)));

    let servers = Servers::start()?;
    let stage = Stage::set(&servers, proxy, admin)?;
    let config = stage.config()?;
    lines::start();
    let app = App::start(config).map_err(|error| DemoError::Start { error })?;
    let result = signals.block_on(async {
        if !drain::until_idle(PATIENCE, || app.state.is_ready()).await {
            return Err(DemoError::NotReady);
        }
        if options.check {
            return Ok(check::run(&app, &stage).await?);
        }
        say(introduction(&app, &servers, &stage));
        signals.wait().await;
        say("Stopping.");
        Ok(())
    });
    let finished = app.stop();
    result?;
    if !finished {
        return Err(DemoError::CutOff);
    }
    if options.check {
        say("ok  stopped, with nothing cut off\nThe demo works.");
    }
    Ok(())
}

/// Prints a line. That nobody reads it any more is no reason to end.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// What runs where, and what to try.
fn introduction(app: &App, servers: &Servers, stage: &Stage) -> String {
    let address = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let (proxy, admin) = (address(app.listeners.first().copied()), address(app.admin));
    let folder = stage.path().display();
    let all: Vec<String> = servers
        .iter()
        .map(|server| format!("  {}    {} (weight {})", server.name, server.address, server.weight))
        .collect();
    let servers = all.join("\n");
    format!(
        "
{servers}
  proxy      {proxy}
  admin      {admin}
  files      {folder}, removed at the end

Copy these into another terminal:

  # A request to the service {SERVICE}, through the proxy
  curl -x {proxy} http://{SERVICE}/hello

  # Who answers 60 requests: as the weights say, 1 : 2 : 3
  for i in $(seq 60); do curl -s -x {proxy} http://{SERVICE}/ | head -n 1; done | sort | uniq -c

  # Drop a plugin in the place of the service's policy, one that knows no weights. Then count again.
  cp {folder}/policies/round-robin.wasm {folder}/plugins/{POLICY}.wasm

  # What is no plugin is refused, and the one before goes on.
  echo nonsense > {folder}/plugins/{POLICY}.wasm

  # Without the file, the built-in policy of that name is back.
  rm {folder}/plugins/{POLICY}.wasm

  # Take users-2 away, and bring it back. Or edit services.toml.
  cp {folder}/without-users-2.toml {folder}/services.toml
  cp {folder}/all-servers.toml {folder}/services.toml

  # What the proxy knows, and what it counts
  curl -s http://{admin}/state
  curl -s http://{admin}/metrics

What happens is told below. Ctrl-C ends it.
"
    )
}
