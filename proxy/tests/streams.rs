//! Long streams take no memory, however they come and however slowly they are read.

#![cfg(test)]

#[path = "support/chunks.rs"]
mod chunks;
#[path = "support/process.rs"]
mod process;
#[path = "support/streams.rs"]
mod streams;

use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use chunks::{Endpoint, Shape};
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

const SHAPES: [Shape; 6] = [
    Shape::Chunks(1 << 10),
    Shape::Chunks(4 << 10),
    Shape::Chunks(8 << 10),
    Shape::Chunks(16 << 10),
    Shape::Chunks(64 << 10),
    Shape::Tiny,
];

/// KiB that chunks may take on top of what the same transfers take with their length.
const MORE: u64 = 8 << 10;

/// Bytes of a transfer in MiB; `STREAMS_MIB=256` makes it as long as the issue has it, in some minutes.
fn length() -> usize {
    std::env::var("STREAMS_MIB").map_or(24, |mib| mib.parse::<usize>().expect("a number")) << 20
}

/// Of the smallest chunks there are fewer bytes: 500,000 of them where a transfer is 256 MiB.
fn blocks_of(shape: Shape, length: usize) -> usize {
    if shape == Shape::Tiny { length / (256 << 20) * 7813 + 1000 } else { shape.blocks(length) }
}

/// The most memory that these transfers take, in KiB.
fn peak_of(shapes: &[Shape], transfer: impl Fn(&chunks::Proxy, &Endpoint, bool, Shape)) -> u64 {
    let endpoint = Endpoint::start();
    let proxy = chunks::Proxy::start(&endpoint);
    for tls in [false, true] {
        for shape in shapes {
            transfer(&proxy, &endpoint, tls, *shape);
        }
    }
    let peak = proxy.heddle.peak_memory();
    println!("{peak} KiB at most with {shapes:?}");
    peak
}

/// Issue 10, 1: the output of a chunked body grew by all of it.
#[test]
fn chunks_take_no_memory_whatever_their_size() {
    let transfer = |proxy: &chunks::Proxy, _: &Endpoint, tls, shape| {
        let blocks = blocks_of(shape, length());
        proxy.download(tls, shape, blocks);
        proxy.upload(tls, shape, blocks);
    };
    let (with_length, chunked) = (peak_of(&[Shape::Length], transfer), peak_of(&SHAPES, transfer));
    assert!(chunked <= with_length + MORE, "{chunked} KiB, and {with_length} KiB with a length");
}

/// The same where the client reads nothing, and where the endpoint does.
#[test]
fn chunks_that_nobody_reads_take_no_memory() {
    const LENGTH: usize = 64 << 20;
    let transfer = |proxy: &chunks::Proxy, endpoint: &Endpoint, tls, shape: Shape| {
        endpoint.sent.store(0, Relaxed);
        let reader = proxy.blocked(tls, shape, shape.blocks(LENGTH));
        endpoint.until_blocked();
        let upload = (!tls).then(|| proxy.blocked_upload(shape, shape.blocks(LENGTH)));
        drop((reader, upload));
    };
    let (with_length, chunked) = (peak_of(&[Shape::Length], transfer), peak_of(&SHAPES, transfer));
    assert!(chunked <= with_length + MORE, "{chunked} KiB, and {with_length} KiB with a length");
}

/// Issue 10, 2: KiB that each of many holds that do not read, of whatever kind.
#[track_caller]
fn assert_each_holds_little<T>(what: &str, mut blocked: impl FnMut(&chunks::Proxy, &Endpoint) -> T) {
    // So many that what the process takes once, and not for each, is no part of the figure.
    const FIRST: usize = 48;
    const MANY: usize = 48;
    const MOST: u64 = 64;
    // One after the other: each wants the machine to come to rest.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let endpoint = Endpoint::start();
    let proxy = chunks::Proxy::start(&endpoint);
    let mut open = Vec::new();
    let mut memory = [FIRST, MANY].map(|count| {
        open.extend((0..count).map(|_| blocked(&proxy, &endpoint)));
        endpoint.until_blocked();
        proxy.heddle.memory()
    });
    memory.sort_unstable();
    let each = (memory[1] - memory[0]) / MANY as u64;
    println!("{what}: {each} KiB each");
    assert!(each <= MOST, "{what}: {each} KiB each");
}

#[test]
fn a_blocked_reader_holds_little() {
    for tls in [false, true] {
        for shape in [Shape::Length, Shape::Chunks(8 << 10), Shape::Chunks(64 << 10)] {
            let blocked = |proxy: &chunks::Proxy, _: &Endpoint| proxy.blocked(tls, shape, shape.blocks(64 << 20));
            assert_each_holds_little(&format!("reader, TLS {tls}, {shape:?}"), blocked);
        }
    }
}

#[test]
fn a_blocked_upload_holds_little() {
    for shape in [Shape::Length, Shape::Chunks(8 << 10)] {
        let blocked = |proxy: &chunks::Proxy, endpoint: &Endpoint| {
            endpoint.sent.store(1, Relaxed);
            proxy.blocked_upload(shape, shape.blocks(64 << 20))
        };
        assert_each_holds_little(&format!("upload, {shape:?}"), blocked);
    }
}

/// A connection of HTTP/2 whose streams' windows are opened once and never again, and that is read all the while.
struct BlockedStreams {
    sender: h2::client::SendRequest<bytes::Bytes>,
    streams: Vec<h2::client::ResponseFuture>,
}

impl BlockedStreams {
    fn connect(to: std::net::SocketAddr, window: u32) -> Self {
        let (give, take) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let stream = tokio::net::TcpStream::connect(to).await.expect("a connection");
                let mut client = h2::client::Builder::new();
                client.initial_window_size(window).initial_connection_window_size(1 << 30);
                let (sender, connection) = client.handshake(stream).await.expect("a handshake");
                give.send(sender).expect("wanted");
                connection.await
            })
        });
        Self { sender: take.recv().expect("a connection"), streams: Vec::new() }
    }

    fn ask(&mut self, target: &str) {
        let request = http::Request::get(format!("http://far{target}")).body(()).expect("a request");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(poll_fn(|cx| self.sender.poll_ready(cx))).expect("room");
        self.streams.push(self.sender.send_request(request, true).expect("sent").0);
    }
}

#[test]
fn a_blocked_stream_of_http_2_holds_little() {
    for shape in [Shape::Length, Shape::Chunks(8 << 10)] {
        let mut connection = None;
        assert_each_holds_little(&format!("stream, {shape:?}"), |proxy, _| {
            let connection = connection.get_or_insert_with(|| BlockedStreams::connect(proxy.plain, 65_535));
            connection.ask(&format!("/{}/{}", if shape == Shape::Length { "length" } else { "8192" }, 10_000));
        });
    }
}
