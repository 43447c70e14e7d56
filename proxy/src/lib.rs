//! Heddle: a forward proxy whose routing decisions are WebAssembly plugins.

pub mod config;
pub mod plugin;
pub mod policy;
pub mod registry;
pub mod service;
