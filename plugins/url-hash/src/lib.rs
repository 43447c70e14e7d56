//! The same endpoint for the same path, for as long as that endpoint is eligible; `{by = "header:x-user"}` and the like
//! choose another key. [`hash_ring`] says how.

use hash_ring::{HashBalancer, Key, Ring};
use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request};

struct UrlHash(HashBalancer<Ring>);

impl Balancer for UrlHash {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        HashBalancer::new(config, seed, Key::Path).map(Self)
    }

    fn registered_changed(&mut self, endpoints: &Endpoints) {
        self.0.registered_changed(endpoints);
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.0.eligible_changed(endpoints);
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        self.0.pick(request, endpoints)
    }
}

heddle_plugin::export_balancer!(UrlHash);

#[cfg(test)]
mod tests;
