//! Live counters of endpoints, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use super::peak::Peak;
use crate::policy::Health;

/// Slots in one block; four cache lines for each counter.
const BLOCK: usize = 64;

/// The counters of 64 neighbouring slots.
#[derive(Debug)]
struct Block {
    in_flight: [AtomicU32; BLOCK],
    latency: [AtomicU32; BLOCK],
    connections: [AtomicU32; BLOCK],
    peak: [Peak; BLOCK],
}

impl Block {
    fn new() -> Arc<Self> {
        let zeroes = || std::array::from_fn(|_| AtomicU32::new(0));
        let peak = std::array::from_fn(|_| Peak::start(Duration::ZERO));
        Arc::new(Self { in_flight: zeroes(), latency: zeroes(), connections: zeroes(), peak })
    }
}

/// One endpoint's counters.
#[derive(Debug, Clone)]
pub struct Load {
    block: Arc<Block>,
    index: usize,
}

impl Load {
    #[expect(clippy::indexing_slicing, reason = "an index modulo the array's length")]
    fn counter<T>(of: &[T; BLOCK], index: usize) -> &T {
        &of[index % BLOCK]
    }

    /// Counters of a target that belongs to no service.
    pub fn alone() -> Self {
        Self { block: Block::new(), index: 0 }
    }

    /// Requests under way at the endpoint, over all workers.
    pub fn in_flight(&self) -> u32 {
        Self::counter(&self.block.in_flight, self.index).load(Relaxed)
    }

    /// Counts a request as under way until the guard is dropped.
    pub fn begin(&self) -> InFlight {
        Self::counter(&self.block.in_flight, self.index).fetch_add(1, Relaxed);
        InFlight { load: self.clone() }
    }

    /// The same, unless `limit` requests are under way already; without a limit, always. Like the endpoint's health this
    /// is asked after the pick: who is not admitted looks for another endpoint.
    pub fn try_begin(&self, limit: Option<u32>) -> Option<InFlight> {
        let Some(limit) = limit else { return Some(self.begin()) };
        let in_flight = Self::counter(&self.block.in_flight, self.index);
        let begun = in_flight.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).is_ok();
        begun.then(|| InFlight { load: self.clone() })
    }

    /// A moving average of the time to the response head, in microseconds; 0 before the first.
    pub fn latency_micros(&self) -> u32 {
        Self::counter(&self.block.latency, self.index).load(Relaxed)
    }

    /// Takes a time to the response head into the average, with a weight of one eighth (as TCP smooths its round-trip
    /// time, RFC 6298, 2.3). Two workers that do so at once may lose one of the two: it is an average.
    pub fn observe_latency(&self, micros: u32) {
        let average = Self::counter(&self.block.latency, self.index);
        let old = average.load(Relaxed);
        let new = if old == 0 { micros } else { old - old / 8 + micros / 8 };
        average.store(new.max(1), Relaxed);
    }

    /// The peak average of the time to the response head, as it is at this time, in microseconds, at least 1: it rises at
    /// once, falls with time, and starts at 30 ms.
    pub fn peak_micros(&self, now: Duration) -> u32 {
        Self::counter(&self.block.peak, self.index).micros(now)
    }

    /// Takes an attempt into the peak average that has ended after this time. Only a success makes it fall.
    pub fn observe_peak(&self, latency: Duration, health: Health, now: Duration) {
        Self::counter(&self.block.peak, self.index).observe(latency, health == Health::Success, now);
    }

    /// Connections open to the endpoint, over all workers.
    pub fn connections(&self) -> u32 {
        Self::counter(&self.block.connections, self.index).load(SeqCst)
    }

    /// Counts a connection, unless there are `limit` already. In one order with the line of those who wait for one; see
    /// [`crate::service::Connections`].
    pub(super) fn try_connect(&self, limit: u32) -> bool {
        let connections = Self::counter(&self.block.connections, self.index);
        connections.fetch_update(SeqCst, SeqCst, |n| (n < limit).then(|| n + 1)).is_ok()
    }

    /// A connection that was counted has ended.
    pub(super) fn disconnected(&self) {
        Self::counter(&self.block.connections, self.index).fetch_sub(1, SeqCst);
    }

    /// What no other endpoint's counters are called at the same time.
    pub(super) fn key(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.block).addr(), self.index)
    }

    /// Whether these are the counters of the same endpoint.
    pub fn is_same(&self, other: &Self) -> bool {
        self.index == other.index && Arc::ptr_eq(&self.block, &other.block)
    }

    fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.connections() == 0
    }
}

