//! When to copy and when to splice.

use super::ROOM;

/// This many reads of one kind in a row change a direction over.
const IN_A_ROW: u8 = 2;

/// A splice that moves less than this would have been as cheap as a copy: a pipe takes two calls of its own.
const LITTLE: usize = ROOM / 2;

/// How a direction moves its bytes, told by how many came at a time.
#[derive(Debug)]
pub(super) struct Pace {
    splices: bool,
    /// Reads in a row that speak for the other way.
    streak: u8,
    /// The kernel does not splice these streams.
    never: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { splices: false, streak: 0, never: false }
    }

    pub(super) fn splices(&self) -> bool {
        self.splices
    }

    /// Whether what is in a pipe can be spliced on.
    pub(super) fn may_splice(&self) -> bool {
        !self.never
    }

    /// Takes notice of a read of this many bytes.
    pub(super) fn read(&mut self, bytes: usize) {
        let other = if self.splices { bytes < LITTLE } else { bytes >= ROOM && !self.never };
        self.streak = if other { self.streak + 1 } else { 0 };
        if self.streak >= IN_A_ROW {
            (self.splices, self.streak) = (!self.splices, 0);
        }
    }

    /// Copies from now on.
    pub(super) fn never_splice(&mut self) {
        *self = Self { never: true, ..Self::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: &[usize]) -> bool {
        let mut pace = Pace::new();
        reads.iter().for_each(|bytes| pace.read(*bytes));
        pace.splices()
    }

    #[test]
    fn full_reads_in_a_row_change_over_and_little_ones_change_back() {
        assert!(!after(&[ROOM]));
        assert!(!after(&[ROOM, ROOM - 1, ROOM]));
        assert!(after(&[ROOM, ROOM]));
        assert!(after(&[ROOM, ROOM, 1 << 20, 1, LITTLE, 1]));
        assert!(!after(&[ROOM, ROOM, 1, 1]));
        assert!(!after(&[ROOM, ROOM, 1, 1, ROOM]));
        assert!(after(&[ROOM, ROOM, 1, 1, ROOM, ROOM]));
    }

    #[test]
    fn what_cannot_be_spliced_is_copied_for_good() {
        let mut pace = Pace::new();
        pace.read(ROOM);
        pace.never_splice();
        (0..9).for_each(|_| pace.read(ROOM));
        assert!(!pace.splices());
    }
}
