use std::ops::{Deref, Index};
use std::time::Duration;

use crate::bindings::EndpointRecord;
use crate::host;

/// An endpoint's number: the same for as long as it is registered, unique among the registered endpoints, and small.
///
/// It is the handle by which a balancer's own tables refer to an endpoint; [`Registered::get`] turns it back into one.
/// A number of an endpoint that is gone may later belong to another, so a table is rebuilt in
/// [`Balancer::registered_changed`](crate::Balancer::registered_changed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub(crate) u32);

impl Slot {
    /// The number itself, for a table of the policy's own that is indexed by it. Slots are dense: a service with `n`
    /// endpoints rarely has one above `n`.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One registered endpoint of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The endpoint's number.
    pub slot: Slot,
    /// Stable across updates and restarts, and the same in every proxy: the registration's key, percent-encoded, then
    /// `#`, then the address. What must agree between proxies, such as a hash, is made of this. One of more than 1,024
    /// bytes is cut, and ends with a hash of the whole.
    pub id: String,
    /// `host:port`; an IPv6 host stands in brackets.
    pub address: String,
    /// The share relative to the other endpoints, at least 1.
    pub weight: u32,
    /// The registry's order of creation: the endpoint with the smallest number has been there longest.
    pub order: u64,
    /// What the registration says beside address and weight, as names and values: at most 256 entries and 16 KiB an endpoint,
    /// and 8 MiB a service. The proxy leaves out what does not fit, counts it, and shows it in `/state`.
    pub metadata: Vec<(String, String)>,
}

impl Endpoint {
    /// The value of one name in the metadata; the first where it is there twice.
    #[must_use]
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl From<EndpointRecord> for Endpoint {
    fn from(record: EndpointRecord) -> Self {
        let EndpointRecord { slot, id, address, weight, order, metadata } = record;
        Self { slot: Slot(slot), id, address, weight: weight.max(1), order, metadata }
    }
}

/// The registered endpoints of the service, and their load.
#[derive(Debug, Default)]
pub struct Registered {
    by_slot: Vec<Option<Endpoint>>,
    len: usize,
}

impl Registered {
    /// How many endpoints are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no endpoint is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The endpoint with this slot, in constant time.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&Endpoint> {
        self.by_slot.get(slot.index())?.as_ref()
    }

    /// All of them, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.by_slot.iter().flatten()
    }

    /// Requests (for TCP, connections) under way at one endpoint, over all workers of the proxy.
    #[must_use]
    pub fn in_flight(&self, endpoint: &Endpoint) -> u32 {
        host::load::in_flight(endpoint.slot.0)
    }

    /// Requests under way at every endpoint, read at once. One call of this costs far less than one
    /// [`Registered::in_flight`] an endpoint.
    #[must_use]
    pub fn in_flight_all(&self) -> PerSlot {
        PerSlot(host::load::in_flight_all())
    }

    /// A moving average of the time to an endpoint's response head, in microseconds; 0 where nothing has been measured.
    #[must_use]
    pub fn latency_micros(&self, endpoint: &Endpoint) -> u32 {
        host::load::latency_micros(endpoint.slot.0)
    }

    /// The latency of every endpoint, read at once, as [`Registered::latency_micros`] gives it.
    #[must_use]
    pub fn latency_micros_all(&self) -> PerSlot {
        PerSlot(host::load::latency_micros_all())
    }

    /// The peak average of the time to an endpoint's response head, in microseconds, at least 1. It rises to a longer
    /// time at once; it falls towards shorter ones as they are measured, and towards nothing while there are none, by
    /// the factor e in 10 seconds. An endpoint that has just been registered has 30,000, and a failed attempt never
    /// makes it fall.
    #[must_use]
    pub fn peak_micros(&self, endpoint: &Endpoint) -> u32 {
        host::load::peak_micros(endpoint.slot.0)
    }

    /// When an endpoint was registered, on the clock of [`now`](crate::now). It stays the same when the registration
    /// changes. None for an endpoint that was there when the proxy first heard of its service.
    #[must_use]
    pub fn registered_at(&self, endpoint: &Endpoint) -> Option<Duration> {
        host::load::registered_micros(endpoint.slot.0).map(Duration::from_micros)
    }

    pub(crate) fn update(&mut self, removed: &[u32], added: Vec<EndpointRecord>) {
        for &slot in removed {
            if self.by_slot.get_mut(slot as usize).and_then(Option::take).is_some() {
                self.len -= 1;
            }
        }
        for record in added {
            let index = record.slot as usize;
            if index >= self.by_slot.len() {
                self.by_slot.resize_with(index + 1, || None);
            }
            if let Some(place) = self.by_slot.get_mut(index)
                && place.replace(record.into()).is_none()
            {
                self.len += 1;
            }
        }
    }
}

