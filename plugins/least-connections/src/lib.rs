//! The eligible endpoint with the fewest requests (for TCP, connections) under way for its weight, counted over all
//! workers of the proxy at the moment of the pick.
//!
//! An endpoint's load is the number of its requests divided by its weight, so one of weight 2 holds twice as many.
//! Among endpoints with the same load the choice is random in proportion to their weights, and so is the distribution
//! while all are idle. An endpoint that the request has tried is passed over while another is eligible: one that fails
//! fast would always be the least loaded.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, PerSlot, Random, Request, Slot};

struct LeastConnections {
    random: Random,
    eligible: Vec<Candidate>,
    /// Kept between picks for its room.
    tied: Vec<u32>,
}

struct Candidate {
    slot: Slot,
    weight: u32,
}

/// The lowest load so far, as a fraction, and how many candidates have it.
struct Lowest {
    in_flight: u64,
    weight: u64,
    count: usize,
    /// Their weights together.
    weights: u64,
}

impl LeastConnections {
    /// One of the least loaded candidates that are not ruled out.
    fn choose(&mut self, in_flight: &PerSlot, out: impl Fn(Slot) -> bool) -> Option<Slot> {
        const INFINITE: Lowest = Lowest { in_flight: 1, weight: 0, count: 0, weights: 0 };
        let mut lowest = INFINITE;
        // Written at each step, and kept only where the count then covers it: no branch that is hard to foresee.
        self.tied.resize(self.eligible.len() + 1, 0);
        for (index, &Candidate { slot, weight }) in (0..).zip(&self.eligible) {
            let (requests, weight) = (u64::from(in_flight[slot]), u64::from(weight));
            // a / b < c / d where a * d < c * b.
            let (this, known) = (requests * lowest.weight, lowest.in_flight * weight);
            if this > known || out(slot) {
                continue;
            }
            if this < known {
                lowest = Lowest { in_flight: requests, weight, ..INFINITE };
            }
            if let Some(place) = self.tied.get_mut(lowest.count) {
                *place = index;
            }
            lowest.count += 1;
            lowest.weights += weight;
        }
        let mut drawn = self.random.below(lowest.weights);
        self.tied.get(..lowest.count)?.iter().find_map(|&index| {
            let &Candidate { slot, weight } = self.eligible.get(index as usize)?;
            match drawn.checked_sub(weight.into()) {
                Some(rest) => {
                    drawn = rest;
                    None
                }
                None => Some(slot),
            }
        })
    }
}

impl Balancer for LeastConnections {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self { random: Random::new(seed), eligible: Vec::new(), tied: Vec::new() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.eligible.clear();
        self.eligible
            .extend(endpoints.eligible().map(|endpoint| Candidate { slot: endpoint.slot, weight: endpoint.weight }));
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let in_flight = endpoints.in_flight_all();
        let tried = request.tried();
        let slot = if tried.is_empty() {
            self.choose(&in_flight, |_| false)
        } else {
            self.choose(&in_flight, |slot| tried.contains_slot(slot)).or_else(|| self.choose(&in_flight, |_| false))
        };
        endpoints.get(slot?)
    }
}

heddle_plugin::export_balancer!(LeastConnections);

#[cfg(test)]
mod tests;
