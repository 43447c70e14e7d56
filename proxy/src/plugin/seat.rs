//! A policy of one service on one thread: an instance that follows the service and the plugin's generations.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::builtin_policy;
use super::fault::{Fault, FaultKind};
use super::generation::Generation;
use super::instance::Instance;
use super::quarantine::Usage;
use super::registry::Plugin;
use super::share::{self, Cost, thread_cpu_time};
use crate::policy::Terms;
use crate::service::{Fleet, Snapshot};

/// One decision in this many is timed: reading the clock twice would cost as much as the decision.
const TIMED: u32 = 64;

/// An instance that could not be made for want of memory is not tried again before this time.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);

/// An instance that is made when it is first asked, told of changes before the next question, and made anew after a
/// fault and for another generation. While there is none, whoever asks decides natively.
pub struct Seat {
    fleet: Arc<Fleet>,
    plugin: Arc<Plugin>,
    usage: Arc<Usage>,
    config: Arc<str>,
    snapshot: Arc<Snapshot>,
    /// Whether the instance knows this snapshot.
    is_up_to_date: bool,
    /// Of the plugin and its use by the service, when `instance` was made; none before the first.
    version: Option<u64>,
    instance: Option<Box<Instance>>,
    /// What the last instance asked for.
    terms: Terms,
    seed: u64,
    until_timed: u32,
    used: bool,
    /// Whether calls are timed by the thread's CPU clock, as the service has used much of its share.
    is_metered: bool,
    pause: Option<Pause>,
}

/// A time for which the instance is not asked.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    /// Whether each decision meanwhile is counted as made natively for the service's share.
    is_for_share: bool,
}

impl Seat {
    pub fn new(fleet: Arc<Fleet>, plugin: Arc<Plugin>, config: Arc<str>, seed: u64) -> Self {
        Self {
            usage: plugin.usage(&fleet.name),
            fleet,
            plugin,
            config,
            snapshot: Arc::default(),
            is_up_to_date: false,
            version: None,
            instance: None,
            terms: Terms::default(),
            seed,
            until_timed: 0,
            used: false,
            is_metered: false,
            pause: None,
        }
    }

    /// The endpoints, as far as `refresh` has seen them.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The policy's name.
    pub fn policy(&self) -> &Arc<str> {
        &self.plugin.name
    }

    /// The policy's settings, a JSON object.
    pub fn config(&self) -> &Arc<str> {
        &self.config
    }

    /// Whether there is a policy to speak of: a built-in one of this name, or one that was in force at some time.
    pub fn is_known(&self) -> bool {
        self.plugin.version() > 0 || builtin_policy(&self.plugin.name).is_some()
    }

    /// The instance, if there is one.
    pub fn instance(&self) -> Option<&Instance> {
        self.instance.as_deref()
    }

    /// What the policy asked for when it was configured; it holds while an instance is made anew.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Takes notice of changed endpoints and of another generation: numbers to compare while there are none.
    pub fn refresh(&mut self) {
        self.used = true;
        if self.fleet.version() != self.snapshot.version {
            self.snapshot = self.fleet.snapshot();
            self.is_up_to_date = false;
        }
        if self.pause.is_some() && self.pauses() {
            return;
        }
        if self.is_outdated() {
            self.make_instance();
        } else if !self.is_up_to_date
            && let Some(mut instance) = self.instance.take()
        {
            match instance.update(&self.snapshot) {
                Ok(()) => {
                    self.is_up_to_date = true;
                    self.instance = Some(instance);
                }
                Err(fault) => self.fault(&instance, &fault),
            }
        }
    }

    /// The plugin's answer; none when there is no plugin to ask, when the service has used its share, or when the plugin
    /// was at fault.
    pub fn ask<T>(&mut self, question: impl FnOnce(&mut Instance) -> Result<T, Fault>) -> Option<T> {
        if let Some(pause) = self.pause {
            if pause.is_for_share {
                self.plugin.faults.add(FaultKind::Share);
            }
            return None;
        }
        let mut instance = self.instance.take()?;
        share::asks(self.number(), instance.generation().engine.tick_number());
        let before = self.begin();
        let started = (self.until_timed == 0).then(Instant::now);
        let answer = question(&mut instance);
        self.until_timed = match started {
            Some(started) => {
                let served = answer.is_ok().then_some(&*self.usage);
                self.plugin.decided(instance.generation(), started.elapsed(), served);
                TIMED - 1
            }
            None => self.until_timed - 1,
        };
        self.charge(&mut instance, before);
        match answer {
            Ok(answer) => {
                self.instance = Some(instance);
                Some(answer)
            }
            Err(fault) => {
                self.fault(&instance, &fault);
                None
            }
        }
    }

