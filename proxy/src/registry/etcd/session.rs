//! One session with one member: log in, read, follow, until something ends it.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use etcd_client::{Client, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::connect::{ConnectError, connect, describe};
use super::{Store, reading};
use crate::config::checked;
use crate::log::Clean;
use crate::registry::Feed;
use crate::registry::apply::Event;
use crate::registry::layout;

/// What ended a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot connect: {0}")]
    Connect(#[from] ConnectError),
    #[error("cannot read the keys: {}", describe(.0))]
    Read(etcd_client::Error),
    #[error("cannot follow changes: {}", describe(.0))]
    Watch(etcd_client::Error),
    #[error("no answer for {0:?} while {1}")]
    Timeout(Duration, &'static str),
    #[error("changes were compacted before they were told; all keys are read again")]
    Compacted,
    #[error("it ended a watch: {0}")]
    Cancelled(String),
    #[error("it ended the stream of changes")]
    Closed,
    #[error("a key has a name larger than the {0} bytes of an answer that are taken")]
    TooLarge(usize),
    #[error("it speaks of a watch that was not opened (id {0})")]
    UnknownWatch(i64),
    #[error("there is room for keys that were not taken; all keys are read again")]
    Room,
    #[error("no sign of life for {0:?}")]
    Silent(Duration),
    #[error("an answer without a header")]
    NoHeader,
    #[error("the cluster was replaced: its id was {was:x} and is {is:x}")]
    OtherCluster { was: u64, is: u64 },
    #[error("the cluster was restored from an older state: its revision was {was} and is {is}")]
    RevisionFell { was: i64, is: i64 },
}

/// How a session went.
#[derive(Debug)]
pub(super) struct Ended {
    pub error: SessionError,
    /// How long it followed changes; `None`: it did not come to that.
    pub followed: Option<Duration>,
}

/// Runs a session until it ends. `last` is the store that the last session read.
pub(super) async fn run(config: &checked::Etcd, member: &str, feed: &Feed, last: &mut Option<Store>) -> Ended {
    let mut session = Session { config, member, feed, following: None };
    match session.run(last).await {
        Ok(never) => match never {},
        Err(error) => Ended { error, followed: session.following.map(|since| since.elapsed()) },
    }
}

pub(super) struct Session<'a> {
    pub config: &'a checked::Etcd,
    member: &'a str,
    pub feed: &'a Feed,
    following: Option<Instant>,
}

impl Session<'_> {
    async fn run(&mut self, last: &mut Option<Store>) -> Result<Infallible, SessionError> {
        // The time for a connection is part of the first request's.
        let client = self.limited("logging in", async { Ok(connect(self.config, self.member).await?) }).await?;
        let store = reading::read(self, &client).await?;
        if let Some(error) = last.replace(store).and_then(|last| last.differs(store)) {
            tracing::warn!(target: "heddle::registry", "etcd: {}: {error}; all keys were read", self.member);
        }
        let stream = self.watch(&client, store).await?;
        self.follow(stream, store, last).await
    }

    /// Opens the first watch; the others follow, each when the one before has its id.
    async fn watch(&self, client: &Client, store: Store) -> Result<WatchStream, SessionError> {
        let (prefix, options) = watch_request(self.config, 0, store).ok_or(SessionError::Closed)?;
        let mut watcher = client.watch_client().max_decoding_message_size(self.config.largest);
        let opened =
            self.limited("opening the watch", async { Ok(watcher.watch(prefix, Some(options)).await) }).await?;
        opened.map_err(SessionError::Watch)
    }

    async fn follow(
        &mut self,
        stream: WatchStream,
        store: Store,
        last: &mut Option<Store>,
    ) -> Result<Infallible, SessionError> {
        let liveness = self.config.liveness;
        let (mut requests, mut responses) = stream.split();
        let every = (liveness / 3).max(Duration::from_millis(1));
        let mut progress = interval_at(Instant::now() + every, every);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline = Instant::now() + liveness;
        let mut ids = WatchIds::default();
        loop {
            tokio::select! {
                // What has arrived comes before the deadline, however late this task is.
                biased;
                response = responses.message() => {
                    let response = response.map_err(SessionError::Watch)?.ok_or(SessionError::Closed)?;
                    deadline = Instant::now() + liveness;
                    // Before its header, which is an empty one where a watch begins before what was compacted.
                    if response.canceled() {
                        return Err(SessionError::cancelled(&response));
                    }
                    let is = Store::of(response.header())?;
                    if let Some(error) = store.differs(is) {
                        return Err(error);
                    }
                    let known = last.get_or_insert(is);
                    known.revision = known.revision.max(is.revision);
                    self.feed.own().revision.store(known.revision, Relaxed);
                    if response.created() {
                        ids.add(response.watch_id(), self.config.watches.len())?;
                        match watch_request(self.config, ids.0.len(), store) {
                            Some((prefix, options)) => {
                                requests.watch(prefix, Some(options)).await.map_err(SessionError::Watch)?;
                            }
                            None if self.following.is_none() => self.connected(store),
                            None => {}
                        }
                    }
                    self.take(&response, &ids).await?;
                }
                _ = progress.tick() => requests.request_progress().await.map_err(SessionError::Watch)?,
                () = self.feed.reread() => return Err(SessionError::Room),
                () = sleep_until(deadline) => return Err(SessionError::Silent(liveness)),
            }
        }
    }

    fn connected(&mut self, store: Store) {
        self.following = Some(Instant::now());
        let own = self.feed.own();
        own.set_member(Some(Clean(self.member).to_string()));
        own.connected.store(true, Relaxed);
        tracing::info!(target: "heddle::registry", "etcd: {}: following changes from revision {}", self.member, store.revision);
    }

    /// Hands on the events of one response as one change.
    async fn take(&self, response: &WatchResponse, ids: &WatchIds) -> Result<(), SessionError> {
        // What is said of no watch, as progress of all of them is, has no events.
        if response.events().is_empty() {
            return Ok(());
        }
        let id = response.watch_id();
        let part = ids.part(id).ok_or(SessionError::UnknownWatch(id))?;
        let watch = self.config.watches.get(part).ok_or(SessionError::UnknownWatch(id))?;
        let mut events = Vec::with_capacity(response.events().len());
        for event in response.events() {
            // A deletion is told by the version, which it sets to 0; `Event::event_type` would panic on a kind of event
            // that it does not know.
            match event.kv() {
                Some(kv) if kv.version() == 0 => events.push(Event::Delete(kv.key().to_vec())),
                Some(kv) => events.push(reading::put(watch, kv).map_or_else(Event::Delete, Event::Put)),
                None => self.feed.skipped("an event without a key"),
            }
            pause(events.len()).await;
        }
        self.feed.send(part, events).await;
        Ok(())
    }

    pub async fn limited<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        let limit = self.config.request_timeout;
        timeout(limit, request).await.unwrap_or(Err(SessionError::Timeout(limit, what)))
    }
}

