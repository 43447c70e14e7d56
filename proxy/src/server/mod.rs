//! From an accepted connection to a response.
//!
//! The order of reading: [`listener`] accepts from a [`socket`], [`connection`] serves layer by layer, of which `layer`
//! finds out what each is, `h1`, `h2` and `socks` speak it, and [`exchange`] is the path of one request, with its
//! `attempts` at endpoints and the `record` of its response. What is no request is passed on as it is by `tunnel`. What
//! all ask on their way is next door: [`route`] reads what a request names, [`destination`] knows where that leads, `admit`
//! has it wait while the service is full, [`decide`] chooses the endpoint, [`refusal`] says no. A [`worker`] is the thread
//! that all of it happens on, and [`local`] what it has of each service.

mod admit;
mod attempt;
mod attempts;
mod client_body;
pub mod connection;
pub mod decide;
pub mod destination;
pub mod exchange;
mod first_byte;
mod h1;
mod h2;
mod layer;
pub mod listener;
pub mod local;
mod outcome;
mod passthrough;
mod record;
pub mod refusal;
mod replay;
pub mod retries;
pub mod route;
pub mod socket;
mod socks;
mod tunnel;
pub mod visit;
pub mod worker;
