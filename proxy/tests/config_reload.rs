//! Another configuration while the proxy runs: as a whole or not at all, and nobody's request is lost.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "threads of a test may block")]

#[path = "support/http.rs"]
mod http;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use heddle::service::{Endpoint as Registered, Service};
use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};
use process::{Heddle, command, get, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

fn service(proxy: &Proxy) -> Arc<Service> {
    proxy.app().state.directory.get("users").expect("a service")
}

fn endpoints(proxy: &Proxy) -> Vec<Arc<Registered>> {
    service(proxy).snapshot().endpoints().cloned().collect()
}

/// Answers each request with its own name.
fn named(name: &'static str) -> Endpoint {
    Endpoint::answering(move |_| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()))
}

#[test]
fn settings_of_a_service_change_for_the_next_request_and_what_is_known_of_it_stays() {
    let (one, two) = (named("one"), named("two"));
    let config = |settings: &str| format!("{}{}", one_listener(""), users(&[&one, &two], settings));
    let proxy = Proxy::start(&config(""));
    let mut client = proxy.client();
    let mut said = |target: &str| (0..4).map(|_| client.get(target).text()).collect::<Vec<_>>();
    let turns = said("/");
    assert!(turns[0] != turns[1] && turns[0] == turns[2] && turns[1] == turns[3], "{turns:?}");
    let before = endpoints(&proxy);

    proxy.reload(&config("balancer = 'url-hash'")).expect("in force");
    let same = said("/");
    assert!(same.iter().all(|name| *name == same[0]), "{same:?}");
    let after = endpoints(&proxy);
    assert!(before.iter().zip(&after).all(|(before, after)| Arc::ptr_eq(before, after)));
    assert_eq!(service(&proxy).stats().responses.iter().sum::<u64>(), 8, "figures count on");
    assert_eq!((one.connections(), two.connections()), (1, 1), "connections to endpoints stay");
    let reloads = &proxy.app().state.reloads;
    assert_eq!((reloads.done(), reloads.refused()), (1, 0));
    assert!(reloads.last().is_some());
}

/// What connections are made and kept by has changed, so those that there are end, each after what is under way on it.
#[test]
fn a_request_under_way_ends_by_the_settings_that_it_began_with() {
    let (arrived, arrives) = channel();
    let (allow, allowed) = channel::<()>();
    let (arrived, allowed) = (Mutex::new(arrived), Mutex::new(allowed));
    let endpoint = Endpoint::answering(move |request| {
        if request.start.contains("/slow") {
            arrived.lock().unwrap().send(()).unwrap();
            allowed.lock().unwrap().recv().unwrap();
        }
        if request.start.contains("/never") { "" } else { OK }
    });
    let config = |settings: &str| format!("{}{}", one_listener(""), users(&[&endpoint], settings));
    let proxy = Proxy::start(&config(""));
    let mut slow = proxy.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: users\r\n\r\n");
    arrives.recv_timeout(http::DEADLINE).expect("the request arrives");
    proxy.reload(&config("request_timeout = '100ms'\npool = { idle_timeout = '1m' }")).expect("in force");
    assert_eq!(proxy.client().get("/never").status(), 504, "the new timeout");
    allow.send(()).unwrap();
    assert_eq!(slow.response().text(), "ok", "the old one");
    assert_eq!(slow.get("/").text(), "ok", "on the same connection");
    wait_until("the connection that was kept by the old settings is closed", || proxy.upstream_connections() == 1);
}

