use heddle_plugin::Random;

use crate::Weighted;

/// A draw in proportion to weights: a number below their sum, and a binary search for the one that it falls to in their
/// running sums. Exact for any weights; about 10 steps for 1,000 of them.
#[derive(Debug, Default)]
pub struct Draw {
    /// The sum of the weights up to each, that one counted.
    ends: Vec<u64>,
}

impl Draw {
    /// Draws among these from now on.
    pub fn set(&mut self, weights: &[Weighted]) {
        let mut end = 0;
        self.ends.clear();
        self.ends.extend(weights.iter().map(|weighted| {
            end += weighted.weight;
            end
        }));
    }

    /// The sum of all weights.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The place of one of them; none where there are none.
    pub fn one(&self, random: &mut Random) -> Option<usize> {
        let drawn = random.below(self.total());
        self.at(drawn)
    }

    /// The place of one of the others; none where there are no others.
    pub fn another(&self, than: usize, random: &mut Random) -> Option<usize> {
        let end = *self.ends.get(than)?;
        let start = than.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let drawn = random.below(self.total() - (end - start));
        self.at(if drawn < start { drawn } else { drawn + (end - start) })
    }

    fn at(&self, drawn: u64) -> Option<usize> {
        let index = self.ends.partition_point(|&end| end <= drawn);
        (index < self.ends.len()).then_some(index)
    }
}
