//! Policies as WebAssembly plugins.
//!
//! A file becomes a [`Generation`] in another process ([`compile`]): judged, compiled, linked against the host functions,
//! and probed with every configuration that services give it. Only the machine code comes back. A named [`Plugin`] holds the generation in force; workers notice a new one by
//! a version number and make an [`Instance`] of it for each service they serve. An instance has a store of its own,
//! because wasmtime ends a whole store on a trap: one service's fault leaves the next service's state alone.
//!
//! Whatever a guest does, it costs a bounded piece of a worker's time and memory. Faults are counted for each service over
//! all workers, and a generation that repeats them is taken from the service, or from all where nothing speaks for it.

mod cache;
pub mod compile;
mod engine;
mod exposed;
mod fault;
mod folder;
mod generation;
mod guest;
mod host;
mod instance;
mod judge;
mod memory;
mod precompiled;
mod probe;
mod quarantine;
mod registry;
mod seat;
mod share;

pub use compile::compile_in_children;
pub use engine::Engine;
pub use exposed::EXPOSE_HEADERS;
pub use fault::{Fault, FaultCounts, FaultKind};
pub use folder::{Folder, watch};
pub use generation::{ContentHash, Generation, LoadError, Origin};
pub use instance::Instance;
pub use judge::component_of;
pub use quarantine::{Quarantine, Usage};
pub use registry::{
    Plugin, Plugins, SECOND_CHANCE, Timing, Unusable, builtin_names, builtin_policy, give_second_chances,
};
pub use seat::Seat;

/// The built-in policies, compiled from `plugins/` by the build script: name and component or core module, by name.
mod builtin {
    include!(concat!(env!("OUT_DIR"), "/builtin.rs"));
}
