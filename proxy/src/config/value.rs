//! Single values: what each kind of text or number may be, and how a refusal says so. Nothing here touches a file.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::uri::{Authority, PathAndQuery};

use super::checked::Network;
use super::names::{NamePattern, is_ipv4_spelling, is_localhost};
use super::read::Refusal;
use super::tree::{Node, Value};

/// A value as a problem shows it: as it was written, cut short where it is long.
pub(super) fn shown(node: &Node) -> String {
    const LONGEST: usize = 60;
    let of_text = |text: &str| {
        // Before it is cut: behind the cut nobody could tell a password by its `@`.
        let text = crate::log::redact(text, false);
        if text.chars().count() > LONGEST {
            return format!("{:?}...", text.chars().take(LONGEST).collect::<String>());
        }
        format!("{text:?}")
    };
    match &node.value {
        Value::Text(text) => of_text(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Other(text) => text.clone(),
        Value::List(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// `"foo" is not an address; expected ...`.
pub(super) fn refuse(node: &Node, noun: &str, expected: &str) -> Refusal {
    Refusal { found: format!("{} is not {noun}", shown(node)), remedy: format!("expected {expected}") }
}

fn out_of_range(node: &Node, least: &str, most: &str) -> Refusal {
    Refusal { found: format!("{} is out of range", shown(node)), remedy: format!("expected {least} to {most}") }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => node.raw.as_deref(),
    }
}

/// A text that `parse` takes.
pub(super) fn parsed<T>(
    node: &Node,
    noun: &str,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Refusal> {
    text(node).and_then(parse).ok_or_else(|| refuse(node, noun, expected))
}

pub(super) fn flag(node: &Node) -> Result<bool, Refusal> {
    match node.value {
        Value::Flag(flag) => Ok(flag),
        _ => Err(refuse(node, "a truth value", "true or false")),
    }
}

/// An integer within `range`.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl FnOnce(&Node) -> Result<T, Refusal>
where
    T: TryFrom<i64> + PartialOrd + ToString,
{
    move |node| {
        let (least, most) = (range.start().to_string(), range.end().to_string());
        match node.value {
            Value::Integer(number) => T::try_from(number)
                .ok()
                .filter(|number| range.contains(number))
                .ok_or_else(|| out_of_range(node, &least, &most)),
            _ => Err(refuse(node, "an integer", &format!("{least} to {most}"))),
        }
    }
}

/// A time such as `"8s"`, `"250ms"` or `"1h 30m"`, within `range`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl FnOnce(&Node) -> Result<Duration, Refusal> {
    move |node| {
        let duration = parsed(node, "a duration", "a number with a unit such as \"250ms\" or \"8s\"", |text| {
            humantime::parse_duration(text).ok()
        })?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let bound = |bound: &Duration| humantime::format_duration(*bound).to_string();
        Err(out_of_range(node, &bound(range.start()), &bound(range.end())))
    }
}

/// Bytes as an integer, or as text with one of the units B, KiB, MiB and GiB, within `range`.
pub(super) fn size(range: RangeInclusive<usize>) -> impl FnOnce(&Node) -> Result<usize, Refusal> {
    move |node| {
        let bytes = match &node.value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            Value::Text(text) => bytes(text),
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| refuse(node, "a size", "bytes, or a text such as \"64MiB\""))?;
        if range.contains(&bytes) {
            Ok(bytes)
        } else {
            Err(out_of_range(node, &shown_size(*range.start()), &shown_size(*range.end())))
        }
    }
}

/// In the largest unit that leaves no fraction.
fn shown_size(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(bits, _)| bytes > 0 && bytes.trailing_zeros() >= *bits);
    unit.map_or_else(|| format!("{bytes} B"), |(bits, unit)| format!("{} {unit}", bytes >> bits))
}

fn bytes(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let scale = match unit.trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(scale)
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    noun: &'static str,
    words: &'static [(&'static str, T)],
) -> impl FnOnce(&Node) -> Result<T, Refusal> {
    move |node| {
        let all = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
        parsed(node, noun, &all, |text| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value))
    }
}

/// An address to listen on. Names are not resolved: what they mean changes.
pub(super) fn socket_address(node: &Node) -> Result<SocketAddr, Refusal> {
    parsed(node, "an address", "IP:PORT such as \"127.0.0.1:4140\"", |text| text.parse().ok())
}

/// The address of an endpoint: a host or an IP address (IPv6 in brackets), and a port.
pub(super) fn endpoint_address(node: &Node) -> Result<String, Refusal> {
    parsed(node, "an endpoint's address", "HOST:PORT such as \"10.0.0.5:8080\"", |text| {
        let (host, port) = text.rsplit_once(':')?;
        let known_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
            None => is_name(&host.to_ascii_lowercase()),
        };
        let known_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        (known_host && known_port).then(|| text.to_owned())
    })
}

