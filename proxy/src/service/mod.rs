//! Services, their endpoints, and the live counters that decisions read.
//!
//! What the registry announces reaches the request path as immutable [`Snapshot`]s: the control thread builds one and
//! publishes it in a single swap, a worker compares one version number a request and takes the new snapshot when it
//! differs. An endpoint keeps its slot for as long as it is registered, so that a change renumbers nothing. Counters
//! live beside the snapshots, in blocks that every snapshot of the service shares: they survive each change, and a
//! balancer that looks at all endpoints reads contiguous memory. How many requests and connections a service may have at
//! once is counted in the same way, over all workers: [`Requests`] and [`Connections`].

mod admission;
mod budget;
mod directory;
mod fleet;
mod health;
mod load;
mod pause;
mod peak;
mod policy_view;
mod snapshot;
mod stats;
pub mod tick;
mod window;

pub use admission::{
    Admitted, Client, Connections, Ending, Holder, Keeper, Permit, Requests, Reuse, Turn, Waiting, Wanted,
};
pub use budget::{Active, Budget, Retry};
pub use directory::{Directory, Service};
pub use fleet::{Fleet, Seen, ServiceProbe};
pub use health::{Class, Condition, Health, Probe, ServiceHealth};
pub use load::{InFlight, Load};
pub use pause::Pause;
pub use peak::PEAK_START;
pub use policy_view::PolicyView;
pub use snapshot::{Endpoint, Snapshot};
pub use stats::{Checks, Counter, DURATION_BUCKETS, Limit, ServiceStats, StatsTotal, TunnelEnd, TunnelTotal};
