//! Long streams take no memory, however they come and however slowly they are read.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;
#[path = "support/streams.rs"]
mod streams;

use std::sync::atomic::Ordering::Relaxed;

use streams::{Far, Proxy, Way};

const GIB: u64 = 1 << 30;

/// In KiB: 40 MB.
const MOST: u64 = 40_000_000 / 1024;

#[track_caller]
fn assert_small(proxy: &Proxy) {
    let peak = proxy.heddle.peak_memory();
    println!("{peak} KiB at most");
    assert!(peak < MOST, "{peak} KiB");
}

#[track_caller]
fn a_gibibyte_each_way(way: Way) {
    each_way(way, GIB);
}

#[track_caller]
fn each_way(way: Way, length: u64) {
    let far = Far::start();
    let proxy = Proxy::start(way, &far);
    assert_eq!(proxy.upload(length), length);
    assert_small(&proxy);
    assert_eq!(proxy.download(length), length);
    assert_small(&proxy);
}

/// The endpoint sends as fast as it can, the client takes 10 KB a second.
#[track_caller]
fn a_slow_reader(way: Way) {
    let far = Far::start();
    let proxy = Proxy::start(way, &far);
    proxy.sip(GIB, 30);
    assert_small(&proxy);
    // What was taken from the endpoint is in the kernel's buffers.
    let taken = far.sent.load(Relaxed);
    assert!((1..64 << 20).contains(&taken), "{taken}");
}

#[test]
fn a_gibibyte_over_tcp() {
    a_gibibyte_each_way(Way::Tcp);
}

#[test]
fn a_gibibyte_in_a_tunnel() {
    a_gibibyte_each_way(Way::Connect);
}

#[test]
fn a_gibibyte_over_http() {
    a_gibibyte_each_way(Way::Http);
}

#[test]
fn a_quarter_of_a_gibibyte_over_tls() {
    each_way(Way::Tls, GIB / 4);
}

#[test]
fn a_quarter_of_a_gibibyte_over_http_2() {
    each_way(Way::Http2, GIB / 4);
}

#[test]
fn a_slow_reader_over_tcp() {
    a_slow_reader(Way::Tcp);
}

#[test]
fn a_slow_reader_in_a_tunnel() {
    a_slow_reader(Way::Connect);
}

#[test]
fn a_slow_reader_over_http() {
    a_slow_reader(Way::Http);
}

#[test]
fn a_slow_reader_over_tls() {
    a_slow_reader(Way::Tls);
}

/// curl opens a window of tens of MiB, so what holds the proxy back is that nobody reads the connection.
#[test]
fn a_slow_reader_over_http_2() {
    a_slow_reader(Way::Http2);
}
