//! The proxy's side of the contract: the imports in a guest, a stand-in for tests elsewhere.

#[cfg(target_family = "wasm")]
pub(crate) use crate::bindings::imports::{load, request};
#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::imports::{load, request};

/// Makes a panic's message reach the proxy's log before the panic ends the instance.
#[doc(hidden)]
#[cfg(target_family = "wasm")]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| crate::bindings::imports::log::write(0, &info.to_string())));
}
