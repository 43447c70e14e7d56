//! An eligible endpoint at random, in proportion to the weights.
//!
//! A pick draws a number below the sum of the weights and finds the endpoint that it falls to by a binary search in
//! their running sums: exact for any weights, about 10 steps for 1,000 endpoints.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random, Request, Slot};

struct WeightedRandom {
    random: Random,
    eligible: Vec<Part>,
}

struct Part {
    slot: Slot,
    /// The sum of the weights up to here, this one counted.
    end: u64,
}

impl Balancer for WeightedRandom {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self { random: Random::new(seed), eligible: Vec::new() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.eligible.clear();
        let mut end = 0;
        self.eligible.extend(endpoints.eligible().map(|endpoint| {
            end += u64::from(endpoint.weight);
            Part { slot: endpoint.slot, end }
        }));
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let drawn = self.random.below(self.eligible.last()?.end);
        let index = self.eligible.partition_point(|part| part.end <= drawn);
        endpoints.get(self.eligible.get(index)?.slot)
    }
}

heddle_plugin::export_balancer!(WeightedRandom);

#[cfg(test)]
mod tests;
