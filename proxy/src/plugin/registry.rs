//! The plugins in force, by name, and what becomes of them when files change or guests misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering::{self, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};

use super::builtin::BUILTIN;
use super::compile::{Cancel, Source};
use super::engine::Engine;
use super::fault::{FaultCounts, FaultLines};
use super::folder::{self, Look};
use super::generation::{ContentHash, Generation, LoadError, Origin};
use super::quarantine::{Quarantine, Usage, Usages};
use crate::config::checked;
use crate::policy::Role;

/// A generation in quarantine that nothing could replace is given another chance after this time.
pub const SECOND_CHANCE: Duration = Duration::from_secs(30);

/// Threads that load policies at a start.
const LOADED_TOGETHER: usize = 4;

/// A policy by name, whichever generation of it is in force.
pub struct Plugin {
    pub name: Arc<str>,
    current: ArcSwapOption<Generation>,
    /// Changes whenever `current` does: all that a worker looks at.
    version: AtomicU64,
    /// Whether a generation was ever in force.
    has_served: AtomicBool,
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
    /// Why the last file was not loaded; none after one that was.
    refusal: Option<String>,
    /// The content of that file, if it is refused whenever it is tried.
    refused: Option<ContentHash>,
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
            has_served: AtomicBool::new(false),
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

    /// Whether no generation has been in force yet: nothing decides as the policy would, so its services refuse requests.
    pub fn is_awaited(&self) -> bool {
        !self.has_served.load(Relaxed)
    }

    /// Why the last file was not loaded; none after one that was.
    pub fn refusal(&self) -> Option<String> {
        self.history().refusal.clone()
    }

    /// Whether services use it.
    pub fn is_used(&self) -> bool {
        !self.history().uses.is_empty()
    }

    /// Remembers that there is no file to be loaded.
    pub(super) fn wait_for_file(&self) {
        self.history().refusal = Some("there is no such file".to_owned());
    }

    /// Whether this content was the last one that was tried, and was refused.
    pub(super) fn has_refused(&self, hash: ContentHash) -> bool {
        self.history().refused == Some(hash)
    }

