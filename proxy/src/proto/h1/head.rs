//! What the heads of requests and of responses have in common.

use std::io::Write as _;

use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Whether `Connection` has this option (RFC 9110, 7.6.1).
pub fn has_option(headers: &HeaderMap, option: &[u8]) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|o| o.trim_ascii().eq_ignore_ascii_case(option))
}

/// A number in digits only, as in `Content-Length` (RFC 9110, 8.6); none when it is anything else, or too large.
pub fn number(digits: &[u8]) -> Option<u64> {
    let only_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| only_digits)?.parse().ok()
}

/// Writes a header's line.
pub fn encode_line(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes the line of `Content-Length`.
pub fn encode_content_length(length: u64, out: &mut Vec<u8>) {
    let _writing_to_memory_cannot_fail = write!(out, "content-length: {length}\r\n");
}

/// Whether every line ends in CRLF. The parser underneath takes a bare LF for the end of a line too (RFC 9112, 2.2,
/// allows that), and somebody else on the way may not. `section` is what was parsed, up to and with its empty line;
/// `lines` are the headers found in it. Since the parser lets a control byte stand nowhere else, it is enough to look
/// in front of each line.
pub fn all_lines_end_in_crlf(section: &[u8], lines: &[httparse::Header<'_>]) -> bool {
    let ends_before = |line: &httparse::Header<'_>| {
        let start = line.name.as_ptr().addr().checked_sub(section.as_ptr().addr());
        start.is_some_and(|start| start == 0 || section.get(..start).is_some_and(|before| before.ends_with(b"\r\n")))
    };
    let end_is_whole = section == b"\r\n" || section.ends_with(b"\r\n\r\n");
    end_is_whole && lines.iter().all(ends_before)
}
