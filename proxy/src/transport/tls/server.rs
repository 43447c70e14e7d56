//! TLS that ends here.

use std::rc::Rc;
use std::sync::Arc;

use crate::config::checked::{KeyPair, ListenerTls};
use crate::policy::Peer;
use crate::timer::Timers;
use crate::transport::Stream;

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub struct TlsError(pub String);

/// Ends TLS for one listener.
pub struct Terminator {}

impl Terminator {
    /// Reads the certificates: the listener's own, and then those for all listeners.
    pub fn new(_settings: &ListenerTls, _shared: &[KeyPair]) -> Result<Self, TlsError> {
        Ok(Self {})
    }

    /// Whether a certificate of this name is held: TLS for it inside a tunnel is ended.
    pub fn covers(&self, _name: &str) -> bool {
        false
    }

    /// The stream inside TLS, and what the handshake said.
    pub async fn accept(&self, _timers: &Rc<Timers>, _stream: Stream) -> Result<(Stream, Arc<Peer>), TlsError> {
        Err(TlsError("not yet".to_owned()))
    }
}
