//! Stopping: a trigger, those who watch it, and a deadline.
//!
//! A proxy that is told to stop is still sent connections for a while: whoever sends them has to learn of it first. So
//! it stops in phases, each of which begins no later than the next one. While it is [`Leaving`](Phase::Leaving) it is
//! not ready and accepts all the same, for the time that the configuration gives. Already then it asks clients to leave
//! (`Connection: close`, GOAWAY): a client that has been told never loses a request to a connection that is closed just
//! as it sends one, which at the end of the delay is all that could be done. Envoy does the same while it drains. Then
//! it accepts no more and finishes what is under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How far a proxy has come with stopping; later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It has not been told to stop.
    Serving,
    /// It accepts, but should not be sent anything new.
    Leaving,
    /// It accepts no more. What is under way is finished, what is idle ends.
    Finishing,
    /// What is still under way is cut off.
    Cutting,
}

/// Says how far to go.
#[derive(Debug)]
pub struct Trigger(watch::Sender<Phase>);

/// Told how far to go.
#[derive(Debug, Clone)]
pub struct Watcher(watch::Receiver<Phase>);

/// A trigger, and a watcher to clone.
pub fn channel() -> (Trigger, Watcher) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (Trigger(sender), Watcher(receiver))
}

impl Trigger {
    /// Tells all watchers to go as far as this, if they have not come further yet. Dropping the trigger tells them to
    /// finish.
    pub fn advance(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let further = to > *phase;
            *phase = to.max(*phase);
            further
        });
    }

    /// The phase of this moment.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// One more watcher.
    pub fn watcher(&self) -> Watcher {
        Watcher(self.0.subscribe())
    }
}

impl Watcher {
    /// Waits until a phase, or a later one, has been reached.
    pub async fn reached(&mut self, phase: Phase) {
        if self.0.wait_for(|now| *now >= phase).await.is_err() && phase == Phase::Cutting {
            // The trigger is gone: nobody will say so any more.
            std::future::pending().await
        }
    }
}

/// Once a proxy has been told to stop: lets it accept for this long, and then no more.
pub async fn leave(trigger: Arc<Trigger>, delay: impl FnOnce() -> Duration) {
    let mut watcher = trigger.watcher();
    watcher.reached(Phase::Leaving).await;
    let delay = delay();
    if !delay.is_zero() && trigger.phase() == Phase::Leaving {
        tracing::info!(target: "heddle", "stopping; connections are accepted for another {} s", delay.as_secs_f64());
        let _it_may_be_told_to_hurry = tokio::time::timeout(delay, watcher.reached(Phase::Finishing)).await;
    }
    trigger.advance(Phase::Finishing);
    tracing::info!(target: "heddle", "stopping; nothing more is accepted");
}

/// Waits until `idle` says that nothing is under way, looking every 10 ms; false when the time is over first.
pub async fn until_idle(deadline: Duration, mut idle: impl FnMut() -> bool) -> bool {
    let wait = async {
        while !idle() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(deadline, wait).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn waiting_ends_when_idle_or_when_the_time_is_over() {
        let mut looks = 0;
        assert!(
            until_idle(Duration::from_secs(60), || {
                looks += 1;
                looks == 3
            })
            .await
        );
        assert!(!until_idle(Duration::ZERO, || false).await);
    }

    #[tokio::test]
    async fn phases_are_reached_in_order_and_never_left_again() {
        let (trigger, mut watcher) = channel();
        trigger.advance(Phase::Finishing);
        watcher.reached(Phase::Leaving).await;
        watcher.reached(Phase::Finishing).await;
        trigger.advance(Phase::Leaving);
        assert_eq!(trigger.phase(), Phase::Finishing);
        let mut cutting = pin!(watcher.reached(Phase::Cutting));
        assert!(cutting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        trigger.advance(Phase::Cutting);
        cutting.await;
        trigger.watcher().reached(Phase::Cutting).await;
    }

    #[tokio::test]
    async fn without_a_trigger_a_watcher_finishes_and_is_not_cut_off() {
        let (trigger, mut watcher) = channel();
        drop(trigger);
        watcher.reached(Phase::Leaving).await;
        watcher.reached(Phase::Finishing).await;
        let cutting = pin!(watcher.reached(Phase::Cutting));
        assert!(cutting.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}
