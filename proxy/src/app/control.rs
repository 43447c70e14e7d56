//! The control thread: everything that is not on the way of a request, and the putting in force of configurations.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, LocalSet};

use super::prepare::{AdminAt, At, Before, Opening, Prepared, policies};
use super::worker::Order;
use super::{InForce, StartError, State};
use crate::check::{self, Connectors};
use crate::config::{self, checked::Config};
use crate::drain::Phase;
use crate::handover::{Ask, Inherited, Kind, Passed, Ready, Sockets};
use crate::plugin::{Folder, Plugins, give_second_chances};
use crate::server::listener::{Accepted, Closing, Listener, Part};
use crate::server::socket::Bound;
use crate::server::worker::Common;
use crate::service::tick;
use crate::supervise::{self, caught, finish, keep};
use crate::transport::tls::{self, Files};
use crate::{admin, drain, plugin, registry};

/// What the control thread is asked for.
pub enum Request {
    /// Begin to accept.
    Open,
    /// Go on with another configuration.
    Reload(Box<Config>, oneshot::Sender<Result<(), Vec<StartError>>>),
}

/// What the control thread holds.
pub struct Control {
    state: Arc<State>,
    config: Config,
    registry: registry::Running,
    plugins: Arc<Plugins>,
    files: Arc<Mutex<Files>>,
    common: Arc<Common>,
    /// Those of `common`, for the checks of endpoints.
    connectors: Arc<ArcSwap<Connectors>>,
    /// In the order of the configuration.
    doors: Vec<Door>,
    /// What is to be accepted from once the proxy begins to, and by which worker; none when it has begun.
    unopened: Option<Vec<(usize, Part)>>,
    admin: Option<Admin>,
    /// Where commands are taken, and by what task.
    commands: Option<admin::Socket>,
    commanded: JoinSet<()>,
    followers: Followers,
    orders: Vec<UnboundedSender<Order>>,
    /// To each worker, for connections that others have accepted.
    handed: Arc<[UnboundedSender<Accepted>]>,
}

/// A listener that is open.
struct Door {
    /// As it was configured.
    wanted: SocketAddr,
    listener: Arc<ArcSwap<Listener>>,
    closing: watch::Sender<Closing>,
}

impl Door {
    fn address(&self) -> SocketAddr {
        self.listener.load().settings.address
    }
}

/// Says where clients could say themselves who they are.
fn warn_of_bypasses(config: &Config) {
    config::bypasses(config).iter().for_each(|line| tracing::warn!(target: "heddle::config", "{line}"));
}

/// The admin server; it ends when this is dropped.
struct Admin {
    wanted: SocketAddr,
    socket: TcpListener,
    serving: JoinSet<()>,
}

/// Tasks that are begun anew for another configuration, each where there is something to follow.
#[derive(Default)]
struct Followers {
    folder: JoinSet<()>,
    files: JoinSet<()>,
    second_chances: JoinSet<()>,
}

