//! The frames of an HTTP/2 connection, followed in the bytes that go by (RFC 9113, 4.1).

/// What a frame begins with.
const HEADER: usize = 9;

/// Follows the frames of one direction of a connection.
#[derive(Debug, Default)]
pub struct Frames {
    /// Bytes of the preface or of a frame's payload that are yet to come.
    rest: usize,
    /// The beginning of the next frame, as far as it has come.
    start: [u8; HEADER],
    filled: usize,
}

/// The beginning of a frame, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub flags: u8,
}

impl Frames {
    /// Frames that begin after so many bytes.
    pub fn after(preface: usize) -> Self {
        Self { rest: preface, ..Self::default() }
    }

    /// Takes the rest of a payload off the front; whether it has ended.
    pub fn take_payload(&mut self, bytes: &mut &[u8]) -> bool {
        let passed = self.rest.min(bytes.len());
        self.rest -= passed;
        *bytes = bytes.get(passed..).unwrap_or_default();
        self.rest == 0
    }

    /// Takes the beginning of a frame off the front, after the last payload has ended; none while it is incomplete.
    pub fn take_header(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        let room = self.start.get_mut(self.filled..).unwrap_or_default();
        let length = room.len().min(bytes.len());
        let (part, more) = bytes.split_at_checked(length)?;
        room.get_mut(..length)?.copy_from_slice(part);
        *bytes = more;
        self.filled += length;
        if self.filled < HEADER {
            return None;
        }
        self.filled = 0;
        let [high, middle, low, kind, flags, ..] = self.start;
        self.rest = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        Some(Header { kind, flags })
    }

    /// Follows these bytes: how many frames have begun with them.
    pub fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut frames = 0;
        while self.take_payload(&mut bytes) && self.take_header(&mut bytes).is_some() {
            frames += 1;
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_arrive() {
        let frame = |length: u8| [&[0, 0, length, 0, 0, 0, 0, 0, 1][..], &vec![0xff; usize::from(length)]].concat();
        let bytes: Vec<u8> = (0..100).flat_map(|number| frame(number % 7)).collect();
        for size in [1, 2, 9, 10, 1000] {
            let mut frames = Frames::default();
            let count: usize = bytes.chunks(size).map(|part| frames.count(part)).sum();
            assert_eq!(count, 100, "by {size}");
        }
    }
}
