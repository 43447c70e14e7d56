//! Endpoints as the proxy calls them: connecting, keeping connections, and one attempt of a request.
//!
//! HTTP/1.1 towards endpoints is our own, over httparse: the connection is driven by the task that serves the request,
//! so that an exchange crosses no channel and wakes no second task, a request's head is written from where it stands
//! and can be written again, and an idle connection holds no buffer. HTTP/2 is hyper's.

mod chain;
mod connect;
mod fault;
pub mod h1;
mod h2;
mod happy_eyeballs;
mod own;
mod pool;
mod reach;

use std::io;

pub use chain::{DEEPEST, Link};
pub use connect::{ConnectSettings, Offer, Opening, connect, open};
pub use h2::LocalExecutor;
pub use own::OwnSockets;
pub use pool::{Held, Hold, Pool, Pools, Reply, Stage, Target};
pub use reach::Reach;

use crate::proto::BodyError;
pub use crate::service::Permit;
use crate::transport::tls::TlsFailure;

/// Why an attempt has no response.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// As many connections as the endpoint or its service may have, of which none has become free in time.
    #[error("as many connections to {address}, or to its service, as there may be")]
    NoPermit { address: String },
    /// Others wait for a connection, and the client has more than its share of them.
    #[error("others wait for a connection to {address}, of which this client has more than its share")]
    Share { address: String },
    #[error("the name of {address} cannot be resolved: {source}")]
    Resolve { address: String, source: io::Error },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no connection to {address} in time")]
    ConnectTimeout { address: String },
    #[error("the name of {address} leads to addresses that this proxy may not connect to")]
    Denied { address: String },
    /// The connection would reach this proxy itself.
    #[error("{address} is a listener of this proxy itself")]
    Own { address: String },
    #[error("no TLS with {address}: {source}")]
    Tls { address: String, source: TlsFailure },
    /// The connection ended before the first byte of a response.
    #[error("{address} closed the connection without a response")]
    Closed { address: String },
    #[error("the connection to {address} broke: {source}")]
    Broken { address: String, source: io::Error },
    #[error("{address} sent {what}")]
    Malformed { address: String, what: h1::Malformed },
    #[error("{address} broke HTTP/2: {what}")]
    Http2 { address: String, what: String },
    /// The endpoint is about to end the connection, and has not looked at the request (RFC 9113, 6.8).
    #[error("{address} is going away and did not take the request")]
    GoingAway { address: String },
    /// The stream was reset before a response, with this HTTP/2 error code (RFC 9113, 7).
    #[error("{address} reset the stream with HTTP/2 error {code}")]
    Reset { address: String, code: u32 },
    #[error("no response from {address} in time")]
    Timeout { address: String },
    /// What the client asks for has no form in which endpoints could be asked.
    #[error("a request that cannot be sent over HTTP/2: {what}")]
    Request { what: String },
    #[error("{0}")]
    ClientBody(BodyError),
}

/// An HTTP/2 stream that was refused before anything was done (RFC 9113, 8.7).
const REFUSED_STREAM: u32 = 0x7;

impl Failure {
    /// The same without addresses, and without words of others that may hold some: for those who are not to know them.
    pub fn without_address(&self) -> String {
        match self {
            Self::NoPermit { .. } => {
                "as many connections to the endpoint, or to its service, as there may be".to_owned()
            }
            Self::Resolve { source, .. } => format!("the endpoint's name cannot be resolved: {}", source.kind()),
            Self::Connect { source, .. } => format!("cannot connect to the endpoint: {}", source.kind()),
            Self::ConnectTimeout { .. } => "no connection to the endpoint in time".to_owned(),
            Self::Share { .. } => {
                "others wait for a connection, of which this client has more than its share".to_owned()
            }
            Self::Own { .. } => "the endpoint is a listener of this proxy itself".to_owned(),
            Self::Denied { .. } => "the name leads to addresses that this proxy may not connect to".to_owned(),
            Self::Tls { source, .. } => format!(
                "no TLS with the endpoint: {}",
                match source {
                    TlsFailure::Name(_) => "it has no name that a certificate can be for",
                    TlsFailure::Certificate(_) => "its certificate is not accepted",
                    TlsFailure::Protocol(_) => "the handshake failed",
                    TlsFailure::Broken(_) => "the connection broke during the handshake",
                }
            ),
            Self::Closed { .. } => "the endpoint closed the connection without a response".to_owned(),
            Self::Broken { source, .. } => format!("the connection to the endpoint broke: {}", source.kind()),
            Self::Malformed { what, .. } => format!("the endpoint sent {what}"),
            Self::Http2 { .. } => "the endpoint broke HTTP/2".to_owned(),
            Self::GoingAway { .. } => "the endpoint is going away and did not take the request".to_owned(),
            Self::Reset { code, .. } => format!("the endpoint reset the stream with HTTP/2 error {code}"),
            Self::Timeout { .. } => "no response from the endpoint in time".to_owned(),
            Self::Request { .. } | Self::ClientBody(_) => self.to_string(),
        }
    }

    /// Whether the endpoint has said that it did not process the request.
    pub fn is_unprocessed(&self) -> bool {
        matches!(self, Self::GoingAway { .. } | Self::Reset { code: REFUSED_STREAM, .. })
    }
}
