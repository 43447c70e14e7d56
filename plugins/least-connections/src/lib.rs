//! The eligible endpoint with the fewest requests (for TCP, connections) under way for its weight, counted over all
//! workers of the proxy at the moment of the pick.
//!
//! An endpoint's load is the number of its requests divided by its weight, so one of weight 2 holds twice as many.
//! Among endpoints with the same load the choice is random in proportion to their weights, and so is the distribution
//! while all are idle. An endpoint that the request has tried is passed over while another is eligible: one that fails
//! fast would always be the least loaded.
//!
//! `{slow_start = "30s"}` lets the weight of a new endpoint grow, as [`weights`] says: it holds fewer requests at once
//! while it starts.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, PerSlot, Random, Request, Slot};
use weights::{Weighted, Weights};

/// More requests than this at one endpoint count as so many: a product with any weight then fits in 64 bits.
const MOST_REQUESTS: u32 = (1 << 22) - 1;

struct LeastConnections {
    random: Random,
    weights: Weights,
    greatest_weight: u64,
    /// The eligible ones as runs of neighbouring slots, where all weigh the same; empty where they do not.
    runs: Vec<Run>,
    /// Kept between picks for its room.
    tied: Vec<Tied>,
}

/// Eligible endpoints in neighbouring slots.
struct Run {
    first: Slot,
    length: usize,
    /// The place of the first among all eligible ones.
    at: usize,
}

impl Run {
    fn of<'a>(&self, in_flight: &'a PerSlot) -> &'a [u32] {
        in_flight.run(self.first, self.length)
    }
}

/// One of those who have the lowest load.
struct Tied {
    slot: Slot,
    /// The sum of the weights of all of them up to here, this one counted.
    end: u64,
}

impl LeastConnections {
    /// One that is idle, if a few trials find one: nobody has a lower load, so the others need not be looked at.
    fn draw_idle(&mut self, in_flight: &PerSlot, out: impl Fn(Slot) -> bool) -> Option<Slot> {
        const TRIALS: usize = 4;
        (0..TRIALS).find_map(|_| {
            let eligible = self.weights.all();
            let index = self.random.below(eligible.len() as u64) as usize;
            let &Weighted { slot, weight } = eligible.get(index)?;
            let taken = self.random.below(self.greatest_weight) < weight;
            (in_flight[slot] == 0 && taken && !out(slot)).then_some(slot)
        })
    }

    /// One of the least loaded candidates that are not ruled out.
    fn choose(&mut self, in_flight: &PerSlot, out: impl Fn(Slot) -> bool) -> Option<Slot> {
        let idle = self.draw_idle(in_flight, &out);
        if idle.is_some() {
            return idle;
        }
        self.tied.clear();
        // The lowest load so far, as a fraction; at first it is infinite.
        let (mut lowest_in_flight, mut lowest_weight) = (1, 0);
        let mut end = 0;
        for &Weighted { slot, weight } in self.weights.all() {
            let requests = u64::from(in_flight[slot].min(MOST_REQUESTS));
            // a / b < c / d where a * d < c * b.
            let (this, lowest) = (requests * lowest_weight, lowest_in_flight * weight);
            if this > lowest || out(slot) {
                continue;
            }
            if this < lowest {
                (lowest_in_flight, lowest_weight) = (requests, weight);
                self.tied.clear();
                end = 0;
            }
            end += weight;
            self.tied.push(Tied { slot, end });
        }
        let drawn = self.random.below(end);
        let index = self.tied.partition_point(|tied| tied.end <= drawn);
        self.tied.get(index).map(|tied| tied.slot)
    }

    /// The same where all weigh the same and none is ruled out: find the lowest, count who has it, draw one of those.
    fn choose_even(&mut self, in_flight: &PerSlot) -> Option<Slot> {
        let (mut lowest, mut holders) = (u32::MAX, 0_u32);
        for run in &self.runs {
            lowest = run.of(in_flight).iter().fold(lowest, |lowest, &requests| lowest.min(requests));
        }
        for run in &self.runs {
            holders += run.of(in_flight).iter().map(|&requests| u32::from(requests == lowest)).sum::<u32>();
        }
        let mut before = self.random.below(holders.into());
        for run in &self.runs {
            for (offset, _) in run.of(in_flight).iter().enumerate().filter(|(_, requests)| **requests == lowest) {
                if before == 0 {
                    return self.weights.all().get(run.at + offset).map(|weighted| weighted.slot);
                }
                before -= 1;
            }
        }
        None
    }

    /// To be called when weights have changed.
    fn weigh(&mut self) {
        let eligible = self.weights.all();
        self.greatest_weight = eligible.iter().map(|weighted| weighted.weight).max().unwrap_or(0);
        self.runs.clear();
        if eligible.iter().any(|weighted| weighted.weight != self.greatest_weight) {
            return;
        }
        for (at, weighted) in eligible.iter().enumerate() {
            match self.runs.last_mut() {
                Some(run) if run.first.index() + run.length == weighted.slot.index() => run.length += 1,
                _ => self.runs.push(Run { first: weighted.slot, length: 1, at }),
            }
        }
    }
}

impl Balancer for LeastConnections {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        Ok(Self {
            random: Random::new(seed),
            weights: Weights::new(config)?,
            greatest_weight: 0,
            runs: Vec::new(),
            tied: Vec::new(),
        })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.weights.eligible_changed(endpoints);
        self.weigh();
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        if self.weights.grow() {
            self.weigh();
        }
        let in_flight = endpoints.in_flight_all();
        let tried = request.tried();
        let slot = if tried.is_empty() && !self.runs.is_empty() {
            self.draw_idle(&in_flight, |_| false).or_else(|| self.choose_even(&in_flight))
        } else if tried.is_empty() {
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
