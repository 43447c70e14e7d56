//! The same endpoint for the same client, for as long as that endpoint is eligible; `{by = "header:x-user"}` and the like
//! choose another key. [`hash_ring`] says how.

use hash_ring::{HashBalancer, Key, Ring};
use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request};

struct IpHash(HashBalancer<Ring>);

impl Balancer for IpHash {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        HashBalancer::new(config, seed, Key::ClientIp).map(Self)
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

heddle_plugin::export_balancer!(IpHash);

#[cfg(test)]
mod tests;
