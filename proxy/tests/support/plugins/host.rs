//! Plugins and services as a proxy holds them, without a proxy around them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use heddle::clock::Clock;
use heddle::config::checked::Config;
use heddle::plugin::{Engine, Generation, LoadError, Origin, Plugin, Plugins, Seat};
use heddle::policy::Facts;
use heddle::registry::{Change, Registered};
use heddle::server::decide::{Choice, Decider};
use heddle::service::{Directory, Service, StatsTotal};

/// A checked configuration.
pub fn config(text: &str) -> Config {
    heddle::config::parse(text, Path::new("test"), &[]).unwrap().config
}

/// Plugins and services as a proxy holds them, without the proxy.
pub struct Host {
    pub plugins: Arc<Plugins>,
    pub directory: Arc<Directory>,
}

impl Host {
    /// With the defaults and these keys of `[plugins]` and tables of services.
    pub fn new(plugins: &str, services: &str) -> Self {
        let text = format!("[plugins]\n{plugins}\n[[listener]]\naddress = \"127.0.0.1:0\"\n{services}");
        let config = config(&text);
        let plugins = Arc::new(Plugins::new(Engine::new(config.plugins, Clock::running()).unwrap()));
        let directory = {
            let plugins = plugins.clone();
            let clock = plugins.engine().clock.clone();
            Arc::new(Directory::new(config.services, clock, move |policy, role| plugins.require(policy, role)))
        };
        Self { plugins, directory }
    }

    /// One service `users` with the balancer `test` and so many endpoints.
    pub fn with_endpoints(count: usize) -> Self {
        let host = Self::new("", "[service.users]\nbalancer = \"test\"\n");
        host.register("users", count);
        host
    }

    /// Brings a file's content into force as the policy `test`.
    pub fn load(&self, bytes: &[u8]) -> Result<Arc<Generation>, LoadError> {
        self.plugins.load("test", bytes, Origin::File("test.wasm".into()))
    }

    /// Adds endpoints with slots and addresses from 0 on, of weight 1.
    pub fn register(&self, service: &str, count: usize) {
        let added = (0..count).map(registered).collect();
        self.change(service, &[], added);
    }

    pub fn change(&self, service: &str, removed: &[String], added: Vec<Registered>) {
        self.directory.apply(vec![Change {
            service: service.into(),
            removed: removed.to_vec(),
            added,
            paused: None,
            proxied: None,
        }]);
    }

    pub fn service(&self, name: &str) -> Arc<Service> {
        self.directory.get(name).unwrap()
    }

    pub fn plugin(&self, name: &str) -> Arc<Plugin> {
        self.plugins.all().into_iter().find(|plugin| &*plugin.name == name).unwrap()
    }

    /// What one worker has for a service.
    pub fn worker(&self, service: &str) -> Local {
        let service = self.service(service);
        let stats = service.worker_stats();
        let config = service.settings.balancer.config.clone();
        let seat = Seat::new(service.fleet.clone(), service.balancer.clone(), config, 7);
        Local { decider: Decider::new(seat, stats, None), service }
    }
}

/// The built-in policies that are balancers.
pub fn balancers() -> Vec<&'static str> {
    const OTHERS: [&str; 2] = ["circuit-breaker", "retry"];
    heddle::plugin::builtin_names().into_iter().filter(|name| !OTHERS.contains(name)).collect()
}

/// Endpoint number `n`.
pub fn registered(n: usize) -> Registered {
    let address = format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255);
    Registered {
        id: format!("{n}#{address}"),
        address,
        weight: 1,
        order: n as u64,
        metadata: Vec::new(),
        egress: Arc::default(),
    }
}

/// What one worker has for a service.
pub struct Local {
    pub decider: Decider,
    pub service: Arc<Service>,
}

impl Local {
    /// What is chosen for a request of this path. As on a worker, a missing instance is made after the decision.
    pub fn choose(&mut self, path: &str) -> Choice {
        let choice = self.decider.choose(&mut facts(path));
        if self.decider.seat.needs_instance() {
            self.decider.seat.make_instance();
        }
        choice
    }

    /// The slot chosen, for a service that has endpoints.
    pub fn slot(&mut self, path: &str) -> u32 {
        match self.choose(path) {
            Choice::Endpoint(picked) => picked.endpoint.slot,
            other => panic!("expected an endpoint: {other:?}"),
        }
    }

    /// The slots chosen for so many requests.
    pub fn slots(&mut self, path: &str, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.slot(path)).collect()
    }

    pub fn stats(&self) -> StatsTotal {
        self.service.stats()
    }
}

/// The facts of a request of this path.
pub fn facts(path: &str) -> Facts {
    let head = http::Request::get(path).body(()).unwrap().into_parts().0;
    Facts::new(Box::new(head), IpAddr::V4(Ipv4Addr::LOCALHOST), None)
}
