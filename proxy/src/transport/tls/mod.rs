//! TLS, by rustls with aws-lc-rs: ended for clients, begun to endpoints.

mod hello;
mod server;

pub use hello::{Hello, client_hello};
pub use server::{Terminator, TlsError};