    /// Counts a file that is not loaded, and remembers why.
    pub(super) fn refuse(&self, why: &LoadError, hash: Option<ContentHash>) {
        let mut history = self.history();
        history.refused = hash.filter(|_| !why.is_passing());
        history.refusals += 1;
        history.refusal = Some(why.to_string());
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
        if generation.is_some() {
            self.has_served.store(true, Relaxed);
        }
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
        (history.refusal, history.refused) = (None, None);
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
    /// Told when it is known anew which policies services use.
    wanted: Notify,
    /// Told when another generation has come into force.
    replaced: watch::Sender<()>,
}

/// A policy that cannot be used; without a cause there is none of this name.
pub type Unusable = (Arc<str>, Option<LoadError>);

impl Plugins {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, plugins: Mutex::default(), wanted: Notify::new(), replaced: watch::channel(()).0 }
    }

    /// Changes when another generation has come into force, so that instances can be made ahead of their first decision.
    pub fn replaced(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }

    /// Waits until services may use other policies than before, also where that was before the call.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
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
        self.load_each(|plugin| self.load_builtin_of(plugin))
    }

    /// Brings into force what can be had at once: of the file in the folder what was compiled of it before, or else of
    /// the one that was in force last; or the built-in policy. What has to be compiled is for [`super::watch`] to load.
    ///
    /// # Errors
    ///
    /// For each built-in policy that failed its name and the cause.
    pub fn load_at_start(&self) -> Result<(), Vec<(Arc<str>, LoadError)>> {
        self.load_each(|plugin| {
            let is_compiled = self.load_compiled(plugin);
            if is_compiled { Ok(()) } else { self.load_builtin_of(plugin) }
        })
    }

    /// Loads the file of each policy that services use, and the built-in one where there is no file that can be used. This
    /// waits for compilations.
    ///
    /// # Errors
    ///
    /// For each policy that there is no generation of its name and the cause.
    pub fn load_all(&self) -> Result<(), Vec<Unusable>> {
        let failed = Mutex::new(Vec::new());
        let _ = self.load_each(|plugin| {
            let failure = self.load_of(plugin).err();
            failed.lock().unwrap_or_else(PoisonError::into_inner).extend(failure.map(|why| (plugin.name.clone(), why)));
            Ok(())
        });
        let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.sort_by(|(one, _), (other, _)| one.cmp(other));
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Does this for the policies that services use, beside each other: the compiler has two places.
    fn load_each(
        &self,
        load: impl Fn(&Arc<Plugin>) -> Result<(), LoadError> + Sync,
    ) -> Result<(), Vec<(Arc<str>, LoadError)>> {
        let used: Vec<_> = self.all().into_iter().filter(|plugin| plugin.is_used()).collect();
        let mut failed = Vec::new();
        for some in used.chunks(LOADED_TOGETHER) {
            thread::scope(|scope| {
                let begun = some.iter().map(|plugin| {
                    let thread = thread::Builder::new().name("heddle-compile".into());
                    (plugin, thread.spawn_scoped(scope, || load(plugin)))
                });
                for (plugin, begun) in begun.collect::<Vec<_>>() {
                    let loaded = match begun.map(|thread| thread.join()) {
                        Ok(Ok(loaded)) => loaded,
                        Ok(Err(_)) => Err(LoadError::NoCompiler("a thread ended".into())),
                        Err(_no_thread) => load(plugin),
                    };
                    failed.extend(loaded.err().map(|error| (plugin.name.clone(), error)));
                }
            });
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    fn load_builtin_of(&self, plugin: &Arc<Plugin>) -> Result<(), LoadError> {
        let Some(bytes) = builtin_policy(&plugin.name) else { return Ok(()) };
        self.load_into(plugin, Source::Bytes(bytes), Origin::BuiltIn, &Cancel::default()).map(drop)
    }

    /// The file of this name, or else the built-in policy.
    fn load_of(&self, plugin: &Arc<Plugin>) -> Result<(), Option<LoadError>> {
        let look = self.folder().map_or(Look::Gone, |folder| folder::look(folder, &plugin.name));
        let refused = match look {
            Look::Gone => None,
            Look::Unreadable(_, why) => {
                plugin.refuse(&why, None);
                Some(why)
            }
            Look::Content(path, hash) => {
                let origin = Origin::File(path.clone());
                match self.load_into(plugin, Source::File(&path, hash), origin, &Cancel::default()) {
                    Ok(_) => return Ok(()),
                    Err(why) => Some(why),
                }
            }
        };
        if builtin_policy(&plugin.name).is_none() {
            return Err(refused);
        }
        if let Some(why) = refused {
            tracing::error!(target: "heddle::plugin", policy = &*plugin.name, "refused: {why}");
        }
        self.load_builtin_of(plugin).map_err(Some)
    }

    /// Whether something that was compiled of a file before is in force now.
    fn load_compiled(&self, plugin: &Arc<Plugin>) -> bool {
        let compiler = &self.engine.compiler;
        let Some((cache, folder)) = compiler.cache.as_ref().zip(self.folder()) else { return false };
        let Look::Content(path, hash) = folder::look(folder, &plugin.name) else { return false };
        let uses: Vec<_> = plugin.history().uses.iter().cloned().collect();
        let candidates = [Some(hash), cache.last_good(&plugin.name).filter(|last| *last != hash)];
        candidates.into_iter().flatten().any(|hash| {
            let Some(compiled) = compiler.cached(&self.engine, hash) else { return false };
            let origin = Origin::File(path.clone());
            let made = Generation::of_compiled(&self.engine, &plugin.name, &compiled, origin, &uses);
            if let Ok(generation) = &made {
                tracing::info!(target: "heddle::plugin", policy = &*plugin.name, generation = generation.number,
                    sha256 = %hash, "loaded as it was compiled before");
                plugin.replace(generation.clone());
            }
            made.is_ok()
        })
    }

    fn folder(&self) -> Option<&Path> {
        self.engine.limits.folder.as_deref()
    }

    /// Loads a file's content as the policy of this name. A content that is refused changes nothing.
    ///
    /// # Errors
    ///
    /// Why it was refused.
    pub fn load(&self, name: &str, bytes: &[u8], origin: Origin) -> Result<Arc<Generation>, LoadError> {
        self.load_into(&self.plugin(name), Source::Bytes(bytes), origin, &Cancel::default())
    }

    /// Loads a file as the policy of this name, until nobody waits for it.
    pub(super) fn load_file(
        &self,
        name: &str,
        path: &Path,
        hash: ContentHash,
        cancel: &Cancel,
    ) -> Result<Arc<Generation>, LoadError> {
        self.load_into(&self.plugin(name), Source::File(path, hash), Origin::File(path.to_owned()), cancel)
    }

    /// The names that services use, and those that they no longer use but that are still in force.
    pub(super) fn used(&self) -> Vec<Arc<Plugin>> {
        self.all().into_iter().filter(|plugin| plugin.is_used()).collect()
    }

    /// The plugin of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<Arc<Plugin>> {
        self.lock().get(name).cloned()
    }

    /// The file of this name is gone: back to the built-in policy. A policy in use that has no built-in one stays in
    /// force.
    pub fn remove(&self, name: &str) {
        let plugin = self.plugin(name);
        if let Some(bytes) = builtin_policy(name) {
            match self.load_into(&plugin, Source::Bytes(bytes), Origin::BuiltIn, &Cancel::default()) {
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

    /// Policies that services use and that have never been loaded.
    pub fn awaited(&self) -> Vec<Arc<Plugin>> {
        self.all().into_iter().filter(|plugin| plugin.is_awaited() && plugin.is_used()).collect()
    }

    /// Names that services use and that no generation is in force for.
    pub fn missing(&self) -> Vec<Arc<str>> {
        let plugins = self.all();
        let missing = plugins.iter().filter(|plugin| plugin.current().is_none() && !plugin.history().uses.is_empty());
        missing.map(|plugin| plugin.name.clone()).collect()
    }

    /// Has services use these policies, besides those that they use already, and makes sure that each is in force and
    /// takes its settings. This waits for compilations. Whether all of them are to be used, or none, is for
    /// [`Plugins::settle`] to say. A policy that is used already as it is here stays what it is, also where there is no
    /// generation of it yet.
    ///
    /// # Errors
    ///
    /// For each that cannot be used its name and the cause.
    pub fn prepare(&self, policies: &[(&checked::Policy, Role)]) -> Result<(), Vec<Unusable>> {
        let mut failed = Vec::new();
        for (policy, role) in policies {
            let known = self.plugin(&policy.plugin).history().uses.contains(&(*role, policy.config.clone()));
            if known {
                continue;
            }
            let plugin = self.require(policy, *role);
            let used = match plugin.current() {
                Some(generation) => generation.take(*role, &policy.config).map_err(Some),
                None if plugin.is_in_quarantine() => Ok(()),
                None => self.load_of(&plugin),
            };
            failed.extend(used.err().map(|error| (plugin.name.clone(), error)));
        }
        failed.dedup_by(|(one, _), (other, _)| one == other);
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Has services use these policies and no others.
    pub fn settle(&self, policies: &[(&checked::Policy, Role)]) {
        for plugin in self.all() {
            let uses = policies.iter().filter(|(policy, _)| policy.plugin == plugin.name);
            plugin.history().uses = uses.map(|(policy, role)| (*role, policy.config.clone())).collect();
        }
        self.wanted.notify_one();
    }

    fn load_into(
        &self,
        plugin: &Arc<Plugin>,
        source: Source<'_>,
        origin: Origin,
        cancel: &Cancel,
    ) -> Result<Arc<Generation>, LoadError> {
        let hash = match source {
            Source::Bytes(bytes) => ContentHash::of(bytes),
            Source::File(_, hash) => hash,
        };
        if let Some(current) = plugin.current().filter(|current| current.hash == hash && current.origin == origin) {
            return Ok(current);
        }
        let uses: Vec<(Role, Arc<str>)> = plugin.history().uses.iter().cloned().collect();
        let is_file = matches!(origin, Origin::File(_));
        match Generation::load_from(&self.engine, &plugin.name, source, origin, &uses, cancel) {
            Ok(generation) => {
                plugin.replace(generation.clone());
                self.replaced.send_replace(());
                if let Some(cache) = self.engine.compiler.cache.as_ref().filter(|_| is_file) {
                    cache.set_last_good(&plugin.name, generation.hash);
                }
                Ok(generation)
            }
            Err(LoadError::Cancelled) => Err(LoadError::Cancelled),
            Err(error) => {
                plugin.refuse(&error, Some(hash).filter(|_| is_file));
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
