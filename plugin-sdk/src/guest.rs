//! What the export macros expand to. Not for use by hand.

pub use crate::guest_instance as instance;
pub mod balancer {
    pub use crate::balancer::Instance;
}
pub mod breaker {
    pub use crate::breaker::Instance;
}
pub mod retry {
    pub use crate::retry::Instance;
}

/// The policy's one instance in this module, and the two ways to reach it.
#[macro_export]
#[doc(hidden)]
macro_rules! guest_instance {
    ($instance:ty) => {
        ::std::thread_local! {
            static INSTANCE: ::std::cell::RefCell<::std::option::Option<$instance>> =
                const { ::std::cell::RefCell::new(None) };
        }

        fn start(
            made: ::std::result::Result<$instance, ::std::string::String>,
        ) -> ::std::result::Result<(), ::std::string::String> {
            $crate::guest::report_panics();
            INSTANCE.set(Some(made?));
            Ok(())
        }

        fn with<T>(act: impl FnOnce(&mut $instance) -> T) -> ::std::option::Option<T> {
            INSTANCE.with(|instance| instance.try_borrow_mut().ok()?.as_mut().map(act))
        }
    };
}

/// Makes a panic's message reach the proxy's log before the panic ends the instance.
#[cfg(target_family = "wasm")]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| crate::host::log::write(0, &info.to_string())));
}

pub const fn implements_balancer<B: crate::Balancer>() {}
pub const fn implements_retry_policy<R: crate::RetryPolicy>() {}
pub const fn implements_circuit_breaker<C: crate::CircuitBreaker>() {}
