//! What a service looked like at one moment.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::health::{Condition, Health};
use super::load::{Load, LoadTable};
use super::pause::Pause;
use super::policy_view::PolicyView;
use crate::config::checked::Ejection;
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
    pub health: Arc<Health>,
    /// When it was registered, on the fleet's clock; none where it was there when the proxy began.
    pub registered_at: Option<Duration>,
    /// What policies are given of the registration.
    pub policy_view: PolicyView,
    paused_by_registry: bool,
}

impl Endpoint {
    /// Whether it is kept from being picked, and by whom.
    pub fn pause(&self) -> Pause {
        Pause { by_registry: self.paused_by_registry, by_admin: self.health.paused.load(Relaxed) }
    }

    /// Whether it is meant to be picked: it has a weight, and nobody has paused it.
    fn is_offered(&self) -> bool {
        self.registered.weight > 0 && !self.pause().is_paused()
    }
}

/// The endpoints of a service at one moment, never changed once published.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the service's changes; 0 before the first.
    pub version: u64,
    slots: Arc<Vec<Option<Arc<Endpoint>>>>,
    eligible: Vec<u64>,
    eligible_count: usize,
    /// Whether so few endpoints are well that all are eligible.
    in_panic: bool,
    pause: Pause,
    load: LoadTable,
}

impl Snapshot {
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

    /// Whether endpoints are eligible although they are out of use, as too few others are in it.
    pub fn is_in_panic(&self) -> bool {
        self.in_panic
    }

    /// Whether the service as a whole is kept from being used, and by whom: no endpoint is eligible then.
    pub fn pause(&self) -> Pause {
        self.pause
    }

    /// Requests under way at each slot.
    pub fn in_flight(&self) -> Vec<u32> {
        self.load.in_flight(self.slots.len())
    }

    /// Latency average of each slot in microseconds.
    pub fn latency(&self) -> Vec<u32> {
        self.load.latency(self.slots.len())
    }

    /// Whether the same endpoints are registered as in another one of the service.
    pub fn has_same_endpoints(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slots, &other.slots)
    }

    /// What leads from `before` to here: slots that are gone, and endpoints that are new.
    pub fn since(&self, before: &Self) -> (Vec<u32>, Vec<Arc<Endpoint>>) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        if Arc::ptr_eq(&self.slots, &before.slots) {
            return (removed, added);
        }
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
#[derive(Debug)]
pub(super) struct Builder {
    pub ejection: Ejection,
    /// Whether whoever is registered now was not there when the proxy began.
    pub settled: bool,
    /// Of the service as a whole.
    pub pause: Pause,
    /// Shared with the snapshots until it changes.
    slots: Arc<Vec<Option<Arc<Endpoint>>>>,
    /// Of each slot's last holder.
    health: Vec<Arc<Health>>,
    /// The same; see [`Endpoint::registered_at`].
    registered_at: Vec<Option<Duration>>,
    by_id: HashMap<String, u32>,
    free: BTreeSet<u32>,
    load: LoadTable,
    version: u64,
    /// What the metadata that policies are given of all endpoints cost together.
    metadata_cost: usize,
    /// Entries of metadata that policies are not given, since the service's beginning.
    pub metadata_dropped: u64,
}

impl Builder {
    pub fn new(ejection: Ejection) -> Self {
        Self {
            ejection,
            settled: false,
            pause: Pause::default(),
            slots: Arc::default(),
            health: Vec::new(),
            registered_at: Vec::new(),
            by_id: HashMap::new(),
            free: BTreeSet::new(),
            load: LoadTable::default(),
            version: 0,
            metadata_cost: 0,
            metadata_dropped: 0,
        }
    }

    /// The endpoint that holds a slot.
    pub fn endpoint(&self, slot: u32) -> Option<&Arc<Endpoint>> {
        self.slots.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    /// All registered endpoints, by slot.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.slots.iter().flatten()
    }

    /// Whether the share of endpoints that may be ejected leaves room for one more; one may always be.
    ///
    /// Only those count that would be picked if they were not out of use. One that is paused, or whose check fails, gets
    /// no probe that could put it back: it would hold its place in the share for as long, and others would not be ejected
    /// whatever they do. The share never bounded how many checks fail, so that no fewer endpoints are left than if the
    /// check had failed first; and where fewer than `panic_percent` are, all are used. One whose check passes again
    /// counts again, beside the one that was ejected in its place, until its probe.
    pub fn may_eject_one_more(&self) -> bool {
        let registered = self.endpoints().count();
        let is_counted = |endpoint: &&Arc<Endpoint>| {
            let health = &endpoint.health;
            endpoint.is_offered() && !health.check_fails() && health.condition() != Condition::InUse
        };
        let out = self.endpoints().filter(is_counted).count();
        let most = registered.saturating_mul(usize::from(self.ejection.max_percent)) / 100;
        out < most.max(1)
    }

