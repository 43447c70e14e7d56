//! `heddle run`: the proxy, until it is told to stop.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use super::policies;
use super::signals::Signals;
use crate::app::{App, StartError};
use crate::config::{self, Checked};

/// Runs the proxy by a configuration until SIGTERM, Ctrl-C or a command. A failure also where it had to cut something
/// off.
pub fn run(path: &Path) -> ExitCode {
    start_logging();
    let checked = match config::load(path, &config::environment()) {
        Ok(checked) => checked,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::FAILURE;
        }
    };
    // From here on a signal ends the process in good order, however early it comes.
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("heddle: signals cannot be waited for: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut app = match App::start(checked.config.clone()) {
        Ok(app) => app,
        Err(error) => {
            eprintln!("{}", explain(&error, &checked));
            return ExitCode::FAILURE;
        }
    };
    for address in &app.listeners {
        tracing::info!(target: "heddle", "listening on {address}");
    }
    if let Some(address) = app.admin {
        tracing::info!(target: "heddle", "health and metrics on {address}");
    }
    if let Some(path) = &checked.config.admin_socket {
        tracing::info!(target: "heddle", "commands on {}", path.display());
    }
    signals.stop(app.state.stop.clone());
    signals.block_on(app.ended());
    if app.stop() {
        return ExitCode::SUCCESS;
    }
    tracing::warn!(target: "heddle", "not everything was finished in time");
    ExitCode::FAILURE
}

/// Why the proxy did not start. What is wrong with policies is said as `heddle check` says it: with its line, and all of
/// it.
fn explain(error: &StartError, checked: &Checked) -> String {
    let problems = match error {
        StartError::Policy { .. } | StartError::MissingPolicy(..) => policies::check(checked).err(),
        _ => None,
    };
    problems.map_or_else(|| format!("heddle: {error}"), |problems| problems.to_string())
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
