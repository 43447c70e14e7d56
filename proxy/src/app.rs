//! The one place that wires the parts together: configuration in, running proxy out.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{self, UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::checked::Config;
use crate::drain::Phase;
use crate::plugin::{Engine, Folder, LoadError, Plugins, give_second_chances, watch};
use crate::proto::headers::Signature;
use crate::server::listener::{self, Accepted, BindError, Listener, Part, accept, take_over};
use crate::server::worker::{Shared, Worker};
use crate::service::{Directory, tick};
use crate::transport::tls::{self, FileError};
use crate::{admin, drain, registry};

/// Why a proxy did not start.
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
    #[error("the built-in policy {name} cannot be used: {error}")]
    Policy { name: Arc<str>, error: LoadError },
    #[error("no policy is called {0}: expected a file of that name with .wasm in the plugins folder, or one of {1}")]
    MissingPolicy(String, String),
    #[error("{0:?} cannot stand in a Via header: expected letters, digits and -._~ only")]
    Via(String),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// A proxy that runs.
pub struct App {
    /// The addresses listened on, in the order of the configuration.
    pub listeners: Vec<SocketAddr>,
    /// Where health, metrics and state are served.
    pub admin: Option<SocketAddr>,
    pub state: Arc<State>,
    workers: Vec<thread::JoinHandle<bool>>,
    /// Ends with the last of them.
    running: mpsc::Receiver<Infallible>,
    control: thread::JoinHandle<()>,
    stopped: oneshot::Sender<()>,
}

/// What the admin server shows and commands.
pub struct State {
    pub directory: Arc<Directory>,
    pub plugins: Arc<Plugins>,
    pub registry: Arc<registry::Status>,
    pub workers: Arc<Shared>,
    /// In the order of the configuration.
    pub listeners: Vec<Arc<Listener>>,
    /// Ends TLS, by the address of the listener.
    pub terminators: Vec<(SocketAddr, Arc<tls::Terminator>)>,
    /// The certificates in use.
    pub certificates: Arc<ArcSwap<Vec<tls::Held>>>,
    /// When the process began to serve.
    pub started: SystemTime,
    /// Stops the proxy.
    pub stop: Arc<drain::Trigger>,
    /// Where the admin server takes commands.
    pub admin_socket: Option<PathBuf>,
}

impl State {
    /// Whether requests should be sent here: listeners are open, plugins are loaded, every registry has answered once
    /// or was restored, and the proxy has not been told to stop.
    pub fn is_ready(&self) -> bool {
        self.registry.is_ready() && !self.is_draining()
    }

