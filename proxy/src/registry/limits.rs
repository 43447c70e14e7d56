//! How much of what registries announce is kept.
//!
//! A registry is input, and memory is what it takes. Both bounds hold for all sources together. Beyond them an entry is
//! not taken, what was known of its key stays, and `/state` names it; when there is room again, sources are read anew.

use std::fmt;

use super::layout::Announced;
use crate::config::checked::RegistryLimits;

/// What one registration counts beside its text, in bytes: its places in the catalog, the snapshot of its service and
/// the tables of the workers.
const OF_AN_ENDPOINT: usize = 1 << 10;

/// What a service counts: counters, health and snapshot, and what workers have for it.
const OF_A_SERVICE: usize = 5 << 10;

/// The text of a registration is kept in the catalog twice, and once in the service's snapshot.
const COPIES: usize = 3;

/// What is kept, or what one entry adds to it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Registrations: endpoints as often as keys announce them, and marks of a pause.
    pub endpoints: usize,
    /// Their memory, as estimated from their text.
    pub bytes: usize,
}

/// The bound that an entry would have exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Endpoints(usize),
    Bytes(usize),
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoints(most) => write!(f, "max_endpoints ({most}) is reached"),
            Self::Bytes(most) => write!(f, "max_registry_bytes ({most}) is reached"),
        }
    }
}

impl Kept {
    /// What an entry adds.
    pub fn of(key: &[u8], announced: &Announced) -> Self {
        let mut text = key.len() + announced.service.len();
        for endpoint in &announced.endpoints {
            let metadata: usize = endpoint.metadata.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
            text += endpoint.address.len() + metadata;
        }
        let endpoints = announced.endpoints.len().max(1);
        Self { endpoints, bytes: text * COPIES + endpoints * OF_AN_ENDPOINT }
    }

    /// The same with so many services.
    pub fn with_services(mut self, services: usize) -> Self {
        self.bytes = self.bytes.saturating_add(services.saturating_mul(OF_A_SERVICE));
        self
    }

    pub fn add(&mut self, more: Self) {
        self.endpoints = self.endpoints.saturating_add(more.endpoints);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    pub fn subtract(&mut self, less: Self) {
        self.endpoints = self.endpoints.saturating_sub(less.endpoints);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }

    /// The bound that `more` in the place of `less` would exceed.
    pub fn exceeds(mut self, limits: &RegistryLimits, more: Self, less: Self) -> Option<Exceeded> {
        self.subtract(less);
        self.add(more);
        if self.endpoints > limits.max_endpoints {
            Some(Exceeded::Endpoints(limits.max_endpoints))
        } else if self.bytes > limits.max_bytes {
            Some(Exceeded::Bytes(limits.max_bytes))
        } else {
            None
        }
    }

    /// Whether a tenth of what may be kept has become free since there was no room. Less is not worth another reading, and
    /// an entry that is too large in any case leads to none.
    pub fn has_room(&self, limits: &RegistryLimits, full: Self) -> bool {
        let (endpoints, bytes) = ((limits.max_endpoints / 10).max(1), (limits.max_bytes / 10).max(1));
        self.endpoints.saturating_add(endpoints) <= full.endpoints || self.bytes.saturating_add(bytes) <= full.bytes
    }
}
