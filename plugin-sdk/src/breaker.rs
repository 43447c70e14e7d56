use crate::bindings::EndpointRecord;
use crate::{Config, Endpoint, Health, Outcome, Registered, Request, Slot, host};

/// Which attempts a breaker judges, of those at an endpoint that is in use, in a service that is: those after which so many
/// in a row have failed; 0 for never. All others cost no call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// Of the class [`Failure::Connect`](crate::Failure::Connect), at the endpoint.
    pub connect_failures: u32,
    /// Of the class [`Failure::Timeout`](crate::Failure::Timeout), at the endpoint.
    pub timeouts: u32,
    /// Of the class [`Failure::Gateway`](crate::Failure::Gateway), at the endpoint.
    pub gateway_errors: u32,
    /// Of any class, at the endpoint.
    pub failures: u32,
    /// In the whole service, of which the last was at the endpoint.
    pub service_failures: u32,
}

impl Attention {
    fn tell(self) {
        let Self { connect_failures, timeouts, gateway_errors, failures, service_failures } = self;
        host::attention::judge_only(&[connect_failures, timeouts, gateway_errors, failures], service_failures);
    }
}

/// Judges endpoints by how their attempts end.
///
/// Verdicts are given through [`State`](crate::State), and for the service as a whole through
/// [`ServiceState`](crate::ServiceState). What must be known on every worker and after a reload is kept by the proxy, in
/// [`Health`]; a breaker needs no memory of its own. This one ejects an endpoint for 5 s after 3 failures in a row, and
/// then lets one request at a time find out whether it is well again:
///
/// ```
/// use std::time::Duration;
/// use heddle_plugin::{CircuitBreaker, Condition, Config, Endpoint, Health, Outcome, Registered, Request, now};
///
/// struct ThreeFailures;
///
/// impl CircuitBreaker for ThreeFailures {
///     fn new(config: Config<'_>, _: u64) -> Result<Self, String> {
///         config.expect_empty().map(|()| Self)
///     }
///
///     fn judge(&mut self, endpoint: &Endpoint, _: &Request, outcome: &Outcome, health: &Health<'_>) {
///         let Some(state) = health.state(endpoint) else { return };
///         match (state.condition(), outcome.succeeded()) {
///             (Condition::InUse, Some(false)) if health.consecutive_failures(endpoint) < 3 => false,
///             (Condition::InUse | Condition::HalfOpen, Some(false)) => state.eject(Duration::from_secs(5)),
///             (Condition::HalfOpen, Some(true)) => state.restore(),
///             _ => false,
///         };
///     }
///
///     fn tick(&mut self, endpoints: &Registered, health: &Health<'_>) {
///         for endpoint in endpoints.iter().filter(|one| health.ejected_until(one).is_some_and(|end| end <= now())) {
///             health.state(endpoint).is_some_and(|state| state.probe(1));
///         }
///     }
/// }
///
/// heddle_plugin::export_circuit_breaker!(ThreeFailures);
///
/// // A test needs neither Wasm nor a proxy.
/// let mut service = heddle_plugin::testing::Breaking::<ThreeFailures>::new("{}", 7)?;
/// service.register(["10.0.0.1:80", "10.0.0.2:80"]);
/// for _ in 0..3 {
///     service.attempt("10.0.0.1:80", &heddle_plugin::testing::Outcome::response(500));
/// }
/// assert_eq!(service.condition("10.0.0.1:80"), Some(Condition::Ejected));
/// # Ok::<(), String>(())
/// ```
pub trait CircuitBreaker: Sized {
    /// A breaker with these settings; see [`Balancer::new`](crate::Balancer::new).
    ///
    /// # Errors
    ///
    /// What is wrong with the settings; the configuration that named the policy is then refused with this text.
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String>;

    /// Which attempts are judged; none for all of them. It is asked for once, after [`CircuitBreaker::new`].
    fn attention(&self) -> Option<Attention> {
        None
    }

    /// Endpoints were registered, removed, or changed in weight or metadata.
    fn registered_changed(&mut self, endpoints: &Registered) {
        let _ = endpoints;
    }

    /// An attempt at the endpoint has ended; `health` already counts it. Called on the worker where it ended; not for one
    /// that [`CircuitBreaker::attention`] leaves out, nor for one that began before the endpoint came into its present
    /// state, which says nothing of what the endpoint is like now. Of one that is half-open, it is thus the probes that are
    /// judged. Nor is it called for one that failed and began before the service as a whole came into its state.
    fn judge(&mut self, endpoint: &Endpoint, request: &Request, outcome: &Outcome, health: &Health<'_>);

    /// Called once a second in one instance for the whole proxy: the place for comparisons between endpoints, and for
    /// the end of an ejection.
    fn tick(&mut self, endpoints: &Registered, health: &Health<'_>);
}

/// A breaker and what it was told: the calls of the contract, in the contract's terms.
pub struct Instance<C> {
    breaker: C,
    endpoints: Registered,
}

#[allow(missing_docs, reason = "the calls of the contract, which documents them")]
impl<C: CircuitBreaker> Instance<C> {
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        let breaker = C::new(Config::new(config), seed)?;
        if let Some(attention) = breaker.attention() {
            attention.tell();
        }
        Ok(Self { breaker, endpoints: Registered::default() })
    }

    pub fn update(&mut self, removed: &[u32], added: Vec<EndpointRecord>) {
        self.endpoints.update(removed, added);
        self.breaker.registered_changed(&self.endpoints);
    }

    pub fn judge(&mut self, slot: u32) {
        if let Some(endpoint) = self.endpoints.get(Slot(slot)) {
            self.breaker.judge(endpoint, &Request::CURRENT, &Outcome::CURRENT, &Health::of(&self.endpoints));
        }
    }

    pub fn tick(&mut self) {
        self.breaker.tick(&self.endpoints, &Health::of(&self.endpoints));
    }
}

/// Makes a type that implements [`CircuitBreaker`] the circuit breaker that the crate's `.wasm` file holds. Once a
/// crate.
#[macro_export]
macro_rules! export_circuit_breaker {
    ($breaker:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Instance = $crate::guest::breaker::Instance<$breaker>;
            $crate::guest::instance!(Instance);

            struct Guest;

            impl $crate::bindings::circuit_breaker::Guest for Guest {
                fn configure(
                    config: ::std::string::String,
                    seed: u64,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    start(Instance::new(&config, seed))
                }
                fn update(removed: ::std::vec::Vec<u32>, added: ::std::vec::Vec<$crate::bindings::EndpointRecord>) {
                    with(|instance| instance.update(&removed, added));
                }
                fn judge(slot: u32) {
                    with(|instance| instance.judge(slot));
                }
                fn tick() {
                    with(Instance::tick);
                }
            }

    $crate::bindings::circuit_breaker::export!(Guest with_types_in $crate::bindings::circuit_breaker);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: () = $crate::guest::implements_circuit_breaker::<$breaker>();
    };
}
