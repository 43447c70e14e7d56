//! Tests of policies without Wasm and without a proxy: each harness drives a policy through the same calls as the proxy
//! does, on facts that the test gives.
//!
//! ```
//! use heddle_plugin::testing::{Request, Service};
//! # use heddle_plugin::{Balancer, Config, Endpoint, Endpoints};
//! # struct First;
//! # impl Balancer for First {
//! #     fn new(_: Config<'_>, _: u64) -> Result<Self, String> {
//! #         Ok(Self)
//! #     }
//! #     fn pick<'a>(&mut self, _: &heddle_plugin::Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
//! #         endpoints.eligible().next()
//! #     }
//! # }
//! let mut service = Service::<First>::new("{}", 1)?;
//! service.register(["10.0.0.1:80", "10.0.0.2:80"]);
//! service.set_eligible(|endpoint| endpoint.address != "10.0.0.1:80");
//! let picked = service.pick(&Request::get("/")).map(|endpoint| endpoint.address.as_str());
//! assert_eq!(picked, Some("10.0.0.2:80"));
//! # Ok::<(), String>(())
//! ```

mod distribution;
mod fleet;
pub(crate) mod imports;

use std::time::Duration;

pub use distribution::fits;
use fleet::Fleet;
pub use fleet::Registration;
use imports::Host;

use crate::bindings::EndpointRecord;
use crate::{
    Balancer, Circuit, CircuitBreaker, Condition, Endpoint, Kind, Level, RetryPolicy, Terms, balancer, breaker, retry,
};

/// The facts of a request, as [`crate::Request`] gives them.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// See [`crate::Request::service`].
    pub service: Option<String>,
    /// See [`crate::Request::client_ip`].
    pub client_ip: Option<String>,
    /// See [`crate::Request::method`].
    pub method: Option<String>,
    /// See [`crate::Request::path`].
    pub path: Option<String>,
    /// Names and values, in the order in which the request has them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// See [`crate::Request::sni`].
    pub sni: Option<String>,
    /// See [`crate::Request::identity`].
    pub identity: Option<String>,
    /// See [`crate::Request::attempt`].
    pub attempt: Option<u32>,
    /// The addresses of the endpoints in [`crate::Request::tried`].
    pub tried: Vec<String>,
}

impl Request {
    /// A first attempt at a GET of a path, from 192.0.2.1.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self {
            client_ip: Some("192.0.2.1".to_owned()),
            method: Some("GET".to_owned()),
            path: Some(path.to_owned()),
            attempt: Some(1),
            ..Self::default()
        }
    }

    /// The same from another client.
    #[must_use]
    pub fn from_client(mut self, ip: &str) -> Self {
        self.client_ip = Some(ip.to_owned());
        self
    }

    /// The same with one more header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.as_bytes().to_vec()));
        self
    }

    /// The same after these addresses were tried.
    #[must_use]
    pub fn tried(mut self, addresses: &[&str]) -> Self {
        self.tried.extend(addresses.iter().map(|&address| address.to_owned()));
        self
    }
}

/// The facts of an outcome, as [`crate::Outcome`] gives them.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// See [`crate::Outcome::kind`].
    pub kind: Option<Kind>,
    /// See [`crate::Outcome::status`].
    pub status: Option<u32>,
    /// See [`crate::Outcome::grpc_status`].
    pub grpc_status: Option<u32>,
    /// See [`crate::Outcome::latency`].
    pub latency: Option<Duration>,
    /// See [`crate::Outcome::sent`].
    pub sent: Option<bool>,
    /// See [`crate::Outcome::replayable`].
    pub replayable: Option<bool>,
    /// See [`crate::Outcome::retry_after`].
    pub retry_after: Option<Duration>,
    /// See [`crate::Outcome::elapsed`].
    pub elapsed: Option<Duration>,
    /// See [`crate::Outcome::budget_left`].
    pub budget_left: Option<u32>,
    /// See [`crate::Outcome::others_eligible`].
    pub others_eligible: Option<u32>,
}

impl Outcome {
    /// An attempt that ended so, with nothing more known.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    /// A response with this HTTP status.
    #[must_use]
    pub fn response(status: u32) -> Self {
        Self { status: Some(status), ..Self::of(Kind::Response) }
    }
}

/// A service with a balancer.
pub struct Service<B> {
    instance: balancer::Instance<B>,
    fleet: Fleet,
    eligible: Vec<u64>,
    /// Whether endpoints have been registered.
    is_known: bool,
    host: Host,
}

