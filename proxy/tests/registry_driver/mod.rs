//! The registry by itself in a test: run on a thread of its own, its changes collected.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use heddle::config::checked;
use heddle::registry::{self, Change, Registered, Report, Status};
use tokio::sync::oneshot;

use super::etcd::{DEADLINE, wait_until};

/// What the sink was told.
#[derive(Debug, Default)]
pub struct Told {
    /// Per service and address what is in force.
    pub services: BTreeMap<String, BTreeMap<String, Registered>>,
    /// Every change since the start.
    pub changes: Vec<Change>,
    /// How many there were after each call of the sink.
    pub calls: Vec<usize>,
}

impl Told {
    /// The addresses of a service.
    pub fn addresses(&self, service: &str) -> Vec<&str> {
        self.services.get(service).into_iter().flatten().map(|(address, _)| address.as_str()).collect()
    }

    fn take(&mut self, change: Change) {
        let service = self.services.entry(change.service.clone()).or_default();
        for id in &change.removed {
            let before = service.len();
            service.retain(|_, registered| registered.id != *id);
            assert_eq!(service.len() + 1, before, "{id} is removed and was there");
        }
        for registered in &change.added {
            let before = service.insert(registered.address.clone(), registered.clone());
            assert!(before.is_none(), "{} is added and was there", registered.id);
        }
        if service.is_empty() {
            self.services.remove(&change.service);
        }
        self.changes.push(change);
    }
}

/// A registry at work; stopped when it is dropped.
pub struct Driver {
    told: Arc<(Mutex<Told>, Condvar)>,
    status: Arc<Status>,
    /// What the sink was told before `run` returned.
    pub at_start: Vec<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Driver {
    pub fn start(config: &checked::Registry, state: Option<&Path>) -> Self {
        Self::start_with(config, state, || ())
    }

    /// `before` is called at each change before it is taken in, on the registry's only thread.
    pub fn start_with(
        config: &checked::Registry,
        state: Option<&Path>,
        mut before: impl FnMut() + Send + 'static,
    ) -> Self {
        let told = Arc::new((Mutex::new(Told::default()), Condvar::new()));
        let (stop, stopped) = oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (told, config, state) = (told.clone(), config.clone(), state.map(Path::to_owned));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async move {
                    let running = registry::run(&config, state.as_deref(), {
                        let told = told.clone();
                        move |changes: Vec<Change>| {
                            before();
                            let mut all = lock(&told.0);
                            changes.into_iter().for_each(|change| all.take(change));
                            let after = all.changes.len();
                            all.calls.push(after);
                            drop(all);
                            told.1.notify_all();
                        }
                    });
                    let at_start = lock(&told.0).services.keys().cloned().collect::<Vec<_>>();
                    started.send((running.status().clone(), at_start)).expect("a test that waits");
                    let _ = stopped.await;
                    running.stop().await;
                });
            }
        });
        let (status, at_start) = start.recv().expect("a start");
        Self { told, status, at_start, stop: Some(stop), thread: Some(thread) }
    }

    /// Until what the sink was told is as `condition` wants it.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn(&Told) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut told = lock(&self.told.0);
        while !condition(&told) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(left > Duration::ZERO, "waited in vain until {what}: {:#?}\n{:#?}", told.services, self.report());
            told = self.told.1.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Until the service has exactly these addresses, given in order.
    #[track_caller]
    pub fn wait_for(&self, service: &str, addresses: &[&str]) {
        self.wait(&format!("{service} is at {addresses:?}"), |told| told.addresses(service) == addresses);
    }

    /// Until the status is as `condition` wants it.
    #[track_caller]
    pub fn wait_status(&self, what: &str, condition: impl Fn(&Report) -> bool) {
        wait_until(what, || condition(&self.report()));
    }

    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_status("the registry is ready", |report| report.ready);
    }

    pub fn report(&self) -> Report {
        self.status.report()
    }

    pub fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told.0)
    }

    /// Stops it in order, its snapshot written.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the registry's thread panicked");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
