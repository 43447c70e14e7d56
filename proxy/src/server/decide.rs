//! Choosing an endpoint: the plugin's answer where it gives one that can be used, the native rotation where not.

use std::sync::Arc;

use crate::plugin::Seat;
use crate::policy::{Facts, rotate};
use crate::service::{Condition, Endpoint, InFlight, Probe, ServiceStats, Snapshot};

/// How often a plugin is asked for one attempt: once, and twice more after an answer that cannot be used.
const ASKED: usize = 3;

/// What became of a decision.
#[derive(Debug)]
pub enum Choice {
    Endpoint(Picked),
    /// The service has no eligible endpoint, or none that takes another request.
    NoneEligible,
    /// The same, and an eligible one would if it had not as many requests under way as it may.
    AllFull,
    /// The policy wants no endpoint to be used.
    Declined,
}

/// An endpoint, and what an attempt at it holds.
#[derive(Debug)]
pub struct Picked {
    pub endpoint: Arc<Endpoint>,
    /// Counts as under way there.
    pub in_flight: InFlight,
    /// The right to try an endpoint that is half-open; held until it is known how the attempt ended.
    pub probe: Option<Probe>,
}

/// The balancer of one service on one worker.
pub struct Decider {
    pub seat: Seat,
    stats: Arc<ServiceStats>,
    /// Requests that may be under way at one endpoint; none for any number.
    limit: Option<u32>,
    /// The slot chosen natively last.
    last: u32,
}

impl Decider {
    /// With so many requests at most under way at one endpoint.
    pub fn new(seat: Seat, stats: Arc<ServiceStats>, limit: Option<u32>) -> Self {
        Self { seat, stats, limit, last: u32::MAX }
    }

    /// Chooses an endpoint. Slots that were picked and could not be used are added to `facts.tried`.
    pub fn choose(&mut self, facts: &mut Facts) -> Choice {
        self.seat.refresh();
        if self.seat.snapshot().eligible_count() == 0 {
            return Choice::NoneEligible;
        }
        for _ in 0..ASKED {
            match self.seat.ask(|policy| policy.pick(facts)) {
                Some(Some(slot)) => {
                    self.stats.decisions.add(1);
                    let untried = Some(slot).filter(|slot| !facts.tried.contains(slot));
                    if let Some(picked) = untried.and_then(|slot| admit(self.seat.snapshot(), slot, self.limit)) {
                        return Choice::Endpoint(picked);
                    }
                    self.stats.asked_again.add(1);
                    facts.tried.push(slot);
                }
                Some(None) => {
                    self.stats.decisions.add(1);
                    return Choice::Declined;
                }
                None => break,
            }
        }
        self.choose_natively(&facts.tried)
    }

    /// The next in rotation that takes another request: one that was not tried, if there is one.
    fn choose_natively(&mut self, tried: &[u32]) -> Choice {
        self.stats.fallbacks.add(1);
        let (snapshot, limit) = (self.seat.snapshot(), self.limit);
        // Each is looked at once a round: where all are full, this is what every request costs.
        for is_tried in [false, true] {
            for _ in 0..snapshot.eligible_count() {
                let Some(slot) = rotate(snapshot.eligible_bits(), &[], self.last) else { break };
                self.last = slot;
                if tried.contains(&slot) == is_tried
                    && let Some(picked) = admit(snapshot, slot, limit)
                {
                    return Choice::Endpoint(picked);
                }
            }
        }
        let is_full = |endpoint: &Endpoint| {
            let is_eligible = snapshot.eligible_endpoint(endpoint.slot).is_some();
            is_eligible && limit.is_some_and(|limit| endpoint.load.in_flight() >= limit)
        };
        if snapshot.endpoints().any(|endpoint| is_full(endpoint)) { Choice::AllFull } else { Choice::NoneEligible }
    }
}

/// The endpoint of a slot, if it may be picked and takes another request.
fn admit(snapshot: &Snapshot, slot: u32, limit: Option<u32>) -> Option<Picked> {
    let endpoint = snapshot.eligible_endpoint(slot)?;
    let in_flight = endpoint.load.try_begin(limit)?;
    let probe = match endpoint.health.condition() {
        Condition::HalfOpen if !snapshot.is_in_panic() => Some(endpoint.health.probe()?),
        // It has just been ejected, and the next snapshot says so.
        Condition::Out if !snapshot.is_in_panic() => return None,
        _ => None,
    };
    Some(Picked { endpoint: endpoint.clone(), in_flight, probe })
}
