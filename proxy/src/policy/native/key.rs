use xxhash_rust::xxh64::xxh64;

use super::super::Facts;

/// The part of a request that says where it goes: as in the crate `hash-ring` of the plugins, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    ClientIp,
    Path,
    Url,
    Header(String),
    Cookie(String),
    Query(String),
    Identity,
    Sni,
}

impl Key {
    /// The key that a text names, if it names one.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(':').map_or((text, None), |(kind, name)| (kind, Some(name)));
        match (kind, name.filter(|name| !name.is_empty())) {
            ("client-ip", None) => Some(Self::ClientIp),
            ("path", None) => Some(Self::Path),
            ("url", None) => Some(Self::Url),
            ("identity", None) => Some(Self::Identity),
            ("sni", None) => Some(Self::Sni),
            ("header", Some(name)) => Some(Self::Header(name.to_owned())),
            ("cookie", Some(name)) => Some(Self::Cookie(name.to_owned())),
            ("query", Some(name)) => Some(Self::Query(name.to_owned())),
            _ => None,
        }
    }

    /// The hash of this part of the request; none where the request lacks it.
    pub fn hash(&self, facts: &Facts) -> Option<u64> {
        let hash = |bytes: &[u8]| xxh64(bytes, 0);
        let url = || facts.is_request.then(|| facts.head.uri.path_and_query()).flatten().map(|url| url.as_str());
        match self {
            Self::ClientIp => Some(hash(facts.client.to_string().as_bytes())),
            Self::Path => url().map(|url| hash(split_query(url).0.as_bytes())),
            Self::Url => url().map(|url| hash(url.as_bytes())),
            Self::Header(name) => header(facts, name).map(|value| hash(&value)),
            Self::Cookie(name) => cookie(&header(facts, "cookie")?, name).map(hash),
            Self::Query(name) => parameter(url()?, name).map(|value| hash(value.as_bytes())),
            Self::Identity => facts.peer.as_ref()?.identity.as_deref().map(|identity| hash(identity.as_bytes())),
            Self::Sni => facts.peer.as_ref()?.server_name.as_deref().map(|name| hash(name.as_bytes())),
        }
    }
}

/// A header's value; several lines of one name are joined by `, `.
fn header(facts: &Facts, name: &str) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = facts.head.headers.get_all(name).iter().map(|line| line.as_bytes()).collect();
    (!lines.is_empty()).then(|| lines.join(&b", "[..]))
}

fn split_query(url: &str) -> (&str, &str) {
    url.split_once('?').unwrap_or((url, ""))
}

fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    split_query(url).1.split('&').find_map(|pair| {
        let (known, value) = pair.split_once('=').unwrap_or((pair, ""));
        (known == name).then_some(value)
    })
}

fn cookie<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|&byte| byte == b';' || byte == b',').find_map(|pair| {
        pair.trim_ascii_start().strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::trim_ascii_end)
    })
}
