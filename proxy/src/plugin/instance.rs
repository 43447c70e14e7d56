//! One worker's instance of a generation, for one service.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Store, Trap};

use super::fault::{Fault, FaultKind, one_line, reason};
use super::generation::Generation;
use super::guest::{Endpoint, Guest};
use super::host::{Budget, MemoryBound, State};
use crate::policy::{Facts, Outcome, Terms};
use crate::service::{self, Class, Condition, Fleet, Health, Snapshot};

/// What a guest may hand over in the arguments of one call of a host function, or as a result, in bytes: names, log
/// lines and slots need far less. The proxy copies them while no deadline is looked at.
const HOSTCALL_BYTES: usize = 1 << 20;

/// A guest with a store of its own. After a fault it is of no more use.
pub struct Instance {
    store: Store<State>,
    guest: Guest,
}

impl Instance {
    /// Makes a guest, configures it, and tells it the endpoints.
    ///
    /// # Errors
    ///
    /// The fault, when the guest traps, takes too long or refuses its configuration.
    pub fn new(
        generation: &Arc<Generation>,
        fleet: &Arc<Fleet>,
        config: &str,
        seed: u64,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Self, Fault> {
        let engine = &generation.engine;
        let state = State {
            generation: generation.clone(),
            fleet: fleet.clone(),
            facts: Facts::placeholder(),
            deciding: false,
            outcome: None,
            terms: Terms::default(),
            attention: None,
            configuring: true,
            snapshot: Arc::default(),
            now: None,
            memory: MemoryBound::new(engine.limits.memory),
            budget: Budget::default(),
        };
        let mut store = Store::new(&engine.wasm, state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        store.epoch_deadline_callback(|mut store| {
            let state = store.data_mut();
            state.generation.engine.mark_used();
            Ok(state.budget.at_deadline(thread_cpu_time()))
        });
        begin(&mut store, engine.limits.change);
        let guest = match generation.prepared.instantiate(&mut store) {
            Ok(guest) => guest,
            Err(error) => return Err(fault(&store, &error, FaultKind::Instance, engine.limits.change)),
        };
        let mut instance = Self { store, guest };
        instance.change(|guest, store| guest.configure(store, config, seed))?.map_err(|refusal| Fault {
            kind: FaultKind::Configure,
            cause: one_line(&refusal),
            weight: 1,
        })?;
        instance.store.data_mut().configuring = false;
        instance.update(snapshot)?;
        Ok(instance)
    }

    /// Tells the guest what has changed since the snapshot it knows.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn update(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), Fault> {
        let before = mem::replace(&mut self.store.data_mut().snapshot, snapshot.clone());
        let (removed, added) = snapshot.since(&before);
        if !(removed.is_empty() && added.is_empty()) {
            let added: Vec<Endpoint> = added.iter().map(|endpoint| as_guest_sees(endpoint)).collect();
            self.change(|guest, store| guest.update(store, &removed, &added))?;
        }
        self.change(|guest, store| guest.eligible(store, snapshot.eligible_bits()))
    }

    /// What a retry policy asked for when it was configured.
    pub fn terms(&self) -> Terms {
        self.store.data().terms
    }

    /// The slot that a balancer picks, or none where it wants no endpoint to be used.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn pick(&mut self, facts: &mut Facts) -> Result<Option<u32>, Fault> {
        self.about(facts, None, |guest, store| guest.pick(store))
    }

    /// The delay in milliseconds after which a retry policy wants another attempt, or none where it gives up.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn decide(&mut self, facts: &mut Facts, outcome: &Outcome) -> Result<Option<u32>, Fault> {
        self.about(facts, Some(*outcome), |guest, store| guest.decide(store))
    }

    /// Whether a breaker wants to judge an attempt at an endpoint of this health, which counts the attempt already.
    pub fn judges(&self, health: &Health) -> bool {
        let state = self.store.data();
        let Some(attention) = state.attention else { return true };
        let of_service = &state.fleet.health;
        let are_many = |failures: u32, from: u32| from > 0 && failures >= from;
        let is_failing = || {
            let mut classes = Class::ALL.into_iter().zip(attention.consecutive);
            classes.any(|(class, from)| are_many(health.consecutive(class), from))
                || are_many(of_service.consecutive(), attention.service_consecutive)
        };
        health.condition() != Condition::InUse
            || of_service.condition() != Condition::InUse
            || health.consecutive(Class::Any) > 0 && is_failing()
    }

    /// Tells a breaker that an attempt has ended.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn judge(&mut self, facts: &mut Facts, slot: u32, outcome: &Outcome) -> Result<(), Fault> {
        self.about(facts, Some(*outcome), |guest, store| guest.judge(store, slot))
    }

    /// Tells a breaker that a second has passed.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn tick(&mut self) -> Result<(), Fault> {
        // It may look at every endpoint.
        self.change(|guest, store| guest.tick(store))
    }

    /// Makes a decision that is about a request.
    fn about<T>(
        &mut self,
        facts: &mut Facts,
        outcome: Option<Outcome>,
        call: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        let budget = self.generation().engine.limits.decision;
        begin(&mut self.store, budget);
        let state = self.store.data_mut();
        mem::swap(&mut state.facts, facts);
        state.deciding = true;
        state.outcome = outcome;
        let answer = call(&self.guest, &mut self.store);
        let state = self.store.data_mut();
        state.outcome = None;
        state.deciding = false;
        mem::swap(&mut state.facts, facts);
        answer.map_err(|error| fault(&self.store, &error, FaultKind::Trap, budget))
    }

    /// The generation that this is an instance of.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.store.data().generation
    }

    fn change<T>(&mut self, call: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<T>) -> Result<T, Fault> {
        let budget = self.generation().engine.limits.change;
        begin(&mut self.store, budget);
        call(&self.guest, &mut self.store).map_err(|error| fault(&self.store, &error, FaultKind::Trap, budget))
    }
}

/// Starts the clock for one call.
fn begin(store: &mut Store<State>, budget: Duration) {
    let state = store.data_mut();
    state.generation.engine.mark_used();
    let ticks = state.generation.engine.half_budget(budget);
    state.now = None;
    state.budget = Budget { ticks, cpu: budget / 4, at_first_deadline: None };
    store.set_epoch_deadline(ticks);
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What a failed call with this budget was.
fn fault(store: &Store<State>, error: &wasmtime::Error, otherwise: FaultKind, budget: Duration) -> Fault {
    let kind = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => FaultKind::Deadline,
        _ if store.data().memory.exceeded => FaultKind::Memory,
        _ => otherwise,
    };
    // A call that was ended has held the worker up for its whole budget; others fail fast.
    let decision = store.data().generation.engine.limits.decision.as_micros().max(1);
    let weight = if kind == FaultKind::Deadline { budget.as_micros().div_ceil(decision) } else { 1 };
    Fault { kind, cause: reason(error), weight: usize::try_from(weight).unwrap_or(usize::MAX) }
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
