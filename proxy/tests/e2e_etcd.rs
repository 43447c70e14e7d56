//! From a real etcd down to HTTP responses: who is sent requests after each kind of trouble, and that none fails.

#![cfg(test)]

#[path = "support/e2e.rs"]
mod e2e;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::Instant;

use e2e::{Answer, Client, Endpoint, Fleet, Process, Proxy, Traffic, Watcher, config, get, is_ready, wait_ready};
use etcd::{Cluster, Etcd, Relay, wait_until};

fn names() -> [Endpoint; 3] {
    ["a", "b", "c"].map(Endpoint::start)
}

#[test]
fn a_lease_brings_traffic_and_its_end_takes_it_away() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&config(&[&etcd.url()], ""));
    proxy.wait_connected();
    assert_eq!(get(proxy.address(), "users").status, 404, "no service of that name yet");
    let [a, b, c] = names();
    let lease = etcd.grant(600);
    etcd.put_leased("/services/users/a", &a.heddle(), &lease);
    wait_until("the service is known", || get(proxy.address(), "users").status == 200);
    let traffic = Traffic::start(proxy.address(), "users");
    traffic.wait_for(&[&a]);
    etcd.put("/services/users/b", &b.heddle());
    etcd.put_leased("/services/users/c", &c.heddle(), &lease);
    traffic.wait_for(&[&a, &b, &c]);

    let watcher = Watcher::start(etcd.url());
    etcd.ctl(&["lease", "revoke", &lease]);
    watcher.wait_deleted("/services/users/c");
    traffic.assert_leaves(&a);
    traffic.assert_leaves(&c);
    traffic.wait_for(&[&b]);
    traffic.finish();

    etcd.delete("/services/users/b");
    watcher.wait_deleted("/services/users/b");
    wait_until("nobody is left", || get(proxy.address(), "users").status == 503);
    let served = b.served();
    let Answer { status, body } = get(proxy.address(), "users.mesh");
    assert_eq!((status, body.as_str()), (503, "heddle: registry: no endpoint of users is eligible\n"));
    assert_eq!(b.served(), served);
}

/// An application that keeps its lease alive until it is killed.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().expect("a process of ours");
        self.0.wait().expect("its end");
    }
}

#[test]
fn an_application_that_dies_is_sent_nothing_once_its_lease_has_expired() {
    let etcd = Etcd::start();
    let [a, b, _] = names();
    let lease = etcd.grant(3);
    let holder =
        Holder(etcd.ctl_command(&["lease", "keep-alive", &lease]).stdout(Stdio::null()).spawn().expect("etcdctl"));
    etcd.put_leased("/kit/books/a", &a.go_kit(), &lease);
    etcd.put("/kit/books/b", &b.address.to_string());
    let proxy = Proxy::start(&config(&[&etcd.url()], ""));
    proxy.wait_connected();
    let watcher = Watcher::start(etcd.url());
    let traffic = Traffic::start(proxy.address(), "books");
    traffic.wait_for(&[&a, &b]);
    drop(holder);
    watcher.wait_deleted("/kit/books/a");
    traffic.assert_leaves(&a);
    traffic.wait_for(&[&b]);
    traffic.finish();
}

#[test]
fn traffic_goes_on_while_etcd_is_dead_and_its_return_brings_what_changed() {
    let mut etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    let [a, b, c] = names();
    etcd.put("/services/users/a", &a.heddle());
    etcd.put("/services/users/b", &b.heddle());
    let proxy = Proxy::start(&config(&[&relay.url()], ""));
    proxy.wait_connected();
    let traffic = Traffic::start(proxy.address(), "users");
    traffic.wait_for(&[&a, &b]);

    etcd.kill();
    proxy.wait_status("etcd is missed", |report| !report.sources[0].connected && report.sources[0].reconnects >= 3);
    traffic.wait_answers(100);
    traffic.wait_for(&[&a, &b]);

    relay.cut();
    etcd.restart();
    etcd.delete("/services/users/a");
    etcd.put("/services/users/c", &c.heddle());
    traffic.wait_for(&[&a, &b]);
    relay.open();
    traffic.wait_for(&[&b, &c]);
    traffic.assert_leaves(&a);
    traffic.finish();
}

#[test]
fn nothing_is_lost_to_a_compaction_while_the_watch_was_cut_off() {
    let etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    let [a, b, c] = names();
    etcd.put("/services/users/a", &a.heddle());
    let proxy = Proxy::start(&config(&[&relay.url()], ""));
    proxy.wait_connected();
    let traffic = Traffic::start(proxy.address(), "users");
    traffic.wait_for(&[&a]);
    relay.cut();
    proxy.wait_status("etcd is missed", |report| !report.sources[0].connected);
    etcd.put("/services/users/b", &b.heddle());
    etcd.delete("/services/users/a");
    etcd.put("/services/users/c", &c.heddle());
    etcd.compact();
    traffic.wait_for(&[&a]);
    relay.open();
    traffic.wait_for(&[&b, &c]);
    traffic.assert_leaves(&a);
    etcd.put("/services/users/a", &a.heddle());
    traffic.wait_for(&[&a, &b, &c]);
    traffic.finish();
}

