//! What follows a failed attempt: what the retry policy wants, within what the proxy allows.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::outcome;
use super::refusal::Refusal;
use super::visit::Visit;
use super::worker::LocalService;
use crate::policy::retry::{fits, may_follow};
use crate::policy::{Facts, Outcome, Terms};
use crate::service::{Active, Condition, Retry};
use crate::timer::Timers;

/// The retries of one request, or of one connection.
pub(super) struct Retries<'a> {
    local: &'a Rc<LocalService>,
    timers: &'a Timers,
    /// When the request arrived.
    began: Instant,
    pub terms: Terms,
    /// Tick at which the client is answered with what there is.
    pub until: Option<u64>,
    /// Counts the request as under way; none without a retry policy.
    active: Option<Active>,
    /// The retry under way.
    retry: Option<Retry>,
}

impl<'a> Retries<'a> {
    /// What is in store for a request that arrived at this time, and must be answered at the tick `until`.
    pub fn begin(local: &'a Rc<LocalService>, timers: &'a Timers, began: Instant, until: Option<u64>) -> Self {
        if !local.may_retry() {
            return Self { local, timers, began, terms: Terms::default(), until, active: None, retry: None };
        }
        let terms = local.terms();
        let until = until.into_iter().chain(terms.timeout.map(|timeout| timers.tick_after(timeout))).min();
        Self { local, timers, began, terms, until, active: Some(local.service.budget.begin()), retry: None }
    }

    /// Whether there may be any.
    pub fn are_on(&self) -> bool {
        self.active.is_some()
    }

    /// An attempt at the endpoint that is decided on. That there is none is an outcome too, which the policy may want to
    /// wait out.
    pub async fn visit(&mut self, mut facts: Facts, replayable: bool) -> Result<Visit, Refusal> {
        loop {
            let tried = facts.tried.len();
            let refusal = match self.local.decide(&mut facts) {
                Ok(picked) => {
                    let started = if facts.attempt == 1 { self.began } else { Instant::now() };
                    return Ok(Visit::new(self.local, picked, facts, tried, started));
                }
                Err(refusal) => refusal,
            };
            let outcome = outcome::of_refusal(&refusal, false, Duration::ZERO);
            let outcome = Outcome { replayable, elapsed: self.began.elapsed(), ..outcome };
            let Some(delay) = self.decide(&mut facts, &outcome) else { return Err(refusal) };
            facts.tried.truncate(tried);
            facts.attempt = facts.attempt.saturating_add(1);
            pause(delay).await;
        }
    }

    /// How long to wait before the next attempt, after one that ended so; none where that was the last.
    pub fn decide(&mut self, facts: &mut Facts, outcome: &Outcome) -> Option<Duration> {
        self.retry = None;
        let left = self.until.map(|tick| self.timers.until(tick));
        // A request that was let through to find out whether the service is well has found out.
        let is_open = self.local.service.fleet.health.condition() != Condition::InUse;
        if !self.are_on() || is_open || !may_follow(outcome, facts.attempt, left) {
            return None;
        }
        let outcome = Outcome { budget_left: self.local.service.budget.left(), ..*outcome };
        let delay = self.local.retry(facts, &outcome).filter(|delay| fits(*delay, left))?;
        self.retry = self.take();
        self.retry.as_ref()?;
        self.local.stats.retries.add(1);
        Some(delay)
    }

    /// The right to one more attempt, if the budget allows it.
    pub fn take(&self) -> Option<Retry> {
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
pub(super) async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
