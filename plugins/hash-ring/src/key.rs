use heddle_plugin::Request;
use xxhash_rust::xxh64::xxh64;

/// The part of a request that says where it goes, written in the settings as `by`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `client-ip`: the client's address, without the port.
    ClientIp,
    /// `path`: the path without its query.
    Path,
    /// `url`: the path with its query.
    Url,
    /// `header:NAME`: the value of a header; several lines of the name count as one value, joined by `, `.
    Header(String),
    /// `cookie:NAME`: the value of a cookie; the first where there are several.
    Cookie(String),
    /// `query:NAME`: the value of a parameter of the query, as sent (`%41` is not `A`); the first where there are
    /// several.
    Query(String),
    /// `identity`: what the client's certificate proved.
    Identity,
    /// `sni`: the server name of the TLS handshake.
    Sni,
}

impl Key {
    /// The key that a text names.
    ///
    /// # Errors
    ///
    /// What can be said, where the text is none of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once(':').map_or((text, None), |(kind, name)| (kind, Some(name)));
        match (kind, name) {
            ("client-ip", None) => Ok(Self::ClientIp),
            ("path", None) => Ok(Self::Path),
            ("url", None) => Ok(Self::Url),
            ("identity", None) => Ok(Self::Identity),
            ("sni", None) => Ok(Self::Sni),
            ("header", Some(name)) if !name.is_empty() => Ok(Self::Header(name.to_owned())),
            ("cookie", Some(name)) if !name.is_empty() => Ok(Self::Cookie(name.to_owned())),
            ("query", Some(name)) if !name.is_empty() => Ok(Self::Query(name.to_owned())),
            _ => Err([
                "by = \"",
                text,
                "\": expected client-ip, path, url, identity, sni, header:NAME, cookie:NAME or query:NAME",
            ]
            .concat()),
        }
    }

    /// The hash of this part of the request (XXH64 with seed 0, of the bytes as sent); none where the request lacks it.
    pub fn hash(&self, request: &Request) -> Option<u64> {
        let hash = |bytes: &[u8]| xxh64(bytes, 0);
        match self {
            Self::ClientIp => request.client_ip().map(|ip| hash(ip.as_bytes())),
            Self::Path => request.path().map(|url| hash(split_query(&url).0.as_bytes())),
            Self::Url => request.path().map(|url| hash(url.as_bytes())),
            Self::Header(name) => request.header(name).map(|value| hash(&value)),
            Self::Cookie(name) => cookie(&request.header("cookie")?, name).map(hash),
            Self::Query(name) => parameter(&request.path()?, name).map(|value| hash(value.as_bytes())),
            Self::Identity => request.identity().map(|identity| hash(identity.as_bytes())),
            Self::Sni => request.sni().map(|name| hash(name.as_bytes())),
        }
    }
}

fn split_query(url: &str) -> (&str, &str) {
    url.split_once('?').unwrap_or((url, ""))
}

fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = split_query(url);
    query.split('&').find_map(|pair| {
        let (known, value) = pair.split_once('=').unwrap_or((pair, ""));
        (known == name).then_some(value)
    })
}

/// A cookie's value in a `Cookie` header (RFC 6265, 4.2.1). Lines were joined by a comma, which no cookie contains.
fn cookie<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|&byte| byte == b';' || byte == b',').find_map(|pair| {
        pair.trim_ascii_start().strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::trim_ascii_end)
    })
}

#[cfg(test)]
mod tests {
    use super::{cookie, parameter, split_query};

    #[test]
    fn a_path_ends_at_its_query() {
        assert_eq!(split_query("/a?b=c"), ("/a", "b=c"));
        assert_eq!(split_query("/a"), ("/a", ""));
    }

    #[test]
    fn a_parameter_is_found_by_its_whole_name() {
        assert_eq!(parameter("/a?user=1&ser=2", "ser"), Some("2"));
        assert_eq!(parameter("/a?ser", "ser"), Some(""));
        assert_eq!(parameter("/a?user=1", "ser"), None);
        assert_eq!(parameter("/ser=1", "ser"), None);
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name_on_any_line() {
        assert_eq!(cookie(b"a=1; session=x=y ; b=2", "session"), Some(&b"x=y"[..]));
        assert_eq!(cookie(b"a=1, session=2", "session"), Some(&b"2"[..]));
        assert_eq!(cookie(b"my-session=1", "session"), None);
    }
}
