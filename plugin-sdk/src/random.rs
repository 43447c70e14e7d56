/// A small deterministic source of random numbers: the same seed gives the same numbers everywhere.
///
/// It is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): eight bytes
/// of state, any seed is a good one. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A source that begins at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, each of the 2^64 as likely as any other.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from 0 to `bound - 1`, each exactly as likely; 0 where `bound` is 0.
    ///
    /// The method is Lemire's ("Fast Random Integer Generation in an Interval", ACM TOMACS 29, 2019): a multiplication,
    /// and a division only in the rare case that may need another draw.
    pub fn below(&mut self, bound: u64) -> u64 {
        let mut product = u128::from(self.next_u64()) * u128::from(bound);
        if (product as u64) < bound {
            let least = bound.wrapping_neg() % bound;
            while (product as u64) < least {
                product = u128::from(self.next_u64()) * u128::from(bound);
            }
        }
        (product >> 64) as u64
    }
}

/// SplitMix64's output function (Stafford's variant 13 of MurmurHash3's finaliser): each bit of the input changes each
/// bit of the output with a chance of about a half, and no two inputs have the same output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::Random;
    use crate::testing::fits;

    /// The first numbers of the algorithm's reference implementation (`splitmix64.c`, Sebastiano Vigna) for this seed.
    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        let mut random = Random::new(1_234_567);
        let numbers = [(); 3].map(|()| random.next_u64());
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_below_a_bound_are_equally_likely() {
        for bound in [1, 2, 3, 7, 100] {
            let mut random = Random::new(bound);
            let mut counts = vec![0; bound as usize];
            for _ in 0..bound * 1000 {
                counts[random.below(bound) as usize] += 1;
            }
            assert!(bound == 1 || fits(&counts, &vec![1; counts.len()]), "{bound}: {counts:?}");
        }
    }

    #[test]
    fn a_bound_that_rejects_half_of_the_draws_is_even() {
        let mut random = Random::new(1);
        let bound = (1 << 63) + 1;
        let halves = (0..10_000).fold([0, 0], |mut halves, _| {
            halves[usize::from(random.below(bound) > bound / 2)] += 1;
            halves
        });
        assert!(fits(&halves, &[1, 1]), "{halves:?}");
    }

    #[test]
    fn below_0_there_is_0() {
        assert_eq!(Random::new(1).below(0), 0);
    }
}
