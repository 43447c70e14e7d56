//! The one task that all sources report to: it owns the catalog, feeds the sink, says who joined and who left, and
//! keeps the last answer on disk.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Change;
use super::apply::{Batch, Catalog, Content, Entry, Event, Origin, Step, encode_key};
use super::rules::{Note, Rules};
use super::snapshot::{self, Store};
use super::status::{Skipped, SourceStatus, Status};
use crate::config::checked::RegistryLimits;
use crate::supervise;

/// The source that is the configuration itself.
pub(super) const FIXED: &str = "fixed";

/// Changes within this time are written to disk as one.
const COALESCE: Duration = Duration::from_secs(1);

/// Beyond this many endpoints of a service that join, leave or change at once, they are counted, not listed.
const LISTED: usize = 16;

/// Beyond this many entries at once that are not taken as they are, they are counted, not listed.
const SKIPS_LISTED: usize = 10;

/// Beyond this many changes of services at once, they are counted, not listed.
const SERVICES_LISTED: usize = 200;

/// Operations of the catalog between two looks at other tasks: 1 to 4 ms, and under 10 ms on a slow machine.
const SLICE: usize = 1_000;

/// Entries that are encoded for the snapshot on disk between two looks at other tasks.
const ENCODED_AT_ONCE: usize = 500;

/// Endpoints whose changes the sink is given at once: beyond what one transaction of a registry changes, so that it is seen
/// as one change.
const PIECE: usize = 10_000;

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
    pub limits: RegistryLimits,
}

/// One source and the names of its parts, by which the snapshot on disk tells them apart.
#[derive(Debug)]
pub(super) struct Described {
    pub status: Arc<SourceStatus>,
    pub parts: Vec<String>,
    pub rules: Arc<Rules>,
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

    /// Counts and logs something that has no key by which it could be named.
    pub fn skipped(&self, what: &str) {
        let own = self.own();
        own.skipped.fetch_add(1, Relaxed);
        tracing::warn!(target: "heddle::registry", "{}: skipped: {what}", own.name);
    }

    /// Until the source is to be read anew, since what was not taken before for want of room can be taken now.
    pub async fn reread(&self) {
        self.own().reread.notified().await;
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
    pub fn new(status: Arc<Status>, store: Option<Store>, limits: RegistryLimits, sink: S) -> Self {
        Self { status, parts: Vec::new(), sink, store, catalog: Catalog::new(limits) }
    }

    /// As [`Keeper::configure`] at the start, with the snapshot on disk restored; in one go, as nobody is served yet.
    pub fn start(&mut self, configured: Configured) -> Vec<Vec<Origin>> {
        let start = async {
            let origins = self.configure(configured, Pace::AtOnce).await;
            self.restore().await;
            origins
        };
        match pin!(start).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(origins) => origins,
            // It waits for nothing at this pace.
            Poll::Pending => Vec::new(),
        }
    }

