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
//! The work for one event depends on the endpoints that its key announces and announced, and on how many keys claim
//! the same addresses; not on the number of services, keys or other endpoints.

use std::collections::BTreeMap;
use std::collections::hash_map;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use rustc_hash::{FxHashMap, FxHashSet};

use super::layout::{Announced, Endpoint};
use super::{Change, Registered};

/// A part of a source that announces its complete contents as one: a watch, a file. Numbered by the catalog's user.
pub type Origin = usize;

/// What happened at one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The complete contents. Keys that are not among them are gone; of several entries with one key the last counts.
    Reset(Vec<Entry>),
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
    /// Something that could not be understood.
    Unreadable,
}

/// What every origin announces, and what follows from it for the services.
#[derive(Debug, Default)]
pub struct Catalog {
    origins: Vec<FxHashMap<Arc<[u8]>, Known>>,
    services: FxHashMap<Arc<str>, FxHashMap<Arc<str>, Vec<Claim>>>,
    /// How many keys pause a service as a whole, where there are any.
    pauses: FxHashMap<Arc<str>, usize>,
    endpoints: usize,
    edits: u64,
}

/// What one key announces: a service and claims on its addresses.
#[derive(Debug)]
struct Known {
    order: u64,
    announced: Announced,
}

/// One key's claim on an address. The oldest is in force; where two are as old, the one of the lower origin and key.
#[derive(Debug)]
struct Claim {
    origin: Origin,
    key: Arc<[u8]>,
    registered: Arc<Registered>,
}

impl Claim {
    fn new(origin: Origin, key: &Arc<[u8]>, order: u64, endpoint: &Endpoint) -> Self {
        let registered = Registered {
            id: format!("{}#{}", encode_key(key), endpoint.address),
            address: endpoint.address.clone(),
            weight: endpoint.weight,
            order,
            metadata: endpoint.metadata.clone(),
        };
        Self { origin, key: key.clone(), registered: Arc::new(registered) }
    }

    fn rank(&self) -> (u64, Origin, &[u8]) {
        (self.registered.order, self.origin, &self.key)
    }
}

/// Per service what was in force before a batch.
type Before = BTreeMap<Arc<str>, ServiceBefore>;

#[derive(Default)]
struct ServiceBefore {
    /// At the addresses that the batch touches.
    addresses: FxHashMap<Arc<str>, Option<Arc<Registered>>>,
    /// Whether the service was paused, if the batch touches that.
    paused: Option<bool>,
}

impl Catalog {
    /// Takes in events of one origin, in order, and answers the net change of every service that they concern; nothing
    /// for a service whose endpoints are as before.
    pub fn apply(&mut self, origin: Origin, events: impl IntoIterator<Item = Event>) -> Vec<Change> {
        let mut before = Before::new();
        for event in events {
            match event {
                Event::Reset(entries) => self.reset(origin, entries, &mut before),
                Event::Put(entry) => self.put(origin, entry, &mut before),
                Event::Delete(key) => self.delete(origin, &key, &mut before),
            }
        }
        before.into_iter().filter_map(|(service, before)| self.change(&service, before)).collect()
    }

    /// Services with at least one endpoint.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// Endpoints in force, of all services.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// A number that grows whenever [`Catalog::entries`] of any origin change.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// Every entry of one origin that is understood, in no particular order.
    pub fn entries(&self, origin: Origin) -> impl Iterator<Item = (&[u8], u64, &Announced)> {
        self.origins.get(origin).into_iter().flatten().map(|(key, known)| (&**key, known.order, &known.announced))
    }

    fn reset(&mut self, origin: Origin, entries: Vec<Entry>, before: &mut Before) {
        let mut gone: FxHashSet<Arc<[u8]>> = self.origin(origin).keys().cloned().collect();
        for entry in entries {
            gone.remove(entry.key.as_slice());
            self.put(origin, entry, before);
        }
        for key in gone {
            self.delete(origin, &key, before);
        }
    }

    fn put(&mut self, origin: Origin, entry: Entry, before: &mut Before) {
        let known = self.origin(origin).get(entry.key.as_slice());
        let announced = match entry.content {
            Content::Announced(announced) => announced,
            Content::Unreadable if known.is_some_and(|known| known.order == entry.order) => return,
            Content::Unreadable => return self.delete(origin, &entry.key, before),
        };
        if known.is_some_and(|known| known.order == entry.order && known.announced == announced) {
            return;
        }
        self.delete(origin, &entry.key, before);
        let key: Arc<[u8]> = entry.key.into();
        let service: Arc<str> = announced.service.as_str().into();
        for endpoint in &announced.endpoints {
            self.claim(&service, Claim::new(origin, &key, entry.order, endpoint), before);
        }
        if announced.pauses {
            self.note_pause(&service, before);
            *self.pauses.entry(service).or_default() += 1;
        }
        self.edits += 1;
        self.origin(origin).insert(key, Known { order: entry.order, announced });
    }

