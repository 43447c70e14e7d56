//! The one task that all sources report to: it owns the catalog, feeds the sink, says who joined and who left, and
//! keeps the last answer on disk.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Change;
use super::apply::{Catalog, Entry, Event, Origin, encode_key};
use super::snapshot::Store;
use super::status::{SourceStatus, Status};
use crate::supervise;

/// The source that is the configuration itself.
pub(super) const FIXED: &str = "fixed";

/// Changes within this time are written to disk as one.
const COALESCE: Duration = Duration::from_secs(1);

/// Beyond this many endpoints of a service that join, leave or change at once, they are counted, not listed.
const LISTED: usize = 16;

/// Beyond this many unreadable entries at once, they are counted, not listed.
const SKIPS_LISTED: usize = 10;

/// What a source holds of the registry: it reports events and how it is getting on.
#[derive(Debug, Clone)]
pub struct Feed {
    pub(super) own: Arc<SourceStatus>,
    /// The catalog's numbers of the source's parts, in order.
    pub(super) origins: Vec<Origin>,
    pub(super) messages: mpsc::Sender<Message>,
}

/// What the keeper is told.
#[derive(Debug)]
pub(super) enum Message {
    Update(Update),
    /// These are the sources from now on; the answer is the catalog's numbers of the parts of each.
    Configure(Configured, oneshot::Sender<Vec<Vec<Origin>>>),
}

/// Events of one origin, applied as one.
#[derive(Debug)]
pub(super) struct Update {
    origin: Origin,
    events: Vec<Event>,
}

/// The sources of a configuration.
#[derive(Debug)]
pub(super) struct Configured {
    pub sources: Vec<Described>,
    /// What the configuration itself announces; the first source is the one that does, if there is anything.
    pub fixed: Vec<Entry>,
}

/// One source and the names of its parts, by which the snapshot on disk tells them apart.
#[derive(Debug)]
pub(super) struct Described {
    pub status: Arc<SourceStatus>,
    pub parts: Vec<String>,
}

impl Feed {
    /// Hands on what happened at the `part`-th part of the source (an etcd watch, by its place in the configuration;
    /// else 0), as one change. Waits while the keeper is behind.
    pub async fn send(&self, part: usize, events: Vec<Event>) {
        self.own().touch();
        let Some(&origin) = self.origins.get(part) else { return };
        // Without a keeper the registry is being stopped, and nobody wants to know any more.
        let _ = self.messages.send(Message::Update(Update { origin, events })).await;
    }

    /// Counts and logs entries that could not be understood: their keys and why.
    pub fn skipped<E: std::fmt::Display>(&self, skips: &[(Vec<u8>, E)]) {
        let own = self.own();
        own.skipped.fetch_add(skips.len() as u64, Relaxed);
        for (key, error) in skips.iter().take(SKIPS_LISTED) {
            tracing::warn!(target: "heddle::registry", "{}: {}: skipped: {error}", own.name, encode_key(key));
        }
        let more = skips.len().saturating_sub(SKIPS_LISTED);
        if more > 0 {
            tracing::warn!(target: "heddle::registry", "{}: {more} more entries skipped", own.name);
        }
    }

    pub(super) fn own(&self) -> &SourceStatus {
        &self.own
    }
}

/// A part of the catalog that belongs to one source.
#[derive(Debug)]
struct Part {
    source: Arc<SourceStatus>,
    name: String,
    answered: bool,
    /// Something older stands in for the first answer: the snapshot on disk, or what the source said that was here
    /// before the configuration changed.
    restored: bool,
    /// No longer configured: it goes once all that its source announces instead is known.
    leaving: bool,
}

#[derive(Debug)]
pub(super) struct Keeper<S> {
    status: Arc<Status>,
    /// By the catalog's number; none where it is free.
    parts: Vec<Option<Part>>,
    sink: S,
    store: Option<Store>,
    catalog: Catalog,
}

