//! Where connections for hosts that are no services may go.
//!
//! Whoever can make a proxy connect somewhere has the proxy's place in the network. What nobody means by such a request
//! is denied unless it is allowed by name: the metadata services of clouds, which give away credentials; the link; many
//! machines at once; and this machine, where the client is not on it. Names are no part of this. What counts is the
//! address that is connected to, so that no spelling of it leads around.

use std::net::IpAddr;

use crate::config::checked::{Network, Passthrough};
use crate::egress::{Egress, LOOPBACK, canonical};

/// Where connections may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    settings: Passthrough,
    egress: Egress,
}

impl Reach {
    /// The reach of a listener, which is on loopback itself or is not.
    pub fn new(settings: &Passthrough, loopback: bool) -> Self {
        let Passthrough { allow_networks: allow, deny_networks: deny, .. } = settings.clone();
        Self { settings: settings.clone(), egress: Egress { allow, deny, loopback } }
    }

    /// Whether a port may be connected to, wherever it is.
    pub fn has_port(&self, port: u16) -> bool {
        let Passthrough { allow_ports, deny_ports, .. } = &self.settings;
        let is_among = |ports: &[std::ops::RangeInclusive<u16>]| ports.iter().any(|ports| ports.contains(&port));
        !is_among(deny_ports) && (allow_ports.is_empty() || is_among(allow_ports))
    }

    /// Whether an address may be connected to.
    pub fn has(&self, address: IpAddr) -> bool {
        self.egress.allows(address)
    }

    /// Whether an address may be connected to that turns out to be this machine's own: where clients are on it anyway,
    /// or where just this address is allowed.
    pub fn has_own(&self, address: IpAddr) -> bool {
        let inside = canonical(address);
        let is_alone = |network: &Network| network.prefix == if network.address.is_ipv4() { 32 } else { 128 };
        self.egress.loopback
            || self.settings.allow_networks.iter().any(|network| {
                network.contains(inside)
                    && (is_alone(network) || LOOPBACK.iter().any(|loopback| loopback.covers(network)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        let (address, prefix) = text.split_once('/').unwrap();
        Network { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| network(text)).collect()
    }

    fn reach(allow: &[&str], deny: &[&str]) -> Reach {
        let settings =
            Passthrough { allow_networks: networks(allow), deny_networks: networks(deny), ..Passthrough::default() };
        Reach::new(&settings, false)
    }

    fn has(reach: &Reach, address: &str) -> bool {
        reach.has(address.parse().unwrap())
    }

    #[test]
    fn what_is_never_meant_is_denied_in_every_spelling() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
        ] {
            for loopback in [false, true] {
                assert!(!has(&Reach::new(&Passthrough::default(), loopback), address), "{address}");
            }
        }
    }

    #[test]
    fn loopback_is_for_those_on_it() {
        let (elsewhere, here) = (Reach::new(&Passthrough::default(), false), Reach::new(&Passthrough::default(), true));
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
            assert_eq!((has(&elsewhere, address), has(&here, address)), (false, true), "{address}");
        }
        for address in ["10.0.0.1", "93.184.216.34", "2606:2800::1"] {
            assert_eq!((has(&elsewhere, address), has(&here, address)), (true, true), "{address}");
        }
    }

    #[test]
    fn only_what_is_allowed_is_reached_where_something_is() {
        let reach = reach(&["10.0.0.0/8", "2001:db8::/32"], &[]);
        for (address, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(has(&reach, address), expected, "{address}");
        }
    }

    /// What is bound to all of this machine's addresses is as open on any of them as on loopback.
    #[test]
    fn this_machine_is_reached_by_none_of_its_addresses() {
        let own = |reach: &Reach, address: &str| reach.has_own(address.parse().unwrap());
        assert!(own(&Reach::new(&Passthrough::default(), true), "10.0.0.5"));
        assert!(!own(&Reach::new(&Passthrough::default(), false), "10.0.0.5"));
        assert!(!own(&reach(&["10.0.0.0/8"], &[]), "10.0.0.5"));
        assert!(own(&reach(&["10.0.0.5/32"], &[]), "::ffff:10.0.0.5"));
        assert!(own(&reach(&["127.0.0.0/8"], &[]), "127.0.0.1"));
    }

    #[test]
    fn denial_wins_over_everything() {
        let reach = reach(&["10.0.0.0/8", "169.254.1.0/24"], &["10.1.0.0/16", "169.254.1.9/32"]);
        for (address, expected) in [
            ("10.0.0.1", true),
            ("10.1.0.1", false),
            ("::ffff:10.1.0.1", false),
            ("10.3.0.1", true),
            ("169.254.1.8", true),
            ("169.254.1.9", false),
        ] {
            assert_eq!(has(&reach, address), expected, "{address}");
        }
    }

    /// Only a network that lies within one that is never meant allows it again: `0.0.0.0/0` means the rest.
    #[test]
    fn what_is_never_meant_is_allowed_by_name_only() {
        let everything = reach(&["0.0.0.0/0", "::/0"], &[]);
        for address in ["169.254.169.254", "127.0.0.1", "::1", "fe80::1", "255.255.255.255"] {
            assert!(!has(&everything, address), "{address}");
        }
        assert!(has(&everything, "93.184.216.34"));
        let metadata = reach(&["0.0.0.0/0", "169.254.169.254/32", "::1/128"], &[]);
        for (address, expected) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("169.254.169.253", false),
            ("93.184.216.34", true),
        ] {
            assert_eq!(has(&metadata, address), expected, "{address}");
        }
        assert!(has(&reach(&["127.0.0.0/8"], &[]), "127.0.0.1"));
        assert!(!has(&reach(&["127.0.0.0/8"], &[]), "10.0.0.1"));
    }

    #[test]
    fn ports_are_judged_by_themselves() {
        let ports = |allow: &[(u16, u16)], deny: &[(u16, u16)]| {
            let ranges = |ranges: &[(u16, u16)]| ranges.iter().map(|(from, to)| *from..=*to).collect();
            let settings =
                Passthrough { allow_ports: ranges(allow), deny_ports: ranges(deny), ..Passthrough::default() };
            Reach::new(&settings, false)
        };
        assert!(ports(&[], &[]).has_port(1) && ports(&[], &[]).has_port(65535));
        let some = ports(&[(443, 443), (8000, 8999)], &[(8080, 8080)]);
        for (port, expected) in [(443, true), (444, false), (8000, true), (8999, true), (9000, false), (8080, false)] {
            assert_eq!(some.has_port(port), expected, "{port}");
        }
        assert!(!ports(&[], &[(25, 25)]).has_port(25));
    }
}
