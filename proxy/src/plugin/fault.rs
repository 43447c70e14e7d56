//! What a guest did wrong, and how often.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::seldom::Seldom;

/// Kinds of faults, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The guest trapped: a panic, an access out of bounds, a stack overflow.
    Trap,
    /// A call took longer than its budget of CPU time.
    Deadline,
    /// The guest trapped after it was refused memory beyond its bound.
    Memory,
    /// An instance could not be made.
    Instance,
    /// `configure` answered an error for a configuration that it had accepted when it was loaded.
    Configure,
    /// A decision was made natively, as the service had used its share of the worker's CPU time.
    Share,
    /// The guest trapped, or was not made, as all guests together may have no more memory.
    MemoryTotal,
}

impl FaultKind {
    pub const ALL: [Self; 7] =
        [Self::Trap, Self::Deadline, Self::Memory, Self::Instance, Self::Configure, Self::Share, Self::MemoryTotal];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Instance => "instance",
            Self::Configure => "configure",
            Self::Share => "share",
            Self::MemoryTotal => "memory_total",
        }
    }

    /// Whether it adds up to a quarantine. What depends on the load of the proxy does not.
    pub(super) fn condemns(self) -> bool {
        !matches!(self, Self::Share | Self::MemoryTotal)
    }
}

/// A call that failed, with what is known of the cause.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Fault {
    pub kind: FaultKind,
    pub cause: String,
    /// What it cost its worker: 1, but for a change that took too long as many decisions' budgets as its own holds.
    pub weight: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.cause)
    }
}

/// A longer text is cut here, in bytes.
const LINE_LENGTH: usize = 1024;

