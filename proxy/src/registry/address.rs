//! Addresses of endpoints and names of services, in the one form by which they are compared.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::names::{is_ipv4_spelling, is_localhost};
use crate::log::redact;

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("the address is empty; expected host:port")]
    Empty,
    #[error("{0:?} has no port; expected host:port")]
    NoPort(String),
    #[error("the port of {0:?} is not a number from 1 to 65535")]
    Port(String),
    #[error("the host of {0:?} is neither a name, nor an IPv4 address, nor an IPv6 address in brackets")]
    Host(String),
}

/// A text that can be no service's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{0:?} cannot name a service; expected 1 to 253 letters, digits, '-' and '_' in parts separated by dots")]
    Form(String),
    #[error("{0:?} cannot name a service: clients take it for an IP address")]
    Address(String),
    #[error("{0:?} cannot name a service: it is the client's own machine")]
    Localhost(String),
}

/// Reads `host:port` into its normal form: names in lower case, IPv6 addresses in brackets and shortened (RFC 5952).
///
/// # Errors
///
/// [`AddressError`], when the host or the port is missing or malformed.
pub fn address(text: &str) -> Result<String, AddressError> {
    join(text, None)
}

/// As [`address`], with a port for texts that have none.
///
/// # Errors
///
/// [`AddressError`], as of [`address`].
pub fn address_or_port(text: &str, port: u16) -> Result<String, AddressError> {
    join(text, Some(port))
}

fn join(text: &str, default_port: Option<u16>) -> Result<String, AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty);
    }
    let host_error = || AddressError::Host(shown(text));
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inner, after) = rest.split_once(']').ok_or_else(host_error)?;
        let ip: Ipv6Addr = inner.parse().map_err(|_| host_error())?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(host_error()),
        };
        (format!("[{ip}]"), port)
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        (name_or_ipv4(host).ok_or_else(host_error)?, port)
    };
    let port = match port {
        Some(port) => decimal_port(port).ok_or_else(|| AddressError::Port(shown(text)))?,
        None => default_port.ok_or_else(|| AddressError::NoPort(shown(text)))?,
    };
    Ok(format!("{host}:{port}"))
}

/// A name whose last label is all digits would be read as an IPv4 address by others (the WHATWG URL rule), so it must
/// be one.
fn name_or_ipv4(host: &str) -> Option<String> {
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next()?;
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().ok().map(|ip| ip.to_string());
    }
    is_name(host).then(|| host.to_ascii_lowercase())
}

/// `u16::from_str` takes a leading `+`; this does not.
fn decimal_port(text: &str) -> Option<u16> {
    let port = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())??;
    (port != 0).then_some(port)
}

/// Reads the name of a service: what can stand as the host of a request. In lower case, since hosts are compared so.
///
/// # Errors
///
/// [`NameError`], when it is empty, longer than 253 bytes (RFC 1035, 2.3.4), has other characters than letters, digits,
/// `-`, `_` and `.` (so none with a port), has an empty part, or is an IP address in any spelling or `localhost`.
pub fn service_name(text: &str) -> Result<String, NameError> {
    if !is_name(text) || text.split('.').any(str::is_empty) {
        Err(NameError::Form(shown(text)))
    } else if is_ipv4_spelling(text) {
        Err(NameError::Address(shown(text)))
    } else if is_localhost(text) {
        Err(NameError::Localhost(shown(text)))
    } else {
        Ok(text.to_ascii_lowercase())
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.bytes().all(allowed)
}

/// Enough of a text from outside for a message, without what stands before an `@`: that is a user and a password.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let safe = redact(text, false);
    let text = match safe.rsplit_once('@') {
        Some((before, host)) if !before.ends_with("***") => &format!("***@{host}"),
        _ => &*safe,
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_forms() {
        for (text, expected) in [
            ("10.0.0.5:80", "10.0.0.5:80"),
            ("Users-1.Local:8080", "users-1.local:8080"),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]:443"),
            ("a_b:1", "a_b:1"),
            ("host.:65535", "host.:65535"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(address_or_port("1.2.3.4", 80).as_deref(), Ok("1.2.3.4:80"));
        assert_eq!(address_or_port("[::1]", 443).as_deref(), Ok("[::1]:443"));
        assert_eq!(address_or_port("[::1]:5", 443).as_deref(), Ok("[::1]:5"));
    }

    #[test]
    fn refusals() {
        assert_eq!(address(""), Err(AddressError::Empty));
        for text in ["10.0.0.5", "[::1]", "users"] {
            assert_eq!(address(text), Err(AddressError::NoPort(text.into())));
        }
        for text in ["a:", "a:0", "a:65536", "a:+80", "a:80 ", "a:8:0", "::1:80", "[::1]:x"] {
            let error = address(text);
            assert!(matches!(error, Err(AddressError::Port(_) | AddressError::Host(_))), "{text}: {error:?}");
        }
        for text in [":80", "10.0.0.256:80", "1.2:80", "a b:80", "a/b:80", "[::1:80", "[::1]80", "[fe80::1%eth0]:80"] {
            assert_eq!(address(text), Err(AddressError::Host(text.into())), "{text}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(service_name("User.rpc").as_deref(), Ok("user.rpc"));
        for text in ["", ".", "a/b", "10.0.0.5:80", "users:80", "[::1]", "::1", "a..b", "a.", "ü", &"a".repeat(254)] {
            assert!(service_name(text).is_err(), "{text}");
        }
    }

    /// Issue 10, 13.
    #[test]
    fn addresses_and_localhost_name_no_service() {
        for text in ["127.0.0.1", "127.1", "0x7F.1", "2130706433", "10.0.0.5"] {
            assert_eq!(service_name(text), Err(NameError::Address(text.into())));
        }
        for text in ["localhost", "LOCALHOST", "users.localhost"] {
            assert_eq!(service_name(text), Err(NameError::Localhost(text.into())));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_the_normal_form_stays(text in "\\PC{0,40}|[a-z0-9.:\\[\\]]{0,20}") {
            if let Ok(normal) = address(&text) {
                prop_assert_eq!(address(&normal), Ok(normal.clone()));
            }
            if let Ok(name) = service_name(&text) {
                prop_assert_eq!(service_name(&name), Ok(name.clone()));
            }
        }
    }
}
