use std::time::Duration;

use crate::host;
use crate::{Endpoint, Slot};

/// What the proxy remembers of its endpoints' health, over all workers, across reloads of a policy.
#[derive(Debug)]
pub struct Health(());

/// Whether an endpoint is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Condition {
    /// It is picked as usual.
    InUse,
    /// It is out of use for a time.
    Ejected,
    /// A bounded number of probes is let through to it.
    HalfOpen,
    /// It is out of use for a reason that this version of the contract does not know.
    Other,
}

/// Attempts over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Those that succeeded.
    pub successes: u32,
    /// Those that failed.
    pub failures: u32,
}

/// The endpoints of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All that are registered.
    pub registered: u32,
    /// Those among them that are ejected or half-open.
    pub out: u32,
}

impl Health {
    pub(crate) const CURRENT: Self = Self(());

    /// An endpoint's state at this moment, which a verdict is made on. None once the endpoint is gone.
    #[must_use]
    pub fn state(&self, endpoint: &Endpoint) -> Option<State> {
        host::health::state(endpoint.slot.0).map(|seen| State { slot: endpoint.slot, seen })
    }

    /// Failed attempts at an endpoint since the last one that succeeded.
    #[must_use]
    pub fn consecutive_failures(&self, endpoint: &Endpoint) -> u32 {
        host::health::consecutive_failures(endpoint.slot.0)
    }

    /// Attempts at an endpoint over the last `seconds` (1 to 60) whole seconds.
    #[must_use]
    pub fn attempts(&self, endpoint: &Endpoint, seconds: u32) -> Attempts {
        let (successes, failures) = host::health::window(endpoint.slot.0, seconds);
        Attempts { successes, failures }
    }

    /// Attempts of the whole service over the last `seconds` (1 to 60) whole seconds.
    #[must_use]
    pub fn service_attempts(&self, seconds: u32) -> Attempts {
        let (successes, failures) = host::health::service_window(seconds);
        Attempts { successes, failures }
    }

    /// How many times an endpoint has been ejected, less one for each interval that it then spent in use.
    #[must_use]
    pub fn ejections(&self, endpoint: &Endpoint) -> u32 {
        host::health::ejections(endpoint.slot.0)
    }

    /// When an ejected endpoint's time is over, on the clock of [`now`](crate::now); none for one that is not ejected.
    #[must_use]
    pub fn ejected_until(&self, endpoint: &Endpoint) -> Option<Duration> {
        host::health::ejected_until(endpoint.slot.0).map(Duration::from_micros)
    }

    /// How many endpoints the service has, and how many of them are out of use.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (registered, out) = host::health::totals();
        Totals { registered, out }
    }
}

/// One state of an endpoint. A verdict takes effect only where the endpoint is still in the state that the verdict was
/// made on, and the proxy's own bounds (the share of a service that may be ejected) allow it; each says whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    slot: Slot,
    seen: u64,
}

impl State {
    /// Whether the endpoint is in use.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match self.seen & 0xff {
            0 => Condition::InUse,
            1 => Condition::Ejected,
            2 => Condition::HalfOpen,
            _ => Condition::Other,
        }
    }

    /// Takes the endpoint out of use for some time, in whole milliseconds.
    pub fn eject(&self, time: Duration) -> bool {
        host::verdicts::eject(self.slot.0, self.seen, u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    /// Lets at most `permits` requests at once through to an ejected endpoint, to learn whether it has recovered.
    pub fn probe(&self, permits: u32) -> bool {
        host::verdicts::probe(self.slot.0, self.seen, permits)
    }

    /// Puts the endpoint back into use.
    pub fn restore(&self) -> bool {
        host::verdicts::restore(self.slot.0, self.seen)
    }
}
