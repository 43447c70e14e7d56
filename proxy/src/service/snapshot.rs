//! What a service looked like at one moment.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::load::{Load, LoadTable};
use crate::registry::{Change, Registered};

/// One registered endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Its number within the service, stable while it is registered.
    pub slot: u32,
    pub registered: Registered,
    /// The address, where it is an IP address and needs no name resolution.
    pub socket: Option<SocketAddr>,
    pub load: Load,
}

/// The endpoints of a service at one moment, never changed once published.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the service's changes; 0 before the first.
    pub version: u64,
    slots: Vec<Option<Arc<Endpoint>>>,
    eligible: Vec<u64>,
    eligible_count: usize,
    load: LoadTable,
}

impl Snapshot {
    /// A service that has seen one change.
    pub fn of(change: Change) -> Self {
        Builder::default().apply(change)
    }

    /// The endpoint that holds a slot.
    pub fn endpoint(&self, slot: u32) -> Option<&Arc<Endpoint>> {
        self.slots.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    /// The endpoint that holds a slot, if it may be picked.
    pub fn eligible_endpoint(&self, slot: u32) -> Option<&Arc<Endpoint>> {
        let word = self.eligible.get(usize::try_from(slot / 64).ok()?)?;
        if word >> (slot % 64) & 1 == 1 { self.endpoint(slot) } else { None }
    }

    /// All registered endpoints, by slot.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.slots.iter().flatten()
    }

    /// One more than the highest slot in use.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Which endpoints may be picked: bit `slot % 64` of word `slot / 64`.
    pub fn eligible_bits(&self) -> &[u64] {
        &self.eligible
    }

    /// How many endpoints may be picked.
    pub fn eligible_count(&self) -> usize {
        self.eligible_count
    }

    /// Requests under way at each slot.
    pub fn in_flight(&self) -> Vec<u32> {
        self.load.in_flight(self.slots.len())
    }

    /// Latency average of each slot in microseconds.
    pub fn latency(&self) -> Vec<u32> {
        self.load.latency(self.slots.len())
    }

    /// What leads from `before` to here: slots that are gone, and endpoints that are new.
    pub fn since(&self, before: &Self) -> (Vec<u32>, Vec<Arc<Endpoint>>) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for index in 0..self.slots.len().max(before.slots.len()) {
            let (old, new) =
                (before.slots.get(index).and_then(Option::as_ref), self.slots.get(index).and_then(Option::as_ref));
            match (old, new) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
                (old, new) => {
                    removed.extend(old.map(|endpoint| endpoint.slot));
                    added.extend(new.cloned());
                }
            }
        }
        (removed, added)
    }
}

/// Turns changes into snapshots: hands out slots, remembers who holds them.
#[derive(Debug, Default)]
pub(super) struct Builder {
    slots: Vec<Option<Arc<Endpoint>>>,
    by_id: HashMap<String, u32>,
    free: BTreeSet<u32>,
    load: LoadTable,
    version: u64,
}

impl Builder {
    /// Applies a change; the snapshot after it.
    pub(super) fn apply(&mut self, change: Change) -> Snapshot {
        let Change { removed, added, .. } = change;
        // A registration that changed keeps its slot and its counters.
        let mut kept: HashMap<String, u32> = HashMap::new();
        for id in removed {
            let Some(slot) = self.by_id.remove(&id) else { continue };
            if let Some(place) = self.slots.get_mut(slot as usize) {
                *place = None;
            }
            self.free.insert(slot);
            kept.insert(id, slot);
        }
        for registered in added {
            let slot = match self.by_id.get(&registered.id) {
                Some(&slot) => slot,
                None => self.take_slot(kept.get(&registered.id).copied()),
            };
            self.place(slot, registered);
        }
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        self.free.split_off(&(self.slots.len() as u32));
        self.version += 1;
        self.snapshot()
    }

    /// The slot held before, else the lowest free one at which nothing of an earlier holder is under way.
    fn take_slot(&mut self, held: Option<u32>) -> u32 {
        let load = &mut self.load;
        let free = held
            .filter(|slot| self.free.contains(slot))
            .or_else(|| self.free.iter().copied().find(|&slot| load.is_idle(slot as usize)));
        match free {
            Some(slot) => {
                self.free.remove(&slot);
                if held != Some(slot) {
                    load.reset(slot as usize);
                }
                slot
            }
            None => {
                let mut slot = self.slots.len() as u32;
                while !load.is_idle(slot as usize) {
                    self.free.insert(slot);
                    slot += 1;
                }
                load.reset(slot as usize);
                slot
            }
        }
    }

