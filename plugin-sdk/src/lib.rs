//! Heddle's balancers, retry policies and circuit breakers, written in Rust.
//!
//! A policy is a type that implements [`Balancer`], [`RetryPolicy`] or [`CircuitBreaker`], and one line that exports it
//! from the crate's `.wasm` file. This is round robin in full:
//!
//! ```
//! use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request, Rotation};
//!
//! struct RoundRobin(Rotation);
//!
//! impl Balancer for RoundRobin {
//!     fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
//!         config.expect_empty()?;
//!         Ok(Self(Rotation::new(seed)))
//!     }
//!
//!     fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
//!         self.0.next(endpoints)
//!     }
//! }
//!
//! heddle_plugin::export_balancer!(RoundRobin);
//!
//! // A test needs neither Wasm nor a proxy.
//! let mut service = heddle_plugin::testing::Service::<RoundRobin>::new("{}", 7)?;
//! service.register(["10.0.0.1:80", "10.0.0.2:80"]);
//! let request = heddle_plugin::testing::Request::get("/");
//! let first = service.pick(&request).cloned();
//! let second = service.pick(&request).cloned();
//! assert_ne!(first, second);
//! assert_eq!(service.pick(&request), first.as_ref());
//! # Ok::<(), String>(())
//! ```
//!
//! # A crate for it
//!
//! ```toml
//! [package]
//! name = "my-balancer"
//! edition = "2024"
//!
//! [lib]
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! heddle-plugin = { path = "…/plugin-sdk" }
//!
//! [profile.release]
//! lto = "fat"
//! codegen-units = 1
//! panic = "abort"
//! strip = "debuginfo"  # not "symbols", which would strip the description of the policy's world too
//! ```
//!
//! With a toolchain from rustup, once `rustup target add wasm32-unknown-unknown` was run:
//!
//! ```sh
//! cargo build --release --target wasm32-unknown-unknown
//! ```
//!
//! With the one in Debian's packages `rust-web-src rustc-web lld-19`, and any cargo:
//!
//! ```sh
//! RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-19 \
//! cargo build --release --target wasm32-unknown-unknown -Zbuild-std=std,panic_abort
//! ```
//!
//! Then copy the file into the proxy's folder of plugins; its name without `.wasm` is the name of the policy:
//!
//! ```sh
//! cp target/wasm32-unknown-unknown/release/my_balancer.wasm …/plugins/my-balancer.wasm
//! ```
//!
//! # What a policy can do
//!
//! It has no files, no network, no environment and no clock but [`now`]; [`std::time::Instant::now`] panics, and what is
//! printed goes nowhere: use [`log`]. Random numbers come from [`Random`] and the seed, so that a decision can be
//! replayed. A panic ends the instance; its message is written to the proxy's log, the proxy decides by itself for the
//! moment, and a new instance begins at [`Balancer::new`].
//!
//! A fact of the request is read from the proxy when its function is called: some 0.1 µs each. Reading [`Endpoints`]
//! calls nothing. The load of all endpoints is read at once by [`Registered::in_flight_all`].
//!
//! Settings reach [`Balancer::new`] as [`Config`]. A policy without any says so with [`Config::expect_empty`], and then
//! carries no code for JSON; one with settings has a type for them ([`Config::parse`]), in which times are read by
//! [`duration`].
//!
//! The contract itself, for guests in other languages, is `wit/policy.wit` in this crate.
#![deny(missing_docs, unsafe_code)]

extern crate self as heddle_plugin;

mod balancer;
#[doc(hidden)]
pub mod bindings;
mod breaker;
mod config;
pub mod duration;
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
pub use breaker::{Attention, CircuitBreaker};
pub use config::Config;
pub use endpoints::{Endpoint, Endpoints, PerSlot, Registered, Rotation, Slot};
pub use health::{Attempts, Circuit, Condition, Failure, Health, ServiceState, State, Totals};
pub use host::{Level, log, now};
pub use outcome::{Kind, Outcome};
pub use random::Random;
pub use request::{Request, Tried};
pub use retry::{RetryPolicy, Terms};