#[test]
fn after_a_restore_from_an_older_backup_the_backup_is_what_counts() {
    let mut etcd = Etcd::start();
    let [a, b, c] = names();
    etcd.put("/services/users/a", &a.heddle());
    etcd.save("backup");
    let proxy = Proxy::start(&config(&[&etcd.url()], ""));
    proxy.wait_connected();
    let traffic = Traffic::start(proxy.address(), "users");
    traffic.wait_for(&[&a]);
    etcd.put("/services/users/b", &b.heddle());
    etcd.delete("/services/users/a");
    traffic.wait_for(&[&b]);
    let later = proxy.report().sources[0].revision;
    etcd.restore("backup");
    traffic.wait_for(&[&a]);
    traffic.assert_leaves(&b);
    // Its revision is one that was told before the restore, of another change.
    etcd.put("/services/users/c", &c.heddle());
    traffic.wait_for(&[&a, &c]);
    assert!(proxy.report().sources[0].revision <= later, "the revision fell");
    traffic.finish();
}

#[test]
fn a_member_without_quorum_is_left_for_one_with_it() {
    let cluster = Cluster::start();
    let urls: Vec<String> = cluster.members.iter().map(Etcd::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let [a, b, c] = names();
    cluster.members[1].put("/services/users/a", &a.heddle());
    let proxy = Proxy::start(&config(&urls, ""));
    proxy.wait_connected();
    assert_eq!(proxy.report().sources[0].member.as_deref(), Some(urls[0]));
    let traffic = Traffic::start(proxy.address(), "users");
    traffic.wait_for(&[&a]);
    cluster.isolate(0);
    let put = || cluster.members[1].try_ctl(&["put", "/services/users/b", &b.heddle()]).is_ok();
    wait_until("the others have a leader", put);
    traffic.wait_for(&[&a, &b]);
    cluster.members[2].delete("/services/users/a");
    traffic.wait_for(&[&b]);
    assert_ne!(proxy.report().sources[0].member.as_deref(), Some(urls[0]));
    cluster.heal();
    cluster.members[0].put("/services/users/c", &c.heddle());
    traffic.wait_for(&[&b, &c]);
    traffic.finish();
}

#[test]
fn a_proxy_that_restarts_while_etcd_is_down_serves_from_its_snapshot() {
    let mut etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    let [a, b, c] = names();
    etcd.put("/services/users/a", &a.heddle());
    etcd.put("/services/users/b", &b.heddle());
    let state = tempfile::tempdir().expect("a folder");
    let config = config(&[&relay.url()], &format!("state = {:?}", state.path()));
    let serves = |proxy: &Process| {
        wait_ready(proxy.admin);
        let traffic = Traffic::start(proxy.address, "users");
        traffic.wait_for(&[&a, &b]);
        traffic
    };
    let proxy = Process::start(&config);
    serves(&proxy).finish();
    let kept = |what: &Endpoint| {
        std::fs::read_to_string(state.path().join("registry.json"))
            .is_ok_and(|text| text.contains(&what.address.to_string()))
    };
    wait_until("the snapshot is on disk", || kept(&a) && kept(&b));
    drop(proxy);

    relay.cut();
    etcd.kill();
    let proxy = Process::start(&config);
    serves(&proxy).finish();
    // It stops in order without ever having heard of etcd, and the one after it still knows.
    proxy.terminate();
    let proxy = Process::start(&config);
    let traffic = serves(&proxy);

    etcd.restart();
    etcd.delete("/services/users/a");
    etcd.put("/services/users/c", &c.heddle());
    traffic.wait_for(&[&a, &b]);
    relay.open();
    traffic.wait_for(&[&b, &c]);
    traffic.assert_leaves(&a);
    wait_until("the snapshot is what etcd said", || !kept(&a) && kept(&b) && kept(&c));
    traffic.finish();
    proxy.terminate();
}

#[test]
fn a_proxy_without_snapshot_is_not_ready_before_etcd_has_answered() {
    let etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    relay.cut();
    let [a, ..] = names();
    etcd.put("/services/users/a", &a.heddle());
    let proxy = Process::start(&config(&[&relay.url()], ""));
    wait_until("etcd was asked", || relay.accepted() > 2);
    assert!(!is_ready(proxy.admin));
    assert_eq!(get(proxy.address, "users").status, 404);
    relay.open();
    wait_ready(proxy.admin);
    assert_eq!(get(proxy.address, "users"), Answer { status: 200, body: "a".to_owned() }, "ready means ready");
    proxy.terminate();
}

#[test]
fn ten_thousand_endpoints_and_a_thousand_services_are_served() {
    let etcd = Etcd::start();
    let fleet = Fleet::register(&etcd);
    let start = Instant::now();
    let proxy = Proxy::start(&config(&[&etcd.url()], ""));
    proxy.wait_status("the proxy is ready", |report| report.ready);
    let ready = start.elapsed();
    let mut client = Client::connect(proxy.address()).expect("a connection");
    let mut get = |host: &str| client.get(host).expect("a response");
    for i in [0, 499, 999] {
        assert_eq!(get(&format!("s{i}")), Answer { status: 200, body: fleet.of_service(i).to_string() });
    }
    assert_eq!(get("s1000").status, 404);
    let answers: BTreeSet<String> = (0..100)
        .map(|_| {
            let Answer { status, body } = get("many");
            assert_eq!(status, 200, "{body}");
            body
        })
        .collect();
    assert_eq!(answers.len(), 100, "one after the other, none of them twice");
    println!("start to ready: {ready:.1?}; to the answers of 4 services: {:.1?}", start.elapsed());
}
