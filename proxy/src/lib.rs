//! Heddle: a forward proxy whose routing decisions are WebAssembly plugins.

pub mod config;
pub mod registry;
