use std::time::Duration;

use crate::host;

/// How the attempt that a decision is about has ended. As with [`Request`](crate::Request), each fact is read when its
/// function is called, and absent where the protocol lacks it.
#[derive(Debug)]
pub struct Outcome(());

/// The ways in which an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A response head arrived; [`Outcome::status`] has its status.
    Response,
    /// The connection was refused, or the endpoint is unreachable.
    Refused,
    /// The connection was not there in time.
    ConnectTimeout,
    /// TLS to the endpoint failed.
    Tls,
    /// The endpoint said that it did not process the request (HTTP/2 `REFUSED_STREAM`, `GOAWAY`).
    NotProcessed,
    /// The connection ended before a response head.
    Closed,
    /// No response head arrived in time.
    ResponseTimeout,
    /// The response broke after its head.
    Broken,
    /// The client went away.
    ClientGone,
    /// No endpoint was eligible.
    NoEndpoint,
    /// A failure of a kind that this version of the contract does not know.
    Other,
}

impl Kind {
    pub(crate) fn from_number(number: Option<u32>) -> Self {
        match number {
            Some(0) => Self::Response,
            Some(1) => Self::Refused,
            Some(2) => Self::ConnectTimeout,
            Some(3) => Self::Tls,
            Some(4) => Self::NotProcessed,
            Some(5) => Self::Closed,
            Some(6) => Self::ResponseTimeout,
            Some(7) => Self::Broken,
            Some(8) => Self::ClientGone,
            Some(9) => Self::NoEndpoint,
            _ => Self::Other,
        }
    }
}

impl Outcome {
    pub(crate) const CURRENT: Self = Self(());

    /// The way in which it ended.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::from_number(host::outcome::kind())
    }

    /// The HTTP status of the response.
    #[must_use]
    pub fn status(&self) -> Option<u32> {
        host::outcome::status()
    }

    /// The gRPC status of the response, where its head or trailers said one.
    #[must_use]
    pub fn grpc_status(&self) -> Option<u32> {
        host::outcome::grpc_status()
    }

    /// Whether the attempt succeeded, as [`Health`](crate::Health) counts it. It has failed when it brought no response,
    /// a status from 500, or a gRPC status that blames the server (unknown, deadline exceeded, internal, unavailable,
    /// data loss). None where it says nothing of the endpoint: the client went away, the endpoint did not process the
    /// request, or there was no endpoint.
    #[must_use]
    pub fn succeeded(&self) -> Option<bool> {
        match self.kind() {
            Kind::ClientGone | Kind::NotProcessed | Kind::NoEndpoint => None,
            Kind::Response => Some(match self.grpc_status() {
                Some(status) => !matches!(status, 2 | 4 | 13 | 14 | 15),
                None => self.status().is_none_or(|status| status < 500),
            }),
            _ => Some(false),
        }
    }

    /// From the start of the attempt to the response head or the failure.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        host::outcome::latency_micros().map(Duration::from_micros)
    }

    /// Whether a byte of the request may have reached the endpoint.
    #[must_use]
    pub fn sent(&self) -> Option<bool> {
        host::outcome::sent()
    }

    /// Whether the request can be sent again as it was: its body is empty, or still held in full.
    #[must_use]
    pub fn replayable(&self) -> Option<bool> {
        host::outcome::replayable()
    }

    /// What the response's `Retry-After` asks for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        host::outcome::retry_after_ms().map(Duration::from_millis)
    }

    /// Since the request arrived, all attempts and delays counted.
    #[must_use]
    pub fn elapsed(&self) -> Option<Duration> {
        host::outcome::elapsed_ms().map(Duration::from_millis)
    }

    /// How many more retries the service's budget allows at this moment.
    #[must_use]
    pub fn budget_left(&self) -> Option<u32> {
        host::outcome::budget_left()
    }

    /// For a retry policy: how many endpoints are eligible, have not been tried by this request and are below their limit
    /// of requests. What [`Outcome::retry_after`] asks for is one endpoint's word: where there are others, the proxy takes
    /// it off a delay that is at least as long. None in other decisions.
    #[must_use]
    pub fn others_eligible(&self) -> Option<u32> {
        host::outcome::others_eligible()
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Outcome};
    use crate::testing;
    use crate::testing::imports::Host;

    #[test]
    fn what_blames_the_server_is_a_failure() {
        let succeeded = |outcome| Host { outcome, ..Host::default() }.during(|| Outcome::CURRENT.succeeded());
        let of_kind = |kind| succeeded(testing::Outcome::of(kind));
        for kind in [Kind::ClientGone, Kind::NotProcessed, Kind::NoEndpoint] {
            assert_eq!(of_kind(kind), None, "{kind:?}");
        }
        for kind in [Kind::Refused, Kind::ConnectTimeout, Kind::Tls, Kind::Closed, Kind::ResponseTimeout, Kind::Broken]
        {
            assert_eq!(of_kind(kind), Some(false), "{kind:?}");
        }
        assert_eq!(of_kind(Kind::Other), Some(false), "of a later version");
        let of_status = |status| succeeded(testing::Outcome::response(status));
        assert_eq!([200, 404, 499, 500, 503].map(of_status), [true, true, true, false, false].map(Some));
        // A gRPC status counts before the HTTP status, which is then 200.
        let of_grpc = |code| succeeded(testing::Outcome { grpc_status: Some(code), ..testing::Outcome::response(200) });
        let blamed: Vec<u32> = (0..17).filter(|code| of_grpc(*code) == Some(false)).collect();
        assert_eq!(blamed, [2, 4, 13, 14, 15]);
    }
}
