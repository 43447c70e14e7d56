//! One decision of each built-in balancer and of the breaker, through Wasm, with as many endpoints as services have; and
//! what it costs to tell a guest of its endpoints.
//!
//! Bounds that must hold: round robin 0.3 us; least connections over 1,000 endpoints 2 us; a breaker's verdict 0.25 us; a
//! change 100 ms.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/plugins/host.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod host;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use heddle::plugin::Instance;
use heddle::policy::{Kind, Outcome};
use host::{Host, balancers, facts, registered};
use http::StatusCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn host() -> Host {
    let services: String =
        balancers().iter().map(|name| format!("[service.{name}]\nbalancer = \"{name}\"\n")).collect();
    let host = Host::new("", &services);
    host.plugins.load_builtin().unwrap();
    host
}

fn instance(host: &Host, name: &str) -> Instance {
    let service = host.service(name);
    let generation = service.balancer.current().unwrap();
    Instance::new(&generation, &service.fleet, "{}", 1, &service.snapshot()).unwrap()
}

/// What the guest and the way to it and back cost.
fn decision(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    for endpoints in [3, 100, 1_000] {
        let host = host();
        for name in balancers() {
            host.register(name, endpoints);
            let mut instance = instance(&host, name);
            let mut facts = facts("/users/1?fields=name");
            group.bench_function(BenchmarkId::new(name, endpoints), |bencher| {
                bencher.iter(|| instance.pick(black_box(&mut facts)).unwrap());
            });
        }
    }
    group.finish();
}

/// Least connections where no endpoint is idle, so that each has to be looked at: with loads that differ, and with the
/// same load everywhere, of whom one has to be drawn.
fn decision_under_load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision under load");
    let host = host();
    host.register("least-connections", 1_000);
    let snapshot = host.service("least-connections").snapshot();
    let mut instance = instance(&host, "least-connections");
    let mut facts = facts("/users/1?fields=name");
    let mut under_way: Vec<_> = snapshot.endpoints().map(|endpoint| endpoint.load.begin()).collect();
    let mut measure = |what| {
        group.bench_function(BenchmarkId::new("least-connections/1000", what), |bencher| {
            bencher.iter(|| instance.pick(black_box(&mut facts)).unwrap());
        });
    };
    measure("equal");
    for endpoint in snapshot.endpoints() {
        under_way.extend((0..endpoint.slot * 7 % 11).map(|_| endpoint.load.begin()));
    }
    measure("unequal");
    group.finish();
}

/// Maglev where load is bounded, so that what is under way everywhere has to be added up.
fn decision_with_bounded_load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision with bounded load");
    for endpoints in [3, 1_000] {
        let host = host();
        host.register("maglev", endpoints);
        let service = host.service("maglev");
        let generation = service.balancer.current().unwrap();
        let config = r#"{"bounded_load": 1.25}"#;
        let mut instance = Instance::new(&generation, &service.fleet, config, 1, &service.snapshot()).unwrap();
        let mut facts = facts("/users/1?fields=name");
        group.bench_function(BenchmarkId::new("maglev", endpoints), |bencher| {
            bencher.iter(|| instance.pick(black_box(&mut facts)).unwrap());
        });
    }
    group.finish();
}

/// The whole decision as the path of a request makes it.
fn choice(criterion: &mut Criterion) {
    let host = host();
    host.register("round-robin", 3);
    let mut worker = host.worker("round-robin");
    let mut facts = facts("/users/1?fields=name");
    criterion.bench_function("choice/round-robin/3", |bencher| {
        bencher.iter(|| worker.decider.choose(black_box(&mut facts)));
    });
}

/// What the breaker thinks of an attempt: of a success at an endpoint that is well, of a first failure, of one more in a row
/// that is not enough, and of one at an endpoint that has been ejected for too many.
fn verdict(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verdict");
    let host = Host::new("", "[service.users]\nbreaker = \"circuit-breaker\"\n");
    host.plugins.load_builtin().unwrap();
    host.register("users", 10);
    let fleet = host.service("users").fleet.clone();
    let generation = host.plugin("circuit-breaker").current().unwrap();
    let mut breaker = Instance::new(&generation, &fleet, "{}", 1, &fleet.snapshot()).unwrap();
    let mut facts = facts("/users/1?fields=name");
    let outcome = |status| Outcome {
        status: StatusCode::from_u16(status).ok(),
        ..Outcome::of(Kind::Response, Duration::from_millis(1))
    };
    let mut measure = |what, status, times| {
        let outcome = outcome(status);
        let snapshot = fleet.snapshot();
        let endpoint = snapshot.endpoint(0).unwrap();
        let health = &endpoint.health;
        for _ in 0..times {
            fleet.record(endpoint, &outcome, fleet.seen(endpoint), false);
        }
        group.bench_function(BenchmarkId::new("circuit-breaker/10", what), |bencher| {
            bencher.iter(|| {
                if breaker.judges(black_box(health)) {
                    breaker.judge(black_box(&mut facts), 0, black_box(&outcome)).unwrap();
                }
            });
        });
    };
    measure("success", 200, 1);
    measure("failure", 500, 1);
    measure("fourth failure", 500, 3);
    measure("fifth failure", 500, 1);
    group.finish();
}

/// A guest made and told of 10,000 endpoints; and told that one is gone and back.
fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    group.sample_size(20);
    let host = host();
    for name in balancers() {
        host.register(name, 10_000);
        group.bench_function(BenchmarkId::new("instance", name), |bencher| {
            bencher.iter(|| instance(&host, name));
        });
        let with = host.service(name).snapshot();
        host.change(name, &[registered(5_000).id], Vec::new());
        let without = host.service(name).snapshot();
        let mut instance = instance(&host, name);
        group.bench_function(BenchmarkId::new("two updates", name), |bencher| {
            bencher.iter(|| {
                instance.update(&with).unwrap();
                instance.update(&without).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decision, decision_under_load, decision_with_bounded_load, verdict, choice, change);
criterion_main!(benches);
