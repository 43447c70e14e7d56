//! `heddle run`: the proxy, until it is told to stop, or another process takes its place.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use super::policies;
use super::reload::Follower;
use super::signals::Signals;
use crate::app::{App, StartError};
use crate::config::{self, Checked};
use crate::handover::{Inherited, Predecessor};

/// How long a process that takes over may take until it knows the endpoints.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the proxy by a configuration until SIGTERM or Ctrl-C, or until another process takes over. With `take_over` it
/// takes over itself from the process that takes commands on this Unix socket, if there is one.
pub fn run(path: &Path, take_over: Option<&Path>) -> ExitCode {
    start_logging();
    // From here on a signal ends the process in good order, or has it read the configuration anew, however early it comes.
    let prepared = Signals::listen().and_then(|signals| {
        let follower = signals.block_on(async { Follower::new(path) })?;
        Ok((signals, follower))
    });
    let (signals, follower) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return failed(&format!("signals cannot be waited for: {error}")),
    };
    let checked = match config::load(path, &config::environment()) {
        Ok(checked) => checked,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::FAILURE;
        }
    };
    let (predecessor, inherited) = match take_over.map(Predecessor::ask).transpose().map(Option::flatten) {
        Ok(found) => found.map_or((None, Inherited::default()), |(before, sockets)| (Some(before), sockets)),
        Err(error) => return failed(&format!("no sockets are handed over: {error}")),
    };
    let app = match App::begin(checked.config.clone(), inherited) {
        Ok(app) => app,
        Err(error) => {
            explain(&[error], &checked).iter().for_each(|line| eprintln!("{line}"));
            return ExitCode::FAILURE;
        }
    };
    if let Some(predecessor) = predecessor
        && let Err(error) = signals.block_on(relieve(&app, predecessor))
    {
        app.stop();
        return failed(&error);
    }
    app.open();
    signals.block_on(async {
        tokio::select! {
            () = signals.wait() => {}
            () = app.replaced() => tracing::info!(target: "heddle", "another process has taken over"),
            () = follower.follow(&app) => {}
        }
    });
    tracing::info!(target: "heddle", "stopping; what is under way has {} s", app.state.drain().as_secs_f64());
    if !app.stop() {
        tracing::warn!(target: "heddle", "not everything was finished in time");
    }
    ExitCode::SUCCESS
}

fn failed(why: &str) -> ExitCode {
    eprintln!("heddle: {why}");
    ExitCode::FAILURE
}

/// Takes the place of another process, once requests can be served here.
async fn relieve(app: &App, predecessor: Predecessor) -> Result<(), String> {
    if tokio::time::timeout(PATIENCE, app.state.registry.wait_ready()).await.is_err() {
        return Err(format!("endpoints were not known within {} s; the other process goes on", PATIENCE.as_secs()));
    }
    app.open();
    let addresses: Vec<SocketAddr> = app.listeners.iter().copied().chain(app.admin).collect();
    predecessor.relieve(&addresses).map_err(|error| format!("the other process does not stop: {error}"))?;
    tracing::info!(target: "heddle", "has taken over from another process");
    Ok(())
}

/// What is wrong, one line for each problem. What is wrong with policies and addresses is said with its place in the
/// configuration; of policies, as `heddle check` says it, all of it.
pub fn explain(errors: &[StartError], checked: &Checked) -> Vec<String> {
    let is_of_policy = |error: &StartError| matches!(error, StartError::Policy { .. } | StartError::MissingPolicy(..));
    let policies = errors.iter().any(is_of_policy).then(|| policies::check(checked).err()).flatten();
    let mut lines: Vec<String> = policies.iter().flatten().map(ToString::to_string).collect();
    let has_lines = !lines.is_empty();
    for error in errors {
        match error {
            error if is_of_policy(error) && has_lines => {}
            StartError::Bind(error) => match checked.listening.iter().find(|at| at.address == error.address) {
                Some(at) => lines.push(format!("heddle: {error} ({}: {})", at.place, at.key)),
                None => lines.push(format!("heddle: {error}")),
            },
            error => lines.push(format!("heddle: {error}")),
        }
    }
    lines
}

/// Logs to standard error, as `HEDDLE_LOG` says: a level, or `target=level` for some targets, separated by commas. From
/// `info` on by default.
fn start_logging() {
    let wanted = std::env::var("HEDDLE_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    // A second subscriber in one process is the test harness's.
    let layer = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let _ = Registry::default().with(layer).with(filter).try_init();
}