/// A request under way at an endpoint.
#[derive(Debug)]
pub struct InFlight {
    load: Load,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        Load::counter(&self.load.block.in_flight, self.load.index).fetch_sub(1, Relaxed);
    }
}

/// The counters of one service, which grow with its slots and never move.
#[derive(Debug, Clone, Default)]
pub(super) struct LoadTable {
    blocks: Vec<Arc<Block>>,
}

impl LoadTable {
    /// The counters of a slot.
    #[expect(clippy::indexing_slicing, reason = "the blocks have just been made to reach that far")]
    pub(super) fn slot(&mut self, slot: usize) -> Load {
        let number = slot / BLOCK;
        while self.blocks.len() <= number {
            self.blocks.push(Block::new());
        }
        Load { block: self.blocks[number].clone(), index: slot % BLOCK }
    }

    /// Whether nothing of an earlier holder of the slot is still under way.
    pub(super) fn is_idle(&mut self, slot: usize) -> bool {
        self.slot(slot).is_idle()
    }

    /// Resets what an earlier holder of the slot left behind; the next one comes now.
    pub(super) fn reset(&mut self, slot: usize, now: Duration) {
        let load = self.slot(slot);
        Load::counter(&load.block.latency, slot % BLOCK).store(0, Relaxed);
        Load::counter(&load.block.peak, slot % BLOCK).reset(now);
    }

    /// Requests under way of the first `slots` slots, in order.
    pub(super) fn in_flight(&self, slots: usize) -> Vec<u32> {
        self.collect(slots, |block| &block.in_flight)
    }

    /// Latency averages of the first `slots` slots, in order.
    pub(super) fn latency(&self, slots: usize) -> Vec<u32> {
        self.collect(slots, |block| &block.latency)
    }

    fn collect(&self, slots: usize, of: impl Fn(&Block) -> &[AtomicU32; BLOCK]) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.blocks.len() * BLOCK);
        for block in &self.blocks {
            out.extend(of(block).iter().map(|n| n.load(Relaxed)));
        }
        out.truncate(slots);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_until_its_guard_is_dropped() {
        let mut table = LoadTable::default();
        let load = table.slot(70);
        let guard = load.begin();
        assert_eq!(table.in_flight(71)[70], 1);
        assert!(!table.is_idle(70));
        drop(guard);
        assert_eq!(load.in_flight(), 0);
        assert!(table.is_idle(70));
    }

    #[test]
    fn requests_stop_at_the_limit() {
        let load = LoadTable::default().slot(0);
        let first = load.try_begin(Some(1)).expect("there is room");
        assert!(load.try_begin(Some(1)).is_none());
        assert!(load.try_begin(None).is_some());
        drop(first);
        assert!(load.try_begin(Some(1)).is_some());
    }

    #[test]
    fn connections_stop_at_the_limit() {
        let load = LoadTable::default().slot(0);
        assert!(load.try_connect(1));
        assert!(!load.try_connect(1));
        load.disconnected();
        assert!(load.try_connect(1));
    }

    #[test]
    fn the_latency_average_moves_towards_what_is_observed() {
        let load = LoadTable::default().slot(3);
        load.observe_latency(800);
        assert_eq!(load.latency_micros(), 800);
        for _ in 0..100 {
            load.observe_latency(80);
        }
        assert!(load.latency_micros() < 100, "{}", load.latency_micros());
    }

    #[test]
    fn only_a_success_makes_the_peak_average_fall_and_a_new_holder_starts_anew() {
        let (mut table, at) = (LoadTable::default(), Duration::from_secs);
        let load = table.slot(65);
        load.observe_peak(Duration::from_millis(80), Health::Unknown, at(1));
        load.observe_peak(Duration::from_millis(1), Health::Unknown, at(50));
        assert_eq!(load.peak_micros(at(50)), 80_000);
        load.observe_peak(Duration::from_millis(1), Health::Success, at(60));
        assert!(load.peak_micros(at(60)) < 31_000);
        table.reset(65, at(100));
        assert_eq!(load.peak_micros(at(100)), 30_000);
    }
}
