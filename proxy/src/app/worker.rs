//! The life of a worker's thread: it serves, and takes orders.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, LocalOptions};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinSet, spawn_local};

use super::State;
use crate::drain::{self, Phase};
use crate::server::listener::{Accepted, Accepting, Part, accept, take_over};
use crate::server::worker::{Common, Worker};
use crate::supervise::{self, caught_call, keep};

/// What a worker is told.
pub enum Order {
    /// Accept from this.
    Accept(Part),
    /// This holds for all requests from now on; say when it does.
    Common(Arc<Common>, oneshot::Sender<()>),
    /// Services have changed; say when what is begun is treated by their new settings.
    Refresh(oneshot::Sender<()>),
    /// Hand out a descriptor of each socket that is accepted from.
    Sockets(oneshot::Sender<io::Result<Vec<(SocketAddr, OwnedFd)>>>),
}

/// What a worker begins with.
pub struct Post {
    pub number: usize,
    pub state: Arc<State>,
    pub common: Arc<Common>,
    pub orders: UnboundedReceiver<Order>,
    /// Connections that other workers have accepted.
    pub handed: UnboundedReceiver<Accepted>,
    pub watcher: drain::Watcher,
}

/// One worker's life; true when nothing had to be cut off.
pub fn run(post: Post) -> bool {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(target: "heddle::server", worker = post.number, "does not start: {error}");
            return false;
        }
    };
    let finished = runtime.block_on(serve(post));
    // A name that is still being looked up keeps nobody waiting.
    runtime.shutdown_background();
    finished
}

async fn serve(post: Post) -> bool {
    let Post { number, state, common, mut orders, handed, mut watcher } = post;
    if let Some(runtime) = state.workers.runtimes.get(number) {
        let _ = runtime.set(Handle::current());
    }
    let worker = Worker::new(number, state.workers.clone(), common);
    let housed = worker.clone();
    spawn_local(keep("maintenance", move || housed.clone().keep_house()));
    let handed = Rc::new(Mutex::new(handed));
    let taking = worker.clone();
    spawn_local(supervise::finish("handed-over", move || {
        let (worker, handed) = (taking.clone(), handed.clone());
        async move { take_over(worker, &mut *handed.lock().await).await }
    }));
    let mut open =
        Open { worker: worker.clone(), watcher: watcher.clone(), tasks: JoinSet::new(), sockets: Vec::new() };
    let mut leaving = watcher.clone();
    let mut replaced = state.plugins().replaced();
    loop {
        tokio::select! {
            biased;
            () = leaving.reached(Phase::Leaving), if !worker.is_leaving() => worker.leave(),
            () = watcher.reached(Phase::Finishing) => break,
            // A panic here would end the worker with all its connections.
            Some(order) = orders.recv() => drop(caught_call("worker", || match order {
                Order::Accept(part) => open.accept(part),
                // Who does not wait for an answer is being stopped.
                Order::Common(common, done) => {
                    worker.set_common(common);
                    let _ = done.send(());
                }
                Order::Refresh(done) => {
                    worker.refresh();
                    let _ = done.send(());
                }
                Order::Sockets(answer) => drop(answer.send(open.sockets())),
            })),
            Some(_) = open.tasks.join_next() => {}
            changed = replaced.changed() => {
                // Another configuration has brought other plugins, and the ones before are gone.
                if changed.is_err() {
                    replaced = state.plugins().replaced();
                }
                spawn_local(worker.clone().renew_policies());
            }
        }
    }
    // Also while connections that waited are still accepted: one that waits for its turn gets it when another ends.
    worker.drain();
    let nobody_is_left = tokio::select! {
        idle = drain::until_idle(state.drain(), || !open.accepts() && worker.connections() == 0) => idle,
        () = watcher.reached(Phase::Cutting) => false,
    };
    // Who has asked for nothing is no loss.
    nobody_is_left || !worker.is_busy()
}

/// The sockets that a worker accepts from.
struct Open {
    worker: Rc<Worker>,
    watcher: drain::Watcher,
    tasks: JoinSet<()>,
    /// A socket is its task's to close.
    sockets: Vec<(SocketAddr, Weak<TcpListener>)>,
}

impl Open {
    fn accept(&mut self, part: Part) {
        let address = part.address;
        match Accepting::new(part) {
            Ok(part) => {
                self.sockets.retain(|(_, socket)| socket.strong_count() > 0);
                self.sockets.push((address, Rc::downgrade(&part.socket)));
                let (worker, watcher) = (self.worker.clone(), self.watcher.clone());
                self.tasks.spawn_local(supervise::finish("accept", move || {
                    accept(worker.clone(), part.clone(), watcher.clone())
                }));
            }
            Err(error) => {
                tracing::error!(target: "heddle::server", listener = %address, "does not accept: {error}");
            }
        }
    }

    /// Whether anything is still accepted.
    fn accepts(&mut self) -> bool {
        while self.tasks.try_join_next().is_some() {}
        !self.tasks.is_empty()
    }

    /// A further descriptor of each, or none at all: connections that wait in a queue that is left out would be lost.
    fn sockets(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        let open = self.sockets.iter().filter_map(|(address, socket)| Some((*address, socket.upgrade()?)));
        open.map(|(address, socket)| Ok((address, socket.as_fd().try_clone_to_owned()?))).collect()
    }
}
