//! One worker's instance of a generation, for one service.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Store, Trap};

use super::engine::{Engine, STACK};
use super::exposed::Exposed;
use super::fault::{Fault, FaultKind, one_line, reason};
use super::generation::Generation;
use super::guest::{Endpoint, Guest};
use super::host::{Budget, State};
use super::memory::{Exceeded, MemoryBound, TABLE_ELEMENTS};
use super::share::thread_cpu_time;
use crate::policy::{Facts, Outcome, Terms};
use crate::service::{self, Class, Condition, Fleet, Health, Snapshot};

/// What a guest may hand over in the arguments of one call of a host function, or as a result, in bytes: names, log
/// lines and slots need far less. The proxy copies them while no deadline is looked at.
const HOSTCALL_BYTES: usize = 1 << 20;

/// A guest with a store of its own. After a fault it is of no more use.
pub struct Instance {
    store: Store<State>,
    guest: Guest,
    /// CPU time of its decisions, as far as their ticks tell, since somebody asked.
    spent: Duration,
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
        let (exposed, config) = Exposed::by_settings(config);
        let state = State {
            generation: generation.clone(),
            fleet: fleet.clone(),
            facts: Facts::placeholder(),
            deciding: false,
            outcome: None,
            terms: Terms::default(),
            attention: None,
            configuring: true,
            exposed,
            snapshot: Arc::default(),
            now: None,
            memory: MemoryBound::new(engine.limits.memory, &engine.memory, fleet),
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
            Err(error) => return Err(Call::change("instantiation", engine).fault(&store, &error, FaultKind::Instance)),
        };
        let mut instance = Self { store, guest, spent: Duration::ZERO };
        instance
            .change("configure", |guest, store| guest.configure(store, &config, seed))?
            .map_err(|refusal| Fault { kind: FaultKind::Configure, cause: one_line(&refusal), weight: 1 })?;
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
            self.change("update", |guest, store| guest.update(store, &removed, &added))?;
        }
        self.change("eligible", |guest, store| guest.eligible(store, snapshot.eligible_bits()))
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
        self.about("pick", facts, None, |guest, store| guest.pick(store))
    }

    /// The delay in milliseconds after which a retry policy wants another attempt, or none where it gives up.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn decide(&mut self, facts: &mut Facts, outcome: &Outcome) -> Result<Option<u32>, Fault> {
        self.about("decide", facts, Some(*outcome), |guest, store| guest.decide(store))
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
        self.about("judge", facts, Some(*outcome), |guest, store| guest.judge(store, slot))
    }

    /// Tells a breaker that a second has passed.
    ///
    /// # Errors
    ///
    /// The fault.
    pub fn tick(&mut self) -> Result<(), Fault> {
        // It may look at every endpoint.
        self.change("tick", |guest, store| guest.tick(store))
    }

    /// Makes a decision that is about a request.
    fn about<T>(
        &mut self,
        name: &'static str,
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
        self.end();
        let state = self.store.data_mut();
        state.outcome = None;
        state.deciding = false;
        mem::swap(&mut state.facts, facts);
        let of = Call { name, budget, setting: "plugins.decision" };
        answer.map_err(|error| of.fault(&self.store, &error, FaultKind::Trap))
    }

    /// The generation that this is an instance of.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.store.data().generation
    }

    /// CPU time that decisions have taken since this was asked last, as far as ticks tell.
    pub(super) fn take_spent(&mut self) -> Duration {
        mem::take(&mut self.spent)
    }

    fn change<T>(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        let of = Call::change(name, &self.generation().engine);
        begin(&mut self.store, of.budget);
        call(&self.guest, &mut self.store).map_err(|error| of.fault(&self.store, &error, FaultKind::Trap))
    }

    /// Adds a decision's time if a tick fell into it.
    fn end(&mut self) {
        let state = self.store.data();
        let ticks = state.generation.engine.tick_number().wrapping_sub(state.budget.began);
        if ticks > 0 {
            self.spent = self.spent.saturating_add(spent(state, ticks));
        }
    }
}

