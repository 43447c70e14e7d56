//! TCP listeners: connections that are passed on as they are.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use http::{DEADLINE, Endpoint, Proxy, Wire, bytes, one_listener, users, wait_until};
use socket2::{Domain, Socket, Type};

const TCP: &str = "protocol = \"tcp\"\nservice = \"users\"";

fn proxy(endpoints: &[&Endpoint], service: &str) -> Proxy {
    Proxy::with(endpoints, TCP, service)
}

/// Endpoints whose connections the test itself speaks on.
struct Far {
    endpoint: Endpoint,
    accepted: Receiver<TcpStream>,
}

impl Far {
    fn start() -> Self {
        let (sender, accepted) = channel();
        let sender: Mutex<Sender<TcpStream>> = Mutex::new(sender);
        let endpoint = Endpoint::start(move |_, wire| {
            let _the_test_is_over = sender.lock().unwrap().send(wire.stream);
        });
        Self { endpoint, accepted }
    }

    /// The next connection.
    #[track_caller]
    fn accept(&self) -> TcpStream {
        self.accepted.recv_timeout(DEADLINE).expect("a connection")
    }
}

#[track_caller]
fn expect(from: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    from.read_exact(&mut got).expect("bytes");
    assert!(got == bytes, "{:?}", got.escape_ascii().to_string());
}

/// Waits for the end, which is no reset, and before which nothing may come.
#[track_caller]
fn expect_end(from: &mut TcpStream) {
    assert_eq!(from.read(&mut [0]).expect("an end"), 0);
}

/// How tunnels to `users` have ended: closed, idle, broken, stopped, refused.
fn ended(proxy: &Proxy) -> [u64; 5] {
    let tunnels = proxy.app().state.directory.get("users").expect("a service").stats().tunnels;
    let [closed, idle, broken, stopped] = tunnels.ended;
    [closed, idle, broken, stopped, tunnels.refused]
}

#[track_caller]
fn wait_ended(proxy: &Proxy, expected: [u64; 5]) {
    wait_until(&format!("ended {expected:?}"), || ended(proxy) == expected);
}

#[test]
fn each_direction_ends_by_itself() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "");
    // The client first.
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect(&mut endpoint, b"question");
    expect_end(&mut endpoint);
    endpoint.write_all(b"answer").unwrap();
    expect(&mut client, b"answer");
    endpoint.write_all(b", and more").unwrap();
    drop(endpoint);
    expect(&mut client, b", and more");
    expect_end(&mut client);
    wait_ended(&proxy, [1, 0, 0, 0, 0]);
    // The endpoint first.
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    endpoint.write_all(b"all I have to say").unwrap();
    endpoint.shutdown(Shutdown::Write).unwrap();
    expect(&mut client, b"all I have to say");
    expect_end(&mut client);
    client.write_all(b"noted").unwrap();
    expect(&mut endpoint, b"noted");
    assert_eq!(proxy.in_flight(), 1);
    drop(client);
    expect_end(&mut endpoint);
    wait_ended(&proxy, [2, 0, 0, 0, 0]);
    let stats = proxy.app().state.directory.get("users").unwrap().stats().tunnels;
    assert_eq!((stats.sent, stats.received), (13, 33));
    assert_eq!((proxy.in_flight(), proxy.upstream_connections()), (0, 0));
}

/// As in the protocols of mail and of databases.
#[test]
fn the_server_may_speak_first() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "");
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    endpoint.write_all(b"220 ready\r\n").unwrap();
    expect(&mut client, b"220 ready\r\n");
    client.write_all(b"EHLO\r\n").unwrap();
    expect(&mut endpoint, b"EHLO\r\n");
}

/// Nothing is looked into, whatever it looks like.
#[test]
fn what_looks_like_a_protocol_is_passed_on_too() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "");
    for bytes in [&b"GET / HTTP/1.1\r\nHost: users\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"\x05\x01\x00", b"PRI *"]
    {
        let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
        client.write_all(bytes).unwrap();
        expect(&mut endpoint, bytes);
    }
}

