//! `heddle run`: the proxy, until it is told to stop.

use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::config;

/// Runs the proxy by a configuration until SIGTERM or Ctrl-C.
pub fn run(path: &Path) -> ExitCode {
    start_logging();
    let config = match config::load(path, &config::environment()) {
        Ok(checked) => checked.config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::FAILURE;
        }
    };
    let drain = config.drain;
    let app = match App::start(config) {
        Ok(app) => app,
        Err(error) => {
            eprintln!("heddle: {error}");
            return ExitCode::FAILURE;
        }
    };
    for address in &app.listeners {
        tracing::info!(target: "heddle", "listening on {address}");
    }
    if let Some(address) = app.admin {
        tracing::info!(target: "heddle", "health and metrics on {address}");
    }
    if let Err(error) = wait_for_signal() {
        tracing::error!(target: "heddle", "signals cannot be waited for: {error}");
    }
    tracing::info!(target: "heddle", "stopping; what is under way has {} s", drain.as_secs_f64());
    if !app.stop() {
        tracing::warn!(target: "heddle", "not everything was finished in time");
    }
    ExitCode::SUCCESS
}

/// Logs to standard error, as `HEDDLE_LOG` says (in the form of `RUST_LOG`); from `info` on by default.
pub fn start_logging() {
    let filter = EnvFilter::try_from_env("HEDDLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second subscriber in one process is the test harness's.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Waits for SIGTERM or Ctrl-C.
pub fn wait_for_signal() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
