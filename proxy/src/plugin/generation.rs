//! From the bytes of a file to a policy that is known to work.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tracing::{Dispatch, dispatcher};

use super::compile::{Cancel, Compiled, Source};
use super::engine::Engine;
use super::fault::{Fault, FaultKind, FaultLog, reason};
use super::guest::Prepared;
use super::host::LogLines;
use super::instance::Instance;
use super::probe;
use crate::policy::{Kind, Outcome, Role};

/// A larger file is not read; the built-in policies have some tens of kilobytes.
pub const MAX_BYTES: u64 = 16 << 20;

/// Where a generation came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File(path) => f.write_str(&shown(path)),
        }
    }
}

/// A path as a piece of a log line: what a file is called begins no other line.
pub(super) fn shown(path: &Path) -> String {
    let mut shown = String::new();
    for c in path.to_string_lossy().chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// SHA-256 of a plugin's file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a file did not become a generation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    #[error("not WebAssembly: expected a component, or a core module built with this version's bindings")]
    NotWasm,
    #[error("a core module that cannot be made a component: {0}")]
    NotWrappable(String),
    #[error("does not compile: {0}")]
    Compile(String),
    #[error("{bytes} bytes; expected at most {MAX_BYTES}")]
    TooLarge { bytes: u64 },
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("compiling it takes more than {limit:?} of CPU time: expected less, or a larger plugin_compile.cpu")]
    OutOfTime { limit: Duration },
    #[error("compiling it takes more than {} MiB of memory{}: expected less, or a larger plugin_compile.memory",
        .limit >> 20, if *.is_set { "" } else { " (512 MiB, or half of what the cgroup leaves)" })]
    OutOfMemory { limit: u64, is_set: bool },
    /// The process that was to compile it was ended by somebody.
    #[error("the process that compiled it did not finish: {0}")]
    Died(String),
    #[error("it cannot be compiled now: {0}")]
    NoCompiler(String),
    #[error("nobody waits for it any more")]
    Cancelled,
    #[error("speaks no world of heddle:policy@0.1.0: {0}")]
    Contract(String),
    #[error("is a {found}, and services use it as their {}: expected that world of heddle:policy@0.1.0", wanted.world(), found = found.world())]
    Role { found: Role, wanted: Role },
    #[error("failed its probe ({fault}) with the configuration {config}")]
    Probe { config: Arc<str>, fault: Fault },
}

impl LoadError {
    /// Whether the same file may well be loaded when it is tried again.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreadable(_) | Self::Died(_) | Self::NoCompiler(_) | Self::Cancelled)
    }
}

/// One loaded version of a plugin.
pub struct Generation {
    pub policy: Arc<str>,
    pub hash: ContentHash,
    /// Counts the generations of this process, from 1.
    pub number: u64,
    pub origin: Origin,
    pub loaded: Instant,
    pub faults: FaultLog,
    /// Whether it has decided for a request; set by the sample that is timed.
    pub(super) decided: AtomicBool,
    pub(super) lines: Arc<LogLines>,
    pub(super) engine: Arc<Engine>,
    pub(super) prepared: Prepared,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} generation {} ({}, {})", self.policy, self.number, self.hash, self.origin)
    }
}

