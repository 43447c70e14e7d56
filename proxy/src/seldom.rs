//! Saying something that goes on happening at most once a second.

use std::time::{Duration, Instant};

/// The time between two.
const PAUSE: Duration = Duration::from_secs(1);

/// What happens again and again, and is worth a line only now and then.
#[derive(Debug, Default)]
pub struct Seldom {
    said: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Counts it once more: how often it has happened since it was said last, if it is to be said now.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        self.unsaid = self.unsaid.saturating_add(1);
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < PAUSE) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_second_with_all_that_were_not() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let said: Vec<Option<u64>> =
            [0, 1, 999, 1000, 1001, 5000].map(|after| seldom.count(start + Duration::from_millis(after))).into();
        assert_eq!(said, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
