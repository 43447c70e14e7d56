//! `heddle run`: the proxy, until it is told to stop, or another process takes its place.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::Mutex;

use super::descriptors;
use super::policies;
use super::reload::Follower;
use super::signals::Signals;
use crate::app::{App, StartError};
use crate::config::{self, Checked};
use crate::drain::Phase;
use crate::handover::{Inherited, Predecessor, Ready};
use crate::log::{self, Clean};
use crate::supervise;

/// How long a process that takes over may take until it knows the endpoints.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the proxy by a configuration until SIGTERM, Ctrl-C or a command, or until another process takes over. A failure
/// also where it had to cut something off. With `take_over` it takes over itself from the process that takes commands on
/// that Unix socket, or on the configuration's own, if there is one.
pub fn run(path: &Path, take_over: Option<Option<&Path>>) -> ExitCode {
    log::start();
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
    descriptors::raise();
    let socket = take_over.map(|socket| socket.or(checked.config.admin_socket.as_deref()));
    let found = match socket {
        Some(Some(socket)) => Predecessor::ask(socket),
        Some(None) => return failed("nobody can be asked for sockets: expected --take-over SOCKET, or admin_socket"),
        None => Ok(None),
    };
    let (predecessor, inherited) = match found {
        Ok(found) => found.map_or((None, Inherited::default()), |(before, sockets)| (Some(before), sockets)),
        Err(error) => return failed(&format!("no sockets are handed over: {error}")),
    };
    let app = match App::begin(checked.config.clone(), inherited) {
        Ok(app) => app,
        Err(error) => {
            let lines = signals.block_on(async {
                tokio::select! {
                    lines = explained(vec![error], checked) => lines,
                    () = signals.wait() => Vec::new(),
                }
            });
            lines.iter().for_each(|line| eprintln!("{}", Clean(line)));
            return ExitCode::FAILURE;
        }
    };
    if let Some(predecessor) = predecessor
        && let Err(error) = signals.block_on(relieve(&app, predecessor, &signals))
    {
        // Nothing was accepted that would have to be finished.
        app.state.stop.advance(Phase::Finishing);
        app.stop();
        return failed(&error);
    }
    app.open();
    signals.stop(app.state.clone());
    let follower = &Mutex::new(follower);
    signals.block_on(async {
        let app = &app;
        tokio::select! {
            () = app.ended() => {}
            () = supervise::keep("config", move || async move { follower.lock().await.follow(app).await }) => {}
        }
    });
    let finished = app.stop();
    signals.leave();
    if finished {
        return ExitCode::SUCCESS;
    }
    tracing::warn!(target: "heddle", "not everything was finished in time");
    ExitCode::FAILURE
}

fn failed(why: &str) -> ExitCode {
    eprintln!("heddle: {}", Clean(why));
    ExitCode::FAILURE
}

/// Takes the place of another process, once requests can be served here. Whoever stops this process before that stops
/// only this one.
async fn relieve(app: &App, predecessor: Predecessor, signals: &Signals) -> Result<(), String> {
    let goes_on = |why: &str| Err(format!("{why}; the other process goes on"));
    let patience = PATIENCE.min(predecessor.time_left());
    tokio::select! {
        biased;
        () = signals.wait() => return goes_on("told to stop before it has taken over"),
        known = tokio::time::timeout(patience, async {
            app.state.registry.wait_ready().await;
            app.state.wait_policies().await;
        }) => if known.is_err() {
            return goes_on(&format!("endpoints were not known within {} s", patience.as_secs()));
        }
    }
    if signals.has_come().await {
        return goes_on("told to stop before it has taken over");
    }
    if predecessor.time_left().is_zero() {
        return goes_on("the start took too long");
    }
    app.open();
    let addresses = app.listeners.iter().copied().chain(app.admin).collect();
    let ready = Ready { addresses, commands: app.state.admin_socket.is_some() };
    match predecessor.relieve(&ready) {
        Ok(()) => tracing::info!(target: "heddle", "has taken over from another process"),
        // The sockets are this process' too, whatever has become of the other one.
        Err(error) => tracing::error!(target: "heddle", "the other process does not say that it stops: {error}"),
    }
    Ok(())
}

/// What [`explain`] says. It may compile plugins, and no signal waits for that.
pub async fn explained(errors: Vec<StartError>, checked: Checked) -> Vec<String> {
    supervise::blocking(move || explain(&errors, &checked)).await
}

/// What is wrong, one line for each problem. What is wrong with policies and addresses is said with its place in the
/// configuration; of policies, as `heddle check` says it, all of it.
fn explain(errors: &[StartError], checked: &Checked) -> Vec<String> {
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
