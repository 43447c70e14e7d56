//! Answers that the proxy gives itself, each with its reason: the one place where errors become responses.
//!
//! A refusal is a status, a line of plain text, and a `Proxy-Status` header (RFC 9209) whose `error` is one of the
//! registered types and whose `details` begin with the part of Heddle that refused. To a gRPC call it is the same said in
//! gRPC's way; the figures count it by its HTTP status all the same.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::socks::Reply;
use crate::proto::grpc::{Code, GRPC};
use crate::proto::{Body, BodyError, Response};
pub use crate::service::Limit;
use crate::service::ServiceStats;
use crate::transport::tls::TlsFailure;
use crate::upstream::Failure;

/// When to come again to a service that somebody has paused, or whose policy is missing: nobody says how long that takes.
const PAUSED: Duration = Duration::from_secs(5);

/// When to come again to a service whose policy is being compiled, or waits for a file that is in order.
const NO_POLICY: Duration = Duration::from_secs(1);

/// Why the proxy answered by itself.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("plain HTTP was sent where TLS is spoken; expected https://")]
    PlainToTls,
    #[error("a request head of more bytes or headers than this listener takes")]
    HeadTooLarge,
    #[error("a request target that is longer than this listener takes")]
    TargetTooLong,
    #[error("a request body that is larger than this listener takes")]
    BodyTooLarge,
    #[error("as many tunnels as one connection may have")]
    TooManyTunnels,
    #[error("a request head that took too long to arrive")]
    HeadTimeout,
    #[error("a version of HTTP other than 1.0, 1.1 and 2")]
    Version,
    #[error("no service is called {host:?}, and requests for other hosts are not passed through here")]
    UnknownService { host: String },
    #[error("port {port} is not among those that this proxy may connect to")]
    PortDenied { port: u16 },
    #[error("the client's certificate is no longer accepted; expected a new connection with another")]
    Revoked,
    #[error("the request has been through this proxy before")]
    Loop,
    #[error("{0} is not served here")]
    Unsupported(&'static str),
    #[error("no endpoint of {service} is eligible")]
    NoEndpoint { service: String },
    #[error("{service} is paused")]
    Paused { service: String },
    #[error("the balancer of {service} picked no endpoint")]
    Declined { service: String },
    /// A policy that has no working version, and that no other rule may stand in for.
    #[error(
        "the policy {policy} of {service} cannot be used now, and deciding without it would break what it promises"
    )]
    NoPolicy { service: String, policy: String },
    /// As much of the service is in use as a limit allows.
    #[error("{service} is full: {}", told(*.limit))]
    Full { service: String, limit: Limit },
    /// Every attempt at the service has failed lately; the time for which that is taken for granted.
    #[error("every endpoint of {service} fails")]
    Open { service: String, left: Duration },
    #[error("the request has taken longer than it may")]
    Deadline,
    #[error("{0}")]
    Upstream(#[from] Failure),
}

