//! What policies are given of an endpoint's registration.
//!
//! Registrations are input: one key may hold a megabyte, and a policy copies what it is given into memory that is bounded.
//! So policies get a bounded piece of it, and the proxy itself goes on with all of it:
//!
//! - of the metadata [`OF_ENDPOINT`] bytes of names and values and [`ENTRIES`] entries an endpoint, and [`OF_SERVICE`] bytes
//!   of all endpoints of a service, those that were registered first before others. An entry that does not fit is left out
//!   as a whole, and those behind it that do are kept: a mark such as `role=master` is not lost for a long neighbour.
//! - an id of at most [`ID`] bytes; a longer one ends with its own hash, so that it stays unique, and the same everywhere.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::registry::Registered;

/// Bytes of names and values of one endpoint's metadata.
pub const OF_ENDPOINT: usize = 16 << 10;

/// Entries of one endpoint's metadata.
pub const ENTRIES: usize = 256;

/// Bytes of the metadata of all endpoints of a service: an eighth of the memory that an instance has by default. Here each
/// entry counts 32 bytes more, as in HPACK (RFC 7541, 4.1): about what it costs to hold one.
pub const OF_SERVICE: usize = 8 << 20;

const ENTRY: usize = 32;

/// Bytes of an id.
pub const ID: usize = 1024;

/// What policies are given of one registration, where that is not all of it.
#[derive(Debug, Default)]
pub struct PolicyView {
    /// Places of the entries that are given, in order; none for all of them.
    given: Option<Box<[usize]>>,
    dropped: usize,
    cost: usize,
    id: Option<Box<str>>,
}

impl PolicyView {
    /// Of an endpoint whose service's other endpoints cost so much already.
    pub(super) fn new(registered: &Registered, of_others: usize) -> Self {
        let (mut given, mut bytes, mut cost) = (Vec::new(), 0_usize, 0_usize);
        for (place, (name, value)) in registered.metadata.iter().enumerate() {
            let length = name.len().saturating_add(value.len());
            let (bytes_then, cost_then) =
                (bytes.saturating_add(length), cost.saturating_add(length).saturating_add(ENTRY));
            let fits_service = of_others.saturating_add(cost_then) <= OF_SERVICE;
            if bytes_then <= OF_ENDPOINT && given.len() < ENTRIES && fits_service {
                given.push(place);
                (bytes, cost) = (bytes_then, cost_then);
            }
        }
        let dropped = registered.metadata.len() - given.len();
        let given = (dropped > 0).then(|| given.into_boxed_slice());
        Self { given, dropped, cost, id: short_id(&registered.id) }
    }

    /// Entries that are not given.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// What counts towards the bound of the service.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// The endpoint's id.
    pub fn id<'a>(&'a self, registered: &'a Registered) -> &'a str {
        self.id.as_deref().unwrap_or(&registered.id)
    }

    /// The entries that are given.
    pub fn metadata<'a>(&'a self, registered: &'a Registered) -> impl Iterator<Item = &'a (String, String)> {
        let all = if self.given.is_none() { registered.metadata.as_slice() } else { &[] };
        let given = self.given.as_deref().unwrap_or_default();
        all.iter().chain(given.iter().filter_map(|place| registered.metadata.get(*place)))
    }
}

/// A shorter form of an id that is too long: its beginning, `~`, and its SHA-256.
fn short_id(id: &str) -> Option<Box<str>> {
    if id.len() <= ID {
        return None;
    }
    let mut short = id.get(..id.floor_char_boundary(ID - 65)).unwrap_or_default().to_owned();
    short.push('~');
    for byte in Sha256::digest(id.as_bytes()) {
        let _ = write!(short, "{byte:02x}"); // a string takes everything
    }
    Some(short.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(metadata: Vec<(String, String)>) -> Registered {
        Registered {
            id: "a#127.0.0.1:80".into(),
            address: "127.0.0.1:80".into(),
            weight: 1,
            order: 0,
            metadata,
            egress: Default::default(),
        }
    }

    fn entry(name: &str, length: usize) -> (String, String) {
        (name.to_owned(), "x".repeat(length))
    }

    /// Issue 10, 8: 16 KiB of an endpoint's metadata are given; what does not fit is dropped, and what does is kept.
    #[test]
    fn an_endpoints_metadata_is_bounded() {
        let of = registered(vec![entry("zone", 9), entry("blob", 1_150_000), entry("role", 6)]);
        let view = PolicyView::new(&of, 0);
        let names: Vec<&str> = view.metadata(&of).map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, view.dropped()), (vec!["zone", "role"], 1));
        let of = registered((0..300).map(|n| entry(&n.to_string(), 60)).collect());
        let view = PolicyView::new(&of, 0);
        let given: usize = view.metadata(&of).map(|(name, value)| name.len() + value.len()).sum();
        assert!(given <= OF_ENDPOINT && view.metadata(&of).count() == ENTRIES && view.dropped() == 44, "{given}");
        let of = registered(vec![entry("exact", OF_ENDPOINT - 5)]);
        assert_eq!((PolicyView::new(&of, 0).dropped(), PolicyView::new(&of, OF_SERVICE - 100).dropped()), (0, 1));
    }

    #[test]
    fn a_long_id_is_shortened_to_another_that_is_as_unique() {
        let [one, other] = ["a", "b"].map(|end| Registered { id: "ü".repeat(5_000) + end, ..registered(Vec::new()) });
        let ids = [&one, &other].map(|of| PolicyView::new(of, 0).id(of).to_owned());
        assert!(ids.iter().all(|id| id.len() <= ID && id.starts_with("üü")) && ids[0] != ids[1], "{ids:?}");
        assert_eq!(PolicyView::default().id(&registered(Vec::new())), "a#127.0.0.1:80");
    }
}
