//! Opening a connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::Failure;
use crate::service::Load;
use crate::timer::Timers;

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
pub struct Permit(Option<Load>);

impl Permit {
    /// None when there are `limit` connections to the endpoint already.
    pub fn take(load: &Load, limit: usize) -> Option<Self> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        load.try_connect(limit).then(|| Self(Some(load.clone())))
    }

    /// A connection to where nobody counts them.
    pub fn unlimited() -> Self {
        Self(None)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(load) = &self.0 {
            load.disconnected();
        }
    }
}

/// Connects to `host:port`, or to `socket` where the address is known. The address that was found allowed is the one
/// that is connected to: a name is resolved once.
///
/// # Errors
///
/// Refused, unreachable, denied, or not in time.
pub async fn connect(
    timers: &Rc<Timers>,
    address: &str,
    socket: Option<SocketAddr>,
    settings: ConnectSettings,
) -> Result<TcpStream, Failure> {
    let attempt = async {
        match socket {
            Some(socket) if (settings.allowed)(socket) => TcpStream::connect(socket).await.map_err(Some),
            Some(_) => Err(None),
            None => connect_to_name(address, settings.allowed).await,
        }
    };
    match timers.within(settings.timeout, attempt).await {
        Ok(Ok(stream)) => {
            let _a_slower_connection_is_still_one = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(Some(source))) => Err(Failure::Connect { address: address.to_owned(), source }),
        Ok(Err(None)) => Err(Failure::Denied { address: address.to_owned() }),
        Err(_) => Err(Failure::ConnectTimeout { address: address.to_owned() }),
    }
}

/// Tries the name's addresses in turn; the error of the last, or none when all were denied.
async fn connect_to_name(address: &str, allowed: fn(SocketAddr) -> bool) -> Result<TcpStream, Option<io::Error>> {
    let mut last = None;
    let mut any = false;
    for socket in tokio::net::lookup_host(address).await.map_err(Some)? {
        any = true;
        if !allowed(socket) {
            continue;
        }
        match TcpStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(if any { last } else { Some(io::Error::new(io::ErrorKind::NotFound, "the name has no address")) })
}