    /// Follows these sources from now on; the catalog's numbers of the parts of each. A part that was there before, by
    /// its name, keeps what is known of it until its source says more, as far as its rules allow that. One that is not
    /// there any more keeps it until what its source announces instead is known, so that no service is without endpoints
    /// in between.
    async fn configure(&mut self, configured: Configured, pace: Pace) -> Vec<Vec<Origin>> {
        let Configured { sources, fixed, limits } = configured;
        if self.catalog.set_limits(limits) {
            // Those that go on as they are: there may be room for what they could not add before.
            self.status.sources.load().iter().for_each(|source| source.reread.notify_one());
        }
        self.status.set_limits(limits);
        self.parts.iter_mut().flatten().for_each(|part| part.leaving = true);
        let mut origins: Vec<Vec<Origin>> = Vec::new();
        for source in &sources {
            let of_source = source.parts.iter().map(|name| self.origin(name, &source.status)).collect::<Vec<_>>();
            for &origin in &of_source {
                if self.catalog.set_rules(origin, source.rules.clone()) {
                    let known = self.catalog.entries(origin).map(|(key, order, announced)| Entry {
                        key: key.to_vec(),
                        order,
                        content: Content::Announced(announced.clone()),
                    });
                    let known = known.collect();
                    self.take(origin, vec![Event::Partial(known)], pace).await;
                }
            }
            origins.push(of_source);
        }
        let first = sources.iter().zip(&origins).find(|(source, _)| source.status.name == FIXED);
        let origin = first.and_then(|(_, origins)| origins.first().copied());
        self.status.sources.store(Arc::new(sources.into_iter().map(|source| source.status).collect()));
        if let Some(origin) = origin {
            self.apply(Update { origin, events: vec![Event::Reset(fixed)] }, pace).await;
        }
        self.check_answers(pace).await;
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
    async fn restore(&mut self) {
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
            self.take(origin, vec![Event::Reset(entries)], Pace::AtOnce).await;
        }
        self.check_answers(Pace::AtOnce).await;
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
                        Some(Message::Update(update)) => self.apply(update, Pace::InSlices).await,
                        Some(Message::Configure(configured, answer)) => {
                            // Who does not wait for the answer is being stopped.
                            let _ = answer.send(self.configure(configured, Pace::InSlices).await);
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
                        writing = write(&self.catalog, &self.parts, self.store.as_ref()).await;
                    }
                }
            }
        }
        // One after the other, so that the older content cannot come to lie over the newer. Writing logs its own
        // failures; what remains is a panic, which has been reported.
        if let Some(task) = writing {
            let _ = task.await;
        }
        if due.is_some()
            && let Some(task) = write(&self.catalog, &self.parts, self.store.as_ref()).await
        {
            let _ = task.await;
        }
    }

    /// Whether this was the origin's first answer.
    async fn apply(&mut self, update: Update, pace: Pace) -> bool {
        let answers = update.events.iter().any(|event| matches!(event, Event::Reset(_) | Event::Partial(_)));
        self.take(update.origin, update.events, pace).await;
        let Some(Some(part)) = self.parts.get_mut(update.origin) else { return false };
        let first = answers && !part.answered;
        if first {
            part.answered = true;
            self.check_answers(pace).await;
        }
        first
    }

    /// Takes events into the catalog, and hands on what changes by them.
    async fn take(&mut self, origin: Origin, events: Vec<Event>, pace: Pace) {
        let mut batch = self.catalog.begin(origin, events, PIECE);
        let mut listed = 0;
        loop {
            let step = self.catalog.step(&mut batch, SLICE);
            let is_done = matches!(step, Step::Done(_));
            let kept = self.catalog.kept();
            self.status.services.store(self.catalog.services() as u64, Relaxed);
            self.status.endpoints.store(self.catalog.endpoints() as u64, Relaxed);
            self.status.kept_endpoints.store(kept.endpoints as u64, Relaxed);
            self.status.kept_bytes.store(kept.bytes as u64, Relaxed);
            if let Step::Changes(changes) | Step::Done(changes) = step
                && !changes.is_empty()
            {
                self.hand_on(changes, &mut listed);
            }
            if is_done {
                break;
            }
            if pace == Pace::InSlices {
                tokio::task::yield_now().await;
            }
        }
        if listed > SERVICES_LISTED {
            let more = listed - SERVICES_LISTED;
            tracing::info!(target: "heddle::registry", "{more} more changes of services are not listed");
        }
        self.report_notes(origin, &batch);
        if self.catalog.has_room_again() {
            let sources = self.status.sources.load();
            sources.iter().for_each(|source| source.reread.notify_one());
        }
    }

    fn hand_on(&mut self, changes: Vec<Change>, listed: &mut usize) {
        let room = SERVICES_LISTED.saturating_sub(*listed);
        for line in changes.iter().take(room).flat_map(lines) {
            tracing::info!(target: "heddle::registry", "{line}");
        }
        *listed += changes.len();
        (self.sink)(changes);
    }

    /// Counts, logs and shows entries that were not taken as they are.
    fn report_notes(&self, origin: Origin, batch: &Batch) {
        let Some(Some(part)) = self.parts.get(origin) else { return };
        let own = &part.source;
        own.skipped.fetch_add(batch.noted, Relaxed);
        for (key, Note { reason, kept }) in batch.notes.iter().take(SKIPS_LISTED) {
            let what = if *kept { "taken, but" } else { "skipped" };
            tracing::warn!(target: "heddle::registry", "{}: {}: {what}: {reason}", own.name, shown_key(key));
        }
        let more = batch.noted.saturating_sub(batch.notes.len().min(SKIPS_LISTED) as u64);
        if more > 0 && batch.notes.len() >= SKIPS_LISTED {
            tracing::warn!(target: "heddle::registry", "{}: {more} more entries skipped", own.name);
        }
        let (notes, more) = self.catalog.notes(origin);
        let notes =
            notes.map(|(key, note)| Skipped { key: shown_key(key), reason: note.reason.clone(), kept: note.kept });
        own.set_skipped(origin, notes.collect(), more);
    }

    /// Says who has answered, and lets parts go that are not needed any more.
    async fn check_answers(&mut self, pace: Pace) {
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
            self.take(origin, vec![Event::Reset(Vec::new())], pace).await;
        }
    }
}