impl<S: FnMut(Vec<Change>) + Send + 'static> Keeper<S> {
    pub fn new(status: Arc<Status>, store: Option<Store>, sink: S) -> Self {
        Self { status, parts: Vec::new(), sink, store, catalog: Catalog::default() }
    }

    /// Follows these sources from now on; the catalog's numbers of the parts of each. A part that was there before, by
    /// its name, keeps what is known of it until its source says more. One that is not there any more keeps it until
    /// what its source announces instead is known, so that no service is without endpoints in between.
    pub fn configure(&mut self, configured: Configured) -> Vec<Vec<Origin>> {
        let Configured { sources, fixed } = configured;
        self.parts.iter_mut().flatten().for_each(|part| part.leaving = true);
        let of = |keeper: &mut Self, source: &Described| {
            source.parts.iter().map(|name| keeper.origin(name, &source.status)).collect()
        };
        let origins: Vec<Vec<Origin>> = sources.iter().map(|source| of(self, source)).collect();
        let first = sources.iter().zip(&origins).find(|(source, _)| source.status.name == FIXED);
        let origin = first.and_then(|(_, origins)| origins.first().copied());
        self.status.sources.store(Arc::new(sources.into_iter().map(|source| source.status).collect()));
        if let Some(origin) = origin {
            self.apply(Update { origin, events: vec![Event::Reset(fixed)] });
        }
        self.check_answers();
        origins
    }

    fn origin(&mut self, name: &str, source: &Arc<SourceStatus>) -> Origin {
        let known = self
            .parts
            .iter_mut()
            .enumerate()
            .find_map(|(origin, part)| Some((origin, part.as_mut()?)).filter(|(_, part)| part.name == name));
        if let Some((origin, part)) = known {
            part.leaving = false;
            if !Arc::ptr_eq(&part.source, source) {
                part.source = source.clone();
                part.restored |= std::mem::take(&mut part.answered);
            }
            return origin;
        }
        let source = source.clone();
        let part = Some(Part { source, name: name.to_owned(), answered: false, restored: false, leaving: false });
        match self.parts.iter_mut().enumerate().find(|(_, part)| part.is_none()) {
            Some((origin, free)) => {
                *free = part;
                origin
            }
            None => {
                self.parts.push(part);
                self.parts.len() - 1
            }
        }
    }

    /// Puts the snapshot's contents in force, for those parts that are still configured.
    pub fn restore(&mut self) {
        let Some(store) = &self.store else { return };
        let mut kept = store.load();
        let mut found = Vec::new();
        for (origin, part) in self.parts.iter_mut().enumerate() {
            let Some(part) = part.as_mut().filter(|part| part.source.name != FIXED) else { continue };
            let Some(entries) = kept.remove(&part.name) else { continue };
            part.restored = true;
            found.push((origin, entries));
        }
        for (origin, entries) in found {
            self.take(origin, vec![Event::Reset(entries)]);
        }
        self.check_answers();
    }

    /// Until every [`Feed`] is gone, and who configures it. A message whose handling panics is lost; what is known
    /// stays, and sources are asked by `lost` to say again all that they hold.
    pub async fn run(self, messages: mpsc::Receiver<Message>, lost: Arc<Notify>) {
        let both = &Mutex::new((self, messages));
        let mut is_first = true;
        supervise::finish("registry-keeper", || {
            if !std::mem::replace(&mut is_first, false) {
                lost.notify_waiters();
            }
            async move {
                let (keeper, messages) = &mut *both.lock().await;
                keeper.follow(messages).await;
            }
        })
        .await;
    }

    async fn follow(&mut self, messages: &mut mpsc::Receiver<Message>) {
        let mut written = self.catalog.edits();
        let mut due: Option<Instant> = None;
        let mut writing: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                message = messages.recv() => {
                    let news = match message {
                        Some(Message::Update(update)) => self.apply(update),
                        Some(Message::Configure(configured, answer)) => {
                            // Who does not wait for the answer is being stopped.
                            let _ = answer.send(self.configure(configured));
                            false
                        }
                        None => break,
                    };
                    if self.store.is_some() && (news || self.catalog.edits() != written) {
                        due.get_or_insert_with(|| Instant::now() + COALESCE);
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if writing.as_ref().is_some_and(|task| !task.is_finished()) {
                        due = Some(Instant::now() + COALESCE);
                    } else {
                        due = None;
                        written = self.catalog.edits();
                        writing = self.write();
                    }
                }
            }
        }
        // One after the other, so that the older content cannot come to lie over the newer. Writing logs its own
        // failures; what remains is a panic, which has been reported.
        if let Some(task) = writing {
            let _ = task.await;
        }
        if let Some(task) = due.and_then(|_| self.write()) {
            let _ = task.await;
        }
    }

    /// Whether this was the origin's first answer.
    fn apply(&mut self, update: Update) -> bool {
        let answers = update.events.iter().any(|event| matches!(event, Event::Reset(_)));
        self.take(update.origin, update.events);
        let Some(Some(part)) = self.parts.get_mut(update.origin) else { return false };
        let first = answers && !part.answered;
        if first {
            part.answered = true;
            self.check_answers();
        }
        first
    }

    fn take(&mut self, origin: Origin, events: Vec<Event>) {
        let changes = self.catalog.apply(origin, events);
        self.status.services.store(self.catalog.services() as u64, Relaxed);
        self.status.endpoints.store(self.catalog.endpoints() as u64, Relaxed);
        if !changes.is_empty() {
            for line in changes.iter().flat_map(lines) {
                tracing::info!(target: "heddle::registry", "{line}");
            }
            (self.sink)(changes);
        }
    }

    /// Says who has answered, and lets parts go that are not needed any more.
    fn check_answers(&mut self) {
        let mut ready = true;
        let parts: Vec<&Part> = self.parts.iter().flatten().filter(|part| !part.leaving).collect();
        for source in self.status.sources.load().iter() {
            let parts = || parts.iter().filter(|part| Arc::ptr_eq(&part.source, source));
            source.answered.store(parts().all(|part| part.answered), Relaxed);
            source.restored.store(parts().any(|part| part.restored), Relaxed);
            ready &= parts().all(|part| part.answered || part.restored);
        }
        if ready {
            self.status.ready.send_replace(true);
        }
        // By the kind of source: what took its place is another one of the same kind.
        let replaced =
            |left: &Part| parts.iter().filter(|part| part.source.name == left.source.name).all(|part| part.answered);
        let all = self.parts.iter().enumerate();
        let gone: Vec<Origin> = all
            .filter_map(|(origin, part)| part.as_ref().filter(|part| part.leaving && replaced(part)).map(|_| origin))
            .collect();
        for origin in gone {
            if let Some(part) = self.parts.get_mut(origin) {
                *part = None;
            }
            self.take(origin, vec![Event::Reset(Vec::new())]);
        }
    }

    /// The write, under way.
    fn write(&self) -> Option<JoinHandle<()>> {
        let store = self.store.clone()?;
        let parts = self.parts.iter().enumerate().filter_map(|(origin, part)| Some((origin, part.as_ref()?)));
        // What the configuration announces is not worth keeping: it is there itself.
        let known = parts.filter(|(_, part)| (part.answered || part.restored) && part.source.name != FIXED);
        let content = Store::encode(known.map(|(origin, part)| (part.name.as_str(), self.catalog.entries(origin))));
        // Not one of the runtime's threads, of which there are few: the folder can be on a mount that hangs.
        Some(tokio::spawn(supervise::blocking(move || store.save(content))))
    }
}

