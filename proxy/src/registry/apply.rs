//! From a registry's events to changes of services: the pure part.
//!
//! [`Catalog`] holds what every key announces, since the deletion of a key comes without its value, and for every
//! address of a service which keys claim it. An address is shown once: of several claims the oldest is in force, and
//! when that goes the next one takes over, so that a service which registers anew under another key before its old
//! registration has expired never disappears in between.
//!
//! A value that cannot be read never takes a known endpoint away: as long as it is the same registration (the key was
//! not deleted in between), the endpoint most likely still serves, and what was last understood stays in force. The
//! same rule is Apache APISIX's.
//!
//! # Work
//!
//! The work for one event depends on the endpoints that its key announces and announced, and on the logarithm of how much
//! is known; not on how many keys claim the same address. Everything is kept in search trees: their time depends on no
//! hash that a writer of keys could aim at, they never stop to grow a table, and they can be walked in slices. A complete
//! reading may hold a hundred thousand keys, and whoever applies it has other things to do on the same thread. So a batch
//! is a [`Batch`] that is taken further by [`Catalog::step`], each time by a bounded number of operations; nothing of it is
//! seen outside before its last event is in, and then it comes out in pieces of bounded size. An operation is an entry put
//! or deleted (with each endpoint, and each KiB of metadata, that it names), a known key looked at, an address compared, or
//! an endpoint reported.

use std::collections::btree_map::{self, BTreeMap};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::layout::{Announced, Endpoint};
use super::limits::{Exceeded, Kept};
use super::rules::{Note, Rules};
use super::{Change, Registered};
use crate::config::checked::RegistryLimits;

/// A part of a source that announces its complete contents as one: a watch, a file. Numbered by the catalog's user.
pub type Origin = usize;

/// What happened at one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The complete contents. Keys that are not among them are gone; of several entries with one key the last counts.
    Reset(Vec<Entry>),
    /// A part of the contents. Other keys stay as they are.
    Partial(Vec<Entry>),
    Put(Entry),
    /// The key is gone.
    Delete(Vec<u8>),
}

/// One key and what it announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Vec<u8>,
    /// When the key was created, in the registry's own count.
    pub order: u64,
    pub content: Content,
}

/// What the value of a key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Announced(Announced),
    /// Something that could not be understood, and why.
    Unreadable(String),
}

/// Keys of one origin of which it is remembered why they, or parts of them, were not taken.
pub const NOTES: usize = 100;

/// What every origin announces, and what follows from it for the services.
#[derive(Debug, Default)]
pub struct Catalog {
    origins: Vec<Contents>,
    services: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Claims>>,
    /// Of services that have any.
    marks: BTreeMap<Arc<str>, Marks>,
    limits: RegistryLimits,
    kept: Kept,
    /// What was kept when something was last not taken because of a limit.
    full_at: Option<Kept>,
    endpoints: usize,
    edits: u64,
    batches: u64,
}

/// What one origin announces.
#[derive(Debug, Default)]
struct Contents {
    known: BTreeMap<Arc<[u8]>, Known>,
    rules: Arc<Rules>,
    notes: BTreeMap<Vec<u8>, Note>,
    /// Notes that found no room.
    more_notes: u64,
}

/// How many keys say something of a service as a whole.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Marks {
    /// Pause it.
    pauses: usize,
    /// Announce endpoints by an origin whose rules let it take proxy requests.
    proxied: usize,
}

/// What one key announces: a service and claims on its addresses.
#[derive(Debug)]
struct Known {
    order: u64,
    announced: Announced,
    /// Those under which it was taken.
    rules: Arc<Rules>,
    proxied: bool,
    kept: Kept,
    /// The number of the batch, or of the reset in it, that named it last.
    seen: u64,
}

/// The claim of the smallest rank is in force: the oldest, and of two as old the one of the lower origin and key.
type Rank = (u64, Origin, Arc<[u8]>);

/// All keys' claims on one address of a service. Nearly always there is one.
#[derive(Debug)]
struct Claims {
    first: (Rank, Arc<Registered>),
    rest: BTreeMap<Rank, Arc<Registered>>,
}

