//! Changing to another protocol: what a client asks for, how it is asked of an endpoint, and whether it was granted.
//!
//! Over HTTP/1.1 a client asks with `Upgrade` and is answered 101 (RFC 9110, 7.8); over HTTP/2 it asks for a WebSocket
//! with an extended CONNECT and is answered 200 (RFC 8441). Endpoints are asked in HTTP/1.1 either way. Until one has
//! answered 101, and names a protocol that it was asked for, what the client sends is HTTP and nothing else: bytes that
//! went to an endpoint unread would be requests that nobody has looked at.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{Method, StatusCode, Version};

use super::Response;
use super::headers::strip_hop_by_hop;
use super::names::strip_lookalikes;

/// What an extended CONNECT asks for (its `:protocol`), as the server side of HTTP/2 leaves it with the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedConnect(pub Box<str>);

const WEBSOCKET: &str = "websocket";

/// What a key is hashed with (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A change of protocol that a client has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// As `Upgrade` lists them.
    protocols: HeaderValue,
    /// The answer to a key of our own, where the client is one of HTTP/2 and knows nothing of keys.
    accept: Option<String>,
}

impl Upgrade {
    /// What an HTTP/1.1 request without a body asks for. None also where HTTP goes on whatever it asks for: a change to
    /// another version of HTTP, or to TLS, would hide requests from the proxy, and one that cannot be begun by this
    /// method is none. A server may ignore `Upgrade`, and so may a proxy.
    pub fn asked_by(head: &Parts) -> Option<Self> {
        let asked = head.headers.get(UPGRADE)?;
        if head.version != Version::HTTP_11 || !names(&head.headers, &CONNECTION).any(|name| is(name, UPGRADE.as_str()))
        {
            return None;
        }
        let passed_on: Vec<&str> = names(&head.headers, &UPGRADE).filter(|name| is_passed_on(name)).collect();
        if passed_on.is_empty() || head.method != Method::GET && passed_on.iter().any(|name| is(name, WEBSOCKET)) {
            return None;
        }
        let protocols = match passed_on.join(", ") {
            same if same.as_bytes() == asked.as_bytes() => asked.clone(),
            joined => HeaderValue::try_from(joined).ok()?,
        };
        Some(Self { protocols, accept: None })
    }

    /// What an extended CONNECT asks for, whose head becomes that of the request which asks an endpoint for the same.
    ///
    /// # Errors
    ///
    /// What it is that cannot be asked for.
    pub fn by_connect(connect: &ExtendedConnect, head: &mut Parts) -> Result<Self, &'static str> {
        if &*connect.0 != WEBSOCKET {
            return Err("an extended CONNECT for anything but a WebSocket");
        }
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| "a WebSocket, for want of random numbers,")?;
        Ok(Self::with_key(base64(&nonce), head))
    }

    fn with_key(key: String, head: &mut Parts) -> Self {
        let accept = accept(&key);
        head.method = Method::GET;
        if let Ok(key) = HeaderValue::try_from(key) {
            head.headers.insert(SEC_WEBSOCKET_KEY, key);
        }
        Self { protocols: HeaderValue::from_static(WEBSOCKET), accept: Some(accept) }
    }

    /// The same for a WebSocket only, where that is among what is asked for.
    pub fn to_websocket(self) -> Option<Self> {
        let asks = self.protocols.to_str().is_ok_and(|all| all.split(',').any(|one| is(one.trim(), WEBSOCKET)));
        asks.then(|| Self { protocols: HeaderValue::from_static(WEBSOCKET), ..self })
    }

    /// Asks an endpoint, in a head from which hop-by-hop headers have been removed.
    pub fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocols.clone());
    }

    /// Whether a 101 with these headers changes to what was asked for, and to nothing else.
    pub fn is_granted_by(&self, headers: &HeaderMap) -> bool {
        let asked =
            |name: &str| self.protocols.to_str().is_ok_and(|all| all.split(',').any(|one| is(one.trim(), name)));
        let mut granted = names(headers, &UPGRADE).peekable();
        let right_key =
            |accept: &String| headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value == accept.as_str());
        granted.peek().is_some() && granted.all(asked) && self.accept.as_ref().is_none_or(right_key)
    }

    /// The client's answer, made of the 101 of an endpoint that has granted it.
    pub fn tell(&self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        let granted = headers.get(UPGRADE).cloned();
        strip_hop_by_hop(headers);
        strip_lookalikes(headers, None);
        if self.is_by_connect() {
            headers.remove(SEC_WEBSOCKET_ACCEPT);
            *response.status_mut() = StatusCode::OK;
        } else if let Some(granted) = granted {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, granted);
        }
        response
    }

    /// Whether the client asks with CONNECT: it takes any success for the stream that it wanted.
    pub fn is_by_connect(&self) -> bool {
        self.accept.is_some()
    }
}

/// The names in a header that is a list; what is no text is no name.
fn names<'a>(headers: &'a HeaderMap, header: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

fn is(name: &str, other: &str) -> bool {
    name.eq_ignore_ascii_case(other)
}

