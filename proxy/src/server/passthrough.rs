//! Requests for hosts that are no services.
//!
//! A forward proxy is asked for any host, and whoever can make it connect somewhere has the proxy's place in the
//! network. What is never meant by such a request is denied by address, after the name was resolved, and the address
//! that was found allowed is the one that is connected to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use crate::config::checked::{Pool as Limits, UpstreamProtocol};
use crate::proto::h1::Scratch;
use crate::service::Load;
use crate::timer::Timers;
use crate::upstream::{ConnectSettings, Pool, Target};

/// Outside a mesh, as Envoy has it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From the request to the response's head.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

const LIMITS: Limits = Limits { max_idle: 8, idle_timeout: Duration::from_secs(30), max_connections: 1024 };

/// Hosts whose connections are kept.
const MAX_HOSTS: usize = 256;

/// One worker's connections to hosts that are no services.
#[derive(Default)]
pub struct Passthrough {
    pools: RefCell<HashMap<String, Rc<Pool>>>,
}

impl Passthrough {
    /// The pool of a host, reached from a listener on loopback or from another.
    pub fn pool(
        &self,
        host: &str,
        port: u16,
        from_loopback: bool,
        timers: &Rc<Timers>,
        scratch: &Rc<Scratch>,
    ) -> Rc<Pool> {
        // A pool belongs to one kind of listener, as what it may connect to does.
        let key = format!("{}{host}:{port}", if from_loopback { "" } else { "!" });
        if let Some(pool) = self.pools.borrow().get(&key) {
            return pool.clone();
        }
        let target = Target {
            address: format!("{host}:{port}").into(),
            socket: None,
            load: Load::alone(),
            protocol: UpstreamProtocol::Http1,
            connect: ConnectSettings {
                timeout: CONNECT_TIMEOUT,
                allowed: if from_loopback { is_allowed_from_loopback } else { is_allowed },
            },
            limits: LIMITS,
            stream_idle_timeout: STREAM_IDLE_TIMEOUT,
        };
        let pool = Pool::new(target, timers, scratch);
        let mut pools = self.pools.borrow_mut();
        if pools.len() < MAX_HOSTS {
            pools.insert(key, pool.clone());
        }
        pool
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep();
            pool.idle() > 0 || Rc::strong_count(pool) > 1
        });
    }
}

/// For listeners that only this machine can reach: services beside the application are no secret to it.
fn is_allowed_from_loopback(address: SocketAddr) -> bool {
    let ip = canonical(address.ip());
    ip.is_loopback() || is_allowed(address)
}

/// Neither loopback, nor the link, nor a cloud's metadata service, nor many machines at once.
fn is_allowed(address: SocketAddr) -> bool {
    match canonical(address.ip()) {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.octets()[0] == 0
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || METADATA_V4.contains(&ip))
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || METADATA_V6.contains(&ip))
        }
    }
}

/// Metadata services outside 169.254.0.0/16: Alibaba Cloud's, Azure's, and Oracle Cloud's older one.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// Amazon's and Google's on IPv6.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// The IPv4 address inside an IPv6 one that stands for it: mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056).
fn canonical(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            from(high, low)
        }
        _ => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(ip: &str) -> (bool, bool) {
        let address = SocketAddr::new(ip.parse().unwrap(), 80);
        (is_allowed_from_loopback(address), is_allowed(address))
    }

    #[test]
    fn metadata_and_link_local_addresses_are_denied_in_every_spelling() {
        for ip in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert_eq!(allowed(ip), (false, false), "{ip}");
        }
    }

    #[test]
    fn loopback_is_for_those_on_it() {
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(allowed(ip), (true, false), "{ip}");
        }
        for ip in ["10.0.0.1", "93.184.216.34", "2606:2800::1"] {
            assert_eq!(allowed(ip), (true, true), "{ip}");
        }
    }
}
