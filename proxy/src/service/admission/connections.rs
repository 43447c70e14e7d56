//! Connections to the endpoints of a service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;

use super::holders::{Holder, Holders};
use super::line::{Line, Waiting};
use super::shares::{Client, displaced, judge};
use super::try_count;
use crate::descriptors::Descriptor;
use crate::service::Load;

/// The connections to all endpoints of a service, those who wait for one, and those who may have idle ones.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicU32,
    line: Line<Wanted, Turn>,
    holders: Holders,
    /// Clients that have their share, as was seen last: of one endpoint, or of all of them.
    over: ArcSwap<Vec<(Option<Load>, Client)>>,
    /// The tick of that; locked while somebody looks.
    looked: Mutex<Option<u64>>,
    keepers: Mutex<Vec<Weak<Keeper>>>,
}

/// A connection that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The endpoint's counters.
    pub load: Load,
    /// Connections to the endpoint.
    pub limit: u32,
    /// Connections to all endpoints of the service; [`u32::MAX`] for any number.
    pub limit_of_service: u32,
    /// For whom.
    pub client: Client,
    /// The pool that wants it: what nothing else is called at the same time.
    pub home: usize,
    pub reuse: Reuse,
}

/// Which connections that are open already would do as well, if one came home to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    None,
    Http1,
    Any,
}

/// What the turn brings to who waits for a connection.
#[derive(Debug)]
pub enum Turn {
    /// The right to open one.
    Permit(Permit),
    /// One that is open has come home: the pool has it, under the number of who waited.
    Home,
}

/// Connections of which there are too few.
struct Scarce {
    /// The endpoint; none for all of the service.
    load: Option<Load>,
    /// How many there may be.
    capacity: u32,
    /// Who waits for one.
    clients: Vec<Client>,
}

/// Whom it serves that a connection ends, or becomes idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Nobody,
    /// A request of the same pool, which has been told that the connection is its own now; by its number in the line.
    Own(u64),
    /// Somebody who gets a permit once it is closed.
    Another,
}

/// The right to a connection, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    load: Load,
    connections: Arc<Connections>,
    /// The descriptor of the connection, once there is one.
    descriptor: Option<Descriptor>,
}

impl Permit {
    /// The same for a connection that takes this descriptor.
    pub fn with(mut self, descriptor: Descriptor) -> Self {
        self.descriptor = Some(descriptor);
        self
    }
}

impl Connections {
    /// The right to a connection, unless the endpoint or the service has as many as it may, or others wait already.
    pub fn try_take(self: &Arc<Self>, wanted: &Wanted) -> Option<Permit> {
        if !self.is_awaited() {
            if let Some(permit) = self.take(wanted) {
                return Some(permit);
            }
            // What was counted for a moment may have stood in somebody's way.
            self.serve_next();
        }
        None
    }

