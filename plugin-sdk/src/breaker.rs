use crate::bindings::EndpointRecord;
use crate::{Config, Endpoint, Health, Outcome, Registered, Request, Slot};

/// Judges endpoints by how their attempts end.
///
/// Verdicts are given through [`State`](crate::State). What must be known on every worker and after a reload is kept by
/// the proxy, in [`Health`]; a breaker needs no memory of its own.
pub trait CircuitBreaker: Sized {
    /// A breaker with these settings; see [`Balancer::new`](crate::Balancer::new).
    ///
    /// # Errors
    ///
    /// What is wrong with the settings; the configuration that named the policy is then refused with this text.
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String>;

    /// Endpoints were registered, removed, or changed in weight or metadata.
    fn registered_changed(&mut self, endpoints: &Registered) {
        let _ = endpoints;
    }

    /// An attempt at the endpoint has ended; `health` already counts it. Called on the worker where it ended.
    fn judge(&mut self, endpoint: &Endpoint, request: &Request, outcome: &Outcome, health: &Health);

    /// Called once a second in one instance for the whole proxy: the place for comparisons between endpoints, and for
    /// the end of an ejection.
    fn tick(&mut self, endpoints: &Registered, health: &Health);
}

/// A breaker and what it was told: the calls of the contract, in the contract's terms.
pub struct Instance<C> {
    breaker: C,
    endpoints: Registered,
}

#[allow(missing_docs, reason = "the calls of the contract, which documents them")]
impl<C: CircuitBreaker> Instance<C> {
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        Ok(Self { breaker: C::new(Config::new(config), seed)?, endpoints: Registered::default() })
    }

    pub fn update(&mut self, removed: &[u32], added: Vec<EndpointRecord>) {
        self.endpoints.update(removed, added);
        self.breaker.registered_changed(&self.endpoints);
    }

    pub fn judge(&mut self, slot: u32) {
        if let Some(endpoint) = self.endpoints.get(Slot(slot)) {
            self.breaker.judge(endpoint, &Request::CURRENT, &Outcome::CURRENT, &Health::CURRENT);
        }
    }

    pub fn tick(&mut self) {
        self.breaker.tick(&self.endpoints, &Health::CURRENT);
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