/// A text that a guest or its file had a say in, as one line of a log: no longer than it may be, and without what would
/// begin another line.
pub(super) fn one_line(text: &str) -> String {
    let text = text.get(..text.floor_char_boundary(LINE_LENGTH)).unwrap_or_default();
    text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What wasmtime says of an error, the cause before the circumstances, with names as they stand in the source.
pub(super) fn reason(error: &wasmtime::Error) -> String {
    let (cause, context) = (error.root_cause().to_string(), error.to_string());
    one_line(&demangled(&if cause == context { cause } else { format!("{cause}; {context}") }))
}

/// The text with Rust's mangled symbols (`_ZN...E` and `_R...`) as they are written in the source, without hashes.
fn demangled(text: &str) -> String {
    let is_of_symbol = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_symbol) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_of_symbol(c)).unwrap_or(from.len()));
        out.push_str(before);
        match rustc_demangle::try_demangle(word) {
            Ok(name) => out.push_str(&format!("{name:#}")),
            Err(_) => out.push_str(word),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Faults within this time add up.
const WINDOW: Duration = Duration::from_secs(10);

/// Faults that a generation's log holds; older ones are forgotten before their time.
const HELD: usize = 4096;

/// How many faults there were of each kind, over all workers, services and generations of a policy.
#[derive(Debug, Default)]
pub struct FaultCounts([AtomicU64; FaultKind::ALL.len()]);

impl FaultCounts {
    pub(super) fn add(&self, kind: FaultKind) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Since the start of the process.
    pub fn get(&self, kind: FaultKind) -> u64 {
        self.0.get(kind as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Which faults of a policy are logged: one of each kind a second, so that no kind hides another.
#[derive(Debug, Default)]
pub(super) struct FaultLines(Mutex<[Seldom; FaultKind::ALL.len()]>);

impl FaultLines {
    /// Counts one more: how many there were of the kind since the last line about it, if there is to be another now.
    pub fn count(&self, kind: FaultKind, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get_mut(kind as usize)?.count(now)
    }
}

/// The faults of a generation within the last 10 s, over all workers, by the service whose instance was at fault.
#[derive(Debug, Default)]
pub struct FaultLog {
    recent: Mutex<VecDeque<Recent>>,
}

#[derive(Debug)]
struct Recent {
    at: Instant,
    service: Arc<str>,
    weight: usize,
}

impl FaultLog {
    /// Records one more: the weight of the service's faults within the last 10 s, this one included.
    pub(super) fn record(&self, service: &Arc<str>, weight: usize, now: Instant) -> usize {
        let mut recent = self.recent(now);
        if recent.len() >= HELD {
            recent.pop_front();
        }
        recent.push_back(Recent { at: now, service: service.clone(), weight });
        let of_service = recent.iter().filter(|fault| fault.service == *service);
        of_service.fold(0, |sum: usize, fault| sum.saturating_add(fault.weight))
    }

    /// Forgets what would add up: a service, or all of them where none is named, starts anew with the generation.
    pub(super) fn forgive(&self, service: Option<&str>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|fault| service.is_some_and(|service| *fault.service != *service));
    }

    /// Whether there was none within the last 10 s.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        self.recent(now).is_empty()
    }

    fn recent(&self, now: Instant) -> std::sync::MutexGuard<'_, VecDeque<Recent>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|fault| now.saturating_duration_since(fault.at) > WINDOW) {
            recent.pop_front();
        }
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one() {
        assert_eq!(one_line("a\n  b\r\n\u{1b}[31mc"), "a b [31mc");
        assert_eq!(one_line(&"ü".repeat(2_000)).len(), 1_024);
    }

    #[test]
    fn only_faults_of_the_last_ten_seconds_add_up() {
        let (log, start, users) = (FaultLog::default(), Instant::now(), "users".into());
        assert_eq!(log.record(&users, 1, start), 1);
        assert_eq!(log.record(&users, 1, start + Duration::from_millis(900)), 2);
        assert!(!log.is_quiet(start + Duration::from_millis(10_500)));
        assert_eq!(log.record(&users, 10, start + Duration::from_millis(10_500)), 11);
        assert!(log.is_quiet(start + Duration::from_secs(21)));
    }

    /// Issue 10, 8: what adds up is one service's faults, not those of all.
    #[test]
    fn faults_of_one_service_do_not_add_up_with_those_of_another() {
        let (log, now): (_, Instant) = (FaultLog::default(), Instant::now());
        let (users, carts): (Arc<str>, Arc<str>) = ("users".into(), "carts".into());
        assert_eq!([&users, &carts, &users, &users].map(|of| log.record(of, 1, now)), [1, 1, 2, 3]);
        log.forgive(Some("users"));
        assert_eq!([&users, &carts].map(|of| log.record(of, 1, now)), [1, 2]);
        log.forgive(None);
        assert!(log.is_quiet(now));
    }

    /// Issue 10, 17: a trap hides neither a loop nor an allocation from the log.
    #[test]
    fn each_kind_has_a_line_a_second() {
        let (lines, now) = (FaultLines::default(), Instant::now());
        let kinds = [FaultKind::Trap, FaultKind::Deadline, FaultKind::Memory, FaultKind::Trap, FaultKind::Trap];
        assert_eq!(kinds.map(|kind| lines.count(kind, now)), [Some(1), Some(1), Some(1), None, None]);
        assert_eq!(lines.count(FaultKind::Trap, now + Duration::from_secs(1)), Some(3));
    }

    /// Issue 10, 17: a fault names functions as their author does.
    #[test]
    fn symbols_are_demangled() {
        let text = "0: 0x1f - <unknown>!_ZN11round_robin10RoundRobin4pick17h05af221e174051e9E, 1: pick";
        assert_eq!(demangled(text), "0: 0x1f - <unknown>!round_robin::RoundRobin::pick, 1: pick");
        assert_eq!(demangled("!_RNvNtCs1234_7mycrate3foo3bar ü"), "!mycrate::foo::bar ü");
        assert_eq!(demangled("_Z no symbol _R"), "_Z no symbol _R");
    }
}