/// What a call has spent into which so many ticks fell: no more than the wall time that they stand for, and no more CPU
/// time than it can have.
#[cold]
fn spent(state: &State, ticks: u64) -> Duration {
    let tick = state.generation.engine.tick;
    let of_ticks = |ticks| tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
    let since = state.budget.at_first_deadline.map_or(Duration::ZERO, |at| thread_cpu_time().saturating_sub(at));
    of_ticks(ticks).min(tick.saturating_add(since))
}

/// Starts the clock for one call.
fn begin(store: &mut Store<State>, budget: Duration) {
    let state = store.data_mut();
    let engine = &state.generation.engine;
    engine.mark_used();
    state.now = None;
    state.budget = Budget { cpu: budget, at_first_deadline: None, began: engine.tick_number() };
    store.set_epoch_deadline(1);
}

/// A call of a guest's export, with its budget of CPU time and the setting that says so.
struct Call {
    name: &'static str,
    budget: Duration,
    setting: &'static str,
}

impl Call {
    fn change(name: &'static str, engine: &Engine) -> Self {
        Self { name, budget: engine.limits.change, setting: "plugins.change" }
    }

    /// What the call was that failed so; it names the bound that was exceeded, if one was.
    fn fault(&self, store: &Store<State>, error: &wasmtime::Error, otherwise: FaultKind) -> Fault {
        let Self { name, budget, setting } = self;
        let (limits, trap) = (&store.data().generation.engine.limits, error.downcast_ref::<Trap>());
        let (kind, bound) = match (trap, store.data().memory.exceeded) {
            (Some(Trap::Interrupt), _) => {
                (FaultKind::Deadline, Some(format!("more than {budget:?} of CPU time ({setting})")))
            }
            (_, Some(Exceeded::Own)) => {
                (FaultKind::Memory, Some(format!("more than {} of memory (plugins.memory)", bytes(limits.memory))))
            }
            (_, Some(Exceeded::Table)) => {
                (FaultKind::Memory, Some(format!("more than {TABLE_ELEMENTS} elements of tables")))
            }
            (_, Some(Exceeded::Total)) => {
                let total = bytes(limits.memory_total);
                let found = format!("more than is left of the {total} that all guests may have (plugins.memory_total)");
                (FaultKind::MemoryTotal, Some(found))
            }
            (Some(Trap::StackOverflow), _) => (otherwise, Some(format!("more than {} of stack", bytes(STACK)))),
            _ if error.root_cause().to_string().contains("fuel allocated for hostcalls") => {
                (otherwise, Some(format!("more than {} handed over in one call", bytes(HOSTCALL_BYTES))))
            }
            _ => (otherwise, None),
        };
        // A call that was ended has held the worker up for its whole budget; others fail fast.
        let decision = limits.decision.as_micros().max(1);
        let weight = if kind == FaultKind::Deadline { budget.as_micros().div_ceil(decision) } else { 1 };
        let reason = reason(error);
        let cause = match bound {
            Some(bound) => format!("{name} took {bound}: {reason}"),
            None => format!("{name}: {reason}"),
        };
        Fault { kind, cause, weight: usize::try_from(weight).unwrap_or(usize::MAX) }
    }
}

fn bytes(n: usize) -> String {
    match (n % (1 << 20), n % (1 << 10)) {
        (0, _) => format!("{} MiB", n >> 20),
        (_, 0) => format!("{} KiB", n >> 10),
        _ => format!("{n} B"),
    }
}

fn as_guest_sees(endpoint: &service::Endpoint) -> Endpoint {
    let registered = &endpoint.registered;
    Endpoint {
        slot: endpoint.slot,
        id: endpoint.policy_view.id(registered).to_owned(),
        address: registered.address.clone(),
        weight: registered.weight.max(1),
        order: registered.order,
        metadata: endpoint.policy_view.metadata(registered).cloned().collect(),
    }
}
