//! Listening sockets: one a worker for each address, or those of the process that was here before.
//!
//! The kernel spreads new connections over the sockets that share an address (`SO_REUSEPORT`). It also lets a second
//! proxy of the same user share the address, which would silently take half of the traffic: so the first socket is bound
//! alone, which fails if anyone is there, and shares the address only then.
//!
//! Sockets that are inherited have queues with connections in them, and closing one resets what waits. So each of them is
//! accepted from, however few workers there are; and however many there are, each has one to accept from.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted, on each socket.
const BACKLOG: i32 = 4096;

/// An address that is listened on.
#[derive(Debug)]
pub struct Bound {
    /// As it was configured, maybe with port 0.
    pub wanted: SocketAddr,
    pub address: SocketAddr,
    /// At least one a worker.
    pub sockets: Vec<TcpListener>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Binds one socket a worker. With port 0 all get the port that the first is given.
///
/// # Errors
///
/// When the address is in use, is not this machine's, or may not be bound.
pub fn bind(wanted: SocketAddr, workers: usize) -> Result<Bound, BindError> {
    let failed = |source| BindError { address: wanted, source };
    let first = socket(wanted).map_err(failed)?;
    first.bind(&wanted.into()).map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    let address = first.local_addr().map_err(failed)?.as_socket().unwrap_or(wanted);
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind_next(address).map_err(failed)?);
    }
    for socket in &sockets {
        socket.listen(BACKLOG).map_err(failed)?;
    }
    Ok(Bound { wanted, address, sockets: sockets.into_iter().map(Into::into).collect() })
}

/// Sockets that another process listens on, and as many more as workers need.
///
/// # Errors
///
/// When there can be no further descriptor.
pub fn adopt(mut inherited: Bound, workers: usize) -> Result<Bound, BindError> {
    let address = inherited.address;
    let failed = |source| BindError { address, source };
    for lacking in 0..workers.saturating_sub(inherited.sockets.len()) {
        let next = bind_next(address).and_then(|next| next.listen(BACKLOG).map(|()| next.into()));
        // Who took the address over from another user's process can bind no more to it, but share what there is.
        let shared = || match inherited.sockets.get(lacking) {
            Some(socket) => socket.try_clone(),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let next = next.or_else(|_| shared()).map_err(failed)?;
        inherited.sockets.push(next);
    }
    Ok(inherited)
}

/// One more socket on an address of our own.
fn bind_next(address: SocketAddr) -> io::Result<Socket> {
    let next = socket(address)?;
    next.set_reuse_port(true)?;
    next.bind(&address.into())?;
    Ok(next)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_has_a_socket_and_none_is_closed() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let one = bind(any, 1).unwrap();
        let address = one.address;
        assert_ne!(address.port(), 0);
        assert!(bind(address, 1).is_err(), "nobody else takes the address");
        let three = adopt(one, 3).unwrap();
        assert_eq!((three.wanted, three.address, three.sockets.len()), (any, address, 3));
        assert!(three.sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        assert_eq!(adopt(three, 2).unwrap().sockets.len(), 3);
    }
}
