//! Handshakes that were done, by what was agreed on in them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustls::{CommonState, HandshakeKind, NamedGroup, ProtocolVersion};

/// Versions, as labels.
const VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Groups of the key exchange, by their names at IANA. None is there where TLS 1.2 resumes a session.
const GROUPS: [&str; 6] = ["X25519MLKEM768", "x25519", "secp256r1", "secp384r1", "other", "none"];

/// Whether all of it was done, at once or with a retry for another group, or a session was resumed.
const KINDS: [&str; 3] = ["full", "retried", "resumed"];

/// Counts handshakes.
#[derive(Debug)]
pub struct Handshakes([AtomicU64; VERSIONS.len() * GROUPS.len() * KINDS.len()]);

impl Default for Handshakes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Handshakes {
    /// Counts one that is done.
    pub fn count(&self, session: &CommonState) {
        let version = usize::from(session.protocol_version() != Some(ProtocolVersion::TLSv1_2));
        let group = match session.negotiated_key_exchange_group().map(|group| group.name()) {
            Some(NamedGroup::X25519MLKEM768) => 0,
            Some(NamedGroup::X25519) => 1,
            Some(NamedGroup::secp256r1) => 2,
            Some(NamedGroup::secp384r1) => 3,
            Some(_) => 4,
            None => 5,
        };
        let kind = match session.handshake_kind() {
            Some(HandshakeKind::FullWithHelloRetryRequest) => 1,
            Some(HandshakeKind::Resumed) => 2,
            _ => 0,
        };
        if let Some(count) = self.0.get((version * GROUPS.len() + group) * KINDS.len() + kind) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Version, group, kind and number of those of which there were any.
    pub fn totals(&self) -> Vec<([&'static str; 3], u64)> {
        let groups = VERSIONS.into_iter().flat_map(|version| GROUPS.map(|group| (version, group)));
        let labels = groups.flat_map(|(version, group)| KINDS.map(|kind| [version, group, kind]));
        labels.zip(&self.0).map(|(labels, count)| (labels, count.load(Relaxed))).filter(|(_, n)| *n > 0).collect()
    }
}