impl<B: Balancer> Service<B> {
    /// A service without endpoints, whose balancer has these settings (one JSON object) and this seed.
    ///
    /// # Errors
    ///
    /// What the balancer says about the settings.
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        let instance = balancer::Instance::new(config, seed)?;
        Ok(Self { instance, fleet: Fleet::default(), eligible: Vec::new(), is_known: false, host: Host::default() })
    }

    /// Registers endpoints in one update. They are eligible from the start. An address that is registered already is
    /// changed in place. Those of the first update were there before; others are registered at the time of
    /// [`Service::set_now`].
    pub fn register<R: Into<Registration>>(&mut self, registrations: impl IntoIterator<Item = R>) {
        let (removed, added) = self.fleet.register(registrations);
        let since = std::mem::replace(&mut self.is_known, true).then_some(self.host.now);
        for record in &added {
            self.set_bit(record.slot, true);
            if !removed.contains(&record.slot) {
                imports::set(&mut self.host.registered_at, record.slot, since);
                imports::set(&mut self.host.peak_micros, record.slot, None);
            }
        }
        self.update(&removed, added);
    }

    /// Removes endpoints in one update.
    pub fn remove(&mut self, addresses: &[&str]) {
        let removed = self.fleet.remove(addresses);
        for &slot in &removed {
            self.set_bit(slot, false);
        }
        self.update(&removed, Vec::new());
    }

    /// Makes those endpoints eligible that the test says, and no others.
    pub fn set_eligible(&mut self, eligible: impl Fn(&Endpoint) -> bool) {
        for endpoint in self.fleet.endpoints() {
            self.set_bit(endpoint.slot.0, eligible(&endpoint));
        }
        self.update(&[], Vec::new());
    }

    /// Says how many requests are under way at an endpoint.
    pub fn set_in_flight(&mut self, address: &str, requests: u32) {
        if let Some(slot) = self.fleet.slot(address) {
            imports::set(&mut self.host.in_flight, slot, requests);
        }
    }

    /// Says what an endpoint's average latency is, in microseconds.
    pub fn set_latency_micros(&mut self, address: &str, micros: u32) {
        if let Some(slot) = self.fleet.slot(address) {
            imports::set(&mut self.host.latency_micros, slot, micros);
        }
    }

    /// Says what an endpoint's peak average is, in microseconds. Without, it is 30,000.
    pub fn set_peak_micros(&mut self, address: &str, micros: u32) {
        if let Some(slot) = self.fleet.slot(address) {
            imports::set(&mut self.host.peak_micros, slot, Some(micros));
        }
    }

    /// Says what time it is.
    pub fn set_now(&mut self, now: Duration) {
        self.host.now = now;
    }

    /// What the balancer picks. The answer may be an endpoint that is not eligible only where the balancer is wrong.
    pub fn pick(&mut self, request: &Request) -> Option<&Endpoint> {
        self.host.describe(request, &self.fleet);
        let slot = self.host.during(|| self.instance.pick())?;
        self.instance.endpoints().get(crate::Slot(slot))
    }

    /// What the balancer has logged.
    #[must_use]
    pub fn logged(&self) -> &[(Level, String)] {
        &self.host.logged
    }

    fn update(&mut self, removed: &[u32], added: Vec<EndpointRecord>) {
        if !(removed.is_empty() && added.is_empty()) {
            self.host.during(|| self.instance.update(removed, added));
        }
        self.host.during(|| self.instance.eligible(self.eligible.clone()));
    }

    fn set_bit(&mut self, slot: u32, eligible: bool) {
        let index = slot as usize / 64;
        if index >= self.eligible.len() {
            self.eligible.resize(index + 1, 0);
        }
        if let Some(word) = self.eligible.get_mut(index) {
            let bit = 1 << (slot % 64);
            *word = if eligible { *word | bit } else { *word & !bit };
        }
    }
}

/// A retry policy under test.
pub struct Retries<R> {
    instance: retry::Instance<R>,
    host: Host,
}

impl<R: RetryPolicy> Retries<R> {
    /// A policy with these settings (one JSON object) and this seed.
    ///
    /// # Errors
    ///
    /// What the policy says about the settings.
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        let mut host = Host::default();
        let instance = host.during(|| retry::Instance::new(config, seed))?;
        Ok(Self { instance, host })
    }

    /// What the policy asks for.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.host.terms
    }

    /// What the policy decides after an attempt that ended so.
    pub fn decide(&mut self, request: &Request, outcome: &Outcome) -> Option<Duration> {
        self.host.request = request.clone();
        self.host.outcome = outcome.clone();
        let millis = self.host.during(|| self.instance.decide())?;
        Some(Duration::from_millis(millis.into()))
    }
}

/// A service with a circuit breaker. Verdicts take effect as in the proxy, without the proxy's bounds.
pub struct Breaking<C> {
    instance: breaker::Instance<C>,
    fleet: Fleet,
    host: Host,
}

