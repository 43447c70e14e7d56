//! What comes from outside and means harm, against whole proxies: issue 10, "What must hold".
//!
//! - [`table`]: the raw cases of `http.txt`.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "../support/frames.rs"]
mod frames;
#[path = "../support/http.rs"]
mod http1;
mod notation;
mod table;
