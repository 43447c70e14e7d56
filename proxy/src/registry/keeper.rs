//! The one task that all sources report to: it owns the catalog, feeds the sink, says who joined and who left, and
//! keeps the last answer on disk.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Change;
use super::apply::{Catalog, Entry, Event, Origin, encode_key};
use super::snapshot::Store;
use super::status::{SourceStatus, Status};

/// Changes within this time are written to disk as one.
const COALESCE: Duration = Duration::from_secs(1);

/// Beyond this many endpoints of a service that join, leave or change at once, they are counted, not listed.
const LISTED: usize = 16;

/// Beyond this many unreadable entries at once, they are counted, not listed.
const SKIPS_LISTED: usize = 10;

/// What a source holds of the registry: it reports events and how it is getting on.
#[derive(Debug, Clone)]
pub struct Feed {
    pub(super) status: Arc<Status>,
    pub(super) source: usize,
    /// The catalog's numbers of the source's parts, from this one upwards.
    pub(super) first: Origin,
    pub(super) updates: mpsc::Sender<Update>,
}

/// Events of one origin, applied as one.
#[derive(Debug)]
pub(super) struct Update {
    origin: Origin,
    events: Vec<Event>,
}

impl Feed {
    /// Hands on what happened at the `part`-th part of the source (an etcd watch, by its place in the configuration;
    /// else 0), as one change. Waits while the keeper is behind.
    pub async fn send(&self, part: usize, events: Vec<Event>) {
        self.own().touch();
        // Without a keeper the registry is being stopped, and nobody wants to know any more.
        let _ = self.updates.send(Update { origin: self.first + part, events }).await;
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

    #[expect(clippy::indexing_slicing, reason = "the number was given out together with its place in the status")]
    pub(super) fn own(&self) -> &SourceStatus {
        &self.status.sources[self.source]
    }
}

/// The parts of the catalog that belong to one source.
#[derive(Debug)]
pub(super) struct Part {
    /// The source's place in the status.
    pub source: usize,
    /// By which the snapshot knows it; `None`: not worth keeping, the configuration has it.
    pub name: Option<String>,
    pub answered: bool,
    pub restored: bool,
}

#[derive(Debug)]
pub(super) struct Keeper<S> {
    pub status: Arc<Status>,
    pub parts: Vec<Part>,
    pub sink: S,
    pub store: Option<Store>,
    pub catalog: Catalog,
}

impl<S: FnMut(Vec<Change>) + Send + 'static> Keeper<S> {
    /// Puts the snapshot's contents in force, for those parts that are still configured.
    pub fn restore(&mut self) {
        let Some(store) = &self.store else { return };
        let mut kept = store.load();
        let mut found = Vec::new();
        for (origin, part) in self.parts.iter_mut().enumerate() {
            let Some(entries) = part.name.as_ref().and_then(|name| kept.remove(name)) else { continue };
            part.restored = true;
            found.push((origin, entries));
        }
        for (origin, entries) in found {
            self.take(origin, vec![Event::Reset(entries)]);
        }
        self.check_ready();
    }

    /// Puts in force what needs no source to be asked.
    pub fn answer(&mut self, origin: Origin, entries: Vec<Entry>) {
        self.apply(Update { origin, events: vec![Event::Reset(entries)] });
    }

    /// Until every [`Feed`] is gone.
    pub async fn run(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut written = self.catalog.edits();
        let mut due: Option<Instant> = None;
        let mut writing: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                update = updates.recv() => match update {
                    Some(update) => {
                        let first = self.apply(update);
                        if self.store.is_some() && (first || self.catalog.edits() != written) {
                            due.get_or_insert_with(|| Instant::now() + COALESCE);
                        }
                    }
                    None => break,
                },
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
        let Some(part) = self.parts.get_mut(update.origin) else { return false };
        let first = answers && !part.answered;
        if first {
            part.answered = true;
            self.check_ready();
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

    fn check_ready(&mut self) {
        let mut ready = true;
        for (index, source) in self.status.sources.iter().enumerate() {
            let parts = || self.parts.iter().filter(|part| part.source == index);
            source.answered.store(parts().all(|part| part.answered), Relaxed);
            source.restored.store(parts().any(|part| part.restored), Relaxed);
            ready &= parts().all(|part| part.answered || part.restored);
        }
        if ready {
            self.status.ready.send_replace(true);
        }
    }

    /// The write, under way.
    fn write(&self) -> Option<JoinHandle<()>> {
        let store = self.store.clone()?;
        let known = self.parts.iter().enumerate().filter(|(_, part)| part.answered || part.restored);
        let named = known.filter_map(|(origin, part)| Some((part.name.as_deref()?, self.catalog.entries(origin))));
        let content = Store::encode(named);
        Some(tokio::task::spawn_blocking(move || store.save(content)))
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
}
