//! What may stand after a body: the same for both versions of HTTP.
//!
//! Who reads headers and trailers into one list takes a trailer for what a header would have said. So what the proxy
//! looks at, removes or writes itself in the head is not for trailers, and neither is what RFC 9110, 6.5.1, names:
//! framing, routing, request modifiers, authentication, and how the body is to be read. These are left out, in whatever
//! spelling (see [`super::names`]), and the message goes on without them.

use http::{HeaderMap, HeaderName};

use super::names::{begins_as, reads_as};

/// Names that are left out, beside those that begin as in [`FORBIDDEN_BEGINNINGS`].
const FORBIDDEN: [&str; 28] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "www-authenticate",
    "x-real-ip",
];

/// Conditions, and all that proxies say about a client (`x-forwarded-client-cert` is our own).
const FORBIDDEN_BEGINNINGS: [&str; 2] = ["if-", "x-forwarded-"];

/// Whether a header of this name is not for trailers.
pub fn is_forbidden(name: &HeaderName) -> bool {
    let name = name.as_str();
    FORBIDDEN.iter().any(|known| reads_as(name, known))
        || FORBIDDEN_BEGINNINGS.iter().any(|beginning| begins_as(name, beginning))
}

/// Removes what is not for trailers.
pub fn strip_forbidden(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers.keys().filter(|name| is_forbidden(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, 12: a reader may take `_` for `-`.
    #[test]
    fn the_spelling_makes_no_difference() {
        for name in [
            "content_length",
            "transfer_encoding",
            "x_real_ip",
            "x-real_ip",
            "x_forwarded_for",
            "x_forwarded-client_cert",
            "if_match",
            "set_cookie",
            "proxy_authorization",
        ] {
            assert!(is_forbidden(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["x_sum", "grpc_status", "x_forwarded", "iff_match"] {
            assert!(!is_forbidden(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn what_heads_are_for_is_left_out() {
        let names =
            ["x-sum", "grpc-status", "etag", "via", "x-forwarded-client-cert", "if-match", "cookie", "x-forwarded"];
        let mut trailers: HeaderMap =
            names.map(|name| (HeaderName::from_static(name), "1".parse().unwrap())).into_iter().collect();
        trailers.append("cookie", "2".parse().unwrap());
        strip_forbidden(&mut trailers);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["etag", "grpc-status", "x-forwarded", "x-sum"]);
    }
}
