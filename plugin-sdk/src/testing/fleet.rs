use std::collections::HashMap;

use crate::Endpoint;
use crate::bindings::EndpointRecord;

/// An endpoint to register.
#[derive(Clone, Debug)]
pub struct Registration {
    address: String,
    weight: u32,
    order: Option<u64>,
    metadata: Vec<(String, String)>,
}

impl Registration {
    /// An endpoint at an address, with weight 1. Its id is the address after the key `test`.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), weight: 1, order: None, metadata: Vec::new() }
    }

    /// The same with another weight. 0 is passed on as it is, though the contract rules it out.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The same with a place in the order of creation; without, it is registered after all before it.
    #[must_use]
    pub fn order(mut self, order: u64) -> Self {
        self.order = Some(order);
        self
    }

    /// The same with one more name and value in the metadata.
    #[must_use]
    pub fn metadata(mut self, name: &str, value: &str) -> Self {
        self.metadata.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl<T: Into<String>> From<T> for Registration {
    fn from(address: T) -> Self {
        Self::new(address)
    }
}

/// Which endpoint has which slot, as the proxy keeps it: a new endpoint gets the lowest free one.
#[derive(Default)]
pub(super) struct Fleet {
    by_slot: Vec<Option<EndpointRecord>>,
    slots: HashMap<String, u32>,
    registered_ever: u64,
}

impl Fleet {
    pub(super) fn slot(&self, address: &str) -> Option<u32> {
        self.slots.get(address).copied()
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.by_slot.iter().flatten().cloned().map(Endpoint::from).collect()
    }

    /// The update that registers these: the slots removed, and the endpoints added.
    pub(super) fn register<R: Into<Registration>>(
        &mut self,
        registrations: impl IntoIterator<Item = R>,
    ) -> (Vec<u32>, Vec<EndpointRecord>) {
        let mut removed = Vec::new();
        let mut added = Vec::new();
        let mut lowest_free = 0;
        for registration in registrations {
            let Registration { address, weight, order, metadata } = registration.into();
            let slot = if let Some(slot) = self.slot(&address) {
                removed.push(slot);
                slot
            } else {
                while self.by_slot.get(lowest_free).is_some_and(Option::is_some) {
                    lowest_free += 1;
                }
                lowest_free as u32
            };
            self.registered_ever += 1;
            let order = order.unwrap_or(self.registered_ever);
            let record = EndpointRecord {
                slot,
                id: format!("test#{address}"),
                address: address.clone(),
                weight,
                order,
                metadata,
            };
            super::imports::set(&mut self.by_slot, slot, Some(record.clone()));
            self.slots.insert(address, slot);
            added.push(record);
        }
        (removed, added)
    }

    /// The update that removes these: the slots removed.
    pub(super) fn remove(&mut self, addresses: &[&str]) -> Vec<u32> {
        let removed: Vec<u32> = addresses.iter().filter_map(|&address| self.slots.remove(address)).collect();
        for &slot in &removed {
            super::imports::set(&mut self.by_slot, slot, None);
        }
        removed
    }
}
