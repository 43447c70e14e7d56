//! Which service a request is for.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::Version;
use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http_body::Body as _;

use super::refusal::Refusal;
use crate::proto::Body;

/// The host that a request names, and how it does.
#[derive(Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// Without port, as the client wrote it.
    pub host: &'a str,
    /// The target of an absolute-form request of HTTP/1 (RFC 9112, 3.2.2): such a request is meant for a proxy.
    pub absolute: Option<&'a Authority>,
}

/// The host that the request names.
///
/// # Errors
///
/// When there is none, or more than one, or one that is no host.
pub fn named(head: &Parts) -> Result<Named<'_>, Refusal> {
    let host = host_header(head)?;
    if let Some(authority) = head.uri.authority() {
        if authority.as_str().contains('@') {
            return Err(Refusal::BadRequest("a user name in the request's target; expected host and port only"));
        }
        if authority.host().is_empty() {
            return Err(Refusal::BadRequest("a target without a host; expected one"));
        }
        if authority.port_u16().is_none() && !matches!(after_host(authority), "" | ":") {
            return Err(Refusal::BadRequest("a port that is none; expected a number up to 65535"));
        }
        let absolute = (head.version < Version::HTTP_2).then_some(authority);
        if absolute.is_some() && head.uri.scheme() != Some(&Scheme::HTTP) {
            return Err(Refusal::BadRequest("an absolute target that is not http; expected CONNECT for https"));
        }
        return Ok(Named { host: authority.host(), absolute });
    }
    match host {
        Some(host) => Ok(Named { host, absolute: None }),
        // A listener of one service needs none, and HTTP/1.0 knew none.
        None if head.version < Version::HTTP_11 => Ok(Named { host: "", absolute: None }),
        None => Err(Refusal::BadRequest("no Host header; expected one")),
    }
}

/// The host that the `Host` header names, if there is one. It has to be a host also where the target names another, which
/// counts before it (RFC 9112, 3.2): whoever reads the header behind us may take it for more than we did.
fn host_header(head: &Parts) -> Result<Option<&str>, Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(None),
        (Some(host), None) => {
            host_of(host.as_bytes()).map(Some).ok_or(Refusal::BadRequest("a Host header that is no host"))
        }
        (Some(_), Some(_)) => Err(Refusal::BadRequest("more than one Host header; expected one")),
    }
}

/// The host and port of a CONNECT request (RFC 9110, 9.3.6).
///
/// # Errors
///
/// When the target is anything but these two, the `Host` header is no host, or the request has a body, which CONNECT gives no meaning: whether it or
/// what is inside the tunnel has been sent could not be told.
pub fn target<'a>(head: &'a Parts, body: &Body) -> Result<(&'a str, u16), Refusal> {
    if !body.is_end_stream() {
        return Err(Refusal::BadRequest("a CONNECT request with a body; expected none"));
    }
    host_header(head)?;
    let expected = Refusal::BadRequest("a CONNECT request for something else; expected host:port");
    match (head.uri.scheme(), head.uri.authority(), head.uri.path_and_query()) {
        (None, Some(authority), None) if !authority.as_str().contains('@') && !authority.host().is_empty() => {
            authority.port_u16().filter(|port| *port > 0).map(|port| (authority.host(), port)).ok_or(expected)
        }
        _ => Err(expected),
    }
}

/// The colon and what follows it.
fn after_host(authority: &Authority) -> &str {
    authority.as_str().strip_prefix(authority.host()).unwrap_or_default()
}

/// The host of a `Host` header without its port (RFC 9110, 7.2); none where it is not these two. Nothing is as well: that is
/// what a client sends which knows no host. What passes here can be an `:authority` of HTTP/2 too: to endpoints no request
/// is sent that they would have to take for broken. So percent-encoding is left out, which `http` has no place for; but for
/// a zone, with which a request can still be sent over HTTP/1.1.
fn host_of(header: &[u8]) -> Option<&str> {
    let header = std::str::from_utf8(header).ok()?;
    let (host, port) = match header.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (header, ""),
    };
    let is_host = match host.strip_prefix('[') {
        // Some clients send the zone of a link-local address too (RFC 6874), which means nothing to others.
        Some(literal) => literal.strip_suffix(']')?.split('%').next()?.parse::<Ipv6Addr>().is_ok(),
        None => host.bytes().all(may_be_in_name) && (!host.is_empty() || header.is_empty()),
    };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok());
    (is_host && is_port).then_some(host)
}

/// RFC 3986, 3.2.2, without the comma, which would look like a second host.
fn may_be_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
}

