//! How an attempt ended, as policies are told.

use std::time::Duration;

use http::StatusCode;

/// The way in which an attempt ended. The numbers are those of `outcome.kind` in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A response head arrived.
    Response = 0,
    /// The connection was refused, or the endpoint is unreachable.
    Refused = 1,
    /// The connection was not there in time.
    ConnectTimeout = 2,
    /// TLS to the endpoint failed.
    Tls = 3,
    /// The endpoint said that it did not process the request (HTTP/2 `REFUSED_STREAM`, `GOAWAY`).
    NotProcessed = 4,
    /// The connection ended before a response head.
    Closed = 5,
    /// No response head arrived in time.
    Timeout = 6,
    /// The response broke after its head.
    Broken = 7,
    /// The client went away, or what it sent was at fault.
    ClientGone = 8,
    /// No endpoint was eligible.
    NoEndpoint = 9,
}

/// What a policy may ask about the end of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub kind: Kind,
    pub status: Option<StatusCode>,
    /// Of a gRPC response, where its head or trailers said one.
    pub grpc_status: Option<u32>,
    /// From the start of the attempt to the response head or the failure.
    pub latency: Duration,
    /// Whether a byte of the request may have reached the endpoint.
    pub sent: bool,
    /// Whether the request can be sent again as it was.
    pub replayable: bool,
    /// What the response's `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// Since the request arrived.
    pub elapsed: Duration,
    /// How many more retries the service's budget allows.
    pub budget_left: u32,
    /// Eligible endpoints below their limit of requests that the request has not tried; none where no retry is decided
    /// on.
    pub others_eligible: Option<u32>,
}

/// What an outcome says of the endpoint's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It is no fault of the endpoint's, nor does it prove that the endpoint is well.
    Unknown,
    Success,
    Failure(Failure),
}

/// Failures told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// No connection came about.
    pub connect: bool,
    /// Nothing came in time: no connection, or no response head.
    pub timeout: bool,
    /// An answer in another's stead, or a connection that ended before a response.
    pub gateway: bool,
}

impl Outcome {
    /// An attempt that ended so, with nothing more known.
    pub fn of(kind: Kind, latency: Duration) -> Self {
        Self {
            kind,
            status: None,
            grpc_status: None,
            latency,
            sent: false,
            replayable: false,
            retry_after: None,
            elapsed: latency,
            budget_left: 0,
            others_eligible: None,
        }
    }

    /// What this says of the endpoint's health. A gRPC status counts where there is one: the HTTP status is then 200.
    pub fn health(&self) -> Health {
        let failure = |connect, timeout, gateway| Health::Failure(Failure { connect, timeout, gateway });
        match self.kind {
            Kind::ClientGone | Kind::NoEndpoint => Health::Unknown,
            // The endpoint is about to stop, or has enough to do: that it says so is no failure.
            Kind::NotProcessed => Health::Unknown,
            Kind::Refused | Kind::Tls => failure(true, false, false),
            Kind::ConnectTimeout => failure(true, true, false),
            Kind::Timeout => failure(false, true, false),
            Kind::Closed => failure(false, false, true),
            Kind::Broken => failure(false, false, false),
            Kind::Response => match (self.grpc_status, self.status.map_or(0, |status| status.as_u16())) {
                (Some(UNAVAILABLE), _) => failure(false, false, true),
                (Some(UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | DATA_LOSS), _) => failure(false, false, false),
                (Some(_), _) => Health::Success,
                (None, 502..=504) => failure(false, false, true),
                (None, 500..) => failure(false, false, false),
                (None, _) => Health::Success,
            },
        }
    }
}

// Codes of gRPC that blame the server. Unimplemented is not among them: a client can ask for what nobody has.
const UNKNOWN: u32 = 2;
const DEADLINE_EXCEEDED: u32 = 4;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
const DATA_LOSS: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_status_counts_before_the_http_status() {
        let of = |status: u16, grpc_status| {
            let status = StatusCode::from_u16(status).ok();
            Outcome { status, grpc_status, ..Outcome::of(Kind::Response, Duration::ZERO) }.health()
        };
        let gateway = Health::Failure(Failure { connect: false, timeout: false, gateway: true });
        let other = Health::Failure(Failure { connect: false, timeout: false, gateway: false });
        assert_eq!(
            (of(200, None), of(404, None), of(500, None), of(503, None)),
            (Health::Success, Health::Success, other, gateway)
        );
        assert_eq!(
            (of(200, Some(0)), of(200, Some(5)), of(200, Some(12))),
            (Health::Success, Health::Success, Health::Success)
        );
        assert_eq!((of(200, Some(13)), of(200, Some(14))), (other, gateway));
    }

    #[test]
    fn what_the_client_did_says_nothing_of_the_endpoint() {
        assert_eq!(Outcome::of(Kind::ClientGone, Duration::ZERO).health(), Health::Unknown);
        assert_eq!(Outcome::of(Kind::NotProcessed, Duration::ZERO).health(), Health::Unknown);
        let timeout = Health::Failure(Failure { connect: true, timeout: true, gateway: false });
        assert_eq!(Outcome::of(Kind::ConnectTimeout, Duration::ZERO).health(), timeout);
    }
}
