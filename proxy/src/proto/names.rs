//! Header names that a reader may take for the same: CGI and what came after it (FastCGI, WSGI, Rack, PHP) know a header
//! by a variable, in whose name `-` has become `_` (RFC 3875, 4.1.18). Such a reader sees `X_Real_Ip` as `X-Real-IP`.
//!
//! So what the proxy removes, writes or reads for framing under one spelling must not reach anybody under another. A name
//! with `_` that reads as one of these is removed from heads and trailers of requests and responses. No such name has a
//! use of its own; other names with `_` belong to applications and pass.

use std::collections::HashSet;

use http::{HeaderMap, HeaderName};

/// Names that the proxy removes or writes in a head, or reads a body's framing from. Those without `-` have one spelling.
const OWN: [&str; 11] = [
    "content-length",
    "grpc-timeout",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "sec-websocket-accept",
    "sec-websocket-key",
    "transfer-encoding",
    "x-real-ip",
];

/// All that proxies say about a client.
const OWN_BEGINNING: &str = "x-forwarded-";

/// Whether a reader that takes `_` for `-` reads both as the same name.
pub fn reads_as(name: &str, known: &str) -> bool {
    name.len() == known.len() && begins_as(name, known)
}

/// Whether such a reader reads a name that begins like this.
pub fn begins_as(name: &str, beginning: &str) -> bool {
    let (name, beginning) = (name.as_bytes(), beginning.as_bytes());
    name.len() >= beginning.len() && name.iter().zip(beginning).all(|(a, b)| folded(*a) == folded(*b))
}

/// Removes what reads as a name of the proxy's own, or as `also`, and is spelled in another way.
pub fn strip_lookalikes(headers: &mut HeaderMap, also: Option<&HeaderName>) {
    if !headers.keys().any(has_underscore) && !also.is_some_and(has_underscore) {
        return;
    }
    let is_lookalike = |name: &&HeaderName| {
        let is_own = has_underscore(name)
            && (OWN.iter().any(|own| reads_as(name.as_str(), own)) || begins_as(name.as_str(), OWN_BEGINNING));
        match also {
            Some(also) if *name == also => false,
            Some(also) => is_own || reads_as(name.as_str(), also.as_str()),
            None => is_own,
        }
    };
    let lookalikes: Vec<HeaderName> = headers.keys().filter(is_lookalike).cloned().collect();
    for name in lookalikes {
        headers.remove(name);
    }
}

/// Removes headers of these names in every spelling.
pub fn remove_all(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
    if headers.keys().any(has_underscore) || names.iter().any(has_underscore) {
        // A set: both lists are as long as a client makes them.
        let names: HashSet<Vec<u8>> = names.iter().map(fold).collect();
        let spelled: Vec<HeaderName> = headers.keys().filter(|name| names.contains(&fold(name))).cloned().collect();
        for name in spelled {
            headers.remove(name);
        }
    }
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().as_bytes().contains(&b'_')
}

fn fold(name: &HeaderName) -> Vec<u8> {
    name.as_str().bytes().map(folded).collect()
}

fn folded(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(names: &[&'static str], strip: impl FnOnce(&mut HeaderMap)) -> Vec<String> {
        let one = |name: &&'static str| (HeaderName::from_static(name), "1".parse().unwrap());
        let mut headers: HeaderMap = names.iter().map(one).collect();
        strip(&mut headers);
        let mut left: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        left.sort_unstable();
        left
    }

    /// Issue 10, 12.
    #[test]
    fn what_reads_as_a_name_of_the_proxys_own_is_removed() {
        let names = [
            "content_length",
            "transfer_encoding",
            "keep_alive",
            "proxy-connection_",
            "proxy_authorization",
            "x_real_ip",
            "x-real_ip",
            "x_forwarded_for",
            "x_forwarded-proto",
            "x_forwarded_client_cert",
            "x_forwarded_anything",
        ];
        assert_eq!(left(&names, |headers| strip_lookalikes(headers, None)), ["proxy-connection_"]);
        let kept = ["content-length", "x-forwarded-for", "x-real-ip", "x_own", "x_forwardedfor", "user_agent"];
        let mut expected = kept.map(str::to_owned);
        expected.sort_unstable();
        assert_eq!(left(&kept, |headers| strip_lookalikes(headers, None)), expected);
    }

    #[test]
    fn a_configured_name_is_kept_as_it_is_spelled() {
        let names = ["x-time-left", "x_time_left", "x_time-left", "x-other"];
        for kept in ["x-time-left", "x_time_left"] {
            let also = HeaderName::from_static(kept);
            assert_eq!(left(&names, |headers| strip_lookalikes(headers, Some(&also))), ["x-other", kept]);
        }
    }

    #[test]
    fn a_name_is_removed_in_every_spelling() {
        let names = ["x-secret", "x_secret", "x-other", "x_other", "y"];
        for named in ["x-secret", "x_secret"] {
            let named = [HeaderName::from_static(named), HeaderName::from_static("y")];
            assert_eq!(left(&names, |headers| remove_all(headers, &named)), ["x-other", "x_other"]);
        }
    }
}
