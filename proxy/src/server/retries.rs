//! What follows a failed attempt: what the retry policy wants, within what the proxy allows.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::local::LocalService;
use super::outcome;
use super::refusal::Refusal;
use super::visit::Visit;
use crate::policy::retry::{fits, may_follow, shortened};
use crate::policy::{Facts, Outcome, Terms};
use crate::service::{Active, Condition, Retry};
use crate::timer::Timers;
use crate::upstream::Stage;

/// The retries of one request, or of one connection.
pub struct Retries<'a> {
    local: &'a Rc<LocalService>,
    timers: &'a Timers,
    /// When the request arrived, and when its first attempt began.
    began: Instant,
    first: Instant,
    pub terms: Terms,
    /// Tick at which the client is answered with what there is.
    pub until: Option<u64>,
    /// Counts the request as under way; none without a retry policy.
    active: Option<Active>,
    /// The retry under way.
    retry: Option<Retry>,
}

/// What is attempted: an exchange of HTTP, or the opening of a tunnel.
pub(super) trait Attempting {
    /// What an attempt brings.
    type Brought;

    /// Whether it can be done again from its beginning.
    fn is_replayable(&self) -> bool;

    /// Makes one attempt at an endpoint, and tells how it ended where that is known by now.
    async fn attempt(&mut self, visit: &mut Visit, retries: &Retries<'_>) -> (Result<Self::Brought, Refusal>, Outcome);
}

/// What comes of the wish for an attempt.
pub enum Pick {
    Visit(Visit),
    /// The policy wants to ask again after this time, with these facts.
    Wait(Duration, Facts),
    Refused(Refusal),
}

impl<'a> Retries<'a> {
    /// What is in store for a request that has just arrived, at the time `began`, and must be answered at the tick
    /// `until`. The policy's time for it begins here: waiting for admission is part of it.
    pub fn begin(local: &'a Rc<LocalService>, timers: &'a Timers, began: Instant, until: Option<u64>) -> Self {
        let terms = local.terms();
        let until = until.into_iter().chain(terms.timeout.map(|timeout| timers.tick_after(timeout))).min();
        Self { local, timers, began, first: began, terms, until, active: None, retry: None }
    }

    /// The request was admitted, at this time, and counts as under way from now on: what waits in a queue is no load that
    /// retries could have a share of.
    pub fn admitted(&mut self, at: Instant) {
        self.first = at;
        self.active = self.are_on().then(|| self.local.service.budget.begin());
    }

    /// Whether there may be any.
    pub fn are_on(&self) -> bool {
        self.local.may_retry()
    }

    /// Makes attempts until one brings what is wanted, or no more are to be made: what the last one brought, and where.
    ///
    /// # Errors
    ///
    /// Why the last one brought nothing, or why there was none.
    pub(super) async fn run<A: Attempting>(
        &mut self,
        mut facts: Facts,
        what: &mut A,
    ) -> Result<(A::Brought, Visit, Outcome), Refusal> {
        loop {
            let mut visit = self.visit(facts, what.is_replayable()).await?;
            let (result, outcome) = what.attempt(&mut visit, self).await;
            let at = visit.endpoint.slot;
            let Some(delay) = self.decide(&mut visit.facts, Some(at), &outcome) else {
                return result.map(|brought| (brought, visit, outcome));
            };
            // What is not wanted, and its place at the endpoint, are given up before the wait.
            drop(result);
            facts = visit.into_facts();
            pause(delay).await;
        }
    }

    /// An attempt at the endpoint that is decided on. That there is none is an outcome too, which the policy may want to
    /// wait out.
    async fn visit(&mut self, mut facts: Facts, replayable: bool) -> Result<Visit, Refusal> {
        let began = self.began;
        loop {
            match self.pick(facts, replayable, || began.elapsed()) {
                Pick::Visit(visit) => return Ok(visit),
                Pick::Wait(delay, again) => {
                    pause(delay).await;
                    facts = again;
                }
                Pick::Refused(refusal) => return Err(refusal),
            }
        }
    }

