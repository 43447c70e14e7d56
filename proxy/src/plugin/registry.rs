//! The plugins in force, by name, and what becomes of them when files change or guests misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{self, Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::builtin::BUILTIN;
use super::engine::Engine;
use super::fault::{FaultCounts, FaultLines};
use super::generation::{ContentHash, Generation, LoadError, Origin};
use super::quarantine::{Quarantine, Usage, Usages};
use crate::config::checked;
use crate::policy::Role;

/// A generation in quarantine that nothing could replace is given another chance after this time.
pub const SECOND_CHANCE: Duration = Duration::from_secs(30);

/// A policy by name, whichever generation of it is in force.
pub struct Plugin {
    pub name: Arc<str>,
    current: ArcSwapOption<Generation>,
    /// Changes whenever `current` does: all that a worker looks at.
    version: AtomicU64,
    /// Faults of all its generations.
    pub faults: FaultCounts,
    /// Decisions of all its generations.
    timing: Timing,
    /// Which faults are logged.
    pub(super) lines: FaultLines,
    /// The services that use it.
    pub(super) usages: Usages,
    history: Mutex<History>,
}

/// How long decisions take, from a sample of them.
#[derive(Debug, Default)]
pub struct Timing {
    nanos: AtomicU64,
    decisions: AtomicU64,
}

impl Timing {
    fn observe(&self, duration: Duration) {
        self.nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.decisions.fetch_add(1, Relaxed);
    }

    /// Time in all, in seconds, and the number of decisions that took it.
    pub fn total(&self) -> (f64, u64) {
        (self.nanos.load(Relaxed) as f64 / 1e9, self.decisions.load(Relaxed))
    }
}

#[derive(Default)]
pub(super) struct History {
    /// What is brought back when the generation in force misbehaves.
    pub(super) last_good: Option<Arc<Generation>>,
    /// Out of force with nothing to replace it, since this moment.
    pub(super) quarantined: Option<(Arc<Generation>, Instant)>,
    /// The last generation that was taken out of force for its faults, until another one is loaded.
    pub(super) condemned: Option<Quarantine>,
    /// What services use this policy as, and the configurations that they give it.
    uses: BTreeSet<(Role, Arc<str>)>,
    pub(super) quarantines: u64,
    /// Times that a generation was taken from one service.
    pub(super) service_quarantines: u64,
    refusals: u64,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("current", &self.current()).finish()
    }
}

impl Plugin {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            current: ArcSwapOption::empty(),
            version: AtomicU64::new(0),
            faults: FaultCounts::default(),
            timing: Timing::default(),
            lines: FaultLines::default(),
            usages: Usages::default(),
            history: Mutex::default(),
        }
    }

    /// Changes whenever another generation comes into force.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The generation in force; none while the proxy has to decide by itself.
    pub fn current(&self) -> Option<Arc<Generation>> {
        self.current.load_full()
    }

    /// How often a generation was put in quarantine, and how often a file was refused.
    pub fn incidents(&self) -> (u64, u64) {
        let history = self.history();
        (history.quarantines, history.refusals)
    }

    /// How often a generation was taken from one service.
    pub fn service_quarantines(&self) -> u64 {
        self.history().service_quarantines
    }

    /// Whether a generation is out of force for its faults, with nothing to replace it for now.
    fn is_in_quarantine(&self) -> bool {
        self.history().quarantined.is_some()
    }

    /// Takes note of a decision that was timed; of a service that it was made for without fault.
    pub fn decided(&self, generation: &Generation, duration: Duration, served: Option<&Usage>) {
        if let Some(usage) = served {
            generation.decided.store(true, Relaxed);
            usage.served(generation);
        }
        self.timing.observe(duration);
    }

    /// How long decisions take.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, generation: Option<Arc<Generation>>) {
        self.current.store(generation);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Brings a new generation into force and remembers the one before: the one that was in force if it has decided
    /// without fault, so that several bad ones in a row leave the last good one where it is.
    pub fn replace(&self, generation: Arc<Generation>) {
        let mut history = self.history();
        if let Some(before) = self.current()
            && (history.last_good.is_none() || before.is_proven(Instant::now()))
        {
            history.last_good = Some(before);
        }
        history.quarantined = None;
        history.condemned = None;
        self.put(Some(generation));
    }

    /// What was brought back could only be a file that is gone by now.
    fn forget_last_good(&self) {
        self.history().last_good = None;
    }

    fn second_chance(&self, now: Instant) {
        self.second_chances_of_services(now);
        let mut history = self.history();
        if history.quarantined.as_ref().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= SECOND_CHANCE)
            && let Some((generation, _)) = history.quarantined.take()
        {
            tracing::warn!(target: "heddle::plugin", policy = %self.name, generation = generation.number,
                "out of quarantine, as nothing could replace it");
            generation.faults.forgive(None);
            history.condemned = None;
            self.put(Some(generation));
        }
    }
}

