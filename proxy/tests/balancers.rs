//! Balancers that decide by what the proxy has measured, or was told by the registry, in a whole proxy.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use http::{Endpoint, OK, Proxy, one_listener, wait_until};
use tempfile::TempDir;

/// A registry's file.
struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl File {
    /// With these endpoints, each an item of the list as it stands in the file.
    fn with(endpoints: &[String]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = Self { path: folder.path().join("services.toml"), _folder: folder };
        file.write(endpoints);
        file
    }

    /// Puts another file in its place: nobody reads half of it.
    fn write(&self, endpoints: &[String]) {
        let beside = self.path.with_extension("new");
        let content = format!("[services.users]\nendpoints = [{}]\n", endpoints.join(", "));
        std::fs::write(&beside, content).expect("a file");
        std::fs::rename(&beside, &self.path).expect("a file in its place");
    }
}

/// A proxy whose service `users` is in a file.
fn proxy(file: &Path, service: &str) -> Proxy {
    let registry = format!("[registry.file]\npath = {file:?}\nrescan = \"100ms\"\n");
    Proxy::start(&format!("{}\n{registry}[service.users]\n{service}\n", one_listener("")))
}

fn item(endpoint: &Endpoint, more: &str) -> String {
    format!("{{ address = \"{}\"{more} }}", endpoint.address)
}

fn counts(endpoints: &[Endpoint]) -> Vec<usize> {
    endpoints.iter().map(|endpoint| endpoint.requests().len()).collect()
}

fn ask(proxy: &Proxy, requests: usize) {
    let mut client = proxy.client();
    for number in 0..requests {
        assert_eq!(client.get(&format!("/{number}")).status(), 200);
    }
}

#[test]
fn peak_ewma_leaves_a_slow_endpoint_with_its_first_slow_answer() {
    let slow = Endpoint::answering(|_| {
        thread::sleep(Duration::from_secs(1));
        OK
    });
    let [one, other] = [(); 2].map(|()| Endpoint::saying(OK));
    let proxy = Proxy::with(&[&slow, &one, &other], "", "balancer = \"peak-ewma\"");
    wait_until("the slow endpoint has answered", || {
        ask(&proxy, 1);
        !slow.requests().is_empty()
    });
    ask(&proxy, 200);
    // It would be a third.
    let counts = counts(&[slow, one, other]);
    assert!(counts[0] <= 20 && counts[1] >= 20 && counts[2] >= 20, "{counts:?}");
}

#[test]
fn what_takes_long_is_measured_though_nobody_judges_it() {
    const CALLED: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n";
    let endpoint = Endpoint::start(|_, mut wire| {
        while let Some(request) = wire.request() {
            if request.start.contains("/call") {
                thread::sleep(Duration::from_millis(300));
                wire.send(CALLED);
            }
        }
    });
    let call = "POST /call HTTP/1.1\r\nHost: users\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    let given_up = "GET /never HTTP/1.1\r\nHost: users\r\n\r\n";
    for (request, has_head) in [(call, true), (given_up, false)] {
        let proxy = Proxy::to(&endpoint);
        let fleet = proxy.app().state.directory.get("users").expect("a service").fleet.clone();
        fleet.read_peaks();
        let registered = fleet.snapshot().endpoints().next().expect("an endpoint").clone();
        let peak = || registered.load.peak_micros(fleet.clock.now());
        assert!(peak() <= 30_000);
        let mut client = proxy.client();
        client.send(request);
        if has_head {
            assert_eq!(client.head().expect("a head").status(), 200, "the call goes on");
        } else {
            wait_until("it is under way", || proxy.in_flight() == 1);
            let since = fleet.clock.now();
            wait_until("it takes long", || fleet.clock.now() > since + Duration::from_millis(300));
            drop(client);
        }
        wait_until("it is measured", || peak() > 100_000);
    }
}

#[test]
fn the_leader_takes_everything_and_the_next_oldest_stands_in() {
    let endpoints = [(); 3].map(|()| Endpoint::saying(OK));
    let [a, b, c] = &endpoints;
    let file = File::with(&[item(a, ""), item(b, ""), item(c, "")]);
    let proxy = proxy(&file.path, "balancer = \"leader\"");
    ask(&proxy, 20);
    assert_eq!(counts(&endpoints), [20, 0, 0]);
    file.write(&[item(b, ""), item(c, "")]);
    wait_until("the next oldest stands in", || {
        ask(&proxy, 1);
        b.requests().len() == 1
    });
    file.write(&[item(b, ""), item(c, ", metadata = { role = \"master\" }")]);
    wait_until("the master takes over", || {
        ask(&proxy, 1);
        c.requests().len() == 1
    });
    let before = counts(&endpoints);
    ask(&proxy, 20);
    assert_eq!(counts(&endpoints), [before[0], before[1], before[2] + 20]);
}

/// Of three that were there when the proxy began and one that came later, the latter starts.
#[test]
fn an_endpoint_that_is_registered_while_the_proxy_runs_starts_slowly() {
    let endpoints = [(); 4].map(|()| Endpoint::saying(OK));
    let [a, b, c, new] = &endpoints;
    let file = File::with(&[item(a, ""), item(b, ""), item(c, "")]);
    let settings = "balancer = { plugin = \"weighted-round-robin\", slow_start = \"1d\" }";
    let proxy = proxy(&file.path, settings);
    ask(&proxy, 30);
    assert_eq!(counts(&endpoints), [10, 10, 10, 0]);
    file.write(&[item(a, ""), item(b, ""), item(c, ""), item(new, "")]);
    let service = proxy.app().state.directory.get("users").expect("a service");
    wait_until("the new endpoint is registered", || service.snapshot().endpoints().count() == 4);
    let known: Vec<bool> = service.snapshot().endpoints().map(|endpoint| endpoint.registered_at.is_none()).collect();
    assert_eq!(known, [true, true, true, false]);
    // Weights of 10, 10, 10 and 1.
    ask(&proxy, 310);
    let counts = counts(&endpoints);
    assert!(counts[3].abs_diff(10) <= 1, "{counts:?}");
}
