//! Heddle: a forward proxy whose routing decisions are WebAssembly plugins.

pub mod config;
pub mod plugin;
pub mod policy;
pub mod proto;
pub mod registry;
pub mod server;
pub mod service;
pub mod timer;
pub mod upstream;
