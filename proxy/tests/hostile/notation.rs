//! The notation of `http.txt`: its lines, its escapes, its frames.

#![allow(clippy::string_slice, reason = "between ASCII characters of a file that is part of the test")]

use crate::frames::{CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE};

/// One line.
#[derive(Debug)]
pub struct Case {
    pub number: usize,
    /// The first character of the line, and the version.
    pub side: &'static str,
    pub expected: &'static str,
    pub bytes: &'static str,
}

/// All lines.
pub fn cases() -> impl Iterator<Item = Case> {
    let lines = include_str!("http.txt").lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(number, line)| {
        let columns: Vec<&str> = line.splitn(3, " | ").collect();
        let &[side, expected, bytes] = columns.as_slice() else { panic!("line {number} has not three columns") };
        Case { number, side, expected, bytes }
    })
}

/// What has to be true of a head or a body.
#[derive(Debug, Default)]
pub struct Checks {
    pub has: Vec<Vec<u8>>,
    pub has_not: Vec<Vec<u8>>,
    pub body: Option<Vec<u8>>,
}

/// The words of a column, and the checks after them.
pub fn expected(column: &'static str) -> (Vec<&'static str>, Checks) {
    let (mut words, mut checks, mut rest) = (Vec::new(), Checks::default(), column.trim());
    while !rest.is_empty() {
        let quoted = ["has", "not", "body"].into_iter().find_map(|name| {
            let after = rest.strip_prefix(name)?.strip_prefix("=\"")?;
            after.split_once('"').map(|(text, after)| (name, unescape(text), after))
        });
        let (word, after) = match quoted {
            Some((name, text, after)) => {
                match name {
                    "has" => checks.has.push(text),
                    "not" => checks.has_not.push(text),
                    _ => checks.body = Some(text),
                }
                (None, after)
            }
            None => rest.split_once(' ').map_or((Some(rest), ""), |(word, after)| (Some(word), after)),
        };
        words.extend(word);
        rest = after.trim_start();
    }
    (words, checks)
}

/// The bytes that a text stands for.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '¶' => bytes.extend_from_slice(b"\r\n"),
            '\\' => {
                let kind = rest.chars().next().expect("an escape");
                rest = &rest[1..];
                match kind {
                    'r' => bytes.push(b'\r'),
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    '0' => bytes.push(0),
                    's' => bytes.push(b' '),
                    '\\' => bytes.push(b'\\'),
                    'x' => {
                        bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hexadecimal digits"));
                        rest = &rest[2..];
                    }
                    '{' => {
                        let (repeated, after) = rest.split_once('}').expect("a closing brace");
                        let (text, times) = repeated.rsplit_once('*').expect("how many times");
                        bytes.extend(unescape(text).repeat(times.parse().expect("a number")));
                        rest = after;
                    }
                    other => panic!("no escape: \\{other}"),
                }
            }
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "an odd number of digits: {text}");
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The frames that a column stands for. `S` is this stream.
pub fn frames(column: &str, stream: u32) -> Vec<u8> {
    column
        .split(" ; ")
        .flat_map(|frame| {
            let (times, frame) = match frame.trim_start().split_once("* ") {
                Some((times, frame)) if times.bytes().all(|byte| byte.is_ascii_digit()) => {
                    (times.parse().unwrap(), frame)
                }
                _ => (1, frame.trim_start()),
            };
            one_frame(frame, stream).repeat(times)
        })
        .collect()
}

fn one_frame(text: &str, this: u32) -> Vec<u8> {
    let mut words = text.splitn(4, ' ');
    let kind = words.next().unwrap_or_default();
    if kind == "X" {
        return hex(words.next().expect("bytes").trim());
    }
    let stream: u32 = match words.next().expect("a stream") {
        "S" => this,
        number => number.parse().expect("a stream's number"),
    };
    let flags = words.next().expect("flags").bytes().fold(0, |flags, flag| {
        flags
            | match flag {
                b'e' => 0x1,
                b'E' => 0x4,
                b'p' => 0x8,
                b'-' => 0,
                _ => panic!("no flag: {}", flag as char),
            }
    });
    let rest = words.next().unwrap_or_default().trim_end();
    let number = || rest.parse::<u32>().expect("a number").to_be_bytes().to_vec();
    let (kind, payload) = match kind {
        "H" => (HEADERS, block(rest)),
        "C" => (CONTINUATION, block(rest)),
        "D" => (DATA, unescape(rest)),
        "R" => (RST_STREAM, number()),
        "W" => (WINDOW_UPDATE, number()),
        "S" => (SETTINGS, hex(rest)),
        "P" => (PING, hex(rest)),
        "G" => (GOAWAY, hex(rest)),
        other => (u8::from_str_radix(&other[1..], 16).expect("a type"), hex(rest)),
    };
    // A head that is larger than a frame may be goes on in CONTINUATIONs, and is complete with the last of them.
    if kind == HEADERS && payload.len() > MAX_FRAME {
        let mut parts = payload.chunks(MAX_FRAME);
        let first = frame(HEADERS, flags & !END_HEADERS, stream, parts.next().unwrap_or_default());
        let count = parts.len();
        let rest = parts.enumerate().flat_map(|(number, part)| {
            let is_last = number + 1 == count;
            frame(CONTINUATION, if is_last { flags & END_HEADERS } else { 0 }, stream, part)
        });
        return first.into_iter().chain(rest).collect();
    }
    frame(kind, flags, stream, &payload)
}

