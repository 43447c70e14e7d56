//! The PROXY protocol: who a connection is from, said at its beginning by a proxy that it came through.
//!
//! Both versions of HAProxy's `proxy-protocol.txt`, whose section numbers stand below: version 1 is a line of text,
//! version 2 is binary. What comes from a network that is trusted to send it is trusted; whether it may be empty, cut
//! short or too long is decided here, and nothing of it is kept but the two addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Stream;
use crate::config::checked::ProxyProtocol;

/// Between whom a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    /// What the source connected to.
    pub destination: SocketAddr,
}

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes that belong to it.
    pub length: usize,
    /// None where the sender speaks for itself, or knows of no TCP connection: the socket's own addresses hold.
    pub addresses: Option<Addresses>,
}

/// What is no header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// Version 1 begins so (2.1).
const TEXT: &[u8] = b"PROXY ";

/// Version 1 is no longer than this, its CRLF counted (2.1).
const LONGEST_TEXT: usize = 107;

/// Version 2 begins so (2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 up to the addresses (2.2).
const FIXED: usize = 16;

/// The most that may follow them. The format allows 64 KiB; what senders add to the addresses takes some hundred bytes.
const LONGEST_REST: usize = 4096;

/// What these first bytes say; none while more are needed.
///
/// # Errors
///
/// When they are not, and will not be, a header.
pub fn decode(start: &[u8]) -> Result<Option<Header>, Malformed> {
    if begins(start, TEXT) {
        decode_text(start)
    } else if begins(start, SIGNATURE) {
        decode_binary(start)
    } else {
        Err(Malformed("no PROXY protocol header, where one is required"))
    }
}

/// Whether bytes begin so, as far as they go.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(a, b)| a == b)
}

fn decode_text(start: &[u8]) -> Result<Option<Header>, Malformed> {
    let line = start.get(..LONGEST_TEXT).unwrap_or(start);
    let Some(end) = line.windows(2).position(|bytes| bytes == b"\r\n") else {
        let complete = start.len() >= LONGEST_TEXT;
        return if complete { Err(Malformed("a PROXY line without an end")) } else { Ok(None) };
    };
    let malformed = Malformed("a PROXY line that cannot be read");
    let text = line.get(TEXT.len()..end).and_then(|text| str::from_utf8(text).ok()).ok_or(malformed)?;
    let addresses = match text.split_once(' ').map_or((text, ""), |(protocol, rest)| (protocol, rest)) {
        // Whatever follows is to be ignored.
        ("UNKNOWN", _) => None,
        ("TCP4", rest) => Some(text_addresses::<Ipv4Addr>(rest).ok_or(malformed)?),
        ("TCP6", rest) => Some(text_addresses::<Ipv6Addr>(rest).ok_or(malformed)?),
        _ => return Err(malformed),
    };
    Ok(Some(Header { length: end + 2, addresses }))
}

