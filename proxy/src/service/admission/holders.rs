//! Who holds the connections of a service.
//!
//! An exchange, or a tunnel, has a [`Holder`] for as long as it has a connection, or with HTTP/2 a stream of one. It says
//! for whom and at what pace in a few atomics that only its own thread writes, so that a request pays for some stores and
//! neither a lock nor a lookup. A holder is used again by later exchanges of the same pool: only a new one is entered in
//! the list. The list is read where somebody waits for a connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::shares::{Client, Held};
use crate::service::Load;

/// One that may hold a connection.
#[derive(Debug)]
pub struct Holder {
    load: Load,
    /// Whose it is; 0 for nobody's.
    client: AtomicU64,
    /// Its number among those that this holder stood for: whatever is to be ended is named by it, since the holder may
    /// stand for another one by then.
    turn: AtomicU64,
    /// The turn that is to end.
    ended: AtomicU64,
    /// Tick at which it began. Ticks of two workers differ by the time between their starts.
    since: AtomicU64,
    bytes: AtomicU64,
    has_body: AtomicBool,
}

/// All of a service's.
#[derive(Debug, Default)]
pub(super) struct Holders(Mutex<Vec<Weak<Holder>>>);

impl Holder {
    /// From now on it stands for something of this client's, with a body or without one so far.
    pub fn begin(&self, client: Client, now: u64, has_body: bool) {
        self.client.store(0, Release);
        self.turn.store(self.turn.load(Relaxed) + 1, Release);
        self.since.store(now, Relaxed);
        self.bytes.store(0, Relaxed);
        self.has_body.store(has_body, Relaxed);
        self.client.store(client.number(), Release);
    }

    /// It stands for nothing any more.
    pub fn end(&self) {
        self.client.store(0, Release);
    }

    /// Bytes have moved.
    pub fn moved(&self, bytes: usize) {
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// Whether there is a body that could be ended.
    pub fn set_body(&self, has_body: bool) {
        self.has_body.store(has_body, Relaxed);
    }

    /// Whether what it stands for is to be ended.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Acquire) == self.turn.load(Relaxed)
    }

    /// What it holds, at this tick, and the turn; nothing where it holds nothing.
    fn held(&self, now: u64) -> Option<(Held, u64)> {
        let turn = self.turn.load(Acquire);
        let client = Client::from_number(self.client.load(Acquire))?;
        let ticks = now.saturating_sub(self.since.load(Relaxed)).max(1);
        let pace = self.has_body.load(Relaxed).then(|| self.bytes.load(Relaxed) / ticks);
        let is_ended = self.ended.load(Acquire) == turn;
        // Else it has changed in the meantime.
        (self.turn.load(Acquire) == turn).then_some((Held { client, pace, is_ended }, turn))
    }
}

impl Holders {
    /// Another one, for a pool of the endpoint with these counters.
    pub fn add(&self, load: &Load) -> Arc<Holder> {
        let holder = Arc::new(Holder {
            load: load.clone(),
            client: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            ended: AtomicU64::new(u64::MAX),
            since: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            has_body: AtomicBool::new(false),
        });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whenever it would grow: so each is looked at a constant number of times.
        if all.len() == all.capacity() {
            all.retain(|holder| holder.strong_count() > 0);
        }
        all.push(Arc::downgrade(&holder));
        holder
    }

    /// What is held at this tick.
    pub fn all(&self, now: u64) -> Vec<Holding> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holders = all.iter().filter_map(Weak::upgrade);
        holders.filter_map(|holder| holder.held(now).map(|(held, turn)| Holding { holder, held, turn })).collect()
    }
}

/// Something that is held.
#[derive(Debug)]
pub(super) struct Holding {
    holder: Arc<Holder>,
    pub held: Held,
    turn: u64,
}

impl Holding {
    /// Whether it is of this endpoint.
    pub fn is_of(&self, load: &Load) -> bool {
        self.holder.load.is_same(load)
    }

    /// Has it end.
    pub fn end(&self) {
        self.holder.ended.store(self.turn, Release);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn what_is_to_end_is_not_the_one_that_comes_after_it() {
        let (holders, client) = (Holders::default(), Client::of(IpAddr::from([127, 0, 0, 1])));
        let holder = holders.add(&Load::alone());
        assert!(holders.all(0).is_empty() && !holder.is_ended());
        holder.begin(client, 0, true);
        holder.moved(100);
        let held = holders.all(10);
        assert_eq!((held.len(), held[0].held.pace), (1, Some(10)));
        holder.end();
        holder.begin(client, 10, false);
        held[0].end();
        assert!(!holder.is_ended());
        let next = holders.all(10);
        assert_eq!(next[0].held.pace, None);
        next[0].end();
        assert!(holder.is_ended() && holders.all(10)[0].held.is_ended);
        drop((holder, held, next));
        assert!(holders.all(10).is_empty());
    }

    #[test]
    fn the_list_does_not_grow_with_those_that_have_gone() {
        let (holders, load) = (Holders::default(), Load::alone());
        (0..1000).for_each(|_| drop(holders.add(&load)));
        assert!(holders.0.lock().unwrap().capacity() < 16);
    }
}