impl SessionError {
    fn cancelled(response: &WatchResponse) -> Self {
        match response.compact_revision() {
            0 => Self::Cancelled(response.cancel_reason().to_owned()),
            _ => Self::Compacted,
        }
    }
}

impl Store {
    pub fn of(header: Option<&ResponseHeader>) -> Result<Self, SessionError> {
        let header = header.ok_or(SessionError::NoHeader)?;
        Ok(Self { cluster: header.cluster_id(), revision: header.revision() })
    }

    /// Why what was read of this store says nothing about the store as it `is` now.
    pub fn differs(self, is: Store) -> Option<SessionError> {
        if self.cluster != is.cluster {
            Some(SessionError::OtherCluster { was: self.cluster, is: is.cluster })
        } else if is.revision < self.revision {
            Some(SessionError::RevisionFell { was: self.revision, is: is.revision })
        } else {
            None
        }
    }
}

/// The part of the source that each open watch is of, by the id that the server gave it.
#[derive(Debug, Default)]
struct WatchIds(Vec<i64>);

impl WatchIds {
    /// The next of the watches, which are opened in order, has this id.
    fn add(&mut self, id: i64, watches: usize) -> Result<(), SessionError> {
        if self.0.len() >= watches || self.0.contains(&id) {
            return Err(SessionError::UnknownWatch(id));
        }
        self.0.push(id);
        Ok(())
    }

    fn part(&self, id: i64) -> Option<usize> {
        self.0.iter().position(|known| *known == id)
    }
}

/// What opens the watch of a part, from the revision after the one that was read.
fn watch_request(config: &checked::Etcd, part: usize, store: Store) -> Option<(Vec<u8>, WatchOptions)> {
    let prefix = layout::range_prefix(&config.watches.get(part)?.prefix);
    let options = WatchOptions::new()
        .with_range(prefix_end(&prefix))
        .with_start_revision(store.revision.saturating_add(1))
        .with_progress_notify();
    Some((if prefix.is_empty() { vec![0] } else { prefix }, options))
}

/// Lets others have a turn after every so many entries.
pub(super) async fn pause(entries: usize) {
    const AT_ONCE: usize = 256;
    if entries.is_multiple_of(AT_ONCE) {
        tokio::task::yield_now().await;
    }
}

/// The end of the range of all keys with this prefix, as etcd has it: the prefix with its last byte increased, or
/// `\0` for everything where there is no such byte.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    vec![0]
}

/// A reading at a revision that was compacted in the meantime. gRPC's code for it is that of other errors as well.
pub(super) fn compacted(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message().contains("has been compacted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(prefix_end(b"/s/"), b"/s0");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
        assert_eq!(prefix_end(b""), b"\0");
    }

    /// Issue 10, 14: ids are the server's to give, and each is given once.
    #[test]
    fn watches_are_known_by_the_ids_that_the_server_gave() {
        let mut ids = WatchIds::default();
        assert!(ids.add(7, 2).is_ok());
        assert!(matches!(ids.add(7, 2), Err(SessionError::UnknownWatch(7))));
        assert!(ids.add(0, 2).is_ok());
        assert!(matches!(ids.add(1, 2), Err(SessionError::UnknownWatch(1))));
        assert_eq!((ids.part(7), ids.part(0), ids.part(1), ids.part(-1)), (Some(0), Some(1), None, None));
    }

    #[test]
    fn a_replaced_or_restored_store_is_told() {
        let store = Store { cluster: 1, revision: 10 };
        assert!(store.differs(store).is_none());
        assert!(store.differs(Store { cluster: 1, revision: 11 }).is_none());
        let other = store.differs(Store { cluster: 2, revision: 11 });
        assert!(matches!(other, Some(SessionError::OtherCluster { was: 1, is: 2 })));
        let fell = store.differs(Store { cluster: 1, revision: 9 });
        assert!(matches!(fell, Some(SessionError::RevisionFell { was: 10, is: 9 })));
    }
}
