//! What is to happen, in the order of time, and of events of the same time in the order in which they were planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

struct Planned<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Planned<E> {
    fn key(&self) -> Reverse<(Duration, u64)> {
        Reverse((self.at, self.number))
    }
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Planned<E> {}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Planned<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

pub struct Queue<E> {
    planned: BinaryHeap<Planned<E>>,
    numbers: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { planned: BinaryHeap::new(), numbers: 0 }
    }
}

impl<E> Queue<E> {
    pub fn plan(&mut self, at: Duration, event: E) {
        self.numbers += 1;
        self.planned.push(Planned { at, number: self.numbers, event });
    }

    pub fn next(&mut self) -> Option<(Duration, E)> {
        self.planned.pop().map(|Planned { at, event, .. }| (at, event))
    }
}
