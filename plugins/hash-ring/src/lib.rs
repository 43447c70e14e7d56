//! What the hash balancers share: which part of a request is the key ([`Key`]), a ring of the registered endpoints on
//! which each key has its place ([`Ring`], or another [`Table`]), and what follows from the two ([`HashBalancer`]).
//!
//! The same key goes to the same endpoint, in every proxy, for as long as that endpoint is registered and eligible.
//! When an endpoint is not eligible, or the request has tried it, the key moves on along the table, so that only the keys
//! of that endpoint move, and spread over the others. A request without the key (no such header, say) takes the
//! eligible endpoints in turn: sending all of them to one endpoint would overload it.
//!
//! With `bounded_load = 1.25` an endpoint that has 1.25 times its share of what is under way passes keys on until it has
//! less: one key that everybody asks for then spreads over as many endpoints as it takes. The price is that keys of busy
//! endpoints are not always at home.

mod bound;
mod key;
mod ring;

use bound::Bound;
use heddle_plugin::{Config, Endpoint, Endpoints, Request, Rotation, Slot};
pub use key::Key;
pub use ring::Ring;
use serde::Deserialize;

/// The settings: `{by = "header:x-user", bounded_load = 1.25}`; see [`Key`] for what can be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    by: Option<String>,
    bounded_load: Option<f64>,
}

/// Where each key has its place, the same in every proxy.
pub trait Table: Default {
    /// The table of these endpoints.
    fn new<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Self;

    /// The slots from a key's hash on, once around the table; most endpoints more than once.
    fn from(&self, hash: u64) -> impl Iterator<Item = Slot>;
}

/// A balancer by a key of the request.
pub struct HashBalancer<T> {
    by: Key,
    bound: Option<Bound>,
    table: T,
    without_key: Rotation,
}

impl<T: Table> HashBalancer<T> {
    /// A balancer by the key that the settings name, else by `default`.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings.
    pub fn new(config: Config<'_>, seed: u64, default: Key) -> Result<Self, String> {
        let settings: Settings = config.parse()?;
        let by = settings.by.map_or(Ok(default), |text| Key::parse(&text))?;
        let bound = settings.bounded_load.map(Bound::new).transpose()?;
        Ok(Self { by, bound, table: T::default(), without_key: Rotation::new(seed) })
    }

    /// To be called when endpoints were registered or removed.
    pub fn registered_changed(&mut self, endpoints: &Endpoints) {
        self.table = T::new(endpoints.iter());
    }

    /// To be called when the set of eligible endpoints has changed.
    pub fn eligible_changed(&mut self, endpoints: &Endpoints) {
        if let Some(bound) = &mut self.bound {
            bound.eligible_changed(endpoints);
        }
    }

    /// The endpoint of the request's key.
    pub fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let Some(hash) = self.by.hash(request) else { return self.without_key.next(endpoints) };
        let tried = request.tried();
        let untried = |endpoint: &&Endpoint| !tried.contains(endpoint);
        let eligible = || self.table.from(hash).filter_map(|slot| endpoints.get_eligible(slot));
        let found = if !endpoints.eligible().any(|endpoint| untried(&endpoint)) {
            if endpoints.eligible_len() == 0 { None } else { eligible().next() }
        } else if let Some(bound) = &self.bound {
            let has_room = bound.room(endpoints);
            eligible().filter(untried).find(|endpoint| has_room(endpoint)).or_else(|| eligible().find(untried))
        } else {
            eligible().find(untried)
        };
        // A table may be too small for all.
        found.or_else(|| endpoints.nth_eligible(hash as usize))
    }
}

#[cfg(test)]
mod tests;
