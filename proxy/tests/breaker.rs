//! Endpoints that fail are taken out of use, and come back; a service of which nothing answers refuses at once.
//!
//! Where a test is about what happens while something is out of use, it is out for an hour.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/plugins/guests.rs"]
#[allow(dead_code, reason = "the tests of plugins use the rest")]
mod guests;
#[path = "support/http.rs"]
mod http;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use heddle::plugin::{Fault, FaultKind, Origin, Plugin, builtin_policy};
use heddle::service::{Condition, Service};
use http::{DEADLINE, Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};
use tempfile::TempDir;

const FAILURE: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";

/// One that is tried again.
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// A server whose answers the test decides at any time.
struct Server {
    endpoint: Endpoint,
    behaviour: Arc<Behaviour>,
}

#[derive(Default)]
struct Behaviour {
    fails: AtomicBool,
    /// Whether answers wait.
    holds: Mutex<bool>,
    released: Condvar,
    requests: AtomicUsize,
    held: AtomicUsize,
}

impl Server {
    fn start() -> Self {
        let behaviour = Arc::<Behaviour>::default();
        let of = behaviour.clone();
        let endpoint = Endpoint::answering(move |_| {
            of.requests.fetch_add(1, SeqCst);
            let held = of.holds.lock().unwrap();
            of.held.fetch_add(1, SeqCst);
            drop(of.released.wait_timeout_while(held, DEADLINE, |holds| *holds));
            of.held.fetch_sub(1, SeqCst);
            if of.fails.load(SeqCst) { FAILURE } else { OK }
        });
        Self { endpoint, behaviour }
    }

    fn start_many(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::start()).collect()
    }

    fn fail(&self, fails: bool) {
        self.behaviour.fails.store(fails, SeqCst);
    }

    /// Lets requests wait for their answers, or no longer.
    fn hold(&self, holds: bool) {
        *self.behaviour.holds.lock().unwrap() = holds;
        self.behaviour.released.notify_all();
    }

    fn requests(&self) -> usize {
        self.behaviour.requests.load(SeqCst)
    }

    /// Requests that wait for their answers.
    fn held(&self) -> usize {
        if *self.behaviour.holds.lock().unwrap() { self.behaviour.held.load(SeqCst) } else { 0 }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hold(false);
    }
}

fn requests(servers: &[Server]) -> Vec<usize> {
    servers.iter().map(Server::requests).collect()
}

fn breaker(settings: &str) -> String {
    format!("breaker = {{ plugin = \"circuit-breaker\", {settings} }}\n")
}

/// A breaker whose ejections outlast the test.
fn for_an_hour(settings: &str) -> String {
    breaker(&format!("ejection_time = \"1h\", max_ejection_time = \"1h\", {settings}"))
}

/// A proxy with these servers as the service `users`; `top` is what comes before everything else.
fn proxy(top: &str, servers: &[Server], service: &str) -> Proxy {
    Proxy::start(&config(top, servers, service))
}

fn config(top: &str, servers: &[Server], service: &str) -> String {
    let endpoints: Vec<&Endpoint> = servers.iter().map(|server| &server.endpoint).collect();
    format!("{top}\n{}\n{}", one_listener(""), users(&endpoints, service))
}

fn service(proxy: &Proxy) -> Arc<Service> {
    proxy.app().state.directory.get("users").unwrap()
}

/// In the order of the servers, as is the order of slots.
fn conditions(proxy: &Proxy) -> Vec<Condition> {
    service(proxy).snapshot().endpoints().map(|endpoint| endpoint.health.condition()).collect()
}

fn count(proxy: &Proxy, condition: Condition) -> usize {
    conditions(proxy).into_iter().filter(|now| *now == condition).count()
}

/// The statuses of so many requests, one after another.
fn statuses(client: &mut Wire, count: usize) -> Vec<u16> {
    (0..count).map(|_| client.get("/").status()).collect()
}