/// The largest frame that may be sent where nothing else was agreed on (RFC 9113, 4.2).
const MAX_FRAME: usize = 16 << 10;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block, or a part of one.
fn block(fields: &str) -> Vec<u8> {
    // A repetition may have spaces in it, which separate fields then.
    let fields = expand(fields);
    fields
        .split(' ')
        .filter(|field| !field.is_empty())
        .flat_map(|field| match field {
            "GET" => block(":method=GET :scheme=http :authority=users :path=/"),
            "200" => literal(b":status", b"200"),
            _ => match field.strip_prefix("0x") {
                Some(bytes) => hex(bytes),
                None => {
                    let at = field.bytes().skip(1).position(|byte| byte == b'=').map_or(0, |at| at + 1);
                    literal(&unescape(&field[..at]), &unescape(&field[at + 1..]))
                }
            },
        })
        .collect()
}

/// Repetitions that have spaces in them, written out.
fn expand(text: &str) -> String {
    let Some((before, rest)) = text.split_once("\\{") else { return text.to_owned() };
    let (repeated, after) = rest.split_once('}').expect("a closing brace");
    let (part, times) = repeated.rsplit_once('*').expect("how many times");
    let times: usize = times.parse().expect("a number");
    let between = if part.contains("\\s") { part.replace("\\s", " ").repeat(times) } else { part.repeat(times) };
    format!("{before}{between}{}", expand(after))
}

/// A field as HPACK has it without tables or compression (RFC 7541, 6.2.2), of any length.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let string = |text: &[u8]| {
        let mut bytes = Vec::new();
        // An integer with a prefix of seven bits (RFC 7541, 5.1).
        match u8::try_from(text.len()) {
            Ok(length) if length < 127 => bytes.push(length),
            _ => {
                let mut rest = text.len() - 127;
                bytes.push(127);
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
        }
        [&bytes, text].concat()
    };
    [vec![0], string(name), string(value)].concat()
}

/// The status at the front of a header block, as any encoder writes it first (RFC 7541, 5.2, 6 and appendices A and B).
pub fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let first = *block.first()?;
    if let Some(index) = first.checked_sub(0x88) {
        return INDEXED.get(usize::from(index)).copied();
    }
    // A literal with the name of one of these.
    let is_status = matches!(first & 0x3f, 8..=14) && first & 0x40 != 0 || matches!(first & 0xf, 8..=14);
    let length = block.get(1)?;
    let text = block.get(2..2 + usize::from(length & 0x7f)).filter(|_| is_status)?;
    let digits = if length & 0x80 == 0 { text.to_vec() } else { huffman_digits(text) };
    std::str::from_utf8(digits.get(..3)?).ok()?.parse().ok()
}

/// Digits in the code of RFC 7541, B.
fn huffman_digits(text: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    let (mut at, mut digits) = (0, Vec::new());
    while let Some(five) = bits.get(at..at + 5) {
        match number(five) {
            short @ 0..=2 => {
                digits.push(b'0' + short);
                at += 5;
            }
            _ => match bits.get(at..at + 6).map(number) {
                Some(long @ 0x19..=0x1f) => {
                    digits.push(b'3' + long - 0x19);
                    at += 6;
                }
                _ => break,
            },
        }
    }
    digits
}

#[test]
fn escapes_and_frames_are_read() {
    assert_eq!(unescape("a¶\\x00\\{bc*2}\\s"), b"a\r\n\0bcbc ");
    assert_eq!(
        frames("2* P 0 e 01 ; R S - 8", 3),
        b"\0\0\x01\x06\x01\0\0\0\0\x01"
            .repeat(2)
            .into_iter()
            .chain(*b"\0\0\x04\x03\0\0\0\0\x03\0\0\0\x08")
            .collect::<Vec<u8>>()
    );
    assert_eq!(block("=a :b=c=d"), [&literal(b"", b"a")[..], &literal(b":b", b"c=d")].concat());
    assert_eq!(literal(b"", &[b'a'; 300])[2..4], [127, 173]);
    assert_eq!(status(&[0x8c]), Some(400));
    assert_eq!(status(b"\x48\x03502"), Some(502));
    // 502 and 431 in Huffman's code.
    assert_eq!(status(&[0x48, 0x82, 0b0110_1100, 0b0000_0010]), Some(502));
    assert_eq!(status(&[0x08, 0x83, 0b0110_1001, 0b1001_0000, 0b1111_1111]), Some(431));
    assert!(cases().count() >= 400);
}
