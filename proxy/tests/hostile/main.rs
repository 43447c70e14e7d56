//! What comes from outside and means harm, against whole proxies: issue 10, "What must hold".
//!
//! - [`table`]: the raw cases of `http.txt`.
//! - [`soak`]: mixed traffic and reloads, after which nothing is left behind.
//! - [`memory`]: a proxy with 256 MiB stays alive, and serves others meanwhile.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "../support/etcd.rs"]
mod etcd;
#[path = "../support/frames.rs"]
mod frames;
#[path = "../support/plugins/guests.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod guests;
#[path = "../support/http.rs"]
mod http1;
mod memory;
mod notation;
#[path = "../support/process.rs"]
mod process;
mod soak;
mod table;
#[path = "../support/tls.rs"]
mod tls;