#[test]
fn much_arrives_in_both_directions_at_once() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "");
    let (client, endpoint) = (proxy.client().stream, far.accept());
    let there = Arc::new(bytes(16 << 20));
    let mut back = there.to_vec();
    back.reverse();
    let back = Arc::new(back);
    thread::scope(|scope| {
        for (side, sent, expected) in [(&client, &there, &back), (&endpoint, &back, &there)] {
            scope.spawn(move || {
                let mut side = side;
                // Pieces of all sizes, so that copying and splicing take turns.
                let mut rest = &sent[..];
                for size in [1, 100, 1 << 20, 3000, 40_000, 4 << 20].into_iter().cycle() {
                    let (piece, after) = rest.split_at(size.min(rest.len()));
                    side.write_all(piece).unwrap();
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                side.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut got = Vec::new();
                let mut side = side;
                side.read_to_end(&mut got).unwrap();
                assert!(got == **expected, "{} bytes of {}", got.len(), expected.len());
            });
        }
    });
    wait_ended(&proxy, [1, 0, 0, 0, 0]);
}

/// A tunnel that is open is counted as one, and its bytes as they go.
#[test]
fn figures_tell_of_tunnels_under_way() {
    let far = Far::start();
    let config =
        format!("admin = {{ address = \"127.0.0.1:0\" }}\n{}\n{}", one_listener(TCP), users(&[&far.endpoint], ""));
    let proxy = Proxy::start(&config);
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    client.write_all(b"four").unwrap();
    expect(&mut endpoint, b"four");
    let figures = || {
        let mut admin = Wire::connect(proxy.app().admin.expect("an admin server"));
        admin.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        admin.response().text()
    };
    let has = |line: &str| figures().lines().any(|other| other == line);
    for line in [
        "heddle_tunnels_open{service=\"users\"} 1.0",
        "heddle_tunnel_bytes_total{service=\"users\",direction=\"sent\"} 4",
        "heddle_tunnel_bytes_total{service=\"users\",direction=\"received\"} 0",
        "heddle_tunnels_total{service=\"users\",result=\"closed\"} 0",
        "heddle_unrouted_tunnels_total{result=\"refused\"} 0",
        "heddle_passed_through_tunnels_total{result=\"closed\"} 0",
    ] {
        wait_until(line, || has(line));
    }
    drop((client, endpoint));
    wait_until("it has ended", || has("heddle_tunnels_total{service=\"users\",result=\"closed\"} 1"));
    assert!(has("heddle_tunnels_open{service=\"users\"} 0.0"));
}

#[test]
fn a_tunnel_that_stands_still_is_closed() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "tunnel_idle_timeout = \"1s\"");
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    // One direction is enough to keep it.
    for _ in 0..6 {
        endpoint.write_all(b"x").unwrap();
        expect(&mut client, b"x");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(ended(&proxy), [0; 5]);
    expect_end(&mut client);
    expect_end(&mut endpoint);
    wait_ended(&proxy, [0, 1, 0, 0, 0]);
    assert_eq!(proxy.in_flight(), 0);
}

/// Sends into a connection that cannot be served, and waits for its end.
#[track_caller]
fn assert_closed_without_reset(proxy: &Proxy, refused: u64) {
    let mut client = proxy.client().stream;
    client.write_all(b"anybody there?").unwrap();
    expect_end(&mut client);
    // Were it a reset, this would fail at the latest the second time.
    client.write_all(b"nobody").unwrap();
    wait_until("it is counted", || ended(proxy)[4] == refused);
    client.write_all(b"hm").unwrap();
    drop(client);
}

#[test]
fn a_client_that_cannot_be_served_is_closed_without_a_reset() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = |endpoints: &str| format!("{}\n[service.users]\nendpoints = [{endpoints}]\n", one_listener(TCP));
    let down = Proxy::start(&config(&format!("\"{closed}\"")));
    for refused in 1..4 {
        assert_closed_without_reset(&down, refused);
    }
    assert_eq!((down.in_flight(), down.upstream_connections()), (0, 0));
    assert_eq!(down.app().state.directory.get("users").unwrap().stats().failed_attempts, 3);
    let out_of_use = Proxy::start(&config(&format!("{{ address = \"{closed}\", weight = 0 }}")));
    assert_closed_without_reset(&out_of_use, 1);
}

#[test]
fn a_connection_beyond_the_endpoints_limit_is_refused() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "pool = { max_connections = 1 }");
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    assert_closed_without_reset(&proxy, 1);
    client.write_all(b"still there").unwrap();
    expect(&mut endpoint, b"still there");
    drop((client, endpoint));
    wait_ended(&proxy, [1, 0, 0, 0, 1]);
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    client.write_all(b"next").unwrap();
    expect(&mut endpoint, b"next");
}

