use std::cmp::Reverse;

use super::{Places, Registration};

/// Slots in the order in which they lead, as the policy `leader` has it.
pub fn order(mut registered: Vec<Registration<'_>>) -> Places {
    registered.sort_by_key(|of| (Reverse(of.is_marked), of.order, of.id));
    Places::Order(registered.into_iter().map(|of| of.slot).collect())
}
