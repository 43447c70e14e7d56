//! An eligible endpoint at random, each as likely as any other.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request};

struct Random(heddle_plugin::Random);

impl Balancer for Random {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self(heddle_plugin::Random::new(seed)))
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let place = self.0.below(endpoints.eligible_len() as u64);
        endpoints.nth_eligible(place as usize)
    }
}

heddle_plugin::export_balancer!(Random);

#[cfg(test)]
mod tests;