/// Numbers generations over all plugins, so that a number names one.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Generation {
    /// Compiles and links a plugin, and probes it with each of the configurations that it is used with. This takes tens of milliseconds
    /// of CPU time: not for a worker.
    ///
    /// # Errors
    ///
    /// [`LoadError`] says which step failed and what was expected.
    pub fn load(
        engine: &Arc<Engine>,
        policy: &Arc<str>,
        bytes: &[u8],
        origin: Origin,
        uses: &[(Role, Arc<str>)],
    ) -> Result<Arc<Self>, LoadError> {
        Self::load_from(engine, policy, Source::Bytes(bytes), origin, uses, &Cancel::default())
    }

    /// The same from wherever the content is, until nobody waits for it.
    pub(super) fn load_from(
        engine: &Arc<Engine>,
        policy: &Arc<str>,
        source: Source<'_>,
        origin: Origin,
        uses: &[(Role, Arc<str>)],
        cancel: &Cancel,
    ) -> Result<Arc<Self>, LoadError> {
        let compiled = engine.compiler.compile(engine, source, uses, cancel)?;
        Self::of_compiled(engine, policy, &compiled, origin, uses)
    }

    /// Makes a generation of what is compiled, and probes it unless that has been done.
    pub(super) fn of_compiled(
        engine: &Arc<Engine>,
        policy: &Arc<str>,
        compiled: &Compiled,
        origin: Origin,
        uses: &[(Role, Arc<str>)],
    ) -> Result<Arc<Self>, LoadError> {
        let component = &compiled.component;
        let linked = engine.linker.instantiate_pre(component).map_err(|error| LoadError::Contract(reason(&error)))?;
        let prepared = Prepared::new(&linked).map_err(|errors| LoadError::Contract(what_is_missing(&errors, uses)))?;
        let found = prepared.role();
        if let Some(&(wanted, _)) = uses.iter().find(|(wanted, _)| *wanted != found) {
            return Err(LoadError::Role { found, wanted });
        }
        let generation = Arc::new(Self {
            policy: policy.clone(),
            hash: compiled.hash,
            number: NUMBER.fetch_add(1, Relaxed),
            origin,
            loaded: Instant::now(),
            faults: FaultLog::default(),
            decided: AtomicBool::new(false),
            lines: engine.log_lines(policy),
            engine: engine.clone(),
            prepared,
        });
        if !compiled.probed {
            generation.probe(uses)?;
        }
        Ok(generation)
    }

    /// Whether it has decided for requests, and has lately not been at fault.
    pub(super) fn is_proven(&self, now: Instant) -> bool {
        self.decided.load(Relaxed) && self.faults.is_quiet(now)
    }

    /// Makes sure that it can be used so as well.
    ///
    /// # Errors
    ///
    /// When it is of another world, or fails its probe with this configuration.
    pub(super) fn take(self: &Arc<Self>, role: Role, config: &Arc<str>) -> Result<(), LoadError> {
        let found = self.role();
        if found != role {
            return Err(LoadError::Role { found, wanted: role });
        }
        self.probe(&[(role, config.clone())])
    }

    /// The world that it is of.
    pub fn role(&self) -> Role {
        self.prepared.role()
    }

    /// Runs the guest through a life in small, as a service with three endpoints would.
    fn probe(self: &Arc<Self>, uses: &[(Role, Arc<str>)]) -> Result<(), LoadError> {
        // Lines about a service that is none would mislead.
        dispatcher::with_default(&Dispatch::none(), || self.probe_each(uses))
    }

    fn probe_each(self: &Arc<Self>, uses: &[(Role, Arc<str>)]) -> Result<(), LoadError> {
        let unused: [(Role, Arc<str>); 1] = [(self.role(), "{}".into())];
        for (_, config) in if uses.is_empty() { &unused } else { uses } {
            match self.probe_with(config) {
                // Nobody says how a policy that no service uses is to be configured.
                Err(Fault { kind: FaultKind::Configure, .. }) if uses.is_empty() => {}
                Err(fault) => return Err(LoadError::Probe { config: config.clone(), fault }),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn probe_with(self: &Arc<Self>, config: &str) -> Result<(), Fault> {
        let (fleet, mut facts, seed) = probe::service(self.engine.clock.clone());
        let mut instance = Instance::new(self, &fleet, config, seed, &fleet.snapshot())?;
        let refused = Outcome::of(Kind::Refused, Duration::from_millis(1));
        for slot in 0..4 {
            match self.role() {
                Role::Balancer => drop(instance.pick(&mut facts)?),
                Role::RetryPolicy => drop(instance.decide(&mut facts, &refused)?),
                Role::CircuitBreaker => {
                    instance.judge(&mut facts, slot, &refused)?;
                    instance.tick()?;
                }
            }
        }
        instance.update(&Arc::default())?;
        Ok(())
    }
}

/// Why a guest is of no world: what the one misses that it is used as; without a use, what a balancer would.
fn what_is_missing(errors: &[wasmtime::Error; 3], uses: &[(Role, Arc<str>)]) -> String {
    let [balancer, retry_policy, circuit_breaker] = errors;
    let role = uses.first().map_or(Role::Balancer, |(role, _)| *role);
    let error = match role {
        Role::Balancer => balancer,
        Role::RetryPolicy => retry_policy,
        Role::CircuitBreaker => circuit_breaker,
    };
    format!("as a {}: {}", role.world(), reason(error))
}
