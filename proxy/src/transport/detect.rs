//! Which protocol a connection speaks, told by its first bytes.
//!
//! Two questions are asked of them. Where clients speak HTTP or SOCKS5 it is only which of these, and what is none of
//! them is HTTP that is wrong. Where clients may speak anything, bytes are taken for a protocol once they can hardly be
//! another's: a line of text with a space in it is no HTTP yet, as the protocols of memcached, FTP or IRC show.

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    /// With prior knowledge (RFC 9113, 3.3).
    Http2,
    Tls,
    Socks5,
    /// None of these.
    Other,
}

/// An HTTP/2 connection begins with this line, and no other request does (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Methods longer than this are none that anybody uses.
const LONGEST_METHOD: usize = 24;

/// A line longer than this is no request's where anything else can be spoken.
const LONGEST_LINE: usize = 16 * 1024;

/// What these first bytes say where clients speak HTTP, SOCKS5 or TLS; none while they could be the beginning of two.
pub fn spoken_of_known(start: &[u8]) -> Option<Spoken> {
    match start {
        [] => None,
        [22, ..] => Some(Spoken::Tls),
        [5, ..] => Some(Spoken::Socks5),
        _ if start.starts_with(PREFACE) => Some(Spoken::Http2),
        _ if PREFACE.starts_with(start) => None,
        _ => Some(Spoken::Http1),
    }
}

/// What these first bytes say where clients may speak anything; none while they could be the beginning of several.
pub fn spoken_of_any(start: &[u8]) -> Option<Spoken> {
    match start {
        [] => None,
        // A record of version 3.x with a client's first message (RFC 8446, 4 and 5.1).
        [22, 3, _, _, _, kind, ..] => Some(if *kind == 1 { Spoken::Tls } else { Spoken::Other }),
        [22, 3, ..] | [22] => None,
        // A greeting offers a method at least (RFC 1928, 3).
        [5, methods, ..] => Some(if *methods > 0 { Spoken::Socks5 } else { Spoken::Other }),
        [5] => None,
        _ if start.starts_with(PREFACE) => Some(Spoken::Http2),
        _ if PREFACE.starts_with(start) => None,
        _ => spoken_of_text(start),
    }
}

/// Whether text is a request line of HTTP/1 (RFC 9112, 3). The methods that anybody uses are in capitals.
fn spoken_of_text(start: &[u8]) -> Option<Spoken> {
    let method = start.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if !(1..=LONGEST_METHOD).contains(&method) && !start.is_empty() {
        return Some(Spoken::Other);
    }
    match start.get(method..) {
        None | Some([]) | Some([b' ']) => None,
        Some([b' ', b'/', ..]) => Some(Spoken::Http1),
        Some([b' ', rest @ ..]) => {
            let mut lines = rest.splitn(2, |byte| *byte == b'\n');
            let line = lines.next().unwrap_or_default();
            let is_whole = lines.next().is_some();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.len() > LONGEST_LINE || !line.iter().all(|byte| (b' '..=b'~').contains(byte)) {
                return Some(Spoken::Other);
            }
            let is_http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            is_whole.then_some(if is_http { Spoken::Http1 } else { Spoken::Other })
        }
        Some(_) => Some(Spoken::Other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn among_known_protocols_one_byte_tells_nearly_all() {
        for (start, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Spoken::Http1)),
            (b"G", Some(Spoken::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\n", Some(Spoken::Http2)),
            (b"PRIVATE / HTTP/1.1", Some(Spoken::Http1)),
            (b"PR", None),
            (b"", None),
            (b"\x16", Some(Spoken::Tls)),
            (b"\x05", Some(Spoken::Socks5)),
            // No protocol at all: HTTP/1 has a status for that.
            (b"\x00\x01", Some(Spoken::Http1)),
        ] {
            assert_eq!(spoken_of_known(start), expected, "{start:?}");
        }
    }

    #[test]
    fn among_all_protocols_only_what_is_certain_is_told() {
        for (start, expected) in [
            (&b"GET /"[..], Some(Spoken::Http1)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET http://users/ HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET http://users/ HTTP/1.0\n", Some(Spoken::Http1)),
            (b"CONNECT users:80 HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"CONNECT users:80 HT", None),
            (b"GE", None),
            (b"GET ", None),
            (b"", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Spoken::Http2)),
            (b"PRI * HT", None),
            (b"PRIVATE / HTTP/1.1", Some(Spoken::Http1)),
            (b"\x16\x03\x01\x02\x00\x01", Some(Spoken::Tls)),
            (b"\x16\x03\x01\x02\x00\x02", Some(Spoken::Other)),
            (b"\x16\x03\x01", None),
            (b"\x16", None),
            (b"\x16\x04", Some(Spoken::Other)),
            (b"\x05\x01\x00", Some(Spoken::Socks5)),
            (b"\x05", None),
            (b"\x05\x00", Some(Spoken::Other)),
            (b" GET", Some(Spoken::Other)),
            (b"\r\nGET", Some(Spoken::Other)),
            // Redis, in its own words and in plain ones, memcached, SMTP, IRC, PostgreSQL.
            (b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Other)),
            (b"PING\r\n", Some(Spoken::Other)),
            (b"SET a b\r\n", Some(Spoken::Other)),
            (b"get key\r\n", Some(Spoken::Other)),
            (b"EHLO client\r\n", Some(Spoken::Other)),
            (b"NICK somebody\r\n", Some(Spoken::Other)),
            (b"\x00\x00\x00\x08", Some(Spoken::Other)),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Some(Spoken::Other)),
            (b"GET \xff", Some(Spoken::Other)),
        ] {
            assert_eq!(spoken_of_any(start), expected, "{start:?}");
        }
        let endless = [&b"GET x"[..], &[b'x'; LONGEST_LINE]].concat();
        assert_eq!(spoken_of_any(&endless), Some(Spoken::Other));
    }

    fn beginnings() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            b"GET http://users/a HTTP/1.1\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"\x16\x03\x01\x00\x05\x01\x00".to_vec(),
            b"\x05\x02\x00\x02".to_vec(),
            b"SET key value\r\n".to_vec(),
        ]);
        (known, prop::collection::vec(any::<u8>(), 0..20), any::<prop::sample::Index>()).prop_map(
            |(mut known, noise, at)| {
                known.truncate(at.index(known.len() + 1));
                known.extend(noise);
                known
            },
        )
    }

    proptest! {
        /// What was told once stays told, whatever follows: it does not matter how the bytes arrive.
        #[test]
        fn more_bytes_change_no_verdict(bytes in beginnings()) {
            for tell in [spoken_of_any, spoken_of_known] {
                let mut told = None;
                for end in 0..=bytes.len() {
                    let now = tell(&bytes[..end]);
                    prop_assert!(told.is_none() || now == told, "{told:?}, then {now:?} after {end} bytes");
                    told = now;
                }
            }
        }
    }
}
