//! SIGTERM and Ctrl-C.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::drain::{Phase, Trigger};

/// Listens for the signals that end the process, which from then on do not kill it.
pub struct Signals {
    runtime: Runtime,
    /// How many have come.
    received: watch::Receiver<usize>,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// When the system does not allow it.
    pub fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (count, received) = watch::channel(0);
        {
            let _entered = runtime.enter();
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            runtime.spawn(async move {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    count.send_modify(|count| *count += 1);
                }
            });
        }
        Ok(Self { runtime, received })
    }

    /// Waits for a signal, one that came before included.
    pub async fn wait(&self) {
        wait(&mut self.received.clone(), 1).await;
    }

    /// Whether one has come by now, also while nothing ran on the runtime.
    pub async fn has_come(&self) -> bool {
        // The runtime looks for events between two turns, and who counts them has a turn after that.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        *self.received.borrow() > 0
    }

    /// Has the first signal, one that came before included, stop a proxy in good order, and a second one at once.
    pub fn stop(&self, trigger: Arc<Trigger>) {
        let mut received = self.received.clone();
        self.runtime.spawn(async move {
            wait(&mut received, 1).await;
            trigger.advance(Phase::Leaving);
            wait(&mut received, 2).await;
            trigger.advance(Phase::Cutting);
        });
    }

    /// Runs a future on this thread.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

async fn wait(received: &mut watch::Receiver<usize>, count: usize) {
    // Who counts lives as long as the runtime.
    let _ = received.wait_for(|received| *received >= count).await;
}
