//! What a proxy has to know of gRPC over HTTP/2: who speaks it, how long a call may take, and how an error is told.
//!
//! A gRPC caller looks at `grpc-status` and takes an HTTP error for a sign that nobody on the way understood it. The
//! numbers and the encodings are those of gRPC's "PROTOCOL-HTTP2" and "statuscodes" documents.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

/// The content type of every answer to a call.
pub const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Cancelled = 1,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Code {
    /// What a stream that was reset with this HTTP/2 error code says of its call.
    pub fn of_reset(code: u32) -> Self {
        match code {
            // REFUSED_STREAM: nothing was done, so that it can be tried again.
            0x7 => Self::Unavailable,
            // CANCEL
            0x8 => Self::Cancelled,
            // ENHANCE_YOUR_CALM
            0xb => Self::ResourceExhausted,
            // INADEQUATE_SECURITY
            0xc => Self::PermissionDenied,
            _ => Self::Internal,
        }
    }

    /// The status with its reason, as headers of an answer without a body or as trailers.
    pub fn write(self, message: &str, headers: &mut HeaderMap) {
        headers.insert(STATUS, HeaderValue::from(self as u16));
        if let Ok(message) = HeaderValue::try_from(percent_encoded(message)) {
            headers.insert(MESSAGE, message);
        }
    }
}

/// Whether these headers begin a call: `application/grpc`, with or without the name of a message format, and nothing
/// longer such as gRPC-Web, which tells errors in another way.
pub fn is_call(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Whether the content is of gRPC or one of its kin: any `application/grpc*`, gRPC-Web included.
pub fn is_of_grpc(headers: &HeaderMap) -> bool {
    const START: &[u8] = b"application/grpc";
    let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    value.and_then(|value| value.get(..START.len())).is_some_and(|start| start.eq_ignore_ascii_case(START))
}

/// The status that these headers, or trailers, say; none where they say none that can be read.
pub fn status(headers: &HeaderMap) -> Option<u32> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// A `grpc-timeout` that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a grpc-timeout that is not at most eight digits and one of H, M, S, m, u, n")]
pub struct BadTimeout;

/// How long the caller waits for the end of the call; none for as long as it takes.
///
/// # Errors
///
/// When it cannot be read, or is there twice: a caller that says when to stop must not be served without end.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, BadTimeout> {
    let mut values = headers.get_all(TIMEOUT).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(only), None) => decode_timeout(only.as_bytes()).map(Some).ok_or(BadTimeout),
        _ => Err(BadTimeout),
    }
}

fn decode_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(amount.checked_mul(60 * 60)?)),
        b'M' => Some(Duration::from_secs(amount.checked_mul(60)?)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Says how long the caller still waits, in place of what was said before: at most eight digits, in the finest unit in
/// which they suffice, and never more than is left. At least a microsecond.
pub fn write_timeout(headers: &mut HeaderMap, left: Duration) {
    if let Ok(value) = HeaderValue::try_from(encode_timeout(left)) {
        headers.insert(TIMEOUT, value);
    }
}

fn encode_timeout(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let units = [(1, 'u'), (1_000, 'm'), (1_000_000, 'S'), (60_000_000, 'M'), (3_600_000_000, 'H')];
    let amounts = units.map(|(micros, unit)| (left.as_micros() / micros, unit));
    let (amount, unit) = amounts.into_iter().find(|(amount, _)| *amount <= MOST).unwrap_or((MOST, 'H'));
    format!("{amount}{unit}")
}

/// Printable ASCII but `%` as it is, and every other byte as `%` with two digits.
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_call_is_told_by_its_content_type() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc; charset=utf-8"] {
            assert!(is_call(&headers(&[("content-type", grpc)])), "{grpc}");
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "text/plain"] {
            assert!(!is_call(&headers(&[("content-type", other)])), "{other}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let read = |value| timeout(&headers(&[("grpc-timeout", value)]));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(read("2H"), Ok(Some(Duration::from_secs(7200))));
        assert_eq!(read("3M"), Ok(Some(Duration::from_secs(180))));
        assert_eq!(read("99999999S"), Ok(Some(Duration::from_secs(99_999_999))));
        assert_eq!(read("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(read("7u"), Ok(Some(Duration::from_micros(7))));
        assert_eq!(read("0n"), Ok(Some(Duration::ZERO)));
        for bad in ["", "S", "1", "123456789S", "1s", "-1S", "+1S", " 1S", "1.5S", "1S ", "1SS", "0x1S"] {
            assert_eq!(read(bad), Err(BadTimeout), "{bad:?}");
        }
        assert_eq!(timeout(&headers(&[("grpc-timeout", "1S"), ("grpc-timeout", "1S")])), Err(BadTimeout));
    }

    #[test]
    fn timeouts_are_written_in_a_unit_that_fits() {
        for (left, written) in [
            (Duration::from_micros(1), "1u"),
            (Duration::from_nanos(1999), "1u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_micros(100_000_000), "100000m"),
            (Duration::from_millis(99_999_999), "99999999m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_059), "1666667M"),
            (Duration::from_secs(60 * 99_999_999 + 3600), "1666667H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(encode_timeout(left), written);
        }
    }

    #[test]
    fn a_reason_is_told_in_what_a_header_may_hold() {
        let mut map = HeaderMap::new();
        Code::Unavailable.write("100 % of \"users\"\r\n\u{e9}", &mut map);
        assert_eq!(map["grpc-status"], "14");
        assert_eq!(map["grpc-message"], "100 %25 of \"users\"%0D%0A%C3%A9");
    }

    proptest! {
        /// Any message becomes a header from which it can be read again.
        #[test]
        fn a_message_can_be_read_again(message in "\\PC*|[\\x00-\\x7f]*") {
            let encoded = percent_encoded(&message);
            prop_assert!(HeaderValue::try_from(&encoded).is_ok());
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
            prop_assert_eq!(decoded, message);
        }

        /// What is written can be read again, and is no more than it was.
        #[test]
        fn a_timeout_never_grows(seconds in 0_u64..1 << 48, shift in 0_u32..48, nanos in 1000_u32..1_000_000_000) {
            let left = Duration::new(seconds >> shift, nanos);
            let read = decode_timeout(encode_timeout(left).as_bytes()).unwrap();
            prop_assert!(read <= left && encode_timeout(left).len() <= 9, "{left:?} became {read:?}");
        }

        /// Nothing that a client can send makes the decoder fail otherwise than by saying no.
        #[test]
        fn any_timeout_is_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..12)) {
            let read = decode_timeout(&value);
            prop_assert!(read.is_none() || value.len() <= 9);
        }
    }
}
