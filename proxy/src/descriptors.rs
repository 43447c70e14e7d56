//! How many descriptors connections may take of those that the process may have.
//!
//! Every connection of a client is a descriptor, and the one to an endpoint that its request goes over is another. Where
//! connections take all of them, the proxy can be asked nothing any more and hears no registry. So a number is set
//! aside ([`RESERVED`], and what the process itself needs); what is left is for connections:
//!
//! - all clients together have half of it at most: each of their connections may need another one to an endpoint;
//! - one client address has a quarter of it: with the connections to endpoints that is half of the descriptors;
//! - one service has half of it;
//! - all of these together have no more than there is. A client's connection waits where there is none; a request is
//!   answered 503, and while they are scarce nobody keeps idle connections to endpoints.
//!
//! The limit is read when the proxy starts, and stays.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::config::checked::{DEFAULT_MAX_CONNECTIONS, Listener};
use crate::per_client::{OneOfClient, PerClient};

/// Descriptors that are kept for the admin server and the registries.
pub const RESERVED: u64 = 64;

/// What a worker needs besides its connections: its event loop, the pipes of its relays, and names that are looked up.
const OF_WORKER: u64 = 112;

/// Health checks that may be under way at once, each on a connection of its own; and their share of the limit, which is a
/// sixteenth at most.
pub const CHECKS: usize = 256;
const OF_CHECKS: u64 = 16;

/// The descriptors of one process.
#[derive(Debug)]
pub struct Descriptors {
    /// None for any number.
    limit: Option<u64>,
    /// What connections may have together.
    left: u64,
    /// What connections have.
    used: AtomicU64,
    clients: Arc<Semaphore>,
    by_client: Arc<PerClient>,
    /// The sum of `max_connections` of all listeners.
    wanted: AtomicU64,
}

/// One that is taken, until it is dropped.
#[derive(Debug)]
pub struct Descriptor(Arc<Descriptors>);

/// A client's connection, until it is dropped.
#[derive(Debug)]
pub struct OfClient {
    _descriptor: Descriptor,
    _permit: OwnedSemaphorePermit,
}

/// What `/state` shows of descriptors.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// What the process may have; none for any number.
    limit: Option<u64>,
    reserved: u64,
    /// Those that connections may have, and have.
    for_connections: u64,
    used: u64,
    /// The sum of `max_connections` of all listeners, and how many connections of clients there may be.
    max_connections: u64,
    client_connections: u64,
    /// Connections of one client address, and to the endpoints of one service.
    one_client: u64,
    one_service: u64,
}

impl Descriptors {
    /// Those of this process, which has so many workers and has opened by now what it opens at a start.
    pub fn of_process(workers: usize) -> Arc<Self> {
        let open = std::fs::read_dir("/proc/self/fd").map_or(64, Iterator::count);
        Self::new(getrlimit(Resource::Nofile).current, open as u64, workers as u64)
    }

