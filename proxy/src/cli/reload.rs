//! Following the configuration file: SIGHUP, and changes of its content, have the proxy go on with what it says then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::run::explain;
use crate::app::App;
use crate::config;
use crate::watch::Changes;

/// How often the file is read anew although nothing announced a change.
const RESCAN: Duration = Duration::from_secs(5);

/// A configuration file, as it was read last.
pub struct Follower {
    path: PathBuf,
    hangup: Signal,
    changes: Changes,
    /// None where it could not be read. A content that was refused is remembered too: it is not tried again.
    seen: Option<Vec<u8>>,
}

impl Follower {
    /// Begins to listen for SIGHUP, which from then on does not end the process. To be called before the file is read
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
        let changes = Changes::of_files(vec![path.to_owned()]);
        Ok(Self { path: path.to_owned(), hangup, changes, seen: fs::read(path).ok() })
    }

    /// Follows the file for ever.
    pub async fn follow(mut self, app: &App) {
        loop {
            tokio::select! {
                Some(()) = self.hangup.recv() => self.seen = fs::read(&self.path).ok(),
                () = self.changes.next(RESCAN) => {
                    let now = fs::read(&self.path).ok();
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

    async fn reload(&self, app: &App) {
        let problems = match config::load(&self.path, &config::environment()) {
            Ok(checked) => match app.reload(checked.config.clone()).await {
                Ok(()) => {
                    tracing::info!(target: "heddle", "goes on with the configuration in {} as it is now", self.path.display());
                    return;
                }
                Err(errors) => explain(&errors, &checked),
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
}
