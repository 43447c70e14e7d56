use std::time::Duration;

use heddle_plugin::{Config, Endpoint, Endpoints, now};
use serde::Deserialize;

/// A whole weight, in the thousandths in which [`SlowStart::weight`] gives it.
pub const FULL: u64 = 1000;

/// What a starting endpoint has at least, in thousandths of its weight.
const LEAST: u64 = 100;

/// Weights are computed anew after this part of slow start's time.
const STEPS: u32 = 100;

/// The settings: `{slow_start = "30s"}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default, with = "heddle_plugin::duration")]
    slow_start: Option<Duration>,
}

/// How the weight of a new endpoint grows.
pub struct SlowStart {
    /// From an endpoint's registration to its full weight; zero where there is no slow start.
    time: Duration,
    /// When weights have to be computed anew; none while no endpoint is starting.
    due: Option<Duration>,
}

impl SlowStart {
    /// What the settings say in `slow_start`; none by default.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings, which must name nothing else.
    pub fn new(config: Config<'_>) -> Result<Self, String> {
        let settings: Settings = config.parse()?;
        Ok(Self { time: settings.slow_start.unwrap_or_default(), due: None })
    }

    /// When an endpoint's start began, as long as it is not over.
    #[must_use]
    pub fn began(&self, endpoints: &Endpoints, endpoint: &Endpoint) -> Option<Duration> {
        if self.time.is_zero() {
            return None;
        }
        endpoints.registered_at(endpoint).filter(|&began| !self.is_over(began, now()))
    }

    /// Whether a start that began then is over.
    #[must_use]
    pub fn is_over(&self, began: Duration, now: Duration) -> bool {
        now.saturating_sub(began) >= self.time
    }

    /// A weight at this time, in thousandths, of an endpoint whose start began then, or that is not starting.
    #[must_use]
    pub fn weight(&self, weight: u32, began: Option<Duration>, now: Duration) -> u64 {
        let grown = began.map_or(FULL, |began| {
            let grown = now.saturating_sub(began).as_micros() * u128::from(FULL) / self.time.as_micros().max(1);
            u64::try_from(grown).unwrap_or(FULL).clamp(LEAST, FULL)
        });
        u64::from(weight) * grown
    }

    /// The time, where weights have to be computed anew; the caller then says when to ask again, by
    /// [`SlowStart::wait`].
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let due = self.due?;
        Some(now()).filter(|&now| now >= due)
    }

    /// Weights were computed at this time; whether any endpoint is still starting.
    pub fn wait(&mut self, now: Duration, is_starting: bool) {
        self.due = is_starting.then(|| now.saturating_add(self.time / STEPS));
    }
}
