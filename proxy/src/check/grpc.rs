//! What an endpoint says of its own health, by gRPC's health protocol.
//!
//! `grpc.health.v1.Health/Check` is one call with one message each way, both of a single field, so that they are written
//! and read here without generated code (the encoding: protobuf.dev/programming-guides/encoding). Only SERVING passes.

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use http::{Request, StatusCode, Uri, Version};

use super::exchange::{self, Answer};
use super::{Failed, Target, USER};
use crate::config::checked::GrpcCheck;
use crate::proto::grpc::GRPC;
use crate::transport::tls::H2;

const METHOD: &str = "/grpc.health.v1.Health/Check";

/// Of what a server says in words, so much is told.
const LONGEST_MESSAGE: usize = 100;

/// Asks.
///
/// # Errors
///
/// When there is no answer, or another one than SERVING.
pub async fn check(target: &Target, check: &GrpcCheck, time: Duration) -> Result<(), Failed> {
    let (stream, _) = target.connect(&[], &[H2]).await?;
    let uri =
        Uri::builder().scheme(target.scheme()).authority(target.host(check.host.as_ref())?).path_and_query(METHOD);
    let request = Request::post(uri.build()?).version(Version::HTTP_2);
    let request = request.header(CONTENT_TYPE, GRPC).header(TE, "trailers").header(USER_AGENT, USER);
    let request = request.header("grpc-timeout", format!("{}m", time.as_millis().clamp(1, 99_999_999))).body(())?;
    judge(&exchange::http2(stream, request, framed(&encode(&check.service))).await?)
}

fn judge(answer: &Answer) -> Result<(), Failed> {
    if answer.status != StatusCode::OK {
        return Err(Failed::Status(answer.status));
    }
    // A call that fails at once has everything in its head.
    let said = |name| answer.trailers.get(name).or_else(|| answer.headers.get(name));
    match said("grpc-status").map(|status| status.as_bytes()) {
        Some(b"0") => {}
        None => return Err(Failed::Malformed("an answer without a gRPC status")),
        Some(status) => {
            let status = String::from_utf8_lossy(status).chars().take(LONGEST_MESSAGE).collect();
            return Err(Failed::Grpc { status, message: message(&answer.trailers).or(message(&answer.headers)) });
        }
    }
    match unframed(&answer.body).and_then(decode) {
        Some(ServingStatus::SERVING) => Ok(()),
        Some(other) => Err(Failed::NotServing(other)),
        None => Err(Failed::Malformed("a message that is no HealthCheckResponse")),
    }
}

/// As it was sent, percent-encoding included.
fn message(headers: &HeaderMap) -> Option<String> {
    let message = headers.get("grpc-message")?.to_str().ok()?;
    Some(message.chars().take(LONGEST_MESSAGE).collect())
}

/// How a server is, in its own words; numbers that the protocol does not know are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServingStatus(u64);

impl ServingStatus {
    const SERVING: Self = Self(1);
}

impl fmt::Display for ServingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("UNKNOWN"),
            1 => f.write_str("SERVING"),
            2 => f.write_str("NOT_SERVING"),
            3 => f.write_str("SERVICE_UNKNOWN"),
            other => write!(f, "status {other}"),
        }
    }
}

impl fmt::Debug for ServingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message as gRPC sends it: uncompressed, behind its length.
fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// The one message that is there, whole and uncompressed.
fn unframed(bytes: &[u8]) -> Option<&[u8]> {
    let (head, message) = bytes.split_first_chunk::<5>()?;
    let [compressed, length @ ..] = *head;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (compressed == 0 && length == message.len()).then_some(message)
}

