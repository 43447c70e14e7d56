//! The one place that wires the parts together: configuration in, running proxy out.
//!
//! A configuration is put in force in two steps, at the start and later alike. First everything that can fail is done,
//! and nothing that anybody would notice (`prepare`): policies are loaded and tried, files are read, addresses bound.
//! Then all of it is put in the place of what there was (`control`), which cannot fail. So a start or a reload happens
//! as a whole or not at all, and a reload finds every problem that a start would find.

mod control;
mod prepare;
mod worker;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use self::control::{Control, Request};
use self::prepare::Prepared;
use self::worker::Post;
use crate::config::checked::Config;
use crate::descriptors::Descriptors;
use crate::drain::Phase;
use crate::handover::{Handover, Inherited};
use crate::plugin::{LoadError, Plugins};
use crate::server::listener::Listener;
use crate::server::socket::BindError;
use crate::server::worker::Shared;
use crate::service::Directory;
use crate::transport::tls::{self, FileError};
use crate::{admin, drain, registry, supervise};

/// How much longer than the configured times a stop may take: less than the second that is promised, so that the end of
/// the process falls into it too.
const MARGIN: Duration = Duration::from_millis(700);

/// What the control thread gets of that at least, to keep on disk what the registry has said last.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why a proxy did not start, or did not go on with another configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Bind(#[from] BindError),
    #[error("{0}")]
    AdminSocket(#[from] admin::SocketError),
    #[error("{0}")]
    Tls(#[from] FileError),
    #[error("the plugin engine does not start: {0}")]
    Engine(String),
    #[error("the policy {name} cannot be used: {error}")]
    Policy { name: Arc<str>, error: LoadError },
    #[error("no policy is called {0}: expected a file of that name with .wasm in the plugins folder, or one of {1}")]
    MissingPolicy(String, String),
    #[error("{0:?} cannot stand in a Via header: expected letters, digits and -._~ only")]
    Via(String),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    #[error("{0} cannot change while the proxy runs: expected it as it was, or an upgrade in place (--take-over)")]
    Fixed(&'static str),
    #[error("the proxy is stopping")]
    Stopping,
    #[error("it made the proxy panic (see the line before)")]
    Panicked,
}

/// A proxy that runs.
pub struct App {
    /// The addresses listened on at the start, in the order of the configuration.
    pub listeners: Vec<SocketAddr>,
    /// Where health, metrics and state were served at the start.
    pub admin: Option<SocketAddr>,
    pub state: Arc<State>,
    workers: Vec<thread::JoinHandle<bool>>,
    /// Ends with the last of them.
    running: watch::Receiver<()>,
    /// Closed when the control thread ends. The lock is for tests that share a proxy among threads.
    control_ended: Mutex<mpsc::Receiver<Infallible>>,
    stopped: oneshot::Sender<()>,
    requests: UnboundedSender<Request>,
}

/// What the admin server shows and commands.
pub struct State {
    pub directory: Arc<Directory>,
    pub registry: Arc<registry::Status>,
    pub workers: Arc<Shared>,
    /// The certificates in use.
    pub certificates: Arc<ArcSwap<Vec<tls::Held>>>,
    /// TLS handshakes with endpoints.
    pub endpoint_handshakes: Arc<tls::Handshakes>,
    /// When the process began to serve.
    pub started: SystemTime,
    pub reloads: Reloads,
    /// Stops the proxy.
    pub stop: Arc<drain::Trigger>,
    /// Where the admin server takes commands.
    pub admin_socket: Option<PathBuf>,
    /// By which another process may take this one's sockets over.
    pub handover: Handover,
    /// What the admin server answers that takes long to make.
    pub reports: admin::Reports,
    in_force: ArcSwap<InForce>,
}

/// What a configuration has brought about, apart from services and endpoints.
struct InForce {
    config: Config,
    plugins: Arc<Plugins>,
    /// In the order of the configuration.
    listeners: Vec<Arc<Listener>>,
}

/// What became of changed configurations.
#[derive(Debug, Default)]
pub struct Reloads {
    done: AtomicU64,
    refused: AtomicU64,
    /// Milliseconds since 1970; 0: none yet.
    last: AtomicU64,
}

impl Reloads {
    /// Configurations that were put in force after the start.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Configurations that changed nothing, since something was wrong with them.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// When one was put in force last.
    pub fn last(&self) -> Option<SystemTime> {
        let millis = Some(self.last.load(Ordering::Relaxed)).filter(|millis| *millis > 0)?;
        Some(UNIX_EPOCH + Duration::from_millis(millis))
    }

    /// Counts a configuration that changes nothing.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn count_done(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    /// Whether requests should be sent here: listeners are open, the policies that services use have been loaded or
    /// refused, every registry has answered once or was restored, and the proxy has not been told to stop.
    pub fn is_ready(&self) -> bool {
        self.registry.is_ready() && !self.is_draining() && !self.is_compiling()
    }

    /// Whether a service waits for a policy that is being compiled for the first time.
    fn is_compiling(&self) -> bool {
        self.plugins().awaited().iter().any(|policy| policy.refusal().is_none())
    }

    /// Waits until [`State::is_ready`] does not depend on policies.
    pub async fn wait_policies(&self) {
        while self.is_compiling() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What keeps services from being served although the proxy runs, a line each: policies that were never loaded.
    pub fn unserved(&self) -> Vec<String> {
        let line = |service: Arc<crate::service::Service>| {
            let policy = service.awaited_policy()?;
            let why = policy.refusal().unwrap_or_else(|| "it is being compiled".to_owned());
            Some(format!("service {}: the policy {} is not loaded: {why}", service.name(), policy.name))
        };
        let mut lines: Vec<String> = self.directory.all().into_iter().filter_map(line).collect();
        lines.sort_unstable();
        lines
    }

    /// Whether the proxy has been told to stop.
    pub fn is_draining(&self) -> bool {
        self.stop.phase() >= Phase::Leaving
    }

    /// The plugins in use.
    pub fn plugins(&self) -> Arc<Plugins> {
        self.in_force.load().plugins.clone()
    }

    /// The listeners, in the order of the configuration.
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        self.in_force.load().listeners.clone()
    }

    /// The names by which the admin server may be called.
    pub fn admin_hosts(&self) -> Vec<String> {
        self.in_force.load().config.admin_hosts.clone()
    }

    /// How long what is under way may take once nothing more is accepted.
    pub fn drain(&self) -> Duration {
        self.in_force.load().config.drain
    }

    /// How long a stop may take in all: the delay, the time for what is under way, and `MARGIN`.
    pub fn time_to_stop(&self) -> Duration {
        self.drain_delay().saturating_add(self.drain()).saturating_add(MARGIN)
    }

    /// How long connections are still accepted once the proxy has been told to stop.
    pub fn drain_delay(&self) -> Duration {
        self.in_force.load().config.drain_delay
    }
}

impl App {
    /// Starts a proxy: policies are loaded and sockets are bound when this returns; the registry may not have answered
    /// yet.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing runs then.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let app = Self::begin(config, Inherited::default())?;
        app.open();
        Ok(app)
    }

    /// Starts a proxy that accepts nothing yet, on what it has inherited of the addresses that the configuration has.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing runs then.
    pub fn begin(config: Config, inherited: Inherited) -> Result<Self, StartError> {
        let prepared = Prepared::new(config, None, inherited)
            .map_err(|errors| errors.into_iter().next().unwrap_or(StartError::Stopping))?;
        let (config, plugins) = (prepared.config.clone(), prepared.plugins.clone());
        let directory = {
            let (clock, plugins) = (plugins.engine().clock.clone(), plugins.clone());
            Arc::new(Directory::new(config.services.clone(), clock, move |policy, role| plugins.require(policy, role)))
        };
        // After what is opened at a start has been.
        let descriptors = Descriptors::of_process(config.workers);
        let shared = Shared::new(directory.clone(), descriptors, config.workers);
        let (stop, watcher) = drain::channel();
        let (stopped, until_stopped) = oneshot::channel();
        let (requests, requested) = unbounded_channel();
        let (handover, asked) = Handover::new();
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let registry = {
            let (_entered, directory) = (runtime.enter(), directory.clone());
            registry::run(&config.registry, config.state.as_deref(), move |changes| {
                for change in changes {
                    // One that cannot be applied keeps no other from being so.
                    supervise::caught_call("registry-changes", || {
                        let service = change.service.clone();
                        let _input = supervise::input(&service, &[]);
                        directory.apply(vec![change]);
                    });
                }
            })
        };
        let state = Arc::new(State {
            directory,
            registry: registry.status().clone(),
            workers: shared.clone(),
            certificates: prepared.files.held(),
            endpoint_handshakes: prepared.files.handshakes(),
            started: SystemTime::now(),
            reloads: Reloads::default(),
            stop: Arc::new(stop),
            admin_socket: config.admin_socket.clone(),
            handover,
            reports: admin::Reports::default(),
            in_force: ArcSwap::from_pointee(InForce { config: config.clone(), plugins, listeners: Vec::new() }),
        });
        let (senders, handed): (Vec<_>, Vec<_>) = (0..config.workers).map(|_| unbounded_channel()).unzip();
        let (orders, received): (Vec<_>, Vec<_>) = (0..config.workers).map(|_| unbounded_channel()).unzip();
        let (alive, running) = watch::channel(());
        let mut workers = Vec::new();
        for (number, (handed, orders)) in handed.into_iter().zip(received).enumerate() {
            let (state, common, watcher) = (state.clone(), prepared.common.clone(), watcher.clone());
            let post = Post { number, state, common, orders, handed, watcher };
            let thread = thread::Builder::new().name(format!("heddle-worker-{number}"));
            let alive = alive.clone();
            workers.push(thread.spawn(move || {
                let _alive = alive;
                worker::run(post)
            })?);
        }
        let control = {
            let _entered = runtime.enter();
            Control::new(state.clone(), prepared, registry, orders, senders.into())
        };
        let admin = control.admin();
        let listeners = state.listeners().iter().map(|listener| listener.settings.address).collect();
        let (ended, control_ended) = mpsc::channel();
        let run = move || {
            // Dropped when the thread ends, however it does.
            let _ended = ended;
            runtime.block_on(control.run(requested, asked, until_stopped));
            // What still blocks (a name that is looked up, a file on a mount that hangs) keeps nobody waiting.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("heddle-control".into()).spawn(run)?;
        Ok(Self {
            listeners,
            admin,
            state,
            workers,
            running,
            control_ended: Mutex::new(control_ended),
            stopped,
            requests,
        })
    }

    /// Begins to accept.
    pub fn open(&self) {
        // Without a control thread the proxy has stopped.
        let _ = self.requests.send(Request::Open);
    }

    /// Goes on with another configuration: as a whole, or not at all. When this returns, every request that is begun is
    /// treated by its services, and every connection that is accepted by its listeners. A request that was under way
    /// before is finished by the services before, and a connection that is open keeps the settings of the listener that
    /// it was accepted by. While another process is taking over ([`State::handover`]) this waits until that is over.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it. Nothing has changed then.
    pub async fn reload(&self, config: Config) -> Result<(), Vec<StartError>> {
        let (answer, answered) = oneshot::channel();
        // As above: then there is no answer either.
        let _ = self.requests.send(Request::Reload(Box::new(config), answer));
        let result = answered.await.unwrap_or_else(|_| Err(vec![StartError::Stopping]));
        match &result {
            Ok(()) => self.state.reloads.count_done(),
            Err(_) => self.state.reloads.count_refused(),
        }
        result
    }

    /// Waits until the proxy has stopped, because [`State::stop`] told it to, or another process has taken over.
    pub async fn ended(&self) {
        let mut running = self.running.clone();
        while running.changed().await.is_ok() {}
    }

    /// Stops accepting after the configured delay, lets what is under way finish within the configured time, and ends
    /// all threads, but for those that a blocked system call holds up. True when nothing had to be cut off.
    pub fn stop(self) -> bool {
        let within = self.state.time_to_stop();
        let begun = Instant::now();
        self.state.stop.advance(Phase::Leaving);
        let mut finished = true;
        for worker in self.workers {
            finished &= worker.join().unwrap_or(false);
        }
        drop(self.stopped);
        // It only keeps on disk what the registry has said last.
        let left = within.saturating_sub(begun.elapsed()).max(LAST_WORDS);
        let ended = self.control_ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        if matches!(ended.recv_timeout(left), Err(mpsc::RecvTimeoutError::Timeout)) {
            tracing::error!(target: "heddle", "the control thread hangs, most likely in a file system: it is not waited for");
        }
        finished
    }
}
