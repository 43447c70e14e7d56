//! How much one poll of a task may do.
//!
//! A worker is one thread: what a task does in one poll is what every other connection waits for. tokio gives each poll
//! of a task a budget of 128 units. A read or a write of a socket costs one, and at zero all I/O is pending: the task
//! runs again after the others, and after the sockets have been looked at. But that counts calls, and a peer decides how
//! much work one call brings: 32 KiB can be 5,000 chunks of a byte. So the same budget also pays for bytes, chunks and
//! frames. There is one budget for a poll and not one for each loop, so that the bound holds over nested loops, both
//! directions and every protocol: one poll handles at most 1 MiB, and at most [`MAX_ITEMS`] chunks or frames. It may go
//! over by what the last read brought.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::task::coop;

/// Bytes that one unit pays for, on top of the read that brought them.
pub const UNIT: usize = 8 * 1024;

/// The same for bytes that TLS has to decrypt: 2 KiB can be 90 records of one byte.
pub const TLS_UNIT: usize = 2 * 1024;

/// Chunks or frames that one unit pays for.
const ITEMS: usize = 32;

/// The units of one poll of a task, which tokio sets.
const UNITS: usize = 128;

/// Chunks or frames that one poll of a task handles at most.
pub const MAX_ITEMS: usize = UNITS * ITEMS;

/// Ready while the task may go on. When it may not, it is woken for another turn.
pub fn poll_more(cx: &Context<'_>) -> Poll<()> {
    if coop::has_budget_remaining() {
        return Poll::Ready(());
    }
    yield_now(cx);
    Poll::Pending
}

/// Whether the task may go on. A caller that stops because of it has to be woken by something else.
pub fn may_go_on() -> bool {
    coop::has_budget_remaining()
}

/// Has the task polled again, after all others and after the sockets have been looked at.
pub fn yield_now(cx: &Context<'_>) {
    let mut cx = Context::from_waker(cx.waker());
    let _ = pin!(tokio::task::yield_now()).poll(&mut cx); // pending: it hands the waker to the runtime
}

/// Takes units from the budget of this poll, as far as there are any.
pub fn spend(units: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..units {
        if !coop::has_budget_remaining() {
            return;
        }
        if let Poll::Ready(unit) = coop::poll_proceed(&mut cx) {
            unit.made_progress();
        }
    }
}

/// Chunks or frames that have been handled and not been paid for.
#[derive(Debug, Default)]
pub struct Items(usize);

impl Items {
    /// Counts items, and pays for them whenever they are worth a unit.
    pub fn add(&mut self, items: usize) {
        self.0 = self.0.saturating_add(items);
        if self.0 >= ITEMS {
            spend(self.0 / ITEMS);
            self.0 %= ITEMS;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Issue 10, 3: what one poll of a task handles is bounded, whatever it consists of.
    #[tokio::test]
    async fn a_poll_ends_after_so_many_items_or_bytes() {
        let (mut polls, mut items, mut done) = (0, Items::default(), 0);
        poll_fn(|cx| {
            polls += 1;
            let mut now = 0;
            while done < 3 * MAX_ITEMS {
                if poll_more(cx).is_pending() {
                    assert!(now <= MAX_ITEMS, "{now} items in one poll");
                    return Poll::Pending;
                }
                items.add(1);
                (now, done) = (now + 1, done + 1);
            }
            Poll::Ready(())
        })
        .await;
        assert!(polls >= 3, "{polls}");
        assert_eq!(UNITS * UNIT, 1 << 20);
    }

    #[test]
    fn outside_of_a_runtime_there_is_no_budget() {
        let mut items = Items::default();
        items.add(1 << 20);
        spend(1 << 10);
        assert!(may_go_on() && poll_more(&Context::from_waker(Waker::noop())).is_ready());
        yield_now(&Context::from_waker(Waker::noop()));
    }
}
