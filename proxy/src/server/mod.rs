//! From an accepted connection to a response.
//!
//! The order of reading: [`listener`] accepts, [`connection`] finds out what is spoken, `h1`, `h2` and `socks` speak it,
//! and [`exchange`] is the path of one request, with one `attempt` of it and the `record` of its response. What is no request is passed on as it is by `tunnel`. What both ask on
//! their way is next door: [`route`] names the service, [`decide`] the endpoint, [`refusal`] says no. A [`worker`] is
//! the thread that all of it happens on.

mod activity;
mod attempt;
pub mod connection;
pub mod decide;
pub mod destination;
pub mod exchange;
mod h1;
mod h2;
mod layer;
pub mod listener;
mod passthrough;
mod record;
pub mod refusal;
pub mod route;
mod socks;
mod tunnel;
pub mod worker;