/// The write of what is known, under way.
async fn write(catalog: &Catalog, parts: &[Option<Part>], store: Option<&Store>) -> Option<JoinHandle<()>> {
    let store = store?.clone();
    let parts = parts.iter().enumerate().filter_map(|(origin, part)| Some((origin, part.as_ref()?)));
    // What the configuration announces is not worth keeping: it is there itself.
    let known = parts.filter(|(_, part)| (part.answered || part.restored) && part.source.name != FIXED);
    let known: Vec<_> = known.map(|(origin, part)| (part.name.as_str(), origin)).collect();
    let content = encode(catalog, &known).await;
    // Not one of the runtime's threads, of which there are few: the folder can be on a mount that hangs.
    Some(tokio::spawn(supervise::blocking(move || store.save(content))))
}

/// How events are taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Without a pause, where nothing else is to be done.
    AtOnce,
    /// With others' turn after each slice.
    InSlices,
}

/// The content of the snapshot on disk, encoded in slices as well.
async fn encode(catalog: &Catalog, parts: &[(&str, Origin)]) -> serde_json::Result<Vec<u8>> {
    let mut encoder = snapshot::Encoder::default();
    let mut since = 0;
    for (name, origin) in parts {
        encoder.begin(name)?;
        for (key, order, announced) in catalog.entries(*origin) {
            encoder.add(key, order, announced)?;
            since += 1;
            if since % ENCODED_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    encoder.end()
}

/// A key as it is shown: as text, cut where it is long.
fn shown_key(key: &[u8]) -> String {
    const LONGEST: usize = 256;
    match key.get(..LONGEST) {
        Some(start) if key.len() > LONGEST => format!("{}...", encode_key(start)),
        _ => encode_key(key),
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
    use crate::registry::layout::{Announced, Endpoint};

    fn change(removed: &[usize], added: &[usize]) -> Change {
        let registered = |host: &usize| Registered {
            id: format!("/s/users/{host}#h{host}:80"),
            address: format!("h{host}:80"),
            weight: 2,
            order: 0,
            metadata: Vec::new(),
            egress: Arc::default(),
        };
        let removed = removed.iter().map(|host| registered(host).id);
        let added = added.iter().map(registered).collect();
        Change { service: "users".into(), removed: removed.collect(), added, paused: None, proxied: None }
    }

    /// Issue 10, 14: a large reading is taken in by slices, between which others have their turn, and what comes of it is
    /// handed on in pieces.
    #[tokio::test]
    async fn others_have_their_turn_while_a_large_reading_is_taken_in() {
        const COUNT: usize = 20_000;
        let pieces = Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink = {
            let pieces = pieces.clone();
            move |changes: Vec<Change>| {
                let named = changes.iter().map(|change| change.added.len() + change.removed.len()).sum::<usize>();
                pieces.lock().expect("no panic").push(named);
            }
        };
        let status = Arc::new(Status::new());
        let mut keeper = Keeper::new(status.clone(), None, RegistryLimits::default(), sink);
        let source =
            Described { status: SourceStatus::new("file"), parts: vec!["file".to_owned()], rules: Arc::default() };
        let configured = Configured { sources: vec![source], fixed: Vec::new(), limits: RegistryLimits::default() };
        let origin = keeper.start(configured)[0][0];
        let (messages, queue) = mpsc::channel(1);
        let task = tokio::spawn(keeper.run(queue, Arc::default()));
        let entry = |i: usize| {
            let endpoint = Endpoint { address: format!("h{i}:80"), weight: 1, metadata: Vec::new() };
            let announced = Announced::endpoints("users".to_owned(), vec![endpoint]);
            Entry { key: format!("k{i}").into_bytes(), order: 1, content: Content::Announced(announced) }
        };
        let events = vec![Event::Reset((0..COUNT).map(entry).collect())];
        assert!(messages.send(Message::Update(Update { origin, events })).await.is_ok());
        let mut turns = 0;
        while status.report().endpoints < COUNT as u64 {
            turns += 1;
            tokio::task::yield_now().await;
        }
        drop(messages);
        task.await.expect("no panic");
        assert!(turns >= COUNT / SLICE, "{turns} turns");
        let pieces = pieces.lock().expect("no panic");
        assert_eq!(pieces.iter().sum::<usize>(), COUNT);
        assert!(pieces.iter().all(|named| *named <= PIECE), "{pieces:?}");
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
        let file = Some(crate::config::checked::FileSource { path: path.clone(), rescan, rules: Default::default() });
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
