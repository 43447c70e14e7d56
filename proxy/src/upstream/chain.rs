//! Chains of tunnels through this process.
//!
//! A tunnel carries nothing by which the proxy could recognize it when it comes back: through another proxy in the same
//! process, or through an address that is translated to one of the own listeners. What can be recognized is the socket.
//! While a tunnel is open, the local address of its connection is remembered with the tunnel's depth; a tunnel that is
//! opened for a client whose address is found here is one deeper. At [`DEEPEST`] it is refused, and with that the chain
//! comes apart.
//!
//! Only tunnels are remembered, and only a tunnel looks its client up: a request has `Via`. An address must be there
//! before the other side can have accepted the connection, so both happen under one lock, held over the system call
//! that begins the connection. It does not wait for the connection.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

/// Tunnels that a chain may have.
pub const DEEPEST: u8 = 8;

type Address = (IpAddr, u16);

/// The connections of all tunnels of this process, by their local address.
#[derive(Default)]
struct Table {
    tunnels: HashMap<Address, (u8, u64)>,
    /// Entries that were made so far: tells an entry from a later one of the same address.
    made: u64,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn normal(address: SocketAddr) -> Address {
    (address.ip().to_canonical(), address.port())
}

/// A connection of a tunnel in the table. It is forgotten when this is dropped, which must be after the connection has
/// ended.
#[derive(Debug)]
struct Entry {
    address: Address,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = table();
        if table.tunnels.get(&self.address).is_some_and(|(_, of)| *of == self.number) {
            table.tunnels.remove(&self.address);
        }
    }
}

/// A tunnel's place in its chain, with the entry of its connection.
pub struct Link {
    depth: u8,
    entry: Cell<Option<Entry>>,
}

impl Link {
    /// The place of a tunnel for the client that has connected from this address; none where the chain is as deep as it
    /// may be.
    pub fn after(client: SocketAddr) -> Option<Self> {
        let before = table().tunnels.get(&normal(client)).map_or(0, |(depth, _)| *depth);
        (before < DEEPEST).then(|| Self { depth: before + 1, entry: Cell::new(None) })
    }

    /// Connects, and remembers by what address. Of several calls at once, for several addresses of one name, the one that
    /// connects is remembered; the others are forgotten when they fail or are dropped.
    ///
    /// # Errors
    ///
    /// As of [`TcpStream::connect`].
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        let entry = {
            let mut table = table();
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => return Err(error),
                _ => {}
            }
            socket.local_addr()?.as_socket().map(|local| {
                table.made += 1;
                let entry = Entry { address: normal(local), number: table.made };
                table.tunnels.insert(entry.address, (self.depth, entry.number));
                entry
            })
        };
        let stream = TcpStream::from_std(socket.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => {
                self.entry.set(entry);
                Ok(stream)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chain_ends_at_its_depth_and_leaves_nothing_behind() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut client: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut chain = Vec::new();
        while let Some(link) = Link::after(client) {
            let stream = link.connect(to).await.unwrap();
            client = listener.accept().await.unwrap().1;
            assert_eq!(stream.local_addr().unwrap(), client);
            chain.push((stream, link));
        }
        assert_eq!(chain.len(), usize::from(DEEPEST));
        let addresses: Vec<_> = chain.iter().map(|(stream, _)| stream.local_addr().unwrap()).collect();
        drop(chain);
        assert!(addresses.iter().all(|address| !table().tunnels.contains_key(&normal(*address))));
        assert_eq!(Link::after(client).map(|link| link.depth), Some(1));
    }

    #[tokio::test]
    async fn a_connection_that_fails_is_forgotten() {
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let link = Link::after("127.0.0.1:1".parse().unwrap()).unwrap();
        assert_eq!(link.connect(refused).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(link.entry.take().is_none());
    }
}
