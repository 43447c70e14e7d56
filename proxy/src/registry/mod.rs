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
//! * **What a registry says is input.** Names that clients use for something else, addresses that nobody means, and more
//!   than fits are not taken ([`rules`], [`limits`]); the catalog's work is bounded for each key and done in slices, and
//!   whatever was not taken is shown with its key and a reason.
//! * **Another configuration is no reason either.** A source whose settings changed is begun anew, and what it said
//!   before holds until it has answered; only then goes what is no longer configured.
//!
//! Everything here runs on one runtime (the control runtime), off the workers. All futures are `Send` and spawned with
//! `tokio::spawn`, so that a current-thread and a multi-thread runtime both do.

pub mod address;
pub mod apply;
pub mod etcd;
pub mod file;
mod keeper;
pub mod layout;
pub mod limits;
pub mod rules;
pub mod snapshot;
mod status;

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::checked::{self, SourceRules};
use crate::egress::Egress;
use crate::supervise;
use address::address;
use apply::{Entry, Origin, encode_key};
use etcd::Etcd;
use file::File;
use keeper::{Configured, Described, FIXED, Keeper, Message};
use layout::Endpoint;
use rules::Rules;
use snapshot::Store;
use status::SourceStatus;

pub use keeper::Feed;
pub use status::{Report, Skipped, SourceReport, Status};

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
    /// The addresses at which it may be connected to, by the rules of the source that announces it.
    pub egress: Arc<Egress>,
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
    /// Whether proxy requests, CONNECT and SOCKS for the service's name as a host lead to it, where the name has several
    /// labels and is outside the suffix; `None` where that is as before.
    pub proxied: Option<bool>,
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
    config: checked::Registry,
    file: Option<Following>,
    etcd: Option<Following>,
    messages: mpsc::Sender<Message>,
    keeper: JoinHandle<()>,
    /// The keeper has lost what sources said: they have to say all of it again.
    lost: Arc<Notify>,
}

/// A source that is being followed; it stops when this is dropped.
#[derive(Debug)]
struct Following {
    status: Arc<SourceStatus>,
    task: JoinSet<()>,
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
    let status = Arc::new(Status::new());
    let mut keeper = Keeper::new(status.clone(), state.map(Store::new), config.limits, sink);
    let plan = Plan::new(config, None, None);
    let origins = keeper.start(plan.configured(config));
    let (messages, queue) = mpsc::channel(QUEUE);
    let lost = Arc::new(Notify::new());
    let keeper = tokio::spawn(keeper.run(queue, lost.clone()));
    let mut running = Running { status, config: config.clone(), file: None, etcd: None, messages, keeper, lost };
    running.follow(plan, origins);
    running
}

/// The sources of a configuration, by kind. What follows one already has its status.
struct Plan {
    fixed: Option<Arc<SourceStatus>>,
    file: Option<Arc<SourceStatus>>,
    etcd: Option<Arc<SourceStatus>>,
}

impl Plan {
    fn new(config: &checked::Registry, file: Option<&Following>, etcd: Option<&Following>) -> Self {
        let of = |name, is_there: bool, now: Option<&Following>| {
            is_there.then(|| now.map_or_else(|| SourceStatus::new(name), |now| now.status.clone()))
        };
        Self {
            fixed: of(FIXED, !config.fixed.is_empty(), None),
            file: of("file", config.file.is_some(), file),
            etcd: of("etcd", config.etcd.is_some(), etcd),
        }
    }

    /// As the keeper is told of them. The catalog ranks them in this order.
    fn configured(&self, config: &checked::Registry) -> Configured {
        let watches = config.etcd.iter().flat_map(|etcd| &etcd.watches);
        let parts = [
            (&self.fixed, vec![FIXED.to_owned()], Some(&config.fixed_rules)),
            (&self.file, config.file.iter().map(file_part).collect(), config.file.as_ref().map(|file| &file.rules)),
            (&self.etcd, watches.map(etcd_part).collect(), config.etcd.as_ref().map(|etcd| &etcd.rules)),
        ];
        let described = |(status, parts, rules): (&Option<_>, _, Option<&SourceRules>)| {
            Some(Described { status: Option::clone(status)?, parts, rules: Rules::new(rules?) })
        };
        let fixed = fixed_entries(&config.fixed);
        Configured { sources: parts.into_iter().filter_map(described).collect(), fixed, limits: config.limits }
    }
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
        entries.extend(file::entries(&service.to_ascii_lowercase(), endpoints.map(|endpoint| (endpoint, None))));
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

    /// Goes on with another configuration. A source whose settings are as before goes on as it is; another is begun
    /// anew, and what was known of it holds until it has answered. Endpoints that the configuration itself announces
    /// have changed when this returns.
    pub async fn reload(&mut self, config: &checked::Registry) {
        if config.file != self.config.file {
            stop(self.file.take()).await;
        }
        if config.etcd != self.config.etcd {
            stop(self.etcd.take()).await;
        }
        self.config = config.clone();
        let plan = Plan::new(config, self.file.as_ref(), self.etcd.as_ref());
        let (answer, origins) = oneshot::channel();
        // Without a keeper there is nobody to follow anything for.
        let _ = self.messages.send(Message::Configure(plan.configured(config), answer)).await;
        if let Ok(origins) = origins.await {
            self.follow(plan, origins);
        }
    }

    /// Starts the sources that are not followed yet. `origins` belong to those of the plan, in order.
    fn follow(&mut self, plan: Plan, origins: Vec<Vec<Origin>>) {
        let Plan { fixed, file, etcd } = plan;
        let mut origins = origins.into_iter().skip(usize::from(fixed.is_some()));
        let messages = &self.messages;
        let mut feed =
            |status| Some(Feed { own: Option::clone(&status)?, origins: origins.next()?, messages: messages.clone() });
        let (file, etcd) = (feed(file), feed(etcd));
        if let (None, Some(feed), Some(file)) = (&self.file, file, &self.config.file) {
            let file = file.clone();
            self.file = Some(Following::start(move || File::new(file.clone()), feed, self.lost.clone()));
        }
        if let (None, Some(feed), Some(etcd)) = (&self.etcd, etcd, &self.config.etcd) {
            let etcd = etcd.clone();
            self.etcd = Some(Following::start(move || Etcd::new(etcd.clone()), feed, self.lost.clone()));
        }
    }

    /// Stops the sources and keeps their last answer on disk. Nothing reaches the sink once this has returned.
    pub async fn stop(self) {
        let Self { file, etcd, messages, keeper, .. } = self;
        stop(file).await;
        stop(etcd).await;
        drop(messages);
        if let Err(error) = keeper.await {
            tracing::error!(target: "heddle::registry", %error, "the registry's keeper did not end well");
        }
    }
}

impl Following {
    /// Follows a source, and begins anew with another one of its kind after a panic, or when what it has said is `lost`.
    fn start<S: Source>(source: impl Fn() -> S + Send + 'static, feed: Feed, lost: Arc<Notify>) -> Self {
        let status = feed.own.clone();
        let mut task = JoinSet::new();
        task.spawn(supervise::keep("registry", move || {
            let (run, lost) = (source().run(feed.clone()), lost.clone());
            async move {
                tokio::select! {
                    () = run => {}
                    () = lost.notified() => {}
                }
            }
        }));
        Self { status, task }
    }
}

async fn stop(source: Option<Following>) {
    if let Some(mut source) = source {
        source.task.shutdown().await;
    }
}