fn text_addresses<Ip: std::str::FromStr + Into<IpAddr>>(text: &str) -> Option<Addresses> {
    let mut parts = text.split(' ');
    let mut address = || Some(parts.next()?.parse::<Ip>().ok()?.into());
    let (source, destination) = (address()?, address()?);
    let mut port = || parts.next().filter(|port| port.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
    let (source_port, destination_port) = (port()?, port()?);
    let complete = parts.next().is_none();
    complete.then(|| between(source, source_port, destination, destination_port))
}

/// An IPv4 address in IPv6 is the IPv4 address.
fn between(source: IpAddr, source_port: u16, destination: IpAddr, destination_port: u16) -> Addresses {
    Addresses {
        source: SocketAddr::new(source.to_canonical(), source_port),
        destination: SocketAddr::new(destination.to_canonical(), destination_port),
    }
}

fn decode_binary(start: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some((fixed, rest)) = start.split_first_chunk::<FIXED>() else { return Ok(None) };
    let [.., version_and_command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_and_command >> 4 != 2 {
        return Err(Malformed("a PROXY header of an unknown version"));
    }
    if length > LONGEST_REST {
        return Err(Malformed("a PROXY header that is too long"));
    }
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    let short = Malformed("a PROXY header without room for its addresses");
    let addresses = match (version_and_command & 0xf, family) {
        // A check of the sender's own.
        (0, _) => None,
        (1, 0x11) => Some(binary_addresses::<4, 12>(rest).ok_or(short)?),
        (1, 0x21) => Some(binary_addresses::<16, 36>(rest).ok_or(short)?),
        // UNSPEC, UNIX sockets, datagrams: no addresses of a TCP connection.
        (1, _) => None,
        _ => return Err(Malformed("a PROXY header with an unknown command")),
    };
    Ok(Some(Header { length: FIXED + length, addresses }))
}

/// Two addresses of `N` bytes and two ports, `ALL` bytes together. Whatever follows is to be skipped.
fn binary_addresses<const N: usize, const ALL: usize>(bytes: &[u8]) -> Option<Addresses>
where
    [u8; N]: Into<IpAddr>,
{
    let bytes = bytes.first_chunk::<ALL>()?;
    let (source, bytes) = bytes.split_first_chunk::<N>()?;
    let (destination, bytes) = bytes.split_first_chunk::<N>()?;
    let (source_port, destination_port) = bytes.split_first_chunk::<2>()?;
    let port = |bytes: &[u8; 2]| u16::from_be_bytes(*bytes);
    let destination_port = destination_port.first_chunk().map(port)?;
    Some(between((*source).into(), port(source_port), (*destination).into(), destination_port))
}

/// The header that says so. Addresses of two families are both written as IPv6.
pub fn encode(version: ProxyProtocol, addresses: &Addresses) -> Vec<u8> {
    let Addresses { source, destination } = addresses;
    let ips = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ips::V4([source, destination]),
        (source, destination) => Ips::V6([source, destination].map(to_v6)),
    };
    let ports = [source.port(), destination.port()];
    match version {
        ProxyProtocol::V1 => encode_text(&ips, ports).into_bytes(),
        ProxyProtocol::V2 => encode_binary(&ips, ports),
    }
}

/// The header of a connection that is the sender's own, such as a check of health: it says nothing of addresses.
pub fn encode_local(version: ProxyProtocol) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        // The command LOCAL, no protocol, nothing more.
        ProxyProtocol::V2 => [SIGNATURE, &[0x20, 0, 0, 0]].concat(),
    }
}

/// Source and destination.
enum Ips {
    V4([Ipv4Addr; 2]),
    V6([Ipv6Addr; 2]),
}

fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn encode_text(ips: &Ips, [source_port, destination_port]: [u16; 2]) -> String {
    let ips = match ips {
        Ips::V4([source, destination]) => format!("TCP4 {source} {destination}"),
        Ips::V6([source, destination]) => format!("TCP6 {source} {destination}"),
    };
    format!("PROXY {ips} {source_port} {destination_port}\r\n")
}

fn encode_binary(ips: &Ips, ports: [u16; 2]) -> Vec<u8> {
    let (family, length) = match ips {
        Ips::V4(_) => (0x11, 12),
        Ips::V6(_) => (0x21, 36),
    };
    let mut bytes = [SIGNATURE, &[0x21, family, 0, length]].concat();
    match ips {
        Ips::V4(ips) => ips.iter().for_each(|ip| bytes.extend(ip.octets())),
        Ips::V6(ips) => ips.iter().for_each(|ip| bytes.extend(ip.octets())),
    }
    ports.iter().for_each(|port| bytes.extend(port.to_be_bytes()));
    bytes
}

