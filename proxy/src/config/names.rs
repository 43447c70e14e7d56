//! Hosts that can never name a service, and patterns over the hosts that may: pure.
//!
//! A service's name is compared with the hosts that clients write. A registry key that names `127.0.0.1`, `2130706433`
//! or `localhost` would thus take over requests that a client sends to an address or to its own machine, so such hosts
//! name no service, whoever announces them. What counts is what a resolver makes of the text, not how it is usually
//! written: `inet_aton` reads 1 to 4 numbers, each decimal, octal or hexadecimal, and so do curl, browsers and glibc.

/// Whether a host is an IPv4 address in any spelling that a resolver takes, such as `127.1`, `0x7f.1` or `2130706433`.
/// Names of which every label is a number count too, however large the numbers are: the WHATWG URL rule takes none of
/// them for a name. IPv6 addresses hold a colon, which no name may.
pub fn is_ipv4_spelling(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    !host.is_empty() && host.split('.').all(is_number)
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Whether a host is the client's own machine: `localhost` and all names below it (RFC 6761, 6.3).
pub fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

/// Which services outside the suffix take proxy requests, CONNECT and SOCKS: a host in lower case in which each `*`
/// stands for any text, dots included. `*.internal` is every name below `internal`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern of this text; none where it has other characters than a host's and `*`, or is empty.
    pub fn new(text: &str) -> Option<Self> {
        let known =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.' | b'*');
        (!text.is_empty() && text.len() <= 253 && text.bytes().all(known)).then(|| Self(text.to_owned()))
    }

    /// Whether a name, in lower case, is one of these. The time is at most the product of the two lengths.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut in_name) = (0, 0);
        // Where the last `*` stands, and how much of the name it has taken: the only place to come back to.
        let mut star: Option<(usize, usize)> = None;
        while let Some(&byte) = name.get(in_name) {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, in_name));
                    at += 1;
                }
                Some(&wanted) if wanted == byte => (at, in_name) = (at + 1, in_name + 1),
                _ => {
                    let Some((star_at, taken)) = star.as_mut() else { return false };
                    *taken += 1;
                    (at, in_name) = (*star_at + 1, *taken);
                }
            }
        }
        pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, 13: addresses in every spelling that a client would resolve are no names.
    #[test]
    fn addresses_in_every_spelling() {
        for host in [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "017700000001",
            "0177.0.0.1",
            "0x7f.1",
            "0X7F.0x1",
            "0x7f000001",
            "0x",
            "1",
            "10.0.0.5.",
            "1.2.3.4.5",
            "256.256.256.256",
            "99999999999999999999",
        ] {
            assert!(is_ipv4_spelling(host), "{host}");
        }
        for host in ["", ".", "users", "users.1a", "v1.2", "1.users", "0xusers", "a1", "0x7f.users", "10-0-0-1"] {
            assert!(!is_ipv4_spelling(host), "{host}");
        }
    }

    #[test]
    fn the_own_machine() {
        for host in ["localhost", "LocalHost", "localhost.", "users.localhost", "a.b.LOCALHOST."] {
            assert!(is_localhost(host), "{host}");
        }
        for host in ["", "localhosts", "localhost.example", "mylocalhost"] {
            assert!(!is_localhost(host), "{host}");
        }
    }

    #[test]
    fn patterns() {
        let matches = |pattern: &str, name: &str| NamePattern::new(pattern).expect(pattern).matches(name);
        for (pattern, name) in [
            ("api.example.com", "api.example.com"),
            ("*.internal", "a.internal"),
            ("*.internal", "a.b.internal"),
            ("*", "a.b"),
            ("api.*", "api.example.com"),
            ("a*b*c", "abxbc"),
            ("**", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("api.example.com", "api.example.co"),
            ("*.internal", "internal"),
            ("*.internal", "a.internal.x"),
            ("a*b*c", "abxb"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        for text in ["", "A", "a b", "a:1", "ü", &"a".repeat(254)] {
            assert!(NamePattern::new(text).is_none(), "{text}");
        }
    }
}
