//! How much of a service may be in use at once, over all workers: requests under way, and connections.
//!
//! Limits belong to the service, pools to a worker. A limit is one atomic counter: below it nobody takes a lock, and
//! where none is configured for requests nothing is even counted. Only who finds no room gets into a line, which has a
//! lock of its own: first come, first served, whichever worker one is on, and nobody who comes later is let past those
//! who wait. It is not tokio's semaphore, since a connection needs two permits at once (the endpoint's and the
//! service's), waiters for one endpoint must not stand in the way of those for another, and a connection that comes home
//! to the pool of the very request that is next is better used than closed.
//!
//! **No wake-up is lost.** Who waits gets into the line first and then looks whether there is room; who makes room
//! counts first and then looks whether anybody waits. Counters and the line's length are sequentially consistent, so at
//! least one of the two sees the other. What is handed over frees itself when it is dropped: a turn that comes to
//! somebody who has just left goes on to the next.
//!
//! **Requests** ([`Requests`]): a request holds its place from before its first attempt to the end of its response,
//! however many attempts it makes. With a queue (`max_pending`) those that find no place wait for one.
//!
//! **Connections** ([`Connections`]): a worker keeps connections idle for itself, so that the limit may be reached while
//! nothing is under way. So who waits has every worker asked to look at what it keeps: each closes idle connections for
//! as long as that serves somebody. What becomes idle while somebody waits is closed, or handed over, instead of kept.
//!
//! **Shares**. While requests of several clients wait, one client address has its share of an endpoint's connections
//! ([`shares`]): who holds more gives up the slowest of its bodies, and waits behind the others. A full line has room for
//! a client that has fewer places in it than another. Below the limits none of this is looked at.

mod connections;
mod holders;
mod line;
mod shares;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

pub use connections::{Connections, Ending, Keeper, Permit, Reuse, Turn, Wanted};
pub use holders::Holder;
use line::Line;
pub use line::Waiting;
pub use shares::Client;

/// The requests of a service that are under way, where their number is limited.
#[derive(Debug, Default)]
pub struct Requests {
    under_way: AtomicU32,
    /// Each with the limit that holds for it.
    line: Line<u32, Admitted>,
}

/// A request's place among those of its service, given back when dropped.
#[derive(Debug)]
pub struct Admitted(Arc<Requests>);

impl Requests {
    /// A place, unless `limit` requests are under way or others have been waiting for longer.
    pub fn try_admit(self: &Arc<Self>, limit: u32) -> Option<Admitted> {
        if self.line.is_empty() { self.take(limit) } else { None }
    }

    /// A place in the queue; none when `most` wait there already.
    pub fn wait(self: &Arc<Self>, limit: u32, most: usize) -> Option<Waiting<'_, u32, Admitted>> {
        let waiting = self.line.join(limit, most)?;
        // A place may have become free a moment before. Where none has, the line need not be looked through.
        if self.under_way() < limit {
            self.serve_next();
        }
        Some(waiting)
    }

    /// Requests under way that were admitted under a limit.
    pub fn under_way(&self) -> u32 {
        self.under_way.load(SeqCst)
    }

    /// Requests that wait to be admitted.
    pub fn pending(&self) -> usize {
        self.line.len()
    }

    fn take(self: &Arc<Self>, limit: u32) -> Option<Admitted> {
        try_count(&self.under_way, limit).then(|| Admitted(self.clone()))
    }

    fn serve_next(self: &Arc<Self>) {
        self.line.serve(|_| false, |limit| self.take(*limit));
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Self(requests) = self;
        requests.under_way.fetch_sub(1, SeqCst);
        if !requests.line.is_empty() {
            requests.serve_next();
        }
    }
}

/// Counts one more, unless there are `limit` already.
fn try_count(counter: &AtomicU32, limit: u32) -> bool {
    counter.fetch_update(SeqCst, SeqCst, |n| (n < limit).then(|| n + 1)).is_ok()
}