    /// Applies a change at this time.
    pub fn apply(&mut self, change: Change, now: Duration) {
        let Change { removed, added, paused, .. } = change;
        self.pause.by_registry = paused.unwrap_or(self.pause.by_registry);
        // A registration that changed keeps its slot and its counters.
        let mut kept: HashMap<String, u32> = HashMap::new();
        for id in removed {
            let Some(slot) = self.by_id.remove(&id) else { continue };
            if let Some(place) = Arc::make_mut(&mut self.slots).get_mut(slot as usize) {
                let cost = place.take().map_or(0, |endpoint| endpoint.policy_view.cost());
                self.metadata_cost = self.metadata_cost.saturating_sub(cost);
            }
            self.free.insert(slot);
            kept.insert(id, slot);
        }
        // Those that stay come first: nobody new is given a slot that is somebody's, however the order has changed.
        let (staying, new): (Vec<_>, Vec<_>) = added.into_iter().partition(|added| kept.contains_key(&added.id));
        for registered in staying.into_iter().chain(new) {
            let slot = match self.by_id.get(&registered.id) {
                Some(&slot) => slot,
                None => self.take_slot(kept.get(&registered.id).copied(), now),
            };
            self.place(slot, registered);
        }
        while self.slots.last().is_some_and(Option::is_none) {
            Arc::make_mut(&mut self.slots).pop();
        }
        self.free.split_off(&(self.slots.len() as u32));
    }

    /// The slot held before, else the lowest free one at which nothing of an earlier holder is under way.
    fn take_slot(&mut self, held: Option<u32>, now: Duration) -> u32 {
        let load = &mut self.load;
        let free = held
            .filter(|slot| self.free.contains(slot))
            .or_else(|| self.free.iter().copied().find(|&slot| load.is_idle(slot as usize)));
        match free {
            Some(slot) => {
                self.free.remove(&slot);
                if held != Some(slot) {
                    self.reset(slot, now);
                }
                slot
            }
            None => {
                let mut slot = self.slots.len() as u32;
                while !load.is_idle(slot as usize) {
                    self.free.insert(slot);
                    slot += 1;
                }
                self.reset(slot, now);
                slot
            }
        }
    }

    /// Forgets what an earlier holder of the slot left behind; the next one comes now.
    fn reset(&mut self, slot: u32, now: Duration) {
        let index = slot as usize;
        self.load.reset(index, now);
        if self.health.len() <= index {
            self.health.resize_with(index + 1, Arc::default);
            self.registered_at.resize(index + 1, None);
        }
        if let Some(registered_at) = self.registered_at.get_mut(index) {
            *registered_at = self.settled.then_some(now);
        }
        if let Some(health) = self.health.get_mut(index) {
            *health = Arc::default();
        }
    }

    fn place(&mut self, slot: u32, registered: Registered) {
        let index = slot as usize;
        let health = self.health.get(index).cloned().unwrap_or_default();
        let registered_at = self.registered_at.get(index).copied().flatten();
        let slots = Arc::make_mut(&mut self.slots);
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        let before = slots.get(index).and_then(Option::as_ref).map_or(0, |endpoint| endpoint.policy_view.cost());
        self.metadata_cost = self.metadata_cost.saturating_sub(before);
        let policy_view = PolicyView::new(&registered, self.metadata_cost);
        self.metadata_cost = self.metadata_cost.saturating_add(policy_view.cost());
        self.metadata_dropped = self.metadata_dropped.saturating_add(policy_view.dropped() as u64);
        self.by_id.insert(registered.id.clone(), slot);
        let socket = registered.address.parse().ok();
        let (load, paused_by_registry) = (self.load.slot(index), registered.is_paused());
        let endpoint =
            Endpoint { slot, socket, load, health, registered_at, policy_view, paused_by_registry, registered };
        let endpoint = Arc::new(endpoint);
        if let Some(place) = slots.get_mut(index) {
            *place = Some(endpoint);
        }
    }

    /// The next snapshot.
    pub fn snapshot(&mut self) -> Snapshot {
        self.version += 1;
        let is_running = !self.pause.is_paused();
        let (usable, usable_count) = self.bits(|endpoint| is_running && endpoint.is_offered());
        let (well, well_count) = self.bits(|endpoint| {
            let health = &endpoint.health;
            is_running && endpoint.is_offered() && health.condition() != Condition::Out && !health.check_fails()
        });
        let in_panic = well_count * 100 < usable_count * usize::from(self.ejection.panic_percent);
        let (eligible, eligible_count) = if in_panic { (usable, usable_count) } else { (well, well_count) };
        Snapshot {
            version: self.version,
            slots: self.slots.clone(),
            eligible,
            eligible_count,
            in_panic,
            pause: self.pause,
            load: self.load.clone(),
        }
    }

