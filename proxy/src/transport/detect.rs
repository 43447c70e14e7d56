//! Which protocol a connection speaks, told by its first bytes.

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

/// An HTTP/2 connection begins with this method, and no other request does (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI ";

/// A method longer than this is none that anybody uses.
const LONGEST_METHOD: usize = 24;

/// What these first bytes say; none while they could be the beginning of several.
pub fn spoken(start: &[u8]) -> Option<Spoken> {
    match start {
        [] => None,
        // A handshake record (RFC 8446, 5.1) of version 3.x.
        [22, 3, ..] => Some(Spoken::Tls),
        [22] => None,
        [5, ..] => Some(Spoken::Socks5),
        _ if start.starts_with(PREFACE) => Some(Spoken::Http2),
        _ if PREFACE.starts_with(start) => None,
        _ => {
            let method = start.iter().take_while(|byte| is_token(**byte)).count();
            match start.get(method) {
                Some(b' ') if method > 0 => Some(Spoken::Http1),
                None if method <= LONGEST_METHOD => None,
                _ => Some(Spoken::Other),
            }
        }
    }
}

/// Whether a byte may stand in a method (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        for (start, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Spoken::Http1)),
            (b"PRI * HTTP/2.0", Some(Spoken::Http2)),
            (b"PRIVATE / HTTP/1.1", Some(Spoken::Http1)),
            (b"\x16\x03\x01\x02", Some(Spoken::Tls)),
            (b"\x05\x01\x00", Some(Spoken::Socks5)),
            (b"\x16", None),
            (b"PR", None),
            (b"GE", None),
            (b"", None),
            (b" GET", Some(Spoken::Other)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Other)),
            (b"\x00\x00\x00\x08", Some(Spoken::Other)),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Some(Spoken::Other)),
        ] {
            assert_eq!(spoken(start), expected, "{start:?}");
        }
    }
}
