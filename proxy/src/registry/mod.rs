//! Where endpoints are announced, and how announcements become changes of services.
//!
//! # Why it is shaped like this
//!
//! A [`Source`] knows one kind of registry and nothing about services: it turns what it reads into [`apply::Event`]s
//! and hands them on through a [`Feed`]. One task, the keeper, takes the events of all sources, runs them through the
//! pure [`apply::Catalog`] and gives the [`Change`]s to one sink. etcd, a file and the configuration's own endpoints
//! thus go through the same door, in one order, and whatever the catalog guarantees holds for all of them:
//!
//! * **Only a registry's own word takes an endpoint away.** A source that cannot reach its registry, cannot read a
//!   file or cannot decode a value says nothing, and what was known stays. There is no event for "failed", so no
//!   failure can publish an empty list.
//! * **Every answer is complete or a step from a complete one.** A source begins, and begins again after each
//!   interruption, with a `Reset`: everything it holds at one moment. The catalog finds the difference, so that a
//!   reconnect to an unchanged registry changes nothing, and nothing missed in between stays missed.
//! * **One change costs one change.** Work for an event depends on the endpoints that it names, not on how many
//!   services there are.
//! * **A restart is no reason to know less.** With a state folder the last answer is kept on disk ([`snapshot`]) and is
//!   in force before any source has answered. It enters as a `Reset`, and the source's first `Reset` corrects it.
//!
//! Everything here runs on one runtime (the control runtime), off the workers. All futures are `Send` and spawned with
//! `tokio::spawn`, so that a current-thread and a multi-thread runtime both do.

pub mod address;
pub mod apply;
pub mod etcd;
pub mod file;
mod keeper;
pub mod layout;
pub mod snapshot;
mod status;

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::config::checked;
use address::address;
use apply::{Catalog, Entry, encode_key};
use etcd::Etcd;
use file::File;
use keeper::{Keeper, Part};
use layout::Endpoint;
use snapshot::Store;

pub use keeper::Feed;
pub use status::{Report, SourceReport, Status};

/// Updates that wait for the keeper before sources have to; each is a response's worth.
const QUEUE: usize = 64;

/// One endpoint as its registration announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Stable across updates and restarts: the key, percent-encoded, then `#`, then the address.
    pub id: String,
    /// `host:port`, an IPv6 host in brackets.
    pub address: String,
    /// 0: registered, but out of use.
    pub weight: u32,
    /// The registry's order of creation: smaller is older.
    pub order: u64,
    pub metadata: Vec<(String, String)>,
}

impl Registered {
    /// Whether it is not to be picked although it is registered: its metadata has `paused` with the value `true`.
    pub fn is_paused(&self) -> bool {
        self.metadata.iter().any(|(name, value)| name == PAUSED && value == "true")
    }
}

/// The name in an endpoint's metadata, and of a service's mark, that pauses.
pub const PAUSED: &str = "paused";

/// How the endpoints of one service changed. An endpoint whose registration changed is in both lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub service: String,
    /// Ids.
    pub removed: Vec<String>,
    pub added: Vec<Registered>,
    /// Whether the service as a whole is paused now, where that has changed.
    pub paused: Option<bool>,
}

/// A kind of registry.
pub trait Source: Send + 'static {
    /// Follows the registry for as long as the future is polled, and tells `feed` what it holds. Failures are the
    /// source's own to log and to recover from; dropping the future is how it is stopped.
    fn run(self, feed: Feed) -> impl Future<Output = ()> + Send;
}

/// The sources at work. Dropped, they stop at once; [`Running::stop`] also waits for the last snapshot.
#[derive(Debug)]
pub struct Running {
    status: Arc<Status>,
    sources: JoinSet<()>,
    keeper: JoinHandle<()>,
}

/// Starts every source of `config` on the current tokio runtime.
///
/// `sink` is given every change of every service, in order, on that runtime; it must not block. Endpoints written in
/// the configuration and the snapshot found in the folder `state` reach it before this returns. Names of services are
/// in lower case, as hosts are compared.
///
/// # Panics
///
/// Outside a tokio runtime with time and I/O enabled.
pub fn run<S>(config: &checked::Registry, state: Option<&Path>, sink: S) -> Running
where
    S: FnMut(Vec<Change>) + Send + 'static,
{
    let mut names = Vec::new();
    let mut parts = Vec::new();
    let mut source = |name: &'static str, keep: Vec<Option<String>>| {
        let (source, first) = (names.len(), parts.len());
        names.push(name);
        parts.extend(keep.into_iter().map(|name| Part { source, name, answered: false, restored: false }));
        (source, first)
    };
    let fixed = (!config.fixed.is_empty()).then(|| source("fixed", vec![None]));
    let file = config.file.as_ref().map(|file| (source("file", vec![Some(file_part(file))]), File::new(file.clone())));
    let etcd = config.etcd.as_ref().map(|etcd| {
        let keep = etcd.watches.iter().map(|watch| Some(etcd_part(watch))).collect();
        (source("etcd", keep), Etcd::new(etcd.clone()))
    });

    let status = Arc::new(Status::new(&names));
    let store = state.map(Store::new);
    let mut keeper = Keeper { status: status.clone(), parts, sink, store, catalog: Catalog::default() };
    if let Some((_, origin)) = fixed {
        keeper.answer(origin, fixed_entries(&config.fixed));
    }
    keeper.restore();

    let (updates, queue) = mpsc::channel(QUEUE);
    let feed = |(source, first)| Feed { status: status.clone(), source, first, updates: updates.clone() };
    let mut sources = JoinSet::new();
    if let Some((at, file)) = file {
        sources.spawn(file.run(feed(at)));
    }
    if let Some((at, etcd)) = etcd {
        sources.spawn(etcd.run(feed(at)));
    }
    drop(updates);
    Running { status, sources, keeper: tokio::spawn(keeper.run(queue)) }
}

/// By these the snapshot on disk tells the parts of the sources apart.
fn file_part(file: &checked::FileSource) -> String {
    format!("file {}", file.path.display())
}

fn etcd_part(watch: &checked::EtcdWatch) -> String {
    format!("etcd {} {}", layout::name(watch.layout), encode_key(&layout::range_prefix(&watch.prefix)))
}

fn fixed_entries(services: &HashMap<Arc<str>, Vec<checked::FixedEndpoint>>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (service, endpoints) in services {
        let endpoints = endpoints.iter().map(|fixed| Endpoint {
            // A checked address is one; were it not, it would stand here as it was written.
            address: address(&fixed.address).unwrap_or_else(|_| fixed.address.clone()),
            weight: fixed.weight,
            metadata: fixed.metadata.clone(),
        });
        entries.extend(file::entries(&service.to_ascii_lowercase(), endpoints));
    }
    entries
}

impl Running {
    /// What the sources are doing; to be read from any thread.
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// Until every source has answered once or was restored from the snapshot.
    pub async fn ready(&self) {
        self.status.wait_ready().await;
    }

    /// Stops the sources and keeps their last answer on disk. Nothing reaches the sink once this has returned.
    pub async fn stop(mut self) {
        self.sources.shutdown().await;
        if let Err(error) = self.keeper.await {
            tracing::error!(target: "heddle::registry", %error, "the registry's keeper did not end well");
        }
    }
}
