//! Whether the client is in the middle of a head, told from the bytes that it sends (RFC 9113, 3.4, 4.1 and 6.10).
//!
//! The library waits for ever for the rest of one. What counts as a head is what no client has a reason to pause in: the
//! preface with its SETTINGS, and a request's HEADERS with the CONTINUATIONs that belong to it.

const PREFACE: usize = 24;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the frames of a connection.
pub struct Heads {
    /// Bytes of the preface or of a frame's payload that are yet to come.
    rest: usize,
    /// The beginning of the next frame, as far as it has come.
    start: [u8; 9],
    filled: usize,
    /// Heads so far; the preface is the first.
    begun: u64,
    is_open: bool,
    /// Whether the head ends with this frame.
    is_last: bool,
}

impl Default for Heads {
    fn default() -> Self {
        Self { rest: PREFACE, start: [0; 9], filled: 0, begun: 1, is_open: true, is_last: false }
    }
}

impl Heads {
    /// The number of the head that has begun and not ended.
    pub fn unfinished(&self) -> Option<u64> {
        self.is_open.then_some(self.begun)
    }

    /// Follows these bytes, which the client has sent.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        loop {
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            if self.rest == 0 && self.is_last {
                (self.is_open, self.is_last) = (false, false);
            }
            let Some((byte, more)) = bytes.split_first() else { return };
            bytes = more;
            if let Some(place) = self.start.get_mut(self.filled) {
                *place = *byte;
                self.filled += 1;
            }
            if self.filled == self.start.len() {
                self.filled = 0;
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.start;
        self.rest = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match kind {
            HEADERS | CONTINUATION => {
                self.begun += u64::from(!self.is_open);
                self.is_open = true;
                self.is_last = flags & END_HEADERS != 0;
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
                bytes.chunks(size).for_each(|bytes| heads.follow(bytes));
                assert_eq!(heads.unfinished(), *unfinished, "{bytes:?} by {size}");
            }
        }
    }
}