impl Claims {
    /// One registration may name an address twice; the first mention counts.
    fn insert(&mut self, rank: Rank, registered: Arc<Registered>) {
        match rank.cmp(&self.first.0) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Less => {
                let (rank, registered) = std::mem::replace(&mut self.first, (rank, registered));
                self.rest.insert(rank, registered);
            }
            std::cmp::Ordering::Greater => {
                self.rest.entry(rank).or_insert(registered);
            }
        }
    }

    /// Whether none is left.
    fn remove(&mut self, rank: &Rank) -> bool {
        if self.first.0 != *rank {
            self.rest.remove(rank);
            return false;
        }
        match self.rest.pop_first() {
            Some(next) => {
                self.first = next;
                false
            }
            None => true,
        }
    }
}

fn registered(rules: &Rules, key: &[u8], order: u64, endpoint: &Endpoint) -> Arc<Registered> {
    Arc::new(Registered {
        id: format!("{}#{}", encode_key(key), endpoint.address),
        address: endpoint.address.clone(),
        weight: endpoint.weight,
        order,
        metadata: endpoint.metadata.clone(),
        egress: rules.egress.clone(),
    })
}

/// Per service what was in force before a batch.
type Before = BTreeMap<Arc<str>, ServiceBefore>;

#[derive(Debug, Default)]
struct ServiceBefore {
    /// At the addresses that the batch touches.
    addresses: BTreeMap<Arc<str>, Option<Arc<Registered>>>,
    /// If the batch touches them.
    marks: Option<Marks>,
}

/// Events of one origin on their way into the catalog. No other batch may be taken further before its end.
#[derive(Debug)]
pub struct Batch {
    origin: Origin,
    number: u64,
    events: VecDeque<Event>,
    /// Of the event that is being applied.
    entries: std::vec::IntoIter<Entry>,
    /// Where the search for keys that a reset did not name goes on.
    sweep: Option<Bound<Arc<[u8]>>>,
    is_reset: bool,
    /// Entries of the reset for which there may be room when the keys that it does not name are gone.
    deferred: Vec<Entry>,
    before: Before,
    difference: Option<Difference>,
    /// Those that there were before the reset.
    known_notes: BTreeMap<Vec<u8>, Note>,
    /// Notes that this batch brought and that were not known.
    pub notes: Vec<(Vec<u8>, Note)>,
    /// Notes that it brought in all.
    pub noted: u64,
    /// Endpoints that one piece of changes names at most.
    piece: usize,
    /// Operations so far.
    pub operations: u64,
}

/// How the endpoints of one service changed, on its way out.
#[derive(Debug)]
struct Difference {
    service: Arc<str>,
    /// Yet to be compared.
    addresses: btree_map::IntoIter<Arc<str>, Option<Arc<Registered>>>,
    paused: Option<bool>,
    proxied: Option<bool>,
    /// Whether these two are something new by themselves.
    has_news: bool,
    /// By the order in which they are reported, each with the id of what it replaces at its address.
    added: BTreeMap<(u64, String), (Arc<Registered>, Option<String>)>,
    /// Ids at addresses that nobody claims any more.
    removed: BTreeSet<String>,
}

/// How far a batch is.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on; nothing to report yet.
    More,
    /// It goes on; this is a part of what has changed.
    Changes(Vec<Change>),
    /// It is all in; the rest of what has changed.
    Done(Vec<Change>),
}

impl Batch {
    fn has_spent(&mut self, operations: usize, budget: &mut usize) -> bool {
        self.operations = self.operations.saturating_add(operations as u64);
        *budget = budget.saturating_sub(operations);
        *budget == 0
    }
}

