//! The built-in policies, compiled once for all runs.
//!
//! A run has a table of plugins of its own, into which generations are put that were compiled before: what one run does
//! to a plugin is nothing to the next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use heddle::clock::Clock;
use heddle::config::checked::Config;
use heddle::plugin::{Engine, Fault, FaultKind, Generation, Origin, Plugin, Plugins, builtin_policy};
use heddle::policy::Role;
use heddle::service::{Directory, Service};

/// Two generations of each policy, by its name, made when a run first asks for them.
pub struct Compiled {
    engine: Arc<Engine>,
    generations: Mutex<HashMap<Arc<str>, [Arc<Generation>; 2]>>,
}

impl Compiled {
    pub fn new(config: &Config) -> Self {
        // Instances see their service's clock: this one only serves the probes of new generations.
        let engine = Engine::new(config.plugins.clone(), Clock::turned_by_hand()).unwrap();
        Self { engine, generations: Mutex::default() }
    }

    fn generations(&self, name: &Arc<str>) -> [Arc<Generation>; 2] {
        let mut generations = self.generations.lock().unwrap();
        let made = generations.entry(name.clone()).or_insert_with(|| {
            let bytes = builtin_policy(name).unwrap();
            [Origin::BuiltIn, Origin::File("again.wasm".into())]
                .map(|origin| Generation::load(&self.engine, name, bytes, origin, &[]).unwrap())
        });
        made.clone()
    }

    /// The service `users` with the policies that its settings name.
    pub fn service(&self, config: Config, clock: Clock) -> Arc<Service> {
        let plugins = Plugins::new(self.engine.clone());
        let generations: HashMap<Arc<str>, _> = {
            let policies = config.services.get("users").policies();
            policies.map(|(policy, _)| (policy.plugin.clone(), self.generations(&policy.plugin))).collect()
        };
        let require = move |policy: &_, role| {
            let plugin = plugins.require(policy, role);
            if let Some([first, _]) = generations.get(&plugin.name).filter(|_| plugin.current().is_none()) {
                plugin.replace(first.clone());
            }
            plugin
        };
        Directory::new(config.services, clock, require).get("users").unwrap()
    }

    /// Brings another generation of the same policy into force, as when its file is replaced.
    pub fn replace(&self, plugin: &Plugin) {
        let [one, other] = self.generations(&plugin.name);
        let is_one = plugin.current().is_some_and(|current| Arc::ptr_eq(&current, &one));
        plugin.replace(if is_one { other } else { one });
    }
}

/// The plugin that makes these decisions for the service.
pub fn plugin_of(service: &Service, role: Role) -> Option<&Arc<Plugin>> {
    match role {
        Role::Balancer => Some(&service.balancer),
        Role::RetryPolicy => service.retry.as_ref(),
        Role::CircuitBreaker => service.breaker.as_ref(),
    }
}

/// Puts the generation in force in quarantine, as repeated faults would.
pub fn condemn(plugin: &Plugin) {
    if let Some(generation) = plugin.current() {
        let fault = Fault { kind: FaultKind::Trap, cause: "simulated".into(), weight: usize::MAX };
        plugin.fault(&generation, &fault);
    }
}
