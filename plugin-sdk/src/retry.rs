use std::time::Duration;

use crate::{Config, Outcome, Request};

/// Decides what follows a failed attempt.
pub trait RetryPolicy: Sized {
    /// A policy with these settings; see [`Balancer::new`](crate::Balancer::new).
    ///
    /// # Errors
    ///
    /// What is wrong with the settings; the configuration that named the policy is then refused with this text.
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String>;

    /// The delay before the next attempt (whole milliseconds, at most 49 days), or none to give up and answer the
    /// client with what there is.
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
        R::new(Config::new(config), seed).map(Self)
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
