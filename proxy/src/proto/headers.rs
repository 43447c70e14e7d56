//! Headers that a proxy takes away or adds.
//!
//! # What is added
//!
//! `Via` on every request (RFC 9110, 7.6.3), with this proxy's name: it is what a loop is recognized by. Responses are
//! passed on without one: who stands beside the application is no news to it.
//!
//! `Forwarded` (RFC 7239) or `X-Forwarded-*` where the listener says so. By default neither, because the client of a
//! proxy that runs beside one application is that application.
//!
//! `X-Forwarded-Client-Cert` where the client proved who it is by a certificate: `URI=spiffe://...`, or `DNS=name` for one
//! without a SPIFFE ID. Name and form are Envoy's, of whose keys these are the two that say who. What a client sends
//! under this name is always removed, also where it proved nothing. A service may rely on what it reads there as far as
//! nothing but requests that went through here reaches it: see `server/layer.rs` for where that is so.
//!
//! # Spellings
//!
//! Where a name is removed or written, what a reader may take for the same name is removed too: see [`super::names`].

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};

use super::names::{self, reads_as};
use crate::config::checked::Forwarded;

/// Removes what belongs to one connection (RFC 9110, 7.6.1): `Connection`, every header that it names, and those that
/// are known to be of that kind even where it does not. `Content-Length` stays for the framing to be read from.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !is_protected(name))
        .collect();
    if !named.is_empty() {
        names::remove_all(headers, &named);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HOP_BY_HOP: [HeaderName; 8] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION];

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Most names are told apart by their length alone.
    match name.as_str().len() {
        2 => name == TE,
        7 => name == UPGRADE,
        10 => name == CONNECTION || name == KEEP_ALIVE,
        16 => name == PROXY_CONNECTION,
        17 => name == TRANSFER_ENCODING,
        18 => name == PROXY_AUTHENTICATE,
        19 => name == PROXY_AUTHORIZATION,
        _ => false,
    }
}

/// What `Connection` may not take away: with these gone, the next hop would read another message than we did.
/// And what a proxy before us has said about the client is not the client's to take away.
fn is_protected(name: &HeaderName) -> bool {
    let protected =
        [http::header::HOST, CONTENT_LENGTH, VIA, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO];
    protected.iter().any(|protected| reads_as(name.as_str(), protected.as_str()))
}

/// Whether the client takes trailers (`TE: trailers`), which is asked before [`strip_hop_by_hop`].
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get(TE).is_some_and(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// Joins the pieces that HTTP/2 may cut `Cookie` into: HTTP/1.1 has one such header at most (RFC 9113, 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(_)) = (pieces.next(), pieces.next()) {
        let mut joined = first.as_bytes().to_vec();
        for piece in headers.get_all(COOKIE).iter().skip(1) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(piece.as_bytes());
        }
        if let Ok(joined) = HeaderValue::try_from(joined) {
            headers.insert(COOKIE, joined);
        }
    }
}

/// Removes the client's `Expect`: the proxy asks for the body itself, once there is a connection to send it on.
pub fn strip_expect(headers: &mut HeaderMap) {
    headers.remove(EXPECT);
}

/// What is added to every request.
#[derive(Debug, Clone)]
pub struct Signature {
    /// The proxy's name in `Via`.
    name: String,
    http10: HeaderValue,
    http11: HeaderValue,
    http2: HeaderValue,
}

impl Signature {
    /// None when the name is no token (RFC 9110, 5.6.2).
    pub fn new(name: &str) -> Option<Self> {
        let value = |version| HeaderValue::try_from(format!("{version} {name}")).ok();
        let token =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        token.then_some(())?;
        Some(Self { name: name.to_owned(), http10: value("1.0")?, http11: value("1.1")?, http2: value("2")? })
    }

