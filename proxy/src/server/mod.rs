//! From an accepted connection to a response.
//!
//! The order of reading: [`listener`] accepts, [`connection`] finds out what is spoken, `h1` and `h2` speak it, and
//! [`exchange`] is the path of one request. What it asks on its way is next door: [`route`] names the service,
//! [`decide`] the endpoint, [`refusal`] says no. A [`worker`] is the thread that all of it happens on.

mod activity;
pub mod connection;
pub mod decide;
pub mod exchange;
mod h1;
mod h2;
pub mod listener;
mod passthrough;
mod record;
pub mod refusal;
pub mod route;
pub mod worker;
