#![deny(unsafe_code)]

extern crate self as heddle_plugin;

mod balancer;
#[doc(hidden)]
pub mod bindings;
mod breaker;
mod config;
mod endpoints;
#[doc(hidden)]
pub mod guest;
mod health;
mod host;
mod outcome;
mod random;
mod request;
mod retry;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use balancer::Balancer;
pub use breaker::CircuitBreaker;
pub use config::Config;
pub use endpoints::{Endpoint, Endpoints, PerSlot, Registered, Slot};
pub use health::{Attempts, Condition, Health, State, Totals};
pub use host::{Level, log, now};
pub use outcome::{Kind, Outcome};
pub use random::Random;
pub use request::{Request, Tried};
pub use retry::RetryPolicy;
