//! An endpoint's peak average: how long a request takes there, seen by somebody who would rather wait nowhere.
//!
//! The average is Finagle's and Linkerd's (`PeakEwma`; the arithmetic is that of tower's `load::PeakEwma`). A time that is
//! longer than the average becomes the average at once: one slow answer is reason enough to send the next request
//! elsewhere. A shorter one pulls it down by the share `1 - exp(-t / 10 s)`, where `t` is the time since the last: an
//! endpoint has to be fast for some seconds to count as fast, however many requests that are. While nothing is measured
//! the average falls towards nothing in the same way, so that an endpoint that was slow is tried again.
//!
//! An endpoint starts at 30 ms, so that it is neither flooded nor starved before anything is known of it.
//!
//! A failed attempt counts with the time it took, or with the average as it was last stored where that is longer: the
//! average of an endpoint that fails fast stays where it was when it last worked, instead of falling until it attracts
//! everything.
//!
//! All of it is one number of 64 bits, so that workers update it without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What an endpoint has before anything is measured, in microseconds: Linkerd's `default_rtt`.
pub const PEAK_START: u32 = 30_000;

/// The time in which the average falls by the factor e, in milliseconds: Linkerd's `decay`.
const DECAY: f32 = 10_000.0;

/// Times up to this far back, in milliseconds, are taken for those of another worker that read the clock a moment later.
const SKEW: u32 = 60_000;

/// A peak average: in the upper half microseconds as the bits of a float, in the lower half when they were stored, in
/// milliseconds. An endpoint that is not used for 49.7 days (2^32 ms) has its old average for a moment.
#[derive(Debug)]
pub(super) struct Peak(AtomicU64);

impl Peak {
    /// That of an endpoint that was registered now.
    pub(super) fn start(now: Duration) -> Self {
        Self(AtomicU64::new(pack(PEAK_START as f32, millis(now))))
    }

    /// Forgets what was measured.
    pub(super) fn reset(&self, now: Duration) {
        self.0.store(pack(PEAK_START as f32, millis(now)), Relaxed);
    }

    /// The average at this time, in microseconds, at least 1.
    pub(super) fn micros(&self, now: Duration) -> u32 {
        let (micros, at) = unpack(self.0.load(Relaxed));
        ((micros * left(at, millis(now))) as u32).max(1)
    }

    /// An attempt has ended after this time.
    pub(super) fn observe(&self, latency: Duration, success: bool, now: Duration) {
        let (latency, now) = (latency.as_secs_f32() * 1e6, millis(now));
        let next = |packed| {
            let (micros, at) = unpack(packed);
            let left = left(at, now);
            let micros = match (latency > micros * left, success) {
                (true, true) => latency,
                (false, true) => micros * left + latency * (1.0 - left),
                (_, false) => micros.max(latency),
            };
            Some(pack(micros, now))
        };
        let _never_refused = self.0.fetch_update(Relaxed, Relaxed, next);
    }
}

/// How much of an average is left that was stored then.
fn left(at: u32, now: u32) -> f32 {
    let elapsed = now.wrapping_sub(at);
    if elapsed > u32::MAX - SKEW { 1.0 } else { (-(elapsed as f32) / DECAY).exp() }
}

fn pack(micros: f32, at: u32) -> u64 {
    u64::from(micros.to_bits()) << 32 | u64::from(at)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

/// Milliseconds, modulo 2^32.
fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[track_caller]
    fn expect(peak: &Peak, now: Duration, micros: u32) {
        let found = peak.micros(now);
        assert!(found.abs_diff(micros) <= micros / 200 + 1, "{found} instead of {micros}");
    }

    #[test]
    fn it_starts_at_30_ms_and_falls_to_1_us() {
        let peak = Peak::start(ms(5_000));
        expect(&peak, ms(5_000), 30_000);
        expect(&peak, ms(15_000), 11_036);
        expect(&peak, ms(25_000), 4_060);
        assert_eq!(peak.micros(ms(1_000_000)), 1);
        peak.reset(ms(2_000_000));
        expect(&peak, ms(2_000_000), 30_000);
    }

    #[test]
    fn it_rises_at_once_and_falls_with_time() {
        let peak = Peak::start(ms(0));
        peak.observe(ms(100), true, ms(10));
        expect(&peak, ms(10), 100_000);
        // However many requests: what counts is the time.
        for _ in 0..1_000 {
            peak.observe(ms(5), true, ms(11));
        }
        assert!(peak.micros(ms(11)) > 99_900);
        peak.observe(ms(5), true, ms(10_010));
        expect(&peak, ms(10_010), 36_800 + 3_160);
        // After an idle time a sample below what was stored is still a rise.
        peak.observe(ms(20), true, ms(60_010));
        expect(&peak, ms(60_010), 20_000);
    }

    #[test]
    fn it_comes_down_to_steady_latencies() {
        let peak = Peak::start(ms(0));
        for now in 1..=100_000 {
            peak.observe(Duration::from_micros(250), true, ms(now));
        }
        expect(&peak, ms(100_000), 251);
    }

    #[test]
    fn failing_fast_does_not_look_fast() {
        let peak = Peak::start(ms(0));
        peak.observe(ms(50), true, ms(0));
        for now in 1..=60_000 {
            peak.observe(Duration::from_micros(100), false, ms(now));
        }
        expect(&peak, ms(60_000), 50_000);
        peak.observe(ms(15_000), false, ms(60_001));
        expect(&peak, ms(60_001), 15_000_000);
    }

    #[test]
    fn a_clock_that_another_worker_read_earlier_changes_nothing() {
        let peak = Peak::start(ms(1_000));
        peak.observe(ms(40), true, ms(1_000));
        expect(&peak, ms(990), 40_000);
        peak.observe(ms(10), true, ms(990));
        expect(&peak, ms(1_000), 40_000);
    }

    #[test]
    fn milliseconds_beyond_32_bits_go_on() {
        let before = ms((1 << 32) - 5_000);
        let peak = Peak::start(before);
        expect(&peak, before + ms(10_000), 11_036);
    }

    proptest! {
        /// Whatever is measured, the average is between the least and the greatest of it, or below for want of it.
        #[test]
        fn the_average_stays_within_what_was_measured(
            steps in prop::collection::vec((0_u64..100_000_000, any::<bool>(), 0_u64..30_000), 1..50),
        ) {
            let (mut now, mut most) = (ms(0), 30_000);
            let peak = Peak::start(now);
            for (micros, success, millis) in steps {
                now += ms(millis);
                peak.observe(Duration::from_micros(micros), success, now);
                most = most.max(micros);
                let found = u64::from(peak.micros(now));
                prop_assert!(found >= 1 && found <= most + most / 1000 + 1, "{} of {}", found, most);
                if micros > found {
                    prop_assert!(micros - found <= micros / 1000 + 1, "a rise is taken at once");
                }
            }
        }
    }
}
