use crate::bindings::EndpointRecord;
use crate::{Config, Endpoint, Endpoints, Request};

/// Chooses the endpoint for each attempt of a request.
///
/// The proxy makes one balancer for each of its worker threads and each service, and calls it from that thread alone.
pub trait Balancer: Sized {
    /// A balancer with these settings. `seed` is for random numbers (see [`Random`](crate::Random)) and differs between
    /// instances: one that begins its rotation there does not begin on every worker with the same endpoint.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings; the configuration that named the policy is then refused with this text.
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String>;

    /// Endpoints were registered, removed, or changed in weight or metadata. Which of them are eligible is told right
    /// after, by [`Balancer::eligible_changed`].
    fn registered_changed(&mut self, endpoints: &Endpoints) {
        let _ = endpoints;
    }

    /// The set of eligible endpoints may have changed. It is called before the first pick, and after each
    /// [`Balancer::registered_changed`].
    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        let _ = endpoints;
    }

    /// The endpoint to use, or none for an answer of 503.
    ///
    /// An endpoint that is not eligible, or that the request has tried, is asked for again, with it in
    /// [`Request::tried`], at most twice; then the proxy chooses by itself.
    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint>;
}

/// A balancer and what it was told: the calls of the contract, in the contract's terms.
pub struct Instance<B> {
    balancer: B,
    endpoints: Endpoints,
}

#[allow(missing_docs, reason = "the calls of the contract, which documents them")]
impl<B: Balancer> Instance<B> {
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        Ok(Self { balancer: B::new(Config::new(config), seed)?, endpoints: Endpoints::default() })
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub fn update(&mut self, removed: &[u32], added: Vec<EndpointRecord>) {
        self.endpoints.update(removed, added);
        self.balancer.registered_changed(&self.endpoints);
    }

    pub fn eligible(&mut self, bits: Vec<u64>) {
        self.endpoints.set_eligible(bits);
        self.balancer.eligible_changed(&self.endpoints);
    }

    pub fn pick(&mut self) -> Option<u32> {
        self.balancer.pick(&Request::CURRENT, &self.endpoints).map(|endpoint| endpoint.slot.0)
    }
}

/// Makes a type that implements [`Balancer`] the balancer that the crate's `.wasm` file holds. Once a crate.
#[macro_export]
macro_rules! export_balancer {
    ($balancer:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Instance = $crate::guest::balancer::Instance<$balancer>;
            $crate::guest::instance!(Instance);

            struct Guest;

            impl $crate::bindings::balancer::Guest for Guest {
                fn configure(
                    config: ::std::string::String,
                    seed: u64,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    start(Instance::new(&config, seed))
                }
                fn update(removed: ::std::vec::Vec<u32>, added: ::std::vec::Vec<$crate::bindings::EndpointRecord>) {
                    with(|instance| instance.update(&removed, added));
                }
                fn eligible(bits: ::std::vec::Vec<u64>) {
                    with(|instance| instance.eligible(bits));
                }
                fn pick() -> ::std::option::Option<u32> {
                    with(Instance::pick)?
                }
            }

    $crate::bindings::balancer::export!(Guest with_types_in $crate::bindings::balancer);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: () = $crate::guest::implements_balancer::<$balancer>();
    };
}
