use std::time::Duration;

use heddle_plugin::{Config, duration};
use serde::Deserialize;

/// What the breaker goes by. Numbers of failures in a row are off where they are 0.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Failures in a row, of whatever kind, that eject an endpoint.
    pub consecutive_failures: u32,
    /// Answers in another's stead (502, 503, 504) and connections cut before a response, in a row.
    pub consecutive_gateway_errors: u32,
    /// Connections and responses that did not come in time, in a row.
    pub consecutive_timeouts: u32,
    /// Connections that did not come about, in a row. Fewer than of the others: it is never the fault of the one request
    /// that met it.
    pub consecutive_connect_failures: u32,
    /// How far an endpoint's success rate may be below the average, in standard deviations; 0 for as far as it likes.
    pub success_rate_deviations: f64,
    /// The time over which success rates are taken, in whole seconds from 1 to 60.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// An endpoint with fewer requests in the interval has no success rate.
    pub minimum_requests: u32,
    /// Fewer endpoints with a success rate are not compared.
    pub minimum_endpoints: usize,
    /// The longest that a first ejection lasts; each further one may last twice as long.
    #[serde(with = "duration")]
    pub ejection_time: Duration,
    /// The longest that any ejection lasts.
    #[serde(with = "duration")]
    pub max_ejection_time: Duration,
    /// Requests at once that find out whether an endpoint is well again.
    pub probes: u32,
    /// Failures in a row of the whole service that open it, where nearly all of its endpoints fail.
    pub service_failures: u32,
    /// For how long a service is open at first: up to a quarter longer, at random, and twice as long after a failed probe.
    #[serde(with = "duration")]
    pub open_time: Duration,
    /// Requests at once that find out whether a service is well again. More than one, as the first may hang.
    pub open_probes: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway_errors: 0,
            consecutive_timeouts: 0,
            consecutive_connect_failures: 3,
            success_rate_deviations: 1.9,
            interval: Duration::from_secs(10),
            minimum_requests: 100,
            minimum_endpoints: 5,
            ejection_time: Duration::from_secs(1),
            max_ejection_time: Duration::from_secs(60),
            probes: 1,
            service_failures: 10,
            open_time: Duration::from_millis(200),
            open_probes: 3,
        }
    }
}

impl Settings {
    /// The settings that the configuration gives.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn read(config: Config<'_>) -> Result<Self, String> {
        let settings: Self = config.parse()?;
        let millisecond = Duration::from_millis(1);
        let (hour, two_minutes) = (Duration::from_secs(60 * 60), Duration::from_secs(2 * 60));
        let rules = [
            (
                settings.interval.subsec_nanos() == 0 && (1..=60).contains(&settings.interval.as_secs()),
                "interval: expected whole seconds, from \"1s\" to \"60s\"",
            ),
            ((0.0..=100.0).contains(&settings.success_rate_deviations), "success_rate_deviations: expected 0 to 100"),
            (settings.minimum_requests > 0, "minimum_requests: expected at least 1"),
            (settings.minimum_endpoints >= 2, "minimum_endpoints: expected at least 2"),
            ((millisecond..=hour).contains(&settings.ejection_time), "ejection_time: expected \"1ms\" to \"1h\""),
            (
                (settings.ejection_time..=hour).contains(&settings.max_ejection_time),
                "max_ejection_time: expected at least ejection_time, and at most \"1h\"",
            ),
            (settings.probes > 0, "probes: expected at least 1"),
            // Twice that and a quarter more is the longest that the proxy keeps a service open.
            ((millisecond..=two_minutes).contains(&settings.open_time), "open_time: expected \"1ms\" to \"2m\""),
            (settings.open_probes > 0, "open_probes: expected at least 1"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err((*broken).to_owned()),
            None => Ok(settings),
        }
    }
}