/// All plugins by name.
pub struct Plugins {
    engine: Arc<Engine>,
    plugins: Mutex<BTreeMap<Arc<str>, Arc<Plugin>>>,
}

impl Plugins {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, plugins: Mutex::default() }
    }

    /// What all plugins share.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The plugin that a service's policy names; its configuration is among those that every generation is probed with
    /// from now on.
    pub fn require(&self, policy: &checked::Policy, role: Role) -> Arc<Plugin> {
        let plugin = self.plugin(&policy.plugin);
        plugin.history().uses.insert((role, policy.config.clone()));
        plugin
    }

    /// All plugins, by name.
    pub fn all(&self) -> Vec<Arc<Plugin>> {
        self.lock().values().cloned().collect()
    }

    /// Loads the built-in policies that services use.
    ///
    /// # Errors
    ///
    /// For each that failed its name and the cause: a configuration that it does not accept, in the main.
    pub fn load_builtin(&self) -> Result<(), Vec<(Arc<str>, LoadError)>> {
        let mut failed = Vec::new();
        for plugin in self.all() {
            if let Some(bytes) = builtin_policy(&plugin.name)
                && let Err(error) = self.load_into(&plugin, bytes, Origin::BuiltIn)
            {
                failed.push((plugin.name.clone(), error));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Loads a file's content as the policy of this name. A content that is refused changes nothing.
    ///
    /// # Errors
    ///
    /// Why it was refused.
    pub fn load(&self, name: &str, bytes: &[u8], origin: Origin) -> Result<Arc<Generation>, LoadError> {
        self.load_into(&self.plugin(name), bytes, origin)
    }

    /// The file of this name is gone: back to the built-in policy. A policy in use that has no built-in one stays in
    /// force.
    pub fn remove(&self, name: &str) {
        let plugin = self.plugin(name);
        if let Some(bytes) = builtin_policy(name) {
            match self.load_into(&plugin, bytes, Origin::BuiltIn) {
                Ok(generation) => {
                    plugin.forget_last_good();
                    tracing::info!(target: "heddle::plugin", policy = name, generation = generation.number,
                        "its file is gone: back to the built-in policy");
                }
                Err(error) => tracing::error!(target: "heddle::plugin", policy = name,
                    "its file is gone, and the built-in policy cannot take over ({error}): it stays in force"),
            }
        } else if plugin.history().uses.is_empty() {
            plugin.put(None);
            self.lock().remove(name);
            tracing::info!(target: "heddle::plugin", policy = name, "its file is gone");
        } else {
            tracing::error!(target: "heddle::plugin", policy = name,
                "its file is gone, but services use it and there is no built-in policy of that name: it stays in force");
        }
    }

    /// Gives generations that nothing could replace another chance, [`SECOND_CHANCE`] after they were put out of force.
    pub fn second_chances(&self, now: Instant) {
        for plugin in self.all() {
            plugin.second_chance(now);
        }
    }

    /// Names that services use and that no generation is in force for.
    pub fn missing(&self) -> Vec<Arc<str>> {
        let plugins = self.all();
        let missing = plugins.iter().filter(|plugin| plugin.current().is_none() && !plugin.history().uses.is_empty());
        missing.map(|plugin| plugin.name.clone()).collect()
    }

    /// Has services use these policies, besides those that they use already, and makes sure that each is in force and
    /// takes its settings. Whether all of them are to be used, or none, is for [`Plugins::settle`] to say.
    ///
    /// # Errors
    ///
    /// For each that cannot be used its name and the cause; those that there are not are [`Plugins::missing`].
    pub fn prepare(&self, policies: &[(&checked::Policy, Role)]) -> Result<(), Vec<(Arc<str>, LoadError)>> {
        let mut failed = Vec::new();
        for (policy, role) in policies {
            let known = self.plugin(&policy.plugin).history().uses.contains(&(*role, policy.config.clone()));
            let plugin = self.require(policy, *role);
            let used = match (plugin.current(), builtin_policy(&plugin.name)) {
                (Some(generation), _) if !known => generation.take(*role, &policy.config),
                (None, Some(bytes)) if !plugin.is_in_quarantine() => {
                    self.load_into(&plugin, bytes, Origin::BuiltIn).map(drop)
                }
                _ => Ok(()),
            };
            failed.extend(used.err().map(|error| (plugin.name.clone(), error)));
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Has services use these policies and no others.
    pub fn settle(&self, policies: &[(&checked::Policy, Role)]) {
        for plugin in self.all() {
            let uses = policies.iter().filter(|(policy, _)| policy.plugin == plugin.name);
            plugin.history().uses = uses.map(|(policy, role)| (*role, policy.config.clone())).collect();
        }
    }

    fn load_into(&self, plugin: &Arc<Plugin>, bytes: &[u8], origin: Origin) -> Result<Arc<Generation>, LoadError> {
        let hash = ContentHash::of(bytes);
        if let Some(current) = plugin.current().filter(|current| current.hash == hash && current.origin == origin) {
            return Ok(current);
        }
        let uses: Vec<(Role, Arc<str>)> = plugin.history().uses.iter().cloned().collect();
        match Generation::load(&self.engine, &plugin.name, bytes, origin, &uses) {
            Ok(generation) => {
                plugin.replace(generation.clone());
                Ok(generation)
            }
            Err(error) => {
                plugin.history().refusals += 1;
                Err(error)
            }
        }
    }

    fn plugin(&self, name: &str) -> Arc<Plugin> {
        let mut plugins = self.lock();
        if let Some(plugin) = plugins.get(name) {
            return plugin.clone();
        }
        let plugin = Arc::new(Plugin::new(name.into()));
        plugins.insert(plugin.name.clone(), plugin.clone());
        plugin
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Plugin>>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives second chances for ever.
pub async fn give_second_chances(plugins: Arc<Plugins>) {
    loop {
        tokio::time::sleep(SECOND_CHANCE / 10).await;
        plugins.second_chances(Instant::now());
    }
}

/// The names of the built-in policies.
pub fn builtin_names() -> Vec<&'static str> {
    BUILTIN.iter().map(|(name, _)| *name).collect()
}

/// The built-in policy of this name, as the file that it would be in a folder of plugins.
pub fn builtin_policy(name: &str) -> Option<&'static [u8]> {
    BUILTIN.iter().find(|(builtin, _)| *builtin == name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::super::fault::{Fault, FaultKind};
    use super::*;
    use crate::clock::Clock;

    /// Counters are for graphs, on which a fall would look like a restart.
    #[test]
    fn faults_are_counted_over_all_generations() {
        let checked = crate::config::parse("[[listener]]\naddress = '127.0.0.1:0'", "test".as_ref(), &[]).unwrap();
        let plugins = Plugins::new(Engine::new(checked.config.plugins, Clock::running()).unwrap());
        let bytes = builtin_policy("random").unwrap();
        let first = plugins.load("random", bytes, Origin::BuiltIn).unwrap();
        let plugin = plugins.plugin("random");
        plugin.fault(&first, &Fault { kind: FaultKind::Trap, cause: String::new(), weight: 1 });
        let second = plugins.load("random", bytes, Origin::File("random.wasm".into())).unwrap();
        assert_ne!(first.number, second.number);
        plugin.fault(&second, &Fault { kind: FaultKind::Trap, cause: String::new(), weight: 1 });
        assert_eq!((plugin.faults.get(FaultKind::Trap), plugin.faults.get(FaultKind::Memory)), (2, 0));
    }
}