/// A network such as `10.0.0.0/8`, or a single address. Bits beyond the prefix are refused, since the network may be
/// another one than was meant; so are IPv4 addresses inside IPv6 ones, since clients and hosts have them taken out.
pub(super) fn network(node: &Node) -> Result<Network, Refusal> {
    let network = parsed(node, "a network", "ADDRESS/BITS such as \"10.0.0.0/8\", or an address", |text| {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().ok()?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(widest), |prefix| {
            let known = prefix.bytes().all(|b| b.is_ascii_digit());
            prefix.parse().ok().filter(|prefix| known && *prefix <= widest)
        })?;
        Some(Network { address, prefix })
    })?;
    let Network { address, prefix } = network;
    let instead = |found: &str, address: IpAddr, prefix: u8| Refusal {
        found: format!("{} {found}", shown(node)),
        remedy: format!("expected \"{address}/{prefix}\""),
    };
    let mapped = Network { address: IpAddr::V6(Ipv6Addr::from_bits(0xffff << 32)), prefix: 96 };
    if mapped.covers(&network) {
        let bits = prefix.saturating_sub(mapped.prefix);
        return Err(instead("is an IPv4 network in IPv6 form", first(address.to_canonical(), bits), bits));
    }
    if first(address, prefix) != address {
        return Err(instead(&format!("has bits set after the first {prefix}"), first(address, prefix), prefix));
    }
    Ok(network)
}

/// The first address of the network that has this one: the bits after the prefix are cleared.
fn first(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shr(prefix).map_or(u32::MAX, |rest| !rest);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shr(prefix).map_or(u128::MAX, |rest| !rest);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// A port, or several as `"8000-8999"`.
pub(super) fn ports(node: &Node) -> Result<RangeInclusive<u16>, Refusal> {
    numbers(node, "a port", 1..=u16::MAX, "8000-8999")
}

/// A number, or several as `"FROM-TO"`, within `range`.
fn numbers(node: &Node, noun: &str, range: RangeInclusive<u16>, example: &str) -> Result<RangeInclusive<u16>, Refusal> {
    let (least, most) = (range.start().to_string(), range.end().to_string());
    let number = |number: i64| u16::try_from(number).ok().filter(|number| range.contains(number));
    if let Value::Integer(written) = node.value {
        return number(written).map(|number| number..=number).ok_or_else(|| out_of_range(node, &least, &most));
    }
    let expected = format!("{least} to {most}, or a text such as {example:?}");
    let (from, to) = parsed(node, noun, &expected, |text| {
        let (from, to) = text.split_once('-')?;
        let bound = |text: &str| {
            let known = text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| known).and_then(number)
        };
        Some((bound(from)?, bound(to)?))
    })?;
    if from > to {
        let found = format!("{} ends before it begins", shown(node));
        return Err(Refusal { found, remedy: format!("expected \"{to}-{from}\"") });
    }
    Ok(from..=to)
}

/// A status of a final HTTP response, or several as `"200-299"`.
pub(super) fn status(node: &Node) -> Result<RangeInclusive<u16>, Refusal> {
    numbers(node, "a status", 200..=599, "200-299")
}

/// The path of a request, with its query if it has one: what can stand in a request's first line as it is.
pub(super) fn http_path(node: &Node) -> Result<PathAndQuery, Refusal> {
    parsed(node, "the path of a request", "a path such as \"/health\"", |text| {
        let known = text.starts_with('/') && !text.contains('#') && text.bytes().all(|b| b.is_ascii_graphic());
        text.parse().ok().filter(|_| known)
    })
}

/// What a request names as its host.
pub(super) fn authority(node: &Node) -> Result<Authority, Refusal> {
    parsed(node, "a host", "a host, with a port or without, such as \"users.internal\"", |text| {
        text.parse().ok().filter(|_| !text.contains('@'))
    })
}

/// The name of a gRPC service, such as `users.v1.Users`; empty for the server as a whole.
pub(super) fn grpc_service(node: &Node) -> Result<String, Refusal> {
    parsed(node, "the name of a gRPC service", "a text of at most 255 bytes; \"\" means the whole server", |text| {
        (text.len() <= 255).then(|| text.to_owned())
    })
}

/// A name that a server's certificate is for: a DNS name or an IP address (RFC 6066, 3, and RFC 9525).
pub(super) fn server_name(node: &Node) -> Result<String, Refusal> {
    parsed(node, "the name of a server", "a DNS name or an IP address, such as \"users.internal\"", |text| {
        rustls::pki_types::ServerName::try_from(text).is_ok().then(|| text.to_owned())
    })
}

/// The URL of an etcd member, without a slash at its end.
pub(super) fn member(node: &Node) -> Result<String, Refusal> {
    let expected = "http://HOST:PORT or https://HOST:PORT";
    if text(node).is_some_and(|text| text.contains('@')) {
        let remedy = format!("expected {expected}, with user and password as keys of their own");
        return Err(Refusal { found: "the URL holds a user".to_owned(), remedy });
    }
    parsed(node, "the URL of an etcd member", expected, |text| {
        let url = text.strip_suffix('/').unwrap_or(text);
        let uri: http::Uri = url.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        let known = matches!(scheme, "http" | "https") && authority.port_u16().is_some_and(|port| port > 0);
        (known && url == format!("{scheme}://{authority}")).then(|| url.to_owned())
    })
}

