//! One session with one member: log in, read, follow, until something ends it.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use etcd_client::{Client, GetOptions, KeyValue, KvClient, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::connect::{ConnectError, connect, describe};
use super::{LARGEST, Store};
use crate::config::checked;
use crate::log::Clean;
use crate::registry::Feed;
use crate::registry::apply::{Content, Entry, Event};
use crate::registry::layout::{self, LayoutError};

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

struct Session<'a> {
    config: &'a checked::Etcd,
    member: &'a str,
    feed: &'a Feed,
    following: Option<Instant>,
}

impl Session<'_> {
    async fn run(&mut self, last: &mut Option<Store>) -> Result<Infallible, SessionError> {
        // The time for a connection is part of the first request's.
        let client = self.limited("logging in", async { Ok(connect(self.config, self.member).await?) }).await?;
        let store = self.read(&client).await?;
        if let Some(error) = last.replace(store).and_then(|last| last.differs(store)) {
            tracing::warn!(target: "heddle::registry", "etcd: {}: {error}; all keys were read", self.member);
        }
        let stream = self.watch(&client, store).await?;
        self.follow(stream, store, last).await
    }

    /// Reads every prefix at the revision of the first answer, and hands it on.
    async fn read(&self, client: &Client) -> Result<Store, SessionError> {
        let mut kv = client.kv_client().max_decoding_message_size(LARGEST);
        let mut store = None;
        for (part, watch) in self.config.watches.iter().enumerate() {
            let mut batch = Batch::new(watch);
            let prefix = layout::range_prefix(&watch.prefix);
            let end = prefix_end(&prefix);
            let mut from = if prefix.is_empty() { vec![0] } else { prefix };
            while let Some(next) = self.page(&mut kv, from, &end, &mut store, &mut batch).await? {
                from = next;
            }
            self.feed.skipped(&batch.skips);
            self.feed.send(part, vec![Event::Reset(batch.entries())]).await;
        }
        let store = store.ok_or(SessionError::NoHeader)?;
        self.feed.own().relists.fetch_add(1, Relaxed);
        self.feed.own().revision.store(store.revision, Relaxed);
        Ok(store)
    }

    /// Reads one page; answers where the next one begins.
    async fn page(
        &self,
        kv: &mut KvClient,
        from: Vec<u8>,
        end: &[u8],
        store: &mut Option<Store>,
        batch: &mut Batch<'_>,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let mut options = GetOptions::new().with_range(end).with_limit(self.config.page.into());
        if let Some(store) = store {
            options = options.with_revision(store.revision);
        }
        let page = self.limited("reading the keys", async { Ok(kv.get(from, Some(options)).await) }).await?;
        let page =
            page.map_err(|error| if compacted(&error) { SessionError::Compacted } else { SessionError::Read(error) })?;
        let is = Store::of(page.header())?;
        if let Some(error) = store.get_or_insert(is).differs(is) {
            return Err(error);
        }
        page.kvs().iter().for_each(|kv| batch.put(kv));
        Ok(page.kvs().last().filter(|_| page.more()).map(|last| [last.key(), &[0]].concat()))
    }

    /// Opens all watches on one stream, from the revision after the one that was read.
    async fn watch(&self, client: &Client, store: Store) -> Result<WatchStream, SessionError> {
        let mut watches = self.config.watches.iter().zip(1..).map(|(watch, id)| {
            let prefix = layout::range_prefix(&watch.prefix);
            let options = WatchOptions::new()
                .with_range(prefix_end(&prefix))
                .with_start_revision(store.revision.saturating_add(1))
                .with_progress_notify()
                .with_watch_id(id);
            (if prefix.is_empty() { vec![0] } else { prefix }, Some(options))
        });
        let (prefix, options) = watches.next().ok_or(SessionError::Closed)?;
        let mut watcher = client.watch_client().max_decoding_message_size(LARGEST);
        let opened = self.limited("opening the watch", async { Ok(watcher.watch(prefix, options).await) }).await?;
        let mut stream = opened.map_err(SessionError::Watch)?;
        for (prefix, options) in watches {
            stream.watch(prefix, options).await.map_err(SessionError::Watch)?;
        }
        Ok(stream)
    }

    async fn follow(
        &mut self,
        stream: WatchStream,
        store: Store,
        last: &mut Option<Store>,
    ) -> Result<Infallible, SessionError> {
        let liveness = self.config.liveness;
        let (mut requests, mut responses) = stream.split();
        let mut progress = interval((liveness / 3).max(Duration::from_millis(1)));
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline = Instant::now() + liveness;
        let mut created = 0;
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
                    created += usize::from(response.created());
                    self.take(&response).await;
                    if created == self.config.watches.len() && self.following.is_none() {
                        self.connected(store);
                    }
                }
                _ = progress.tick() => requests.request_progress().await.map_err(SessionError::Watch)?,
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
    async fn take(&self, response: &WatchResponse) {
        // Ids count from 1; progress comes under -1 and has no events.
        let part = usize::try_from(response.watch_id()).ok().and_then(|id| id.checked_sub(1));
        let Some((part, watch)) = part.and_then(|part| Some((part, self.config.watches.get(part)?))) else { return };
        if response.events().is_empty() {
            return;
        }
        let mut batch = Batch::new(watch);
        // A deletion is told by the version, which it sets to 0; `Event::event_type` would panic on a kind of event
        // that it does not know.
        for kv in response.events().iter().filter_map(|event| event.kv()) {
            if kv.version() == 0 { batch.delete(kv) } else { batch.put(kv) }
        }
        self.feed.skipped(&batch.skips);
        self.feed.send(part, batch.events).await;
    }

    async fn limited<T>(
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
    fn of(header: Option<&ResponseHeader>) -> Result<Self, SessionError> {
        let header = header.ok_or(SessionError::NoHeader)?;
        Ok(Self { cluster: header.cluster_id(), revision: header.revision() })
    }

    /// Why what was read of this store says nothing about the store as it `is` now.
    fn differs(self, is: Store) -> Option<SessionError> {
        if self.cluster != is.cluster {
            Some(SessionError::OtherCluster { was: self.cluster, is: is.cluster })
        } else if is.revision < self.revision {
            Some(SessionError::RevisionFell { was: self.revision, is: is.revision })
        } else {
            None
        }
    }
}

