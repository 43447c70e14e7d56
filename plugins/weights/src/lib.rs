//! What the weighted balancers share: the weights of the eligible endpoints ([`Weights`]), a draw in proportion to them
//! ([`Draw`]), and slow start ([`SlowStart`]).
//!
//! With `slow_start = "30s"` an endpoint that has just been registered, whose caches are cold and whose code is not yet
//! compiled, is not given its whole share at once: its weight is a tenth at first and grows in proportion to the time
//! that it has been there, up to the full weight after 30 s (Envoy's slow start with its defaults: aggression 1, at least
//! 10 %). Since when an endpoint is there is a fact that the proxy keeps, so that all workers agree on it and a reload of
//! the policy changes nothing. Where all endpoints are equally new, their shares are as usual: weights are relative.
//!
//! Without slow start, and while nobody is starting, a pick pays one comparison for it. While somebody is, it asks for
//! the time, and weights are computed anew once a hundredth of slow start's time has passed.

mod draw;
mod slow_start;

pub use draw::Draw;
pub use slow_start::{FULL, SlowStart};

use std::time::Duration;

use heddle_plugin::{Config, Endpoints, Slot, now};

/// The eligible endpoints with their weights of this moment.
pub struct Weights {
    slow_start: SlowStart,
    all: Vec<Weighted>,
    starting: Vec<Starting>,
}

/// An eligible endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// The endpoint's number.
    pub slot: Slot,
    /// Its weight in thousandths: below 2^42, and at least 100.
    pub weight: u64,
}

struct Starting {
    /// The place among all.
    index: usize,
    weight: u32,
    began: Duration,
}

impl Weights {
    /// Without endpoints; see [`SlowStart::new`] for the settings.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings.
    pub fn new(config: Config<'_>) -> Result<Self, String> {
        Ok(Self { slow_start: SlowStart::new(config)?, all: Vec::new(), starting: Vec::new() })
    }

    /// To be called when the set of eligible endpoints has changed.
    pub fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.all.clear();
        self.starting.clear();
        for (index, endpoint) in endpoints.eligible().enumerate() {
            let weight = endpoint.weight;
            if let Some(began) = self.slow_start.began(endpoints, endpoint) {
                self.starting.push(Starting { index, weight, began });
            }
            self.all.push(Weighted { slot: endpoint.slot, weight: u64::from(weight) * FULL });
        }
        self.compute(now());
    }

    /// To be called before each pick: true where weights have changed.
    pub fn grow(&mut self) -> bool {
        let Some(now) = self.slow_start.due() else { return false };
        self.compute(now);
        true
    }

    /// The eligible endpoints, by slot.
    #[must_use]
    pub fn all(&self) -> &[Weighted] {
        &self.all
    }

    fn compute(&mut self, now: Duration) {
        for starting in &self.starting {
            if let Some(weighted) = self.all.get_mut(starting.index) {
                weighted.weight = self.slow_start.weight(starting.weight, Some(starting.began), now);
            }
        }
        self.starting.retain(|starting| !self.slow_start.is_over(starting.began, now));
        self.slow_start.wait(now, !self.starting.is_empty());
    }
}

#[cfg(test)]
mod tests;
