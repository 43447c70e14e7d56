//! Choosing an endpoint: the plugin's answer where it gives one that can be used, the native rule of the policy where not.

use std::sync::Arc;

use crate::plugin::Seat;
use crate::policy::native::{Registration, Rule, Table};
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
    /// There is no policy to ask, and what it promises cannot be kept without it.
    NoPolicy,
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
    /// The slot chosen in rotation last.
    last: u32,
    /// How the policy is decided natively.
    rule: Rule,
    /// For the rule, and the endpoints that it is of; made when it is first needed.
    table: Option<(Arc<Snapshot>, Table)>,
}

impl Decider {
    /// With so many requests at most under way at one endpoint.
    pub fn new(seat: Seat, stats: Arc<ServiceStats>, limit: Option<u32>) -> Self {
        let rule = Rule::of(seat.policy(), seat.config());
        Self { seat, stats, limit, last: u32::MAX, rule, table: None }
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
        self.choose_natively(facts)
    }

    /// By the rule that keeps what the policy promises, if there is one.
    fn choose_natively(&mut self, facts: &Facts) -> Choice {
        if self.rule == Rule::Refused || !self.seat.is_known() {
            return Choice::NoPolicy;
        }
        self.stats.fallbacks.add(1);
        match self.choose_by_rule(facts) {
            Some(picked) => Choice::Endpoint(picked),
            None => self.choose_in_rotation(&facts.tried),
        }
    }

    /// The first endpoint of the rule's order that takes another request, one that was not tried if there is one; none
    /// where the rule has none for this request.
    fn choose_by_rule(&mut self, facts: &Facts) -> Option<Picked> {
        if self.rule == Rule::Rotation {
            return None;
        }
        let snapshot = self.seat.snapshot();
        if !self.table.as_ref().is_some_and(|(of, _)| of.has_same_endpoints(snapshot)) {
            self.table = Some((snapshot.clone(), self.rule.table(registrations(snapshot, &self.rule))));
        }
        let (_, table) = self.table.as_ref()?;
        // Where all are full, each has been looked at more than once by then.
        let most = snapshot.eligible_count().saturating_mul(4);
        for is_tried in [false, true] {
            let eligible = self.rule.slots(table, facts)?.filter(|slot| snapshot.eligible_endpoint(*slot).is_some());
            let mut candidates = eligible.filter(|slot| facts.tried.contains(slot) == is_tried).take(most);
            if let Some(picked) = candidates.find_map(|slot| admit(snapshot, slot, self.limit)) {
                return Some(picked);
            }
        }
        None
    }

    /// The next in rotation that takes another request: one that was not tried, if there is one.
    fn choose_in_rotation(&mut self, tried: &[u32]) -> Choice {
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

/// The endpoints as the rule sees them.
fn registrations<'a>(snapshot: &'a Snapshot, rule: &Rule) -> Vec<Registration<'a>> {
    let is_marked = |endpoint: &Endpoint| {
        let mut metadata = endpoint.policy_view.metadata(&endpoint.registered);
        rule.mark().is_some_and(|(name, value)| {
            metadata.find(|(known, _)| known == name).is_some_and(|(_, known)| known == value)
        })
    };
    let registration = |endpoint: &'a Arc<Endpoint>| Registration {
        slot: endpoint.slot,
        id: endpoint.policy_view.id(&endpoint.registered),
        weight: endpoint.registered.weight.max(1),
        order: endpoint.registered.order,
        is_marked: is_marked(endpoint),
    };
    snapshot.endpoints().map(registration).collect()
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