    /// The same, where the request arrived so long ago, for somebody who waits by himself.
    pub fn pick(&mut self, mut facts: Facts, replayable: bool, elapsed: impl FnOnce() -> Duration) -> Pick {
        // A delay that just fitted may have ended a moment later.
        if self.until.is_some_and(|tick| tick <= self.timers.now()) {
            return Pick::Refused(Refusal::Deadline);
        }
        let tried = facts.tried.len();
        let refusal = match self.local.decide(&mut facts) {
            Ok(picked) => {
                let started = if facts.attempt == 1 { self.first } else { Instant::now() };
                return Pick::Visit(Visit::new(self.local, picked, facts, tried, started));
            }
            Err(refusal) => refusal,
        };
        let outcome = outcome::of_refusal(&refusal, Stage::Waiting, Duration::ZERO, elapsed());
        let outcome = Outcome { replayable, ..outcome };
        let Some(delay) = self.decide(&mut facts, None, &outcome) else { return Pick::Refused(refusal) };
        facts.tried.truncate(tried);
        facts.attempt = facts.attempt.saturating_add(1);
        Pick::Wait(delay, facts)
    }

    /// When a second attempt begins beside this one; none where there will be none. Only a first attempt has one, as a
    /// service whose answers fail needs no more of them; and none that is a probe, which could be given up for it.
    pub fn hedges_after(&self, visit: &Visit) -> Option<Duration> {
        let permille = self.terms.hedging?;
        let may_be_sent_twice = visit.facts.head.method.is_idempotent();
        if visit.facts.attempt > 1 || !may_be_sent_twice || visit.is_probe() {
            return None;
        }
        self.local.latencies().percentile(permille)
    }

    /// An attempt beside this one, at another endpoint, if the budget allows it.
    pub fn beside(&self, first: &Visit) -> Option<(Visit, Retry)> {
        // The service may have been opened in the meantime.
        if first.is_probe() {
            return None;
        }
        let retry = self.take()?;
        let mut facts = first.facts_beside();
        let tried = facts.tried.len();
        let picked = self.local.decide(&mut facts).ok()?;
        if picked.endpoint.slot == first.endpoint.slot {
            return None;
        }
        Some((Visit::new(self.local, picked, facts, tried, Instant::now()), retry))
    }

    /// How long to wait before the next attempt, after one at this slot that ended so; none where that was the last. A request that
    /// was to find out whether its service is well has done so: while the service is not in use, nothing is tried again.
    pub fn decide(&mut self, facts: &mut Facts, at: Option<u32>, outcome: &Outcome) -> Option<Duration> {
        self.retry = None;
        let left = self.until.map(|tick| self.timers.until(tick));
        let is_in_use = self.local.service.fleet.health.condition() == Condition::InUse;
        if !self.are_on() || !is_in_use || !may_follow(outcome, facts.attempt, left) {
            return None;
        }
        let outcome = Outcome {
            budget_left: self.local.service.budget.left(),
            others_eligible: Some(self.local.others_eligible(&facts.tried, at)),
            ..*outcome
        };
        let wanted = self.local.retry(facts, &outcome)?;
        let delay = Some(shortened(wanted, &outcome)).filter(|delay| fits(*delay, left))?;
        self.retry = self.take();
        self.retry.as_ref()?;
        self.local.stats.retries.add(1);
        Some(delay)
    }

    /// The right to one more attempt, if the budget allows it.
    fn take(&self) -> Option<Retry> {
        let taken = self.local.service.budget.take();
        if taken.is_none() {
            self.local.stats.over_budget.add(1);
        }
        taken
    }

    /// What counts the request as under way for as long as its response is.
    pub fn into_active(self) -> Option<Active> {
        self.active
    }
}

/// Waits before another attempt. Not on the coarse timers: those are late by more than most of these delays.
async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
