//! What a running proxy is told from outside: SIGHUP, and changes of the configuration file's content, have it go on with
//! what the file says then. SIGUSR2 has it start its successor, from the file that it was itself started from.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::run::explained;
use crate::app::App;
use crate::config;
use crate::regular;
use crate::supervise::{self, blocking};
use crate::watch::Changes;

/// How often the file is read anew although nothing announced a change.
const RESCAN: Duration = Duration::from_secs(5);

/// A configuration file, as it was read last.
pub struct Follower {
    path: PathBuf,
    hangup: Signal,
    upgrade: Signal,
    /// The file that this process was started from; another one may be in its place by now.
    program: PathBuf,
    changes: Changes,
    /// None where it could not be read. A content that was refused is remembered too: it is not tried again.
    seen: Option<Vec<u8>>,
}

impl Follower {
    /// Begins to listen for SIGHUP and SIGUSR2, which from then on do not end the process. To be called before the file is read
    /// for the start: what changes in between is found.
    ///
    /// # Errors
    ///
    /// When the system does not allow it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(path: &Path) -> io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let upgrade = signal(SignalKind::user_defined2())?;
        let program = std::env::current_exe()?;
        let changes = Changes::of_files(vec![path.to_owned()]);
        Ok(Self {
            path: path.to_owned(),
            hangup,
            upgrade,
            program,
            changes,
            seen: regular::read(path, regular::TEXT).ok(),
        })
    }

    /// Follows the file for ever.
    pub async fn follow(&mut self, app: &App) {
        loop {
            tokio::select! {
                Some(()) = self.hangup.recv() => self.seen = self.read().await,
                Some(()) = self.upgrade.recv() => {
                    self.start_successor(app);
                    continue;
                }
                () = self.changes.next(RESCAN) => {
                    let now = self.read().await;
                    // A file that is gone is most likely on its way back; SIGHUP is taken at its word.
                    if now.is_none() || now == self.seen {
                        continue;
                    }
                    self.seen = now;
                }
            }
            self.reload(app).await;
        }
    }

    async fn read(&self) -> Option<Vec<u8>> {
        let path = self.path.clone();
        blocking(move || regular::read(&path, regular::TEXT).ok()).await
    }

    async fn reload(&self, app: &App) {
        let name = self.path.display();
        let Some(_input) = supervise::input(&name, self.seen.as_deref().unwrap_or_default()) else {
            tracing::error!(target: "heddle", "{name}: this content made the proxy panic: it is not tried again");
            return;
        };
        let path = self.path.clone();
        let problems = match blocking(move || config::load(&path, &config::environment())).await {
            Ok(checked) => match app.reload(checked.config.clone()).await {
                Ok(()) => {
                    tracing::info!(target: "heddle", "goes on with the configuration in {name} as it is now");
                    return;
                }
                Err(errors) => explained(errors, checked).await,
            },
            Err(problems) => {
                app.state.reloads.count_refused();
                problems.iter().map(ToString::to_string).collect()
            }
        };
        for problem in problems {
            tracing::error!(target: "heddle", "{problem}");
        }
        tracing::error!(target: "heddle", "goes on with the configuration as it was");
    }

    /// Starts a process that takes over from this one.
    fn start_successor(&self, app: &App) {
        let Some(socket) = &app.state.admin_socket else {
            tracing::error!(target: "heddle", "SIGUSR2: nobody could take over without admin_socket in the configuration");
            return;
        };
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(&self.path).arg("--take-over").arg(socket);
        match command.spawn() {
            Ok(mut successor) => {
                tracing::info!(target: "heddle", "SIGUSR2: process {} is to take over", successor.id());
                // It is waited for, should it end before this one.
                thread::spawn(move || match successor.wait() {
                    Ok(status) => {
                        tracing::warn!(target: "heddle", "the process that was to take over has ended: {status}")
                    }
                    Err(error) => {
                        tracing::error!(target: "heddle", "the process that was to take over is lost: {error}")
                    }
                });
            }
            Err(error) => {
                tracing::error!(target: "heddle", "SIGUSR2: {} cannot be started: {error}", self.program.display());
            }
        }
    }
}