fn failures(statuses: &[u16]) -> usize {
    statuses.iter().filter(|status| **status != 200).count()
}

/// Sends requests until this server is out of use.
fn until_out(proxy: &Proxy, client: &mut Wire, server: usize) {
    wait_until("it is out of use", || {
        client.get("/");
        conditions(proxy)[server] != Condition::InUse
    });
}

/// Sends requests until one of them waits at this server; its client.
fn probe(proxy: &Proxy, server: &Server) -> Wire {
    let before = server.held();
    let mut probe = None;
    wait_until("a request waits at the server", || {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
        wait_until("it waits there, or is answered by another", || server.held() > before || !client.is_silent());
        if server.held() > before {
            probe = Some(client);
        }
        probe.is_some()
    });
    probe.unwrap()
}

#[test]
fn the_one_of_ten_that_fails_is_out_of_use_and_nine_serve() {
    let servers = Server::start_many(10);
    servers[3].fail(true);
    let proxy = proxy("", &servers, &for_an_hour(""));
    let mut client = proxy.client();
    // In turn, it fails once in ten.
    assert_eq!(failures(&statuses(&mut client, 50)), 5);
    let before = requests(&servers);
    assert_eq!((before[3], count(&proxy, Condition::Out), conditions(&proxy)[3]), (5, 1, Condition::Out));
    assert_eq!(failures(&statuses(&mut client, 90)), 0);
    let more: Vec<usize> = requests(&servers).iter().zip(before).map(|(now, before)| now - before).collect();
    assert!(more.iter().enumerate().all(|(index, more)| *more == if index == 3 { 0 } else { 10 }), "{more:?}");
}

#[test]
fn one_that_is_healed_comes_back_after_a_probe() {
    let servers = Server::start_many(10);
    servers[3].fail(true);
    let proxy = proxy("", &servers, &breaker("ejection_time = \"10ms\""));
    let mut client = proxy.client();
    until_out(&proxy, &mut client, 3);
    servers[3].fail(false);
    servers[3].hold(true);
    let before = servers[3].requests();
    let mut probing = probe(&proxy, &servers[3]);
    assert_eq!(conditions(&proxy)[3], Condition::HalfOpen);
    // While it is not known how the probe ends, everybody else goes elsewhere.
    assert_eq!(failures(&statuses(&mut client, 60)), 0);
    assert_eq!((servers[3].held(), servers[3].requests()), (1, before + 1));
    servers[3].hold(false);
    assert_eq!(probing.response().status(), 200);
    assert_eq!(conditions(&proxy), [Condition::InUse; 10]);
    assert_eq!(failures(&statuses(&mut client, 20)), 0);
    assert_eq!(servers[3].requests(), before + 3);
}

#[test]
fn a_probe_that_fails_ejects_anew() {
    let servers = Server::start_many(4);
    servers[0].fail(true);
    let proxy = proxy("", &servers, &breaker("ejection_time = \"10ms\""));
    let health = service(&proxy).snapshot().endpoint(0).unwrap().health.clone();
    until_out(&proxy, &mut proxy.client(), 0);
    let ejections = || health.ejections(service(&proxy).fleet.clock.now());
    let before = ejections();
    servers[0].hold(true);
    let mut probing = probe(&proxy, &servers[0]);
    servers[0].hold(false);
    assert_eq!(probing.response().status(), 500);
    assert_eq!(ejections(), before + 1);
    assert_ne!(health.condition(), Condition::InUse);
}

#[test]
fn the_permit_of_a_probe_that_is_cancelled_is_given_back() {
    let servers = Server::start_many(4);
    servers[0].fail(true);
    let proxy = proxy("", &servers, &breaker("ejection_time = \"10ms\""));
    until_out(&proxy, &mut proxy.client(), 0);
    servers[0].fail(false);
    servers[0].hold(true);
    let before = servers[0].requests();
    let cancelled = probe(&proxy, &servers[0]);
    assert_eq!(failures(&statuses(&mut proxy.client(), 20)), 0);
    drop(cancelled);
    let mut second = probe(&proxy, &servers[0]);
    assert_eq!((conditions(&proxy)[0], servers[0].requests()), (Condition::HalfOpen, before + 2));
    servers[0].hold(false);
    assert_eq!(second.response().status(), 200);
    assert_eq!(conditions(&proxy)[0], Condition::InUse);
}

