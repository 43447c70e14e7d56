//! A policy of one service on one thread: an instance that follows the service and the plugin's generations.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::fault::Fault;
use super::generation::Generation;
use super::instance::Instance;
use super::registry::Plugin;
use crate::service::{Fleet, Snapshot};

/// One decision in this many is timed: reading the clock twice would cost as much as the decision.
const TIMED: u32 = 64;

/// An instance that is made when it is first asked, told of changes before the next question, and made anew after a
/// fault and for another generation. While there is none, whoever asks decides natively.
pub struct Seat {
    fleet: Arc<Fleet>,
    plugin: Arc<Plugin>,
    config: Arc<str>,
    snapshot: Arc<Snapshot>,
    /// Of the plugin, when `instance` was made; none before the first.
    version: Option<u64>,
    instance: Option<Box<Instance>>,
    seed: u64,
    until_timed: u32,
    used: bool,
}

impl Seat {
    pub fn new(fleet: Arc<Fleet>, plugin: Arc<Plugin>, config: Arc<str>, seed: u64) -> Self {
        Self {
            fleet,
            plugin,
            config,
            snapshot: Arc::default(),
            version: None,
            instance: None,
            seed,
            until_timed: 0,
            used: false,
        }
    }

    /// The endpoints as the policy sees them.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The instance, if there is one.
    pub fn instance(&self) -> Option<&Instance> {
        self.instance.as_deref()
    }

    /// Takes notice of changed endpoints and of another generation: two numbers to compare while there are none.
    pub fn refresh(&mut self) {
        self.used = true;
        if self.fleet.version() != self.snapshot.version {
            self.snapshot = self.fleet.snapshot();
            if !self.is_outdated()
                && let Some(mut instance) = self.instance.take()
            {
                match instance.update(&self.snapshot) {
                    Ok(()) => self.instance = Some(instance),
                    Err(fault) => self.plugin.fault(instance.generation(), &fault),
                }
            }
        }
        if self.is_outdated() {
            self.make_instance();
        }
    }

    /// The plugin's answer; none when there is no plugin to ask, or when it was at fault.
    pub fn ask<T>(&mut self, question: impl FnOnce(&mut Instance) -> Result<T, Fault>) -> Option<T> {
        let instance = self.instance.as_mut()?;
        let started = (self.until_timed == 0).then(Instant::now);
        let answer = question(instance);
        self.until_timed = match started {
            Some(started) => {
                self.plugin.decided(instance.generation(), started.elapsed());
                TIMED - 1
            }
            None => self.until_timed - 1,
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(fault) => {
                if let Some(instance) = self.instance.take() {
                    self.plugin.fault(instance.generation(), &fault);
                }
                None
            }
        }
    }

    /// Whether the instance has to be made anew, after a fault.
    pub fn needs_instance(&self) -> bool {
        self.instance.is_none() && !self.is_outdated()
    }

    /// Makes the instance anew, if there is a generation to make it of.
    pub fn make_instance(&mut self) {
        self.version = Some(self.plugin.version());
        self.instance = None;
        let Some(generation) = self.plugin.current() else { return };
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match Instance::new(&generation, &self.fleet, &self.config, self.seed, &self.snapshot) {
            Ok(instance) => {
                self.instance = Some(Box::new(instance));
                // Its first decision is timed, and is what proves a generation.
                self.until_timed = 0;
            }
            Err(fault) => self.fault(&generation, &fault),
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
        self.version != Some(self.plugin.version())
    }

    fn fault(&self, generation: &Arc<Generation>, fault: &Fault) {
        self.plugin.fault(generation, fault);
    }
}
