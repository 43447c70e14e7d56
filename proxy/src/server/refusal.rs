//! Answers that the proxy gives itself, each with its reason: the one place where errors become responses.
//!
//! A refusal is a status, a line of plain text, and a `Proxy-Status` header (RFC 9209) whose `error` is one of the
//! registered types and whose `details` begin with the part of Heddle that refused.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use crate::proto::{Body, BodyError, Response};
use crate::transport::tls::TlsFailure;
use crate::upstream::Failure;

/// Why the proxy answered by itself.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("plain HTTP was sent where TLS is spoken; expected https://")]
    PlainToTls,
    #[error("a request head of more than 64 KiB or 100 headers")]
    HeadTooLarge,
    #[error("no service is called {host:?}, and requests for other hosts are not passed through here")]
    UnknownService { host: String },
    #[error("the request has been through this proxy before")]
    Loop,
    #[error("{0} is not served here")]
    Unsupported(&'static str),
    #[error("no endpoint of {service} is eligible")]
    NoEndpoint { service: String },
    #[error("the balancer of {service} picked no endpoint")]
    Declined { service: String },
    #[error("{0}")]
    Upstream(#[from] Failure),
}

impl Refusal {
    /// Status, error type of RFC 9209 (2.3), and the part of Heddle that refused.
    fn classify(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest(_) | Self::PlainToTls => (StatusCode::BAD_REQUEST, "http_request_error", "router"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http_request_error", "router"),
            Self::UnknownService { .. } => (StatusCode::NOT_FOUND, "destination_not_found", "router"),
            Self::Loop => (StatusCode::LOOP_DETECTED, "proxy_loop_detected", "router"),
            Self::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "http_request_denied", "router"),
            Self::NoEndpoint { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "registry"),
            Self::Declined { .. } => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", "balancer"),
            Self::Upstream(failure) => classify_failure(failure),
        }
    }

    /// The response as bytes, for a connection that ends with it because what came was no request.
    pub fn last_bytes(&self) -> Vec<u8> {
        let (head, body) = self.response().into_parts();
        let mut bytes = format!("HTTP/1.1 {}\r\nconnection: close\r\n", head.status).into_bytes();
        for (name, value) in &head.headers {
            bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        let text = if let Body::Full(text) = body { text } else { Bytes::new() };
        bytes.extend(format!("content-length: {}\r\n\r\n", text.len()).into_bytes());
        bytes.extend(text);
        bytes
    }

    pub fn status(&self) -> StatusCode {
        self.classify().0
    }

    /// The response that says so.
    pub fn response(&self) -> Response {
        let (status, error, part) = self.classify();
        let text = self.to_string();
        let mut response = Response::new(Body::Full(Bytes::from(format!("heddle: {part}: {text}\n"))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let details = format!("heddle; error={error}; details=\"{part}: {}\"", quoted(&text));
        if let Ok(details) = HeaderValue::try_from(details) {
            headers.insert(HeaderName::from_static("proxy-status"), details);
        }
        response
    }
}

fn classify_failure(failure: &Failure) -> (StatusCode, &'static str, &'static str) {
    let (status, error) = match failure {
        Failure::NoPermit { .. } => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        Failure::Resolve { .. } => (StatusCode::BAD_GATEWAY, "dns_error"),
        Failure::Connect { source, .. } => match source.kind() {
            std::io::ErrorKind::ConnectionRefused => (StatusCode::BAD_GATEWAY, "connection_refused"),
            _ => (StatusCode::BAD_GATEWAY, "destination_ip_unroutable"),
        },
        Failure::ConnectTimeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
        Failure::Tls { source: TlsFailure::Name(_) | TlsFailure::Certificate(_), .. } => {
            (StatusCode::BAD_GATEWAY, "tls_certificate_error")
        }
        Failure::Tls { .. } => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
        Failure::Denied { .. } => (StatusCode::FORBIDDEN, "destination_ip_prohibited"),
        Failure::Closed { .. } | Failure::Broken { .. } => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        Failure::Malformed { .. } | Failure::Http2 { .. } => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
        Failure::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
        Failure::ClientBody(BodyError::Idle) => (StatusCode::REQUEST_TIMEOUT, "http_request_error"),
        Failure::ClientBody(_) => (StatusCode::BAD_REQUEST, "http_request_error"),
    };
    (status, error, "upstream")
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
        let response = Refusal::UnknownService { host: "no\"body\u{e9}".into() }.response();
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
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
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
}
