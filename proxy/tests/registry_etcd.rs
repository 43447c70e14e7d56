//! The etcd source against a real etcd: what is in force after each kind of trouble.

#![cfg(test)]

#[path = "support/etcd.rs"]
mod etcd;
mod registry_driver;

use std::sync::Arc;
use std::time::Duration;

use etcd::{Cluster, Etcd, GrpcProxy, Options, Relay, Tls, wait_until};
use heddle::config::checked::{self, EtcdLogin, EtcdTls, EtcdWatch, Layout, Password};
use registry_driver::Driver;

const A: &str = r#"{"address":"10.0.0.1:80"}"#;
const B: &str = r#"{"address":"10.0.0.2:80","weight":2}"#;
const C: &str = r#"{"address":"10.0.0.3:80"}"#;

fn registry(members: &[&str]) -> checked::Registry {
    let etcd = checked::Etcd {
        members: members.iter().map(|member| (*member).to_owned()).collect(),
        login: None,
        tls: None,
        watches: vec![EtcdWatch { prefix: b"/services/".to_vec(), layout: Layout::Heddle }],
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        liveness: Duration::from_secs(15),
        backoff: Duration::from_millis(200),
        page: 1_000,
        largest: 64 << 20,
        rules: checked::SourceRules::default(),
        limits: checked::RegistryLimits::default(),
    };
    checked::Registry { etcd: Some(etcd), ..checked::Registry::default() }
}

/// The settings of etcd in `registry`, to be changed.
fn settings(registry: &mut checked::Registry) -> &mut checked::Etcd {
    registry.etcd.as_mut().expect("etcd is configured")
}

fn connected(driver: &Driver) {
    driver.wait_status("etcd is followed", |report| report.sources[0].connected);
}

