//! Durations in settings, as the proxy's own configuration writes them: `"250ms"`, `"8s"`, `"1h 30m"`.
//!
//! A field of a policy's settings is read so with `#[serde(with = "heddle_plugin::duration")]`, whether it is a
//! [`Duration`] or an `Option` of one; beside it stands `#[serde(default)]`, or the whole type has that, where nothing need
//! be said.
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Settings {
//!     #[serde(with = "heddle_plugin::duration")]
//!     backoff: Duration,
//!     #[serde(with = "heddle_plugin::duration")]
//!     timeout: Option<Duration>,
//! }
//!
//! impl Default for Settings {
//!     fn default() -> Self {
//!         Self { backoff: Duration::from_millis(25), timeout: None }
//!     }
//! }
//!
//! let settings: Settings = heddle_plugin::Config::new(r#"{"timeout": "1m 30s"}"#).parse()?;
//! assert_eq!(settings.timeout, Some(Duration::from_secs(90)));
//! assert_eq!(settings.backoff, Duration::from_millis(25));
//! # Ok::<(), String>(())
//! ```

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

/// Reads a duration; for `#[serde(with = "heddle_plugin::duration")]`.
///
/// # Errors
///
/// Where it is no text, or none that [`parse`] takes.
pub fn deserialize<'de, D: Deserializer<'de>, T: From<Duration>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    let refusal = || format!("{text:?} is not a duration, such as \"250ms\" or \"8s\"");
    parse(&text).map(T::from).ok_or_else(|| Error::custom(refusal()))
}

/// One or more whole numbers, each with one of the units `us`, `ms`, `s`, `m`, `h` and `d`, added up.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim_ascii();
    let mut sum = Duration::ZERO;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let after = after.trim_ascii_start();
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(60 * 60)?),
            "d" => Duration::from_secs(number.checked_mul(24 * 60 * 60)?),
            _ => return None,
        };
        sum = sum.checked_add(part)?;
        rest = after.trim_ascii_start();
        if rest.is_empty() {
            return Some(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_are_added_up() {
        for (text, millis) in [
            ("250ms", 250),
            ("8s", 8_000),
            ("0s", 0),
            ("1h 30m", 5_400_000),
            (" 1d2h ", 93_600_000),
            ("1 m", 60_000),
            ("1500us", 1),
        ] {
            assert_eq!(parse(text).map(|time| time.as_millis()), Some(millis), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " ",
            "5",
            "ms",
            "1.5s",
            "-1s",
            "1s,",
            "1S",
            "1min",
            "99999999999999999999s",
            "18446744073709551615d",
            "1\u{e9}",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_what_would_do() {
        #[derive(Debug, serde::Deserialize)]
        struct Settings {
            #[serde(with = "super")]
            #[allow(dead_code, reason = "it is never there")]
            timeout: Duration,
        }
        let refusal = crate::Config::new(r#"{"timeout": "soon"}"#).parse::<Settings>().unwrap_err();
        assert!(refusal.contains(r#""soon" is not a duration, such as "250ms" or "8s""#), "{refusal}");
        assert!(crate::Config::new(r#"{"timeout": 5}"#).parse::<Settings>().is_err());
    }
}
