//! How long a caller waits, as it says itself and as endpoints are told.
//!
//! A deadline travels as the time that is left, since clocks differ: each proxy takes off what it has used, and an
//! endpoint can stop when nobody waits any longer. There are two ways to say it: gRPC's `grpc-timeout`, and a header
//! that the operator names, whose value is a number of milliseconds. What is written is rounded down, so that nobody is
//! told more than is left.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::grpc;

/// When a request must have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// When the request arrived.
    pub since: Instant,
    /// How long it may take.
    pub limit: Duration,
}

impl Due {
    /// What is left; none when nothing is, or less than can be said.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.limit.checked_sub(now.saturating_duration_since(self.since))?;
        (left >= LEAST).then_some(left)
    }
}

/// The least that can be said in both ways.
const LEAST: Duration = Duration::from_millis(1);

/// Why a request does not say how long its caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a deadline header that is not one number of milliseconds")]
pub struct BadDeadline;

/// How long the caller waits by this header, in milliseconds; none where it is not there.
///
/// # Errors
///
/// When it is no number of up to 64 bits in decimal digits, or is there twice: a caller that says when to stop must not
/// be served without end.
pub fn read(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Duration>, BadDeadline> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(only), None) => decode_millis(only.as_bytes()).map(Some).ok_or(BadDeadline),
        _ => Err(BadDeadline),
    }
}

/// Says what is left: as a gRPC call does, where it is one, and in the header `name`, where one is configured.
pub fn write(headers: &mut HeaderMap, left: Duration, is_grpc: bool, name: Option<&HeaderName>) {
    if is_grpc {
        grpc::write_timeout(headers, left);
    }
    if let Some(name) = name {
        headers.insert(name, HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
    }
}

fn decode_millis(value: &[u8]) -> Option<Duration> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-request-timeout-ms");

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values.iter().map(|value| (NAME, HeaderValue::from_bytes(value).unwrap())).collect()
    }

    #[test]
    fn milliseconds_are_read() {
        assert_eq!(read(&HeaderMap::new(), &NAME), Ok(None));
        assert_eq!(read(&headers(&[b"1500"]), &NAME), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(read(&headers(&[b"0"]), &NAME), Ok(Some(Duration::ZERO)));
        assert_eq!(read(&headers(&[b"18446744073709551615"]), &NAME), Ok(Some(Duration::from_millis(u64::MAX))));
        for bad in
            [&b""[..], b"1s", b"-1", b"+1", b"1.5", b" 1", b"1 ", b"0x1", b"1, 2", b"\xff", b"18446744073709551616"]
        {
            assert_eq!(read(&headers(&[bad]), &NAME), Err(BadDeadline), "{bad:?}");
        }
        assert_eq!(read(&headers(&[b"1", b"1"]), &NAME), Err(BadDeadline));
    }

    #[test]
    fn what_is_left_shrinks_and_ends() {
        let since = Instant::now();
        let due = Due { since, limit: Duration::from_millis(100) };
        let after = |millis| due.left(since + Duration::from_millis(millis));
        assert_eq!(after(0), Some(Duration::from_millis(100)));
        assert_eq!(after(60), Some(Duration::from_millis(40)));
        assert_eq!((after(99), after(100), after(5000)), (Some(Duration::from_millis(1)), None, None));
        assert_eq!(due.left(since + Duration::from_micros(99_500)), None);
    }

    #[test]
    fn it_is_said_as_the_caller_said_it() {
        let mut map = headers(&[b"5000", b"6000"]);
        write(&mut map, Duration::from_micros(1_999_999), false, Some(&NAME));
        assert_eq!((map.len(), map[&NAME].as_bytes()), (1, &b"1999"[..]));
        let mut map = HeaderMap::new();
        write(&mut map, Duration::from_millis(1500), true, None);
        assert_eq!((map.len(), map["grpc-timeout"].as_bytes()), (1, &b"1500000u"[..]));
    }

    proptest! {
        /// Nobody is told more than is left, nor much less.
        #[test]
        fn nobody_is_told_more_than_is_left(nanos in 1_000_000_u64..) {
            let left = Duration::from_nanos(nanos);
            let mut map = HeaderMap::new();
            write(&mut map, left, true, Some(&NAME));
            let told = read(&map, &NAME).unwrap().unwrap();
            prop_assert!(told <= left && left - told < Duration::from_millis(1));
            let told = grpc::timeout(&map).unwrap().unwrap();
            // Eight digits are at worst seven that count.
            prop_assert!(told <= left && (left - told).as_secs_f64() <= left.as_secs_f64() * 1e-5);
        }
    }
}