impl Catalog {
    /// A catalog that keeps no more than this.
    pub fn new(limits: RegistryLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Keeps no more than this from now on; what is known already stays. Whether these are other limits than before.
    pub fn set_limits(&mut self, limits: RegistryLimits) -> bool {
        std::mem::replace(&mut self.limits, limits) != limits
    }

    /// From now on the origin's entries are taken by these rules. Whether they are others than before: what is known has
    /// to be put again then.
    pub fn set_rules(&mut self, origin: Origin, rules: Arc<Rules>) -> bool {
        let contents = self.contents(origin);
        let is_changed = contents.rules != rules;
        if is_changed {
            contents.rules = rules;
        }
        is_changed
    }

    /// Takes in events of one origin, in order, and returns the net change of every service that they concern; nothing
    /// for a service whose endpoints are as before.
    pub fn apply(&mut self, origin: Origin, events: impl IntoIterator<Item = Event>) -> Vec<Change> {
        let mut batch = self.begin(origin, events, usize::MAX);
        let mut all = Vec::new();
        loop {
            match self.step(&mut batch, usize::MAX) {
                Step::More => {}
                Step::Changes(changes) => all.extend(changes),
                Step::Done(changes) => {
                    all.extend(changes);
                    return all;
                }
            }
        }
    }

    /// Begins to take in events of one origin. Changes are reported in pieces of about `piece` endpoints.
    pub fn begin(&mut self, origin: Origin, events: impl IntoIterator<Item = Event>, piece: usize) -> Batch {
        self.batches += 1;
        Batch {
            origin,
            number: self.batches,
            events: events.into_iter().collect(),
            entries: Vec::new().into_iter(),
            sweep: None,
            is_reset: false,
            deferred: Vec::new(),
            before: Before::new(),
            difference: None,
            known_notes: BTreeMap::new(),
            notes: Vec::new(),
            noted: 0,
            piece: piece.max(1),
            operations: 0,
        }
    }

    /// Takes a batch further by `budget` operations, more only by those of one entry or of one piece of changes.
    pub fn step(&mut self, batch: &mut Batch, mut budget: usize) -> Step {
        budget = budget.max(1);
        loop {
            if let Some(entry) = batch.entries.next() {
                let cost = self.put(batch, entry);
                if batch.has_spent(cost, &mut budget) {
                    return Step::More;
                }
                continue;
            }
            if std::mem::take(&mut batch.is_reset) {
                batch.sweep = Some(Bound::Unbounded);
            }
            if batch.sweep.is_some() {
                let is_spent = self.sweep(batch, &mut budget);
                if batch.sweep.is_none() {
                    batch.entries = std::mem::take(&mut batch.deferred).into_iter();
                }
                if is_spent {
                    return Step::More;
                }
                continue;
            }
            let Some(event) = batch.events.pop_front() else { break };
            let cost = match event {
                Event::Reset(entries) => {
                    // A number of its own: what an earlier event of the batch has put is gone if it is not named again.
                    self.batches += 1;
                    batch.number = self.batches;
                    let contents = self.contents(batch.origin);
                    batch.known_notes = std::mem::take(&mut contents.notes);
                    contents.more_notes = 0;
                    (batch.entries, batch.is_reset) = (entries.into_iter(), true);
                    1
                }
                Event::Partial(entries) => {
                    batch.entries = entries.into_iter();
                    1
                }
                Event::Put(entry) => self.put(batch, entry),
                Event::Delete(key) => {
                    self.contents(batch.origin).notes.remove(&key);
                    self.delete(batch.origin, &key, &mut batch.before)
                }
            };
            if batch.has_spent(cost, &mut budget) {
                return Step::More;
            }
        }
        self.report(batch, budget)
    }

    /// Services with at least one endpoint.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// Endpoints in force, of all services.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// What all that is known takes.
    pub fn kept(&self) -> Kept {
        self.kept.with_services(self.services.len())
    }

    /// A number that grows whenever [`Catalog::entries`] of any origin change.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// Every entry of one origin that is understood, by key.
    pub fn entries(&self, origin: Origin) -> impl Iterator<Item = (&[u8], u64, &Announced)> {
        let known = self.origins.get(origin).into_iter().flat_map(|contents| &contents.known);
        known.map(|(key, known)| (&**key, known.order, &known.announced))
    }

    /// Keys of an origin that were not taken as they are, [`NOTES`] at most, and how many more there are.
    pub fn notes(&self, origin: Origin) -> (impl Iterator<Item = (&[u8], &Note)>, u64) {
        let contents = self.origins.get(origin);
        let notes = contents.into_iter().flat_map(|contents| &contents.notes);
        (notes.map(|(key, note)| (key.as_slice(), note)), contents.map_or(0, |contents| contents.more_notes))
    }

    /// Whether something was not taken because of a limit, and there is room by now. True once for each time.
    pub fn has_room_again(&mut self) -> bool {
        let has = self.full_at.is_some_and(|full| self.kept().has_room(&self.limits, full));
        self.full_at = self.full_at.filter(|_| !has);
        has
    }

    /// Deletes keys that the reset did not name; whether the budget is spent.
    fn sweep(&mut self, batch: &mut Batch, budget: &mut usize) -> bool {
        let Some(from) = batch.sweep.take() else { return false };
        let number = batch.number;
        let mut looked = 0;
        let mut gone = Vec::new();
        let mut last = None;
        for (key, known) in self.contents(batch.origin).known.range((from, Bound::Unbounded)) {
            looked += 1;
            if known.seen != number {
                gone.push(key.clone());
            }
            if looked + gone.len() >= *budget {
                last = Some(key.clone());
                break;
            }
        }
        batch.sweep = last.map(Bound::Excluded);
        for key in gone {
            looked += self.delete(batch.origin, &key, &mut batch.before);
        }
        batch.has_spent(looked, budget)
    }

    /// How many operations that took.
    fn put(&mut self, batch: &mut Batch, entry: Entry) -> usize {
        let origin = batch.origin;
        let rules = self.contents(origin).rules.clone();
        let (Entry { key, order, content }, mut note) = rules.admit(entry);
        let mut cost = 1;
        match content {
            Content::Unreadable(_) => cost += self.put_unreadable(batch, &key, order),
            Content::Announced(announced) => {
                let kept = Kept::of(&key, &announced);
                cost += kept.endpoints + kept.bytes / 1024;
                let known = self.contents(origin).known.get_mut(key.as_slice());
                let less = known.as_ref().map(|known| known.kept).unwrap_or_default();
                let is_as_before =
                    |known: &Known| known.order == order && known.announced == announced && known.rules == rules;
                if let Some(known) = known.filter(|known| is_as_before(known)) {
                    known.seen = batch.number;
                } else if let Some(exceeded) = self.exceeded(&announced.service, kept, less) {
                    if batch.is_reset {
                        let known = self.contents(origin).known.get_mut(key.as_slice());
                        known.into_iter().for_each(|known| known.seen = batch.number);
                        batch.deferred.push(Entry { key, order, content: Content::Announced(announced) });
                        return cost;
                    }
                    self.full_at = Some(self.kept());
                    note = Some(Note { reason: exceeded.to_string(), kept: false });
                    cost += self.put_unreadable(batch, &key, order);
                } else {
                    let proxied = !announced.endpoints.is_empty() && rules.takes_proxy_requests(&announced.service);
                    let known = Known { order, announced, rules, proxied, kept, seen: batch.number };
                    cost += self.replace(batch, &key, known);
                }
            }
        }
        self.note(batch, key, note);
        cost
    }

    /// The bound that an entry would exceed in the place of what its key announced before.
    fn exceeded(&self, service: &str, more: Kept, less: Kept) -> Option<Exceeded> {
        let is_new = !self.services.contains_key(service);
        self.kept().exceeds(&self.limits, more.with_services(usize::from(is_new)), less)
    }

    /// Puts what a key announces in the place of what it announced before, if anything.
    fn replace(&mut self, batch: &mut Batch, key: &[u8], known: Known) -> usize {
        let origin = batch.origin;
        let cost = self.delete(origin, key, &mut batch.before);
        let key: Arc<[u8]> = key.into();
        let Known { order, announced, rules, proxied, kept, .. } = &known;
        let service: Arc<str> = announced.service.as_str().into();
        for endpoint in &announced.endpoints {
            let registered = registered(rules, &key, *order, endpoint);
            self.claim(&service, (*order, origin, key.clone()), registered, &mut batch.before);
        }
        self.mark(&service, &mut batch.before, |marks| {
            marks.pauses += usize::from(announced.pauses);
            marks.proxied += usize::from(*proxied);
        });
        self.edits += 1;
        self.kept.add(*kept);
        self.contents(origin).known.insert(key, known);
        cost
    }

    /// As long as it is the same registration, what was last understood of it stays in force.
    fn put_unreadable(&mut self, batch: &mut Batch, key: &[u8], order: u64) -> usize {
        match self.contents(batch.origin).known.get_mut(key) {
            Some(known) if known.order == order => {
                known.seen = batch.number;
                1
            }
            Some(_) => self.delete(batch.origin, key, &mut batch.before),
            None => 1,
        }
    }

    /// How many operations that took.
    fn delete(&mut self, origin: Origin, key: &[u8], before: &mut Before) -> usize {
        let Some((key, known)) = self.contents(origin).known.remove_entry(key) else { return 1 };
        self.edits += 1;
        self.kept.subtract(known.kept);
        let Known { order, announced, proxied, .. } = known;
        let service: Arc<str> = announced.service.as_str().into();
        let rank = (order, origin, key);
        for endpoint in &announced.endpoints {
            self.release(&rank, &service, &endpoint.address, before);
        }
        self.mark(&service, before, |marks| {
            marks.pauses -= usize::from(announced.pauses).min(marks.pauses);
            marks.proxied -= usize::from(proxied).min(marks.proxied);
        });
        announced.endpoints.len().max(1)
    }

    /// Remembers why an entry was not taken as it is, or forgets why it was not.
    fn note(&mut self, batch: &mut Batch, mut key: Vec<u8>, note: Option<Note>) {
        key.truncate(super::rules::LONGEST_KEY);
        let contents = self.contents(batch.origin);
        let Some(note) = note else {
            if !contents.notes.is_empty() {
                contents.notes.remove(&key);
            }
            return;
        };
        batch.noted += 1;
        if contents.notes.get(&key) == Some(&note) {
            return;
        }
        if batch.notes.len() < NOTES && batch.known_notes.get(&key) != Some(&note) {
            batch.notes.push((key.clone(), note.clone()));
        }
        if contents.notes.len() < NOTES || contents.notes.contains_key(&key) {
            contents.notes.insert(key, note);
        } else {
            contents.more_notes += 1;
        }
    }

    fn mark(&mut self, service: &Arc<str>, before: &mut Before, change: impl FnOnce(&mut Marks)) {
        let was = self.marks.get(service).copied().unwrap_or_default();
        let mut now = was;
        change(&mut now);
        if now == was {
            return;
        }
        before.entry(service.clone()).or_default().marks.get_or_insert(was);
        if now == Marks::default() {
            self.marks.remove(service);
        } else {
            self.marks.insert(service.clone(), now);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "the table has just been made long enough")]
    fn contents(&mut self, origin: Origin) -> &mut Contents {
        if self.origins.len() <= origin {
            self.origins.resize_with(origin.saturating_add(1), Contents::default);
        }
        &mut self.origins[origin]
    }

    fn claim(&mut self, service: &Arc<str>, rank: Rank, registered: Arc<Registered>, before: &mut Before) {
        let addresses = self.services.entry(service.clone()).or_default();
        match addresses.entry(registered.address.as_str().into()) {
            btree_map::Entry::Occupied(mut entry) => {
                note(before, service, entry.key(), Some(&entry.get().first.1));
                entry.get_mut().insert(rank, registered);
            }
            btree_map::Entry::Vacant(entry) => {
                note(before, service, entry.key(), None);
                self.endpoints += 1;
                entry.insert(Claims { first: (rank, registered), rest: BTreeMap::new() });
            }
        }
    }

    fn release(&mut self, rank: &Rank, service: &Arc<str>, address: &str, before: &mut Before) {
        let Some(addresses) = self.services.get_mut(service) else { return };
        let Some((known, claims)) = addresses.get_key_value(address) else { return };
        note(before, service, known, Some(&claims.first.1));
        if addresses.get_mut(address).is_some_and(|claims| claims.remove(rank)) {
            addresses.remove(address);
            self.endpoints -= 1;
            if addresses.is_empty() {
                self.services.remove(service);
            }
        }
    }

    /// Reports what has changed, as far as the budget goes.
    fn report(&self, batch: &mut Batch, mut budget: usize) -> Step {
        let mut changes = Vec::new();
        let mut left = batch.piece;
        loop {
            let mut difference = match batch.difference.take() {
                Some(difference) => difference,
                None => match batch.before.pop_first() {
                    Some((service, before)) => self.difference(service, before),
                    None => return Step::Done(changes),
                },
            };
            while let Some((address, before)) = difference.addresses.next() {
                self.compare(&mut difference, &address, before);
                if batch.has_spent(1, &mut budget) {
                    batch.difference = Some(difference);
                    return if changes.is_empty() { Step::More } else { Step::Changes(changes) };
                }
            }
            let (change, named) = difference.next_piece(left);
            left = left.saturating_sub(named.saturating_add(1));
            changes.extend(change);
            let is_over = difference.added.is_empty() && difference.removed.is_empty();
            batch.difference = (!is_over).then_some(difference);
            let is_spent = batch.has_spent(named.saturating_add(1), &mut budget);
            if left == 0 || is_spent {
                return Step::Changes(changes);
            }
        }
    }

    fn difference(&self, service: Arc<str>, before: ServiceBefore) -> Difference {
        let now = self.marks.get(&service).copied().unwrap_or_default();
        let is_announced = self.services.contains_key(&service);
        let was = before.marks.unwrap_or(now);
        let paused = ((was.pauses == 0) != (now.pauses == 0)).then_some(now.pauses > 0);
        // A service that nobody announces any more stays what it was: its clients get 503, and nothing else. One that is
        // announced again is as it is now, whatever it was.
        let flips = is_announced && (was.proxied == 0) != (now.proxied == 0);
        let is_said = flips || is_announced && before.addresses.values().any(Option::is_none);
        let proxied = is_said.then_some(now.proxied > 0);
        Difference {
            service,
            addresses: before.addresses.into_iter(),
            paused,
            proxied,
            has_news: flips || paused.is_some(),
            added: BTreeMap::new(),
            removed: BTreeSet::new(),
        }
    }

    /// Compares what is in force at an address with what was before the batch.
    fn compare(&self, difference: &mut Difference, address: &str, before: Option<Arc<Registered>>) {
        let claims = self.services.get(&difference.service).and_then(|addresses| addresses.get(address));
        let now = claims.map(|claims| &claims.first.1);
        if before.as_ref() == now {
            return;
        }
        let before = before.map(|before| before.id.clone());
        match now {
            Some(now) => {
                difference.added.insert((now.order, now.id.clone()), (now.clone(), before));
            }
            None => difference.removed.extend(before),
        }
    }
}

impl Difference {
    /// The next change of at most so many endpoints, if there is any, and how many it names. What takes the place of
    /// something at its address comes with it.
    fn next_piece(&mut self, most: usize) -> (Option<Change>, usize) {
        let (paused, proxied) = (self.paused.take(), self.proxied.take());
        let mut change =
            Change { service: self.service.to_string(), removed: Vec::new(), added: Vec::new(), paused, proxied };
        let mut named = 0;
        while named < most {
            if let Some((_, (registered, replaced))) = self.added.pop_first() {
                change.added.push(Registered::clone(&registered));
                change.removed.extend(replaced);
            } else if let Some(id) = self.removed.pop_first() {
                change.removed.push(id);
            } else {
                break;
            }
            named += 1;
        }
        change.removed.sort_unstable();
        let is_one = named > 0 || std::mem::take(&mut self.has_news);
        (is_one.then_some(change), named)
    }
}

/// Keeps the first state that a batch found.
fn note(before: &mut Before, service: &Arc<str>, address: &Arc<str>, registered: Option<&Arc<Registered>>) {
    // Looked up first: `entry` would need a clone of the key even where it is known.
    let before = match before.get_mut(service) {
        Some(before) => before,
        None => before.entry(service.clone()).or_default(),
    };
    before.addresses.entry(address.clone()).or_insert_with(|| registered.cloned());
}

/// What stays readable in an encoded key: what RFC 3986 (2.3) leaves unreserved, and what is common in keys and cannot
/// be taken for the `#` before an address.
const READABLE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b'=');

/// A key as text, by percent-encoding (RFC 3986, 2.1).
pub fn encode_key(key: &[u8]) -> String {
    percent_encode(key, READABLE).to_string()
}

/// The key behind an [`encode_key`]ed text.
pub fn decode_key(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests;