    /// Whether the instance has to be made anew, after a fault.
    pub fn needs_instance(&self) -> bool {
        self.instance.is_none() && !self.is_outdated() && self.pause.is_none()
    }

    /// Makes the instance anew, if there is a generation to make it of.
    pub fn make_instance(&mut self) {
        self.version = Some(self.version_now());
        self.instance = None;
        let Some(generation) = self.plugin.generation_for(&self.usage) else { return };
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match Instance::new(&generation, &self.fleet, &self.config, self.seed, &self.snapshot) {
            Ok(instance) => {
                self.terms = instance.terms();
                self.is_up_to_date = true;
                self.instance = Some(Box::new(instance));
                // Its first decision is timed, and is what proves a generation.
                self.until_timed = 0;
            }
            Err(fault) => {
                if fault.kind == FaultKind::MemoryTotal {
                    let until = Instant::now() + MEMORY_PAUSE;
                    self.pause = Some(Pause { until, is_for_share: false });
                }
                self.plugin.fault_for(&self.usage, &generation, &fault);
            }
        }
    }

    /// Makes the instance of another generation ahead of the question that needs it, where there was one.
    pub fn renew(&mut self) {
        if self.instance.is_some() && self.is_outdated() {
            self.refresh();
        }
    }

    /// Drops the instance if nobody has asked since the last call.
    pub fn evict_unless_used(&mut self) {
        if !mem::take(&mut self.used) {
            self.evict();
        }
    }

    /// Drops an instance of a generation that is out of force: a service that is seldom asked for would keep its code
    /// and memory for as long.
    pub fn drop_outdated(&mut self) {
        if self.is_outdated() {
            self.evict();
        }
    }

    /// Drops the instance; another is made when somebody asks.
    pub fn evict(&mut self) {
        self.instance = None;
        self.version = None;
    }

    fn is_outdated(&self) -> bool {
        self.version != Some(self.version_now())
    }

    /// Both numbers only rise, and so does their sum.
    fn version_now(&self) -> u64 {
        self.plugin.version().wrapping_add(self.usage.version())
    }

    fn fault(&self, instance: &Instance, fault: &Fault) {
        self.plugin.fault_for(&self.usage, instance.generation(), fault);
    }

    /// Whether the pause goes on; else it is over.
    fn pauses(&mut self) -> bool {
        let goes_on = self.pause.is_some_and(|pause| Instant::now() < pause.until);
        if !goes_on {
            self.pause = None;
        }
        goes_on
    }

    /// The thread's CPU time, where calls are timed by it.
    fn begin(&self) -> Option<Duration> {
        self.is_metered.then(thread_cpu_time)
    }

    /// Adds what the instance's calls have cost to what the service has used of its share.
    fn charge(&mut self, instance: &mut Instance, before: Option<Duration>) {
        let by_ticks = instance.take_spent();
        if by_ticks.is_zero() && before.is_none() {
            return;
        }
        let spent = before.map_or(by_ticks, |before| thread_cpu_time().saturating_sub(before));
        self.charge_time(instance.generation(), spent);
    }

    #[cold]
    fn charge_time(&mut self, generation: &Arc<Generation>, spent: Duration) {
        let engine = &generation.engine;
        let percent = engine.limits.share;
        if percent >= 100 {
            return;
        }
        let cost = Cost { service: self.number(), spent, tick: engine.tick_number(), tick_length: engine.tick };
        let charged = share::charge(&cost, Duration::from_millis(10) * percent);
        self.is_metered = charged.is_metered;
        let Some((until, used)) = charged.over else { return };
        self.pause = Some(Pause { until, is_for_share: true });
        let cause = format!(
            "the service's decisions took {used:?} of CPU time within a second, more than {percent} % of it \
             (plugin_share), while others waited"
        );
        self.plugin.log_fault(&self.usage.service, generation, &Fault { kind: FaultKind::Share, cause, weight: 0 });
    }

    /// Names the service on this thread.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.fleet).addr()
    }
}