    fn place(&mut self, slot: u32, registered: Registered) {
        let index = slot as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        self.by_id.insert(registered.id.clone(), slot);
        let socket = registered.address.parse().ok();
        let endpoint = Arc::new(Endpoint { slot, socket, load: self.load.slot(index), registered });
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(endpoint);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut eligible = vec![0_u64; self.slots.len().div_ceil(64)];
        let mut eligible_count = 0;
        for (word, chunk) in eligible.iter_mut().zip(self.slots.chunks(64)) {
            for (bit, endpoint) in chunk.iter().enumerate() {
                if endpoint.as_ref().is_some_and(|e| e.registered.weight > 0) {
                    *word |= 1 << bit;
                    eligible_count += 1;
                }
            }
        }
        Snapshot { version: self.version, slots: self.slots.clone(), eligible, eligible_count, load: self.load.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registered(id: &str, weight: u32) -> Registered {
        Registered { id: id.into(), address: "127.0.0.1:80".into(), weight, order: 0, metadata: vec![] }
    }

    fn change(removed: &[&str], added: &[(&str, u32)]) -> Change {
        Change {
            service: "users".into(),
            removed: removed.iter().map(ToString::to_string).collect(),
            added: added.iter().map(|(id, weight)| registered(id, *weight)).collect(),
        }
    }

    #[test]
    fn slots_stay_and_are_reused_lowest_first() {
        let mut builder = Builder::default();
        builder.apply(change(&[], &[("a", 1), ("b", 1), ("c", 1)]));
        let after = builder.apply(change(&["b"], &[]));
        assert_eq!(after.endpoint(2).unwrap().registered.id, "c");
        assert!(after.endpoint(1).is_none());
        let after = builder.apply(change(&[], &[("d", 1)]));
        assert_eq!(after.endpoint(1).unwrap().registered.id, "d");
    }

    #[test]
    fn a_slot_with_requests_under_way_is_not_given_to_another_endpoint() {
        let mut builder = Builder::default();
        let first = builder.apply(change(&[], &[("a", 1)]));
        let busy = first.endpoint(0).unwrap().load.begin();
        builder.apply(change(&["a"], &[]));
        let after = builder.apply(change(&[], &[("b", 1)]));
        assert_eq!(after.endpoint(1).unwrap().registered.id, "b");
        assert_eq!(after.endpoint(1).unwrap().load.in_flight(), 0);
        drop(busy);
        let after = builder.apply(change(&[], &[("c", 1)]));
        assert_eq!(after.endpoint(0).unwrap().registered.id, "c");
    }

    #[test]
    fn weight_zero_is_registered_but_not_eligible() {
        let mut builder = Builder::default();
        let snapshot = builder.apply(change(&[], &[("a", 0), ("b", 1)]));
        assert_eq!(snapshot.endpoints().count(), 2);
        assert_eq!(snapshot.eligible_count(), 1);
        assert!(snapshot.eligible_endpoint(0).is_none());
        assert!(snapshot.eligible_endpoint(1).is_some());
        assert!(snapshot.eligible_endpoint(9_999).is_none());
    }

    #[test]
    fn a_changed_registration_keeps_its_slot_and_is_reported_as_removed_and_added() {
        let mut builder = Builder::default();
        let before = builder.apply(change(&[], &[("a", 1), ("b", 1)]));
        let after = builder.apply(change(&["b"], &[("b", 5)]));
        let (removed, added) = after.since(&before);
        assert_eq!(removed, [1]);
        assert_eq!((added[0].slot, added[0].registered.weight), (1, 5));
    }

    proptest! {
        /// Whatever happens, differences lead from one snapshot to the next, and slots are held by one endpoint each.
        #[test]
        fn differences_reproduce_the_snapshot(steps in prop::collection::vec((0_u8..12, any::<bool>(), 0_u32..3), 1..60)) {
            let mut builder = Builder::default();
            let mut before = Snapshot::default();
            let mut held: HashMap<u32, String> = HashMap::new();
            for (name, add, weight) in steps {
                let id = name.to_string();
                let step = if add { change(&[&id], &[(&id, weight)]) } else { change(&[&id], &[]) };
                let after = builder.apply(step);
                let (removed, added) = after.since(&before);
                for slot in removed {
                    prop_assert!(held.remove(&slot).is_some());
                }
                for endpoint in added {
                    prop_assert!(held.insert(endpoint.slot, endpoint.registered.id.clone()).is_none());
                }
                let now: HashMap<u32, String> = after.endpoints().map(|e| (e.slot, e.registered.id.clone())).collect();
                prop_assert_eq!(&held, &now);
                prop_assert_eq!(after.eligible_count(), after.endpoints().filter(|e| e.registered.weight > 0).count());
                before = after;
            }
        }
    }
}
