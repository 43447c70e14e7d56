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
}

struct Candidate {
    slot: Slot,
    weight: u32,
}

/// The lowest load found: of the candidate at an index, and of others after it.
struct Lowest {
    index: usize,
    in_flight: u64,
    weight: u64,
    /// The weights of all who have this load.
    weights: u64,
}

impl Lowest {
    const INFINITE: Self = Self { index: 0, in_flight: 1, weight: 0, weights: 0 };
}

impl LeastConnections {
    /// One of the least loaded candidates that are not ruled out.
    fn choose(&mut self, in_flight: &PerSlot, out: impl Fn(Slot) -> bool) -> Option<Slot> {
        let load = |candidate: &Candidate| (u64::from(in_flight[candidate.slot]), u64::from(candidate.weight));
        let mut lowest = Lowest::INFINITE;
        for (index, candidate) in self.eligible.iter().enumerate() {
            if out(candidate.slot) {
                continue;
            }
            let (requests, weight) = load(candidate);
            // a / b < c / d where a * d < c * b.
            let (this, known) = (requests * lowest.weight, lowest.in_flight * weight);
            if this < known {
                lowest = Lowest { index, in_flight: requests, weight, weights: weight };
            } else if this == known {
                lowest.weights += weight;
            }
        }
        let mut drawn = self.random.below(lowest.weights);
        for candidate in self.eligible.get(lowest.index..)? {
            let (requests, weight) = load(candidate);
            if requests * lowest.weight == lowest.in_flight * weight && !out(candidate.slot) {
                if drawn < weight {
                    return Some(candidate.slot);
                }
                drawn -= weight;
            }
        }
        None
    }
}

impl Balancer for LeastConnections {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self { random: Random::new(seed), eligible: Vec::new() })
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
