//! Waiting for a connection where there are as many as may be.
//!
//! A pool belongs to a worker, the limit on connections to all of them. Who finds no permit waits for one, and meanwhile
//! nobody keeps a connection idle: what comes home is handed to whoever waits in the same pool, if that is who is next,
//! and is otherwise closed, which passes its permit on; what is idle already is given up when the worker is asked to.
//! HTTP/2 connections on which nothing is under way count as idle. One that is always in use is not taken away: with
//! HTTP/2 a limit below the number of workers leaves some of them without.

use tokio::sync::MutexGuard;

use super::{Hold, Open, Pool, Stage, Target};
use crate::service::{Ending, Permit, Reuse, Turn, Wanted};
use crate::upstream::Failure;
use crate::upstream::h1::Connection;

/// What who wants a connection is given.
pub(super) enum Granted {
    /// The right to open one.
    Permit(Permit),
    /// One that has come home in the meantime.
    Home(Open),
}

impl Pool {
    /// Waits while somebody else opens a connection that may be shared, for as long as that may take.
    pub(super) async fn turn_to_open(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        let turn = self.timers.within(self.target.connect.timeout, self.h2.opening.lock()).await;
        turn.map_err(|_| self.late(Stage::Waiting))
    }

    /// The right to a new connection, or one that is open and can be reused. Where there may be no more connections
    /// it waits for its turn, for as long as connecting may take.
    pub(super) async fn permit(&self, reuse: Reuse, hold: &Hold) -> Result<Granted, Failure> {
        let Target { connections, limits, connect, load, max_connections, max_waiting, descriptors, .. } = &self.target;
        let wanted = Wanted {
            load: load.clone(),
            limit: u32::try_from(limits.max_connections).unwrap_or(u32::MAX),
            limit_of_service: max_connections.unwrap_or(u32::MAX).min(descriptors.one_service()),
            client: hold.client(),
            home: self.home(),
            reuse,
        };
        if let Some(permit) = connections.try_take(&wanted) {
            return self.granted(permit, hold);
        }
        let waiting = connections.wait(wanted, *max_waiting).ok_or_else(|| self.no_permit())?;
        let awaited = Awaited::new(self, waiting.number());
        match self.timers.within(connect.timeout, waiting).await {
            Ok(Some(Turn::Permit(permit))) => self.granted(permit, hold),
            Ok(Some(Turn::Home)) => awaited.take().map(Granted::Home).ok_or_else(|| self.no_permit()),
            Ok(None) | Err(_) => Err(self.no_permit()),
        }
    }

    /// The right to a connection, with a descriptor for it.
    fn granted(&self, permit: Permit, hold: &Hold) -> Result<Granted, Failure> {
        let descriptor = self.target.descriptors.take().ok_or_else(|| self.no_permit())?;
        hold.begin();
        Ok(Granted::Permit(permit.with(descriptor)))
    }

    pub(super) fn no_permit(&self) -> Failure {
        Failure::NoPermit { address: self.target.address.to_string() }
    }

    /// What no other pool is called at the same time.
    pub(in crate::upstream) fn home(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Keeps what has come home for whoever waits under this number, and has been told so.
    pub(in crate::upstream) fn hand(&self, number: u64, open: Open) {
        self.handed.borrow_mut().push((number, open));
    }

    /// The connection, unless somebody waits for it, or for its end.
    pub(super) fn unless_awaited(&self, mut connection: Box<Connection>) -> Option<Box<Connection>> {
        let Target { connections, load, .. } = &self.target;
        if !connections.is_awaited() {
            return Some(connection);
        }
        if !connection.is_usable() {
            return None;
        }
        match connections.ending(load, self.home(), |reuse| reuse != Reuse::None) {
            Ending::Own(number) => {
                self.hand(number, Open::Http1(connection));
                None
            }
            Ending::Another => None,
            Ending::Nobody => Some(connection),
        }
    }

    /// Closes what is idle for as long as that serves somebody who waits for a connection; what has been idle longest
    /// first.
    pub fn give_up_idle(&self) {
        let Target { connections, load, .. } = &self.target;
        let oldest = || {
            let mut idle = self.idle.borrow_mut();
            (!idle.is_empty()).then(|| idle.remove(0))
        };
        while connections.awaiting(load) > 0
            && let Some(oldest) = oldest()
        {
            drop(oldest);
        }
        self.h2.give_up_idle(connections.awaiting(load));
    }
}

/// One who waits for a connection, under this number.
struct Awaited<'a> {
    pool: &'a Pool,
    number: u64,
}

impl<'a> Awaited<'a> {
    fn new(pool: &'a Pool, number: u64) -> Self {
        pool.waiting.set(pool.waiting.get() + 1);
        Self { pool, number }
    }

    /// What has come home for this one.
    fn take(&self) -> Option<Open> {
        let mut handed = self.pool.handed.borrow_mut();
        let place = handed.iter().position(|(number, _)| *number == self.number)?;
        Some(handed.swap_remove(place).1)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.pool.waiting.set(self.pool.waiting.get().saturating_sub(1));
        // It has come too late for this one.
        match self.take() {
            Some(Open::Http1(connection)) => self.pool.put(connection),
            Some(Open::Http2(exchange)) => drop(exchange),
            None => {}
        }
    }
}
