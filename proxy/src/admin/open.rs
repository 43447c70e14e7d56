//! The connections that are open at one door, of which there are never too many.
//!
//! Whoever reaches the port can open connections and say nothing. Nobody else may have to wait for these to end: who
//! gets no answer to a probe restarts the proxy. So every connection is accepted at once, and where there are too many
//! then, one that has asked for nothing yet is closed, the oldest first; where all have asked, the oldest of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::task::AbortHandle;

use crate::supervise::caught;

/// Connections, each with a task. They go on when this is dropped.
pub struct Open {
    most: usize,
    /// The oldest first.
    connections: Vec<Connection>,
}

struct Connection {
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

impl Open {
    /// None yet, and at most so many, at least one.
    pub fn new(most: usize) -> Self {
        Self { most, connections: Vec::new() }
    }

    /// Serves one more, for which another is closed if need be. It sets what it is given once it has asked for
    /// something.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn begin<F>(&mut self, serve: impl FnOnce(Arc<AtomicBool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.connections.retain(|connection| !connection.task.is_finished());
        if self.connections.len() >= self.most {
            let silent = self.connections.iter().position(|connection| !connection.has_asked.load(Relaxed));
            self.connections.remove(silent.unwrap_or(0)).task.abort();
        }
        let has_asked = Arc::<AtomicBool>::default();
        let task = tokio::spawn(caught("admin-connection", serve(has_asked.clone()))).abort_handle();
        self.connections.push(Connection { task, has_asked });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn for_a_new_connection_the_oldest_goes_that_has_not_asked() {
        let mut open = Open::new(2);
        let mut ends = Vec::new();
        let mut begin = |asks: bool| {
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            open.begin(|has_asked| async move {
                let _end = end;
                has_asked.store(asks, Relaxed);
                std::future::pending().await
            });
            ends.push(ended);
        };
        let turn = tokio::task::yield_now;
        for asks in [true, false, false, true, true] {
            begin(asks);
            turn().await;
        }
        turn().await;
        let gone: Vec<bool> = ends.iter_mut().map(|ended| ended.try_recv() != EMPTY).collect();
        assert_eq!(gone, [true, true, true, false, false]);
    }

    const EMPTY: Result<(), tokio::sync::oneshot::error::TryRecvError> =
        Err(tokio::sync::oneshot::error::TryRecvError::Empty);

    #[tokio::test]
    async fn connections_that_have_ended_do_not_count() {
        let mut open = Open::new(2);
        let (_end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let mut held = Some(_end);
        open.begin(|_| {
            let held = held.take();
            async move {
                let _held = held;
                std::future::pending().await
            }
        });
        for _ in 0..3 {
            open.begin(|_| std::future::ready(()));
            tokio::task::yield_now().await;
        }
        assert_eq!(ended.try_recv(), EMPTY);
    }
}
