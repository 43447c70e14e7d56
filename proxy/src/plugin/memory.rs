//! How much memory guests have: each, those of one service, and all together.
//!
//! An instance has a bound of its own. But a proxy has an instance for each service on each worker, so all of them also
//! share a total, by default half of the memory that the process may have. Two rules keep it from being a way to harm
//! others:
//!
//! - A service's guests may take as much as is left at that moment, and no more (the dynamic thresholds of shared buffers:
//!   Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998). One service that
//!   takes all it can thus stops at half of the total, two at a third each, and a service with small guests always finds
//!   room.
//! - The memory that a module declares counts from 2 MiB on; Rust's modules declare a little over 1 MiB, mostly a stack
//!   that is never touched, and a proxy with a thousand services would seem to need a gibibyte for 25 MiB. Up to there it
//!   counts only while the process really holds more memory than the total.
//!
//! What is refused is not held against the policy: it depends on what others have.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use wasmtime::{ResourceLimiter, Result};

use crate::service::Fleet;

/// Tables hold function pointers; the largest plugins have a few thousand.
pub(super) const TABLE_ELEMENTS: usize = 100_000;

/// What an element of a table takes, in bytes.
const ELEMENT: usize = 16;

/// A module's declared memory counts from here on, in bytes.
const DECLARED_FREE: usize = 2 << 20;

/// The memory of all guests.
#[derive(Debug)]
pub(super) struct GuestMemory {
    limit: usize,
    /// Beyond what is declared and counts for little.
    used: AtomicUsize,
    declared: AtomicUsize,
}

impl GuestMemory {
    pub fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0), declared: AtomicUsize::new(0) }
    }

    /// Bytes that guests have, those included that they have never touched.
    pub fn bytes(&self) -> usize {
        self.used.load(Relaxed).saturating_add(self.declared.load(Relaxed))
    }

    fn take(&self, n: usize, of_service: &AtomicUsize) -> bool {
        let held = of_service.load(Relaxed);
        let fits = |used: usize| {
            let left = self.limit.saturating_sub(used);
            (n <= left && held.saturating_add(n) <= left).then(|| used.saturating_add(n))
        };
        let taken = n == 0 || self.used.fetch_update(Relaxed, Relaxed, fits).is_ok();
        if taken {
            of_service.fetch_add(n, Relaxed);
        }
        taken
    }

    fn declare(&self, n: usize, resident: impl FnOnce() -> Option<usize>) -> bool {
        let declared = self.declared.fetch_add(n, Relaxed).saturating_add(n);
        let is_much = self.used.load(Relaxed).saturating_add(declared) > self.limit;
        let fits = !is_much || resident().is_none_or(|resident| resident <= self.limit);
        if !fits {
            self.declared.fetch_sub(n, Relaxed);
        }
        fits
    }
}

/// Bytes of this process that are in memory (proc_pid_status(5)).
fn resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Which bound a guest ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    Own,
    Table,
    Total,
}

/// Bounds a guest's memory, all that it has together, and remembers when it asked for more.
pub(super) struct MemoryBound {
    bytes_left: usize,
    elements_left: usize,
    pub exceeded: Option<Exceeded>,
    all: Arc<GuestMemory>,
    fleet: Arc<Fleet>,
    taken: usize,
    declared: usize,
}

impl MemoryBound {
    /// Of so many bytes for an instance of a service.
    pub fn new(bytes: usize, all: &Arc<GuestMemory>, fleet: &Arc<Fleet>) -> Self {
        Self {
            bytes_left: bytes,
            elements_left: TABLE_ELEMENTS,
            exceeded: None,
            all: all.clone(),
            fleet: fleet.clone(),
            taken: 0,
            declared: 0,
        }
    }

    fn take(&mut self, n: usize) -> bool {
        let taken = self.all.take(n, &self.fleet.guest_memory);
        self.taken += if taken { n } else { 0 };
        taken
    }

