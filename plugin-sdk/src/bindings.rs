//! The contract in `wit/policy.wit`, as wit-bindgen gives it.
//!
//! Each world is generated with `pub_export_macro`: all that a world imports and exports is then described by a section
//! that its export macro emits, in the guest's crate. A guest of one world thus exports that world alone, though the
//! imports of all three may be described beside it: those that it does not call are left out of its component, but for
//! the interface `types`, which holds no function.
#![allow(unsafe_code, missing_docs, clippy::mem_forget, reason = "generated: the canonical ABI passes raw pointers")]

pub mod balancer {
    wit_bindgen::generate!({
        path: "wit",
        world: "heddle:policy/balancer",
        pub_export_macro: true,
        disable_custom_section_link_helpers: true,
        default_bindings_module: "heddle_plugin::bindings::balancer",
        runtime_path: "heddle_plugin::bindings::rt",
    });
}

pub mod retry_policy {
    wit_bindgen::generate!({
        path: "wit",
        world: "heddle:policy/retry-policy",
        pub_export_macro: true,
        disable_custom_section_link_helpers: true,
        default_bindings_module: "heddle_plugin::bindings::retry_policy",
        runtime_path: "heddle_plugin::bindings::rt",
        with: {
            "heddle:policy/request@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::request,
            "heddle:policy/clock@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::clock,
            "heddle:policy/log@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::log,
        },
    });
}

pub mod circuit_breaker {
    wit_bindgen::generate!({
        path: "wit",
        world: "heddle:policy/circuit-breaker",
        pub_export_macro: true,
        disable_custom_section_link_helpers: true,
        default_bindings_module: "heddle_plugin::bindings::circuit_breaker",
        runtime_path: "heddle_plugin::bindings::rt",
        with: {
            "heddle:policy/types@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::types,
            "heddle:policy/request@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::request,
            "heddle:policy/outcome@0.1.0": heddle_plugin::bindings::retry_policy::heddle::policy::outcome,
            "heddle:policy/load@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::load,
            "heddle:policy/clock@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::clock,
            "heddle:policy/log@0.1.0": heddle_plugin::bindings::balancer::heddle::policy::log,
        },
    });
}

pub use balancer::heddle::policy::types::Endpoint as EndpointRecord;
pub use wit_bindgen::rt;

/// The imports of all worlds under one name each.
#[cfg(target_family = "wasm")]
pub mod imports {
    pub use super::balancer::heddle::policy::{clock, load, log, request};
    pub use super::circuit_breaker::heddle::policy::{attention, health, verdicts};
    pub use super::retry_policy::heddle::policy::{outcome, terms};
}