/// Entries of one watch on their way from etcd's form to the catalog's.
struct Batch<'a> {
    watch: &'a checked::EtcdWatch,
    events: Vec<Event>,
    skips: Vec<(Vec<u8>, LayoutError)>,
}

impl<'a> Batch<'a> {
    fn new(watch: &'a checked::EtcdWatch) -> Self {
        Self { watch, events: Vec::new(), skips: Vec::new() }
    }

    fn put(&mut self, kv: &KeyValue) {
        let content = match layout::decode(self.watch.layout, &self.watch.prefix, kv.key(), kv.value()) {
            Ok(Some(announced)) => Content::Announced(announced),
            Ok(None) => return self.delete(kv),
            Err(error) => {
                self.skips.push((kv.key().to_vec(), error));
                Content::Unreadable
            }
        };
        let order = u64::try_from(kv.create_revision()).unwrap_or(0);
        self.events.push(Event::Put(Entry { key: kv.key().to_vec(), order, content }));
    }

    fn delete(&mut self, kv: &KeyValue) {
        self.events.push(Event::Delete(kv.key().to_vec()));
    }

    /// What was put, as the contents of a `Reset`.
    fn entries(self) -> Vec<Entry> {
        let puts = self.events.into_iter().filter_map(|event| match event {
            Event::Put(entry) => Some(entry),
            Event::Delete(_) | Event::Reset(_) => None,
        });
        puts.collect()
    }
}

/// The end of the range of all keys with this prefix, as etcd has it: the prefix with its last byte increased, or
/// `\0` for everything where there is no such byte.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
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
fn compacted(error: &etcd_client::Error) -> bool {
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
