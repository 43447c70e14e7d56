//! What the export macros expand to. Not for use by hand.

use crate::Balancer;
pub use crate::balancer;
pub use crate::guest_instance as instance;

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
            $crate::host::report_panics();
            INSTANCE.set(Some(made?));
            Ok(())
        }

        fn with<T>(act: impl FnOnce(&mut $instance) -> T) -> ::std::option::Option<T> {
            INSTANCE.with(|instance| instance.try_borrow_mut().ok()?.as_mut().map(act))
        }
    };
}

pub const fn implements_balancer<B: Balancer>() {}