impl Control {
    /// Puts the first configuration in force, apart from what the workers and the directory have begun with.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(
        state: Arc<State>,
        prepared: Prepared,
        registry: registry::Running,
        orders: Vec<UnboundedSender<Order>>,
        handed: Arc<[UnboundedSender<Accepted>]>,
    ) -> Self {
        let Prepared { config, common, plugins, folder, files, doors, admin, commands } = prepared;
        let connectors = Arc::new(ArcSwap::from_pointee(common.connectors.clone()));
        files.judge();
        warn_of_bypasses(&config);
        let mut control = Self {
            state,
            config,
            registry,
            plugins,
            files: Arc::new(Mutex::new(files)),
            common,
            connectors,
            doors: Vec::new(),
            unopened: Some(Vec::new()),
            admin: None,
            commands,
            commanded: JoinSet::new(),
            followers: Followers::default(),
            orders,
            handed,
        };
        control.open_doors(doors);
        control.open_admin(admin);
        control.follow_plugins(folder);
        control.follow_files();
        control.show();
        control
    }

    /// Where the admin server listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.socket.local_addr().ok()
    }

    /// The life of the control thread: until the last worker has ended, so that health can be asked for while the
    /// others finish.
    pub async fn run(
        self,
        requests: UnboundedReceiver<Request>,
        asks: UnboundedReceiver<Ask>,
        until_stopped: oneshot::Receiver<()>,
    ) {
        // What is between the proxy and the endpoints that it checks stays on this thread.
        LocalSet::new().run_until(self.serve(requests, asks, until_stopped)).await;
    }

    async fn serve(
        mut self,
        mut requests: UnboundedReceiver<Request>,
        mut asks: UnboundedReceiver<Ask>,
        mut until_stopped: oneshot::Receiver<()>,
    ) {
        // These learn by themselves that services have changed.
        let shared = &self.state.workers;
        let (own, at_once) = (shared.own.clone(), shared.descriptors.checks());
        let (directory, connectors) = (self.state.directory.clone(), self.connectors.clone());
        let checks = move || check::run(directory.clone(), connectors.clone(), own.clone(), at_once);
        tokio::task::spawn_local(keep("health-checks", checks));
        let state = self.state.clone();
        tokio::spawn(finish("drain", move || {
            let state = state.clone();
            drain::leave(state.stop.clone(), move || state.drain_delay())
        }));
        let directory = self.state.directory.clone();
        tokio::spawn(keep("ticks", move || tick::run(directory.clone())));
        let state = self.state.clone();
        tokio::spawn(finish("stop-compiling", move || {
            let (state, mut watcher) = (state.clone(), state.stop.watcher());
            async move {
                watcher.reached(Phase::Leaving).await;
                state.plugins().engine().stop_compiling();
            }
        }));
        let (registries, directory) = (self.state.registry.clone(), self.state.directory.clone());
        tokio::spawn(finish("settle", move || {
            let (registries, directory) = (registries.clone(), directory.clone());
            async move {
                registries.wait_ready().await;
                directory.settle();
            }
        }));
        let handover = self.state.handover.clone();
        let mut postponed = None;
        loop {
            tokio::select! {
                _ = &mut until_stopped => break,
                // Who does not wait for an answer is being stopped.
                Some(request) = requests.recv(), if postponed.is_none() => match request {
                    Request::Open => drop(supervise::caught_call("control", || self.open())),
                    // It would open listeners that the other process does not have, which would refuse connections then.
                    Request::Reload(config, answer) if handover.is_under_way() => {
                        tracing::warn!(
                            target: "heddle",
                            "another process is taking over; a changed configuration waits until that is over"
                        );
                        postponed = Some((config, answer));
                    }
                    Request::Reload(config, answer) => drop(answer.send(self.reload_or_stay(*config).await)),
                },
                () = handover.over(), if postponed.is_some() => if let Some((config, answer)) = postponed.take() {
                    drop(answer.send(self.reload_or_stay(*config).await));
                },
                Some(ask) = asks.recv() => match ask {
                    Ask::Sockets(answer) => {
                        let sockets = caught("control", self.sockets()).await;
                        drop(answer.send(sockets.unwrap_or_else(|| Err(io::Error::other(StartError::Panicked)))));
                    }
                    Ask::Leave(ready, answer) => {
                        supervise::caught_call("control", || self.leave(&ready));
                        let _ = answer.send(());
                    }
                },
            }
        }
        self.registry.stop().await;
    }

    fn open(&mut self) {
        let Some(unopened) = self.unopened.take() else { return };
        if let Some(path) = &self.state.admin_socket {
            tracing::info!(target: "heddle", "commands on {}", path.display());
        }
        for (worker, part) in unopened {
            self.order(worker, Order::Accept(part));
        }
        self.serve_admin();
        self.take_commands();
    }

    /// A panic, which is logged, is one more reason why a configuration is not put in force.
    async fn reload_or_stay(&mut self, config: Config) -> Result<(), Vec<StartError>> {
        caught("reload", self.reload(config)).await.unwrap_or_else(|| Err(vec![StartError::Panicked]))
    }

    async fn reload(&mut self, config: Config) -> Result<(), Vec<StartError>> {
        if self.state.is_draining() {
            return Err(vec![StartError::Stopping]);
        }
        let door = |door: &Door| (door.wanted, door.listener.load_full());
        let before = Before {
            config: self.config.clone(),
            plugins: self.plugins.clone(),
            files: self.files.clone(),
            doors: self.doors.iter().map(door).collect(),
            admin: self.admin.as_ref().and_then(|admin| Some((admin.wanted, admin.socket.local_addr().ok()?))),
        };
        let prepare = move || Prepared::new(config, Some(&before), Inherited::default());
        self.put_in_force(supervise::blocking(prepare).await?).await;
        Ok(())
    }

    /// Puts what has been prepared in the place of what there is.
    async fn put_in_force(&mut self, prepared: Prepared) {
        let Prepared { config, common, plugins, folder, mut files, doors, admin, .. } = prepared;
        // Before anything can lead there. What is closed is forgotten once it is.
        self.state.workers.own.add(newly_bound(&doors, &admin));
        // What services need is there before they are, and services before who leads to them.
        self.tell_workers(|done| Order::Common(common.clone(), done)).await;
        self.connectors.store(Arc::new(common.connectors.clone()));
        let requires = plugins.clone();
        self.state.directory.reload(config.services.clone(), move |policy, role| requires.require(policy, role));
        self.registry.reload(&config.registry).await;
        self.tell_workers(Order::Refresh).await;
        files.judge();
        if config::bypasses(&config) != config::bypasses(&self.config) {
            warn_of_bypasses(&config);
        }
        self.open_doors(doors);
        self.open_admin(admin);
        // Whoever reads them anew holds the lock, for as long as a mount may hang.
        let before = self.files.clone();
        let files = supervise::blocking(move || {
            files.replace(&before.lock().unwrap_or_else(PoisonError::into_inner));
            files
        });
        self.files = Arc::new(Mutex::new(files.await));
        (self.config, self.common, self.plugins) = (config, common, plugins);
        self.plugins.settle(&policies(&self.config.services));
        self.follow_plugins(folder);
        self.follow_files();
        self.show();
    }

    /// Gives every worker an order, until all have followed it.
    async fn tell_workers(&self, order: impl Fn(oneshot::Sender<()>) -> Order) {
        let mut answers = Vec::new();
        for worker in &self.orders {
            let (done, answer) = oneshot::channel();
            // A worker that is gone has nothing to follow.
            let _ = worker.send(order(done));
            answers.push(answer);
        }
        for answer in answers {
            // As above.
            let _ = answer.await;
        }
    }

    fn order(&self, worker: usize, order: Order) {
        if let Some(worker) = self.orders.get(worker) {
            // As above.
            let _ = worker.send(order);
        }
    }

    /// Opens listeners, has others go on with other settings, and closes those that are left.
    fn open_doors(&mut self, doors: Vec<Opening>) {
        let mut before: Vec<Option<Door>> = self.doors.drain(..).map(Some).collect();
        for Opening { settings, tls, at } in doors {
            let door = match at {
                At::Bound(bound) => {
                    let listener = Listener::new(&settings, bound.address, tls, self.state.workers.descriptors.clone());
                    self.open_door(bound, Arc::new(ArcSwap::from_pointee(listener)))
                }
                At::Before(place) => {
                    let Some(mut door) = before.get_mut(place).and_then(Option::take) else { continue };
                    door.wanted = settings.address;
                    let now = door.listener.load_full();
                    if !now.is_as(&settings, &tls) {
                        door.listener.store(Arc::new(now.changed(&settings, tls)));
                    }
                    door
                }
            };
            self.doors.push(door);
        }
        for door in before.into_iter().flatten() {
            tracing::info!(target: "heddle", "no longer listening on {}", door.address());
            door.closing.send_replace(Closing::Finish);
        }
    }

    /// Shares the sockets of an address out among the workers.
    fn open_door(&mut self, bound: Bound, listener: Arc<ArcSwap<Listener>>) -> Door {
        let Bound { wanted, address, sockets } = bound;
        let (closing, watched) = watch::channel(Closing::Open);
        for (number, socket) in sockets.into_iter().enumerate() {
            let workers = self.handed.clone();
            let part = Part { address, listener: listener.clone(), socket, closing: watched.clone(), workers };
            let worker = number % self.orders.len().max(1);
            match &mut self.unopened {
                Some(unopened) => unopened.push((worker, part)),
                None => self.order(worker, Order::Accept(part)),
            }
        }
        tracing::info!(target: "heddle", "listening on {address}");
        Door { wanted, listener, closing }
    }

    fn open_admin(&mut self, admin: AdminAt) {
        match admin {
            AdminAt::Before => return,
            AdminAt::Nowhere => self.admin = None,
            AdminAt::Bound(wanted, socket) => self.admin = Some(Admin { wanted, socket, serving: JoinSet::new() }),
        }
        if let Some(address) = self.admin() {
            tracing::info!(target: "heddle", "health and metrics on {address}");
        }
        if self.unopened.is_none() {
            self.serve_admin();
        }
    }

    fn serve_admin(&mut self) {
        let Some(admin) = &mut self.admin else { return };
        match admin.socket.try_clone() {
            Ok(socket) => {
                let state = self.state.clone();
                admin.serving.spawn(keep("admin", move || admin::serve_port(socket.try_clone(), state.clone())));
            }
            Err(error) => tracing::error!(target: "heddle::admin", "does not start: {error}"),
        }
    }

    fn take_commands(&mut self) {
        let Some(socket) = &mut self.commands else { return };
        socket.own();
        match socket.descriptor() {
            Ok(socket) => {
                let state = self.state.clone();
                self.commanded
                    .spawn(keep("commands", move || admin::serve_commands(socket.try_clone(), state.clone())));
            }
            Err(error) => tracing::error!(target: "heddle::admin", "does not start: {error}"),
        }
    }

    fn follow_plugins(&mut self, folder: Option<Option<Folder>>) {
        let Some(folder) = folder else { return };
        let followers = &mut self.followers;
        (followers.folder, followers.second_chances) = Default::default();
        let plugins = self.plugins.clone();
        followers.second_chances.spawn(keep("second-chances", move || give_second_chances(plugins.clone())));
        let Some((folder, path)) = folder.zip(self.config.plugins.folder.clone()) else { return };
        let (mut folder, plugins, rescan) = (Some(folder), self.plugins.clone(), self.config.plugins.rescan);
        followers.folder.spawn(keep("plugins", move || {
            let folder = folder.take().unwrap_or_else(|| Folder::new(path.clone()));
            plugin::watch(folder, plugins.clone(), rescan)
        }));
    }

    fn follow_files(&mut self) {
        self.followers.files = JoinSet::new();
        let files = self.files.clone();
        self.followers.files.spawn(keep("certificates", move || tls::watch(files.clone())));
    }

    /// What others see of it.
    fn show(&self) {
        let listeners = self.doors.iter().map(Door::address);
        self.state.workers.own.set(listeners.chain(self.admin()).collect());
        self.state.workers.descriptors.serve(&self.config.listeners.iter().collect::<Vec<_>>());
        self.state.in_force.store(Arc::new(InForce {
            config: self.config.clone(),
            plugins: self.plugins.clone(),
            listeners: self.doors.iter().map(|door| door.listener.load_full()).collect(),
        }));
    }

    /// All sockets, for another process.
    async fn sockets(&self) -> io::Result<Sockets> {
        if self.state.is_draining() {
            return Err(io::Error::other(StartError::Stopping));
        }
        let commands = self.commands.as_ref().ok_or(io::ErrorKind::NotFound)?.descriptor()?;
        let door = |door: &Door| Passed {
            kind: Kind::Listener,
            wanted: door.wanted,
            address: door.address(),
            sockets: Vec::new(),
        };
        let mut passed: Vec<Passed> = self.doors.iter().map(door).collect();
        for worker in &self.orders {
            let (answer, sockets) = oneshot::channel();
            // A worker that is gone has none.
            let _ = worker.send(Order::Sockets(answer));
            for (address, socket) in sockets.await.unwrap_or_else(|_| Ok(Vec::new()))? {
                // Those of a listener that is being closed are not passed on.
                if let Some(door) = passed.iter_mut().find(|door| door.address == address) {
                    door.sockets.push(socket);
                }
            }
        }
        if let Some(admin) = &self.admin {
            let (wanted, address) = (admin.wanted, admin.socket.local_addr()?);
            let sockets = vec![admin.socket.try_clone()?.into()];
            passed.push(Passed { kind: Kind::Admin, wanted, address, sockets });
        }
        Ok(Sockets { passed, commands })
    }

    /// Leaves what another process serves by the same sockets to it, and has the proxy stop.
    fn leave(&mut self, ready: &Ready) {
        tracing::info!(target: "heddle", "another process has taken over");
        for door in self.doors.iter().filter(|door| ready.addresses.contains(&door.address())) {
            door.closing.send_replace(Closing::Leave);
        }
        // Who asks for health asks the other one.
        if self.admin().is_some_and(|address| ready.addresses.contains(&address)) {
            self.admin = None;
        }
        if ready.commands {
            self.commanded = JoinSet::new();
            self.commands.take().into_iter().for_each(admin::Socket::leave);
        }
        self.state.stop.advance(Phase::Finishing);
    }
}

/// The addresses that were not listened on before.
fn newly_bound(doors: &[Opening], admin: &AdminAt) -> Vec<SocketAddr> {
    let doors = doors.iter().filter_map(|door| match &door.at {
        At::Bound(bound) => Some(bound.address),
        At::Before(_) => None,
    });
    let admin = match admin {
        AdminAt::Bound(_, socket) => socket.local_addr().ok(),
        AdminAt::Before | AdminAt::Nowhere => None,
    };
    doors.chain(admin).collect()
}