    fn delete(&mut self, origin: Origin, key: &[u8], before: &mut Before) {
        let Some((key, known)) = self.origin(origin).remove_entry(key) else { return };
        self.edits += 1;
        for endpoint in &known.announced.endpoints {
            self.release(origin, &key, &known.announced.service, &endpoint.address, before);
        }
        if known.announced.pauses {
            let service: Arc<str> = known.announced.service.into();
            self.note_pause(&service, before);
            if let hash_map::Entry::Occupied(mut count) = self.pauses.entry(service) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    fn note_pause(&self, service: &Arc<str>, before: &mut Before) {
        let was = self.pauses.contains_key(service);
        before.entry(service.clone()).or_default().paused.get_or_insert(was);
    }

    #[expect(clippy::indexing_slicing, reason = "the table has just been made long enough")]
    fn origin(&mut self, origin: Origin) -> &mut FxHashMap<Arc<[u8]>, Known> {
        if self.origins.len() <= origin {
            self.origins.resize_with(origin.saturating_add(1), FxHashMap::default);
        }
        &mut self.origins[origin]
    }

    fn claim(&mut self, service: &Arc<str>, claim: Claim, before: &mut Before) {
        let addresses = self.services.entry(service.clone()).or_default();
        let claims = match addresses.entry(claim.registered.address.as_str().into()) {
            hash_map::Entry::Occupied(entry) => {
                note(before, service, entry.key(), entry.get().first());
                entry.into_mut()
            }
            hash_map::Entry::Vacant(entry) => {
                note(before, service, entry.key(), None);
                self.endpoints += 1;
                entry.insert(Vec::with_capacity(1))
            }
        };
        // One registration may name an address twice; the first mention counts.
        if claims.iter().all(|other| other.origin != claim.origin || other.key != claim.key) {
            let at = claims.partition_point(|other| other.rank() < claim.rank());
            claims.insert(at, claim);
        }
    }

    fn release(&mut self, origin: Origin, key: &Arc<[u8]>, service: &str, address: &str, before: &mut Before) {
        let Some((service, _)) = self.services.get_key_value(service) else { return };
        let service = service.clone();
        let Some(addresses) = self.services.get_mut(&service) else { return };
        let Some((known, claims)) = addresses.get_key_value(address) else { return };
        note(before, &service, known, claims.first());
        let Some(claims) = addresses.get_mut(address) else { return };
        claims.retain(|claim| claim.origin != origin || claim.key != *key);
        if claims.is_empty() {
            addresses.remove(address);
            self.endpoints -= 1;
            if addresses.is_empty() {
                self.services.remove(&service);
            }
        }
    }

    /// Compares what is in force where a batch touched it with what was.
    fn change(&self, service: &Arc<str>, before: ServiceBefore) -> Option<Change> {
        let addresses = self.services.get(service);
        let is_paused = self.pauses.contains_key(service);
        let paused = before.paused.filter(|was| *was != is_paused).map(|_| is_paused);
        let mut change = Change { service: service.to_string(), removed: Vec::new(), added: Vec::new(), paused };
        for (address, before) in before.addresses {
            let now = addresses.and_then(|all| all.get(&address)).and_then(|claims| claims.first());
            let now = now.map(|claim| &claim.registered);
            if before.as_ref() == now {
                continue;
            }
            change.removed.extend(before.map(|before| before.id.clone()));
            change.added.extend(now.map(|now| Registered::clone(now)));
        }
        change.removed.sort_unstable();
        change.added.sort_unstable_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
        (!change.removed.is_empty() || !change.added.is_empty() || paused.is_some()).then_some(change)
    }
}

/// Keeps the first state that a batch found.
fn note(before: &mut Before, service: &Arc<str>, address: &Arc<str>, claim: Option<&Claim>) {
    // Looked up first: `entry` would need a clone of the key even where it is known.
    let before = match before.get_mut(service) {
        Some(before) => before,
        None => before.entry(service.clone()).or_default(),
    };
    before.addresses.entry(address.clone()).or_insert_with(|| claim.map(|claim| claim.registered.clone()));
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
