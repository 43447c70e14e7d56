//! The worlds of the contract, as wasmtime's bindings give them, and which of them a guest is of.

use wasmtime::Store;
use wasmtime::component::InstancePre;

use super::host::State;
use crate::policy::Role;

mod balancer {
    wasmtime::component::bindgen!({ world: "balancer", path: "../plugin-sdk/wit" });
}

mod retry_policy {
    wasmtime::component::bindgen!({
        world: "retry-policy",
        path: "../plugin-sdk/wit",
        with: {
            "heddle:policy/request@0.1.0": super::balancer::heddle::policy::request,
            "heddle:policy/clock@0.1.0": super::balancer::heddle::policy::clock,
            "heddle:policy/log@0.1.0": super::balancer::heddle::policy::log,
        },
    });
}

mod circuit_breaker {
    wasmtime::component::bindgen!({
        world: "circuit-breaker",
        path: "../plugin-sdk/wit",
        with: {
            "heddle:policy/types@0.1.0": super::balancer::heddle::policy::types,
            "heddle:policy/request@0.1.0": super::balancer::heddle::policy::request,
            "heddle:policy/outcome@0.1.0": super::retry_policy::heddle::policy::outcome,
            "heddle:policy/load@0.1.0": super::balancer::heddle::policy::load,
            "heddle:policy/clock@0.1.0": super::balancer::heddle::policy::clock,
            "heddle:policy/log@0.1.0": super::balancer::heddle::policy::log,
        },
    });
}

pub(super) use balancer::heddle::policy::{clock, load, log, request, types};
pub(super) use circuit_breaker::heddle::policy::{attention, health, verdicts};
pub(super) use retry_policy::heddle::policy::{outcome, terms};
pub(super) use types::Endpoint;

use balancer::{Balancer, BalancerPre};
use circuit_breaker::{CircuitBreaker, CircuitBreakerPre};
use retry_policy::{RetryPolicy, RetryPolicyPre};

/// A guest to be instantiated.
pub(super) enum Prepared {
    Balancer(BalancerPre<State>),
    RetryPolicy(RetryPolicyPre<State>),
    CircuitBreaker(CircuitBreakerPre<State>),
}

impl Prepared {
    /// A guest of the world whose exports it has.
    ///
    /// # Errors
    ///
    /// What each of the worlds misses.
    pub fn new(pre: &InstancePre<State>) -> Result<Self, [wasmtime::Error; 3]> {
        let balancer = match BalancerPre::new(pre.clone()) {
            Ok(pre) => return Ok(Self::Balancer(pre)),
            Err(error) => error,
        };
        // A breaker exports more than a retry policy, but not what one decides by.
        let breaker = match CircuitBreakerPre::new(pre.clone()) {
            Ok(pre) => return Ok(Self::CircuitBreaker(pre)),
            Err(error) => error,
        };
        match RetryPolicyPre::new(pre.clone()) {
            Ok(pre) => Ok(Self::RetryPolicy(pre)),
            Err(error) => Err([balancer, error, breaker]),
        }
    }

    pub fn role(&self) -> Role {
        match self {
            Self::Balancer(_) => Role::Balancer,
            Self::RetryPolicy(_) => Role::RetryPolicy,
            Self::CircuitBreaker(_) => Role::CircuitBreaker,
        }
    }

    pub fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<Guest> {
        Ok(match self {
            Self::Balancer(pre) => Guest::Balancer(pre.instantiate(store)?),
            Self::RetryPolicy(pre) => Guest::RetryPolicy(pre.instantiate(store)?),
            Self::CircuitBreaker(pre) => Guest::CircuitBreaker(pre.instantiate(store)?),
        })
    }
}

/// A guest. What its world does not have does nothing, or is the error of a caller that took it for another.
pub(super) enum Guest {
    Balancer(Balancer),
    RetryPolicy(RetryPolicy),
    CircuitBreaker(CircuitBreaker),
}

/// The answer where a guest is asked for what its world does not have.
fn another_world<T>() -> wasmtime::Result<T> {
    Err(wasmtime::Error::msg("a policy of another world"))
}

impl Guest {
    pub fn configure(&self, store: &mut Store<State>, config: &str, seed: u64) -> wasmtime::Result<Result<(), String>> {
        match self {
            Self::Balancer(guest) => guest.call_configure(store, config, seed),
            Self::RetryPolicy(guest) => guest.call_configure(store, config, seed),
            Self::CircuitBreaker(guest) => guest.call_configure(store, config, seed),
        }
    }

    pub fn update(&self, store: &mut Store<State>, removed: &[u32], added: &[Endpoint]) -> wasmtime::Result<()> {
        match self {
            Self::Balancer(guest) => guest.call_update(store, removed, added),
            Self::RetryPolicy(_) => Ok(()),
            Self::CircuitBreaker(guest) => guest.call_update(store, removed, added),
        }
    }

    pub fn eligible(&self, store: &mut Store<State>, bits: &[u64]) -> wasmtime::Result<()> {
        match self {
            Self::Balancer(guest) => guest.call_eligible(store, bits),
            Self::RetryPolicy(_) | Self::CircuitBreaker(_) => Ok(()),
        }
    }

    pub fn pick(&self, store: &mut Store<State>) -> wasmtime::Result<Option<u32>> {
        if let Self::Balancer(guest) = self { guest.call_pick(store) } else { another_world() }
    }

    pub fn decide(&self, store: &mut Store<State>) -> wasmtime::Result<Option<u32>> {
        if let Self::RetryPolicy(guest) = self { guest.call_decide(store) } else { another_world() }
    }

    pub fn judge(&self, store: &mut Store<State>, slot: u32) -> wasmtime::Result<()> {
        if let Self::CircuitBreaker(guest) = self { guest.call_judge(store, slot) } else { another_world() }
    }

    pub fn tick(&self, store: &mut Store<State>) -> wasmtime::Result<()> {
        if let Self::CircuitBreaker(guest) = self { guest.call_tick(store) } else { another_world() }
    }
}