impl Refusal {
    /// Status, error type of RFC 9209 (2.3), and the part of Heddle that refused.
    fn classify(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest(_) | Self::PlainToTls => (StatusCode::BAD_REQUEST, "http_request_error", "router"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http_request_error", "router"),
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "http_request_error", "router"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "http_request_error", "router"),
            Self::TooManyTunnels => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", "router"),
            Self::HeadTimeout => (StatusCode::REQUEST_TIMEOUT, "http_request_error", "router"),
            Self::Version => (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "http_request_error", "router"),
            Self::UnknownService { .. } => (StatusCode::NOT_FOUND, "destination_not_found", "router"),
            Self::PortDenied { .. } => (StatusCode::FORBIDDEN, "http_request_denied", "router"),
            Self::Revoked => (StatusCode::FORBIDDEN, "http_request_denied", "tls"),
            Self::Loop => (StatusCode::LOOP_DETECTED, "proxy_loop_detected", "router"),
            Self::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "http_request_denied", "router"),
            Self::NoEndpoint { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "registry"),
            Self::Paused { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "pause"),
            Self::Declined { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "balancer"),
            Self::NoPolicy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "policy"),
            // The one registered type that says that a limit of the proxy's own has been reached.
            Self::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", "limits"),
            Self::Open { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "breaker"),
            Self::Deadline => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout", "deadline"),
            // The same as if the request had come back.
            Self::Upstream(Failure::Own { .. }) => Self::Loop.classify(),
            Self::Upstream(failure) => classify_failure(failure),
        }
    }

    /// The same for a gRPC call. What is certain to have had no effect, or will pass by itself, is `UNAVAILABLE`: that
    /// is what callers try again.
    fn grpc_code(&self) -> Code {
        match self {
            Self::BadRequest(_) | Self::PlainToTls | Self::Version | Self::Loop => Code::Internal,
            Self::HeadTooLarge | Self::TargetTooLong | Self::BodyTooLarge | Self::TooManyTunnels => {
                Code::ResourceExhausted
            }
            Self::UnknownService { .. } | Self::Unsupported(_) => Code::Unimplemented,
            Self::PortDenied { .. } | Self::Revoked => Code::PermissionDenied,
            // Not `RESOURCE_EXHAUSTED`, by which gRPC means a quota of the caller's: this is everybody's, and passes.
            Self::NoEndpoint { .. }
            | Self::Paused { .. }
            | Self::Declined { .. }
            | Self::NoPolicy { .. }
            | Self::Open { .. }
            | Self::Full { .. } => Code::Unavailable,
            Self::HeadTimeout | Self::Deadline => Code::DeadlineExceeded,
            Self::Upstream(Failure::Own { .. }) => Code::Internal,
            Self::Upstream(failure) => grpc_code_of_failure(failure),
        }
    }

    /// Counts it, and says why.
    pub fn record(&self, stats: &ServiceStats, started: Instant) {
        let status = self.status().as_u16();
        stats.ended(status, started.elapsed());
        self.count_limit(stats);
        tracing::debug!(target: "heddle::server", status, "{self}");
    }

    /// Counts the limit that is the reason, if one is.
    pub fn count_limit(&self, stats: &ServiceStats) {
        match self {
            Self::Full { limit, .. } => stats.limited(*limit),
            Self::Upstream(Failure::NoPermit { .. }) => stats.limited(Limit::Connections),
            Self::Upstream(Failure::Share { .. }) => stats.limited(Limit::ClientShare),
            _ => {}
        }
    }

    /// What a client of SOCKS5 is told (RFC 1928, 6).
    pub fn socks_reply(&self) -> Reply {
        match self {
            Self::UnknownService { .. } | Self::PortDenied { .. } | Self::Revoked => Reply::NotAllowed,
            Self::NoEndpoint { .. }
            | Self::Paused { .. }
            | Self::Declined { .. }
            | Self::NoPolicy { .. }
            | Self::Open { .. } => Reply::HostUnreachable,
            Self::Unsupported(_) => Reply::CommandNotSupported,
            Self::Deadline => Reply::TimedOut,
            Self::Upstream(failure) => reply_to_failure(failure),
            _ => Reply::Failed,
        }
    }

    pub fn status(&self) -> StatusCode {
        self.classify().0
    }

    /// What a client is told, with the address of the endpoint only where the client may know it.
    fn reason(&self, addresses: bool) -> String {
        match self {
            Self::Upstream(failure) if !addresses => failure.without_address(),
            _ => self.to_string(),
        }
    }

    /// The response that says so, with `addresses` or without.
    pub fn response(&self, addresses: bool) -> Response {
        let (status, _, part) = self.classify();
        let reason = self.reason(addresses);
        let mut response = Response::new(Body::Full(Bytes::from(format!("heddle: {part}: {reason}\n"))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some(after) = self.retry_after() {
            // Whole seconds (RFC 9110, 10.2.3), never too soon.
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64));
        }
        self.write_proxy_status(headers, &reason);
        response
    }

    /// When it may be worth another try, where that is known.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Open { left, .. } => Some(*left),
            // As soon as any request has ended.
            Self::Full { .. } | Self::Upstream(Failure::NoPermit { .. } | Failure::Share { .. }) => {
                Some(Duration::ZERO)
            }
            Self::Paused { .. } => Some(PAUSED),
            Self::NoPolicy { .. } => Some(NO_POLICY),
            _ => None,
        }
    }

    /// The response that says so to a gRPC call: trailers without a message before them, which come in the head.
    pub fn grpc_response(&self, addresses: bool) -> Response {
        let mut response = Response::default();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, GRPC);
        let reason = self.reason(addresses);
        self.grpc_code().write(&format!("heddle: {}: {reason}", self.classify().2), headers);
        self.write_proxy_status(headers, &reason);
        response
    }

    /// The trailers that say so, without addresses.
    pub fn write_grpc(&self, trailers: &mut HeaderMap) {
        self.grpc_code().write(&format!("heddle: {}: {}", self.classify().2, self.reason(false)), trailers);
    }

    fn write_proxy_status(&self, headers: &mut HeaderMap, reason: &str) {
        let (_, error, part) = self.classify();
        let details = format!("heddle; error={error}; details=\"{part}: {}\"", quoted(reason));
        if let Ok(details) = HeaderValue::try_from(details) {
            headers.insert(HeaderName::from_static("proxy-status"), details);
        }
    }
}

