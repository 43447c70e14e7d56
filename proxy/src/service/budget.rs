//! How many retries a service may have under way.
//!
//! Retries help while few requests fail. When most do they multiply the load of a service that has too much already,
//! so they get a share of what is under way, and a few in any case: a budget follows the traffic, which a fixed number
//! does not. Hedges take from it too.
//!
//! Only services with a retry policy count: two additions for a request, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::config::checked::RetryBudget;
use crate::policy::retry::allowance;

/// The requests and retries of one service that are under way, over all workers.
#[derive(Debug)]
pub struct Budget {
    limits: RetryBudget,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct Active(Arc<Budget>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

/// A retry under way, its delay included, until it is dropped.
#[derive(Debug)]
pub struct Retry(Arc<Budget>);

impl Drop for Retry {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Relaxed);
    }
}

impl Budget {
    pub fn new(limits: RetryBudget) -> Arc<Self> {
        Arc::new(Self { limits, requests: AtomicU32::new(0), retries: AtomicU32::new(0) })
    }

    /// Counts a request as under way.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.requests.fetch_add(1, Relaxed);
        Active(self.clone())
    }

    /// Counts a retry as under way, if one more may be.
    pub fn take(self: &Arc<Self>) -> Option<Retry> {
        let allowed = self.allowed();
        let taken = self.retries.fetch_update(Relaxed, Relaxed, |retries| (retries < allowed).then(|| retries + 1));
        taken.ok().map(|_| Retry(self.clone()))
    }

    /// How many more retries may be under way at this moment.
    pub fn left(&self) -> u32 {
        self.allowed().saturating_sub(self.retries.load(Relaxed))
    }

    fn allowed(&self) -> u32 {
        allowance(self.requests.load(Relaxed), self.limits.percent, self.limits.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_have_a_share_of_the_requests_and_give_it_back() {
        let budget = Budget::new(RetryBudget { percent: 20, min: 1 });
        let first = budget.take();
        assert!(first.is_some() && budget.take().is_none());
        let requests: Vec<Active> = (0..10).map(|_| budget.begin()).collect();
        assert_eq!(budget.left(), 1);
        let second = budget.take();
        assert!(second.is_some() && budget.take().is_none() && budget.left() == 0);
        drop((first, requests));
        assert_eq!(budget.left(), 0, "one is still under way");
        drop(second);
        assert_eq!(budget.left(), 1);
    }

    #[test]
    fn none_may_mean_none() {
        let budget = Budget::new(RetryBudget { percent: 0, min: 0 });
        let _request = budget.begin();
        assert!(budget.take().is_none());
    }
}
