//! Each eligible endpoint in turn.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request, Rotation};

struct RoundRobin(Rotation);

impl Balancer for RoundRobin {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self(Rotation::new(seed)))
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        self.0.next(endpoints)
    }
}

heddle_plugin::export_balancer!(RoundRobin);

#[cfg(test)]
mod tests;