fn told(limit: Limit) -> &'static str {
    match limit {
        Limit::Requests => "as many requests are under way as may be",
        Limit::Pending => "no request has ended for as long as one may wait",
        Limit::EndpointRequests => "as many requests are under way at each endpoint as may be",
        Limit::Connections => "as many connections are open as may be",
        Limit::ClientShare => "others wait for a connection, of which the client has more than its share",
    }
}

fn classify_failure(failure: &Failure) -> (StatusCode, &'static str, &'static str) {
    let (status, error) = match failure {
        Failure::NoPermit { .. } | Failure::Share { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached")
        }
        Failure::Resolve { .. } => (StatusCode::BAD_GATEWAY, "dns_error"),
        Failure::Connect { source, .. } => match source.kind() {
            ErrorKind::ConnectionRefused => (StatusCode::BAD_GATEWAY, "connection_refused"),
            _ => (StatusCode::BAD_GATEWAY, "destination_ip_unroutable"),
        },
        Failure::ConnectTimeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
        Failure::Own { .. } => (StatusCode::LOOP_DETECTED, "proxy_loop_detected"),
        Failure::Tls { source: TlsFailure::Name(_) | TlsFailure::Certificate(_), .. } => {
            (StatusCode::BAD_GATEWAY, "tls_certificate_error")
        }
        Failure::Tls { .. } => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
        Failure::Denied { .. } => (StatusCode::FORBIDDEN, "destination_ip_prohibited"),
        Failure::Closed { .. } | Failure::Broken { .. } | Failure::GoingAway { .. } => {
            (StatusCode::BAD_GATEWAY, "connection_terminated")
        }
        Failure::Malformed { .. } | Failure::Http2 { .. } => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
        Failure::Reset { .. } => (StatusCode::BAD_GATEWAY, "http_response_incomplete"),
        Failure::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
        Failure::Request { .. } => (StatusCode::BAD_REQUEST, "http_request_error"),
        Failure::ClientBody(BodyError::Idle) => (StatusCode::REQUEST_TIMEOUT, "http_request_error"),
        Failure::ClientBody(BodyError::TooLarge) => (StatusCode::PAYLOAD_TOO_LARGE, "http_request_error"),
        Failure::ClientBody(_) => (StatusCode::BAD_REQUEST, "http_request_error"),
    };
    (status, error, "upstream")
}

fn grpc_code_of_failure(failure: &Failure) -> Code {
    match failure {
        Failure::Timeout { .. } | Failure::ClientBody(BodyError::Idle) => Code::DeadlineExceeded,
        Failure::Denied { .. } => Code::PermissionDenied,
        Failure::Request { .. } => Code::Internal,
        Failure::Reset { code, .. } => Code::of_reset(*code),
        Failure::ClientBody(BodyError::TooLarge) => Code::ResourceExhausted,
        Failure::ClientBody(_) => Code::Cancelled,
        _ => Code::Unavailable,
    }
}

