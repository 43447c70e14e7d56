//! The pools of a service.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::Pool;
use crate::service::{Endpoint, Snapshot};

/// The pools of one service's endpoints, by slot.
#[derive(Default)]
pub struct Pools {
    by_slot: RefCell<HashMap<u32, Rc<Pool>, rustc_hash::FxBuildHasher>>,
}

impl Pools {
    /// The endpoint's pool; `make` makes it when there is none yet, or it was another endpoint's.
    pub fn get(&self, endpoint: &Endpoint, make: impl FnOnce() -> Rc<Pool>) -> Rc<Pool> {
        let mut pools = self.by_slot.borrow_mut();
        if let Some(pool) = pools.get(&endpoint.slot)
            && pool.is_of(endpoint)
        {
            return pool.clone();
        }
        let pool = make();
        if let Some(other) = pools.insert(endpoint.slot, pool.clone()) {
            other.retire();
        }
        pool
    }

    /// Closes everything that is idle, now and from now on.
    pub fn retire(&self) {
        self.by_slot.borrow_mut().drain().for_each(|(_, pool)| pool.retire());
    }

    /// Closes what is idle for as long as that serves somebody who waits for a connection, on whichever worker.
    pub fn give_up_idle(&self) {
        for pool in self.by_slot.borrow().values() {
            pool.give_up_idle();
        }
    }

    /// Ends what is to be ended for others who wait.
    pub fn end_holds(&self) {
        // A copy: with a connection may end what looks for another pool.
        let pools: Vec<Rc<Pool>> = self.by_slot.borrow().values().cloned().collect();
        pools.iter().for_each(|pool| pool.end_holds());
    }

    /// Forgets the endpoints that are not registered any more, and closes what has been idle for too long.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.by_slot.borrow_mut().retain(|slot, pool| {
            let stays = snapshot.endpoint(*slot).is_some_and(|endpoint| pool.is_of(endpoint));
            if stays {
                pool.sweep();
            } else {
                pool.retire();
            }
            stays
        });
    }
}
