//! Who may use a generation after its faults: everybody, everybody but one service, or nobody.
//!
//! A guest decides from what a service's registrations and requests hand it, so a fault may be the policy's, or that of
//! one service's data: a megabyte of metadata in one key must not take `leader` away from every other service. The
//! proxy cannot see which it was, but others can tell: a generation that decides for another service without fault is
//! in order. So faults are counted for each service, and enough of them take the generation from that service alone; it
//! uses the last good generation, or decides natively. Only where nothing speaks for the generation is it taken from all:
//! the service at fault is the only one that uses the policy, or at least two services are at fault and none is served.
//! That it stays with others meanwhile costs little: each has its own count, so a worker loses at most the threshold
//! times the budget for each.
//!
//! A service has its generation back after [`SECOND_CHANCE`], as its data may have changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::fault::Fault;
use super::generation::Generation;
use super::registry::{Plugin, SECOND_CHANCE};

/// The use of one policy by one service, over all workers.
#[derive(Debug)]
pub struct Usage {
    /// The service.
    pub service: Arc<str>,
    /// Changes whenever a generation is taken from the service or given back: all that a worker looks at.
    version: AtomicU64,
    /// Number of the generation that has last decided for the service without fault; 0: none.
    served: AtomicU64,
    quarantines: Mutex<Vec<Quarantine>>,
}

/// A generation that is not used, and why.
#[derive(Debug, Clone)]
pub struct Quarantine {
    /// The service that does not use it; none: no service does.
    pub service: Option<Arc<str>>,
    /// The generation's number.
    pub generation: u64,
    /// What it was loaded from.
    pub origin: String,
    pub since: Instant,
    /// The last fault.
    pub cause: String,
    /// The number of the generation that is used instead; none: the proxy decides natively.
    pub instead: Option<u64>,
}

impl Quarantine {
    fn new(service: Option<&Arc<str>>, generation: &Generation, fault: &Fault, instead: Option<&Generation>) -> Self {
        Self {
            service: service.cloned(),
            generation: generation.number,
            origin: generation.origin.to_string(),
            since: Instant::now(),
            cause: fault.to_string(),
            instead: instead.map(|generation| generation.number),
        }
    }
}

impl Usage {
    fn new(service: Arc<str>) -> Self {
        Self { service, version: AtomicU64::new(0), served: AtomicU64::new(0), quarantines: Mutex::default() }
    }

    /// Changes whenever a generation is taken from the service or given back.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Takes note that a generation has decided for the service.
    pub(super) fn served(&self, generation: &Generation) {
        self.served.store(generation.number, Ordering::Relaxed);
    }

    fn may_use(&self, generation: &Generation) -> bool {
        self.quarantines().iter().all(|quarantine| quarantine.generation != generation.number)
    }

    fn is_served_by(&self, generation: &Generation) -> bool {
        self.served.load(Ordering::Relaxed) == generation.number && self.may_use(generation)
    }

