//! How soon what happens in a real etcd decides where requests go, and how soon a proxy is ready: the times behind the
//! project's promises, from etcd down to HTTP responses. Needs `etcd` and `etcdctl`. Run with
//! `cargo bench -p heddle --bench e2e_etcd`.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

#[path = "../tests/support/e2e.rs"]
mod e2e;
#[path = "../tests/support/etcd.rs"]
mod etcd;
#[path = "../tests/support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use e2e::{Client, Endpoint, Fleet, Process, Proxy, config, put_all, wait_ready};
use etcd::{Etcd, Relay};
use tokio::runtime::{Builder, Runtime};

const ROUNDS: usize = 100;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: median {median:.1?}, longest {longest:.1?} of {}", times.len());
}

fn main() {
    let etcd = Etcd::start();
    let fleet = Fleet::register(&etcd);
    // Out of use, but there.
    let idle = |i| format!(r#"{{"address":"127.3.0.1:{}","weight":0}}"#, i + 1);
    put_all(&etcd, (0..10_000).map(|i| (format!("/services/wide/{i}"), idle(i))));
    println!("with 10,000 endpoints of one service and 1,000 services of one endpoint");
    start(&etcd, &fleet);
    for service in ["few", "wide"] {
        events(&etcd, service);
    }
    let etcd = etcd_returns(etcd);
    restart(etcd, &fleet);
}

/// From the start of a proxy to ready, and to the first response.
fn start(etcd: &Etcd, fleet: &Fleet) {
    let (mut ready, mut answered) = (Vec::new(), Vec::new());
    for i in 0..10 {
        let start = Instant::now();
        let proxy = Proxy::start(&config(&[&etcd.url()], ""));
        proxy.wait_status("the proxy is ready", |report| report.ready);
        ready.push(start.elapsed());
        let mut client = Client::connect(proxy.address()).expect("a connection");
        let answer = client.get(&format!("s{i}")).expect("a response");
        assert_eq!(answer.body, fleet.of_service(i).to_string());
        answered.push(start.elapsed());
    }
    report("start to ready", ready);
    report("start to the first response", answered);
}

/// A client of etcd that costs no process for each change.
struct Writer {
    runtime: Runtime,
    client: etcd_client::Client,
}

impl Writer {
    fn connect(etcd: &Etcd) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = runtime.block_on(etcd_client::Client::connect([etcd.url()], None)).expect("a client");
        Self { runtime, client }
    }

    fn put(&mut self, key: &str, value: &str) {
        self.runtime.block_on(self.client.put(key, value, None)).expect("a put");
    }

    fn delete(&mut self, key: &str) {
        self.runtime.block_on(self.client.delete(key, None)).expect("a deletion");
    }
}

/// From etcd's answer to a change until requests go by it. Of the service, only what joins here is in use.
fn events(etcd: &Etcd, service: &str) {
    let [new, other] = ["new", "other"].map(Endpoint::start);
    let mut writer = Writer::connect(etcd);
    writer.put(&format!("/services/{service}/other"), &other.heddle());
    let key = format!("/services/{service}/new");
    let proxy = Proxy::start(&config(&[&etcd.url()], ""));
    proxy.wait_connected();
    let mut client = Client::connect(proxy.address()).expect("a connection");
    let mut goes_to_new = || client.get(service).expect("a response").body == "new";
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        writer.put(&key, &new.heddle());
        let changed = Instant::now();
        while !goes_to_new() {}
        joins.push(changed.elapsed());
        writer.delete(&key);
        let changed = Instant::now();
        let (mut last, mut others) = (Duration::ZERO, 0);
        while others < 50 {
            others += 1;
            if goes_to_new() {
                (last, others) = (changed.elapsed(), 0);
            }
        }
        leaves.push(last);
    }
    report(&format!("put to the first request, {service}"), joins);
    report(&format!("delete to the last request, {service}"), leaves);
}

/// From etcd's return, with a change, until requests go by it, for several longest waits between attempts.
fn etcd_returns(mut etcd: Etcd) -> Etcd {
    let names = ["even", "odd"];
    let endpoints = names.map(Endpoint::start);
    etcd.put("/services/one/1", &endpoints[1].heddle());
    for backoff in ["1s", "500ms"] {
        let relay = Relay::start(etcd.port());
        let proxy = Proxy::start_with(&config(&[&relay.url()], ""), &[("HEDDLE__REGISTRY__ETCD__BACKOFF", backoff)]);
        proxy.wait_connected();
        let mut client = Client::connect(proxy.address()).expect("a connection");
        let mut times = Vec::new();
        for round in 0..20 {
            etcd.kill();
            // Long enough for the wait between attempts to have grown to its longest.
            let before = proxy.report().sources[0].reconnects;
            proxy.wait_status("several attempts failed", |report| report.sources[0].reconnects >= before + 7);
            relay.cut();
            etcd.restart();
            etcd.put("/services/one/1", &endpoints[round % 2].heddle());
            let start = Instant::now();
            relay.open();
            while client.get("one").expect("a response").body != names[round % 2] {}
            times.push(start.elapsed());
        }
        report(&format!("etcd's return to its change in force, backoff {backoff}"), times);
    }
    etcd
}

/// From the start of the binary while etcd is down to ready, and to the first response.
fn restart(mut etcd: Etcd, fleet: &Fleet) {
    let state = tempfile::tempdir().expect("a folder");
    let config = config(&[&etcd.url()], &format!("state = {:?}", state.path()));
    let proxy = Process::start(&config);
    wait_ready(proxy.admin);
    // The snapshot is written at the latest when it stops.
    proxy.terminate();
    etcd.kill();
    let (mut ready, mut answered) = (Vec::new(), Vec::new());
    for i in 0..10 {
        let start = Instant::now();
        let proxy = Process::start(&config);
        wait_ready(proxy.admin);
        ready.push(start.elapsed());
        let mut client = Client::connect(proxy.address).expect("a connection");
        let answer = client.get(&format!("s{i}")).expect("a response");
        assert_eq!(answer.body, fleet.of_service(i).to_string());
        answered.push(start.elapsed());
    }
    report("restart of the process without etcd to ready", ready);
    report("restart of the process without etcd to the first response", answered);
}