    /// A place in the line for one, for which workers are asked to give up what is idle; none when `most` wait already.
    pub fn wait(self: &Arc<Self>, wanted: Wanted, most: usize) -> Option<Waiting<'_, Wanted, Turn>> {
        let client = wanted.client;
        if self.line.len() >= most
            && let Some(other) = displaced(self.line.all(|wanted| wanted.client).into_iter(), client)
        {
            self.line.expel(|wanted| wanted.client == other);
        }
        let waiting = self.line.join(wanted, most);
        self.serve_next();
        if waiting.is_some() && self.is_awaited() {
            self.ask_keepers();
        }
        waiting
    }

    /// Whether anybody waits for a connection: all that is looked at while nobody does.
    pub fn is_awaited(&self) -> bool {
        !self.line.is_empty()
    }

    /// Connections that are open or being opened.
    pub fn open(&self) -> u32 {
        self.open.load(SeqCst)
    }

    /// How many wait for one.
    pub fn pending(&self) -> usize {
        self.line.len()
    }

    /// Whom it serves first that a connection to this endpoint, of this pool, ends or can be used again. If the next one
    /// is of the same pool and `fits` for it, it is told so, and must be given the connection.
    pub fn ending(&self, load: &Load, home: usize, fits: impl Fn(Reuse) -> bool) -> Ending {
        let is_own = |wanted: &Wanted| wanted.home == home && fits(wanted.reuse);
        match self.line.call(self.late(), |wanted| wanted.is_served_by(load), is_own) {
            Some((number, turn)) => match turn.send(Turn::Home) {
                Ok(()) => Ending::Own(number),
                Err(_) => Ending::Nobody,
            },
            None if self.line.any(|wanted| wanted.is_served_by(load)) => Ending::Another,
            None => Ending::Nobody,
        }
    }

    /// Tells the first of this pool for which a connection `fits` that it has one. It takes nothing from those who came
    /// before: the connection is not idle, and nobody else could have it.
    pub fn share(&self, home: usize, fits: impl Fn(Reuse) -> bool) -> Option<u64> {
        let (number, turn) =
            self.line.call(self.late(), |wanted| wanted.home == home && fits(wanted.reuse), |_| true)?;
        turn.send(Turn::Home).ok().map(|()| number)
    }

    /// How many wait whom it would serve that connections to this endpoint end.
    pub fn awaiting(&self, load: &Load) -> usize {
        if self.is_awaited() { self.line.count(|wanted| wanted.is_served_by(load)) } else { 0 }
    }

    /// Another one that may hold connections to the endpoint with these counters.
    pub fn holder(&self, load: &Load) -> Arc<Holder> {
        self.holders.add(load)
    }

    /// Sees to it that clients have no more than their share, so many percent, while others wait. What is to be ended is
    /// marked, and those who keep connections are asked to look at it. At most once a tick, whichever worker asks.
    pub fn share_out(&self, percent: u32, now: u64) {
        let Ok(mut looked) = self.looked.try_lock() else { return };
        if looked.is_some_and(|tick| now.abs_diff(tick) < 1) {
            return;
        }
        *looked = Some(now);
        let mut over = Vec::new();
        let mut ended = 0;
        let held = self.holders.all(now);
        for Scarce { load, capacity, clients } in self.scarce() {
            let is_of = |load: &Load| held.iter().filter(|holding| holding.is_of(load)).collect::<Vec<_>>();
            let of: Vec<_> = load.as_ref().map_or_else(|| held.iter().collect(), is_of);
            let verdict =
                judge(capacity, percent, &clients, &of.iter().map(|holding| holding.held).collect::<Vec<_>>());
            verdict.ended.iter().filter_map(|place| of.get(*place)).for_each(|holding| holding.end());
            ended += verdict.ended.len();
            over.extend(verdict.over.into_iter().map(|client| (load.clone(), client)));
        }
        self.over.store(over.into());
        if ended > 0 {
            self.ask_keepers();
        }
    }

    /// What those who wait want: connections to an endpoint that has as many as it may, or to any of them where it is the
    /// service that has.
    fn scarce(&self) -> Vec<Scarce> {
        let wanted =
            self.line.all(|wanted| (wanted.load.clone(), wanted.limit, wanted.limit_of_service, wanted.client));
        let mut by_endpoint: HashMap<Option<(usize, usize)>, Scarce> = HashMap::new();
        for (load, limit, limit_of_service, client) in wanted {
            let (load, capacity) =
                if load.connections() >= limit { (Some(load), limit) } else { (None, limit_of_service) };
            let key = load.as_ref().map(Load::key);
            by_endpoint.entry(key).or_insert(Scarce { load, capacity, clients: Vec::new() }).clients.push(client);
        }
        by_endpoint.into_values().collect()
    }

    /// Who comes after the others.
    fn late(&self) -> impl Fn(&Wanted) -> bool {
        let over = self.over.load_full();
        move |wanted| {
            over.iter().any(|(load, client)| {
                *client == wanted.client && load.as_ref().is_none_or(|load| load.is_same(&wanted.load))
            })
        }
    }

    /// Somebody who keeps idle connections, and is asked through its worker's inbox to look after them: by the name of
    /// the service.
    pub fn keeper(&self, service: &Arc<str>, inbox: &UnboundedSender<Arc<str>>) -> Arc<Keeper> {
        let keeper =
            Arc::new(Keeper { service: service.clone(), inbox: inbox.clone(), is_asked: AtomicBool::new(false) });
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&keeper));
        keeper
    }

    fn ask_keepers(&self) {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).retain(|keeper| match keeper.upgrade() {
            Some(keeper) => {
                keeper.ask();
                true
            }
            None => false,
        });
    }

    fn take(self: &Arc<Self>, wanted: &Wanted) -> Option<Permit> {
        if !try_count(&self.open, wanted.limit_of_service) {
            return None;
        }
        if !wanted.load.try_connect(wanted.limit) {
            self.open.fetch_sub(1, SeqCst);
            return None;
        }
        Some(Permit { load: wanted.load.clone(), connections: self.clone(), descriptor: None })
    }

    fn serve_next(self: &Arc<Self>) {
        if self.is_awaited() {
            self.line.serve(self.late(), |wanted| self.take(wanted).map(Turn::Permit));
        }
    }
}

impl Wanted {
    /// Whether it can be had once a connection to this endpoint has ended: one to the same endpoint, or to another
    /// that only the service's limit keeps from being connected to.
    fn is_served_by(&self, load: &Load) -> bool {
        self.load.is_same(load) || self.load.connections() < self.limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // First: who is next needs one.
        self.descriptor = None;
        self.load.disconnected();
        self.connections.open.fetch_sub(1, SeqCst);
        self.connections.serve_next();
    }
}

/// One worker's keeping of idle connections to a service.
#[derive(Debug)]
pub struct Keeper {
    service: Arc<str>,
    inbox: UnboundedSender<Arc<str>>,
    is_asked: AtomicBool,
}

impl Keeper {
    fn ask(&self) {
        if !self.is_asked.swap(true, SeqCst) {
            let _the_worker_may_have_ended = self.inbox.send(self.service.clone());
        }
    }

    /// To be said before looking: who comes later asks again.
    pub fn looks(&self) {
        self.is_asked.store(false, SeqCst);
    }
}