#[test]
fn no_more_than_the_share_is_ejected() {
    for (registered, failing, share, out) in
        [(20, 4, "", 2), (3, 2, "", 1), (10, 4, "ejection = { max_percent = 30 }", 3)]
    {
        let servers = Server::start_many(registered);
        servers.iter().take(failing).for_each(|server| server.fail(true));
        let proxy = proxy("", &servers, &(for_an_hour("") + share));
        let mut client = proxy.client();
        for _ in 0..10 {
            statuses(&mut client, 2 * registered);
            assert!(count(&proxy, Condition::Out) <= out);
        }
        assert_eq!(count(&proxy, Condition::Out), out, "of {registered}");
        assert!(servers.iter().take(failing).any(|server| server.requests() > 10), "some fail in use");
    }
}

#[test]
fn when_too_few_are_left_all_are_used_until_enough_answer() {
    let servers = Server::start_many(4);
    servers.iter().take(3).for_each(|server| server.fail(true));
    let proxy = proxy("", &servers, &(for_an_hour("") + "ejection = { max_percent = 100 }"));
    let mut client = proxy.client();
    (0..3).for_each(|server| until_out(&proxy, &mut client, server));
    assert_eq!(count(&proxy, Condition::Out), 3);
    assert!(service(&proxy).snapshot().is_in_panic());
    let before = requests(&servers);
    assert_eq!(failures(&statuses(&mut client, 8)), 6);
    assert_eq!(requests(&servers), before.iter().map(|before| before + 2).collect::<Vec<_>>());
    servers.iter().for_each(|server| server.fail(false));
    assert_eq!(failures(&statuses(&mut client, 8)), 0);
    // The first that answers is back without a probe. That makes two of four, so the other two have to wait.
    assert_eq!((count(&proxy, Condition::InUse), service(&proxy).snapshot().is_in_panic()), (2, false));
}

#[test]
fn a_service_of_which_nothing_answers_refuses_at_once() {
    let servers = Server::start_many(4);
    servers.iter().for_each(|server| server.fail(true));
    let proxy = proxy("", &servers, &for_an_hour("open_time = \"2m\""));
    let mut client = proxy.client();
    assert_eq!(statuses(&mut client, 10), [500; 10]);
    for _ in 0..100 {
        let refusal = client.get("/");
        refusal.assert_refused(503, "breaker", "destination_unavailable");
        let seconds: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
        assert!((60..=150).contains(&seconds), "{seconds}");
    }
    assert_eq!(requests(&servers).iter().sum::<usize>(), 10);
}

#[test]
fn a_service_that_answers_again_is_closed_by_few_probes() {
    let servers = Server::start_many(4);
    servers.iter().for_each(|server| server.fail(true));
    let proxy = proxy("", &servers, &for_an_hour("open_probes = 2"));
    let mut client = proxy.client();
    assert_eq!(statuses(&mut client, 10), [500; 10]);
    // One probe still finds it down.
    wait_until("a probe fails", || client.get("/").status() == 500);
    servers.iter().for_each(|server| server.hold(true));
    servers.iter().for_each(|server| server.fail(false));
    let before: usize = requests(&servers).iter().sum();
    let mut probing = Vec::new();
    let held = || servers.iter().map(Server::held).sum::<usize>();
    wait_until("two requests are let through", || {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
        wait_until("let through, or refused", || held() > probing.len() || !client.is_silent());
        if held() > probing.len() {
            probing.push(client);
        }
        probing.len() == 2
    });
    assert_eq!(statuses(&mut client, 20), [503; 20]);
    assert_eq!(requests(&servers).iter().sum::<usize>(), before + 2);
    servers.iter().for_each(|server| server.hold(false));
    probing.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    assert_eq!(failures(&statuses(&mut client, 20)), 0);
    assert_eq!(service(&proxy).fleet.health.condition(), Condition::InUse);
}