#[test]
fn listeners_come_and_go_and_those_that_stay_keep_their_connections() {
    let endpoint = Endpoint::start(|_, mut wire| {
        while let Ok(line) = wire.until(b"\n") {
            let answer: &[u8] = if line.starts_with(b"GET") { OK.as_bytes() } else { b"heard\n" };
            let is_request = line.starts_with(b"GET");
            if is_request {
                wire.until(b"\r\n\r\n").unwrap();
            }
            if wire.try_send(answer).is_err() {
                return;
            }
        }
    });
    let http = |settings: &str| format!("{}{settings}\n", one_listener(""));
    let tcp = "[[listener]]\naddress = '127.0.0.1:0'\nprotocol = 'tcp'\nservice = 'users'\n";
    let service = users(&[&endpoint], "");
    let proxy = Proxy::start(&format!("{}{tcp}{service}", http("")));
    let mut client = proxy.client();
    client.get("/");
    let mut tunnel = proxy.client_of(1);
    tunnel.send("hello\n");
    tunnel.until(b"\n").unwrap();

    // One more, other settings for the first, and the TCP listener as it was.
    let short = http("max_uri_bytes = 64");
    let another = "[[listener]]\naddress = '127.0.0.1:0'\nprotocol = 'auto'\nservice = 'users'\n";
    let more = format!("{short}{tcp}{}{service}", another.replace(":0", &format!(":{}", free_port())));
    proxy.reload(&more).expect("in force");
    let listeners = proxy.app().state.listeners();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.settings.address).collect();
    assert_eq!(addresses.len(), 3);
    assert_eq!(addresses[..2], proxy.addresses[..]);
    assert_eq!(Wire::connect(addresses[2]).get("/").status(), 200);
    let long = format!("/{}", "a".repeat(64));
    assert_eq!(client.get(&long).status(), 200, "a connection that was open");
    assert_eq!(proxy.client().get(&long).status(), 414, "a new one");
    tunnel.send("hello\n");
    tunnel.until(b"\n").expect("the tunnel lives on");

    // The TCP listener goes: what it has accepted stays.
    let waiting = TcpStream::connect(addresses[1]).expect("a connection");
    proxy.reload(&format!("{short}{service}")).expect("in force");
    wait_until("nobody listens", || TcpStream::connect(addresses[1]).is_err());
    tunnel.send("hello\n");
    tunnel.until(b"\n").expect("the tunnel lives on");
    let mut waiting = Wire::new(waiting);
    waiting.send("hello\n");
    waiting.until(b"\n").expect("what waited was accepted");
    assert_eq!(client.get(&long).status(), 200);
    assert!(TcpStream::connect(addresses[2]).is_err());
}

/// A port that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Everything that is wrong is told at once, and nothing of what is right is in force.
#[test]
fn a_configuration_that_cannot_be_put_in_force_changes_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (one, two) = (named("one"), named("two"));
    let proxy = Proxy::with(&[&one], "", "");
    let before = (service(&proxy), endpoints(&proxy));
    let taken = format!("[[listener]]\naddress = '{address}'\n");
    let missing =
        "[service.carts]\nbalancer = 'none-such'\n[service.orders]\nbalancer = { plugin = 'url-hash', by = 'moon' }\n";
    let config = format!("workers = 2\n{}{taken}{}{missing}", one_listener(""), users(&[&two], "balancer = 'random'"));
    let errors = proxy.reload(&config).expect_err("much is wrong");
    let parts = ["workers cannot change", "Address already in use", "no policy is called none-such", "url-hash"];
    assert_eq!(errors.len(), parts.len(), "{errors:#?}");
    for part in parts {
        assert!(errors.iter().any(|error| error.contains(part)), "{part}: {errors:#?}");
    }
    let after = (service(&proxy), endpoints(&proxy));
    assert!(Arc::ptr_eq(&before.0, &after.0) && Arc::ptr_eq(&before.1[0], &after.1[0]));
    assert_eq!(proxy.client().get("/").text(), "one");
    assert!(proxy.app().state.directory.get("carts").is_none());
    assert_eq!((proxy.app().state.reloads.done(), proxy.app().state.reloads.refused()), (0, 1));
    drop(taken);
    // What was asked of plugins for services that there are not is forgotten: a file that refuses it is as good as any.
    proxy.reload(&format!("{}{}", one_listener(""), users(&[&two], "balancer = 'url-hash'"))).expect("in force");
    assert_eq!(proxy.client().get("/").text(), "two");
}

#[test]
fn endpoints_in_the_configuration_change_one_by_one() {
    let (one, two, three) = (named("one"), named("two"), named("three"));
    let config = |endpoints: &[&Endpoint]| format!("{}{}", one_listener(""), users(endpoints, ""));
    let proxy = Proxy::start(&config(&[&one, &two]));
    let before = endpoints(&proxy);
    proxy.reload(&config(&[&one, &three])).expect("in force");
    let after = endpoints(&proxy);
    let of = |all: &[Arc<Registered>], endpoint: &Endpoint| {
        let address = endpoint.address.to_string();
        all.iter().find(|known| known.registered.address == address).cloned()
    };
    assert!(of(&after, &two).is_none() && of(&after, &three).is_some());
    assert!(Arc::ptr_eq(&of(&before, &one).unwrap(), &of(&after, &one).unwrap()));
    // A service whose endpoints are gone is still a service.
    proxy.reload(&one_listener("")).expect("in force");
    assert_eq!(proxy.client().get("/").status(), 503);
}

