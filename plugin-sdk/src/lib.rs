#![deny(unsafe_code)]
extern crate self as heddle_plugin;

#[doc(hidden)]
pub mod balancer;
#[doc(hidden)]
pub mod bindings;
mod config;
mod endpoints;
#[doc(hidden)]
pub mod guest;
#[doc(hidden)]
pub mod host;
mod random;
mod request;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use balancer::Balancer;
pub use config::Config;
pub use endpoints::{Endpoint, Endpoints, PerSlot, Registered, Slot};
pub use random::{Random, mix};
pub use request::{Request, Tried};