/// A path; a relative one starts from `base`.
pub(super) fn path(base: &Path) -> impl FnOnce(&Node) -> Result<PathBuf, Refusal> {
    move |node| {
        parsed(node, "a path", "a path; a relative one starts from the file's folder", |text| {
            let known = !text.is_empty() && !text.contains('\0');
            known.then(|| base.join(text))
        })
    }
}

/// The name of a host, without a port; in lower case.
pub(super) fn host_name(node: &Node) -> Result<String, Refusal> {
    parsed(node, "the name of a host", "letters, digits, \"-\", \"_\" and \".\", without a port", |text| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let known = !text.starts_with('.') && !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed);
        known.then(|| text.trim_end_matches('.').to_ascii_lowercase())
    })
}

/// Any text but the empty one.
pub(super) fn nonempty(node: &Node) -> Result<String, Refusal> {
    parsed(node, "a text", "a text that is not empty", |text| (!text.is_empty()).then(|| text.to_owned()))
}

/// A text that no problem may show.
pub(super) fn secret(node: &Node) -> Result<String, Refusal> {
    text(node).filter(|text| !text.is_empty()).map(str::to_owned).ok_or_else(|| Refusal {
        found: "the value (not shown) is not a text, or is empty".to_owned(),
        remedy: "expected a text in quotes".to_owned(),
    })
}

/// The name of a service; see [`is_service_name`].
pub(super) fn service_name(node: &Node) -> Result<Arc<str>, Refusal> {
    if text(node).is_some_and(|text| is_ipv4_spelling(text) || is_localhost(text)) {
        let found = format!("{} is an address or this machine, which no service can take over", shown(node));
        return Err(Refusal { found, remedy: format!("expected {SERVICE_NAME}") });
    }
    parsed(node, "a service name", SERVICE_NAME, |text| is_service_name(text).then(|| Arc::from(text)))
}

/// What a service name looks like, for a problem.
pub(super) const SERVICE_NAME: &str =
    "lower-case letters, digits, \"-\" and \"_\" in parts separated by dots, other than \"default\"";

/// Whether this can name a service: what may stand in a request's host, in lower case. Parts of 1 to 63 letters, digits,
/// `-` and `_`, separated by dots, at most 253 in all. `default` is taken: `[service.default]` holds for all others. An
/// IP address in any spelling, and `localhost` with all below it, is none.
pub fn is_service_name(name: &str) -> bool {
    name != "default" && is_name(name) && !is_ipv4_spelling(name) && !is_localhost(name)
}

fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    name.len() <= 253 && name.split('.').all(|part| (1..=63).contains(&part.len()) && part.bytes().all(known))
}

/// Services that take proxy requests; see [`NamePattern`].
pub(super) fn name_pattern(node: &Node) -> Result<NamePattern, Refusal> {
    parsed(
        node,
        "a pattern of service names",
        "a name in lower case, with \"*\" for any text, such as \"*.internal\"",
        NamePattern::new,
    )
}

/// The suffix of service hosts; empty for none.
pub(super) fn suffix(node: &Node) -> Result<String, Refusal> {
    let expected = "lower-case parts separated by dots, without a leading dot, such as \"mesh\", or \"\" for none";
    parsed(node, "a suffix", expected, |text| (text.is_empty() || is_name(text)).then(|| text.to_owned()))
}

/// A pseudonym for `Via` (RFC 9110, 7.6.3): a token (5.6.2).
pub(super) fn via(node: &Node) -> Result<String, Refusal> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    parsed(node, "a name for Via", "letters, digits and \"-\", such as \"edge-1\"", |text| {
        ((1..=253).contains(&text.len()) && text.bytes().all(known)).then(|| text.to_owned())
    })
}

/// The name of a header that may be an application's own: none that says where a message goes or where it ends, or that
/// the proxy writes itself.
pub(super) fn header_name(node: &Node) -> Result<HeaderName, Refusal> {
    const TAKEN: &[&str] = &[
        "connection",
        "content-length",
        "cookie",
        "expect",
        "forwarded",
        "grpc-timeout",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    ];
    let expected = "the name of a header of your own, such as \"x-request-timeout-ms\"";
    parsed(node, "a header for this", expected, |text| {
        HeaderName::try_from(text).ok().filter(|name| !TAKEN.contains(&name.as_str()))
    })
}

/// The name of a plugin: its file's name without `.wasm`.
pub(super) fn plugin(node: &Node) -> Result<Arc<str>, Refusal> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    parsed(node, "the name of a plugin", "the name of its file without .wasm, such as \"round-robin\"", |text| {
        let named = !text.is_empty() && !text.starts_with('.') && text.bytes().all(known);
        named.then(|| Arc::from(text))
    })
}
