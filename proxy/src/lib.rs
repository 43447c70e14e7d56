//! Heddle: a forward proxy whose routing decisions are WebAssembly plugins.
//!
//! # The parts
//!
//! - [`config`] turns a file into settings, or into a list of everything that is wrong with it.
//! - [`registry`] follows where endpoints are announced, and reports how services change.
//! - [`service`] publishes what services look like as snapshots, and holds the live counters.
//! - [`plugin`] loads policies, keeps them within bounds, and replaces them while traffic flows.
//! - [`policy`] is what a decision is made from, and what is decided when no plugin can.
//! - [`server`] serves clients; [`server::exchange`] is the path of one request.
//! - [`upstream`] calls endpoints; [`proto`] is what messages have in common on both sides, [`transport`] what they
//!   travel on.
//! - [`mod@log`] says what is going on, in lines that are short and hold no password.
//! - [`supervise`] keeps long-lived tasks alive; [`regular`] reads files that cannot block.
//! - [`turn`] bounds what one poll of a task does, so that no connection keeps a worker from the others.
//! - [`descriptors`] says how many connections there may be in all.
//! - [`clock`] is the time that policies see; [`watch`] learns of changes to files; [`admin`] shows all of it.
//! - [`app`] is the only place that wires it together, and that puts another configuration in force; [`handover`] gives
//!   another process the sockets.
//!
//! # Threads
//!
//! One [worker](server::worker) a core, with its own listening sockets, connections and plugin instances: on the path
//! of a request our code takes no lock and moves nothing between threads. A control thread holds the registry, plugin
//! loading and the admin server. Between them there are snapshots, version numbers and counters.

// One module may: `plugin/precompiled.rs`, which says why.
#![deny(unsafe_code)]

pub mod admin;
pub mod app;
mod cgroup;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod drain;
pub mod egress;
pub mod handover;
pub mod log;
mod per_client;
pub mod plugin;
pub mod policy;
pub mod proto;
pub mod registry;
pub mod regular;
mod seldom;
pub mod server;
pub mod service;
pub mod supervise;
pub mod timer;
pub mod transport;
pub mod turn;
pub mod upstream;
pub mod watch;
