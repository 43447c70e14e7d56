//! Whether the client is in the middle of a head, told from the bytes that it sends (RFC 9113, 3.4, 4.1 and 6.10).
//!
//! The library waits for ever for the rest of one. What counts as a head is what no client has a reason to pause in: the
//! preface with its SETTINGS, and a request's HEADERS with the CONTINUATIONs that belong to it.

use crate::proto::frames::{Frames, Header};

const PREFACE: usize = 24;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the frames of a connection.
pub struct Heads {
    frames: Frames,
    /// Heads so far; the preface is the first.
    begun: u64,
    is_open: bool,
    /// Whether the head ends with this frame.
    is_last: bool,
}

impl Default for Heads {
    fn default() -> Self {
        Self { frames: Frames::after(PREFACE), begun: 1, is_open: true, is_last: false }
    }
}

impl Heads {
    /// The number of the head that has begun and not ended.
    pub fn unfinished(&self) -> Option<u64> {
        self.is_open.then_some(self.begun)
    }

    /// Follows these bytes, which the client has sent: how many frames have begun with them.
    pub fn follow(&mut self, mut bytes: &[u8]) -> usize {
        let mut frames = 0;
        while self.frames.take_payload(&mut bytes) {
            if self.is_last {
                (self.is_open, self.is_last) = (false, false);
            }
            let Some(header) = self.frames.take_header(&mut bytes) else { break };
            frames += 1;
            self.begin(header);
        }
        frames
    }

    fn begin(&mut self, header: Header) {
        match header.kind {
            HEADERS | CONTINUATION => {
                self.begun += u64::from(!self.is_open);
                self.is_open = true;
                self.is_last = header.flags & END_HEADERS != 0;
            }
            SETTINGS => self.is_last = self.is_open,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1][..], &vec![0xff; usize::from(length)]].concat()
    }

    #[test]
    fn heads_are_followed_however_they_arrive() {
        let steps = [
            (vec![b'P'; PREFACE], Some(1)),
            (frame(SETTINGS, 0, 6), None),
            (frame(HEADERS, END_HEADERS, 20), None),
            (frame(0, 0, 200), None),
            (frame(HEADERS, 0, 0), Some(3)),
            (frame(CONTINUATION, 0, 9), Some(3)),
            (frame(CONTINUATION, END_HEADERS, 0), None),
            (frame(SETTINGS, 0, 0), None),
            (frame(HEADERS, END_HEADERS, 5)[..13].to_vec(), Some(4)),
        ];
        for size in [1, 7, 1000] {
            let mut heads = Heads::default();
            assert_eq!(heads.unfinished(), Some(1));
            for (bytes, unfinished) in &steps {
                bytes.chunks(size).for_each(|bytes| _ = heads.follow(bytes));
                assert_eq!(heads.unfinished(), *unfinished, "{bytes:?} by {size}");
            }
        }
    }
}