// A field begins with its number and the way in which its value is written.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// HealthCheckRequest { string service = 1; }
fn encode(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        put_varint(&mut message, 1 << 3 | BYTES);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// HealthCheckResponse { ServingStatus status = 1; }, of which fields that are not known are skipped, and the last
/// counts where there are several.
fn decode(mut message: &[u8]) -> Option<ServingStatus> {
    let mut status = 0;
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, VARINT) => status = take_varint(&mut message)?,
            (1.., VARINT) => {
                take_varint(&mut message)?;
            }
            (1.., FIXED64) => message = message.get(8..)?,
            (1.., BYTES) => {
                let length = take_varint(&mut message)?;
                message = message.get(usize::try_from(length).ok()?..)?;
            }
            (1.., FIXED32) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(ServingStatus(status))
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// A number of at most 64 bits, seven to a byte.
fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        let part = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_messages_are_those_of_the_protocol() {
        assert_eq!(encode(""), b"");
        assert_eq!(encode("users.v1.Users"), b"\x0a\x0eusers.v1.Users");
        assert_eq!(encode(&"s".repeat(200))[..3], [0x0a, 0xc8, 0x01]);
        assert_eq!(&framed(b"\x0a\x01u")[..], b"\0\0\0\0\x03\x0a\x01u");
        let decoded = |message: &[u8]| decode(message).map(|status| status.to_string());
        for (message, expected) in [
            (&b""[..], Some("UNKNOWN")),
            (b"\x08\x01", Some("SERVING")),
            (b"\x08\x02", Some("NOT_SERVING")),
            (b"\x08\x03", Some("SERVICE_UNKNOWN")),
            (b"\x08\xac\x02", Some("status 300")),
            // Unknown fields of each kind, and the same field twice.
            (b"\x12\x02hi\x18\x96\x01\x25abcd\x29abcdefgh\x08\x02\x08\x01", Some("SERVING")),
            (b"\x08", None),
            (b"\x0a\x05hi", None),
            (b"\x0b", None),
            (b"\x00\x01", None),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", None),
            (b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", None),
        ] {
            assert_eq!(decoded(message).as_deref(), expected, "{message:?}");
        }
        for frame in [&b""[..], b"\0\0\0\0\x02\x08", b"\x01\0\0\0\x02\x08\x01", b"\0\0\0\0\x02\x08\x01x"] {
            assert_eq!(unframed(frame), None, "{frame:?}");
        }
    }

    fn answer(
        status: u16,
        headers: &[(&'static str, &'static str)],
        trailers: &[(&'static str, &'static str)],
    ) -> Answer {
        let map = |lines: &[(&'static str, &'static str)]| {
            let lines = lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            lines.collect::<HeaderMap>()
        };
        let body = framed(b"\x08\x01");
        Answer { status: StatusCode::from_u16(status).unwrap(), headers: map(headers), trailers: map(trailers), body }
    }

    #[test]
    fn only_serving_passes() {
        let ok = [("grpc-status", "0")];
        let told = |answer: &Answer| judge(answer).map_err(|failed| failed.to_string());
        assert_eq!(told(&answer(200, &[], &ok)), Ok(()));
        for (answer, expected) in [
            (answer(503, &[], &ok), "it answered 503 Service Unavailable"),
            (answer(200, &[], &[]), "it sent an answer without a gRPC status"),
            (
                answer(200, &[], &[("grpc-status", "12"), ("grpc-message", "no%20such")]),
                "it answered with gRPC status 12: no%20such",
            ),
            (answer(200, &[("grpc-status", "5")], &[]), "it answered with gRPC status 5"),
            (Answer { body: framed(b"\x08\x02"), ..answer(200, &[], &ok) }, "it says that it is NOT_SERVING"),
            (Answer { body: framed(b""), ..answer(200, &[], &ok) }, "it says that it is UNKNOWN"),
            (
                Answer { body: Bytes::new(), ..answer(200, &[], &ok) },
                "it sent a message that is no HealthCheckResponse",
            ),
        ] {
            assert_eq!(told(&answer), Err(expected.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = unframed(&bytes).map(decode);
            let _ = decode(&bytes);
        }

        #[test]
        fn what_is_written_is_read(value: u64, service in ".{0,300}") {
            let mut written = Vec::new();
            put_varint(&mut written, value);
            prop_assert_eq!(take_varint(&mut &written[..]), Some(value));
            let mut message = vec![1 << 3];
            message.extend_from_slice(&written);
            prop_assert_eq!(decode(&message), Some(ServingStatus(value)));
            let request = framed(&encode(&service));
            let mut field = unframed(&request).expect("a whole message");
            if service.is_empty() {
                prop_assert_eq!(field, b"");
            } else {
                prop_assert_eq!(take_varint(&mut field), Some(1 << 3 | BYTES));
                prop_assert_eq!(take_varint(&mut field), Some(service.len() as u64));
                prop_assert_eq!(field, service.as_bytes());
            }
        }
    }
}