impl<C: CircuitBreaker> Breaking<C> {
    /// A service without endpoints, whose breaker has these settings (one JSON object) and this seed.
    ///
    /// # Errors
    ///
    /// What the breaker says about the settings.
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        let mut host = Host::default();
        let instance = host.during(|| breaker::Instance::new(config, seed))?;
        Ok(Self { instance, fleet: Fleet::default(), host })
    }

    /// Registers endpoints in one update.
    pub fn register<R: Into<Registration>>(&mut self, registrations: impl IntoIterator<Item = R>) {
        let (removed, added) = self.fleet.register(registrations);
        for record in &added {
            imports::set(&mut self.host.health, record.slot, Some(EndpointHealth::default()));
        }
        self.host.during(|| self.instance.update(&removed, added));
    }

    /// Says what time it is.
    pub fn set_now(&mut self, now: Duration) {
        self.host.set_now(now);
    }

    /// Whether an endpoint is in use.
    #[must_use]
    pub fn condition(&self, address: &str) -> Option<Condition> {
        let slot = self.fleet.slot(address)?;
        Some(self.host.health.get(slot as usize)?.as_ref()?.condition)
    }

    /// What the proxy remembers of an endpoint, to read and to change.
    pub fn health(&mut self, address: &str) -> Option<&mut EndpointHealth> {
        let slot = self.fleet.slot(address)?;
        self.host.health.get_mut(slot as usize)?.as_mut()
    }

    /// What the proxy remembers of the service as a whole, to read and to change.
    pub fn service(&mut self) -> &mut ServiceHealth {
        &mut self.host.service
    }

    /// An attempt at an endpoint ends so: the proxy counts it, and the breaker judges.
    pub fn attempt(&mut self, address: &str, outcome: &Outcome) {
        let counted = self.health(address).and_then(|health| health.count(outcome));
        if let Some(succeeded) = counted {
            let count = &mut self.host.service.consecutive_failures;
            *count = if succeeded { 0 } else { *count + 1 };
        }
        self.judge(address, &Request::get("/"), outcome);
    }

    /// Tells the breaker that an attempt at an endpoint has ended so, unless it left that out; what is counted stays as it
    /// is.
    pub fn judge(&mut self, address: &str, request: &Request, outcome: &Outcome) {
        self.host.describe(request, &self.fleet);
        self.host.outcome = outcome.clone();
        if let Some(slot) = self.fleet.slot(address).filter(|slot| self.host.judges(*slot)) {
            self.host.during(|| self.instance.judge(slot));
        }
    }

    /// Tells the breaker that a second has passed.
    pub fn tick(&mut self) {
        self.host.during(|| self.instance.tick());
    }

    /// What the breaker has logged.
    #[must_use]
    pub fn logged(&self) -> &[(Level, String)] {
        &self.host.logged
    }
}

/// What the proxy remembers of one endpoint's health.
#[derive(Clone, Debug)]
pub struct EndpointHealth {
    /// Whether it is in use.
    pub condition: Condition,
    /// See [`crate::Health::consecutive_failures`].
    pub consecutive_failures: u32,
    /// See [`crate::Failure::Connect`].
    pub consecutive_connect_failures: u32,
    /// See [`crate::Failure::Timeout`].
    pub consecutive_timeouts: u32,
    /// See [`crate::Failure::Gateway`].
    pub consecutive_gateway_errors: u32,
    /// See [`crate::Health::attempts`]; the same for any number of seconds.
    pub attempts: crate::Attempts,
    /// See [`crate::Health::ejections`].
    pub ejections: u32,
    /// See [`crate::Health::ejected_until`].
    pub ejected_until: Option<Duration>,
    /// How many requests at once a probe lets through; 0 in other conditions.
    pub permits: u32,
    changes: u64,
}

impl Default for EndpointHealth {
    fn default() -> Self {
        Self {
            condition: Condition::InUse,
            consecutive_failures: 0,
            consecutive_connect_failures: 0,
            consecutive_timeouts: 0,
            consecutive_gateway_errors: 0,
            attempts: crate::Attempts::default(),
            ejections: 0,
            ejected_until: None,
            permits: 0,
            changes: 0,
        }
    }
}

/// What the proxy remembers of a service as a whole.
#[derive(Clone, Debug)]
pub struct ServiceHealth {
    /// Whether requests are let through.
    pub circuit: Circuit,
    /// See [`crate::Health::service_consecutive_failures`].
    pub consecutive_failures: u32,
    /// When an open service becomes half-open.
    pub open_until: Option<Duration>,
    /// How many requests at once are let through once it is half-open; 0 while it is closed.
    pub permits: u32,
    changes: u64,
}

impl Default for ServiceHealth {
    fn default() -> Self {
        Self { circuit: Circuit::Closed, consecutive_failures: 0, open_until: None, permits: 0, changes: 0 }
    }
}
