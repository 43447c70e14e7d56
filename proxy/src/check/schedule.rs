//! Which check is due when.
//!
//! The first check of an endpoint comes at a random moment of the interval, and each wait is shortened by up to a tenth
//! at random: endpoints that come at once are not checked at once, and proxies that start together do not stay
//! together. Waits are only ever shortened, so that an interval is a promise. An endpoint that is out of use is checked
//! `rise` times an interval, which is what lets it be back within one interval of being well.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::checked::HealthCheck;

/// One endpoint's place in the schedule; never given out twice.
pub type Ticket = u64;

/// Parts of an interval that a random number chooses from.
const PARTS: u32 = 1 << 16;

/// Checks to come, by their time.
pub struct Schedule {
    queue: BinaryHeap<Reverse<(Instant, Ticket)>>,
    random: Random,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self { queue: BinaryHeap::new(), random: Random(seed) }
    }

    /// Plans a check that follows no other: at a random moment of this time. Returns the moment.
    pub fn begin(&mut self, ticket: Ticket, now: Instant, within: Duration) -> Instant {
        let at = now + within / PARTS * self.random.part();
        self.queue.push(Reverse((at, ticket)));
        at
    }

    /// Plans the check that follows one that began then: at most `wait` later, but not before now. Returns the moment.
    pub fn follow(&mut self, ticket: Ticket, began: Instant, now: Instant, wait: Duration) -> Instant {
        let shorter = wait / 10 / PARTS * self.random.part();
        let at = now.max(began + wait.saturating_sub(shorter));
        self.queue.push(Reverse((at, ticket)));
        at
    }

    /// When the next check is due.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes a check that is due, with the moment that it was planned for: what was planned anew since stays in the queue,
    /// and is for the caller to pass over.
    pub fn take_due(&mut self, now: Instant) -> Option<(Instant, Ticket)> {
        self.next().filter(|at| *at <= now)?;
        self.queue.pop().map(|Reverse(planned)| planned)
    }
}

/// From one check of an endpoint to the next, at most.
pub fn wait(settings: &HealthCheck, is_out: bool) -> Duration {
    if is_out { settings.interval / settings.rise.max(1) } else { settings.interval }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to [`PARTS`].
    fn part(&mut self) -> u32 {
        self.next() as u32 % (PARTS + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::checked::CheckKind;

    const INTERVAL: Duration = Duration::from_secs(2);

    #[test]
    fn checks_are_taken_when_they_are_due_and_in_order() {
        let now = Instant::now();
        let mut schedule = Schedule::new(1);
        assert_eq!((schedule.next(), schedule.take_due(now)), (None, None));
        for ticket in 0..1000 {
            schedule.begin(ticket, now, INTERVAL);
        }
        let mut taken = Vec::new();
        while let Some(at) = schedule.next() {
            assert_eq!(schedule.take_due(at - Duration::from_nanos(1)), None);
            taken.push(schedule.take_due(at).expect("it is due"));
        }
        assert_eq!(taken.len(), 1000);
        assert!(taken.is_sorted_by_key(|(at, _)| *at));
        // Spread over the interval: each tenth of it has about a hundred.
        for tenth in 0..10 {
            let part = |at: Instant| (at - now).as_millis() / (INTERVAL / 10).as_millis();
            let count = taken.iter().filter(|(at, _)| part(*at) == tenth).count();
            assert!((50..=150).contains(&count), "{count} in tenth {tenth}");
        }
    }

    #[test]
    fn who_is_out_is_checked_as_often_as_it_takes_to_be_back_within_an_interval() {
        let settings =
            HealthCheck { kind: CheckKind::Tcp, interval: INTERVAL, timeout: Duration::from_secs(1), rise: 4, fall: 3 };
        assert_eq!((wait(&settings, false), wait(&settings, true)), (INTERVAL, INTERVAL / 4));
    }

    proptest! {
        #[test]
        fn waits_are_shortened_by_a_tenth_at_most(seed: u64, millis in 10_u64..3_600_000, late in 0_u64..7_200_000) {
            let (began, wait) = (Instant::now(), Duration::from_millis(millis));
            let mut schedule = Schedule::new(seed);
            let first = schedule.begin(1, began, wait);
            prop_assert!(first >= began && first <= began + wait);
            let next = schedule.follow(1, began, began, wait);
            prop_assert!(next >= began + wait - wait / 10 && next <= began + wait);
            let now = began + Duration::from_millis(late);
            let next = schedule.follow(1, began, now, wait);
            prop_assert!(next >= now && next <= now.max(began + wait));
        }
    }
}
