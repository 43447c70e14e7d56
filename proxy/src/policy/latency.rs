//! What share of recent requests took how long.
//!
//! A histogram whose buckets grow by a quarter of a power of two each, so that a percentile is too high by a quarter at most.
//! Once it holds [`MOST`] samples all counts are halved: the last thousand or two weigh the most. Counting one costs an
//! addition.

use std::time::Duration;

/// Buckets for each power of two.
const PARTS: u32 = 4;

/// From 1 us to above two minutes; what is longer counts as the longest.
const BUCKETS: usize = 28 * PARTS as usize;

/// Counts are halved at so many samples.
const MOST: u32 = 2048;

/// With fewer samples nothing is said: a percentile of a few is a matter of chance.
pub const MIN_SAMPLES: u32 = 100;

/// Recent latencies.
#[derive(Debug)]
pub struct Latencies {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Latencies {
    /// Takes one more into account.
    pub fn add(&mut self, latency: Duration) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count += 1;
            self.total += 1;
        }
        if self.total >= MOST {
            for count in &mut self.counts {
                *count /= 2;
            }
            self.total = self.counts.iter().sum();
        }
    }

    /// What so many thousandths of the recent ones did not exceed; none with too few samples.
    pub fn percentile(&self, permille: u32) -> Option<Duration> {
        if self.total < MIN_SAMPLES {
            return None;
        }
        let wanted = (u64::from(self.total) * u64::from(permille.min(1000))).div_ceil(1000);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        })?;
        Some(upper_bound(bucket))
    }
}

/// The bucket of a time in microseconds: its highest bit, and the two after it.
fn bucket(micros: u32) -> usize {
    let micros = micros.max(1);
    let exponent = micros.ilog2();
    let leading = if exponent >= 2 { micros >> (exponent - 2) } else { micros << (2 - exponent) };
    // Three bits, of which the first is set.
    let part = leading % PARTS;
    usize::try_from(exponent * PARTS + part).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The time below which all of a bucket's lie.
fn upper_bound(bucket: usize) -> Duration {
    let (exponent, part) = (bucket / PARTS as usize, bucket % PARTS as usize);
    Duration::from_micros(((PARTS as u64 + part as u64 + 1) << exponent) / PARTS as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_few_say_nothing() {
        let mut latencies = Latencies::default();
        for _ in 0..MIN_SAMPLES - 1 {
            latencies.add(Duration::from_millis(1));
        }
        assert_eq!(latencies.percentile(950), None);
        latencies.add(Duration::from_millis(1));
        assert!(latencies.percentile(950).is_some());
    }

    #[test]
    fn one_in_ten_that_is_slow_is_above_the_90th_percentile() {
        let mut latencies = Latencies::default();
        for n in 0..1000 {
            latencies.add(Duration::from_millis(if n % 10 == 0 { 500 } else { 2 }));
        }
        let at = |permille| latencies.percentile(permille).unwrap().as_micros();
        assert!((2_000..=2_500).contains(&at(900)), "{}", at(900));
        assert!((500_000..=625_000).contains(&at(950)), "{}", at(950));
    }

    #[test]
    fn what_is_recent_counts() {
        let mut latencies = Latencies::default();
        for _ in 0..10_000 {
            latencies.add(Duration::from_secs(1));
        }
        for _ in 0..2 * MOST * 3 {
            latencies.add(Duration::from_millis(1));
        }
        assert!(latencies.percentile(990).unwrap() < Duration::from_millis(2));
    }

    proptest! {
        /// A bucket holds what its bounds say, and the next one begins there.
        #[test]
        fn a_time_lies_within_its_bucket(micros in 4_u32..1 << 27) {
            let bucket = bucket(micros);
            prop_assert!(Duration::from_micros(micros.into()) < upper_bound(bucket));
            prop_assert!(Duration::from_micros(micros.into()) >= upper_bound(bucket - 1));
        }

        #[test]
        fn any_time_has_a_bucket(micros: u32) {
            prop_assert!(bucket(micros) < BUCKETS);
        }
    }
}
