//! What one endpoint's change costs the catalog, by the number of services and endpoints beside it, and what a complete
//! reading costs. Run with `cargo bench -p heddle --bench registry`.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heddle::config::checked::Layout;
use heddle::registry::apply::{Catalog, Content, Entry, Event, Step};
use heddle::registry::layout::decode;

const PREFIX: &[u8] = b"/services/";

/// A registration as etcd would deliver it, decoded.
fn entry(service: usize, endpoint: usize, weight: u32) -> Entry {
    let key = format!("/services/s{service}/{endpoint}").into_bytes();
    let host = format!("10.{}.{}.{}", service % 250, endpoint / 250, endpoint % 250);
    let value = format!(r#"{{"address":"{host}:80","weight":{weight},"metadata":{{"zone":"a"}}}}"#);
    let announced = decode(Layout::Heddle, PREFIX, &key, value.as_bytes()).expect("a good entry");
    Entry { key, order: 1, content: Content::Announced(announced.expect("no placeholder")) }
}

fn entries(services: usize, endpoints: usize) -> Vec<Entry> {
    (0..services).flat_map(|service| (0..endpoints).map(move |endpoint| entry(service, endpoint, 1))).collect()
}

fn catalog(services: usize, endpoints: usize) -> Catalog {
    let mut catalog = Catalog::default();
    catalog.apply(0, [Event::Reset(entries(services, endpoints))]);
    catalog
}

/// One endpoint's weight goes back and forth.
fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("registry/one-change");
    for (services, endpoints) in [(1, 10), (100, 10), (1_000, 10), (10_000, 10), (1, 1_000), (1, 10_000)] {
        let mut catalog = catalog(services, endpoints);
        let mut weight = 1;
        group.bench_function(BenchmarkId::from_parameter(format!("{services}-services-of-{endpoints}")), |bencher| {
            bencher.iter_batched(
                || {
                    weight = 3 - weight;
                    entry(0, 5, weight)
                },
                |entry| black_box(catalog.apply(0, [Event::Put(entry)])),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// From bytes to changes, all at once; then the same again, which changes nothing.
fn complete_reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("registry/complete-reading");
    group.sample_size(20);
    for (services, endpoints) in [(1_000, 1), (1_000, 10), (1, 10_000)] {
        let name = format!("{services}-services-of-{endpoints}");
        group.throughput(Throughput::Elements((services * endpoints) as u64));
        group.bench_function(BenchmarkId::new("first", &name), |bencher| {
            bencher.iter(|| black_box(catalog(services, endpoints)));
        });
        let mut known = catalog(services, endpoints);
        group.bench_function(BenchmarkId::new("again", &name), |bencher| {
            bencher.iter_batched(
                || entries(services, endpoints),
                |entries| assert!(known.apply(0, [Event::Reset(entries)]).is_empty()),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// What the second half of a state of rustc-hash 2 begins with: keys of 32 bytes that have it in their 17th to 24th have one
/// hash there, whatever the rest is.
const COLLIDES: u64 = 0x1319_8a2e_0370_7344;

/// Keys of one service as a stranger might write them.
fn keys(kind: &str, count: usize) -> Vec<Entry> {
    let of = |i: usize| {
        let mut key = b"/services/users/".to_vec();
        key.extend_from_slice(&COLLIDES.to_le_bytes());
        key.extend_from_slice(&(i as u64).to_be_bytes());
        let host = match kind {
            "same-address" => "10.0.0.1".to_owned(),
            _ => format!("10.{}.{}.{}", i / 62_500, i / 250 % 250, i % 250),
        };
        let mut entry = entry(0, 0, 1);
        entry.key = if kind == "colliding" { key } else { format!("/services/users/{i:016}").into_bytes() };
        if let Content::Announced(announced) = &mut entry.content {
            announced.service = "users".to_owned();
            announced.endpoints[0].address = format!("{host}:80");
        }
        entry
    };
    (0..count).map(of).collect()
}

/// Issue 10, 14: five times as many keys, colliding ones and such for one address cost at most twice as much each. In
/// slices, as the keeper applies them; from nothing to all of them, and to nothing again.
fn many_keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("registry/many-keys");
    group.sample_size(10);
    for (kind, count) in [
        ("plain", 20_000),
        ("plain", 100_000),
        ("colliding", 100_000),
        ("same-address", 20_000),
        ("same-address", 100_000),
    ] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new(kind, count), |bencher| {
            bencher.iter_batched(
                || (Catalog::default(), keys(kind, count)),
                |(mut catalog, entries)| {
                    for event in [Event::Reset(entries), Event::Reset(Vec::new())] {
                        let mut batch = catalog.begin(0, [event], 2_000);
                        while !matches!(black_box(catalog.step(&mut batch, 1_000)), Step::Done(_)) {}
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, one_change, complete_reading, many_keys);
criterion_main!(benches);
