//! HTTP/2 frame by frame (RFC 9113, 4.1), for what no library lets a test send or see.

#![allow(dead_code, reason = "each test uses a part of it")]

use super::http1::Wire;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `:status: 200` in HPACK's static table (RFC 7541, A).
pub const STATUS_200: u8 = 0x88;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// One side of an HTTP/2 connection.
pub struct Frames {
    pub wire: Wire,
}

impl Frames {
    /// A client that has sent its preface.
    pub fn client(mut wire: Wire) -> Self {
        wire.send(PREFACE);
        let mut frames = Self { wire };
        frames.send(SETTINGS, 0, 0, &[]);
        frames
    }

    /// A server that has read the client's preface.
    #[track_caller]
    pub fn server(mut wire: Wire) -> Self {
        assert_eq!(wire.exactly(PREFACE.len()).expect("a preface"), PREFACE);
        let mut frames = Self { wire };
        frames.send(SETTINGS, 0, 0, &[]);
        frames
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        let _the_other_side_may_be_gone = self.wire.try_send([&head, payload].concat());
    }

    /// The next frame; none at the end of the connection. Settings and pings are answered.
    #[track_caller]
    pub fn next(&mut self) -> Option<Frame> {
        let head = self.wire.exactly(9).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload: self.wire.exactly(length).ok()? };
        if matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
            let echoed = if frame.kind == PING { frame.payload.clone() } else { Vec::new() };
            self.send(frame.kind, ACK, 0, &echoed);
        }
        Some(frame)
    }

    /// The next frame of this kind, whatever comes before it.
    #[track_caller]
    pub fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("ended before a frame of kind {kind}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The error code of the reset that comes next.
    #[track_caller]
    pub fn reset_code(&mut self) -> u32 {
        let payload = self.until(RST_STREAM).payload;
        u32::from_be_bytes(payload.try_into().expect("four bytes"))
    }
}

/// A header as HPACK has it without tables or compression (RFC 7541, 6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text");
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}
