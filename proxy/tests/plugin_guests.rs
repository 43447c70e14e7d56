//! Guests of every published version of the contract run: as core modules, and as finished components.

#![cfg(test)]

#[path = "support/plugins/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use heddle::plugin::{Instance, Origin};
use heddle::policy::{Kind, Outcome, Terms};
use heddle::server::decide::Choice;
use heddle::service::{Condition, Service};
use http::StatusCode;
use support::{Host, balancers, component, facts, guest, log, module, registered, wait_until};

const CORE_MODULE: &[u8] = include_bytes!("guests/v0.1/core-module.wasm");
const RETRY: &[u8] = include_bytes!("guests/v0.1/retry.wasm");
const BREAKER: &[u8] = include_bytes!("guests/v0.1/circuit-breaker.wasm");
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
    let Choice::Endpoint(picked) = worker.decider.choose(&mut named) else { panic!("an endpoint is there") };
    assert_eq!(picked.endpoint.slot, 2);
    let mut tried = facts("/");
    tried.tried = vec![0];
    let Choice::Endpoint(picked) = worker.decider.choose(&mut tried) else { panic!("an endpoint is there") };
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
    let Choice::Endpoint(picked) = host.worker("users").decider.choose(&mut named) else { panic!("it is there") };
    assert_eq!(picked.endpoint.slot, 1);

    let host = Host::new("", &services.replace("x-to", ""));
    host.register("users", 3);
    let refused = host.load(CORE_MODULE).unwrap_err().to_string();
    assert!(refused.contains("header: expected a name") && refused.contains(r#"{"header":""}"#), "{refused}");
}

/// Picks slot 1 where the request has a `Cookie` that the guest may read, else slot 0.
const BY_COOKIE: &str =
    "(i32.store (i32.const 200) (i32.const 0x6b6f6f43)) (i32.store16 (i32.const 204) (i32.const 0x6569))
    (call $header (i32.const 200) (i32.const 6) (i32.const 48))
    (return (call $answer (i32.load8_u (i32.const 48))))";

/// Issue 10, 9: a guest reads credentials only where its own settings name them.
#[test]
fn credentials_are_absent_unless_the_settings_name_them() {
    for (settings, slot) in [
        ("\"test\"", 0),
        ("{ plugin = \"test\", by = \"header:x-user\" }", 0),
        ("{ plugin = \"test\", by = \"cookie:session\" }", 1),
        ("{ plugin = \"test\", header = \"cookie\" }", 1),
        ("{ plugin = \"test\", expose_headers = [\"Cookie\"] }", 1),
        ("{ plugin = \"test\", expose_headers = [\"authorization\"] }", 0),
    ] {
        let host = Host::new("", &format!("[service.users]\nbalancer = {settings}\n"));
        host.register("users", 3);
        host.load(&guest(&[("pick", BY_COOKIE)])).unwrap();
        let mut facts = facts("/");
        facts.head.headers.insert("cookie", "session=1".parse().unwrap());
        let Choice::Endpoint(picked) = host.worker("users").decider.choose(&mut facts) else { panic!("it is there") };
        assert_eq!(picked.endpoint.slot, slot, "{settings}");
    }
}

/// The list of exceptions is for the proxy: a built-in policy that knows all of its settings takes it.
#[test]
fn exposed_headers_are_no_setting_of_the_guest() {
    let services = "[service.users]\nbalancer = { plugin = \"url-hash\", expose_headers = [\"authorization\"] }\n";
    let host = Host::new("", services);
    host.plugins.load_builtin().unwrap();
    host.register("users", 3);
    let mut worker = host.worker("users");
    worker.slots("/", 3);
    assert_eq!(worker.stats().fallbacks, 0);
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

fn response(status: u16) -> Outcome {
    let status = StatusCode::from_u16(status).ok();
    Outcome { status, sent: true, replayable: true, ..Outcome::of(Kind::Response, Duration::from_millis(1)) }
}

#[test]
fn a_retry_policy_decides_by_the_request_and_its_outcome() {
    let host = Host::new("", "[service.users]\nretry = \"test\"\n");
    host.register("users", 3);
    let generation = host.load(RETRY).unwrap();
    let service = host.service("users");
    let make = |config| Instance::new(&generation, &service.fleet, config, 7, &service.snapshot());
    assert_eq!(make("{}").unwrap().terms(), Terms::default());
    let mut retry = make(r#"{"timeout":"2s","per_try_timeout":"1s","hedge":"p95","backoff":"8ms"}"#).unwrap();
    let (timeout, try_timeout) = (Some(Duration::from_secs(2)), Some(Duration::from_secs(1)));
    assert_eq!(retry.terms(), Terms { timeout, try_timeout, hedging: Some(950) });
    let fault = make(r#"{"attempts":17}"#).err().expect("refused");
    assert!(fault.cause.contains("attempts = 17: expected 1 to 16"), "{}", fault.cause);

    let mut decide = |method: &str, attempt: u32, outcome: Outcome| {
        let mut facts = facts("/");
        facts.head.method = method.parse().unwrap();
        facts.attempt = attempt;
        retry.decide(&mut facts, &outcome).unwrap()
    };
    assert!(decide("GET", 1, response(503)).is_some_and(|delay| delay <= 8));
    assert!(decide("GET", 2, response(503)).is_some_and(|delay| delay <= 16));
    assert_eq!(decide("GET", 3, response(503)), None, "the last attempt");
    assert_eq!(decide("GET", 1, response(500)), None);
    assert_eq!(decide("POST", 1, response(503)), None, "it may have been processed");
    let refused = Outcome { replayable: true, ..Outcome::of(Kind::Refused, Duration::ZERO) };
    assert!(decide("POST", 1, refused).is_some());
    assert_eq!(decide("GET", 1, Outcome { replayable: false, ..refused }), None);
    let unavailable = Outcome { grpc_status: Some(14), ..response(200) };
    assert!(decide("PUT", 1, unavailable).is_some());
    assert_eq!(decide("PUT", 1, response(200)), None);
    let later = |millis| Outcome { retry_after: Some(Duration::from_millis(millis)), ..response(503) };
    assert_eq!((decide("GET", 1, later(500)), decide("GET", 1, later(1500))), (Some(500), None));
}

/// A circuit breaker, and attempts that it is told of as a worker does.
struct Breaker {
    service: Arc<Service>,
    instance: Instance,
}

impl Breaker {
    fn new(endpoints: usize, config: &str) -> Self {
        let host = Host::new("", "[service.users]\nbreaker = \"test\"\n");
        host.register("users", endpoints);
        let generation = host.load(BREAKER).unwrap();
        let service = host.service("users");
        let instance = Instance::new(&generation, &service.fleet, config, 7, &service.snapshot()).unwrap();
        Self { service, instance }
    }

    /// Whether it wants to judge the attempt.
    fn attempt(&mut self, slot: u32, outcome: Outcome) -> bool {
        let fleet = &self.service.fleet;
        let snapshot = fleet.snapshot();
        self.instance.update(&snapshot).unwrap();
        let endpoint = snapshot.endpoint(slot).unwrap();
        let judges =
            fleet.record(endpoint, &outcome, fleet.seen(endpoint), false) && self.instance.judges(&endpoint.health);
        if judges {
            self.instance.judge(&mut facts("/"), slot, &outcome).unwrap();
        }
        judges
    }

    fn condition(&self, slot: u32) -> Condition {
        self.service.snapshot().endpoint(slot).unwrap().health.condition()
    }

    /// Lets seconds pass until an endpoint is in this condition.
    fn tick_until(&mut self, slot: u32, condition: Condition) {
        wait_until("a tick changes it", || {
            self.instance.tick().unwrap();
            self.condition(slot) == condition
        });
    }
}

#[test]
fn a_circuit_breaker_ejects_and_restores_by_failures_in_a_row() {
    let mut breaker = Breaker::new(3, r#"{"consecutive_failures":3,"ejection_time":"1ms"}"#);
    for outcome in [response(500), response(500), response(200), response(500), response(500)] {
        breaker.attempt(1, outcome);
    }
    assert_eq!(breaker.condition(1), Condition::InUse, "never three in a row");
    breaker.attempt(1, response(500));
    assert_eq!((breaker.condition(1), breaker.service.fleet.ejections()), (Condition::Out, 1));
    breaker.tick_until(1, Condition::HalfOpen);
    breaker.attempt(1, response(500));
    assert_eq!((breaker.condition(1), breaker.service.fleet.ejections()), (Condition::Out, 2));
    breaker.tick_until(1, Condition::HalfOpen);
    breaker.attempt(1, response(200));
    assert_eq!((breaker.condition(1), breaker.condition(0)), (Condition::InUse, Condition::InUse));
}

#[test]
fn a_circuit_breaker_is_not_asked_about_what_is_usual() {
    let refused = Outcome::of(Kind::Refused, Duration::ZERO);
    let of_endpoints = r#"{"consecutive_failures":4,"consecutive_connect_failures":2,"service_failures":0}"#;
    let mut breaker = Breaker::new(10, of_endpoints);
    let judged = [200, 500, 500, 500, 500].map(|status| breaker.attempt(1, response(status)));
    assert_eq!((judged, breaker.condition(1)), ([false, false, false, false, true], Condition::Out));
    assert_eq!([refused; 2].map(|outcome| breaker.attempt(2, outcome)), [false, true]);
    assert!(breaker.attempt(1, response(200)), "one that is out");

    let of_service = r#"{"consecutive_failures":0,"consecutive_connect_failures":0,"service_failures":3}"#;
    let mut breaker = Breaker::new(10, of_service);
    let judged = [(0, 200), (1, 500), (2, 500), (3, 500), (3, 200), (1, 500)];
    let judged = judged.map(|(slot, status)| breaker.attempt(slot, response(status)));
    assert_eq!(judged, [false, false, false, true, false, false]);
}

#[test]
fn a_circuit_breaker_compares_success_rates_in_its_ticks() {
    let config = r#"{"consecutive_failures":0,"minimum_requests":20,"interval":"60s","ejection_time":"1h","max_ejection_time":"1h"}"#;
    let mut breaker = Breaker::new(5, config);
    for number in 0..20 {
        for slot in 0..5 {
            breaker.attempt(slot, response(if slot == 3 && number % 2 == 0 { 500 } else { 200 }));
        }
    }
    assert_eq!(breaker.condition(3), Condition::InUse);
    breaker.instance.tick().unwrap();
    let conditions: Vec<Condition> = (0..5).map(|slot| breaker.condition(slot)).collect();
    let in_use = Condition::InUse;
    assert_eq!(conditions, [in_use, in_use, in_use, Condition::Out, in_use]);
}

#[test]
fn a_circuit_breaker_opens_and_closes_a_service() {
    let mut breaker = Breaker::new(1, r#"{"service_failures":3,"open_time":"1ms","open_probes":1}"#);
    for _ in 0..3 {
        breaker.attempt(0, response(500));
    }
    let fleet = breaker.service.fleet.clone();
    assert_eq!((fleet.health.condition(), fleet.openings()), (Condition::Out, 1));
    let mut probe = None;
    wait_until("a probe is let through", || {
        probe = fleet.enter().ok();
        probe.is_some()
    });
    assert_eq!(fleet.health.condition(), Condition::HalfOpen);
    breaker.attempt(0, response(200));
    assert_eq!(fleet.health.condition(), Condition::InUse);
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
