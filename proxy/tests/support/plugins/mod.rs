//! What the tests of plugins have in common.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this")]

pub mod guests;
pub mod host;
pub mod log;
pub mod process;
pub mod reload;
pub mod wait;

pub use guests::{component, guest, instead, module, on_many, on_path};
pub use host::{Host, balancers, facts, registered};
pub use log::log;
pub use wait::wait_until;
