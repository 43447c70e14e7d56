//! Stopping: a trigger, those who watch it, and a deadline.

use std::time::Duration;

use tokio::sync::watch;

/// Says when to stop.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Told when to stop.
#[derive(Debug, Clone)]
pub struct Watcher(watch::Receiver<bool>);

/// A trigger, and a watcher to clone.
pub fn channel() -> (Trigger, Watcher) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Watcher(receiver))
}

impl Trigger {
    /// Tells all watchers to stop. Dropping the trigger does the same.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Watcher {
    /// Waits until it is time to stop.
    pub async fn stopped(&mut self) {
        // An error means that the trigger is gone.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
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
    async fn a_watcher_is_told_also_when_the_trigger_is_gone() {
        let (trigger, mut watcher) = channel();
        trigger.stop();
        watcher.stopped().await;
        let (trigger, mut watcher) = channel();
        drop(trigger);
        watcher.stopped().await;
    }
}