#[test]
fn an_endpoint_that_is_put_first_changes_nothing_for_the_others() {
    let (one, two, new) = (named("one"), named("two"), named("new"));
    let config = |endpoints: &[&Endpoint]| format!("{}{}", one_listener(""), users(endpoints, ""));
    let proxy = Proxy::start(&config(&[&one, &two]));
    let address = one.address.to_string();
    service(&proxy).fleet.set_endpoint_paused(&address, true).expect("it is there");
    let before = endpoints(&proxy);
    proxy.reload(&config(&[&new, &one, &two])).expect("in force");
    let after = endpoints(&proxy);
    assert_eq!(after.len(), 3);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.registered.id, before.slot), (&after.registered.id, after.slot));
        assert!(Arc::ptr_eq(&before.health, &after.health));
        assert!(after.registered.order > before.registered.order);
    }
    assert!(after[0].pause().by_admin && !after[1].pause().by_admin && !after[2].pause().by_admin);
    let mut client = proxy.client();
    assert!((0..6).all(|_| client.get("/").text() != "one"), "it is still paused");
}

/// A registry that is asked elsewhere from now on: what the old one said holds until the new one has said something.
#[test]
fn a_source_that_changes_leaves_no_service_without_endpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (named("one"), named("two"));
    let file = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, endpoint: &Endpoint| {
        fs::write(file(name), format!("[services.users]\nendpoints = ['{}']\n", endpoint.address)).unwrap();
    };
    let config = |name: &str| format!("{}[registry.file]\npath = '{}'\n", one_listener(""), file(name));
    write("a.toml", &one);
    let proxy = Proxy::start(&config("a.toml"));
    assert_eq!(proxy.client().get("/").text(), "one");
    proxy.reload(&config("b.toml")).expect("in force");
    assert_eq!(proxy.client().get("/").text(), "one", "nothing else is known yet");
    write("a.toml", &two);
    write("b.toml", &two);
    wait_until("the new file holds", || {
        let endpoints = endpoints(&proxy);
        assert_eq!(endpoints.len().max(1), endpoints.len(), "never none");
        endpoints.len() == 1 && endpoints[0].registered.address == two.address.to_string()
    });
    assert_eq!(proxy.client().get("/").text(), "two");
    let report = proxy.app().state.registry.report();
    assert_eq!((report.sources.len(), report.endpoints), (1, 1));
    // Without the source there is nobody to announce anything.
    proxy.reload(&one_listener("")).expect("in force");
    assert_eq!(proxy.client().get("/").status(), 503);
    assert!(proxy.app().state.registry.report().sources.is_empty());
}

#[test]
fn another_folder_of_plugins_is_another_set_of_policies() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("there")).unwrap();
    let policy = heddle::plugin::builtin_policy("url-hash").unwrap();
    fs::write(folder.path().join("there/own.wasm"), policy).unwrap();
    let (one, two) = (named("one"), named("two"));
    let config = |place: &str| {
        let place = folder.path().join(place);
        let own = users(&[&one, &two], "balancer = 'own'");
        format!("plugins = '{}'\n{}{own}", place.display(), one_listener(""))
    };
    let proxy = Proxy::start(&config("there"));
    assert_eq!(proxy.client().get("/").status(), 200);
    let errors = proxy.reload(&config("elsewhere")).expect_err("no such policy");
    assert!(errors[0].starts_with("no policy is called own"), "{errors:?}");
    fs::rename(folder.path().join("there"), folder.path().join("elsewhere")).unwrap();
    let before = service(&proxy).balancer.clone();
    proxy.reload(&config("elsewhere")).expect("in force");
    let now = service(&proxy).balancer.clone();
    assert!(!Arc::ptr_eq(&before, &now) && now.current().unwrap().origin.to_string().ends_with("elsewhere/own.wasm"));
    let mut client = proxy.client();
    assert_eq!(client.get("/").text(), client.get("/").text());
}

/// Connections that are open count, also where there are more of them than there may be from now on.
#[test]
fn fewer_connections_of_a_listener_are_fewer_at_once() {
    let endpoint = Endpoint::saying(OK);
    let config =
        |most: usize| format!("{}{}", one_listener(&format!("max_connections = {most}")), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config(3));
    let mut clients = [proxy.client(), proxy.client()];
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
    proxy.reload(&config(1)).expect("in force");
    let mut waits = proxy.client();
    waits.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n");
    let [one, two] = clients;
    drop(one);
    let connections = || proxy.app().state.workers.connections[0].load(std::sync::atomic::Ordering::Relaxed);
    wait_until("one is left", || connections() == 1);
    assert!(waits.is_silent());
    drop(two);
    assert_eq!(waits.response().status(), 200);
    proxy.reload(&config(2)).expect("in force");
    assert_eq!(proxy.client().get("/").status(), 200, "beside the one that waited");
}

