//! What a decision is, as plain types, and what is decided when no plugin can.
//!
//! Nothing here does I/O or reads a clock.

mod latency;
pub mod native;
mod outcome;
pub mod retry;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;

pub use latency::Latencies;
pub use outcome::{Failure, Health, Kind, Outcome};

/// What a policy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Balancer,
    RetryPolicy,
    CircuitBreaker,
}

impl Role {
    /// The world of the contract.
    pub fn world(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::RetryPolicy => "retry-policy",
            Self::CircuitBreaker => "circuit-breaker",
        }
    }
}

/// What a client's TLS handshake said about it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The server name that it asked for (SNI), in lower case.
    pub server_name: Option<Arc<str>>,
    /// What its certificate proved: a SPIFFE URI, or else a DNS name.
    pub identity: Option<Arc<str>>,
    /// Whether HTTP/2 was agreed on (ALPN).
    pub http2: bool,
}

/// What a retry policy asks of the proxy for all requests of its service; none where the service's settings hold.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From a request's head to its response's, all attempts and delays counted.
    pub timeout: Option<Duration>,
    /// From the end of the request to the response's head, for each attempt.
    pub try_timeout: Option<Duration>,
    /// Hedge requests that are slower than this share of the recent ones, in thousandths (1 to 1,000).
    pub hedging: Option<u32>,
}

/// Which attempts a circuit breaker judges beside those at an endpoint, or in a service, that is not in use: those after
/// which so many in a row have failed; 0 for never.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// At the endpoint, by class.
    pub consecutive: [u32; 4],
    /// In the whole service.
    pub service_consecutive: u32,
}

/// What a policy may ask about the request, or the connection, that it decides on.
#[derive(Debug)]
pub struct Facts {
    /// The request as endpoints get it; nothing that counts where a connection is decided on.
    pub head: Box<Parts>,
    /// Whether the decision is about a request, and not about a connection.
    pub is_request: bool,
    /// What the client's TLS handshake said.
    pub peer: Option<Arc<Peer>>,
    pub client: IpAddr,
    /// From 1.
    pub attempt: u32,
    /// Slots tried by this request, and those picked for this attempt that could not be used.
    pub tried: Vec<u32>,
}

impl Facts {
    /// The facts of a request that has not been tried yet.
    pub fn new(head: Box<Parts>, client: IpAddr, peer: Option<Arc<Peer>>) -> Self {
        Self { head, is_request: true, peer, client, attempt: 1, tried: Vec::new() }
    }

    /// The facts of a connection that is passed on as it is.
    pub fn of_connection(client: IpAddr, peer: Option<Arc<Peer>>) -> Self {
        Self { client, peer, is_request: false, ..Self::placeholder() }
    }

    /// Stands where there is no request.
    pub fn placeholder() -> Self {
        Self::new(Box::new(http::Request::new(()).into_parts().0), IpAddr::V4(Ipv4Addr::UNSPECIFIED), None)
    }
}

/// Chooses natively: the next eligible slot after the last one chosen, in rotation, passing over `tried` slots unless
/// nothing else is left. None without an eligible endpoint.
///
/// `bits` has bit `slot % 64` of word `slot / 64` set for each eligible slot.
pub fn rotate(bits: &[u64], tried: &[u32], last: u32) -> Option<u32> {
    let mut second_best = None;
    let mut from = last;
    for _ in 0..=tried.len() {
        let slot = next_set(bits, from)?;
        if !tried.contains(&slot) {
            return Some(slot);
        }
        second_best = second_best.or(Some(slot));
        from = slot;
    }
    second_best
}

/// The first set bit after `after`, going round.
fn next_set(bits: &[u64], after: u32) -> Option<u32> {
    let length = u32::try_from(bits.len()).ok()?;
    if length == 0 {
        return None;
    }
    let start = after.wrapping_add(1);
    let (first, offset) = if start / 64 < length { (start / 64, start % 64) } else { (0, 0) };
    // The first word is looked at twice: from the offset on, and, having gone round, as a whole.
    (0..=length).find_map(|step| {
        let number = (first + step) % length;
        let word = *bits.get(usize::try_from(number).ok()?)?;
        let word = if step == 0 { word & (u64::MAX << offset) } else { word };
        (word != 0).then(|| number * 64 + word.trailing_zeros())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rotation_visits_every_eligible_slot_in_turn() {
        let bits = [0b1011, 1 << 63];
        let mut last = u32::MAX;
        let picks: Vec<u32> = (0..6)
            .map(|_| {
                last = rotate(&bits, &[], last).unwrap();
                last
            })
            .collect();
        assert_eq!(picks, [0, 1, 3, 127, 0, 1]);
    }

    #[test]
    fn tried_slots_are_passed_over_while_another_is_left() {
        assert_eq!(rotate(&[0b111], &[0, 1], 2), Some(2));
        assert_eq!(rotate(&[0b11], &[0, 1], 1), Some(0));
        assert_eq!(rotate(&[0], &[], 0), None);
        assert_eq!(rotate(&[], &[], 0), None);
    }

    proptest! {
        /// A choice is always an eligible slot, untried if there is one.
        #[test]
        fn a_choice_is_eligible(
            bits in prop::collection::vec(any::<u64>(), 0..4),
            tried in prop::collection::vec(0_u32..256, 0..8),
            last in any::<u32>(),
        ) {
            let eligible: Vec<u32> = (0..bits.len() as u32 * 64)
                .filter(|slot| bits[(slot / 64) as usize] >> (slot % 64) & 1 == 1)
                .collect();
            match rotate(&bits, &tried, last) {
                None => prop_assert!(eligible.is_empty()),
                Some(slot) => {
                    prop_assert!(eligible.contains(&slot));
                    if eligible.iter().any(|slot| !tried.contains(slot)) {
                        prop_assert!(!tried.contains(&slot));
                    }
                }
            }
        }
    }
}
