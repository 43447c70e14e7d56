use std::time::Duration;

use crate::host;
use crate::{Endpoint, Registered, Slot};

/// What the proxy remembers of a service's health and that of its endpoints, over all workers, across reloads of a
/// policy. Each fact is read when its function is called.
#[derive(Debug)]
pub struct Health<'a> {
    endpoints: &'a Registered,
}

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

/// Whether requests for the service as a whole are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Circuit {
    /// They are, as usual.
    Closed,
    /// They are refused at once, for a time.
    Open,
    /// A bounded number at once is.
    HalfOpen,
    /// They are not, for a reason that this version of the contract does not know.
    Other,
}

/// Failures told apart, as [`Health::consecutive`] counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection came about: it was refused, timed out, or TLS failed.
    Connect,
    /// Nothing came in time: no connection, or no response head.
    Timeout,
    /// An answer in another's stead (status 502, 503 or 504, gRPC's unavailable), or a connection that ended before a
    /// response.
    Gateway,
    /// Any of these, and any other: what [`Outcome::succeeded`](crate::Outcome::succeeded) calls a failure.
    Any,
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

impl<'a> Health<'a> {
    pub(crate) fn of(endpoints: &'a Registered) -> Self {
        Self { endpoints }
    }

    /// The registered endpoints of the service.
    #[must_use]
    pub fn endpoints(&self) -> &'a Registered {
        self.endpoints
    }

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

    /// Failed attempts of one class at an endpoint, without an attempt in between that ended otherwise.
    #[must_use]
    pub fn consecutive(&self, endpoint: &Endpoint, class: Failure) -> u32 {
        host::health::consecutive(endpoint.slot.0, class as u32)
    }

    /// Attempts at an endpoint over the last `seconds` (1 to 60) whole seconds, but none from before it was last put back
    /// into use.
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

    /// The state of the service as a whole at this moment, which a verdict is made on.
    #[must_use]
    pub fn service_state(&self) -> ServiceState {
        ServiceState { seen: host::health::service_state() }
    }

    /// Failed attempts of the whole service since the last one that succeeded.
    #[must_use]
    pub fn service_consecutive_failures(&self) -> u32 {
        host::health::service_consecutive_failures()
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

    /// Takes the endpoint out of use for some time, in whole milliseconds, and never for longer than an hour.
    pub fn eject(&self, time: Duration) -> bool {
        host::verdicts::eject(self.slot.0, self.seen, whole_millis(time))
    }

    /// Lets at most `permits` requests at once through to an ejected endpoint, to learn whether it has recovered.
    pub fn probe(&self, permits: u32) -> bool {
        host::verdicts::probe(self.slot.0, self.seen, permits)
    }

    /// Puts the endpoint back into use. Has no effect on one that is in use.
    pub fn restore(&self) -> bool {
        host::verdicts::restore(self.slot.0, self.seen)
    }
}

/// One state of the service as a whole. As with [`State`], a verdict takes effect only where the service is still in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceState {
    seen: u64,
}

impl ServiceState {
    /// Whether requests are let through.
    #[must_use]
    pub fn circuit(&self) -> Circuit {
        match self.seen & 0xff {
            0 => Circuit::Closed,
            1 => Circuit::Open,
            2 => Circuit::HalfOpen,
            _ => Circuit::Other,
        }
    }

    /// Refuses all requests for the service for some time, in whole milliseconds, and never for longer than five minutes;
    /// then at most `permits` at once are let through, until the circuit is closed, or opened again.
    pub fn open(&self, time: Duration, permits: u32) -> bool {
        host::verdicts::open_service(self.seen, whole_millis(time), permits)
    }

    /// Lets requests through again. Has no effect where they are.
    pub fn close(&self) -> bool {
        host::verdicts::close_service(self.seen)
    }
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