struct Files {
    folder: TempDir,
    path: PathBuf,
}

fn files(text: &str) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heddle.toml");
    fs::write(&path, text).unwrap();
    Files { folder, path }
}

fn run(path: &Path) -> Heddle {
    Heddle::start(command(&["run", "--config", path.to_str().expect("UTF-8")]))
}

const IN_FORCE: &str = "goes on with the configuration in ";
const AS_IT_WAS: &str = "goes on with the configuration as it was";

/// By its change, by SIGHUP, and by the swap of a link as Kubernetes mounts a ConfigMap.
#[test]
fn the_file_is_followed() {
    let server = process::serve(|| {});
    let config = |more: &str| {
        let head = "drain = '100ms'\n[admin]\naddress = '127.0.0.1:0'\n[[listener]]\naddress = '127.0.0.1:0'\n";
        format!("{head}[service.users]\nendpoints = ['{server}']\n{more}\n")
    };
    let files = files("");
    let at = |name: &str| files.folder.path().join(name);
    for (version, text) in [("..1", config("")), ("..2", config("[service.carts]"))] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("heddle.toml"), text).unwrap();
    }
    fs::remove_file(&files.path).unwrap();
    std::os::unix::fs::symlink("..1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/heddle.toml", &files.path).unwrap();
    let heddle = run(&files.path);
    let (proxy, admin) = (heddle.address("listening on "), heddle.address("health and metrics on "));
    let knows = |name: &str| get(admin, "/state").body.contains(&format!("\"name\": \"{name}\""));
    wait_for("it serves", || (get(proxy, "/").status == 200).then_some(()));
    assert!(knows("users") && !knows("carts"));

    std::os::unix::fs::symlink("..2", at("..new")).unwrap();
    fs::rename(at("..new"), at("..data")).unwrap();
    heddle.after(IN_FORCE, 0);
    assert!(knows("carts"));

    fs::remove_file(&files.path).unwrap();
    fs::write(&files.path, config("[service.orders]")).unwrap();
    heddle.after(IN_FORCE, 1);
    assert!(knows("orders"));

    // Touched: nothing happens. Broken: nothing changes, and every line says where it is wrong.
    let broken = format!("{}[service.late]\nretries = 1\nbalancer = 7\n", config(""));
    fs::write(&files.path, &broken).unwrap();
    heddle.after(AS_IT_WAS, 0);
    for part in ["heddle.toml:10: service.late.retries: ", "heddle.toml:11: service.late.balancer: "] {
        assert_eq!(heddle.count(part), 1, "{part}: {:#?}", heddle.said());
    }
    assert!(!knows("late"));
    heddle.signal(Signal::HUP);
    heddle.after(AS_IT_WAS, 1);

    fs::write(&files.path, config("[[listener]]\naddress = 'x'")).unwrap();
    heddle.after(AS_IT_WAS, 2);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = format!("[[listener]]\naddress = '{}'", taken.local_addr().unwrap());
    fs::write(&files.path, config(&format!("{listener}\n[service.x]\nbalancer = 'none-such'"))).unwrap();
    heddle.after(AS_IT_WAS, 3);
    assert_eq!(heddle.count("Address already in use (os error 98) ("), 1, "{:#?}", heddle.said());
    assert_eq!(heddle.count("heddle.toml:9: listener[1].address)"), 1, "{:#?}", heddle.said());
    assert_eq!(heddle.count("heddle.toml:11: service.x.balancer: no policy is called"), 1, "{:#?}", heddle.said());

    fs::write(&files.path, config("")).unwrap();
    heddle.after(IN_FORCE, 2);
    heddle.signal(Signal::HUP);
    heddle.after(IN_FORCE, 3);
    let figures = get(admin, "/metrics").body;
    for figure in ["{result=\"done\"} 4", "{result=\"refused\"} 4"] {
        assert!(figures.contains(&format!("heddle_config_reloads_total{figure}\n")), "{figures}");
    }
    assert_eq!(get(proxy, "/").status, 200);
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
}