/// What has become of a service.
fn lines(change: &Change) -> Vec<String> {
    let pause =
        change.paused.map(|paused| format!("{}: {}", change.service, if paused { "paused" } else { "resumed" }));
    pause.into_iter().chain(lines_of_endpoints(change)).collect()
}

/// One line for each endpoint that left, joined or changed, or one for all of them when they are many.
fn lines_of_endpoints(change: &Change) -> Vec<String> {
    let service = &change.service;
    // An id ends with `#` and the address; neither a key as encoded nor an address has a `#`.
    let address = |id: &str| id.rsplit('#').next().unwrap_or_default().to_owned();
    let removed: HashSet<String> = change.removed.iter().map(|id| address(id)).collect();
    let added: HashSet<&str> = change.added.iter().map(|added| added.address.as_str()).collect();
    let left = || change.removed.iter().map(|id| address(id)).filter(|address| !added.contains(address.as_str()));
    if removed.len().max(added.len()) > LISTED {
        let (left, changed) =
            (left().count(), removed.iter().filter(|address| added.contains(address.as_str())).count());
        let joined = added.len() - changed;
        return vec![format!("{service}: {joined} endpoints joined, {left} left, {changed} changed")];
    }
    let left = left().map(|address| format!("{service}: {address} left"));
    let added = change.added.iter().map(|added| {
        let what = if removed.contains(&added.address) { "changed" } else { "joined" };
        let paused = if added.is_paused() { ", paused" } else { "" };
        format!("{service}: {} {what} (weight {}{paused})", added.address, added.weight)
    });
    left.chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registered;

    fn change(removed: &[usize], added: &[usize]) -> Change {
        let registered = |host: &usize| Registered {
            id: format!("/s/users/{host}#h{host}:80"),
            address: format!("h{host}:80"),
            weight: 2,
            order: 0,
            metadata: Vec::new(),
        };
        let removed = removed.iter().map(|host| registered(host).id);
        let added = added.iter().map(registered).collect();
        Change { service: "users".into(), removed: removed.collect(), added, paused: None }
    }

    #[test]
    fn few_are_listed() {
        let expected = ["users: h1:80 left", "users: h2:80 changed (weight 2)", "users: h3:80 joined (weight 2)"];
        assert_eq!(lines(&change(&[1, 2], &[2, 3])), expected);
        let mut paused = Change { paused: Some(true), ..change(&[1], &[1]) };
        paused.added[0].metadata = vec![("paused".to_owned(), "true".to_owned())];
        assert_eq!(lines(&paused), ["users: paused", "users: h1:80 changed (weight 2, paused)"]);
    }

    #[test]
    fn many_are_counted() {
        let (removed, added): (Vec<_>, Vec<_>) = ((0..10).collect(), (5..100).collect());
        assert_eq!(lines(&change(&removed, &added)), ["users: 90 endpoints joined, 5 left, 5 changed"]);
    }

    /// Issue 10, 10: what cannot be applied ends neither the keeper nor the sources.
    #[tokio::test]
    async fn a_change_that_panics_keeps_no_other_from_being_applied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services.toml");
        let write =
            |service: &str| std::fs::write(&path, format!("[services.{service}]\nendpoints = ['a:1']")).unwrap();
        write("bad");
        let rescan = Duration::from_millis(20);
        let file = Some(crate::config::checked::FileSource { path: path.clone(), rescan });
        let config = crate::config::checked::Registry { file, ..Default::default() };
        let (seen, mut changes) = mpsc::unbounded_channel();
        let running = crate::registry::run(&config, None, move |all: Vec<Change>| {
            for change in all {
                assert!(change.service != "bad" || change.added.is_empty(), "it cannot be applied");
                let _ = seen.send(change.service);
            }
        });
        let panicked = || supervise::panics().iter().any(|(task, count)| *task == "registry-keeper" && *count > 0);
        while !panicked() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write("good");
        // The one that was not applied is taken back before, or not.
        let good = async { while changes.recv().await.is_some_and(|service| service != "good") {} };
        tokio::time::timeout(Duration::from_secs(60), good).await.unwrap();
        running.stop().await;
    }
}