/// Takes the header that a stream begins with; none where the socket's own addresses hold. Holds no buffer until the
/// first byte is there.
///
/// # Errors
///
/// When there is no header, or the stream ends or breaks before its end.
pub async fn accept(stream: &mut Stream) -> io::Result<Option<Addresses>> {
    std::future::poll_fn(|cx| stream.poll_readable(cx)).await;
    while stream.read_ahead().await? {
        let header = decode(stream.ahead()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let Some(Header { length, addresses }) = header {
            let mut rest = stream.take_ahead();
            bytes::Buf::advance(&mut rest, length);
            stream.put_back(rest);
            return Ok(addresses);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// A header of version 2 with this command, family and rest.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[test]
    fn the_lines_of_version_1_are_read() {
        for (line, expected) in [
            (
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
                Some(addresses("192.168.0.1:56324", "192.168.0.11:443")),
            ),
            ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", Some(addresses("[2001:db8::1]:1", "[::1]:65535"))),
            ("PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n", Some(addresses("10.0.0.1:1", "[::1]:2"))),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        ] {
            let header = Header { length: line.len(), addresses: expected };
            assert_eq!(decode(line.as_bytes()), Ok(Some(header)), "{line:?}");
            assert_eq!(decode([line, "GET"].concat().as_bytes()), Ok(Some(header)), "{line:?}");
        }
    }

    #[test]
    fn version_2_is_read_and_what_it_adds_is_skipped() {
        let v4 = [10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 0x01, 0xbb];
        let from = addresses("10.0.0.1:4660", "10.0.0.2:443");
        let with_more = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (bytes, expected) in [
            (binary(0x21, 0x11, &v4), Some(from)),
            (binary(0x21, 0x11, &with_more), Some(from)),
            (binary(0x20, 0x11, &v4), None),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x21, 0x00, &[1, 2, 3]), None),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x21, 0x12, &v4), None),
            (binary(0x21, 0x00, &[7; LONGEST_REST]), None),
        ] {
            assert_eq!(decode(&bytes), Ok(Some(Header { length: bytes.len(), addresses: expected })), "{bytes:x?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_shows() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_TEXT - 15));
        assert_eq!(long.len(), LONGEST_TEXT + 1);
        for bytes in [
            b"G".to_vec(),
            b"PROXY\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1  10.0.0.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.01 10.0.0.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 +1 2\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 65536\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP6 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 \xff 10.0.0.2 1 2\r\n".to_vec(),
            b"PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(),
            b"PROXY \r\n".to_vec(),
            long.into_bytes(),
            binary(0x11, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x21, 0x11, &[0; LONGEST_REST + 1])[..FIXED].to_vec(),
        ] {
            assert!(decode(&bytes).is_err(), "{:?}", bytes.escape_ascii().to_string());
        }
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        let v4 = any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into());
        prop_oneof![v4, any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into())]
    }

    fn any_addresses() -> impl Strategy<Value = Addresses> {
        (ip(), any::<u16>(), ip(), any::<u16>()).prop_map(|(a, b, c, d)| between(a, b, c, d))
    }

    fn version() -> impl Strategy<Value = ProxyProtocol> {
        prop_oneof![Just(ProxyProtocol::V1), Just(ProxyProtocol::V2)]
    }

    #[test]
    fn what_the_sender_says_for_itself_is_read_as_such() {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let bytes = encode_local(version);
            assert_eq!(decode(&bytes), Ok(Some(Header { length: bytes.len(), addresses: None })), "{version:?}");
        }
    }

    proptest! {
        /// What is written is read again, and nothing of it before its end.
        #[test]
        fn a_header_is_read_as_it_was_written(
            version in version(),
            addresses in any_addresses(),
            after in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = encode(version, &addresses);
            prop_assert!(version == ProxyProtocol::V2 || bytes.len() <= LONGEST_TEXT);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), Ok(None));
            }
            let header = Header { length: bytes.len(), addresses: Some(addresses) };
            prop_assert_eq!(decode(&[bytes, after].concat()), Ok(Some(header)));
        }

        /// Anything is taken without harm, and once a verdict is given more bytes change nothing.
        #[test]
        fn a_verdict_is_final(
            start in prop_oneof![Just(""), Just("PROXY TCP4 "), Just("PROXY UNKNOWN"), Just("\r\n\r\n\0\r\nQUIT\n!\x11\0")],
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start.as_bytes(), &bytes].concat();
            let verdict = decode(&bytes);
            let first = (0..=bytes.len()).find_map(|cut| match decode(&bytes[..cut]) {
                Ok(None) => None,
                decided => Some(decided),
            });
            prop_assert_eq!(first.unwrap_or(Ok(None)), verdict);
            if let Ok(Some(header)) = verdict {
                prop_assert!(header.length <= bytes.len());
            }
        }
    }
}
