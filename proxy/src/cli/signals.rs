//! SIGTERM and Ctrl-C.
//!
//! Whatever hangs must not keep the process from ending: a configuration on a mount that hangs, a thread in a system
//! call, a guest. So signals are received on a thread of their own, which also ends the process if it does not end by
//! itself. The first signal stops the proxy in good order; the process ends within the time that this may take (the
//! delay, `drain`, and a second), however the stop was caused. A second signal cuts off what is in flight, and ends the
//! process half a second later at the latest. Before the proxy runs there is nothing to finish: a start has a second.

use std::future::Future;
use std::io;
use std::process;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::app::State;
use crate::drain::Phase;

/// How long after the first signal a start may go on.
const START: Duration = Duration::from_secs(1);

/// How long the process may take once everything is cut off.
const CUT: Duration = Duration::from_millis(500);

/// How much later than a proxy the process ends that hangs.
const LATER: Duration = Duration::from_millis(100);

/// Listens for the signals that end the process, which from then on do not kill it.
pub struct Signals {
    runtime: Runtime,
    /// How many have come.
    received: watch::Receiver<usize>,
    /// The proxy, once it runs.
    proxy: watch::Sender<Option<Arc<State>>>,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// When the system does not allow it.
    pub fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let receiver = Builder::new_current_thread().enable_all().build()?;
        let (count, received) = watch::channel(0);
        let (proxy, running) = watch::channel(None);
        let signals = {
            let _entered = receiver.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let watched = received.clone();
        thread::Builder::new().name("heddle-signals".into()).spawn(move || {
            receiver.block_on(async {
                tokio::join!(receive(signals, count), obey(watched, running.clone()), limit(running));
            });
        })?;
        Ok(Self { runtime, received, proxy })
    }

    /// Waits for a signal, one that came before included.
    pub async fn wait(&self) {
        wait(&mut self.received.clone(), 1).await;
    }

    /// Whether one has come by now, also while nothing ran on the runtime.
    pub async fn has_come(&self) -> bool {
        // It is counted on another thread.
        tokio::time::timeout(Duration::from_millis(20), self.wait()).await.is_ok()
    }

    /// Has the first signal, one that came before included, stop a proxy in good order, and a second one at once. From
    /// now on the process ends in time when the proxy is stopped.
    pub fn stop(&self, proxy: Arc<State>) {
        self.proxy.send_replace(Some(proxy));
    }

    /// Runs a future on this thread.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Leaves what hangs on this thread's runtime behind.
    pub fn leave(self) {
        self.runtime.shutdown_background();
    }
}

/// Counts the signals, for ever.
async fn receive((mut terminate, mut interrupt): (Signal, Signal), count: watch::Sender<usize>) {
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        count.send_modify(|count| *count += 1);
    }
}

async fn wait(received: &mut watch::Receiver<usize>, count: usize) {
    // Who counts lives as long as the process.
    let _ = received.wait_for(|received| *received >= count).await;
}

/// The proxy, once it runs.
async fn proxy(running: &mut watch::Receiver<Option<Arc<State>>>) -> Arc<State> {
    match running.wait_for(Option::is_some).await.ok().and_then(|proxy| Option::clone(&proxy)) {
        Some(proxy) => proxy,
        // The process is ending by itself.
        None => std::future::pending().await,
    }
}

/// Stops the proxy as the signals say.
async fn obey(mut received: watch::Receiver<usize>, mut running: watch::Receiver<Option<Arc<State>>>) {
    wait(&mut received, 1).await;
    let proxy = tokio::select! {
        biased;
        proxy = proxy(&mut running) => proxy,
        () = wait(&mut received, 2) => end("told to stop twice during the start"),
        () = sleep(START) => end("told to stop during a start that hangs"),
    };
    proxy.stop.advance(Phase::Leaving);
    wait(&mut received, 2).await;
    proxy.stop.advance(Phase::Cutting);
}

/// Ends the process if a stop of the proxy takes longer than it may, whoever asked for it.
async fn limit(mut running: watch::Receiver<Option<Arc<State>>>) {
    let proxy = proxy(&mut running).await;
    let mut watcher = proxy.stop.watcher();
    watcher.reached(Phase::Leaving).await;
    let all = proxy.time_to_stop().saturating_add(LATER);
    tokio::select! {
        () = sleep(all) => {}
        () = watcher.reached(Phase::Cutting) => sleep(CUT).await,
    }
    end("not everything was finished in time, and something hangs")
}

/// Ends the process as it is: something in it hangs.
fn end(why: &'static str) -> ! {
    let (said, heard) = mpsc::channel::<()>();
    let say = move || {
        tracing::error!(target: "heddle", "{why}: the process ends");
        drop(said);
    };
    // Standard error may be what hangs.
    if thread::Builder::new().spawn(say).is_ok() {
        let _ = heard.recv_timeout(Duration::from_millis(100));
    }
    #[expect(clippy::exit, reason = "the main thread may be what hangs")]
    process::exit(1)
}