    fn grant(&mut self, granted: bool, otherwise: Exceeded) -> bool {
        if !granted {
            self.exceeded = Some(otherwise);
        }
        granted
    }
}

impl Drop for MemoryBound {
    fn drop(&mut self) {
        self.all.used.fetch_sub(self.taken, Relaxed);
        self.fleet.guest_memory.fetch_sub(self.taken, Relaxed);
        self.all.declared.fetch_sub(self.declared, Relaxed);
    }
}

impl ResourceLimiter for MemoryBound {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let n = desired.saturating_sub(current);
        if n > self.bytes_left {
            return Ok(self.grant(false, Exceeded::Own));
        }
        let free = if current == 0 { n.min(DECLARED_FREE.saturating_sub(self.declared)) } else { 0 };
        let granted = self.take(n - free) && (free == 0 || self.all.declare(free, resident));
        if granted {
            self.bytes_left -= n;
            self.declared += free;
        }
        Ok(self.grant(granted, Exceeded::Total))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let n = desired.saturating_sub(current);
        if n > self.elements_left {
            return Ok(self.grant(false, Exceeded::Table));
        }
        let granted = self.take(n.saturating_mul(ELEMENT));
        if granted {
            self.elements_left -= n;
        }
        Ok(self.grant(granted, Exceeded::Total))
    }

    fn memories(&self) -> usize {
        4
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::checked::Ejection;

    fn fleet(name: &str) -> Arc<Fleet> {
        Arc::new(Fleet::new(name.into(), Ejection { max_percent: 10, panic_percent: 0 }, Clock::running()))
    }

    const MIB: usize = 1 << 20;

    #[test]
    fn all_memories_of_a_guest_share_one_bound() {
        let mut bound = MemoryBound::new(3 << 16, &Arc::new(GuestMemory::new(MIB)), &fleet("users"));
        assert!(bound.memory_growing(0, 1 << 16, None).unwrap());
        assert!(bound.memory_growing(0, 1 << 16, None).unwrap());
        assert!(!bound.memory_growing(1 << 16, 3 << 16, None).unwrap());
        assert_eq!(bound.exceeded, Some(Exceeded::Own));
        assert!(bound.memory_growing(1 << 16, 2 << 16, None).unwrap());
        assert!(!bound.memory_growing(0, 1 << 16, None).unwrap());
    }

    /// Issue 10, 9: one service stops at half of the total, another still finds room, and what is dropped is free again.
    #[test]
    fn guests_of_one_service_leave_room_for_those_of_others() {
        let (all, users, carts) = (Arc::new(GuestMemory::new(64 * MIB)), fleet("users"), fleet("carts"));
        let take = |fleet: &Arc<Fleet>| {
            let mut bounds = Vec::new();
            for _ in 0..100 {
                let mut bound = MemoryBound::new(64 * MIB, &all, fleet);
                if !bound.memory_growing(MIB, 5 * MIB, None).unwrap() {
                    assert_eq!(bound.exceeded, Some(Exceeded::Total));
                    break;
                }
                bounds.push(bound);
            }
            bounds
        };
        let hog = take(&users);
        assert_eq!((hog.len(), take(&carts).len()), (8, 4), "4 MiB each");
        drop(hog);
        assert_eq!(all.bytes(), 0);
        assert_eq!(take(&carts).len(), 8);
    }

    #[test]
    fn what_is_only_declared_counts_while_the_process_is_large() {
        let all = GuestMemory::new(4 * MIB);
        assert!((0..100).all(|_| all.declare(MIB, || Some(4 * MIB))));
        assert!(!all.declare(MIB, || Some(4 * MIB + 1)));
        assert_eq!(all.bytes(), 100 * MIB);
        let bound = &mut MemoryBound::new(64 * MIB, &Arc::new(GuestMemory::new(8 * MIB)), &fleet("users"));
        assert!(!bound.memory_growing(0, 11 * MIB, None).unwrap(), "9 MiB more than what counts for little");
    }
}
