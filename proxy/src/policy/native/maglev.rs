use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use xxhash_rust::xxh64::xxh64;

use super::Registration;

/// As in the plugin `maglev`, which says why.
const PLACES: usize = 65_537;

const FREE: u32 = u32::MAX;

/// When the endpoints of one weight have their next turn.
#[derive(PartialEq, Eq)]
struct Turn {
    /// Times two and times the weight.
    due: u64,
    weight: u32,
    members: Range<usize>,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let (this, that) = (self.due * u64::from(other.weight), other.due * u64::from(self.weight));
        this.cmp(&that).then(other.weight.cmp(&self.weight))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Which slot has which place: the table of the policy `maglev`. Empty where nobody is registered.
pub fn places(mut registered: Vec<Registration<'_>>) -> Vec<u32> {
    registered.sort_unstable_by(|one, other| other.weight.cmp(&one.weight).then_with(|| one.id.cmp(other.id)));
    let mut turns = BinaryHeap::new();
    let mut start = 0;
    for same in registered.chunk_by(|one, other| one.weight == other.weight) {
        let weight = same.first().map_or(1, |of| of.weight);
        turns.push(Reverse(Turn { due: 0, weight, members: start..start + same.len() }));
        start += same.len();
    }
    // Each one's next place in its permutation, and the way to the one after.
    let mut permutations: Vec<(usize, usize)> = registered
        .iter()
        .map(|of| {
            let hash = |seed| xxh64(of.id.as_bytes(), seed);
            ((hash(0) % PLACES as u64) as usize, (hash(1) % (PLACES as u64 - 1)) as usize + 1)
        })
        .collect();
    let (mut places, mut free) = (vec![FREE; PLACES], PLACES);
    while free > 0 {
        let Some(mut turn) = turns.peek_mut() else { break };
        for member in turn.0.members.clone() {
            let (Some((next, skip)), Some(of)) = (permutations.get_mut(member), registered.get(member)) else {
                continue;
            };
            // It ends, as a permutation comes by every place, and one is free.
            while free > 0 {
                let place = *next;
                *next = (*next + *skip) % PLACES;
                if let Some(place) = places.get_mut(place).filter(|place| **place == FREE) {
                    *place = of.slot;
                    free -= 1;
                    break;
                }
            }
        }
        turn.0.due = if turn.0.due == 0 { 3 } else { turn.0.due + 2 };
    }
    places.retain(|place| *place != FREE);
    places
}

/// The place of a key.
pub fn first(places: &[u32], hash: u64) -> usize {
    (hash % (places.len() as u64).max(1)) as usize
}
