//! SOCKS5 as bytes (RFC 1928), and nothing of what they lead to.
//!
//! Every message is read from the beginning of what has arrived, so that it does not matter how it arrived.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const VERSION: u8 = 5;

/// The method of those who need none (3).
const NO_AUTHENTICATION: u8 = 0;

/// No method that was offered is to be used (3).
const NO_METHOD: u8 = 0xff;

const CONNECT: u8 = 1;

/// What a request is answered with (6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    Succeeded = 0,
    Failed = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    /// "TTL expired": what is said of anything that took too long.
    TimedOut = 6,
    CommandNotSupported = 7,
    AddressNotSupported = 8,
}

/// Where a client wants to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name, or an address as in a URL: one of IPv6 is in brackets.
    pub host: String,
    pub port: u16,
}

/// A message and its length; none while it is incomplete.
pub type Parsed<T> = Option<(T, usize)>;

/// Reads the client's greeting: whether it can do without authentication.
///
/// # Errors
///
/// When this is another version.
pub fn greeting(bytes: &[u8]) -> Result<Parsed<bool>, Reply> {
    match bytes {
        [VERSION, count, rest @ ..] => {
            let count = usize::from(*count);
            let greeting = |methods: &[u8]| (methods.contains(&NO_AUTHENTICATION), count + 2);
            Ok(rest.get(..count).map(greeting))
        }
        [] | [VERSION] => Ok(None),
        _ => Err(Reply::Failed),
    }
}

/// What a greeting is answered with.
pub fn method(is_served: bool) -> [u8; 2] {
    [VERSION, if is_served { NO_AUTHENTICATION } else { NO_METHOD }]
}

