use xxhash_rust::xxh64::xxh64;

use super::Registration;

/// As in the crate `hash-ring` of the plugins, which says why.
const POINTS: u64 = 160;
const MOST_POINTS: u64 = 1 << 17;

/// The starts of the points on the circle, rising, and whose they are: those that the policies `url-hash` and `ip-hash`
/// have.
pub fn points(mut registered: Vec<Registration<'_>>) -> (Vec<u32>, Vec<u32>) {
    registered.sort_unstable_by(|one, other| one.id.cmp(other.id));
    let count = registered.len() as u64;
    let all_points = (count * POINTS).min(MOST_POINTS);
    let all_weights: u64 = registered.iter().map(|of| u64::from(of.weight)).sum::<u64>().max(1);
    let mut points = Vec::new();
    for of in registered {
        let share = (u64::from(of.weight) * all_points + all_weights / 2) / all_weights;
        let mut random = SplitMix(xxh64(of.id.as_bytes(), 0));
        points.extend((0..share.max(1)).map(|_| (place(random.next()), of.slot)));
    }
    points.sort_by_key(|(start, _)| *start);
    points.into_iter().unzip()
}

/// The place of the first point at or after a key's own.
pub fn first(starts: &[u32], hash: u64) -> usize {
    starts.partition_point(|start| *start < place(hash))
}

fn place(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// SplitMix64, as the SDK's `Random`.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }
}