/// The endpoints that a balancer chooses from: all that are [`Registered`], which it dereferences to, and which of them
/// are eligible, that is, may be picked now.
///
/// Reading is in constant time and allocates nothing.
#[derive(Debug, Default)]
pub struct Endpoints {
    registered: Registered,
    eligible: Vec<Slot>,
    is_eligible: Vec<u64>,
}

impl Deref for Endpoints {
    type Target = Registered;

    fn deref(&self) -> &Registered {
        &self.registered
    }
}

impl Endpoints {
    /// The endpoint with this slot, if it is eligible.
    #[must_use]
    pub fn get_eligible(&self, slot: Slot) -> Option<&Endpoint> {
        let word = self.is_eligible.get(slot.index() / 64)?;
        if word >> (slot.index() % 64) & 1 == 1 { self.registered.get(slot) } else { None }
    }

    /// How many endpoints are eligible.
    #[must_use]
    pub fn eligible_len(&self) -> usize {
        self.eligible.len()
    }

    /// The eligible endpoint at a place in a circle: places run on past the last endpoint to the first. None where no
    /// endpoint is eligible.
    #[must_use]
    pub fn nth_eligible(&self, place: usize) -> Option<&Endpoint> {
        let index = place.checked_rem(self.eligible.len())?;
        self.registered.get(*self.eligible.get(index)?)
    }

    /// The eligible endpoint with the lowest slot above `after`, or, where there is none, the lowest of all. None where
    /// no endpoint is eligible. `after` need not be eligible, nor registered. The time grows with the logarithm of the
    /// number of eligible endpoints.
    #[must_use]
    pub fn next_eligible(&self, after: Slot) -> Option<&Endpoint> {
        self.nth_eligible(self.eligible.partition_point(|&slot| slot <= after))
    }

    /// The eligible endpoints, in the order of their slots.
    pub fn eligible(&self) -> impl Iterator<Item = &Endpoint> {
        self.eligible.iter().filter_map(|&slot| self.registered.get(slot))
    }

    pub(crate) fn update(&mut self, removed: &[u32], added: Vec<EndpointRecord>) {
        self.registered.update(removed, added);
        for &slot in removed {
            if let Some(word) = self.is_eligible.get_mut(slot as usize / 64) {
                *word &= !(1 << (slot % 64));
            }
        }
        self.list_eligible();
    }

    pub(crate) fn set_eligible(&mut self, bits: Vec<u64>) {
        self.is_eligible = bits;
        self.list_eligible();
    }

    fn list_eligible(&mut self) {
        self.eligible.clear();
        for (index, &word) in self.is_eligible.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let slot = Slot(index as u32 * 64 + rest.trailing_zeros());
                rest &= rest - 1;
                if self.registered.get(slot).is_some() {
                    self.eligible.push(slot);
                }
            }
        }
    }
}

/// A place in a rotation over the eligible endpoints.
///
/// It remembers the slot that was picked last, not how many picks there were: a count, taken modulo the number of
/// eligible endpoints, means another endpoint each time that number changes, and an endpoint that becomes eligible and
/// ineligible in step with the picks then keeps others from ever being picked. By slot, every endpoint that stays
/// eligible is picked before any other is picked twice, whatever the others do.
#[derive(Debug)]
pub struct Rotation {
    last: Option<Slot>,
    start: u64,
}

impl Rotation {
    /// A rotation that starts at the eligible endpoint that `seed` selects, so that instances with different seeds do
    /// not all pick the same endpoint first.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { last: None, start: seed }
    }

    /// The next eligible endpoint; none where no endpoint is eligible.
    pub fn next<'a>(&mut self, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let next = match self.last {
            Some(last) => endpoints.next_eligible(last),
            None => endpoints.nth_eligible(self.start as usize),
        }?;
        self.last = Some(next.slot);
        Some(next)
    }
}

/// One number an endpoint, indexed by its [`Slot`]. An endpoint without one has 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerSlot(Vec<u32>);

