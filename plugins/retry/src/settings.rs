//! What can be set, and what it is by default.

use std::time::Duration;

use heddle_plugin::{Config, duration};
use serde::Deserialize;

/// The table beside the plugin's name. A name that is not among these is refused.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    attempts: u32,
    #[serde(with = "duration")]
    timeout: Option<Duration>,
    #[serde(with = "duration")]
    per_try_timeout: Option<Duration>,
    #[serde(with = "duration")]
    backoff: Duration,
    #[serde(with = "duration")]
    max_backoff: Duration,
    statuses: Vec<u32>,
    grpc_statuses: Vec<String>,
    #[serde(with = "duration")]
    retry_after_max: Duration,
    non_idempotent: bool,
    hedge: String,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            attempts: 3,
            timeout: None,
            per_try_timeout: None,
            backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
            statuses: vec![502, 503, 504],
            grpc_statuses: vec!["unavailable".to_owned()],
            retry_after_max: Duration::from_secs(1),
            non_idempotent: false,
            hedge: "off".to_owned(),
        }
    }
}

/// The proxy makes no more attempts than this, whatever a policy says.
const MOST_ATTEMPTS: u32 = 16;

/// Nor does it wait for longer than this before one.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Settings that make sense.
pub struct Settings {
    /// 1 to 16.
    pub attempts: u32,
    pub timeout: Option<Duration>,
    pub per_try_timeout: Option<Duration>,
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// 400 to 599.
    pub statuses: Vec<u32>,
    /// 1 to 16.
    pub grpc_statuses: Vec<u32>,
    pub retry_after_max: Duration,
    pub non_idempotent: bool,
    /// In thousandths.
    pub hedge: Option<u32>,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn read(config: Config<'_>) -> Result<Self, String> {
        let written: Written = config.parse()?;
        if !(1..=MOST_ATTEMPTS).contains(&written.attempts) {
            return Err(format!("attempts = {}: expected 1 to {MOST_ATTEMPTS}", written.attempts));
        }
        if let Some(status) = written.statuses.iter().find(|status| !(400..600).contains(*status)) {
            return Err(format!("statuses has {status}: expected HTTP statuses from 400 to 599"));
        }
        if written.backoff > written.max_backoff {
            return Err("backoff is longer than max_backoff".to_owned());
        }
        for (name, time) in [("max_backoff", written.max_backoff), ("retry_after_max", written.retry_after_max)] {
            if time > LONGEST_DELAY {
                return Err(format!("{name} is too long: expected at most 60s"));
            }
        }
        let hedge = hedge(&written.hedge)?;
        if hedge.is_some() && written.attempts == 1 {
            return Err("hedge with attempts = 1: expected at least 2, as a hedge is one of them".to_owned());
        }
        for (name, time) in [("timeout", written.timeout), ("per_try_timeout", written.per_try_timeout)] {
            if time.is_some_and(|time| time < Duration::from_millis(1)) {
                return Err(format!("{name} is too short: expected at least 1ms"));
            }
        }
        Ok(Self {
            attempts: written.attempts,
            timeout: written.timeout,
            per_try_timeout: written.per_try_timeout,
            backoff: written.backoff,
            max_backoff: written.max_backoff,
            grpc_statuses: written.grpc_statuses.iter().map(|name| grpc_status(name)).collect::<Result<_, _>>()?,
            statuses: written.statuses,
            retry_after_max: written.retry_after_max,
            non_idempotent: written.non_idempotent,
            hedge,
        })
    }
}

/// The codes of gRPC from 1 on, as its "statuscodes" document names them.
const GRPC_STATUSES: [&str; 16] = [
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];

/// The code of a status that is named as in `unavailable`, `UNAVAILABLE` or `resource_exhausted`.
fn grpc_status(name: &str) -> Result<u32, String> {
    let known = name.to_ascii_lowercase().replace('_', "-");
    let place = GRPC_STATUSES.iter().position(|status| *status == known);
    let refusal = || format!("grpc_statuses has {name:?}: expected names such as {:?}", "unavailable");
    place.map(|place| place as u32 + 1).ok_or_else(refusal)
}

/// Thousandths of a percentile such as `p95` or `p99.9`; none for `off`.
fn hedge(text: &str) -> Result<Option<u32>, String> {
    if text == "off" {
        return Ok(None);
    }
    let percentile = || {
        let (whole, tenth) = text.strip_prefix('p')?.split_once('.').map_or((text.get(1..)?, "0"), |parts| parts);
        let is_number = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let known = is_number(whole, 2) && is_number(tenth, 1);
        let (whole, tenth): (u32, u32) = (whole.parse().ok()?, tenth.parse().ok()?);
        Some(whole * 10 + tenth).filter(|permille| known && *permille >= 500)
    };
    let refusal = || format!("hedge = {text:?}: expected a percentile from \"p50\" to \"p99.9\", or \"off\"");
    percentile().map(Some).ok_or_else(refusal)
}
