use std::time::Duration;

use crate::{Config, Outcome, Request, host};

/// What a retry policy asks of the proxy for all requests of its service. Where it asks for nothing, the service's own
/// settings hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// From a request's head to its response's, all attempts and delays counted, and the wait for a place among the
    /// service's requests; then the client is answered with what there is. Whole milliseconds; less than one says nothing.
    pub timeout: Option<Duration>,
    /// From the end of the request to the response's head, for each attempt. Whole milliseconds; less than one says
    /// nothing.
    pub try_timeout: Option<Duration>,
    /// Sends a second attempt beside a first that is slower than this share of the service's recent ones, in thousandths
    /// (950 for the 95th percentile); the first answer that is no failure wins. Only requests that may be sent twice have
    /// one, beside their first attempt. It is their second: where both fail, what follows is a third.
    pub hedging: Option<u32>,
}

impl Terms {
    fn tell(self) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if let Some(timeout) = self.timeout {
            host::terms::set_timeout(millis(timeout));
        }
        if let Some(timeout) = self.try_timeout {
            host::terms::set_try_timeout(millis(timeout));
        }
        if let Some(permille) = self.hedging {
            host::terms::set_hedging(permille);
        }
    }
}

/// Decides what follows a failed attempt.
pub trait RetryPolicy: Sized {
    /// A policy with these settings; see [`Balancer::new`](crate::Balancer::new).
    ///
    /// # Errors
    ///
    /// What is wrong with the settings; the configuration that named the policy is then refused with this text.
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String>;

    /// What holds for all requests. It is asked for once, after [`RetryPolicy::new`].
    fn terms(&self) -> Terms {
        Terms::default()
    }

    /// The delay before the next attempt (whole milliseconds), or none to give up and answer the client with what there
    /// is. One of more than 60 seconds gives up, too.
    ///
    /// It is called after each attempt that ended with a failure or a status from 400. The proxy's own bounds
    /// (deadline, budget, what can be replayed) still hold.
    fn decide(&mut self, request: &Request, outcome: &Outcome) -> Option<Duration>;
}

/// A retry policy, in the contract's terms.
pub struct Instance<R>(R);

#[allow(missing_docs, reason = "the calls of the contract, which documents them")]
impl<R: RetryPolicy> Instance<R> {
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        let policy = R::new(Config::new(config), seed)?;
        policy.terms().tell();
        Ok(Self(policy))
    }

    pub fn decide(&mut self) -> Option<u32> {
        let delay = self.0.decide(&Request::CURRENT, &Outcome::CURRENT)?;
        Some(u32::try_from(delay.as_millis()).unwrap_or(u32::MAX))
    }
}

/// Makes a type that implements [`RetryPolicy`] the retry policy that the crate's `.wasm` file holds. Once a crate.
#[macro_export]
macro_rules! export_retry_policy {
    ($policy:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Instance = $crate::guest::retry::Instance<$policy>;
            $crate::guest::instance!(Instance);

            struct Guest;

            impl $crate::bindings::retry_policy::Guest for Guest {
                fn configure(
                    config: ::std::string::String,
                    seed: u64,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    start(Instance::new(&config, seed))
                }
                fn decide() -> ::std::option::Option<u32> {
                    with(Instance::decide)?
                }
            }

    $crate::bindings::retry_policy::export!(Guest with_types_in $crate::bindings::retry_policy);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: () = $crate::guest::implements_retry_policy::<$policy>();
    };
}