/// HTTP/1 is held to this by its codec; in HTTP/2 the library takes what begins with `*` for a path.
///
/// # Errors
///
/// When the target is `*` and the method is not OPTIONS (RFC 9113, 8.3.1), or there is more behind the `*`.
pub fn check_asterisk(head: &Parts) -> Result<(), Refusal> {
    let path = head.uri.path();
    if path.starts_with('*') && (path != "*" || head.method != http::Method::OPTIONS) {
        return Err(Refusal::BadRequest("a target in a form that is not the method's"));
    }
    Ok(())
}

/// In lower case, without a final dot.
pub fn normalized(host: &str) -> Cow<'_, str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// The host without `.suffix`, if it ends so.
pub fn without_suffix<'a>(host: &'a str, suffix: &str) -> Option<&'a str> {
    if suffix.is_empty() {
        return None;
    }
    host.strip_suffix(suffix)?.strip_suffix('.').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_target_counts_before_the_host_header() {
        let parts = head(Request::get("http://users:80/a").header("host", "other"));
        let named = named(&parts).unwrap();
        assert_eq!((named.host, named.absolute.map(Authority::as_str)), ("users", Some("users:80")));
    }

    #[test]
    fn ports_are_no_part_of_the_name() {
        for (host, name) in
            [("users", "users"), ("users:80", "users"), ("users:", "users"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")]
        {
            let parts = head(Request::get("/").header("host", host));
            assert_eq!(named(&parts).unwrap(), Named { host: name, absolute: None });
        }
    }

    #[test]
    fn http2_names_its_authority_but_asks_for_no_proxy() {
        let parts = head(Request::get("http://users/").version(Version::HTTP_2));
        assert_eq!(named(&parts).unwrap(), Named { host: "users", absolute: None });
    }

    #[test]
    fn what_names_no_one_host_is_refused() {
        for request in [
            Request::get("/"),
            Request::get("/").header("host", "a").header("host", "a"),
            Request::get("http://users:99999/"),
            Request::get("http://:80/"),
            Request::get("http://u:p@users/"),
            Request::get("https://users/").header("host", "users"),
        ] {
            assert!(named(&head(request)).is_err());
        }
    }

    /// Issue 10, 17: also beside a target that names a host.
    #[test]
    fn what_is_no_host_is_refused_in_every_version() {
        for host in [
            "[",
            "]",
            "users%",
            "users%41",
            "a:b",
            "::1",
            "[::1",
            "[::1]x",
            "[]",
            "[v1.a]",
            ":80",
            "users:65536",
            "a,b",
            "me@users",
        ] {
            for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                for target in ["/", "http://users/"] {
                    let parts = head(Request::get(target).version(version).header("host", host));
                    assert!(matches!(named(&parts), Err(Refusal::BadRequest(_))), "{target} {host:?}");
                }
                let parts = head(Request::connect("users:80").version(version).header("host", host));
                assert!(matches!(target(&parts, &Body::Empty), Err(Refusal::BadRequest(_))), "{host:?}");
            }
        }
        for host in ["users", "users:80", "a_b.c", "[::1]:80", "[fe80::1%eth0]"] {
            assert!(named(&head(Request::get("/").header("host", host))).is_ok(), "{host:?}");
        }
        let parts = head(Request::get("/").header("host", ""));
        assert_eq!(named(&parts).unwrap(), Named { host: "", absolute: None }, "one who knows no host");
    }

    proptest! {
        /// What passes can be said to an endpoint of HTTP/2, and means the same there.
        #[test]
        fn a_host_is_an_authority(header in r"[a-zA-Z0-9.~!$&'()*+;=,%@:\[\]/ _-]{1,12}|[a-z]{0,3}:[0-9]{0,6}|\[[0-9a-f:.]{0,9}\](:[0-9]{0,3})?") {
            if let Some(host) = host_of(header.as_bytes()).filter(|host| !host.contains('%')) {
                let authority: Authority = header.parse().unwrap();
                prop_assert_eq!(authority.host(), host);
                prop_assert!(!header.contains('@'));
            }
        }
    }

    #[test]
    fn names_are_compared_in_lower_case_without_suffix() {
        assert_eq!(normalized("Users.Mesh."), "users.mesh");
        assert_eq!(without_suffix("users.mesh", "mesh"), Some("users"));
        assert_eq!(without_suffix("usersmesh", "mesh"), None);
        assert_eq!(without_suffix(".mesh", "mesh"), None);
        assert_eq!(without_suffix("users", ""), None);
    }
}