    fn bits(&self, of: impl Fn(&Endpoint) -> bool) -> (Vec<u64>, usize) {
        let word = |chunk: &[Option<Arc<Endpoint>>]| {
            let set = chunk.iter().map(|endpoint| endpoint.as_ref().is_some_and(|endpoint| of(endpoint)));
            set.enumerate().fold(0_u64, |word, (bit, set)| word | u64::from(set) << bit)
        };
        let words: Vec<u64> = self.slots.chunks(64).map(word).collect();
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        (words, count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registered(id: &str, weight: u32) -> Registered {
        Registered {
            id: id.into(),
            address: "127.0.0.1:80".into(),
            weight,
            order: 0,
            metadata: vec![],
            egress: Arc::default(),
        }
    }

    /// A builder, and a snapshot after each change.
    struct Changing(Builder);

    fn builder() -> Changing {
        Changing(Builder::new(Ejection { max_percent: 10, panic_percent: 50 }))
    }

    impl Changing {
        fn apply(&mut self, change: Change) -> Snapshot {
            self.0.apply(change, Duration::ZERO);
            self.0.snapshot()
        }
    }

    fn change(removed: &[&str], added: &[(&str, u32)]) -> Change {
        Change {
            service: "users".into(),
            removed: removed.iter().map(ToString::to_string).collect(),
            added: added.iter().map(|(id, weight)| registered(id, *weight)).collect(),
            paused: None,
            proxied: None,
        }
    }

    #[test]
    fn slots_stay_and_are_reused_lowest_first() {
        let mut builder = builder();
        builder.apply(change(&[], &[("a", 1), ("b", 1), ("c", 1)]));
        let after = builder.apply(change(&["b"], &[]));
        assert_eq!(after.endpoint(2).unwrap().registered.id, "c");
        assert!(after.endpoint(1).is_none());
        let after = builder.apply(change(&[], &[("d", 1)]));
        assert_eq!(after.endpoint(1).unwrap().registered.id, "d");
    }

    #[test]
    fn a_slot_with_requests_under_way_is_not_given_to_another_endpoint() {
        let mut builder = builder();
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
        let mut builder = builder();
        let snapshot = builder.apply(change(&[], &[("a", 0), ("b", 1)]));
        assert_eq!(snapshot.endpoints().count(), 2);
        assert_eq!(snapshot.eligible_count(), 1);
        assert!(snapshot.eligible_endpoint(0).is_none());
        assert!(snapshot.eligible_endpoint(1).is_some());
        assert!(snapshot.eligible_endpoint(9_999).is_none());
    }

    #[test]
    fn a_changed_registration_keeps_its_slot_and_is_reported_as_removed_and_added() {
        let mut builder = builder();
        let before = builder.apply(change(&[], &[("a", 1), ("b", 1)]));
        let after = builder.apply(change(&["b"], &[("b", 5)]));
        let (removed, added) = after.since(&before);
        assert_eq!(removed, [1]);
        assert_eq!((added[0].slot, added[0].registered.weight), (1, 5));
    }

    /// As where one is put first in a list whose order is that of registration.
    #[test]
    fn endpoints_keep_their_slots_whoever_comes_before_them() {
        let mut builder = builder();
        let before = builder.apply(change(&[], &[("a", 1), ("b", 1)]));
        before.endpoint(0).unwrap().health.paused.store(true, Relaxed);
        let _busy = before.endpoint(1).unwrap().load.begin();
        let after = builder.apply(change(&["a", "b"], &[("new", 1), ("a", 1), ("b", 1)]));
        let ids: Vec<_> = after.endpoints().map(|endpoint| endpoint.registered.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "new"]);
        assert!(after.endpoints().map(|endpoint| endpoint.pause().by_admin).eq([true, false, false]));
        assert_eq!(after.in_flight(), [0, 1, 0]);
        // The same where one of them goes at the same time.
        let after = builder.apply(change(&["a", "b", "new"], &[("newer", 1), ("new", 1), ("b", 1)]));
        let ids: Vec<_> = after.endpoints().map(|endpoint| endpoint.registered.id.as_str()).collect();
        assert_eq!(ids, ["newer", "b", "new"]);
        assert!(!after.endpoint(0).unwrap().pause().is_paused());
    }

    #[test]
    fn an_endpoint_is_as_old_as_its_registration() {
        let at = Duration::from_secs;
        let mut builder = Builder::new(Ejection { max_percent: 10, panic_percent: 50 });
        builder.apply(change(&[], &[("a", 1)]), at(1));
        builder.settled = true;
        builder.apply(change(&[], &[("b", 1), ("c", 1)]), at(50));
        builder.apply(change(&["a", "b"], &[("a", 2), ("b", 2)]), at(60));
        builder.apply(change(&["c"], &[]), at(70));
        builder.apply(change(&[], &[("d", 1)]), at(80));
        let snapshot = builder.snapshot();
        let ages: Vec<_> = snapshot.endpoints().map(|e| (e.registered.id.as_str(), e.registered_at)).collect();
        assert_eq!(ages, [("a", None), ("b", Some(at(50))), ("d", Some(at(80)))]);
        let peaks: Vec<_> = snapshot.endpoints().map(|e| e.load.peak_micros(at(80))).collect();
        assert!(peaks[0] < peaks[1] && peaks[1] < peaks[2], "{peaks:?}");
        assert_eq!(peaks[2], 30_000, "the one before at this slot has left nothing behind");
    }

    proptest! {
        /// Whatever happens, differences lead from one snapshot to the next, and slots are held by one endpoint each.
        #[test]
        fn differences_reproduce_the_snapshot(steps in prop::collection::vec((0_u8..12, any::<bool>(), 0_u32..3), 1..60)) {
            let mut builder = builder();
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
