//! Choosing an endpoint: the plugin's answer where it gives one that can be used, the native rotation where not.

use std::sync::Arc;
use std::time::Instant;

use crate::plugin::{Fault, Generation, Instance};
use crate::policy::{Facts, rotate};
use crate::service::{Endpoint, Service, ServiceStats, Snapshot};

/// How often a plugin is asked for one attempt: once, and twice more after an answer that cannot be used.
const ASKED: usize = 3;

/// One decision in this many is timed: reading the clock twice would cost as much as the decision.
const TIMED: u32 = 64;

/// What became of a decision.
#[derive(Debug)]
pub enum Choice {
    Endpoint(Arc<Endpoint>),
    /// The service has no eligible endpoint; nobody was asked.
    NoneEligible,
    /// The policy wants no endpoint to be used.
    Declined,
}

/// The balancer of one service on one worker.
pub struct Decider {
    service: Arc<Service>,
    stats: Arc<ServiceStats>,
    snapshot: Arc<Snapshot>,
    /// Of [`crate::plugin::Plugin`], when `instance` was made; none before the first.
    plugin_version: Option<u64>,
    instance: Option<Box<Instance>>,
    /// The slot chosen natively last.
    last: u32,
    seed: u64,
    until_timed: u32,
    used: bool,
}

impl Decider {
    pub fn new(service: Arc<Service>, stats: Arc<ServiceStats>, seed: u64) -> Self {
        Self {
            service,
            stats,
            snapshot: Arc::default(),
            plugin_version: None,
            instance: None,
            last: u32::MAX,
            seed,
            until_timed: 0,
            used: false,
        }
    }

    /// The endpoints as the next decision will see them.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Chooses an endpoint. Slots that were picked and could not be used are added to `facts.tried`.
    pub fn choose(&mut self, facts: &mut Facts) -> Choice {
        self.refresh();
        if self.snapshot.eligible_count() == 0 {
            return Choice::NoneEligible;
        }
        for _ in 0..ASKED {
            match self.ask(facts) {
                Some(Some(slot)) => {
                    if let Some(endpoint) =
                        self.snapshot.eligible_endpoint(slot).filter(|_| !facts.tried.contains(&slot))
                    {
                        return Choice::Endpoint(endpoint.clone());
                    }
                    self.stats.asked_again.add(1);
                    facts.tried.push(slot);
                }
                Some(None) => return Choice::Declined,
                None => break,
            }
        }
        self.choose_natively(&facts.tried)
    }

    /// Whether the plugin has to be made anew, after a fault.
    pub fn needs_instance(&self) -> bool {
        self.instance.is_none() && !self.is_outdated()
    }

    /// Makes the plugin anew, if there is one.
    pub fn make_instance(&mut self) {
        self.plugin_version = Some(self.service.balancer.version());
        self.instance = None;
        let Some(generation) = self.service.balancer.current() else { return };
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let config = &self.service.settings.balancer.config;
        match Instance::new(&generation, &self.service.name, config, self.seed, &self.snapshot) {
            Ok(instance) => {
                self.instance = Some(Box::new(instance));
                // Its first decision is timed, and is what proves a generation.
                self.until_timed = 0;
            }
            Err(fault) => self.fault(&generation, &fault),
        }
    }

    /// Drops the instance of a service that was not asked for since the last call.
    pub fn evict_unless_used(&mut self) {
        if !std::mem::take(&mut self.used) {
            self.instance = None;
            self.plugin_version = None;
        }
    }

    /// Drops an instance of a generation that is out of force: a service that is seldom asked for would keep its code
    /// and memory for as long.
    pub fn drop_outdated(&mut self) {
        if self.is_outdated() {
            self.instance = None;
            self.plugin_version = None;
        }
    }

    fn is_outdated(&self) -> bool {
        self.plugin_version != Some(self.service.balancer.version())
    }

    /// Takes notice of changed endpoints and of another generation: two numbers to compare while there are none.
    fn refresh(&mut self) {
        self.used = true;
        if self.service.version() != self.snapshot.version {
            self.snapshot = self.service.snapshot();
            if !self.is_outdated()
                && let Some(mut instance) = self.instance.take()
            {
                match instance.update(&self.snapshot) {
                    Ok(()) => self.instance = Some(instance),
                    Err(fault) => self.fault(instance.generation(), &fault),
                }
            }
        }
        if self.is_outdated() {
            self.make_instance();
        }
    }

    /// The plugin's answer; none when there is no plugin to ask.
    fn ask(&mut self, facts: &mut Facts) -> Option<Option<u32>> {
        let instance = self.instance.as_mut()?;
        let started = (self.until_timed == 0).then(Instant::now);
        let answer = instance.pick(facts);
        self.until_timed = match started {
            Some(started) => {
                self.service.balancer.decided(instance.generation(), started.elapsed());
                TIMED - 1
            }
            None => self.until_timed - 1,
        };
        match answer {
            Ok(answer) => {
                self.stats.decisions.add(1);
                Some(answer)
            }
            Err(fault) => {
                if let Some(instance) = self.instance.take() {
                    self.fault(instance.generation(), &fault);
                }
                None
            }
        }
    }

    fn choose_natively(&mut self, tried: &[u32]) -> Choice {
        self.stats.fallbacks.add(1);
        let slot = rotate(self.snapshot.eligible_bits(), tried, self.last);
        match slot.and_then(|slot| self.snapshot.eligible_endpoint(slot)) {
            Some(endpoint) => {
                self.last = endpoint.slot;
                Choice::Endpoint(endpoint.clone())
            }
            None => Choice::NoneEligible,
        }
    }

    fn fault(&self, generation: &Arc<Generation>, fault: &Fault) {
        self.service.balancer.fault(generation, fault);
    }
}
