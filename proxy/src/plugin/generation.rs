//! From the bytes of a file to a policy that is known to work.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wit_component::ComponentEncoder;

use super::engine::Engine;
use super::fault::{Fault, FaultKind, FaultLog, one_line, reason};
use super::host::{BalancerPre, LineRate, State};
use super::instance::Instance;
use crate::policy::Facts;
use crate::registry::{Change, Registered};
use crate::service::Snapshot;

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
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
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
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("not WebAssembly: expected a component, or a core module built with this version's bindings")]
    NotWasm,
    #[error("a core module that cannot be made a component: {0}")]
    NotWrappable(String),
    #[error("does not compile: {0}")]
    Compile(String),
    #[error("does not speak heddle:policy@0.1.0 balancer: {0}")]
    Contract(String),
    #[error("failed its probe ({fault}) with the configuration {config}")]
    Probe { config: Arc<str>, fault: Fault },
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
    pub(super) lines: LineRate,
    pub(super) engine: Arc<Engine>,
    pub(super) pre: BalancerPre<State>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} generation {} ({}, {})", self.policy, self.number, self.hash, self.origin)
    }
}

/// Numbers generations over all plugins, so that a number names one.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Generation {
    /// Compiles and links a plugin, and probes it with each of these configurations. This takes tens of milliseconds
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
        configs: &[Arc<str>],
    ) -> Result<Arc<Self>, LoadError> {
        let component = match bytes.get(..8) {
            Some([0, b'a', b's', b'm', 0x01, 0, 0, 0]) => &wrap(bytes)?,
            Some([0, b'a', b's', b'm', _, 0, 1, 0]) => bytes,
            _ => return Err(LoadError::NotWasm),
        };
        let component = Component::new(&engine.wasm, component).map_err(|error| LoadError::Compile(reason(&error)))?;
        let pre = engine
            .linker
            .instantiate_pre(&component)
            .and_then(BalancerPre::new)
            .map_err(|error| LoadError::Contract(reason(&error)))?;
        let generation = Arc::new(Self {
            policy: policy.clone(),
            hash: ContentHash::of(bytes),
            number: NUMBER.fetch_add(1, Relaxed),
            origin,
            loaded: Instant::now(),
            faults: FaultLog::default(),
            decided: AtomicBool::new(false),
            lines: LineRate::default(),
            engine: engine.clone(),
            pre,
        });
        generation.probe(configs)?;
        Ok(generation)
    }

    /// Whether it has decided for requests, and has lately not been at fault.
    pub(super) fn is_proven(&self, now: Instant) -> bool {
        self.decided.load(Relaxed) && self.faults.is_quiet(now)
    }

    /// Runs the guest through a life in small, as a service with three endpoints would.
    fn probe(self: &Arc<Self>, configs: &[Arc<str>]) -> Result<(), LoadError> {
        let snapshot = probe_snapshot();
        let unused: [Arc<str>; 1] = ["{}".into()];
        for config in if configs.is_empty() { &unused } else { configs } {
            match self.probe_with(config, &snapshot) {
                // Nobody says how a policy that no service uses is to be configured.
                Err(Fault { kind: FaultKind::Configure, .. }) if configs.is_empty() => {}
                Err(fault) => return Err(LoadError::Probe { config: config.clone(), fault }),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn probe_with(self: &Arc<Self>, config: &str, snapshot: &Arc<Snapshot>) -> Result<(), Fault> {
        let mut instance = Instance::new(self, &"probe".into(), config, 1, snapshot)?;
        for _ in 0..4 {
            let mut facts = Facts::placeholder();
            instance.pick(&mut facts)?;
        }
        instance.update(&Arc::default())?;
        Ok(())
    }
}

/// Three endpoints with different weights.
fn probe_snapshot() -> Arc<Snapshot> {
    let added = (1..=3)
        .map(|n| Registered {
            id: format!("probe#192.0.2.{n}:80"),
            address: format!("192.0.2.{n}:80"),
            weight: n,
            order: u64::from(n),
            metadata: Vec::new(),
        })
        .collect();
    Arc::new(Snapshot::of(Change { service: "probe".into(), removed: Vec::new(), added }))
}

/// Makes a component of a core module that carries the bindings' description of its world.
fn wrap(module: &[u8]) -> Result<Vec<u8>, LoadError> {
    ComponentEncoder::default()
        .module(module)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|error| LoadError::NotWrappable(one_line(&format!("{error:#}"))))
}
