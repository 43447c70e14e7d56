//! Coarse timers for one thread.
//!
//! Every request has deadlines and hardly any is ever met, so what counts is what setting one costs. A deadline here is
//! an entry in a table: set and dropped without a lock or a clock, and looked at twenty times a second. It passes up to
//! two ticks late and never early.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often deadlines are looked at.
pub const TICK: Duration = Duration::from_millis(50);

/// The time of so many ticks.
pub fn ticks(number: u64) -> Duration {
    TICK.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX))
}

/// The time was over before the future was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not in time")]
pub struct Elapsed;

struct Entry {
    at: u64,
    waker: Waker,
}

/// The deadlines of one thread.
pub struct Timers {
    /// Ticks since the start.
    now: Cell<u64>,
    entries: RefCell<Slab<Entry>>,
}

impl Default for Timers {
    fn default() -> Self {
        Self { now: Cell::new(0), entries: RefCell::default() }
    }
}

impl Timers {
    /// Lets time pass, for ever.
    pub async fn run(self: Rc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // Begun anew, it goes on from where it was: time never goes back.
        let (start, first) = (Instant::now(), self.now.get());
        loop {
            let at = ticks.tick().await.saturating_duration_since(start);
            let passed = u64::try_from(at.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
            self.advance(first.saturating_add(passed));
        }
    }

    /// Lets it be this tick. [`Timers::run`] does so by the clock.
    pub fn advance(&self, now: u64) {
        self.now.set(now);
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.at <= now {
                entry.waker.wake_by_ref();
                // Once: who waits on says so, and who is busy with something else is not disturbed at every tick.
                entry.at = u64::MAX;
            }
        }
    }

    /// The coarse time, in ticks.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// The first tick that is certainly later than `after` from now.
    pub fn tick_after(&self, after: Duration) -> u64 {
        let ticks = after.as_millis().div_ceil(TICK.as_millis());
        self.now.get().saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX)).saturating_add(1)
    }

    /// The time since a tick, short by one tick at most.
    pub fn since(&self, tick: u64) -> Duration {
        ticks(self.now.get().saturating_sub(tick))
    }

    /// Wakes every task that waits for a deadline.
    pub fn wake_all(&self) {
        for (_, entry) in self.entries.borrow().iter() {
            entry.waker.wake_by_ref();
        }
    }

    /// The time to a tick, long by one tick at most; nothing once it has come.
    pub fn until(&self, tick: u64) -> Duration {
        ticks(tick.saturating_sub(self.now.get()))
    }

    /// A deadline that is moved as time goes on.
    pub fn deadline(self: &Rc<Self>, after: Duration) -> Deadline {
        self.deadline_at(self.tick_after(after))
    }

    /// A deadline at this tick.
    pub fn deadline_at(self: &Rc<Self>, tick: u64) -> Deadline {
        Deadline { at: tick, timers: self.clone(), key: None }
    }

    /// The future's output, or [`Elapsed`] once the time is over.
    pub fn within<F: Future>(self: &Rc<Self>, after: Duration, future: F) -> Within<F> {
        Within { future, deadline: self.deadline(after) }
    }
}

/// A point in time on the clock of [`Timers`].
pub struct Deadline {
    timers: Rc<Timers>,
    at: u64,
    key: Option<usize>,
}

impl Deadline {
    /// When it passes.
    pub fn tick(&self) -> u64 {
        self.at
    }

    /// Moves the deadline to this far from now. A task that waits for an earlier one is woken then, and waits on.
    pub fn reset(&mut self, after: Duration) {
        self.at = self.timers.tick_after(after);
    }

    /// Ready once the deadline has passed; until then the task is woken when it does.
    pub fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.timers.now.get() >= self.at {
            return Poll::Ready(());
        }
        let mut entries = self.timers.entries.borrow_mut();
        match self.key.and_then(|key| entries.get_mut(key)) {
            Some(entry) => {
                entry.at = self.at;
                entry.waker.clone_from(cx.waker());
            }
            None => self.key = Some(entries.insert(Entry { at: self.at, waker: cx.waker().clone() })),
        }
        Poll::Pending
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.entries.borrow_mut().try_remove(key);
        }
    }
}

pin_project! {
    /// See [`Timers::within`].
    pub struct Within<F> {
        #[pin]
        future: F,
        deadline: Deadline,
    }
}

impl<F: Future> Future for Within<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        this.deadline.poll_passed(cx).map(|()| Err(Elapsed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn a_deadline_never_passes_early_and_leaves_nothing_behind() {
        let timers = Rc::new(Timers::default());
        let mut deadline = timers.deadline(Duration::from_millis(100));
        for now in 0..3 {
            timers.advance(now);
            assert!(deadline.poll_passed(&mut context()).is_pending(), "at tick {now}");
        }
        timers.advance(3);
        assert!(deadline.poll_passed(&mut context()).is_ready());
        drop(deadline);
        assert!(timers.entries.borrow().is_empty());
    }

    #[test]
    fn a_task_is_woken_once_for_a_deadline() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let timers = Rc::new(Timers::default());
        let mut deadline = timers.deadline(TICK);
        assert!(deadline.poll_passed(&mut Context::from_waker(&waker)).is_pending());
        for now in 1..9 {
            timers.advance(now);
        }
        assert_eq!(count.0.load(Relaxed), 1);
        assert!(deadline.poll_passed(&mut Context::from_waker(&waker)).is_ready());
    }

    #[test]
    fn several_may_wait_for_the_same_tick() {
        let timers = Rc::new(Timers::default());
        let first = timers.deadline(TICK * 3);
        let mut second = timers.deadline_at(first.tick());
        assert_eq!(timers.until(first.tick()), TICK * 4);
        timers.advance(first.tick());
        assert!(second.poll_passed(&mut context()).is_ready());
        timers.advance(first.tick() + 1);
        assert_eq!(timers.until(first.tick()), Duration::ZERO);
    }

    #[test]
    fn a_deadline_can_be_moved() {
        let timers = Rc::new(Timers::default());
        let mut deadline = timers.deadline(TICK);
        assert!(deadline.poll_passed(&mut context()).is_pending());
        timers.advance(1);
        deadline.reset(TICK * 10);
        timers.advance(10);
        assert!(deadline.poll_passed(&mut context()).is_pending());
        timers.advance(12);
        assert!(deadline.poll_passed(&mut context()).is_ready());
    }
}