#[test]
fn registrations_join_change_and_leave() {
    let etcd = Etcd::start();
    etcd.put("/services/users/a", A);
    etcd.put("/services-old/users/a", C);
    let driver = Driver::start(&registry(&[&etcd.url()]), None);
    driver.wait_ready();
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
    connected(&driver);
    assert_eq!(driver.report().sources[0].member.as_deref(), Some(etcd.url().as_str()));

    etcd.put("/services/users/b", B);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    let registered = driver.told().services["users"]["10.0.0.2:80"].clone();
    assert_eq!((registered.id.as_str(), registered.weight), ("/services/users/b#10.0.0.2:80", 2));
    assert!(registered.order > driver.told().services["users"]["10.0.0.1:80"].order);

    etcd.put("/services/users/a", A);
    etcd.put("/services/users/b", r#"{"address":"10.0.0.2:80","weight":0}"#);
    driver.wait("the weight is 0", |told| told.services["users"]["10.0.0.2:80"].weight == 0);
    assert_eq!(driver.told().changes.len(), 3, "the same value again changes nothing");

    etcd.delete("/services/users/a");
    driver.wait_for("users", &["10.0.0.2:80"]);
    etcd.ctl(&["del", "--prefix", "/services/"]);
    driver.wait_for("users", &[]);
    let report = driver.report();
    assert_eq!((report.services, report.endpoints, report.sources[0].reconnects), (0, 0, 0));
}

#[test]
fn a_lease_that_ends_takes_its_endpoint_away_and_nothing_does_before() {
    let etcd = Etcd::start();
    let driver = Driver::start(&registry(&[&etcd.url()]), None);
    let revoked = etcd.grant(600);
    etcd.put_leased("/services/users/a", A, &revoked);
    let expires = etcd.grant(1);
    etcd.put_leased("/services/users/b", B, &expires);
    etcd.put("/services/users/c", C);
    driver.wait("both joined", |told| {
        let joined =
            |id: &str| told.changes.iter().any(|change| change.added.iter().any(|added| added.id.contains(id)));
        joined("/a#") && joined("/b#") && joined("/c#")
    });
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.3:80"]);
    assert_eq!(etcd.ctl(&["get", "/services/users/b"]), "", "gone here, so gone there");
    etcd.ctl(&["lease", "revoke", &revoked]);
    driver.wait_for("users", &["10.0.0.3:80"]);
}

#[test]
fn layouts_and_bad_entries() {
    let etcd = Etcd::start();
    let mut registry = registry(&[&etcd.url()]);
    settings(&mut registry).watches.push(EtcdWatch { prefix: b"/kit".to_vec(), layout: Layout::GoKit });
    etcd.put("/kit/book/1", "http://10.0.0.7:8080/");
    etcd.put("/kit/book/2", "no address");
    etcd.put("/kit/", "");
    etcd.put("/services/users/a", A);
    etcd.put("/services/users/bad", "{");
    let driver = Driver::start(&registry, None);
    driver.wait_ready();
    assert_eq!(driver.told().addresses("book"), ["10.0.0.7:8080"]);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
    assert_eq!(driver.report().sources[0].skipped, 2);

    connected(&driver);
    etcd.put("/kit/book/1", "not any more");
    etcd.put("/services/users/a", "broken");
    etcd.put("/kit/book/2", "10.0.0.8:80");
    driver.wait_for("book", &["10.0.0.7:8080", "10.0.0.8:80"]);
    driver.wait_status("both bad values are counted", |report| report.sources[0].skipped == 4);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"], "what was last understood stays");
}

#[test]
fn while_etcd_is_down_the_list_stays_and_what_changed_comes_into_force() {
    let mut etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    etcd.put("/services/users/a", A);
    etcd.put("/services/users/b", B);
    let driver = Driver::start(&registry(&[&relay.url()]), None);
    driver.wait_ready();
    connected(&driver);
    etcd.kill();
    driver.wait_status("etcd is missed", |report| !report.sources[0].connected && report.sources[0].reconnects >= 3);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80", "10.0.0.2:80"]);
    relay.cut();
    etcd.restart();
    etcd.delete("/services/users/a");
    etcd.put("/services/users/c", C);
    assert_eq!(driver.told().changes.len(), 1, "nothing was heard, so nothing changed");
    relay.open();
    driver.wait_for("users", &["10.0.0.2:80", "10.0.0.3:80"]);
    assert_eq!(driver.told().changes.len(), 2, "one difference, not a list anew");
}

#[test]
fn nothing_is_lost_to_a_compaction_while_the_watch_is_cut_off() {
    let etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    etcd.put("/services/users/a", A);
    let driver = Driver::start(&registry(&[&relay.url()]), None);
    connected(&driver);
    relay.cut();
    etcd.put("/services/users/b", B);
    etcd.delete("/services/users/a");
    etcd.put("/services/users/c", C);
    etcd.compact();
    relay.open();
    driver.wait_for("users", &["10.0.0.2:80", "10.0.0.3:80"]);
}

/// A registry whose first change is held up until [`Held::go_on`]. The sink holds the registry's only thread, so that
/// the watch cannot be opened yet.
struct Held {
    // Dropped first, so that a test that fails does not wait for a sink that waits for it.
    go: std::sync::mpsc::Sender<()>,
    driver: Driver,
}

impl Held {
    fn after_the_reading(registry: &checked::Registry) -> Self {
        let (reading, read) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel();
        let mut first = true;
        let driver = Driver::start_with(registry, None, move || {
            if std::mem::take(&mut first) {
                reading.send(()).expect("a test that waits");
                gone.recv().expect("a test that goes on");
            }
        });
        read.recv().expect("a first reading");
        Self { go, driver }
    }

    fn go_on(self) -> Driver {
        self.go.send(()).expect("a sink that waits");
        self.driver
    }
}

#[test]
fn nothing_is_lost_between_the_reading_and_the_watch() {
    let etcd = Etcd::start();
    etcd.put("/services/users/a", A);
    let held = Held::after_the_reading(&registry(&[&etcd.url()]));
    etcd.put("/services/users/b", B);
    let driver = held.go_on();
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(driver.report().sources[0].relists, 1);
}

#[test]
fn nothing_is_lost_to_a_compaction_between_the_reading_and_the_watch() {
    let etcd = Etcd::start();
    etcd.put("/services/users/a", A);
    let other = Relay::start(etcd.port());
    let held = Held::after_the_reading(&registry(&[&etcd.url(), &other.url()]));
    etcd.put("/services/users/b", B);
    etcd.delete("/services/users/a");
    etcd.compact();
    let driver = held.go_on();
    driver.wait_for("users", &["10.0.0.2:80"]);
    connected(&driver);
    assert_eq!(other.accepted(), 0, "that is no reason to leave the member");
    assert_eq!(driver.report().sources[0].relists, 2, "the watch came too late, and all was read again");
}

#[tokio::test]
async fn every_reading_and_every_transaction_is_of_one_moment() {
    const MOVES: usize = 150;
    let etcd = Etcd::start();
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.expect("a client");
    for padding in 0..30 {
        client.put(format!("/services/m{padding}/1"), A, None).await.expect("a put");
    }
    client.put("/services/a/1", A, None).await.expect("a put");
    let relay = Relay::start(etcd.port());
    let mut registry = registry(&[&relay.url()]);
    settings(&mut registry).page = 1;
    settings(&mut registry).backoff = Duration::from_millis(1);
    let driver = Driver::start(&registry, None);
    connected(&driver);
    // One endpoint moves between a service at the beginning and one at the end of the range, while readings go on.
    for turn in 0..MOVES {
        let (from, to) =
            if turn % 2 == 0 { ("/services/a/1", "/services/z/1") } else { ("/services/z/1", "/services/a/1") };
        let operations = [etcd_client::TxnOp::delete(from, None), etcd_client::TxnOp::put(to, A, None)];
        client.txn(etcd_client::Txn::new().and_then(operations)).await.expect("a transaction");
        if turn % 10 == 0 {
            relay.cut();
            relay.open();
        }
    }
    client.put("/services/last/1", B, None).await.expect("a put");
    driver.wait_for("last", &["10.0.0.2:80"]);
    assert!(driver.report().sources[0].relists > 1);
    let told = driver.told();
    let (mut at_a, mut at_z, mut from) = (0, 0, 0);
    for &to in &told.calls {
        for change in &told.changes[from..to] {
            match change.service.as_str() {
                "a" => at_a = change.added.len(),
                "z" => at_z = change.added.len(),
                _ => {}
            }
        }
        assert_eq!(at_a + at_z, 1, "it is at one of the two, after change {to}");
        from = to;
    }
}

#[test]
fn a_cluster_restored_from_an_older_backup_is_reconciled() {
    let mut etcd = Etcd::start();
    etcd.put("/services/users/a", A);
    etcd.save("backup");
    let driver = Driver::start(&registry(&[&etcd.url()]), None);
    connected(&driver);
    etcd.delete("/services/users/a");
    for _ in 0..5 {
        etcd.put("/services/users/b", B);
    }
    driver.wait_for("users", &["10.0.0.2:80"]);
    driver.wait_status("the later revision is known", |report| report.sources[0].revision >= 8);
    etcd.restore("backup");
    driver.wait_for("users", &["10.0.0.1:80"]);
    etcd.put("/services/users/c", C);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.3:80"]);
    assert!(driver.report().sources[0].revision < 8, "the revision fell");
}

#[test]
fn of_several_members_the_one_that_answers_is_used() {
    let etcd = Etcd::start();
    let silent = Relay::start(etcd.port());
    silent.stall();
    let refusing = Relay::start(etcd.port());
    refusing.cut();
    let mut registry = registry(&["http://127.0.0.1:1", &silent.url(), &refusing.url(), &etcd.url()]);
    settings(&mut registry).request_timeout = Duration::from_millis(300);
    etcd.put("/services/users/a", A);
    let driver = Driver::start(&registry, None);
    driver.wait_for("users", &["10.0.0.1:80"]);
    connected(&driver);
    assert_eq!(driver.report().sources[0].member.as_deref(), Some(etcd.url().as_str()));
    assert!(silent.accepted() > 0 && refusing.accepted() > 0, "the others were tried");
}

#[test]
fn a_member_that_falls_silent_is_left() {
    let etcd = Etcd::start();
    let [first, second] = [Relay::start(etcd.port()), Relay::start(etcd.port())];
    let mut registry = registry(&[&first.url(), &second.url()]);
    settings(&mut registry).liveness = Duration::from_millis(900);
    etcd.put("/services/users/a", A);
    let driver = Driver::start(&registry, None);
    connected(&driver);
    assert_eq!(driver.report().sources[0].member.as_deref(), Some(first.url().as_str()));
    first.stall();
    etcd.put("/services/users/b", B);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    connected(&driver);
    let report = driver.report();
    assert_eq!(report.sources[0].member.as_deref(), Some(second.url().as_str()));
}

#[test]
fn a_member_that_lives_is_not_left_for_want_of_events() {
    let etcd = Etcd::start();
    let mut registry = registry(&[&etcd.url()]);
    settings(&mut registry).liveness = Duration::from_millis(300);
    let driver = Driver::start(&registry, None);
    connected(&driver);
    // Other keys move the revision, of which only progress tells this watch: several liveness times' worth of it.
    let mut revision = 0;
    for round in 0..10 {
        etcd.put("/other", &round.to_string());
        driver.wait_status("progress is told", |report| report.sources[0].revision > revision);
        revision = driver.report().sources[0].revision;
    }
    assert_eq!(driver.report().sources[0].reconnects, 0);
}

#[test]
fn a_member_without_quorum_is_left_for_one_with_it() {
    let cluster = Cluster::start();
    let urls: Vec<String> = cluster.members.iter().map(Etcd::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    cluster.members[1].put("/services/users/a", A);
    let driver = Driver::start(&registry(&urls), None);
    connected(&driver);
    assert_eq!(driver.report().sources[0].member.as_deref(), Some(urls[0]));
    cluster.isolate(0);
    wait_until("the others have a leader", || cluster.members[1].try_ctl(&["put", "/services/users/b", B]).is_ok());
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    connected(&driver);
    let member = driver.report().sources[0].member.clone();
    assert!(member.as_deref() == Some(urls[1]) || member.as_deref() == Some(urls[2]), "{member:?}");
    assert!(cluster.members[0].try_ctl(&["--command-timeout=1s", "get", "x"]).is_err(), "it has no quorum");
    cluster.heal();
    cluster.members[0].put("/services/users/c", C);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
}

#[test]
fn a_token_that_is_no_longer_taken_is_renewed() {
    let options = Options { args: vec!["--auth-token-ttl".into(), "1".into()], ..Options::default() };
    let mut etcd = Etcd::start_with(options);
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["role", "add", "reader"]);
    etcd.ctl(&["role", "grant-permission", "reader", "read", "--prefix=true", "/services/"]);
    etcd.ctl(&["user", "add", "heddle:also secret"]);
    etcd.ctl(&["user", "grant-role", "heddle", "reader"]);
    etcd.ctl(&["auth", "enable"]);
    etcd.ctl_args.push("--user=root:secret".into());
    etcd.put("/services/users/a", A);

    let relay = Relay::start(etcd.port());
    let mut registry = registry(&[&relay.url()]);
    settings(&mut registry).login = Some(EtcdLogin { user: "heddle".into(), password: "wrong".into() });
    let refused = Driver::start(&registry, None);
    refused.wait_status("the password is refused", |report| report.sources[0].reconnects >= 2);
    assert!(!refused.report().ready);
    drop(refused);

    settings(&mut registry).login = Some(EtcdLogin { user: "heddle".into(), password: "also secret".into() });
    let driver = Driver::start(&registry, None);
    connected(&driver);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
    // Tokens live in the server's memory, so none of before is taken any more.
    etcd.restart();
    etcd.put("/services/users/b", B);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    connected(&driver);
    // A watch outlives its token.
    wait_until("the tokens have expired", || etcd.log().contains("deleted a simple token"));
    etcd.put("/services/users/c", C);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    relay.cut();
    etcd.delete("/services/users/a");
    relay.open();
    driver.wait_for("users", &["10.0.0.2:80", "10.0.0.3:80"]);
}

#[test]
fn tls_with_certificates_on_both_sides() {
    let tls = Arc::new(Tls::new());
    let etcd = Etcd::start_with(Options { tls: Some(tls.clone()), ..Options::default() });
    etcd.put("/services/users/a", A);
    let mut registry = registry(&[&etcd.url()]);
    let good = EtcdTls {
        ca: Some(tls.path("ca.pem")),
        client: Some((tls.path("cert.pem"), tls.path("key.pem"))),
        server_name: Some("etcd.test".into()),
    };
    for bad in [
        EtcdTls { ca: None, ..good.clone() },
        EtcdTls { client: None, ..good.clone() },
        EtcdTls { server_name: Some("other.test".into()), ..good.clone() },
        EtcdTls { ca: Some("/does/not/exist".into()), ..good.clone() },
    ] {
        settings(&mut registry).tls = Some(bad.clone());
        let driver = Driver::start(&registry, None);
        driver.wait_status("it is refused", |report| report.sources[0].reconnects >= 1);
        assert_eq!(driver.report().sources[0].relists, 0, "{bad:?}");
    }
    settings(&mut registry).tls = Some(good);
    let driver = Driver::start(&registry, None);
    driver.wait_for("users", &["10.0.0.1:80"]);
    connected(&driver);
    etcd.put("/services/users/b", B);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
}

#[test]
fn a_restart_while_etcd_is_down_serves_from_the_snapshot() {
    let mut etcd = Etcd::start();
    let relay = Relay::start(etcd.port());
    let state = tempfile::tempdir().expect("a folder");
    etcd.put("/services/users/a", A);
    etcd.put("/services/users/b", B);
    let registry = registry(&[&relay.url()]);
    let driver = Driver::start(&registry, Some(state.path()));
    driver.wait_ready();
    let before = driver.told().services.clone();
    driver.stop();

    relay.cut();
    etcd.kill();
    let driver = Driver::start(&registry, Some(state.path()));
    assert_eq!(driver.at_start, ["users"], "before any source has answered");
    assert_eq!(driver.told().services, before);
    let report = driver.report();
    assert!(report.ready && report.sources[0].restored && !report.sources[0].answered);
    etcd.restart();
    etcd.delete("/services/users/a");
    relay.open();
    driver.wait_for("users", &["10.0.0.2:80"]);
    driver.wait_status("etcd answered", |report| report.sources[0].answered);
    assert_eq!(driver.told().services["users"]["10.0.0.2:80"], before["users"]["10.0.0.2:80"]);
    // Written while it runs, not only at the end.
    let file = state.path().join("registry.json");
    wait_until("the snapshot has the change", || {
        std::fs::read_to_string(&file).is_ok_and(|text| !text.contains("10.0.0.1:80") && text.contains("10.0.0.2:80"))
    });
}

#[tokio::test]
async fn ten_thousand_endpoints_and_a_thousand_services() {
    let etcd = Etcd::start();
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.expect("a client");
    let many = (0..10_000).map(|i| ("many".to_owned(), i)).chain((0..1_000).map(|i| (format!("s{i}"), i)));
    let puts: Vec<_> = many
        .map(|(service, i)| {
            let value = format!(r#"{{"address":"10.0.{}.{}:80","metadata":{{"zone":"a"}}}}"#, i / 250, i % 250);
            etcd_client::TxnOp::put(format!("/services/{service}/{i}"), value, None)
        })
        .collect();
    for chunk in puts.chunks(2_000) {
        client.txn(etcd_client::Txn::new().and_then(chunk)).await.expect("a transaction");
    }
    let driver = Driver::start(&registry(&[&etcd.url()]), None);
    driver.wait_ready();
    let report = driver.report();
    assert_eq!((report.services, report.endpoints, report.sources[0].skipped), (1_001, 11_000, 0));
    assert_eq!(driver.told().addresses("many").len(), 10_000);
    connected(&driver);
    // One transaction is one change.
    let told = driver.told().changes.len();
    client.delete("/services/many/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.expect("a deletion");
    driver.wait_for("many", &[]);
    assert_eq!(driver.told().changes.len(), told + 1);
}

/// Issue 10, 14: `etcd grpc-proxy` numbers watches itself. Every event arrives, over several watches, and also after a
/// time in which nothing happened.
#[test]
fn behind_a_grpc_proxy_every_event_arrives() {
    let etcd = Etcd::start();
    let mut proxy = GrpcProxy::start(&etcd);
    etcd.put("/services/users/a", A);
    let mut registry = registry(&[&proxy.url()]);
    settings(&mut registry).watches.push(EtcdWatch { prefix: b"/other/".to_vec(), layout: Layout::Heddle });
    settings(&mut registry).liveness = Duration::from_secs(1);
    let driver = Driver::start(&registry, None);
    driver.wait_for("users", &["10.0.0.1:80"]);
    connected(&driver);
    etcd.put("/services/users/b", B);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    etcd.put("/other/more/c", C);
    driver.wait_for("more", &["10.0.0.3:80"]);
    // Beyond `liveness`: what the proxy answers to a request for progress, if anything, is not to freeze the list.
    let relists = driver.report().sources[0].relists;
    let quiet = std::time::Instant::now();
    wait_until("it was quiet for longer than liveness", || {
        quiet.elapsed() > Duration::from_millis(2500) || driver.report().sources[0].relists > relists + 1
    });
    etcd.delete("/services/users/a");
    driver.wait_for("users", &["10.0.0.2:80"]);
    etcd.put("/other/more/d", A);
    driver.wait_for("more", &["10.0.0.1:80", "10.0.0.3:80"]);
    assert!(proxy.runs());
}

async fn put_large(client: &mut etcd_client::Client, key: &str, address: &str, size: usize) {
    let padding = "x".repeat(size);
    let value = format!(r#"{{"address":"{address}","padding":"{padding}"}}"#);
    client.put(key, value, None).await.expect("a put");
}

/// Issue 10, 14: 70 keys of 1 MB are more than one answer may have (64 MiB). They are read in smaller pages.
#[tokio::test]
async fn seventy_keys_of_a_megabyte_are_read() {
    let etcd = Etcd::start();
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.expect("a client");
    for i in 0..70 {
        put_large(&mut client, &format!("/services/large/{i}"), &format!("10.0.2.{i}:80"), 1_000_000).await;
    }
    let driver = Driver::start(&registry(&[&etcd.url()]), None);
    driver.wait_ready();
    let report = driver.report();
    assert_eq!((report.endpoints, report.sources[0].skipped), (70, 0));
    connected(&driver);
    etcd.put("/services/users/a", A);
    driver.wait_for("users", &["10.0.0.1:80"]);
    assert_eq!(driver.report().sources[0].relists, 1);
}

/// Issue 10, 14: a key that is too large by itself is named, and all others are served.
#[tokio::test]
async fn a_key_that_is_too_large_is_named_and_the_rest_is_served() {
    let etcd = Etcd::start();
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.expect("a client");
    for i in 0..20 {
        put_large(&mut client, &format!("/services/users/{i:02}"), &format!("10.0.2.{i}:80"), 40_000).await;
    }
    for key in ["/services/a/1", "/services/users/07x", "/services/z/1"] {
        put_large(&mut client, key, "10.0.3.1:80", 300_000).await;
    }
    let mut registry = registry(&[&etcd.url()]);
    settings(&mut registry).largest = 200_000;
    let driver = Driver::start(&registry, None);
    driver.wait_ready();
    connected(&driver);
    let report = driver.report();
    assert_eq!((report.services, report.endpoints, report.sources[0].skipped), (1, 20, 3), "{report:#?}");
    let keys: Vec<&str> = report.sources[0].skipped_keys.iter().map(|skipped| skipped.key.as_str()).collect();
    assert_eq!(keys, ["/services/a/1", "/services/users/07x", "/services/z/1"]);
    assert!(report.sources[0].skipped_keys[0].reason.contains("too large"));
    // An event that is too large ends the session; the next reading names its key and goes on.
    put_large(&mut client, "/services/users/03", "10.0.2.3:80", 300_000).await;
    driver.wait_status("the key is named", |report| report.sources[0].skipped_keys.len() == 4);
    put_large(&mut client, "/services/users/30", "10.0.2.30:80", 10).await;
    driver.wait("what follows is served", |told| told.addresses("users").contains(&"10.0.2.30:80"));
    assert!(driver.told().addresses("users").contains(&"10.0.2.3:80"), "what was known of the large key stays");
}

/// Issue 10, 14: `max_endpoints` bounds what is read and kept; what there is no room for is named, and read when there is.
#[test]
fn what_is_beyond_max_endpoints_is_taken_when_there_is_room() {
    let etcd = Etcd::start();
    for i in 0..30 {
        etcd.put(&format!("/services/users/{i:02}"), &format!(r#"{{"address":"10.0.2.{i}:80"}}"#));
    }
    let mut registry = registry(&[&etcd.url()]);
    registry.limits = registry_limits(20);
    settings(&mut registry).limits = registry_limits(20);
    let driver = Driver::start(&registry, None);
    driver.wait_ready();
    connected(&driver);
    let report = driver.report();
    assert_eq!((report.endpoints, report.registrations, report.max_endpoints), (20, 20, 20));
    assert_eq!(report.sources[0].skipped_keys.len(), 10);
    assert!(report.sources[0].skipped_keys[0].reason.contains("max_endpoints (20)"));
    etcd.put("/services/users/99", r#"{"address":"10.0.2.99:80"}"#);
    driver.wait_status("it is named too", |report| report.sources[0].skipped_keys.len() == 11);
    for i in 0..5 {
        etcd.delete(&format!("/services/users/{i:02}"));
    }
    driver.wait("there is room again", |told| told.addresses("users").contains(&"10.0.2.22:80"));
    assert!(driver.report().endpoints <= 20);
}

fn registry_limits(max_endpoints: usize) -> checked::RegistryLimits {
    checked::RegistryLimits { max_endpoints, ..checked::RegistryLimits::default() }
}

/// Issue 10, 14: `password_file` is read at each login, so that a password can be changed without a reload.
#[test]
fn the_password_is_read_at_each_login() {
    let mut etcd = Etcd::start();
    etcd.put("/services/users/a", A);
    for command in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "heddle:one"],
        &["user", "grant-role", "heddle", "root"],
        &["auth", "enable"],
    ] {
        etcd.ctl(command);
    }
    etcd.ctl_args.push("--user=root:secret".into());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    let relay = Relay::start(etcd.port());
    let mut registry = registry(&[&relay.url()]);
    let password = Password::File(file.clone());
    settings(&mut registry).login = Some(EtcdLogin { user: "heddle".into(), password });
    let driver = Driver::start(&registry, None);
    let fails = |what: &str| {
        let before = driver.report().sources[0].reconnects;
        driver.wait_status(what, |report| report.sources[0].reconnects > before + 1 && !report.ready);
    };
    fails("there is no file yet");
    std::fs::write(&file, "\n").expect("write");
    fails("there is no password in it");
    std::fs::write(&file, "one\n").expect("write");
    driver.wait_for("users", &["10.0.0.1:80"]);
    connected(&driver);
    etcd.ctl(&["user", "delete", "heddle"]);
    etcd.ctl(&["user", "add", "heddle:two"]);
    etcd.ctl(&["user", "grant-role", "heddle", "root"]);
    relay.cut();
    std::fs::write(&file, "two").expect("write");
    etcd.put("/services/users/b", B);
    relay.open();
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    connected(&driver);
}
