//! The service that a new generation is tried with: one that a guest cannot tell from a real one.
//!
//! A policy that behaves while it is tried and not afterwards would pass any probe, so nothing about this service says what
//! it is: its name, its endpoints and its requests are drawn anew each time, and look as those of a fleet do.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::checked::Ejection;
use crate::policy::Facts;
use crate::registry::{Change, Registered};
use crate::service::Fleet;

const NAMES: [&str; 16] = [
    "accounts",
    "auth",
    "billing",
    "catalog",
    "checkout",
    "events",
    "inventory",
    "invoices",
    "ledger",
    "mail",
    "media",
    "notifications",
    "payments",
    "profiles",
    "reports",
    "search",
];

const KINDS: [&str; 8] = ["", "-api", "-v2", "-grpc", "-internal", "-read", "-store", "-eu"];

/// Numbers that nobody can know.
struct Draw(RandomState, u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.1 = self.1.wrapping_add(1);
        self.0.hash_one(self.1)
    }

    fn one_of(&mut self, texts: &[&'static str]) -> &'static str {
        let place = usize::try_from(self.next() % (texts.len() as u64).max(1)).unwrap_or(0);
        texts.get(place).copied().unwrap_or_default()
    }

    fn address(&mut self) -> Ipv4Addr {
        let [a, b, c, ..] = self.next().to_be_bytes();
        Ipv4Addr::new(10, a, b, c.clamp(1, 254))
    }
}

/// A service with three endpoints of different weights, a request to it, and a seed.
pub(super) fn service(clock: Clock) -> (Arc<Fleet>, Facts, u64) {
    let mut draw = Draw(RandomState::new(), 0);
    let name = format!("{}{}", draw.one_of(&NAMES), draw.one_of(&KINDS));
    let (port, mut order) = (8_000 + draw.next() % 1_000, 1_000 + draw.next() % 1_000_000);
    let mut added: Vec<Registered> = Vec::new();
    while added.len() < 3 {
        let address = format!("{}:{port}", draw.address());
        let id = format!("{name}/{:016x}#{address}", draw.next());
        order += 1 + draw.next() % 100;
        let weight = u32::try_from(1 + draw.next() % 10).unwrap_or(1);
        if added.iter().all(|other| other.weight != weight && other.address != address) {
            added.push(Registered { id, address, weight, order, metadata: Vec::new(), egress: Arc::default() });
        }
    }
    let fleet = Fleet::new(name.as_str().into(), Ejection { max_percent: 100, panic_percent: 0 }, clock);
    fleet.apply(Change { service: name, removed: Vec::new(), added, paused: None, proxied: None });
    let request = http::Request::get("/").body(()).unwrap_or_default();
    let facts = Facts::new(Box::new(request.into_parts().0), IpAddr::V4(draw.address()), None);
    (Arc::new(fleet), facts, draw.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, 9: nothing that a guest reads tells the probe from a service.
    #[test]
    fn a_probe_says_nowhere_that_it_is_one() {
        let drawn: Vec<_> = (0..50).map(|_| service(Clock::running())).collect();
        for (fleet, facts, _) in &drawn {
            let snapshot = fleet.snapshot();
            assert_eq!((snapshot.endpoints().count(), snapshot.eligible_count()), (3, 3));
            for endpoint in snapshot.endpoints() {
                let said = format!("{} {:?} {} {}", fleet.name, endpoint.registered, facts.head.uri, facts.client);
                assert!(!said.contains("probe") && !said.contains("192.0.2.") && !said.contains("0.0.0.0"), "{said}");
            }
        }
        assert!(drawn.iter().any(|(fleet, ..)| fleet.name != drawn[0].0.name), "it is another one each time");
    }
}
