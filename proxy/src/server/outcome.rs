//! From what an attempt brought to what policies are told of it: the one place where the two meet.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use super::refusal::Refusal;
use crate::policy::{Kind, Outcome};
use crate::proto::{Response, grpc};
use crate::upstream::h1::Malformed;
use crate::upstream::{Failure, Stage};

/// What a response says by its head. The gRPC status is there where there will be nothing else, and in a call only.
pub(super) fn of_response(response: &Response, is_grpc: bool, latency: Duration) -> Outcome {
    let (status, headers) = (response.status(), response.headers());
    Outcome {
        status: Some(status),
        grpc_status: if is_grpc { grpc::status(headers) } else { None },
        retry_after: if status.as_u16() >= 400 { retry_after(headers) } else { None },
        sent: true,
        ..Outcome::of(Kind::Response, latency)
    }
}

/// What it means that there is no response to an attempt that has come so far in this time, so long after the request
/// arrived.
pub(super) fn of_refusal(refusal: &Refusal, stage: Stage, latency: Duration, elapsed: Duration) -> Outcome {
    let kind = match refusal {
        Refusal::Upstream(failure) => kind_of_failure(failure),
        Refusal::Deadline => kind_at_deadline(stage, latency, elapsed),
        _ => Kind::NoEndpoint,
    };
    Outcome { sent: stage >= Stage::Sent, elapsed, ..Outcome::of(kind, latency) }
}

/// What it means that the time that the operator gives a whole request is over, all of which has `elapsed` by then. An
/// endpoint that had less than half of it is not to blame for what went by in queues and at others; nor is one that the
/// attempt did not get to.
fn kind_at_deadline(stage: Stage, latency: Duration, elapsed: Duration) -> Kind {
    match stage {
        Stage::Waiting => Kind::ClientGone,
        Stage::Connecting | Stage::Sent | Stage::Late if latency < elapsed / 2 => Kind::ClientGone,
        Stage::Connecting => Kind::ConnectTimeout,
        Stage::Sent | Stage::Late => Kind::Timeout,
    }
}

fn kind_of_failure(failure: &Failure) -> Kind {
    match failure {
        _ if failure.is_unprocessed() => Kind::NotProcessed,
        // The endpoint was not asked, and has not failed.
        Failure::NoPermit { .. } => Kind::NotProcessed,
        Failure::Resolve { .. } | Failure::Connect { .. } | Failure::Denied { .. } | Failure::Own { .. } => {
            Kind::Refused
        }
        Failure::ConnectTimeout { .. } => Kind::ConnectTimeout,
        Failure::Tls { .. } => Kind::Tls,
        Failure::Timeout { .. } => Kind::Timeout,
        // What is no WebSocket is none, and no worse for being asked for one.
        Failure::ClientBody(_)
        | Failure::Share { .. }
        | Failure::Request { .. }
        | Failure::Malformed { what: Malformed::NoUpgrade, .. } => Kind::ClientGone,
        Failure::Closed { .. }
        | Failure::Broken { .. }
        | Failure::Malformed { .. }
        | Failure::Http2 { .. }
        | Failure::GoingAway { .. }
        | Failure::Reset { .. } => Kind::Closed,
    }
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110, 10.2.3). One that is over asks for nothing more.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use http::HeaderValue;

    use super::*;
    use crate::proto::BodyError;

    fn asks(value: &str) -> Option<Duration> {
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(asks("120"), Some(Duration::from_secs(120)));
        assert_eq!(asks(" 0 "), Some(Duration::ZERO));
        assert_eq!(asks("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(asks("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO), "it is over");
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
        assert!(asks(&later).is_some_and(|time| (590..=600).contains(&time.as_secs())));
        for nothing in ["", "soon", "-1", "1.5", "1s"] {
            assert_eq!(asks(nothing), None, "{nothing:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn failures_are_told_apart() {
        let address = || "10.0.0.1:80".to_owned();
        let of = |failure: Failure| kind_of_failure(&failure);
        let refused = || ErrorKind::ConnectionRefused.into();
        assert_eq!(of(Failure::Connect { address: address(), source: refused() }), Kind::Refused);
        assert_eq!(of(Failure::Resolve { address: address(), source: refused() }), Kind::Refused);
        assert_eq!(of(Failure::ConnectTimeout { address: address() }), Kind::ConnectTimeout);
        assert_eq!(of(Failure::Closed { address: address() }), Kind::Closed);
        assert_eq!(of(Failure::Broken { address: address(), source: refused() }), Kind::Closed);
        assert_eq!(of(Failure::Timeout { address: address() }), Kind::Timeout);
        // REFUSED_STREAM and CANCEL.
        assert_eq!(of(Failure::Reset { address: address(), code: 7 }), Kind::NotProcessed);
        assert_eq!(of(Failure::Reset { address: address(), code: 8 }), Kind::Closed);
        assert_eq!(of(Failure::GoingAway { address: address() }), Kind::NotProcessed);
        assert_eq!(of(Failure::ClientBody(BodyError::Idle)), Kind::ClientGone);
        let none = Refusal::NoEndpoint { service: "users".into() };
        assert_eq!(of_refusal(&none, Stage::Waiting, Duration::ZERO, Duration::ZERO).kind, Kind::NoEndpoint);
    }

    #[test]
    fn what_clients_ask_for_is_no_fault_of_the_endpoint() {
        let malformed = |what| kind_of_failure(&Failure::Malformed { address: "10.0.0.1:80".to_owned(), what });
        assert_eq!(malformed(Malformed::NoUpgrade), Kind::ClientGone);
        assert_eq!(malformed(Malformed::Upgrade), Kind::Closed);
        assert_eq!(kind_of_failure(&Failure::Request { what: "its host".to_owned() }), Kind::ClientGone);
    }

    #[test]
    fn the_deadline_of_a_request_blames_who_had_at_least_half_of_it() {
        let millis = Duration::from_millis;
        let at = |stage, had| of_refusal(&Refusal::Deadline, stage, millis(had), millis(1000)).kind;
        assert_eq!((at(Stage::Sent, 1000), at(Stage::Sent, 500)), (Kind::Timeout, Kind::Timeout));
        assert_eq!((at(Stage::Sent, 499), at(Stage::Sent, 0)), (Kind::ClientGone, Kind::ClientGone));
        assert_eq!((at(Stage::Connecting, 900), at(Stage::Connecting, 50)), (Kind::ConnectTimeout, Kind::ClientGone));
        assert_eq!(at(Stage::Waiting, 1000), Kind::ClientGone);
    }

    #[test]
    fn a_head_tells_the_status_of_a_call_only_to_a_call() {
        let mut response = Response::default();
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
        assert_eq!(of_response(&response, true, Duration::ZERO).grpc_status, Some(14));
        assert_eq!(of_response(&response, false, Duration::ZERO).grpc_status, None);
    }
}