impl PerSlot {
    /// The numbers of `length` neighbouring slots, `first` among them the lowest: for a policy that looks at many, a
    /// slice is cheaper than one index each. It ends early where there are no more.
    #[must_use]
    pub fn run(&self, first: Slot, length: usize) -> &[u32] {
        let rest = self.0.get(first.index()..).unwrap_or_default();
        rest.get(..length).unwrap_or(rest)
    }
}

impl Index<Slot> for PerSlot {
    type Output = u32;

    fn index(&self, slot: Slot) -> &u32 {
        self.0.get(slot.index()).unwrap_or(&0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Endpoints, PerSlot, Slot};
    use crate::bindings::EndpointRecord;

    fn record(slot: u32, address: &str) -> EndpointRecord {
        EndpointRecord {
            slot,
            id: format!("test#{address}"),
            address: address.to_owned(),
            weight: 0,
            order: 1,
            metadata: vec![("zone".to_owned(), "a".to_owned())],
        }
    }

    fn eligible(endpoints: &Endpoints) -> Vec<&str> {
        endpoints.eligible().map(|endpoint| endpoint.address.as_str()).collect()
    }

    #[test]
    fn bits_say_who_is_eligible_in_any_word() {
        let mut endpoints = Endpoints::default();
        endpoints.update(&[], vec![record(0, "a"), record(63, "b"), record(64, "c"), record(200, "d")]);
        assert_eq!(eligible(&endpoints), Vec::<&str>::new());
        endpoints.set_eligible(vec![1 << 63 | 1, 1]);
        assert_eq!(eligible(&endpoints), ["a", "b", "c"]);
        assert_eq!(endpoints.len(), 4);
        assert!(endpoints.get(Slot(200)).is_some() && endpoints.get_eligible(Slot(200)).is_none());
        assert!(endpoints.get_eligible(Slot(64)).is_some() && endpoints.get_eligible(Slot(65)).is_none());
    }

    #[test]
    fn bits_of_slots_that_nobody_has_count_for_nothing() {
        let mut endpoints = Endpoints::default();
        endpoints.update(&[], vec![record(1, "a")]);
        endpoints.set_eligible(vec![u64::MAX; 3]);
        assert_eq!(eligible(&endpoints), ["a"]);
        assert_eq!(endpoints.nth_eligible(5).map(|endpoint| endpoint.address.as_str()), Some("a"));
    }

    #[test]
    fn an_endpoint_that_is_removed_is_not_eligible_and_its_successor_only_when_told() {
        let mut endpoints = Endpoints::default();
        endpoints.update(&[], vec![record(0, "a"), record(1, "b")]);
        endpoints.set_eligible(vec![3]);
        endpoints.update(&[1], vec![record(1, "c")]);
        assert_eq!(eligible(&endpoints), ["a"]);
        assert_eq!(endpoints.len(), 2);
        endpoints.set_eligible(vec![3]);
        assert_eq!(eligible(&endpoints), ["a", "c"]);
        endpoints.update(&[0, 1, 7], Vec::new());
        assert_eq!((endpoints.len(), endpoints.eligible_len()), (0, 0));
        assert!(endpoints.nth_eligible(0).is_none());
        assert!(endpoints.next_eligible(Slot(0)).is_none());
    }

    #[test]
    fn the_next_eligible_slot_goes_round() {
        let mut endpoints = Endpoints::default();
        endpoints.update(&[], (0..4).map(|slot| record(slot, &slot.to_string())).collect());
        endpoints.set_eligible(vec![0b1101]);
        let next = [0, 1, 2, 3, 9].map(|after| endpoints.next_eligible(Slot(after)).map(|endpoint| endpoint.slot.0));
        assert_eq!(next, [2, 2, 3, 0, 0].map(Some));
    }

    #[test]
    fn a_run_ends_where_the_numbers_do() {
        let numbers = PerSlot(vec![5, 6, 7]);
        assert_eq!(numbers.run(Slot(1), 1), [6]);
        assert_eq!(numbers.run(Slot(1), 9), [6, 7]);
        assert!(numbers.run(Slot(4), 1).is_empty());
    }

    #[test]
    fn a_weight_is_at_least_1() {
        let mut endpoints = Endpoints::default();
        endpoints.update(&[], vec![record(0, "a")]);
        let endpoint = endpoints.get(Slot(0)).expect("it was added");
        assert_eq!((endpoint.weight, endpoint.metadata("zone"), endpoint.metadata("rack")), (1, Some("a"), None));
    }
}
