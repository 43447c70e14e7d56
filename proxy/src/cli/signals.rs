//! SIGTERM and Ctrl-C.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::drain;

/// Listens for the signals that end the process, which from then on do not kill it.
pub struct Signals {
    runtime: Runtime,
    received: drain::Watcher,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// When the system does not allow it.
    pub fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (trigger, received) = drain::channel();
        {
            let _entered = runtime.enter();
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            runtime.spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                trigger.stop();
            });
        }
        Ok(Self { runtime, received })
    }

    /// Waits for a signal, one that came before included.
    pub async fn wait(&self) {
        self.received.clone().stopped().await;
    }

    /// Runs a future on this thread.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}
