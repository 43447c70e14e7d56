//! One worker's instance of a generation, for one service.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Store, Trap};

use super::fault::{Fault, FaultKind};
use super::generation::Generation;
use super::host::{Balancer, Budget, Endpoint, LineRate, MemoryBound, State};
use crate::policy::Facts;
use crate::service::{self, Snapshot};

/// A guest with a store of its own. After a fault it is of no more use.
pub struct Instance {
    generation: Arc<Generation>,
    store: Store<State>,
    guest: Balancer,
}

impl Instance {
    /// Makes a guest, configures it, and tells it the endpoints.
    ///
    /// # Errors
    ///
    /// The fault, when the guest traps, takes too long or refuses its configuration.
    pub fn new(
        generation: &Arc<Generation>,
        service: &Arc<str>,
        config: &str,
        seed: u64,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Self, Fault> {
        let engine = &generation.engine;
        let state = State {
            policy: generation.policy.clone(),
            service: service.clone(),
            facts: Facts::placeholder(),
            deciding: false,
            snapshot: Arc::default(),
            epoch: generation.loaded,
            now: None,
            memory: MemoryBound { bytes: engine.limits.memory, exceeded: false },
            lines: LineRate::new(Instant::now()),
            budget: Budget::default(),
        };
        let mut store = Store::new(&engine.wasm, state);
        store.limiter(|state| &mut state.memory);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().budget.at_deadline(thread_cpu_time())));
        begin(generation, &mut store, engine.limits.change);
        let guest = match generation.pre.instantiate(&mut store) {
            Ok(guest) => guest,
            Err(error) => return Err(fault(&store, &error, FaultKind::Instance)),
        };
        let mut instance = Self { generation: generation.clone(), store, guest };
        instance
            .change(|guest, store| guest.call_configure(store, config, seed))?
            .map_err(|refusal| Fault { kind: FaultKind::Configure, cause: refusal })?;
        instance.update(snapshot)?;
        Ok(instance)
    }

    /// Tells the guest what has changed since the snapshot it knows.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn update(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), Fault> {
        let (removed, added) = snapshot.since(&self.store.data().snapshot);
        if !(removed.is_empty() && added.is_empty()) {
            let added: Vec<Endpoint> = added.iter().map(|endpoint| as_guest_sees(endpoint)).collect();
            self.change(|guest, store| guest.call_update(store, &removed, &added))?;
        }
        self.change(|guest, store| guest.call_eligible(store, snapshot.eligible_bits()))?;
        self.store.data_mut().snapshot = snapshot.clone();
        Ok(())
    }

    /// The slot that the guest picks, or none where it wants no endpoint to be used.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn pick(&mut self, facts: &mut Facts) -> Result<Option<u32>, Fault> {
        begin(&self.generation, &mut self.store, self.generation.engine.limits.decision);
        let state = self.store.data_mut();
        mem::swap(&mut state.facts, facts);
        state.deciding = true;
        let picked = self.guest.call_pick(&mut self.store);
        let state = self.store.data_mut();
        state.deciding = false;
        mem::swap(&mut state.facts, facts);
        picked.map_err(|error| fault(&self.store, &error, FaultKind::Trap))
    }

    /// The generation that this is an instance of.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    fn change<T>(
        &mut self,
        call: impl FnOnce(&Balancer, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        begin(&self.generation, &mut self.store, self.generation.engine.limits.change);
        call(&self.guest, &mut self.store).map_err(|error| fault(&self.store, &error, FaultKind::Trap))
    }
}

/// Starts the clock for one call.
fn begin(generation: &Generation, store: &mut Store<State>, budget: Duration) {
    let engine = &generation.engine;
    engine.mark_used();
    let ticks = engine.half_budget(budget);
    store.set_epoch_deadline(ticks);
    let state = store.data_mut();
    state.now = None;
    state.budget = Budget { ticks, cpu: budget / 4, at_first_deadline: None };
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn fault(store: &Store<State>, error: &wasmtime::Error, otherwise: FaultKind) -> Fault {
    let kind = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => FaultKind::Deadline,
        _ if store.data().memory.exceeded => FaultKind::Memory,
        _ => otherwise,
    };
    Fault { kind, cause: format!("{error:#}") }
}

fn as_guest_sees(endpoint: &service::Endpoint) -> Endpoint {
    let registered = &endpoint.registered;
    Endpoint {
        slot: endpoint.slot,
        id: registered.id.clone(),
        address: registered.address.clone(),
        weight: registered.weight.max(1),
        order: registered.order,
        metadata: registered.metadata.clone(),
    }
}
