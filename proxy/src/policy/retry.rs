//! What bounds retries, whatever a retry policy says.
//!
//! A policy knows one request. What keeps many of them from becoming a storm, and a request from being sent that is no
//! longer whole, is decided here, for the request path and for simulations alike.

use std::time::Duration;

use super::{Health, Kind, Outcome};

/// Attempts of one request in all, hedges counted: no policy gets more.
pub const MAX_ATTEMPTS: u32 = 16;

/// The longest delay before another attempt. A client that had to wait for longer is better told so.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

impl Outcome {
    /// Whether another attempt might bring something better: a failure, a status from 400, or a gRPC status other than
    /// OK. A response that broke after its head has begun to reach the client, and one that nobody waits for is of no
    /// use.
    pub fn is_unwanted(&self) -> bool {
        match self.kind {
            Kind::Response => {
                self.status.is_some_and(|status| status.as_u16() >= 400)
                    || self.grpc_status.is_some_and(|code| code != 0)
            }
            Kind::Broken | Kind::ClientGone => false,
            _ => true,
        }
    }

    /// Whether of two attempts beside each other the other one is given up for this: an answer that does not speak against
    /// its endpoint would be the same at another one, whether or not the client likes it.
    pub fn settles(&self) -> bool {
        self.kind == Kind::Response && !matches!(self.health(), Health::Failure(_))
    }
}

/// Whether of two attempts that are over, neither of which settles it, the first one's end counts: only where it has brought
/// an answer, and the second one has not.
pub fn first_counts(first: &Outcome, second: &Outcome) -> bool {
    first.kind == Kind::Response && second.kind != Kind::Response
}

/// Whether a policy is to be asked for another attempt after `attempts` of which the last one ended so, with so much
/// time left (none for any).
pub fn may_follow(outcome: &Outcome, attempts: u32, left: Option<Duration>) -> bool {
    outcome.is_unwanted() && outcome.replayable && attempts < MAX_ATTEMPTS && fits(Duration::ZERO, left)
}

/// Whether a delay is one that may be waited for, with anything left after it.
pub fn fits(delay: Duration, left: Option<Duration>) -> bool {
    delay <= MAX_DELAY && left.is_none_or(|left| delay < left)
}

/// The delay before the next attempt, of that which a policy wants. What an endpoint asks for with `Retry-After` is no
/// reason to wait before the request goes to another one: it is taken off where the policy has waited for it.
pub fn shortened(wanted: Duration, outcome: &Outcome) -> Duration {
    match (outcome.retry_after, outcome.others_eligible) {
        (Some(asked), Some(1..)) => wanted.checked_sub(asked).unwrap_or(wanted),
        _ => wanted,
    }
}

/// How many retries may be under way while there are so many requests: a share of them, in percent, and always `min`.
pub fn allowance(requests: u32, percent: u32, min: u32) -> u32 {
    let share = u64::from(requests) * u64::from(percent) / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(min)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn outcome(kind: Kind) -> Outcome {
        Outcome { replayable: true, ..Outcome::of(kind, Duration::ZERO) }
    }

    #[test]
    fn what_the_client_has_begun_to_get_or_does_not_want_is_final() {
        for kind in [Kind::Refused, Kind::ConnectTimeout, Kind::Tls, Kind::NotProcessed, Kind::Closed, Kind::Timeout] {
            assert!(outcome(kind).is_unwanted(), "{kind:?}");
        }
        assert!(outcome(Kind::NoEndpoint).is_unwanted());
        assert!(!outcome(Kind::Broken).is_unwanted() && !outcome(Kind::ClientGone).is_unwanted());
        let of = |status, grpc_status| {
            let status = StatusCode::from_u16(status).ok();
            Outcome { status, grpc_status, ..outcome(Kind::Response) }.is_unwanted()
        };
        assert!(of(400, None) && of(503, None) && of(200, Some(14)));
        assert!(!of(200, None) && !of(304, None) && !of(200, Some(0)));
    }

    #[test]
    fn attempts_end_with_the_time_with_the_body_and_with_the_cap() {
        let refused = outcome(Kind::Refused);
        assert!(may_follow(&refused, 1, None));
        assert!(may_follow(&refused, MAX_ATTEMPTS - 1, Some(Duration::from_millis(1))));
        assert!(!may_follow(&refused, MAX_ATTEMPTS, None));
        assert!(!may_follow(&refused, 1, Some(Duration::ZERO)));
        assert!(!may_follow(&Outcome { replayable: false, ..refused }, 1, None));
        assert!(!may_follow(&outcome(Kind::ClientGone), 1, None));
        assert!(fits(Duration::from_secs(1), None) && fits(Duration::from_secs(1), Some(Duration::from_secs(2))));
        assert!(!fits(Duration::from_secs(2), Some(Duration::from_secs(2))));
        assert!(fits(MAX_DELAY, None) && !fits(MAX_DELAY + Duration::from_millis(1), None));
    }

    #[test]
    fn an_answer_that_is_no_failure_ends_a_race_and_any_answer_is_better_than_none() {
        let of = |status, grpc_status| {
            let status = StatusCode::from_u16(status).ok();
            Outcome { status, grpc_status, ..outcome(Kind::Response) }
        };
        for settles in [of(200, None), of(304, None), of(404, None), of(429, None), of(200, Some(0)), of(200, Some(5))]
        {
            assert!(settles.settles(), "{settles:?}");
        }
        for fails in [of(500, None), of(503, None), of(200, Some(14)), outcome(Kind::Closed), outcome(Kind::ClientGone)]
        {
            assert!(!fails.settles(), "{fails:?}");
        }
        let (failed, none) = (of(503, None), outcome(Kind::Timeout));
        assert!(first_counts(&failed, &none) && !first_counts(&none, &failed));
        assert!(!first_counts(&failed, &failed) && !first_counts(&none, &none), "else the later one's");
    }

    #[test]
    fn the_allowance_is_a_share_and_at_least_the_minimum() {
        assert_eq!([0, 1, 15, 19, 20, 100].map(|requests| allowance(requests, 20, 3)), [3, 3, 3, 3, 4, 20]);
        assert_eq!((allowance(1000, 0, 0), allowance(u32::MAX, 100, 0)), (0, u32::MAX));
    }
}
