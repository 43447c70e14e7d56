use std::time::Duration;

use heddle_plugin::testing::{Outcome, Request, Retries};
use heddle_plugin::{Kind, Terms};
use proptest::prelude::*;

use super::Retry;

fn retries(config: &str) -> Retries<Retry> {
    Retries::new(config, 7).expect("settings that are fine")
}

/// The end of an attempt that was sent and can be sent again.
fn ended(kind: Kind) -> Outcome {
    Outcome { kind: Some(kind), sent: Some(true), replayable: Some(true), ..Outcome::default() }
}

fn answered(status: u32) -> Outcome {
    Outcome { status: Some(status), ..ended(Kind::Response) }
}

fn request(method: &str, attempt: u32) -> Request {
    Request { method: Some(method.to_owned()), attempt: Some(attempt), ..Request::get("/") }
}

/// Whether an attempt of this method that ended so is followed by another.
fn tries_again(config: &str, method: &str, outcome: &Outcome) -> bool {
    retries(config).decide(&request(method, 1), outcome).is_some()
}

#[test]
fn failures_and_gateway_statuses_are_tried_again() {
    for kind in
        [Kind::Refused, Kind::ConnectTimeout, Kind::Tls, Kind::NotProcessed, Kind::Closed, Kind::ResponseTimeout]
    {
        assert!(tries_again("{}", "GET", &ended(kind)), "{kind:?}");
    }
    for kind in [Kind::Broken, Kind::ClientGone, Kind::NoEndpoint] {
        assert!(!tries_again("{}", "GET", &ended(kind)), "{kind:?}");
    }
    let again: Vec<u32> = (400..600).filter(|status| tries_again("{}", "GET", &answered(*status))).collect();
    assert_eq!(again, [502, 503, 504]);
    assert!(tries_again(r#"{"statuses": [429]}"#, "GET", &answered(429)));
    assert!(!tries_again(r#"{"statuses": [429]}"#, "GET", &answered(503)));
}

#[test]
fn what_may_have_had_an_effect_is_not_done_twice_unless_told_so() {
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert!(tries_again("{}", method, &answered(503)), "{method}");
    }
    for method in ["POST", "PATCH", "get", "PROPFIND"] {
        assert!(!tries_again("{}", method, &answered(503)), "{method}");
        assert!(tries_again(r#"{"non_idempotent": true}"#, method, &answered(503)), "{method}");
        let unsent = Outcome { sent: Some(false), ..ended(Kind::Refused) };
        assert!(tries_again("{}", method, &unsent), "{method}");
    }
}

#[test]
fn what_cannot_be_sent_again_as_it_was_is_not() {
    for replayable in [Some(false), None] {
        let outcome = Outcome { replayable, ..ended(Kind::Refused) };
        assert!(!tries_again(r#"{"non_idempotent": true}"#, "GET", &outcome));
    }
}

#[test]
fn a_connection_is_tried_again() {
    let connection = Request { method: None, ..Request::get("/") };
    let unsent = Outcome { sent: Some(false), ..ended(Kind::Refused) };
    assert!(retries("{}").decide(&connection, &unsent).is_some());
}

#[test]
fn calls_are_tried_again_by_their_status() {
    let ended = |grpc_status| Outcome { grpc_status: Some(grpc_status), ..answered(200) };
    let again = |config: &str, code| tries_again(config, "POST", &ended(code));
    let told = r#"{"non_idempotent": true}"#;
    assert!(again(told, 14) && !again(told, 13) && !again(told, 0));
    assert!(!again("{}", 14), "a call is no idempotent request");
    let others = r#"{"non_idempotent": true, "grpc_statuses": ["RESOURCE_EXHAUSTED", "aborted"]}"#;
    assert!(again(others, 8) && again(others, 10) && !again(others, 14));
}

#[test]
fn there_are_so_many_attempts_and_no_more() {
    let count = |config: &str| {
        let mut retries = retries(config);
        (1..100).take_while(|attempt| retries.decide(&request("GET", *attempt), &answered(503)).is_some()).count() + 1
    };
    assert_eq!((count("{}"), count(r#"{"attempts": 1}"#), count(r#"{"attempts": 16}"#)), (3, 1, 16));
}

#[test]
fn retry_after_is_waited_for_up_to_a_cap() {
    let decide = |config: &str, seconds| {
        let asks = Outcome { retry_after: Some(Duration::from_secs(seconds)), ..answered(503) };
        retries(config).decide(&request("GET", 1), &asks)
    };
    assert_eq!((decide("{}", 1), decide("{}", 2)), (Some(Duration::from_secs(1)), None));
    assert!(decide("{}", 0).is_some());
    assert_eq!(decide(r#"{"retry_after_max": "1m"}"#, 60), Some(Duration::from_secs(60)));
    assert_eq!(decide(r#"{"retry_after_max": "0s"}"#, 1), None);
}

/// Issue 10, 16: one endpoint's `Retry-After` says nothing of another one.
#[test]
fn retry_after_is_not_waited_for_where_another_endpoint_is_eligible() {
    for (others, seconds, expected) in [(1, 1, true), (7, 600, true), (0, 1, false)] {
        let asks =
            Outcome { retry_after: Some(Duration::from_secs(seconds)), others_eligible: Some(others), ..answered(503) };
        let delay = retries("{}").decide(&request("GET", 1), &asks).expect("another attempt");
        assert_eq!(delay <= Duration::from_millis(25), expected, "{others} others: {delay:?}");
    }
}

#[test]
fn terms_are_what_the_settings_say() {
    assert_eq!(retries("{}").terms(), Terms::default());
    let terms = retries(r#"{"timeout": "3s", "per_try_timeout": "1s", "hedge": "p95"}"#).terms();
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(terms, Terms { timeout: seconds(3), try_timeout: seconds(1), hedging: Some(950) });
    for (text, permille) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
        assert_eq!(retries(&format!(r#"{{"hedge": "{text}"}}"#)).terms().hedging, Some(permille), "{text}");
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_with_the_reason() {
    for (config, reason) in [
        (r#"{"attemps": 3}"#, "unknown field `attemps`, expected one of `attempts`"),
        (r#"{"attempts": 0}"#, "attempts = 0: expected 1 to 16"),
        (r#"{"attempts": 17}"#, "attempts = 17: expected 1 to 16"),
        (r#"{"attempts": "3"}"#, "expected u32"),
        (r#"{"timeout": "soon"}"#, "\"soon\" is not a duration"),
        (r#"{"timeout": "0s"}"#, "timeout is too short"),
        (r#"{"per_try_timeout": "10us"}"#, "per_try_timeout is too short"),
        (r#"{"backoff": "1s"}"#, "backoff is longer than max_backoff"),
        (r#"{"statuses": [200]}"#, "statuses has 200"),
        (r#"{"grpc_statuses": ["gone"]}"#, "grpc_statuses has \"gone\""),
        (r#"{"max_backoff": "61s"}"#, "max_backoff is too long: expected at most 60s"),
        (r#"{"retry_after_max": "2m"}"#, "retry_after_max is too long"),
        (r#"{"attempts": 1, "hedge": "p95"}"#, "hedge with attempts = 1: expected at least 2"),
        (r#"{"hedge": "95"}"#, "hedge = \"95\""),
        (r#"{"hedge": "p100"}"#, "hedge = \"p100\""),
        (r#"{"hedge": "p10"}"#, "hedge = \"p10\""),
        (r#"{"hedge": "p99.99"}"#, "hedge = \"p99.99\""),
        (r#"{"hedge": "p"}"#, "hedge = \"p\""),
    ] {
        let refusal = Retries::<Retry>::new(config, 0).err().unwrap_or_else(|| panic!("{config} was taken"));
        assert!(refusal.contains(reason), "{config}: {refusal}");
    }
}

proptest! {
    /// Delays are spread over all of the time that is allowed, which doubles up to the bound.
    #[test]
    fn delays_are_spread_evenly_up_to_a_growing_bound(seed: u64, attempt in 1_u32..15) {
        let config = r#"{"attempts": 16, "backoff": "10ms", "max_backoff": "200ms"}"#;
        let mut retries = Retries::<Retry>::new(config, seed).expect("settings that are fine");
        let bound = (10 << (attempt - 1)).min(200);
        let delays: Vec<u128> = (0..200)
            .map(|_| retries.decide(&request("GET", attempt), &answered(503)).expect("another").as_millis())
            .collect();
        prop_assert!(delays.iter().all(|delay| *delay <= bound));
        let mean = delays.iter().sum::<u128>() as f64 / delays.len() as f64;
        // Six deviations of the mean of 200 even draws.
        let allowed = 6.0 * (bound as f64 + 1.0) / 12_f64.sqrt() / 200_f64.sqrt();
        prop_assert!((mean - bound as f64 / 2.0).abs() < allowed, "{mean} of {bound}");
    }
}
