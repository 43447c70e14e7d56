//! What of a source's contents is taken: pure, and the same for every source.
//!
//! Whoever may write one key into a registry would otherwise choose where the proxy connects to, with which names it
//! takes over requests, and how much memory it needs. So each entry passes here on its way into the catalog, from etcd, a
//! file, the configuration and the snapshot on disk alike. What is left out is noted with its key and a reason. Addresses
//! that are IP addresses are judged here, so that nobody picks an endpoint that can never be reached; names are judged by
//! the address that they resolve to, at each connect.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::PAUSED;
use super::apply::{Content, Entry};
use super::layout::{Announced, Endpoint};
use crate::config::checked::SourceRules;
use crate::config::names::NamePattern;
use crate::egress::Egress;

/// The longest key that is taken, in bytes; its text is part of each endpoint's id.
pub const LONGEST_KEY: usize = 2 << 10;

/// The metadata of one endpoint that is kept, in bytes: names, values and `OF_A_PAIR` for each pair.
pub const MOST_METADATA: usize = 64 << 10;

/// What a pair of metadata counts beside its text.
const OF_A_PAIR: usize = 48;

/// The rules of one source.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub egress: Arc<Egress>,
    names: Vec<NamePattern>,
}

/// Why an entry, or a part of it, was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub reason: String,
    /// Whether the entry is in force all the same, without what the reason names.
    pub kept: bool,
}

impl Rules {
    pub fn new(rules: &SourceRules) -> Arc<Self> {
        let SourceRules { names, allow_networks, deny_networks } = rules.clone();
        let egress = Egress { allow: allow_networks, deny: deny_networks, ..Egress::default() };
        Arc::new(Self { egress: Arc::new(egress), names })
    }

    /// Whether proxy requests, CONNECT and SOCKS for the service's name as a host lead to it, where the name has several
    /// labels and is outside the suffix.
    pub fn takes_proxy_requests(&self, service: &str) -> bool {
        self.names.iter().any(|pattern| pattern.matches(service))
    }

    /// The entry without what these rules leave out, and a note on that.
    pub fn admit(&self, mut entry: Entry) -> (Entry, Option<Note>) {
        if entry.key.len() > LONGEST_KEY {
            let reason = format!("the key has {} bytes; at most {LONGEST_KEY} are taken", entry.key.len());
            entry.content = Content::Unreadable(reason);
        }
        let note = match &mut entry.content {
            Content::Unreadable(reason) => Some(Note { reason: shown_long(reason), kept: false }),
            Content::Announced(announced) => self.admit_announced(announced),
        };
        (entry, note)
    }

    fn admit_announced(&self, announced: &mut Announced) -> Option<Note> {
        let mut reasons: Vec<String> = std::mem::take(&mut announced.warnings);
        announced.endpoints.retain(|endpoint| match denied(&self.egress, &endpoint.address) {
            None => true,
            Some(address) => {
                reasons.push(format!("{address} is not to be connected to (see allow_networks and deny_networks)"));
                false
            }
        });
        for endpoint in &mut announced.endpoints {
            let dropped = bound_metadata(endpoint);
            if dropped > 0 {
                reasons.push(format!("{dropped} pairs of metadata beyond {} KiB are dropped", MOST_METADATA >> 10));
            }
        }
        let kept = announced.pauses || !announced.endpoints.is_empty();
        (!reasons.is_empty()).then(|| Note { reason: shown_long(&reasons.join("; ")), kept })
    }
}

/// The IP address of an endpoint that may not be connected to; none for a name, which is judged when it is resolved.
fn denied(egress: &Egress, address: &str) -> Option<IpAddr> {
    let socket: SocketAddr = address.parse().ok()?;
    (!egress.allows(socket.ip())).then(|| socket.ip())
}

/// Leaves out the pairs that would take the metadata beyond its bound, but for a pause; how many.
fn bound_metadata(endpoint: &mut Endpoint) -> usize {
    let size = |(name, value): &(String, String)| name.len().saturating_add(value.len()).saturating_add(OF_A_PAIR);
    if endpoint.metadata.iter().map(size).fold(0, usize::saturating_add) <= MOST_METADATA {
        return 0;
    }
    let before = endpoint.metadata.len();
    let mut left = MOST_METADATA;
    endpoint.metadata.retain(|pair| {
        let rest = left.checked_sub(size(pair));
        left = rest.unwrap_or(left);
        rest.is_some() || pair.0 == PAUSED && pair.1 == "true"
    });
    endpoint.metadata.shrink_to_fit();
    before - endpoint.metadata.len()
}

fn shown_long(text: &str) -> String {
    const LONGEST: usize = 400;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(addresses: &[&str], metadata: Vec<(String, String)>) -> Entry {
        let endpoint = |address: &&str| Endpoint { address: (*address).into(), weight: 1, metadata: metadata.clone() };
        let announced = Announced::endpoints("users".into(), addresses.iter().map(endpoint).collect());
        Entry { key: b"/s/users/1".to_vec(), order: 1, content: Content::Announced(announced) }
    }

    fn endpoints(entry: Entry) -> Vec<Endpoint> {
        match entry.content {
            Content::Announced(announced) => announced.endpoints,
            Content::Unreadable(reason) => panic!("{reason}"),
        }
    }

    /// Issue 10, 13: what nobody means is no endpoint, whatever its spelling; loopback is one.
    #[test]
    fn addresses_that_are_never_meant_are_left_out() {
        let rules = Rules::default();
        for address in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fe80::1]:80",
            "[fd00:ec2::254]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "[::ffff:0.0.0.0]:80",
            "[64:ff9b::a9fe:a9fe]:80",
        ] {
            let (left, note) = rules.admit(entry(&[address, "10.0.0.1:80"], Vec::new()));
            assert_eq!(endpoints(left).len(), 1, "{address}");
            assert!(note.is_some_and(|note| note.kept), "{address}");
            let (left, note) = rules.admit(entry(&[address], Vec::new()));
            assert!(endpoints(left).is_empty() && note.is_some_and(|note| !note.kept), "{address}");
        }
        for address in ["127.0.0.1:80", "[::1]:80", "10.0.0.1:80", "users.internal:80"] {
            let (left, note) = rules.admit(entry(&[address], Vec::new()));
            assert_eq!((endpoints(left).len(), note), (1, None), "{address}");
        }
    }

    /// Issue 10, 14: metadata is bounded, and a pause is never lost for it.
    #[test]
    fn metadata_is_bounded() {
        let pair = |name: &str, length: usize| (name.to_owned(), "x".repeat(length));
        let metadata =
            vec![pair("a", 1 << 20), pair("b", MOST_METADATA - 200), ("paused".into(), "true".into()), pair("zone", 1)];
        let (left, note) = Rules::default().admit(entry(&["a:1"], metadata));
        let names: Vec<_> = endpoints(left).remove(0).metadata.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b", "paused", "zone"]);
        assert_eq!(note.map(|note| note.reason).as_deref(), Some("1 pairs of metadata beyond 64 KiB are dropped"));
    }

    #[test]
    fn a_key_that_is_too_long_is_not_taken() {
        let long = Entry { key: vec![b'k'; LONGEST_KEY + 1], ..entry(&["a:1"], Vec::new()) };
        let (left, note) = Rules::default().admit(long);
        assert!(matches!(left.content, Content::Unreadable(_)) && note.is_some_and(|note| !note.kept));
    }
}
