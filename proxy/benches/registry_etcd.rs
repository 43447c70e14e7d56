//! How soon what happens in a real etcd is in force: the times behind the registry's promises. Needs `etcd` and
//! `etcdctl`. Run with `cargo bench -p heddle --bench registry_etcd`.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/etcd.rs"]
mod etcd;
#[path = "../tests/registry_driver/mod.rs"]
mod registry_driver;

use std::time::{Duration, Instant};

use etcd::{Etcd, Relay};
use etcd_client::{Client, Txn, TxnOp};
use heddle::config::checked::{self, EtcdWatch, Layout};
use registry_driver::Driver;

const ROUNDS: usize = 200;

fn registry(member: String) -> checked::Registry {
    let etcd = checked::Etcd {
        members: vec![member],
        login: None,
        tls: None,
        watches: vec![EtcdWatch { prefix: b"/services/".to_vec(), layout: Layout::Heddle }],
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        liveness: Duration::from_secs(15),
        backoff: Duration::from_secs(1),
        page: 1_000,
        largest: 64 << 20,
        rules: checked::SourceRules::default(),
        limits: checked::RegistryLimits::default(),
    };
    checked::Registry { etcd: Some(etcd), ..checked::Registry::default() }
}

fn value(i: usize) -> String {
    format!(r#"{{"address":"10.{}.{}.{}:80","metadata":{{"zone":"a"}}}}"#, i / 62_500, i / 250 % 250, i % 250)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: median {median:.1?}, longest {longest:.1?} of {}", times.len());
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let mut etcd = Etcd::start();
    let mut client = Client::connect([etcd.url()], None).await.expect("a client");
    let many = (0..10_000).map(|i| ("many".to_owned(), i)).chain((0..1_000).map(|i| (format!("s{i}"), i)));
    let puts: Vec<_> =
        many.map(|(service, i)| TxnOp::put(format!("/services/{service}/{i}"), value(i), None)).collect();
    for chunk in puts.chunks(2_000) {
        client.txn(Txn::new().and_then(chunk)).await.expect("a transaction");
    }

    let mut starts = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        let driver = Driver::start(&registry(etcd.url()), None);
        driver.wait("all are known", |told| told.services.len() == 1_001);
        starts.push(start.elapsed());
    }
    report("start to ready, 10,000 endpoints of one service and 1,000 services", starts);

    let driver = Driver::start(&registry(etcd.url()), None);
    driver.wait_status("etcd is followed", |report| report.sources[0].connected);
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        client.put("/services/one/1", value(1), None).await.expect("a put");
        driver.wait_for("one", &["10.0.0.1:80"]);
        joins.push(start.elapsed());
        let start = Instant::now();
        client.delete("/services/one/1", None).await.expect("a deletion");
        driver.wait_for("one", &[]);
        leaves.push(start.elapsed());
    }
    report("put to joined, etcd's own commit included", joins);
    report("delete to left, etcd's own commit included", leaves);

    let relay = Relay::start(etcd.port());
    let driver = Driver::start(&registry(relay.url()), None);
    driver.wait_status("etcd is followed", |report| report.sources[0].connected);
    let mut returns = Vec::new();
    for round in 0..10 {
        etcd.kill();
        // Long enough for the wait between attempts to have grown to its longest.
        let before = driver.report().sources[0].reconnects;
        driver.wait_status("several attempts failed", |report| report.sources[0].reconnects >= before + 7);
        relay.cut();
        etcd.restart();
        if round % 2 == 0 {
            etcd.put("/services/one/1", &value(1))
        } else {
            etcd.delete("/services/one/1")
        }
        let start = Instant::now();
        relay.open();
        driver.wait_for("one", if round % 2 == 0 { &["10.0.0.1:80"] } else { &[] });
        returns.push(start.elapsed());
    }
    report("etcd's return to its change in force", returns);
}