fn reply_to_failure(failure: &Failure) -> Reply {
    match failure {
        Failure::Denied { .. } | Failure::Own { .. } => Reply::NotAllowed,
        Failure::Resolve { .. } => Reply::HostUnreachable,
        Failure::ConnectTimeout { .. } => Reply::TimedOut,
        Failure::Connect { source, .. } => match source.kind() {
            ErrorKind::ConnectionRefused => Reply::Refused,
            ErrorKind::NetworkUnreachable => Reply::NetworkUnreachable,
            ErrorKind::HostUnreachable => Reply::HostUnreachable,
            ErrorKind::TimedOut => Reply::TimedOut,
            _ => Reply::Failed,
        },
        _ => Reply::Failed,
    }
}

/// The inside of a quoted string (RFC 8941, 3.3.3): printable ASCII, with quotes and backslashes escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_part_and_the_reason() {
        let response = Refusal::UnknownService { host: "no\"body\u{e9}".into() }.response(true);
        assert_eq!(response.status(), 404);
        let header = response.headers()["proxy-status"].to_str().unwrap();
        assert!(
            header.starts_with("heddle; error=destination_not_found; details=\"router: no service is called"),
            "{header}"
        );
        assert!(header.is_ascii() && header.ends_with("here\""), "{header}");
    }

    #[test]
    fn failures_of_endpoints_have_the_statuses_that_gateways_use() {
        let address = || "10.0.0.1:80".to_owned();
        let status = |failure| Refusal::Upstream(failure).status().as_u16();
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(status(Failure::Connect { address: address(), source: refused }), 502);
        assert_eq!(status(Failure::ConnectTimeout { address: address() }), 504);
        assert_eq!(status(Failure::Timeout { address: address() }), 504);
        let tls =
            |error| Refusal::Upstream(Failure::Tls { address: address(), source: TlsFailure::from(error) }).classify();
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        assert_eq!(tls(expired), (StatusCode::BAD_GATEWAY, "tls_certificate_error", "upstream"));
        let other = rustls::Error::NoApplicationProtocol;
        assert_eq!(tls(other), (StatusCode::BAD_GATEWAY, "tls_protocol_error", "upstream"));
        assert_eq!(status(Failure::NoPermit { address: address() }), 503);
        assert_eq!(status(Failure::Denied { address: address() }), 403);
    }

    /// Issue 10, 17: where a listener does not allow it, nobody learns the addresses of endpoints, or what a library says
    /// about them.
    #[test]
    fn addresses_are_told_only_where_that_is_allowed() {
        use crate::proto::BodyError;
        use crate::upstream::h1::Malformed;
        let address = || "10.0.0.1:8080".to_owned();
        let io = || std::io::Error::other("10.0.0.1 has no route");
        let tls = |source| Failure::Tls { address: address(), source };
        let expected = rustls::pki_types::ServerName::try_from("10.0.0.1").unwrap();
        let other_name = rustls::CertificateError::NotValidForNameContext { expected, presented: Vec::new() };
        for failure in [
            Failure::NoPermit { address: address() },
            Failure::Resolve { address: address(), source: io() },
            Failure::Connect { address: address(), source: io() },
            Failure::ConnectTimeout { address: address() },
            Failure::Denied { address: address() },
            tls(TlsFailure::Name(address())),
            tls(TlsFailure::Certificate(other_name)),
            tls(TlsFailure::Protocol(rustls::Error::General("10.0.0.1".to_owned()))),
            tls(TlsFailure::Broken(io())),
            Failure::Closed { address: address() },
            Failure::Broken { address: address(), source: io() },
            Failure::Malformed { address: address(), what: Malformed::Head },
            Failure::Http2 { address: address(), what: "10.0.0.1".to_owned() },
            Failure::GoingAway { address: address() },
            Failure::Reset { address: address(), code: 2 },
            Failure::Timeout { address: address() },
            Failure::Request { what: "a method".to_owned() },
            Failure::ClientBody(BodyError::Idle),
        ] {
            let names_it = |response: &Response| {
                let body =
                    matches!(response.body(), Body::Full(text) if text.windows(8).any(|part| part == b"10.0.0.1"));
                body || response.headers().values().any(|value| value.to_str().is_ok_and(|v| v.contains("10.0.0.1")))
            };
            let refusal = Refusal::from(failure);
            let has_address = !matches!(refusal, Refusal::Upstream(Failure::Request { .. } | Failure::ClientBody(_)));
            for (addresses, expected) in [(true, has_address), (false, false)] {
                assert_eq!(names_it(&refusal.response(addresses)), expected, "{refusal}");
                assert_eq!(names_it(&refusal.grpc_response(addresses)), expected, "{refusal}");
            }
        }
    }

    #[test]
    fn a_call_is_refused_in_grpcs_way() {
        let response = Refusal::NoEndpoint { service: "us%ers".into() }.grpc_response(true);
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &GRPC));
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "heddle: registry: no endpoint of us%25ers is eligible");
        assert!(response.headers()["proxy-status"].to_str().unwrap().contains("destination_unavailable"));
        assert!(http_body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn what_is_full_says_when_to_come_again() {
        for refusal in [
            Refusal::Full { service: "users".into(), limit: Limit::Pending },
            Refusal::NoPolicy { service: "users".into(), policy: "own".into() },
            Failure::NoPermit { address: "10.0.0.1:80".to_owned() }.into(),
        ] {
            let response = refusal.response(true);
            assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &HeaderValue::from(1)));
            assert_eq!(refusal.grpc_response(true).headers()["grpc-status"], "14");
        }
        assert!(!Refusal::Deadline.response(true).headers().contains_key("retry-after"));
    }

    #[test]
    fn every_refusal_has_the_code_that_callers_act_on() {
        let address = || "10.0.0.1:80".to_owned();
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        let of = |failure| Refusal::Upstream(failure).grpc_code();
        assert_eq!(of(Failure::Connect { address: address(), source: refused }), Code::Unavailable);
        assert_eq!(of(Failure::ConnectTimeout { address: address() }), Code::Unavailable);
        assert_eq!(of(Failure::NoPermit { address: address() }), Code::Unavailable);
        assert_eq!(of(Failure::Timeout { address: address() }), Code::DeadlineExceeded);
        assert_eq!(of(Failure::Denied { address: address() }), Code::PermissionDenied);
        // REFUSED_STREAM and CANCEL.
        assert_eq!(of(Failure::Reset { address: address(), code: 7 }), Code::Unavailable);
        assert_eq!(of(Failure::Reset { address: address(), code: 8 }), Code::Cancelled);
        assert_eq!(Refusal::Deadline.grpc_code(), Code::DeadlineExceeded);
        assert_eq!(Refusal::UnknownService { host: "users".into() }.grpc_code(), Code::Unimplemented);
        assert_eq!(Refusal::Loop.grpc_code(), Code::Internal);
    }

    #[test]
    fn clients_of_socks_are_told_the_same_in_their_own_words() {
        let address = || "10.0.0.1:80".to_owned();
        let connect = |kind: ErrorKind| Failure::Connect { address: address(), source: kind.into() };
        for (refusal, reply) in [
            (connect(ErrorKind::ConnectionRefused).into(), Reply::Refused),
            (connect(ErrorKind::NetworkUnreachable).into(), Reply::NetworkUnreachable),
            (connect(ErrorKind::HostUnreachable).into(), Reply::HostUnreachable),
            (connect(ErrorKind::PermissionDenied).into(), Reply::Failed),
            (
                Failure::Resolve { address: address(), source: ErrorKind::NotFound.into() }.into(),
                Reply::HostUnreachable,
            ),
            (Failure::ConnectTimeout { address: address() }.into(), Reply::TimedOut),
            (Failure::Denied { address: address() }.into(), Reply::NotAllowed),
            (Refusal::PortDenied { port: 25 }, Reply::NotAllowed),
            (Refusal::UnknownService { host: "nobody".to_owned() }, Reply::NotAllowed),
            (Refusal::Unsupported("a tunnel within a tunnel"), Reply::CommandNotSupported),
            (Refusal::BadRequest("no host"), Reply::Failed),
            (Refusal::Deadline, Reply::TimedOut),
            (Refusal::Full { service: "users".to_owned(), limit: Limit::Requests }, Reply::Failed),
            (Failure::NoPermit { address: address() }.into(), Reply::Failed),
        ] {
            assert_eq!(refusal.socks_reply(), reply, "{refusal}");
        }
    }
}
