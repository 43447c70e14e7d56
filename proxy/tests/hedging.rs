//! A second attempt beside a slow one.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use heddle::service::StatsTotal;
use http::{DEADLINE, Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};

/// As many as make a percentile, and some more.
const USUAL: usize = 150;

fn stats(proxy: &Proxy) -> StatsTotal {
    proxy.app().state.directory.get("users").expect("a service").stats()
}

/// Two endpoints that answer at once, but for the first request of `/slow`, which gets no answer from either.
struct Pair {
    endpoints: [Endpoint; 2],
    /// Says when the connection of that request has ended.
    ended: Receiver<()>,
}

fn pair() -> Pair {
    let (sender, ended) = mpsc::channel();
    let slow = Arc::new(AtomicUsize::new(0));
    let endpoints = [slow.clone(), slow].map(|slow| {
        let sender = Mutex::new(sender.clone());
        Endpoint::start(move |_, mut wire| {
            while let Some(request) = wire.request() {
                if request.start.contains("/slow") && slow.fetch_add(1, Ordering::SeqCst) == 0 {
                    wire.expect_end();
                    sender.lock().unwrap().send(()).expect("a listener");
                    return;
                }
                if wire.try_send(OK).is_err() {
                    return;
                }
            }
        })
    });
    Pair { endpoints, ended }
}

fn proxy(pair: &Pair, service: &str) -> Proxy {
    let endpoints = pair.endpoints.each_ref();
    Proxy::start(&format!("{}{}", one_listener(""), users(&endpoints, service)))
}

fn as_usual(client: &mut Wire) {
    for _ in 0..USUAL {
        assert_eq!(client.get("/").status(), 200);
    }
}

#[test]
fn the_first_answer_wins_and_the_other_attempt_is_given_up() {
    let pair = pair();
    let proxy = proxy(&pair, "retry = { plugin = \"retry\", hedge = \"p95\" }");
    let mut client = proxy.client();
    as_usual(&mut client);
    let before = stats(&proxy).hedges;
    assert_eq!(client.get("/slow").text(), "ok");
    pair.ended.recv_timeout(DEADLINE).expect("the loser's connection ends");
    assert_eq!(stats(&proxy).hedges, before + 1);
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

#[test]
fn nothing_is_sent_twice_before_it_is_known_what_is_slow() {
    let pair = pair();
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", per_try_timeout = \"1s\" }";
    let proxy = proxy(&pair, retry);
    assert_eq!(proxy.client().get("/slow").status(), 200);
    assert_eq!((stats(&proxy).hedges, stats(&proxy).retries), (0, 1));
}

#[test]
fn only_what_is_idempotent_is_sent_twice() {
    let pair = pair();
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", per_try_timeout = \"1s\" }";
    let proxy = proxy(&pair, retry);
    let mut client = proxy.client();
    as_usual(&mut client);
    let before = stats(&proxy).hedges;
    client.send("POST /slow HTTP/1.1\r\nHost: users\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.response().status(), 504);
    assert_eq!(stats(&proxy).hedges, before);
    pair.ended.recv_timeout(Duration::from_secs(20)).expect("the connection ends");
}

#[test]
fn a_hedge_takes_from_the_budget() {
    let pair = pair();
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", per_try_timeout = \"1s\" }";
    let proxy = proxy(&pair, &format!("{retry}\nretry_budget = {{ percent = 0, min = 0 }}"));
    let mut client = proxy.client();
    as_usual(&mut client);
    assert_eq!(client.get("/slow").status(), 504);
    let stats = stats(&proxy);
    assert!(stats.hedges == 0 && stats.over_budget > 0, "{stats:?}");
}

/// Two endpoints that answer at once, but for `/slow`: the first request for it is answered so once a second one is there,
/// and all others get no answer. Also how many there were.
fn overtaken(answer: &'static str) -> ([Endpoint; 2], Arc<(Mutex<usize>, Condvar)>) {
    let slow = Arc::new((Mutex::new(0), Condvar::new()));
    let endpoints = [slow.clone(), slow.clone()].map(|slow| {
        Endpoint::start(move |_, mut wire| {
            while let Some(request) = wire.request() {
                let mut answered = OK;
                if request.start.contains("/slow") {
                    let (count, changed) = &*slow;
                    let mut number = count.lock().unwrap();
                    *number += 1;
                    changed.notify_all();
                    if *number > 1 {
                        drop(number);
                        return wire.expect_end();
                    }
                    drop(changed.wait_timeout_while(number, DEADLINE, |number| *number < 2));
                    answered = answer;
                }
                if wire.try_send(answered).is_err() {
                    return;
                }
            }
        })
    });
    (endpoints, slow)
}

#[test]
fn an_answer_that_is_no_failure_waits_for_no_other() {
    let (endpoints, _) = overtaken("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
    let retry = "request_timeout = \"1h\"\nretry = { plugin = \"retry\", hedge = \"p95\" }";
    let proxy = Proxy::with(&endpoints.each_ref(), "", retry);
    let mut client = proxy.client();
    as_usual(&mut client);
    assert_eq!(client.get("/slow").text(), "none");
    wait_until("nothing is under way", || proxy.in_flight() == 0);
}

/// Both are counted: there is no third attempt.
#[test]
fn a_failure_is_better_than_no_answer() {
    let (endpoints, slow) = overtaken("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy");
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", attempts = 2, per_try_timeout = \"1s\" }";
    let proxy = Proxy::with(&endpoints.each_ref(), "", retry);
    let mut client = proxy.client();
    as_usual(&mut client);
    assert_eq!(client.get("/slow").text(), "busy");
    assert_eq!(*slow.0.lock().unwrap(), 2);
}

#[test]
fn a_probe_has_no_other_beside_it() {
    let pair = pair();
    // Without a breaker, the proxy would put the service back into use meanwhile.
    let service =
        "breaker = \"circuit-breaker\"\nretry = { plugin = \"retry\", hedge = \"p95\", per_try_timeout = \"1s\" }";
    let proxy = proxy(&pair, service);
    let mut client = proxy.client();
    as_usual(&mut client);
    let before = stats(&proxy).hedges;
    let fleet = proxy.app().state.directory.get("users").expect("a service").fleet.clone();
    assert!(fleet.open(fleet.health.seen(), Duration::ZERO, 1));
    assert_eq!(client.get("/slow").status(), 504);
    assert_eq!(stats(&proxy).hedges, before);
}
