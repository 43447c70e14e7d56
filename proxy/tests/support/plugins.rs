//! Guests for tests, and plugins and services without a proxy around them.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use heddle::config::checked::Config;
use heddle::plugin::{Engine, Generation, LoadError, Origin, Plugin, Plugins};
use heddle::policy::Facts;
use heddle::registry::{Change, Registered};
use heddle::server::decide::{Choice, Decider};
use heddle::service::{Directory, Service, StatsTotal};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// How long a test waits for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `holds` does.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        #[allow(clippy::disallowed_methods, reason = "polling")]
        thread::sleep(Duration::from_millis(5));
    }
}

/// What a guest does before what it should do, as text of WebAssembly.
pub mod instead {
    /// Traps.
    pub const TRAP: &str = "(unreachable)";
    /// Loops for ever.
    pub const LOOP: &str = "(loop $ever (br $ever))";
    /// Allocates until it gets no more, as an allocator would, and then gives up.
    pub const ALLOCATE: &str =
        "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)";
    /// Picks a slot that nobody has.
    pub const NONSENSE: &str = "(return (call $answer (i32.const -7)))";
    /// Picks no slot.
    pub const DECLINE: &str = "(return (i32.const 0))";
    /// Refuses its configuration.
    pub const REFUSE: &str = "(i32.store8 (i32.const 32) (i32.const 1)) (i32.store (i32.const 36) (i32.const 64)) \
                              (i32.store (i32.const 40) (i32.const 28)) (return (i32.const 32))";
    /// Answers a refusal as long as its memory.
    pub const REFUSE_AT_LENGTH: &str = "(drop (memory.grow (i32.const 31))) (i32.store8 (i32.const 32) (i32.const 1)) \
         (i32.store (i32.const 36) (i32.const 64)) (i32.store (i32.const 40) (i32.const 2000000)) \
         (return (i32.const 32))";
}

/// The same only for requests whose path begins with `/` and this letter: such a guest passes its probe.
pub fn on_path(letter: char, what: &str) -> String {
    format!("(if (call $on (i32.const {})) (then {what}))", u32::from(letter))
}

/// The same only in an `update` that adds more endpoints than the probe does.
pub fn on_many(what: &str) -> String {
    format!("(if (i32.gt_u (local.get $additions) (i32.const 3)) (then {what}))")
}

/// A guest that rotates, but for what stands at the marks: a core module as a compiler makes it.
pub fn guest(marks: &[(&str, &str)]) -> Vec<u8> {
    let mut text = include_str!("../guests/rotation.wat").to_owned();
    for (mark, what) in marks {
        let mark = format!("(;{mark};)");
        assert!(text.contains(&mark), "rotation.wat has no mark {mark}");
        text = text.replace(&mark, what);
    }
    module(&text, "balancer")
}

/// A core module with the description of a world of the contract.
pub fn module(text: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/wit")).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

/// The component of a core module.
pub fn component(module: &[u8]) -> Vec<u8> {
    ComponentEncoder::default().module(module).unwrap().validate(true).encode().unwrap()
}

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
        let plugins = Arc::new(Plugins::new(Engine::new(config.plugins).unwrap()));
        let directory = {
            let plugins = plugins.clone();
            Arc::new(Directory::new(config.services, move |policy| plugins.require(policy)))
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
        self.directory.apply(vec![Change { service: service.into(), removed: removed.to_vec(), added }]);
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
        Local { decider: Decider::new(service.clone(), stats, 7), service }
    }
}

/// Endpoint number `n`.
pub fn registered(n: usize) -> Registered {
    let address = format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255);
    Registered { id: format!("{n}#{address}"), address, weight: 1, order: n as u64, metadata: Vec::new() }
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
        if self.decider.needs_instance() {
            self.decider.make_instance();
        }
        choice
    }

    /// The slot chosen, for a service that has endpoints.
    pub fn slot(&mut self, path: &str) -> u32 {
        match self.choose(path) {
            Choice::Endpoint(endpoint) => endpoint.slot,
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
    Facts::new(head, IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// All that this process logs from `info` on, as text.
pub fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let writer = lines.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || Writer(writer.clone())).init();
        Log(lines)
    })
}

pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The lines that have all of these parts.
    pub fn lines(&self, parts: &[&str]) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
