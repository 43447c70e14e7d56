//! What happened in a run: every event goes into a hash, and the last ones are kept to be shown.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use heddle::policy::{Kind, Role};

use super::machine::Trouble;

/// One event. Two runs of a seed must have the same.
#[derive(Debug, Clone, Hash)]
pub enum Note {
    Arrived {
        request: u64,
        worker: usize,
    },
    Attempt {
        request: u64,
        machine: usize,
        slot: u32,
        probe: bool,
        panic: bool,
    },
    /// A kind as its number in the contract.
    Ended {
        request: u64,
        machine: usize,
        kind: u32,
        status: Option<u16>,
        micros: u64,
    },
    Again {
        request: u64,
        delay: Duration,
    },
    /// With this status; none where the client did not wait.
    Answered {
        request: u64,
        status: Option<u16>,
        attempts: u32,
    },
    Trouble {
        machine: usize,
        trouble: Option<Trouble>,
    },
    Registered {
        machine: usize,
        weight: Option<u32>,
    },
    Check {
        machine: usize,
        passed: bool,
    },
    Policy {
        number: u8,
        in_force: bool,
    },
    /// Endpoints that may be picked, and those that are ejected or half-open.
    Endpoints {
        version: u64,
        eligible: usize,
        out: usize,
        panic: bool,
    },
    Service {
        state: u64,
    },
}

impl Note {
    pub fn ended(request: u64, machine: usize, kind: Kind, status: Option<u16>, after: Duration) -> Self {
        Self::Ended { request, machine, kind: kind as u32, status, micros: after.as_micros() as u64 }
    }

    pub fn policy(role: Role, in_force: bool) -> Self {
        Self::Policy { number: role as u8, in_force }
    }
}

/// How many of the last events are shown when something is wrong.
const SHOWN: usize = 60;

pub struct Journal {
    hasher: DefaultHasher,
    last: VecDeque<(Duration, Note)>,
    /// Whether everything is printed at once.
    aloud: bool,
}

impl Journal {
    pub fn new(aloud: bool) -> Self {
        // The hasher without keys is the same in every process.
        Self { hasher: DefaultHasher::new(), last: VecDeque::with_capacity(SHOWN), aloud }
    }

    pub fn note(&mut self, now: Duration, note: Note) {
        (now, &note).hash(&mut self.hasher);
        if self.aloud {
            println!("{:>12.6} {note:?}", now.as_secs_f64());
        }
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back((now, note));
    }

    /// Of everything so far.
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last events, a line each.
    pub fn last(&self) -> String {
        self.last.iter().map(|(at, note)| format!("{:>12.6} {note:?}\n", at.as_secs_f64())).collect()
    }
}
