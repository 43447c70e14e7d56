//! Bytes that arrive in pieces and are needed in one.

use bytes::{Bytes, BytesMut};

/// Room for what comes in pieces, to begin with.
const SMALLEST: usize = 1024;

/// Both in one buffer of its own. What was joined before is extended in place, so that many small pieces are copied a few
/// times and not once for each of them.
pub fn joined(first: Bytes, second: &[u8]) -> Bytes {
    let mut all = first.try_into_mut().unwrap_or_else(|first| {
        let mut own = BytesMut::with_capacity((first.len() + second.len()).max(SMALLEST));
        own.extend_from_slice(&first);
        own
    });
    all.extend_from_slice(second);
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pieces_are_not_copied_as_often() {
        const LENGTH: usize = 64 * 1024;
        let mut all = Bytes::from_static(b"H");
        let mut places = 0;
        for _ in 0..LENGTH {
            let before = all.as_ptr();
            all = joined(all, b"T");
            places += usize::from(all.as_ptr() != before);
        }
        assert_eq!(all.len(), 1 + LENGTH);
        assert!(all.starts_with(b"HTTT") && places < 20, "copied {places} times");
    }
}
