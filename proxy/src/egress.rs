//! Which IP addresses the proxy may connect to: pure, and the same for hosts that clients name and for endpoints that
//! registries announce.
//!
//! A proxy that can be made to connect somewhere lends its place in the network. Both inputs come from outside: a client
//! writes a host, and whoever may write one key into a registry announces an endpoint. What nobody means by either is
//! denied unless it is allowed by name: the metadata services of clouds, which hand out credentials, the link, multicast
//! and the unspecified address. Names are no part of this. What counts is the address that is connected to, after DNS
//! resolution and at each connect, so that no spelling of it leads around.
//!
//! Loopback is the one difference: endpoints beside the proxy are the usual case of a sidecar, while a client elsewhere
//! has no business on this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::checked::Network;

/// The addresses that may be connected to. The default is that of endpoints without further rules: all but those that
/// are never meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Only these; empty for all. A network that lies within one that is never meant allows it again.
    pub allow: Vec<Network>,
    /// Denied whatever else allows them.
    pub deny: Vec<Network>,
    /// Whether loopback addresses are among those that may be meant.
    pub loopback: bool,
}

impl Default for Egress {
    fn default() -> Self {
        Self { allow: Vec::new(), deny: Vec::new(), loopback: true }
    }
}

impl Egress {
    /// Whether an address may be connected to.
    pub fn allows(&self, address: IpAddr) -> bool {
        let inside = canonical(address);
        if self.deny.iter().any(|network| network.contains(inside) || network.contains(address)) {
            return false;
        }
        let mut never_meant = self.never_meant().filter(|network| network.contains(inside)).peekable();
        if never_meant.peek().is_none() {
            return self.allow.is_empty() || self.allow.iter().any(|network| network.contains(inside));
        }
        never_meant.all(|never| self.allow.iter().any(|network| network.contains(inside) && never.covers(network)))
    }

    fn never_meant(&self) -> impl Iterator<Item = &'static Network> {
        let loopback: &[Network] = if self.loopback { &[] } else { &LOOPBACK };
        NEVER_MEANT.iter().chain(loopback)
    }
}

/// This machine, over an interface of its own.
pub const LOOPBACK: [Network; 2] = [v4([127, 0, 0, 0], 8), v6([0, 0, 0, 0, 0, 0, 0, 1], 128)];

const NEVER_MEANT: [Network; 15] = [
    // This host on this network (RFC 1122, 3.2.1.3), which Linux takes for loopback.
    v4([0, 0, 0, 0], 8),
    v6([0; 8], 128),
    // The link, with the metadata services of nearly all clouds.
    v4([169, 254, 0, 0], 16),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    // Multicast and broadcast.
    v4([224, 0, 0, 0], 4),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    v4([255, 255, 255, 255], 32),
    // Metadata services elsewhere: Alibaba Cloud's, Azure's, and Oracle Cloud's older one,
    v4([100, 100, 100, 200], 32),
    v4([168, 63, 129, 16], 32),
    v4([192, 0, 0, 192], 32),
    // Amazon's (and whatever else it serves to its instances), Google's, Oracle's and Scaleway's on IPv6.
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
    // IPv4 addresses behind a translator of this network's own (RFC 8215): where in it they stand cannot be known.
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Network {
    Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> Network {
    Network { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix }
}

/// The IPv4 address inside an IPv6 one that stands for it: mapped or compatible (RFC 4291, 2.5.5), NAT64 (RFC 6052),
/// translated (SIIT, RFC 2765, 2.1), 6to4 (RFC 3056).
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => from(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high > 0 => from(high, low),
        _ => address,
    }
}