#[test]
fn a_service_that_is_down_is_not_tried_more_often_for_retries() {
    let servers: Vec<Endpoint> = (0..10).map(|_| Endpoint::saying(UNAVAILABLE)).collect();
    let endpoints: Vec<&Endpoint> = servers.iter().collect();
    // It is open so shortly that nearly every request is a probe.
    let settings = format!("{}retry = {{ plugin = \"retry\", attempts = 3 }}", breaker("open_time = \"1ms\""));
    let proxy = Proxy::with(&endpoints, "", &settings);
    let mut client = proxy.client();
    assert_eq!(statuses(&mut client, 100), [503; 100]);
    let attempts: usize = servers.iter().map(|server| server.requests().len()).sum();
    assert!((10..=130).contains(&attempts), "{attempts}");
}

#[test]
fn a_dead_endpoint_that_a_hash_picks_again_and_again_opens_nothing() {
    let servers = Server::start_many(8);
    let proxy = proxy("", &servers, &(for_an_hour("") + "balancer = \"url-hash\""));
    let mut client = proxy.client();
    // Of some others it is known that they are well: if only dead ones had been asked, all might be.
    (0..100).for_each(|path| assert_eq!(client.get(&format!("/{path}")).status(), 200));
    // One may be ejected; the others stay dead.
    servers.iter().take(3).for_each(|server| server.fail(true));
    for path in 0..20 {
        let statuses: Vec<u16> = (0..30).map(|_| client.get(&format!("/{path}")).status()).collect();
        assert!(!statuses.contains(&503), "{statuses:?}");
    }
    assert_eq!(service(&proxy).fleet.health.condition(), Condition::InUse);
}

#[test]
fn workers_see_one_truth() {
    let servers = Server::start_many(5);
    servers[2].fail(true);
    let proxy = proxy("workers = 2", &servers, &for_an_hour(""));
    // The workers take connections in turn while they have the same number of them.
    let mut clients: Vec<Wire> = (0..8).map(|_| proxy.client()).collect();
    let failed: usize = (0..200).map(|n| failures(&statuses(&mut clients[n % 8], 1))).sum();
    assert_eq!(failed, 5);
    assert_eq!((servers[2].requests(), conditions(&proxy)[2]), (5, Condition::Out));
}

/// A folder with these plugins.
fn folder(files: &[(&str, &[u8])]) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let setting = format!("plugins = {:?}", folder.path().display().to_string());
    (folder, setting)
}

fn plugin(proxy: &Proxy, name: &str) -> Arc<Plugin> {
    proxy.app().state.plugins().all().into_iter().find(|plugin| &*plugin.name == name).unwrap()
}

/// The built-in breaker as another file.
fn another(number: u8) -> Vec<u8> {
    // A custom section with a name of one letter.
    let section = [0, 2, 1, b'a' + number];
    [builtin_policy("circuit-breaker").unwrap(), &section].concat()
}

#[test]
fn what_is_known_survives_the_replacement_of_the_plugin() {
    let servers = Server::start_many(5);
    servers[2].fail(true);
    let (plugins, setting) = folder(&[]);
    let proxy = proxy(&setting, &servers, &breaker("ejection_time = \"10ms\""));
    let mut client = proxy.client();
    // Four of five failures are seen by one generation, the last by the next.
    assert_eq!(failures(&statuses(&mut client, 20)), 4);
    let replace = |number| {
        let before = plugin(&proxy, "circuit-breaker").current().unwrap().number;
        fs::write(plugins.path().join("part"), another(number)).unwrap();
        fs::rename(plugins.path().join("part"), plugins.path().join("circuit-breaker.wasm")).unwrap();
        wait_until("another generation is in force", || {
            plugin(&proxy, "circuit-breaker").current().is_some_and(|current| current.number > before)
        });
    };
    replace(1);
    assert_eq!(failures(&statuses(&mut client, 5)), 1);
    assert_ne!(conditions(&proxy)[2], Condition::InUse);
    // What one has ejected, the next lets probe, and the one after that restores.
    replace(2);
    servers[2].fail(false);
    servers[2].hold(true);
    let mut probing = probe(&proxy, &servers[2]);
    replace(3);
    assert_eq!(conditions(&proxy)[2], Condition::HalfOpen);
    servers[2].hold(false);
    assert_eq!(probing.response().status(), 200);
    assert_eq!(conditions(&proxy), [Condition::InUse; 5]);
}

