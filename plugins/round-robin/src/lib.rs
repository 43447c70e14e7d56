//! Each eligible endpoint in turn.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request};

struct RoundRobin {
    turn: usize,
}

impl Balancer for RoundRobin {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self { turn: seed as usize })
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        self.turn = self.turn % endpoints.eligible_len().max(1) + 1;
        endpoints.nth_eligible(self.turn)
    }
}

heddle_plugin::export_balancer!(RoundRobin);

#[cfg(test)]
mod tests;