    /// Whether the message has been through this proxy.
    pub fn is_on(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VIA).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).any(|hop| {
            let mut words = hop.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
            words.nth(1) == Some(self.name.as_bytes())
        })
    }

    /// Appends this proxy to `Via`.
    pub fn sign(&self, headers: &mut HeaderMap, version: http::Version) {
        let value = match version {
            http::Version::HTTP_2 => &self.http2,
            http::Version::HTTP_10 => &self.http10,
            _ => &self.http11,
        };
        headers.append(VIA, value.clone());
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Says whom the client's certificate proved it to be, and nothing where it proved nothing, whatever it says itself.
pub fn identify(headers: &mut HeaderMap, identity: Option<&str>) {
    while let Some(name) = headers.keys().find(|name| reads_as(name.as_str(), CLIENT_CERT.as_str())).cloned() {
        headers.remove(name);
    }
    if let Some(identity) = identity {
        let kind = if identity.starts_with("spiffe://") { "URI" } else { "DNS" };
        append(headers, CLIENT_CERT, format!("{kind}={identity}"));
    }
}

/// What services may be told of a client's side.
#[derive(Debug, Clone, Copy)]
pub struct ClientSide {
    pub address: SocketAddr,
    /// Whether the client speaks TLS.
    pub tls: bool,
}

/// Tells the service about the client as the listener says.
pub fn forward(headers: &mut HeaderMap, how: Forwarded, client: ClientSide, host: Option<&str>) {
    let ClientSide { address: client, tls } = client;
    let scheme = if tls { "https" } else { "http" };
    match how {
        Forwarded::Off => {}
        Forwarded::Standard => {
            let mut value = match client {
                SocketAddr::V4(client) => format!("for={}", client.ip()),
                SocketAddr::V6(client) => format!("for=\"[{}]\"", client.ip()),
            };
            // A Host that would have to be escaped is none (RFC 3986, 3.2.2).
            if let Some(host) =
                host.filter(|host| host.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\'))
            {
                let _writing_to_a_string_cannot_fail = write!(value, ";host=\"{host}\"");
            }
            let _writing_to_a_string_cannot_fail = write!(value, ";proto={scheme}");
            append(headers, FORWARDED, value);
        }
        Forwarded::Legacy => {
            let before: Vec<String> = headers
                .get_all(&X_FORWARDED_FOR)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .chain([client.ip().to_string()])
                .collect();
            headers.remove(X_FORWARDED_FOR);
            append(headers, X_FORWARDED_FOR, before.join(", "));
            headers.remove(X_FORWARDED_HOST);
            if let Some(host) = host {
                append(headers, X_FORWARDED_HOST, host.to_owned());
            }
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
        }
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn connection_and_what_it_names_are_removed() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "Host, X-Forwarded-For,x-forwarded-host, x-forwarded-proto, Forwarded"),
            ("x-secret", "1"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "users"),
            ("x-forwarded-proto", "https"),
            ("host", "users"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic eA=="),
            ("x-kept", "1"),
        ]);
        assert!(takes_trailers(&map));
        strip_hop_by_hop(&mut map);
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["forwarded", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-kept"]);
    }

    #[test]
    fn cookies_are_one_header() {
        let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut map);
        assert_eq!(map.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn a_loop_is_told_from_a_chain() {
        let signature = Signature::new("heddle-1").unwrap();
        assert!(!signature.is_on(&headers(&[("via", "1.1 heddle-2, 1.0 fred (heddle-1)")])));
        let mut map = headers(&[("via", "1.1 heddle-2")]);
        signature.sign(&mut map, http::Version::HTTP_11);
        assert!(signature.is_on(&map));
        assert!(signature.is_on(&headers(&[("via", "1.1 other,  2 heddle-1 (comment)")])));
        assert!(Signature::new("no spaces").is_none());
    }

    #[test]
    fn who_the_client_is_only_its_certificate_says() {
        let names = [
            "x-forwarded-client-cert",
            "x_forwarded_client_cert",
            "x-forwarded_client-cert",
            "host",
            "x.forwarded.client.cert",
            "x-forwarded-client-certs",
        ];
        let forged = || headers(&names.map(|name| (name, "URI=spiffe://mesh/admin")));
        let told = |identity: Option<&str>| {
            let mut map = forged();
            identify(&mut map, identity);
            assert_eq!(map.len(), 3 + usize::from(identity.is_some()), "{map:?}");
            map.get_all(CLIENT_CERT).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(told(None), [""; 0]);
        assert_eq!(told(Some("spiffe://mesh/ns/a")), ["URI=spiffe://mesh/ns/a"]);
        assert_eq!(told(Some("a.example")), ["DNS=a.example"]);
    }

    #[test]
    fn the_client_is_told_as_the_listener_says() {
        let client = ClientSide { address: "[2001:db8::1]:999".parse().unwrap(), tls: false };
        let mut map = headers(&[("forwarded", "for=10.0.0.1")]);
        forward(&mut map, Forwarded::Standard, client, Some("users"));
        let values: Vec<_> = map.get_all(FORWARDED).iter().collect();
        assert_eq!(values, ["for=10.0.0.1", "for=\"[2001:db8::1]\";host=\"users\";proto=http"]);

        let mut map = HeaderMap::new();
        forward(&mut map, Forwarded::Standard, client, Some("a\";for=\"10.0.0.1"));
        assert_eq!(map[FORWARDED], "for=\"[2001:db8::1]\";proto=http");

        let mut map = headers(&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-host", "forged")]);
        forward(&mut map, Forwarded::Legacy, client, None);
        assert_eq!(map["x-forwarded-for"], "10.0.0.1, 2001:db8::1");
        assert!(!map.contains_key("x-forwarded-host"));
        assert_eq!(map["x-forwarded-proto"], "http");

        let over_tls = ClientSide { tls: true, ..client };
        forward(&mut map, Forwarded::Legacy, over_tls, None);
        assert_eq!(map["x-forwarded-proto"], "https");
        let mut map = HeaderMap::new();
        forward(&mut map, Forwarded::Standard, over_tls, None);
        assert_eq!(map[FORWARDED], "for=\"[2001:db8::1]\";proto=https");

        let mut map = HeaderMap::new();
        forward(&mut map, Forwarded::Off, client, Some("users"));
        assert!(map.is_empty());
    }
}
