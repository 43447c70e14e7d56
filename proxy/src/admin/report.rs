//! The two answers that take long to make: `/state` and `/metrics`.
//!
//! With 20,000 endpoints each takes tens of milliseconds and megabytes. On the control thread that would keep probes of
//! `/live` waiting, and many at once would take the memory of the process. So one is made at a time, whichever it is, on
//! a thread of its own, and is then given to everybody who asks within a second. After that second it is dropped.
//!
//! Those who wait are served in the order in which they asked, and each lets others have a turn first. However many
//! requests for these two are queued, on whichever connections, one for `/live` is answered before them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use crate::supervise;

/// How long a report is given to others.
const FRESH: Duration = Duration::from_secs(1);

/// What takes long to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Metrics,
    State,
}

/// Makes reports, for both doors of the admin server.
#[derive(Debug)]
pub struct Reports {
    /// Held by the one request whose turn it is.
    turn: Semaphore,
    /// Held while one is made, also when nobody waits for it any longer.
    making: Arc<Semaphore>,
    made: Arc<Mutex<Vec<Made>>>,
}

#[derive(Debug)]
struct Made {
    kind: Kind,
    at: Instant,
    text: Bytes,
}

impl Default for Reports {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), making: Arc::new(Semaphore::new(1)), made: Arc::default() }
    }
}

impl Reports {
    /// Waits for one's turn, and lets others go first who ask for something else.
    pub async fn wait(&self) {
        let _turn = self.turn.acquire().await;
        yield_now().await;
    }

    /// A report that is at most a second old.
    ///
    /// # Errors
    ///
    /// Why it cannot be made.
    pub async fn get<S, F>(&self, kind: Kind, state: &Arc<S>, make: F) -> Result<Bytes, String>
    where
        S: Send + Sync + 'static,
        F: FnOnce(&Arc<S>) -> Result<String, String> + Send + 'static,
    {
        let _turn = self.turn.acquire().await;
        yield_now().await;
        if let Some(text) = self.fresh(kind) {
            return Ok(text);
        }
        let permit = self.making.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let (state, made) = (state.clone(), self.made.clone());
        // A task of its own: a client that goes away does not have a second one begun beside the first.
        let making = tokio::spawn(async move {
            let _permit = permit;
            let text = supervise::caught("admin", supervise::blocking(move || make(&state))).await;
            let text = Bytes::from(text.unwrap_or_else(|| Err("it cannot be made; the log says why".to_owned()))?);
            let at = Instant::now();
            lock(&made).push(Made { kind, at, text: text.clone() });
            tokio::spawn(async move {
                tokio::time::sleep(FRESH).await;
                lock(&made).retain(|made| made.at != at);
            });
            Ok::<_, String>(text)
        });
        making.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn fresh(&self, kind: Kind) -> Option<Bytes> {
        let made = lock(&self.made);
        let found = made.iter().find(|made| made.kind == kind && made.at.elapsed() < FRESH);
        found.map(|made| made.text.clone())
    }
}

fn lock(made: &Mutex<Vec<Made>>) -> MutexGuard<'_, Vec<Made>> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// How many were made, and how many at once.
    #[derive(Default)]
    struct Counts {
        made: AtomicUsize,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    fn make(counts: &Arc<Counts>) -> Result<String, String> {
        counts.most.fetch_max(counts.now.fetch_add(1, SeqCst) + 1, SeqCst);
        #[expect(clippy::disallowed_methods, reason = "it stands for a report that takes long")]
        std::thread::sleep(Duration::from_millis(30));
        counts.now.fetch_sub(1, SeqCst);
        Ok(format!("{}", counts.made.fetch_add(1, SeqCst)))
    }

    /// Issue 10, 15: built off the control thread, one at a time, cached for a second.
    #[tokio::test]
    async fn a_report_is_made_once_for_all_who_ask_within_a_second() {
        let (reports, counts) = (Arc::new(Reports::default()), Arc::new(Counts::default()));
        let asked: Vec<_> = (0..100)
            .map(|number| {
                let (reports, counts) = (reports.clone(), counts.clone());
                let kind = if number % 2 == 0 { Kind::State } else { Kind::Metrics };
                tokio::spawn(async move { reports.get(kind, &counts, make).await.unwrap() })
            })
            .collect();
        let before = Instant::now();
        let mut texts = std::collections::BTreeSet::new();
        for asked in asked {
            texts.insert(asked.await.unwrap());
        }
        // On a machine that is busy it may have taken more than the second.
        if before.elapsed() < FRESH {
            assert_eq!(texts.len(), 2, "{texts:?}");
        }
        assert_eq!(counts.most.load(SeqCst), 1);
        tokio::time::sleep(FRESH).await;
        let text = reports.get(Kind::State, &counts, make).await.unwrap();
        assert!(!texts.contains(&text), "a second later there is another one");
    }

    /// Issue 10, 15: those who go away and come again have no more than one made at a time.
    #[tokio::test]
    async fn a_report_that_nobody_waits_for_is_finished_before_another_one() {
        let (reports, counts) = (Reports::default(), Arc::new(Counts::default()));
        for _ in 0..5 {
            let asked = reports.get(Kind::State, &counts, make);
            assert!(tokio::time::timeout(Duration::from_millis(5), asked).await.is_err());
        }
        reports.get(Kind::State, &counts, make).await.unwrap();
        assert_eq!(counts.most.load(SeqCst), 1);
        let panics = |_: &Arc<Counts>| -> Result<String, String> { panic!("a report") };
        assert!(reports.get(Kind::Metrics, &counts, panics).await.unwrap_err().contains("cannot be made"));
        assert!(reports.get(Kind::Metrics, &counts, make).await.is_ok());
    }

    /// Issue 10, 15: beside 20 clients with 200 requests each, one for something else is answered first.
    #[tokio::test]
    async fn who_asks_for_something_else_does_not_wait_in_the_queue() {
        let (reports, answered) = (Arc::new(Reports::default()), Arc::new(AtomicUsize::new(0)));
        for _ in 0..20 {
            let (reports, answered) = (reports.clone(), answered.clone());
            tokio::spawn(async move {
                for _ in 0..200 {
                    reports.wait().await;
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        yield_now().await;
        // Accepting, reading and answering are a turn each, and then some.
        for _ in 0..5 {
            tokio::spawn(yield_now()).await.unwrap();
        }
        let before = answered.load(SeqCst);
        assert!(before < 100, "{before} of 4,000 were answered before");
    }
}
