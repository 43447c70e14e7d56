//! Opening a connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Failure;
use crate::service::Load;
use crate::timer::Timers;
use crate::transport::Stream;

/// How to connect.
#[derive(Debug, Clone, Copy)]
pub struct ConnectSettings {
    /// For all addresses of a name together.
    pub timeout: Duration,
    /// Which addresses may be connected to.
    pub allowed: fn(SocketAddr) -> bool,
}

/// The right to one of an endpoint's connections, given back when dropped.
#[derive(Debug)]
pub struct Permit(Load);

impl Permit {
    /// None when there are `limit` connections to the endpoint already.
    pub fn take(load: &Load, limit: usize) -> Option<Self> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        load.try_connect(limit).then(|| Self(load.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.disconnected();
    }
}

/// Connects to `host:port`, or to `socket` where the address is known. The address that was found allowed is the one
/// that is connected to: a name is resolved once. `first` goes before everything else.
///
/// # Errors
///
/// Refused, unreachable, denied, or not in time.
pub async fn connect(
    timers: &Rc<Timers>,
    address: &str,
    socket: Option<SocketAddr>,
    settings: ConnectSettings,
    first: &[u8],
) -> Result<Stream, Failure> {
    let attempt = async {
        let mut stream = match socket {
            Some(socket) => connect_to_any([socket].into_iter(), address, settings.allowed).await,
            None => match tokio::net::lookup_host(address).await {
                Ok(sockets) => connect_to_any(sockets, address, settings.allowed).await,
                Err(source) => Err(Failure::Resolve { address: address.to_owned(), source }),
            },
        }?;
        let _a_slower_connection_is_still_one = stream.set_nodelay(true);
        let said = stream.write_all(first).await;
        said.map_err(|source| Failure::Connect { address: address.to_owned(), source })?;
        Ok(stream.into())
    };
    let connected = timers.within(settings.timeout, attempt).await;
    connected.unwrap_or_else(|_| Err(Failure::ConnectTimeout { address: address.to_owned() }))
}

/// Tries the allowed ones of these addresses in turn; the error of the last.
async fn connect_to_any(
    sockets: impl Iterator<Item = SocketAddr>,
    address: &str,
    allowed: fn(SocketAddr) -> bool,
) -> Result<TcpStream, Failure> {
    let mut failure = Failure::Denied { address: address.to_owned() };
    for socket in sockets.filter(|socket| allowed(*socket)) {
        match TcpStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(source) => failure = Failure::Connect { address: address.to_owned(), source },
        }
    }
    Err(failure)
}
