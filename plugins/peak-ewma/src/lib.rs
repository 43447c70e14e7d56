//! Of two eligible endpoints drawn at random, the one that is less loaded: by the peak of its latency, times the
//! requests that it would have under way.
//!
//! The load is Finagle's and Linkerd's (`PeakEwma`): an average of the time to the response head that rises to a longer
//! time at once and falls slowly, times the number of requests under way and this one. A request thus goes where it is
//! likely to be answered first. An endpoint that becomes slow loses its traffic with its first slow answer, not when an
//! average over many has moved; and since the average falls with time, it is tried again now and then. The average is
//! the proxy's (start 30 ms, decay 10 s, as in Linkerd), one for all workers; it survives a reload of the policy.
//!
//! Two are drawn, rather than all compared: workers that decide on the same figures at the same time would all choose
//! the one best endpoint (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12, 2001).
//! A pick costs the same with any number of endpoints.
//!
//! Draws are in proportion to the weights, and requests under way count for less where the weight is above the mean, so
//! that idle or busy, endpoints that are equally fast share as their weights say. `{slow_start = "30s"}` lets the weight
//! of a new endpoint grow, as [`weights`] says.
//!
//! An endpoint that the request has tried is passed over while another is eligible. A failed attempt never makes the
//! average fall, so that an endpoint does not look fast because it fails fast; yet such an endpoint has little under way
//! and keeps its share, or more. To take it out is the circuit breaker's work.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random, Request, Slot};
use weights::{Draw, Weighted, Weights};

struct PeakEwma {
    random: Random,
    weights: Weights,
    draw: Draw,
}

impl PeakEwma {
    /// Two different ones that are not ruled out, or one where there is no other.
    fn draw(&mut self, out: impl Fn(Slot) -> bool) -> Option<(Weighted, Option<Weighted>)> {
        /// Then the first one that is not ruled out is taken: nearly all are.
        const TRIALS: usize = 8;
        let all = self.weights.all();
        let fits =
            |place: usize| all.get(place).filter(|weighted| !out(weighted.slot)).map(|weighted| (place, *weighted));
        let (place, one) = (0..TRIALS)
            .find_map(|_| fits(self.draw.one(&mut self.random)?))
            .or_else(|| (0..all.len()).find_map(fits))?;
        let other = (0..TRIALS).find_map(|_| fits(self.draw.another(place, &mut self.random)?));
        Some((one, other.map(|(_, other)| other)))
    }

    /// What a request would find at an endpoint, in microseconds.
    fn load(&self, weighted: Weighted, endpoints: &Endpoints) -> f64 {
        let Some(endpoint) = endpoints.get(weighted.slot) else { return f64::INFINITY };
        let mean_weight = self.draw.total() as f64 / self.weights.all().len() as f64;
        let under_way = f64::from(endpoints.in_flight(endpoint)) * mean_weight / weighted.weight as f64;
        f64::from(endpoints.peak_micros(endpoint)) * (under_way + 1.0)
    }
}

impl Balancer for PeakEwma {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        Ok(Self { random: Random::new(seed), weights: Weights::new(config)?, draw: Draw::default() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.weights.eligible_changed(endpoints);
        self.draw.set(self.weights.all());
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        if self.weights.grow() {
            self.draw.set(self.weights.all());
        }
        let tried = request.tried();
        let untried = self.draw(|slot| tried.contains_slot(slot));
        let (one, other) = untried.or_else(|| self.draw(|_| false))?;
        let chosen = match other {
            Some(other) if self.load(other, endpoints) < self.load(one, endpoints) => other,
            _ => one,
        };
        endpoints.get(chosen.slot)
    }
}

heddle_plugin::export_balancer!(PeakEwma);

#[cfg(test)]
mod tests;
