//! A second attempt beside a slow one.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
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
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", attempts = 1, per_try_timeout = \"300ms\" }";
    let proxy = proxy(&pair, retry);
    assert_eq!(proxy.client().get("/slow").status(), 504);
    assert_eq!(stats(&proxy).hedges, 0);
}

#[test]
fn only_what_is_idempotent_is_sent_twice() {
    let pair = pair();
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", attempts = 1, per_try_timeout = \"300ms\" }";
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
    let retry = "retry = { plugin = \"retry\", hedge = \"p95\", per_try_timeout = \"300ms\" }";
    let proxy = proxy(&pair, &format!("{retry}\nretry_budget = {{ percent = 0, min = 0 }}"));
    let mut client = proxy.client();
    as_usual(&mut client);
    assert_eq!(client.get("/slow").status(), 504);
    let stats = stats(&proxy);
    assert!(stats.hedges == 0 && stats.over_budget > 0, "{stats:?}");
}
