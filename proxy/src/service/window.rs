//! Attempts of the last minute, second by second.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets; more than the 60 seconds that can be asked for.
const BUCKETS: usize = 64;

/// The most that can be counted in a second, of each kind.
const MOST: u64 = (1 << 20) - 1;

/// Successes and failures by second, counted without a lock. A bucket is one number: the second that it is of (24 bits),
/// failures and successes (20 bits each), so that a bucket begins anew in the same step in which it is first used.
#[derive(Debug)]
pub struct Window([AtomicU64; BUCKETS]);

impl Default for Window {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Window {
    /// Counts an attempt that has ended now.
    pub fn add(&self, success: bool, now: Duration) {
        let second = second_of(now.as_secs());
        let Some(bucket) = self.0.get(now.as_secs() as usize % BUCKETS) else { return };
        let one_more = |packed: u64| {
            let (of, failures, successes) = unpack(packed);
            let (failures, successes) = if of == second { (failures, successes) } else { (0, 0) };
            let (failures, successes) =
                if success { (failures, (successes + 1).min(MOST)) } else { ((failures + 1).min(MOST), successes) };
            Some(second << 40 | failures << 20 | successes)
        };
        let _never_refused = bucket.fetch_update(Relaxed, Relaxed, one_more);
    }

    /// Forgets all attempts; one that is being counted at this moment may stay.
    pub fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Relaxed);
        }
    }

    /// Successes and failures of this second, which is not over, and those before it: `seconds` (1 to 60) in all.
    pub fn sum(&self, seconds: u32, now: Duration) -> (u32, u32) {
        let mut sum = (0_u32, 0_u32);
        for back in 0..u64::from(seconds.clamp(1, 60)) {
            let Some(at) = now.as_secs().checked_sub(back) else { break };
            let Some(bucket) = self.0.get(at as usize % BUCKETS) else { break };
            let (of, failures, successes) = unpack(bucket.load(Relaxed));
            if of == second_of(at) {
                sum = (sum.0.saturating_add(successes as u32), sum.1.saturating_add(failures as u32));
            }
        }
        sum
    }
}

/// Seconds as buckets name them: never that of an unused bucket.
fn second_of(second: u64) -> u64 {
    (second + 1) & ((1 << 24) - 1)
}

fn unpack(packed: u64) -> (u64, u64, u64) {
    (packed >> 40, packed >> 20 & MOST, packed & MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_the_seconds_asked_for_count() {
        let window = Window::default();
        assert_eq!(window.sum(60, at(0)), (0, 0));
        window.add(true, at(0));
        window.add(false, at(1));
        window.add(true, at(3));
        assert_eq!(window.sum(1, at(3)), (1, 0));
        assert_eq!(window.sum(2, at(3)), (1, 0));
        assert_eq!(window.sum(3, at(3)), (1, 1));
        assert_eq!(window.sum(4, at(3)), (2, 1));
        assert_eq!(window.sum(60, at(60)), (1, 1));
        assert_eq!(window.sum(60, at(63)), (0, 0));
    }

    #[test]
    fn a_bucket_begins_anew() {
        let window = Window::default();
        window.add(true, at(5));
        window.add(false, at(5 + BUCKETS as u64));
        assert_eq!(window.sum(60, at(5 + BUCKETS as u64)), (0, 1));
        assert_eq!(window.sum(1, at(5)), (0, 0));
    }
}