    /// Whether the proxy has been told to stop.
    pub fn is_draining(&self) -> bool {
        self.stop.phase() >= Phase::Leaving
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
        let signature = Signature::new(&config.via).ok_or_else(|| StartError::Via(config.via.clone()))?;
        let (plugins, folder) = load_plugins(&config)?;
        let directory = {
            let plugins = plugins.clone();
            let clock = plugins.engine().clock.clone();
            Arc::new(Directory::new(config.services.clone(), clock, move |policy, role| plugins.require(policy, role)))
        };
        let mut bound = Vec::new();
        let mut files = tls::Files::default();
        for listener in &config.listeners {
            let tls = files.terminator(listener, &config.certificates)?;
            bound.push(listener::bind(listener, tls, config.workers)?);
        }
        let services = config.services.named.values().chain([&config.services.default]);
        for settings in services.filter_map(|service| service.tls.as_ref()) {
            files.connector(settings)?;
        }
        let admin = config.admin.map(admin::bind).transpose()?;
        let admin_socket = config.admin_socket.as_deref().map(admin::Socket::bind).transpose()?;
        let terminators = bound.iter().map(|bound| (bound.listener.settings.address, bound.listener.tls.clone()));
        let terminators: Vec<_> = terminators.collect();
        let listeners = terminators.iter().map(|(address, _)| *address).collect();
        let shared =
            Shared::new(directory.clone(), signature, config.suffix.clone(), files.connectors(), config.workers);

        let (stop, watcher) = drain::channel();
        let (stopped, until_stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let registry = {
            let (_entered, directory) = (runtime.enter(), directory.clone());
            registry::run(&config.registry, config.state.as_deref(), move |changes| directory.apply(changes))
        };
        let state = Arc::new(State {
            directory,
            plugins,
            registry: registry.status().clone(),
            workers: shared.clone(),
            listeners: bound.iter().map(|bound| bound.listener.clone()).collect(),
            terminators,
            certificates: files.held(),
            started: SystemTime::now(),
            stop: Arc::new(stop),
            admin_socket: config.admin_socket.clone(),
        });
        let admin_address = admin.as_ref().and_then(|listener| listener.local_addr().ok());
        let control = {
            let (shown, rescan) = (state.clone(), config.plugins.rescan);
            let followed = Followed { folder, rescan, files };
            let asked = admin::Doors { tcp: admin, unix: admin_socket };
            runtime.spawn(drain::leave(state.stop.clone(), config.drain_delay));
            let run = move || runtime.block_on(run_control(shown, registry, asked, followed, until_stopped));
            thread::Builder::new().name("heddle-control".into()).spawn(run)?
        };

        let (senders, receivers): (Vec<_>, Vec<_>) = (0..config.workers).map(|_| unbounded_channel()).unzip();
        let senders: Arc<[_]> = senders.into();
        let mut parts: Vec<Vec<Part>> = receivers.iter().map(|_| Vec::new()).collect();
        for bound in bound {
            for (of_worker, part) in parts.iter_mut().zip(bound.into_parts(&senders)) {
                of_worker.push(part);
            }
        }
        let (alive, running) = mpsc::channel(1);
        let mut workers = Vec::new();
        for (number, (parts, handed)) in parts.into_iter().zip(receivers).enumerate() {
            let (shared, watcher, drain, alive) = (shared.clone(), watcher.clone(), config.drain, alive.clone());
            let start = move || {
                let _alive = alive;
                run_worker(number, shared, parts, handed, watcher, drain)
            };
            workers.push(thread::Builder::new().name(format!("heddle-worker-{number}")).spawn(start)?);
        }
        Ok(Self { listeners, admin: admin_address, state, workers, running, control, stopped })
    }

    /// Waits until the proxy has stopped, because [`State::stop`] told it to.
    pub async fn ended(&mut self) {
        while self.running.recv().await.is_some() {}
    }

    /// Stops accepting after the configured delay, lets what is under way finish within the configured time, and ends
    /// all threads. True when nothing had to be cut off.
    pub fn stop(self) -> bool {
        self.state.stop.advance(Phase::Leaving);
        let mut finished = true;
        for worker in self.workers {
            finished &= worker.join().unwrap_or(false);
        }
        drop(self.stopped);
        let _ = self.control.join();
        finished
    }
}

/// The policies that services use, loaded, and the folder to be watched.
fn load_plugins(config: &Config) -> Result<(Arc<Plugins>, Option<Folder>), StartError> {
    let engine = Engine::new(config.plugins.clone(), Clock::running())
        .map_err(|error| StartError::Engine(format!("{error:#}")))?;
    let plugins = Arc::new(Plugins::new(engine));
    let services = &config.services;
    for service in services.named.values().chain([&services.default]) {
        for (policy, role) in service.policies() {
            plugins.require(policy, role);
        }
    }
    // A built-in policy that is not to be used as configured may be there under that name as a file.
    let builtin = plugins.load_builtin();
    let mut folder = config.plugins.folder.clone().map(Folder::new);
    if let Some(folder) = &mut folder {
        folder.scan(&plugins);
    }
    let missing = plugins.missing();
    if let Some(name) = missing.first() {
        let failed = builtin.err().into_iter().flatten().find(|(failed, _)| failed == name);
        return Err(match failed {
            Some((name, error)) => StartError::Policy { name, error },
            None => StartError::MissingPolicy(name.to_string(), crate::plugin::builtin_names().join(", ")),
        });
    }
    Ok((plugins, folder))
}

/// What the control thread follows on disk.
struct Followed {
    folder: Option<Folder>,
    /// How often the folder is read anew.
    rescan: Duration,
    files: tls::Files,
}

/// The life of the control thread: registry, plugin loading, certificates, admin server.
async fn run_control(
    state: Arc<State>,
    registry: registry::Running,
    admin: admin::Doors,
    followed: Followed,
    until_stopped: oneshot::Receiver<()>,
) {
    tokio::spawn(give_second_chances(state.plugins.clone()));
    tokio::spawn(tick::run(state.directory.clone()));
    let (registries, directory) = (state.registry.clone(), state.directory.clone());
    tokio::spawn(async move {
        registries.wait_ready().await;
        directory.settle();
    });
    if let Some(folder) = followed.folder {
        tokio::spawn(watch(folder, state.plugins.clone(), followed.rescan));
    }
    tokio::spawn(tls::watch(followed.files));
    admin.open(&state);
    // Until the last worker has ended; health can be asked for while the others finish.
    let _ = until_stopped.await;
    registry.stop().await;
}

/// One worker's life; true when nothing had to be cut off.
fn run_worker(
    number: usize,
    shared: Arc<Shared>,
    parts: Vec<Part>,
    handed: UnboundedReceiver<Accepted>,
    mut watcher: drain::Watcher,
    deadline: Duration,
) -> bool {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(target: "heddle::server", worker = number, "does not start: {error}");
            return false;
        }
    };
    let finished = runtime.block_on(async move {
        let worker = Worker::new(number, shared);
        tokio::task::spawn_local(worker.clone().keep_house());
        let mut accepting = tokio::task::JoinSet::new();
        for part in parts {
            let (worker, address, watcher) = (worker.clone(), part.listener.settings.address, watcher.clone());
            accepting.spawn_local(async move {
                if let Err(error) = accept(worker, part, watcher).await {
                    tracing::error!(target: "heddle::server", listener = %address, "accepts no more: {error}");
                }
            });
        }
        tokio::task::spawn_local(take_over(worker.clone(), handed));
        watcher.reached(Phase::Leaving).await;
        worker.leave();
        watcher.reached(Phase::Finishing).await;
        while accepting.join_next().await.is_some() {}
        worker.drain();
        let nobody_is_left = tokio::select! {
            idle = drain::until_idle(deadline, || worker.connections() == 0) => idle,
            () = watcher.reached(Phase::Cutting) => false,
        };
        // Who has asked for nothing is no loss.
        nobody_is_left || !worker.is_busy()
    });
    // A name that is still being looked up keeps nobody waiting.
    runtime.shutdown_background();
    finished
}
