//! TLS, by rustls with aws-lc-rs: ended for clients, begun to endpoints.

mod server;

pub use server::{Terminator, TlsError};