#[test]
fn a_side_that_breaks_off_breaks_the_other() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "");
    let break_off = |stream: TcpStream| {
        Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    };
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    client.write_all(b"half of").unwrap();
    expect(&mut endpoint, b"half of");
    break_off(client);
    assert_eq!(endpoint.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    wait_ended(&proxy, [0, 0, 1, 0, 0]);
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    endpoint.write_all(b"half of").unwrap();
    expect(&mut client, b"half of");
    break_off(endpoint);
    assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    wait_ended(&proxy, [0, 0, 2, 0, 0]);
}

/// Requests under way at each endpoint, in the order of the configuration.
fn in_flight(proxy: &Proxy) -> Vec<u32> {
    proxy.app().state.directory.get("users").unwrap().snapshot().in_flight()
}

/// Two endpoints that say which they are, and then hold the connection.
fn two() -> [Endpoint; 2] {
    ["a", "b"].map(|name| {
        Endpoint::start(move |_, mut wire| {
            wire.send(name);
            wire.expect_end();
        })
    })
}

fn name(mut client: &TcpStream) -> char {
    let mut name = [0];
    client.read_exact(&mut name).expect("a name");
    name[0].into()
}

#[test]
fn least_connections_counts_connections() {
    let [a, b] = two();
    let proxy = proxy(&[&a, &b], "balancer = \"least-connections\"");
    let connect = |_| {
        let client = proxy.client().stream;
        (name(&client), client)
    };
    let (at_a, at_b): (Vec<_>, Vec<_>) = (0..6).map(connect).partition(|(name, _)| *name == 'a');
    assert_eq!((at_a.len(), at_b.len()), (3, 3));
    assert_eq!(in_flight(&proxy), [3, 3]);
    drop(at_a);
    wait_until("those at one endpoint have ended", || in_flight(&proxy) == [0, 3]);
    let next: String = (0..3).map(connect).map(|(name, _)| name).collect();
    assert_eq!(next, "aaa");
}

/// A connection from another of this machine's addresses.
fn connect_from(ip: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    Wire::new(socket.into()).stream
}

#[test]
fn ip_hash_keeps_a_client_at_its_endpoint() {
    let [a, b] = two();
    let proxy = proxy(&[&a, &b], "balancer = \"ip-hash\"");
    let mut used = String::new();
    for n in 1..20 {
        let ip = IpAddr::from([127, 0, 0, n]);
        let names: String = (0..3).map(|_| name(&connect_from(ip, proxy.addresses[0]))).collect();
        assert!(names == "aaa" || names == "bbb", "{ip}: {names}");
        used += &names;
    }
    assert!(used.contains('a') && used.contains('b'), "{used}");
}

#[test]
fn tunnels_go_on_while_the_proxy_stops() {
    let far = Far::start();
    let config = format!("drain = \"20s\"\n{}\n{}", one_listener(TCP), users(&[&far.endpoint], ""));
    let proxy = Proxy::start(&config);
    let state = proxy.app().state.clone();
    let (mut client, mut endpoint) = (proxy.client().stream, far.accept());
    thread::scope(|scope| {
        let stopped = scope.spawn(|| proxy.stop());
        wait_until("it stops", || state.is_draining());
        for _ in 0..3 {
            client.write_all(b"ping").unwrap();
            expect(&mut endpoint, b"ping");
            endpoint.write_all(b"pong").unwrap();
            expect(&mut client, b"pong");
        }
        drop(client);
        expect_end(&mut endpoint);
        drop(endpoint);
        assert!(stopped.join().unwrap(), "nothing had to be cut off");
    });
}

#[test]
fn tunnels_end_with_the_time_for_stopping() {
    let far = Far::start();
    let proxy = proxy(&[&far.endpoint], "");
    let (mut client, _endpoint) = (proxy.client().stream, far.accept());
    let service = proxy.app().state.directory.get("users").unwrap();
    wait_until("the tunnel is open", || service.stats().tunnels.open() == 1);
    assert!(!proxy.stop());
    expect_end(&mut client);
    let tunnels = service.stats().tunnels;
    assert_eq!((tunnels.open(), tunnels.ended), (0, [0, 0, 0, 1]));
}
