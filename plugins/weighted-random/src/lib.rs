//! An eligible endpoint at random, in proportion to the weights.
//!
//! [`Draw`] says how; `{slow_start = "30s"}` lets the weight of a new endpoint grow, as [`weights`] says.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random, Request};
use weights::{Draw, Weights};

struct WeightedRandom {
    random: Random,
    weights: Weights,
    draw: Draw,
}

impl Balancer for WeightedRandom {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        Ok(Self { random: Random::new(seed), weights: Weights::new(config)?, draw: Draw::default() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.weights.eligible_changed(endpoints);
        self.draw.set(self.weights.all());
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        if self.weights.grow() {
            self.draw.set(self.weights.all());
        }
        let index = self.draw.one(&mut self.random)?;
        endpoints.get(self.weights.all().get(index)?.slot)
    }
}

heddle_plugin::export_balancer!(WeightedRandom);

#[cfg(test)]
mod tests;