    fn add(&self, quarantine: Quarantine) {
        self.quarantines().push(quarantine);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Ends those quarantines that are over; the numbers of their generations.
    fn end(&self, is_over: impl Fn(&Quarantine) -> bool) -> Vec<u64> {
        let mut quarantines = self.quarantines();
        let ended: Vec<u64> =
            quarantines.iter().filter(|quarantine| is_over(quarantine)).map(|of| of.generation).collect();
        if !ended.is_empty() {
            quarantines.retain(|quarantine| !is_over(quarantine));
            self.version.fetch_add(1, Ordering::Release);
        }
        ended
    }

    fn quarantines(&self) -> MutexGuard<'_, Vec<Quarantine>> {
        self.quarantines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The services that use a policy.
#[derive(Debug, Default)]
pub(super) struct Usages {
    by_service: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    usages: HashMap<Arc<str>, Weak<Usage>>,
    /// Entries of services that are gone are dropped when there are so many.
    sweep_at: usize,
}

impl Usages {
    fn get(&self, service: &Arc<str>) -> Arc<Usage> {
        let mut table = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = table.usages.get(service).and_then(Weak::upgrade) {
            return usage;
        }
        if table.usages.len() >= table.sweep_at {
            table.usages.retain(|_, usage| usage.strong_count() > 0);
            table.sweep_at = table.usages.len().saturating_mul(2).max(16);
        }
        let usage = Arc::new(Usage::new(service.clone()));
        table.usages.insert(service.clone(), Arc::downgrade(&usage));
        usage
    }

    fn all(&self) -> Vec<Arc<Usage>> {
        let table = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        table.usages.values().filter_map(Weak::upgrade).collect()
    }
}

impl Plugin {
    /// The policy's use by a service: to be held for as long as the service uses it.
    pub fn usage(&self, service: &Arc<str>) -> Arc<Usage> {
        self.usages.get(service)
    }

    /// The generation that a service uses; none while the proxy has to decide natively for it.
    pub fn generation_for(&self, usage: &Usage) -> Option<Arc<Generation>> {
        let current = self.current()?;
        if usage.may_use(&current) {
            return Some(current);
        }
        self.history().last_good.clone().filter(|good| usage.may_use(good))
    }

    /// Records a fault of a service's instance. Enough of them within 10 s take the generation from the service, or
    /// from all services where nothing speaks for it.
    pub fn fault_for(&self, usage: &Usage, generation: &Arc<Generation>, fault: &Fault) {
        self.faults.add(fault.kind);
        self.log_fault(&usage.service, generation, fault);
        if !fault.kind.condemns() {
            return;
        }
        let recent = generation.faults.record(&usage.service, fault.weight, Instant::now());
        if recent < generation.engine.limits.faults as usize || !usage.may_use(generation) {
            return;
        }
        let is_current = self.current().is_some_and(|current| Arc::ptr_eq(&current, generation));
        if is_current && self.speaks_against_all(usage, generation) {
            self.condemn(generation, fault);
        } else {
            self.take_from(usage, generation, fault);
        }
    }

    /// Records a fault that is nobody's in particular: enough of them within 10 s take the generation from all services.
    pub fn fault(&self, generation: &Arc<Generation>, fault: &Fault) {
        let service: Arc<str> = "".into();
        self.faults.add(fault.kind);
        self.log_fault(&service, generation, fault);
        let recent = generation.faults.record(&service, fault.weight, Instant::now());
        if recent >= generation.engine.limits.faults as usize {
            self.condemn(generation, fault);
        }
    }

    /// What is in quarantine now.
    pub fn quarantines(&self) -> Vec<Quarantine> {
        let mut all: Vec<Quarantine> = self.history().condemned.iter().cloned().collect();
        for usage in self.usages.all() {
            all.extend(usage.quarantines().iter().cloned());
        }
        all.sort_by(|one, other| (&one.service, one.generation).cmp(&(&other.service, other.generation)));
        all
    }

    /// Logs a fault, unless one of its kind was logged within the last second.
    pub(super) fn log_fault(&self, service: &Arc<str>, generation: &Generation, fault: &Fault) {
        if let Some(times) = self.lines.count(fault.kind, Instant::now()) {
            tracing::warn!(target: "heddle::plugin", policy = %self.name, %service, generation = generation.number,
                times, "{fault}; the proxy decides by itself for now");
        }
    }

    /// Whether no service speaks for a generation, one service having had enough faults of it.
    fn speaks_against_all(&self, usage: &Usage, generation: &Generation) -> bool {
        let usages = self.usages.all();
        let mut others = usages.iter().filter(|other| other.service != usage.service).peekable();
        if others.peek().is_none() {
            return true;
        }
        let (mut is_at_fault_elsewhere, mut is_served) = (false, false);
        for other in others {
            is_at_fault_elsewhere |= !other.may_use(generation);
            is_served |= other.is_served_by(generation);
        }
        is_at_fault_elsewhere && !is_served
    }

    /// Takes the generation in force from all services, and brings the last good one back.
    fn condemn(&self, generation: &Arc<Generation>, fault: &Fault) {
        let mut history = self.history();
        if !self.current().is_some_and(|current| Arc::ptr_eq(&current, generation)) {
            return;
        }
        history.quarantines += 1;
        let replacement = history.last_good.take();
        let then = match &replacement {
            Some(good) => format!("back to generation {} ({})", good.number, good.origin),
            None => "the proxy decides by itself".to_owned(),
        };
        tracing::error!(target: "heddle::plugin", policy = %self.name, generation = generation.number,
            "in quarantine after {} faults within 10 s, the last one {fault}; {then}", generation.engine.limits.faults);
        history.condemned = Some(Quarantine::new(None, generation, fault, replacement.as_deref()));
        history.quarantined = replacement.is_none().then(|| (generation.clone(), Instant::now()));
        self.put(replacement);
    }

    /// Takes a generation from one service.
    fn take_from(&self, usage: &Usage, generation: &Arc<Generation>, fault: &Fault) {
        let mut history = self.history();
        // Another worker may have been faster.
        if !usage.may_use(generation) {
            return;
        }
        let is_current = self.current().is_some_and(|current| Arc::ptr_eq(&current, generation));
        let instead = history.last_good.clone().filter(|good| is_current && usage.may_use(good));
        history.service_quarantines += 1;
        usage.add(Quarantine::new(Some(&usage.service), generation, fault, instead.as_deref()));
        drop(history);
        let then = match &instead {
            Some(good) => format!("it goes back to generation {} ({})", good.number, good.origin),
            None => "the proxy decides by itself for it".to_owned(),
        };
        tracing::error!(target: "heddle::plugin", policy = %self.name, service = %usage.service,
            generation = generation.number, "in quarantine for this service after {} faults within 10 s, the last one \
            {fault}; {then}, and other services go on", generation.engine.limits.faults);
    }

    /// Gives services back what was taken from them [`SECOND_CHANCE`] ago, and forgets what is said of generations that are
    /// not in force any more.
    pub(super) fn second_chances_of_services(&self, now: Instant) {
        let (current, last_good) = (self.current(), self.history().last_good.clone());
        let known = [current, last_good].into_iter().flatten().collect::<Vec<_>>();
        for usage in self.usages.all() {
            if usage.quarantines().is_empty() {
                continue;
            }
            let is_over = |quarantine: &Quarantine| {
                let is_known = known.iter().any(|generation| generation.number == quarantine.generation);
                !is_known || now.saturating_duration_since(quarantine.since) >= SECOND_CHANCE
            };
            for number in usage.end(is_over) {
                let Some(generation) = known.iter().find(|generation| generation.number == number) else { continue };
                generation.faults.forgive(Some(&usage.service));
                tracing::warn!(target: "heddle::plugin", policy = %self.name, service = %usage.service,
                    generation = number, "out of quarantine for this service, whose endpoints may be others by now");
            }
        }
    }
}
