//! The proxy's own listening sockets, to which it never connects.
//!
//! An endpoint, or a host that a client names, can be the proxy itself: a registration with a wrong port, a service whose
//! address is that of the sidecar. HTTP shows such a loop by the `Via` header; a tunnel has no header, and one connection
//! of a client would make the proxy connect to itself until no descriptor is left. So whatever connects asks here first,
//! with the address that it is about to connect to: after names were resolved, so that no spelling leads around.
//!
//! An address is own if a listener is bound to it, or to all addresses of this machine with the same port while the
//! address is one of this machine's. The set changes with the configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use arc_swap::ArcSwap;

/// The addresses that this proxy listens on.
#[derive(Debug, Default)]
pub struct OwnSockets(ArcSwap<Vec<SocketAddr>>);

impl OwnSockets {
    /// From now on the proxy listens on these addresses, and on no others.
    pub fn set(&self, addresses: Vec<SocketAddr>) {
        self.0.store(addresses.into());
    }

    /// From now on the proxy listens on these addresses too.
    pub fn add(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut all = Vec::clone(&self.0.load());
        all.extend(addresses);
        self.set(all);
    }

    /// Whether a connection to this address would reach the proxy itself.
    pub fn has(&self, to: SocketAddr) -> bool {
        let listening = self.0.load();
        let ip = reached(to.ip());
        listening.iter().filter(|own| own.port() == to.port()).any(|own| match own.ip().to_canonical() {
            IpAddr::V4(own) if own.is_unspecified() => ip.is_ipv4() && is_of_this_machine(ip),
            // A socket on all IPv6 addresses takes IPv4 too (see `server::socket`).
            IpAddr::V6(own) if own.is_unspecified() => is_of_this_machine(ip),
            own => own == ip,
        })
    }
}

/// The address that is reached by connecting to this one: an IPv4 address within an IPv6 one is meant itself, and Linux
/// takes the unspecified address for loopback.
fn reached(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Whether an address is this machine's: all of loopback is, and what is sent to any other comes from that address
/// itself. The system is asked without a packet being sent. Where it does not know, no connection comes about either.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let asking = UdpSocket::bind((any, 0))?;
        asking.connect((ip, 9))?;
        asking.local_addr()
    };
    ip.is_loopback() || source().is_ok_and(|source| source.ip().to_canonical() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(addresses: &[&str]) -> OwnSockets {
        let own = OwnSockets::default();
        own.set(addresses.iter().map(|address| address.parse().unwrap()).collect());
        own
    }

    fn has(own: &OwnSockets, address: &str) -> bool {
        own.has(address.parse().unwrap())
    }

    /// Issue 10, 5: address and port count, in every spelling.
    #[test]
    fn what_is_listened_on_is_own() {
        let own = own(&["127.0.0.1:4140", "[::1]:4141"]);
        for address in ["127.0.0.1:4140", "[::ffff:127.0.0.1]:4140", "0.0.0.0:4140", "[::1]:4141", "[::]:4141"] {
            assert!(has(&own, address), "{address}");
        }
        for address in ["127.0.0.1:4141", "127.0.0.2:4140", "[::1]:4140", "10.0.0.1:4140", "[::]:4140"] {
            assert!(!has(&own, address), "{address}");
        }
    }

    /// Issue 10, 5: a listener on all addresses is reached by each of this machine's.
    #[test]
    fn a_wildcard_is_every_address_of_this_machine() {
        let (four, six) = (own(&["0.0.0.0:4140"]), own(&["[::]:4140"]));
        for address in ["127.0.0.1:4140", "127.9.9.9:4140", "0.0.0.0:4140", "[::ffff:127.0.0.1]:4140"] {
            assert!(has(&four, address) && has(&six, address), "{address}");
        }
        assert!(has(&six, "[::1]:4140") && !has(&four, "[::1]:4140"));
        for address in ["127.0.0.1:4141", "192.0.2.1:4140", "[2001:db8::1]:4140"] {
            assert!(!has(&four, address) && !has(&six, address), "{address}");
        }
        let interfaces = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        // Where there is a route at all, the address by which it begins is this machine's.
        if let Ok(interface) = interfaces {
            assert!(four.has((interface.ip(), 4140).into()), "{interface}");
        }
    }

    #[test]
    fn what_is_added_counts_until_the_next_set() {
        let own = own(&["127.0.0.1:1"]);
        own.add(["127.0.0.1:2".parse().unwrap()]);
        assert!(has(&own, "127.0.0.1:1") && has(&own, "127.0.0.1:2"));
        own.set(Vec::new());
        assert!(!has(&own, "127.0.0.1:1"));
    }
}
