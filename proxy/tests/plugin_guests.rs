//! Guests of every published version of the contract run: as core modules, and as finished components.

#![cfg(test)]

#[path = "support/plugins/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

use heddle::plugin::{Instance, Origin};
use heddle::server::decide::Choice;
use support::{Host, balancers, component, facts, guest, log, module, registered};

const CORE_MODULE: &[u8] = include_bytes!("guests/v0.1/core-module.wasm");
const COMPONENT: &[u8] = include_bytes!("guests/v0.1/component.wasm");

/// The first 8 bytes of a core module.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

#[test]
fn a_core_module_is_taken_as_it_is() {
    assert!(CORE_MODULE.starts_with(MODULE));
    let log = log();
    let host = Host::with_endpoints(3);
    host.load(CORE_MODULE).unwrap();
    let mut worker = host.worker("users");
    let busy = worker.service.snapshot().endpoint(0).unwrap().load.begin();
    assert_eq!(worker.slots("/", 2), [1, 1], "the least loaded");
    drop(busy);
    assert_eq!(worker.slot("/log"), 0);
    assert_eq!(log.lines(&["Some(\"users\") Some(\"127.0.0.1\") at ", "INFO", "policy=test"]).len(), 1);
    let mut named = facts("/");
    named.head.headers.insert("x-endpoint", "10.0.0.2:80".parse().unwrap());
    let Choice::Endpoint(picked) = worker.decider.choose(&mut named, None) else { panic!("an endpoint is there") };
    assert_eq!(picked.endpoint.slot, 2);
    let mut tried = facts("/");
    tried.tried = vec![0];
    let Choice::Endpoint(picked) = worker.decider.choose(&mut tried, None) else { panic!("an endpoint is there") };
    assert_eq!(picked.endpoint.slot, 1);
    host.change("users", &[registered(0).id], vec![]);
    assert_eq!(worker.slot("/"), 1);
    assert_eq!((worker.stats().fallbacks, worker.stats().asked_again), (0, 0));
}

#[test]
fn a_core_module_takes_or_refuses_its_configuration() {
    let services = "[service.users]\nbalancer = { plugin = \"test\", header = \"x-to\" }\n";
    let host = Host::new("", services);
    host.register("users", 3);
    host.load(CORE_MODULE).unwrap();
    let mut named = facts("/");
    named.head.headers.insert("x-to", "10.0.0.1:80".parse().unwrap());
    let Choice::Endpoint(picked) = host.worker("users").decider.choose(&mut named, None) else { panic!("it is there") };
    assert_eq!(picked.endpoint.slot, 1);

    let host = Host::new("", &services.replace("x-to", ""));
    host.register("users", 3);
    let refused = host.load(CORE_MODULE).unwrap_err().to_string();
    assert!(refused.contains("header: expected a name") && refused.contains(r#"{"header":""}"#), "{refused}");
}

#[test]
fn a_finished_component_is_taken() {
    assert!(!COMPONENT.starts_with(MODULE));
    let host = Host::with_endpoints(3);
    let generation = host.load(COMPONENT).unwrap();
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/a?b", 4), [0, 1, 2, 0]);
    host.register("users", 5);
    assert_eq!(worker.slots("/", 3), [1, 2, 3]);
    assert_eq!((worker.stats().fallbacks, worker.stats().decisions), (0, 7));
    // The same without a worker around it.
    let service = host.service("users");
    let mut instance = Instance::new(&generation, &service.fleet, "{}", 0, &service.snapshot()).unwrap();
    assert_eq!(instance.pick(&mut facts("/")).unwrap(), Some(0));
}

#[test]
fn a_module_and_its_component_are_the_same_policy() {
    let host = Host::with_endpoints(3);
    let wrapped = component(&guest(&[]));
    host.load(&wrapped).unwrap();
    assert_eq!(host.worker("users").slots("/", 3), [0, 1, 2]);
}

#[test]
fn every_built_in_balancer_is_in_force_under_its_name() {
    let names = balancers();
    let expected = [
        "ip-hash",
        "leader",
        "least-connections",
        "maglev",
        "peak-ewma",
        "random",
        "round-robin",
        "url-hash",
        "weighted-random",
        "weighted-round-robin",
    ];
    assert_eq!(names, expected);
    let services: String = names.iter().map(|name| format!("[service.{name}]\nbalancer = \"{name}\"\n")).collect();
    let host = Host::new("", &services);
    host.plugins.load_builtin().unwrap();
    for name in names {
        assert_eq!(host.plugin(name).current().unwrap().origin, Origin::BuiltIn);
        host.register(name, 3);
        let mut worker = host.worker(name);
        assert!(worker.slots("/", 10).iter().all(|slot| *slot < 3), "{name}");
        assert_eq!((worker.stats().decisions, worker.stats().fallbacks), (10, 0), "{name}");
    }
}

/// Not a test: makes `component.wasm` from `component.wat`.
#[test]
#[ignore = "makes a file that stays as it is"]
fn make_the_component() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/v0.1");
    let text = fs::read_to_string(folder.join("component.wat")).unwrap();
    fs::write(folder.join("component.wasm"), component(&module(&text, "balancer"))).unwrap();
}