    fn new(limit: Option<u64>, open: u64, workers: u64) -> Arc<Self> {
        let checks = limit.map_or(0, |limit| limit / OF_CHECKS).min(CHECKS as u64);
        let own = open.saturating_add(workers.saturating_mul(OF_WORKER)).saturating_add(RESERVED + checks);
        // A process that has nearly none serves a few all the same.
        let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(own).max(limit / 4).max(8));
        let clients = usize::try_from(left / 2).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            limit,
            left,
            used: AtomicU64::new(0),
            clients: Arc::new(Semaphore::new(clients)),
            by_client: Arc::default(),
            wanted: AtomicU64::new(0),
        })
    }

    /// Health checks that may be under way at once.
    pub fn checks(&self) -> usize {
        let most = self.limit.map_or(u64::MAX, |limit| (limit / OF_CHECKS).max(1));
        usize::try_from(most).unwrap_or(usize::MAX).min(CHECKS)
    }

    /// Connections that the endpoints of one service may have at once.
    pub fn one_service(&self) -> u32 {
        u32::try_from(self.left / 2).unwrap_or(u32::MAX)
    }

    /// Takes one for a connection to an endpoint; none where there is none.
    pub fn take(self: &Arc<Self>) -> Option<Descriptor> {
        let taken = self.used.fetch_update(Relaxed, Relaxed, |used| (used < self.left).then(|| used + 1));
        taken.is_ok().then(|| Descriptor(self.clone()))
    }

    /// Whether most of them are in use: what is idle is of more use to others.
    pub fn is_scarce(&self) -> bool {
        self.used.load(Relaxed) >= self.left - self.left / 8
    }

    /// Waits until a client may have another connection. It is accepted by then, and has its descriptor: this one is
    /// counted in any case.
    ///
    /// # Errors
    ///
    /// Never: nobody closes the semaphore.
    pub async fn client(self: Arc<Self>) -> Result<OfClient, AcquireError> {
        self.used.fetch_add(1, Relaxed);
        let _descriptor = Descriptor(self.clone());
        Ok(OfClient { _permit: self.clients.clone().acquire_owned().await?, _descriptor })
    }

    /// Counts a connection of a client address; an error when it has as many as one may have. Nothing is counted where
    /// one client can have all that there can be.
    pub fn enter(&self, address: IpAddr) -> Result<Option<OneOfClient>, TooMany> {
        if self.one_client() >= self.client_connections() {
            return Ok(None);
        }
        self.by_client.enter(address, self.one_client()).map(Some).ok_or(TooMany)
    }

    /// The listeners are these from now on. Says once what they cannot have.
    pub fn serve(&self, listeners: &[&Listener]) {
        let sum = |of: &mut dyn Iterator<Item = usize>| {
            of.map(|most| u64::try_from(most).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
        };
        let all = sum(&mut listeners.iter().map(|listener| listener.max_connections));
        let before = self.wanted.swap(all, Relaxed);
        let Some(limit) = self.limit.filter(|_| all != before && all > self.left / 2) else { return };
        let stated = listeners.iter().map(|listener| listener.max_connections);
        let stated = sum(&mut stated.filter(|most| *most != DEFAULT_MAX_CONNECTIONS));
        let (has, needs) = (self.left / 2, all.saturating_mul(2));
        if stated > has {
            tracing::warn!(
                target: "heddle",
                "this process may have {limit} descriptors; max_connections may need {needs}, so clients have {has} \
                 connections at most: raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd), or lower max_connections"
            );
        } else {
            tracing::info!(
                target: "heddle",
                "this process may have {limit} descriptors; max_connections may need {needs} by default, so clients have \
                 {has} connections at most"
            );
        }
    }

    /// What there is.
    pub fn report(&self) -> Report {
        Report {
            limit: self.limit,
            reserved: RESERVED,
            for_connections: self.left,
            used: self.used.load(Relaxed),
            max_connections: self.wanted.load(Relaxed),
            client_connections: self.client_connections(),
            one_client: self.one_client().min(self.client_connections()),
            one_service: self.left / 2,
        }
    }

    fn client_connections(&self) -> u64 {
        self.wanted.load(Relaxed).min(self.left / 2)
    }

    fn one_client(&self) -> u64 {
        (self.left / 4).max(1)
    }
}

/// A client address has as many connections as one may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,024 descriptors, of which 16 are open, with one worker.
    fn few() -> Arc<Descriptors> {
        let few = Descriptors::new(Some(1024), 16, 1);
        few.wanted.store(65_536, Relaxed);
        few
    }

    /// Issue 10, 5: 64 descriptors are set aside, and nobody has more than half of the rest.
    #[test]
    fn nobody_has_all_of_them() {
        let few = few();
        let report = few.report();
        assert_eq!(report.for_connections, 1024 - 16 - OF_WORKER - RESERVED - 64);
        assert_eq!(report.client_connections, report.for_connections / 2);
        assert_eq!(report.one_service, report.for_connections / 2);
        let address: IpAddr = "127.0.0.1".parse().unwrap();
        let held: Vec<_> = (0..report.one_client).map(|_| few.enter(address).unwrap()).collect();
        assert_eq!(few.enter(address).err(), Some(TooMany));
        assert!(few.enter("127.0.0.2".parse().unwrap()).is_ok());
        drop(held);
        assert!(few.enter(address).is_ok());
    }

    #[test]
    fn what_is_taken_comes_back() {
        let few = few();
        let mut held: Vec<_> = std::iter::from_fn(|| few.take()).collect();
        assert_eq!(held.len() as u64, few.left);
        assert!(few.is_scarce());
        held.truncate(few.left as usize / 2);
        assert!(!few.is_scarce() && few.take().is_some());
    }

    #[test]
    fn where_there_are_many_nothing_is_counted() {
        for limit in [None, Some(1 << 20)] {
            let many = Descriptors::new(limit, 100, 8);
            many.wanted.store(65_536, Relaxed);
            assert!(many.enter("127.0.0.1".parse().unwrap()).unwrap().is_none());
            assert_eq!(many.report().client_connections, 65_536);
        }
        let none = Descriptors::new(Some(3), 100, 1);
        assert_eq!((none.left, none.checks()), (8, 1));
    }
}