/// Neither another HTTP nor TLS, in any version.
fn is_passed_on(name: &str) -> bool {
    let family = name.split('/').next().unwrap_or_default();
    !["h2", "h2c", "http", "tls"].iter().any(|known| is(family, known))
}

/// What a server answers to a key (RFC 6455, 4.2.2).
fn accept(key: &str) -> String {
    base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()).as_ref())
}

/// RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * place) & 63) as usize).filter(|_| place <= three.len());
            out.push(digit.map_or('=', |digit| char::from(*digit)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, version: Version, lines: &[(&'static str, &str)]) -> Parts {
        let mut request = http::Request::new(());
        *request.method_mut() = method;
        *request.version_mut() = version;
        for (name, value) in lines {
            request.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
        }
        request.into_parts().0
    }

    fn asked(method: Method, version: Version, connection: &str, upgrade: &str) -> Option<String> {
        let head = request(method, version, &[("connection", connection), ("upgrade", upgrade)]);
        Upgrade::asked_by(&head).map(|upgrade| upgrade.protocols.to_str().unwrap().to_owned())
    }

    #[test]
    fn an_upgrade_is_asked_for_in_full_or_not_at_all() {
        let (get, h11) = (Method::GET, Version::HTTP_11);
        let asked_for = |protocols: &str| Some(protocols.to_owned());
        assert_eq!(asked(get.clone(), h11, "keep-alive, Upgrade", "WebSocket"), asked_for("WebSocket"));
        assert_eq!(asked(get.clone(), h11, "upgrade", "a/1, h2c ,b"), asked_for("a/1, b"));
        assert_eq!(asked(Method::POST, h11, "upgrade", "echo"), asked_for("echo"));
        assert_eq!(asked(Method::POST, h11, "upgrade", "websocket"), None);
        assert_eq!(asked(get.clone(), h11, "keep-alive", "websocket"), None);
        assert_eq!(asked(get.clone(), Version::HTTP_10, "upgrade", "websocket"), None);
        assert_eq!(asked(get.clone(), Version::HTTP_2, "upgrade", "websocket"), None);
        for hidden in ["h2c", "h2", "HTTP/2.0", "TLS/1.0", "H2C, http/1.1", "", " , "] {
            assert_eq!(asked(get.clone(), h11, "upgrade", hidden), None, "{hidden:?}");
        }
    }

    #[test]
    fn only_what_was_asked_for_can_be_granted() {
        let head =
            request(Method::GET, Version::HTTP_11, &[("connection", "upgrade"), ("upgrade", "foo/2, websocket")]);
        let upgrade = Upgrade::asked_by(&head).unwrap();
        let granted = |protocol: &str| {
            let response = request(Method::GET, Version::HTTP_11, &[("upgrade", protocol)]);
            upgrade.is_granted_by(&response.headers)
        };
        assert!(granted("WebSocket") && granted("foo/2") && granted("websocket, foo/2"));
        assert!(!granted("foo") && !granted("h2c") && !granted("websocket, h2c") && !granted(""));
        assert!(!upgrade.is_granted_by(&HeaderMap::new()));
    }

    #[test]
    fn the_key_of_an_extended_connect_must_be_answered() {
        // The example of RFC 6455, 1.3.
        let mut head = request(Method::CONNECT, Version::HTTP_2, &[("sec-websocket-version", "13")]);
        let upgrade = Upgrade::with_key(base64(b"the sample nonce"), &mut head);
        assert_eq!(
            (head.method, head.headers[SEC_WEBSOCKET_KEY].as_bytes()),
            (Method::GET, &b"dGhlIHNhbXBsZSBub25jZQ=="[..])
        );
        let answer = |accept: &str| {
            let lines = [("upgrade", "websocket"), ("sec-websocket-accept", accept)];
            upgrade.is_granted_by(&request(Method::GET, Version::HTTP_11, &lines).headers)
        };
        assert!(answer("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(!answer("s3pPLMBiTxaQ9kYGzzhZRbK+xOp="));
        assert!(!upgrade.is_granted_by(&request(Method::GET, Version::HTTP_11, &[("upgrade", "websocket")]).headers));

        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", "x")] {
            response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let told = upgrade.tell(response);
        assert_eq!((told.status().as_u16(), told.headers().len()), (200, 0));
    }

    #[test]
    fn an_extended_connect_is_for_a_websocket_with_a_key_of_its_own() {
        let mut head = request(Method::CONNECT, Version::HTTP_2, &[("sec-websocket-key", "forged")]);
        let websocket = ExtendedConnect("websocket".into());
        let (first, second) = (Upgrade::by_connect(&websocket, &mut head), Upgrade::by_connect(&websocket, &mut head));
        assert_ne!(first.unwrap().accept, second.unwrap().accept);
        assert_eq!(head.headers[SEC_WEBSOCKET_KEY].len(), 24);
        assert!(Upgrade::by_connect(&ExtendedConnect("connect-udp".into()), &mut head).is_err());
    }

    #[test]
    fn base64_is_padded() {
        // RFC 4648, 10.
        let examples = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, encoded) in examples.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *encoded);
        }
    }
}
