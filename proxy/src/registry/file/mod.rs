//! A file with services and endpoints, followed as it changes.
//!
//! Changes are noticed in every way that [`crate::watch`] knows, and the file is also read anew once in a while; what
//! counts is its content, by its hash. A change is read again after a moment and taken only when it stands still, since
//! a file that is written in place can be caught half written.
//!
//! The file is taken as a whole or not at all: while it is broken, missing or empty, its last good content stays in
//! force, and the log says where the fault is and what was expected.

mod content;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::apply::{Entry, Event};
use super::{Feed, Source};
use crate::config::checked;
use crate::regular;
use crate::supervise::{self, blocking};
use crate::watch::Changes;
pub(super) use content::entries;
pub use content::{ContentError, Format, parse};

/// How long a file has to stand still before a change is taken.
const SETTLED: Duration = Duration::from_millis(30);

/// Follows a file.
#[derive(Debug)]
pub struct File {
    config: checked::FileSource,
    /// By key, of the last good content.
    orders: HashMap<Vec<u8>, u64>,
}

/// Why the file says nothing new.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("reading this content has panicked; it is set aside until it changes")]
    SetAside,
}

/// The content that was last taken or refused, or why there was none.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Hash([u8; 32]),
    Missing(io::ErrorKind),
}

impl File {
    /// Follows the file that is configured, as the one part of the [`Feed`].
    pub fn new(config: checked::FileSource) -> Self {
        Self { config, orders: HashMap::new() }
    }

    async fn read(&self) -> io::Result<Vec<u8>> {
        let path = self.config.path.clone();
        blocking(move || regular::read(&path, regular::DATA)).await
    }

    /// Reads the file until two readings agree; `None` when it is as `seen`.
    async fn settled(&self, seen: Option<&Seen>) -> Option<(Seen, io::Result<Vec<u8>>)> {
        let mut content = self.read().await;
        let mut is = Seen::of(&content);
        loop {
            if Some(&is) == seen {
                return None;
            }
            sleep(SETTLED).await;
            content = self.read().await;
            let again = Seen::of(&content);
            if again == is {
                return Some((is, content));
            }
            is = again;
        }
    }

    async fn take(&mut self, content: io::Result<Vec<u8>>, feed: &Feed) -> Result<(), FileError> {
        let path = self.config.path.clone();
        let (content, format) = (Arc::new(content?), Format::of(&path));
        let path = path.display();
        let _input = supervise::input(&path, &content).ok_or(FileError::SetAside)?;
        // Off the control thread: a large file takes its time.
        let text = content.clone();
        let mut entries = blocking(move || parse(&text, format)).await?;
        self.number(&mut entries);
        feed.send(0, vec![Event::Reset(entries)]).await;
        Ok(())
    }

    /// Orders entries by when they were first seen, and among those of one reading as they are written. A line that is
    /// put in or taken out thus changes no other endpoint.
    fn number(&mut self, entries: &mut [Entry]) {
        let mut next = self.orders.values().max().map_or(0, |newest| newest.saturating_add(1));
        let mut orders = HashMap::new();
        for entry in entries {
            entry.order = self.orders.get(&entry.key).copied().unwrap_or_else(|| {
                let order = next;
                next = next.saturating_add(1);
                order
            });
            orders.insert(entry.key.clone(), entry.order);
        }
        self.orders = orders;
    }
}

impl Seen {
    fn of(content: &io::Result<Vec<u8>>) -> Self {
        match content {
            Ok(content) => Self::Hash(Sha256::digest(content).into()),
            Err(error) => Self::Missing(error.kind()),
        }
    }
}

impl Source for File {
    async fn run(mut self, feed: Feed) {
        let path = self.config.path.clone();
        let mut changes = Changes::of_files(vec![path.clone()]);
        let mut seen = None;
        loop {
            if let Some((is, content)) = self.settled(seen.as_ref()).await {
                let first = seen.replace(is).is_none();
                feed.own().relists.fetch_add(1, Relaxed);
                let taken = self.take(content, &feed).await;
                feed.own().connected.store(taken.is_ok(), Relaxed);
                if let Err(error) = taken {
                    let stays = if first { "nothing is known from it" } else { "its last good content stays in force" };
                    tracing::warn!(target: "heddle::registry", "{}: {error}; {stays}", path.display());
                }
            }
            tokio::select! {
                () = changes.next(self.config.rescan) => {}
                () = feed.reread() => seen = None,
            }
        }
    }
}