/// Reads the client's request.
///
/// # Errors
///
/// What it is answered with, where it asks for anything but a connection to a host and port.
pub fn request(bytes: &[u8]) -> Result<Parsed<Target>, Reply> {
    let (command, kind, rest) = match bytes {
        [VERSION, command, _reserved, kind, rest @ ..] => (*command, *kind, rest),
        [] | [VERSION] | [VERSION, _] | [VERSION, _, _] => return Ok(None),
        _ => return Err(Reply::Failed),
    };
    let (host, rest) = match kind {
        1 => {
            let Some((address, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
            (Some(Ipv4Addr::from(*address).to_string()), rest)
        }
        4 => {
            let Some((address, rest)) = rest.split_first_chunk::<16>() else { return Ok(None) };
            (Some(format!("[{}]", Ipv6Addr::from(*address))), rest)
        }
        3 => {
            let Some((length, rest)) = rest.split_first() else { return Ok(None) };
            let Some((name, rest)) = rest.split_at_checked(usize::from(*length)) else { return Ok(None) };
            (host(name), rest)
        }
        _ => return Err(Reply::AddressNotSupported),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    if command != CONNECT {
        return Err(Reply::CommandNotSupported);
    }
    let port = u16::from_be_bytes(*port);
    let host = host.filter(|_| port > 0).ok_or(Reply::Failed)?;
    Ok(Some((Target { host, port }, bytes.len() - rest.len())))
}

/// A name as the host of a URL; none for what can be no name. Some clients send addresses as names.
fn host(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    if name.parse::<Ipv6Addr>().is_ok() {
        return Some(format!("[{name}]"));
    }
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_of_name)).then(|| name.to_owned())
}

/// What a request is answered with: the reply, and the proxy's own address on the connection that it made.
pub fn reply(reply: Reply, bound: Option<SocketAddr>) -> Vec<u8> {
    let bound = bound.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    let mut bytes = vec![VERSION, reply as u8, 0];
    match bound.ip() {
        IpAddr::V4(ip) => {
            bytes.push(1);
            bytes.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(4);
            bytes.extend(ip.octets());
        }
    }
    bytes.extend(bound.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(kind: u8, address: &[u8], port: u16) -> Vec<u8> {
        [&[5, 1, 0, kind][..], address, &port.to_be_bytes()].concat()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        asked(3, &[&[u8::try_from(name.len()).unwrap()], name].concat(), 80)
    }

    #[test]
    fn a_client_that_needs_no_authentication_is_served() {
        assert_eq!(greeting(&[5, 1, 0, 9]), Ok(Some((true, 3))));
        assert_eq!(greeting(&[5, 3, 1, 2, 0]), Ok(Some((true, 5))));
        assert_eq!(greeting(&[5, 1, 2]), Ok(Some((false, 3))));
        assert_eq!(greeting(&[5, 0]), Ok(Some((false, 2))));
        for partial in [&[][..], &[5], &[5, 2, 0]] {
            assert_eq!(greeting(partial), Ok(None));
        }
        assert_eq!(greeting(&[4, 1]), Err(Reply::Failed));
        assert_eq!((method(true), method(false)), ([5, 0], [5, 0xff]));
    }

    #[test]
    fn hosts_come_as_addresses_and_as_names() {
        let v6 = Ipv6Addr::LOCALHOST.octets();
        for (bytes, host) in [
            (asked(1, &[10, 0, 0, 1], 80), "10.0.0.1"),
            (asked(4, &v6, 80), "[::1]"),
            (named(b"users.mesh"), "users.mesh"),
            (named(b"::1"), "[::1]"),
            (named(b"127.1"), "127.1"),
        ] {
            let whole = bytes.len();
            assert_eq!(request(&bytes), Ok(Some((Target { host: host.to_owned(), port: 80 }, whole))), "{host}");
            let more = [&bytes[..], b"more"].concat();
            assert_eq!(request(&more).unwrap().unwrap().1, whole);
        }
    }

    #[test]
    fn what_is_not_served_is_answered() {
        for (bytes, reply) in [
            (vec![5, 2, 0, 1, 1, 2, 3, 4, 0, 80], Reply::CommandNotSupported),
            (vec![5, 3, 0, 1, 1, 2, 3, 4, 0, 80], Reply::CommandNotSupported),
            (vec![5, 1, 0, 2], Reply::AddressNotSupported),
            (vec![4, 1, 0, 80], Reply::Failed),
            (named(b""), Reply::Failed),
            (named(b"a:80"), Reply::Failed),
            (named(b"me@users"), Reply::Failed),
            (named(b"a/b"), Reply::Failed),
            (named(b"a\0b"), Reply::Failed),
            (named(b"\xff\xfe"), Reply::Failed),
            (asked(1, &[10, 0, 0, 1], 0), Reply::Failed),
        ] {
            assert_eq!(request(&bytes), Err(reply), "{bytes:?}");
        }
    }

    #[test]
    fn a_reply_says_the_proxys_own_address() {
        assert_eq!(reply(Reply::Refused, None), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
        let bound = Some("127.0.0.1:258".parse().unwrap());
        assert_eq!(reply(Reply::Succeeded, bound), [5, 0, 0, 1, 127, 0, 0, 1, 1, 2]);
        let v6 = reply(Reply::Succeeded, Some("[::1]:80".parse().unwrap()));
        assert_eq!((v6.len(), v6[3], &v6[19..]), (22, 4, &[1, 0, 80][..]));
    }

    proptest! {
        /// Whatever arrives, and however it is cut, a whole message is found where it ends and never before; and a host
        /// is fit to stand before a colon and a port.
        #[test]
        fn any_bytes_are_read_alike_in_any_pieces(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                (0_u8..9, prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(kind, rest)| [&[5, 1, 0, kind][..], &rest].concat()),
                "[a-z.:@]{0,40}".prop_map(|name| named(name.as_bytes())),
            ],
        ) {
            let whole = request(&bytes);
            if let Ok(Some((target, length))) = &whole {
                prop_assert_eq!(&request(&bytes[..*length]), &whole);
                for end in 0..*length {
                    prop_assert_eq!(request(&bytes[..end]), Ok(None));
                }
                let authority: http::uri::Authority = format!("{}:{}", target.host, target.port).parse().unwrap();
                prop_assert_eq!(authority.host(), &target.host);
            }
            if let Ok(Some((_, length))) = greeting(&bytes) {
                prop_assert!(length <= bytes.len() && greeting(&bytes[..length - 1]) == Ok(None));
            }
        }
    }
}