#[test]
fn a_breaker_that_traps_takes_nothing_out_of_use() {
    let servers = Server::start_many(3);
    servers[1].fail(true);
    let trapping = guests::module(include_str!("guests/breaker.wat"), "circuit-breaker");
    let (_plugins, setting) = folder(&[("trapping.wasm", &trapping)]);
    let proxy = proxy(&setting, &servers, "breaker = \"trapping\"");
    assert_eq!(failures(&statuses(&mut proxy.client(), 90)), 30);
    assert_eq!(requests(&servers), [30; 3]);
    assert_eq!(conditions(&proxy), [Condition::InUse; 3]);
    let (quarantines, _) = plugin(&proxy, "trapping").incidents();
    assert_eq!(quarantines, 1);
}

/// The built-in breaker is out of force from now on: the proxy decides by itself.
fn condemn(proxy: &Proxy) {
    let plugin = plugin(proxy, "circuit-breaker");
    let generation = plugin.current().unwrap();
    plugin.fault(&generation, &Fault { kind: FaultKind::Trap, cause: "by the test".into(), weight: usize::MAX });
    assert!(plugin.current().is_none());
}

#[test]
fn what_a_breaker_took_out_of_use_is_back_when_it_is_switched_off() {
    let servers = Server::start_many(4);
    servers[1].fail(true);
    let proxy = proxy("", &servers, &for_an_hour("open_time = \"2m\""));
    let mut client = proxy.client();
    until_out(&proxy, &mut client, 1);
    servers.iter().for_each(|server| server.fail(true));
    wait_until("it is open", || client.get("/").status() == 503);
    servers.iter().for_each(|server| server.fail(false));
    proxy.reload(&config("", &servers, "breaker = \"off\"")).unwrap();
    assert_eq!(conditions(&proxy), [Condition::InUse; 4]);
    assert_eq!(service(&proxy).fleet.health.condition(), Condition::InUse);
    wait_until("each of them serves", || {
        let before = requests(&servers);
        assert_eq!(failures(&statuses(&mut client, 8)), 0);
        requests(&servers).iter().zip(before).all(|(now, before)| *now >= before + 2)
    });
}

#[test]
fn what_a_breaker_took_out_of_use_comes_back_when_none_is_in_force_any_more() {
    let servers = Server::start_many(4);
    servers[1].fail(true);
    let proxy = proxy("", &servers, &breaker("ejection_time = \"100ms\", open_probes = 1"));
    let mut client = proxy.client();
    until_out(&proxy, &mut client, 1);
    servers.iter().for_each(|server| server.fail(true));
    wait_until("it is open", || client.get("/").status() == 503);
    condemn(&proxy);
    servers.iter().for_each(|server| server.fail(false));
    wait_until("the proxy puts all of it back", || {
        client.get("/");
        conditions(&proxy) == [Condition::InUse; 4] && service(&proxy).fleet.health.condition() == Condition::InUse
    });
    assert_eq!(failures(&statuses(&mut client, 20)), 0);
}

/// Its head says that all is well.
const BREAKING: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";

