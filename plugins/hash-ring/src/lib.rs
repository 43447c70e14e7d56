//! What the hash balancers share: which part of a request is the key ([`Key`]), and a ring of the registered endpoints
//! ([`Ring`]) on which each key has its place.
//!
//! The same key goes to the same endpoint, in every proxy, for as long as that endpoint is registered and eligible.
//! When an endpoint is not eligible, or the request has tried it, the key moves on along the ring, so that only the keys
//! of that endpoint move, and spread over the others. A request without the key (no such header, say) takes the
//! eligible endpoints in turn: sending all of them to one endpoint would overload it.

mod key;
mod ring;

use heddle_plugin::{Config, Endpoint, Endpoints, Request};
pub use key::Key;
pub use ring::Ring;
use serde::Deserialize;

/// The settings: `{by = "header:x-user"}`; see [`Key`] for what can be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    by: Option<String>,
}

/// A balancer by a key of the request.
pub struct HashBalancer {
    by: Key,
    ring: Ring,
    turn: usize,
}

impl HashBalancer {
    /// A balancer by the key that the settings name, else by `default`.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings.
    pub fn new(config: Config<'_>, seed: u64, default: Key) -> Result<Self, String> {
        let by = match config.parse::<Settings>()?.by {
            Some(text) => Key::parse(&text)?,
            None => default,
        };
        Ok(Self { by, ring: Ring::default(), turn: seed as usize })
    }

    /// To be called when endpoints were registered or removed.
    pub fn registered_changed(&mut self, endpoints: &Endpoints) {
        self.ring = Ring::new(endpoints.iter());
    }

    /// The endpoint of the request's key.
    pub fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let Some(hash) = self.by.hash(request) else {
            self.turn = self.turn % endpoints.eligible_len().max(1) + 1;
            return endpoints.nth_eligible(self.turn);
        };
        let tried = request.tried();
        let eligible = || self.ring.from(hash).filter_map(|slot| endpoints.get_eligible(slot));
        if endpoints.eligible().any(|endpoint| !tried.contains(endpoint)) {
            eligible().find(|endpoint| !tried.contains(endpoint))
        } else if endpoints.eligible_len() > 0 {
            eligible().next()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
