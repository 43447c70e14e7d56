use heddle_plugin::{Endpoint, Random, Slot};
use xxhash_rust::xxh64::xxh64;

use crate::Table;

/// Points that an endpoint of mean weight has on a ring with room: as many as in libketama and nginx. The share of an
/// endpoint then differs by about 8 % (one over the root of 160) from what its weight says.
const POINTS: u64 = 160;

/// The most points on a ring, a mebibyte of them, unless there are more endpoints. With more than 819 endpoints each
/// has fewer points than [`POINTS`], and the shares differ more.
const MOST_POINTS: u64 = 1 << 17;

/// Consistent hashing (Karger and others, "Consistent Hashing and Random Trees", STOC 1997): each endpoint has points
/// on a circle of 2^32 places, in number proportional to its weight; a key belongs to the first point at or after its
/// own place.
///
/// An endpoint's points are the first numbers of [`Random`] (SplitMix64) from the XXH64 (seed 0) of its id on: the same
/// in every proxy, on every machine, in every version. An endpoint that comes or goes takes its own keys; where it is
/// heavier or lighter than the mean, the others lose or gain points in turn, and as many keys again may move between
/// them.
#[derive(Debug, Default)]
pub struct Ring {
    /// By rising place.
    points: Vec<Point>,
}

#[derive(Debug)]
struct Point {
    place: u32,
    slot: Slot,
}

impl Table for Ring {
    fn new<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Self {
        let mut endpoints: Vec<&Endpoint> = endpoints.collect();
        // Points at the same place stay in this order, which does not depend on slots: these differ between proxies.
        endpoints.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let count = endpoints.len() as u64;
        let all_points = (count * POINTS).min(MOST_POINTS);
        let all_weights: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        let mut points = Vec::with_capacity((all_points + count) as usize);
        for endpoint in endpoints {
            let share = (u64::from(endpoint.weight) * all_points + all_weights / 2) / all_weights;
            let mut numbers = Random::new(xxh64(endpoint.id.as_bytes(), 0));
            points.extend((0..share.max(1)).map(|_| Point { place: place(numbers.next_u64()), slot: endpoint.slot }));
        }
        points.sort_by_key(|point| point.place);
        Self { points }
    }

    fn from(&self, hash: u64) -> impl Iterator<Item = Slot> {
        let place = place(hash);
        let first = self.points.partition_point(|point| point.place < place);
        let (before, after) = self.points.split_at(first);
        after.iter().chain(before).map(|point| point.slot)
    }
}

fn place(hash: u64) -> u32 {
    (hash >> 32) as u32
}