#[test]
fn one_whose_responses_break_after_their_heads_is_ejected() {
    let well = Endpoint::saying(OK);
    let ill = Endpoint::start(|_, mut wire| {
        if wire.head().is_some() {
            let _the_test_may_be_over = wire.try_send(BREAKING);
        }
    });
    let proxy = Proxy::with(&[&well, &ill], "", &for_an_hour(""));
    wait_until("it is out", || {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n");
        let _broken = client.try_response();
        conditions(&proxy)[1] == Condition::Out
    });
    assert_eq!(failures(&statuses(&mut proxy.client(), 10)), 0);
}

/// A server that says in one way how it is, and in another how it serves.
fn server_with_check() -> (Endpoint, Arc<[AtomicBool; 2]>) {
    let fails = Arc::<[AtomicBool; 2]>::default();
    let of = fails.clone();
    let endpoint = Endpoint::answering(move |request| {
        let is_check = request.start.contains("/health");
        if of[usize::from(is_check)].load(SeqCst) { FAILURE } else { OK }
    });
    (endpoint, fails)
}

#[test]
fn one_that_fails_its_checks_as_well_comes_back_when_both_are_content() {
    let (servers, fails): (Vec<Endpoint>, Vec<_>) = (0..4).map(|_| server_with_check()).unzip();
    let set = |server: usize, traffic, check| {
        fails[server][0].store(traffic, SeqCst);
        fails[server][1].store(check, SeqCst);
    };
    let check = "health_check = { type = \"http\", path = \"/health\", interval = \"20ms\", timeout = \"5s\" }";
    // Only checks end an ejection.
    let proxy = Proxy::with(&servers.iter().collect::<Vec<_>>(), "", &(for_an_hour("") + check));
    let mut client = proxy.client();
    set(1, true, false);
    until_out(&proxy, &mut client, 1);
    set(1, true, true);
    let health = service(&proxy).snapshot().endpoint(1).unwrap().health.clone();
    wait_until("its check fails", || health.check_fails());
    assert_ne!(health.condition(), Condition::InUse);
    let asked =
        |server: usize| servers[server].requests().iter().filter(|asked| asked.start.starts_with("GET / ")).count();
    let before = asked(1);
    assert_eq!((failures(&statuses(&mut client, 20)), asked(1)), (0, before));

    // It can have no probe, and is not in the way of another's ejection.
    set(2, true, false);
    until_out(&proxy, &mut client, 2);
    assert_ne!(health.condition(), Condition::InUse);

    set(1, false, false);
    set(2, false, false);
    wait_until("both are back in use", || {
        client.get("/");
        conditions(&proxy) == [Condition::InUse; 4]
    });
    assert!(!health.check_fails());
    let before = asked(1);
    assert_eq!((failures(&statuses(&mut client, 20)), asked(1)), (0, before + 5));
}

#[test]
fn a_breaker_that_begins_to_trap_gives_way_to_the_one_before() {
    let servers = Server::start_many(5);
    servers[2].fail(true);
    let (plugins, setting) = folder(&[]);
    let proxy = proxy(&setting, &servers, &for_an_hour(""));
    let mut client = proxy.client();
    assert_eq!(failures(&statuses(&mut client, 40)), 5);
    let trapping = guests::module(include_str!("guests/breaker.wat"), "circuit-breaker");
    fs::write(plugins.path().join("part"), trapping).unwrap();
    fs::rename(plugins.path().join("part"), plugins.path().join("circuit-breaker.wasm")).unwrap();
    wait_until("it is in force", || {
        plugin(&proxy, "circuit-breaker").current().is_some_and(|current| current.origin != Origin::BuiltIn)
    });
    let mut failed = 0;
    wait_until("the one before is back", || {
        failed += failures(&statuses(&mut client, 5));
        plugin(&proxy, "circuit-breaker").current().is_some_and(|current| current.origin == Origin::BuiltIn)
    });
    assert_eq!((failed, conditions(&proxy)[2]), (0, Condition::Out));
    // It judges as before.
    servers[0].fail(true);
    assert_eq!(failures(&statuses(&mut client, 4)), 1);
}
