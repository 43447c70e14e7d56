//! Nobody takes what others need: slow bodies, one client's share of connections, tunnels to the proxy itself, descriptors.
//! Issue 10, numbers 4 and 5.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/frames.rs"]
mod frames;
#[path = "support/http.rs"]
mod http1;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, STATUS_200, literal};
use heddle::service::Limit;
use http1::{DEADLINE, Endpoint, OK, Proxy, Wire, connect_from, one_listener, users, wait_until};
use http2::{Http2Endpoint, Manners};
use process::{Heddle, get};

/// A connection from another address of loopback.
fn wire_from(client: [u8; 4], to: SocketAddr) -> Wire {
    Wire::new(connect_from(client, to).expect("a connection"))
}

/// The head of a POST to `users` in HPACK.
fn post(headers: &[(&str, &str)]) -> Vec<u8> {
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    const ROOT: u8 = 0x84;
    let mut head = vec![POST, HTTP, ROOT];
    head.extend(literal(":authority", "users"));
    headers.iter().for_each(|(name, value)| head.extend(literal(name, value)));
    head
}

fn limited(proxy: &Proxy, by: Limit) -> u64 {
    proxy.app().state.directory.get("users").expect("a service").stats().limited[by as usize]
}

/// Connections of clients.
fn clients(proxy: &Proxy) -> usize {
    use std::sync::atomic::Ordering::Relaxed;
    proxy.app().state.workers.connections.iter().map(|count| count.load(Relaxed)).sum()
}

/// Issue 10, 4: requests that announce a body and send nothing of it take no connection.
#[test]
fn silent_posts_leave_another_client_served() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "", "pool = { max_connections = 64 }");
    let mut silent: Vec<Frames> = (0..10).map(|_| Frames::client(proxy.client())).collect();
    for (number, client) in silent.iter_mut().enumerate() {
        let length = [("content-length", "10")];
        let head = post(if number % 2 == 0 { &length } else { &[] });
        (0..99).for_each(|stream| client.send(HEADERS, END_HEADERS, 2 * stream + 1, &head));
        // A frame without a byte is nothing of a body.
        client.send(DATA, 0, 1, &[]);
    }
    let mut plain: Vec<Wire> = (0..20).map(|_| proxy.client()).collect();
    for (number, client) in plain.iter_mut().enumerate() {
        let framing = if number % 2 == 0 { "Content-Length: 10" } else { "Transfer-Encoding: chunked" };
        client.send(format!("POST / HTTP/1.1\r\nHost: users\r\n{framing}\r\n\r\n"));
    }
    // What answers a ping has read all that came before it.
    for client in &mut silent {
        client.send(frames::PING, 0, 0, &[1; 8]);
        while client.until(frames::PING).payload != [1; 8] {}
    }
    assert_eq!(proxy.client().get("/").text(), "ok");
    assert_eq!((endpoint.connections(), proxy.upstream_connections(), proxy.in_flight()), (1, 1, 0));
    // Each of them goes on once its body begins.
    let chunk = ["0123456789", "a\r\n0123456789\r\n0\r\n\r\n"];
    for (number, client) in plain.iter_mut().enumerate() {
        client.send(chunk[number % 2]);
        assert_eq!(client.response().text(), "ok");
        assert_eq!(endpoint.last().body, b"0123456789");
    }
    silent[0].send(DATA, END_STREAM, 3, b"0123456789");
    assert_eq!(silent[0].until(HEADERS).stream, 3);
    assert_eq!(endpoint.last().body, b"0123456789");
}

/// Issue 10, 4: they are answered 408, whatever they speak and wherever they go.
#[test]
fn a_body_that_never_begins_is_answered_408() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "body_timeout = \"200ms\"", "");
    let host = format!("http://{}/", endpoint.address);
    for (target, service) in [("/", true), (host.as_str(), false)] {
        for framing in ["Content-Length: 3", "Transfer-Encoding: chunked"] {
            let mut client = proxy.client();
            client.send(format!("POST {target} HTTP/1.1\r\nHost: users\r\n{framing}\r\n\r\n"));
            client.response().assert_refused(408, "upstream", "http_request_error");
            client.expect_end();
        }
        assert_eq!(endpoint.connections(), 0, "{service}");
    }
    let mut client = Frames::client(proxy.client());
    client.send(HEADERS, END_HEADERS, 1, &post(&[]));
    let head = client.until(HEADERS);
    // `:status` by its name in the static table, and the value without Huffman or with it.
    assert!(head.payload.starts_with(&[0x48, 3, b'4', b'0', b'8']) || head.payload.first() == Some(&0x48), "{head:?}");
    assert_ne!(head.payload.first(), Some(&STATUS_200));
    assert_eq!(endpoint.connections(), 0);
}

/// Issue 10, 4: a body whose response has not begun has a pace to keep; once it has begun, none.
#[test]
fn a_body_that_trickles_is_given_up_before_its_response_and_not_after_it() {
    let (told, ended) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        let head = wire.head().expect("a head");
        if head.start.contains("/early") {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
            let whole = wire.with_body(head, false).map(|request| request.body.len());
            wire.send("ok");
            told.send(whole.ok()).unwrap();
        } else {
            told.send(wire.with_body(head, false).map(|request| request.body.len()).ok()).unwrap();
        }
    });
    let proxy = Proxy::with(&[&endpoint], "body_timeout = \"400ms\"", "request_timeout = \"1m\"");
    let trickle = |target: &str, bytes: usize| {
        let mut client = proxy.client();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: users\r\nContent-Length: {bytes}\r\n\r\n"));
        for _ in 0..bytes {
            if client.try_send("x").is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        client
    };
    let mut client = trickle("/", 40);
    client.response().assert_refused(408, "upstream", "http_request_error");
    assert_eq!(ended.recv_timeout(DEADLINE).unwrap(), None);
    assert_eq!(trickle("/early", 40).response().text(), "ok");
    assert_eq!(ended.recv_timeout(DEADLINE).unwrap(), Some(40));
}

/// Issue 10, 4: the server of a call may speak first, and a client stream may be quiet for longer than `body_timeout`.
#[test]
fn calls_go_on_whoever_speaks_first() {
    let endpoint = Endpoint::start(|_, wire| {
        let mut frames = Frames::server(wire);
        let stream = frames.until(HEADERS).stream;
        // Only then the client sends something.
        frames.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        frames.send(DATA, 0, stream, b"server first");
        assert_eq!(frames.until(DATA).payload, b"client second");
        frames.send(DATA, END_STREAM, stream, b"end");
        let stream = frames.until(HEADERS).stream;
        // A call whose response begins at its end.
        let mut received = Vec::new();
        loop {
            let frame = frames.until(DATA);
            received.extend_from_slice(&frame.payload);
            if frame.flags & END_STREAM != 0 {
                break;
            }
        }
        frames.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        frames.send(DATA, END_STREAM, stream, &received);
        while frames.next().is_some() {}
    });
    let service = format!("[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n", endpoint.address);
    let proxy = Proxy::start(&format!("{}{service}", one_listener("body_timeout = \"200ms\"")));
    let mut client = Frames::client(proxy.client());
    let call = post(&[("content-type", "application/grpc"), ("te", "trailers")]);
    client.send(HEADERS, END_HEADERS, 1, &call);
    assert_eq!(client.until(DATA).payload, b"server first");
    thread::sleep(Duration::from_millis(600));
    client.send(DATA, END_STREAM, 1, b"client second");
    assert_eq!(client.until(DATA).payload, b"end");

    client.send(HEADERS, END_HEADERS, 3, &call);
    client.send(DATA, 0, 3, b"one ");
    thread::sleep(Duration::from_millis(600));
    client.send(DATA, END_STREAM, 3, b"two");
    assert_eq!(client.until(DATA).payload, b"one two");
}

/// Issue 10, 4: with `Expect: 100-continue` the endpoint has the head at once.
#[test]
fn who_waits_for_a_word_is_not_waited_for() {
    let (told, heads) = mpsc::channel();
    let endpoint = Endpoint::start(move |_, mut wire| {
        let head = wire.head().expect("a head");
        told.send(()).unwrap();
        let _ = wire.with_body(head, false);
        let _ = wire.try_send(OK);
    });
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    heads.recv_timeout(DEADLINE).expect("the endpoint has the head");
    assert_eq!(client.head().expect("a word").status(), 100);
    client.send("abc");
    assert_eq!(client.response().text(), "ok");
}

/// A service with room for ten connections, of which eight are one client's share, and one that waits long enough.
const TEN: &str = "pool = { max_connections = 10 }\nconnect_timeout = \"20s\"\nrequest_timeout = \"1m\"";

/// Issue 10, 4: while others wait, the slowest body of a client with more than its share is ended, and no other.
#[test]
fn the_slowest_upload_makes_room_for_another_client() {
    let endpoint = Endpoint::answering(|_| OK);
    let proxy = Proxy::with(&[&endpoint], "", TEN);
    let mut slow: Vec<Wire> = (0..10).map(|_| proxy.client()).collect();
    for (number, client) in slow.iter_mut().enumerate() {
        client.send("POST /slow HTTP/1.1\r\nHost: users\r\nContent-Length: 1000000\r\n\r\n");
        client.send(vec![b'x'; if number == 4 { 10 } else { 100_000 }]);
        wait_until("it has its connection", || proxy.upstream_connections() == number as u32 + 1);
    }
    wait_until("the endpoint reads", || endpoint.connections() == 10);
    // Another request of the same client ends nothing, and is served after those of others.
    let mut own = proxy.client();
    own.send("GET /own HTTP/1.1\r\nHost: users\r\n\r\n");
    let mut other = wire_from([127, 0, 0, 2], proxy.addresses[0]);
    assert_eq!(other.get("/other").text(), "ok");
    slow.remove(4).response().assert_refused(503, "upstream", "connection_limit_reached");
    assert_eq!(own.response().text(), "ok");
    assert_eq!(limited(&proxy, Limit::ClientShare), 1);
    for mut client in slow {
        client.send(vec![b'x'; 900_000]);
        assert_eq!(client.response().text(), "ok");
    }
}

/// Issue 10, 4: the same for the streams of an HTTP/2 connection to the endpoint, held by calls that say nothing.
#[test]
fn silent_calls_make_room_for_another_client() {
    let endpoint = Http2Endpoint::start(Manners { streams: Some(20), ..Manners::default() });
    let service = format!(
        "[service.users]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\npool = {{ max_connections = 1 }}\n\
         connect_timeout = \"20s\"\n",
        endpoint.address
    );
    let proxy = Proxy::start(&format!("{}{service}", one_listener("")));
    // What the endpoint allows is known then.
    assert_eq!(proxy.client().get("/").status(), 200);
    let mut silent = Frames::client(proxy.client());
    let call = post(&[("content-type", "application/grpc"), ("te", "trailers")]);
    (0..20).for_each(|stream| silent.send(HEADERS, END_HEADERS, 2 * stream + 1, &call));
    wait_until("all streams are held", || proxy.in_flight() == 20);
    assert_eq!(wire_from([127, 0, 0, 2], proxy.addresses[0]).get("/").status(), 200);
    assert_eq!((limited(&proxy, Limit::ClientShare), endpoint.connections()), (1, 1));
    assert_eq!(silent.until(HEADERS).flags & END_STREAM, END_STREAM, "one was refused in gRPC's way");
    assert_eq!(proxy.in_flight(), 19);
}

/// Issue 10, 4: the same for responses that are not taken, and for tunnels.
#[test]
fn slow_readers_and_tunnels_make_room_for_another_client() {
    let endpoint = Endpoint::start(|_, mut wire| {
        while let Some(head) = wire.head() {
            if head.start.contains("/large") {
                let _ = wire.try_send("HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n");
                let piece = vec![b'x'; 1 << 16];
                while wire.try_send(&piece).is_ok() {}
                return;
            }
            let _ = wire.try_send(OK);
        }
    });
    let listeners = format!("{}{}", one_listener(""), one_listener("protocol = \"tcp\"\nservice = \"users\""));
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], TEN)));
    let full = || wait_until("all are in use", || proxy.upstream_connections() == 10);
    let from_another = || wire_from([127, 0, 0, 2], proxy.addresses[0]).get("/").text();

    let mut readers: Vec<Wire> = (0..10).map(|_| proxy.client()).collect();
    readers.iter_mut().for_each(|client| client.send("GET /large HTTP/1.1\r\nHost: users\r\n\r\n"));
    full();
    readers.iter_mut().for_each(|client| assert_eq!(client.head().expect("a head").status(), 200));
    assert_eq!(from_another(), "ok");
    drop(readers);
    wait_until("all have left", || proxy.in_flight() == 0);

    let tunnels: Vec<Wire> = (0..10).map(|_| proxy.client_of(1)).collect();
    wait_until("all are in use", || proxy.upstream_connections() == 10);
    assert_eq!(from_another(), "ok");
    let ended = |wire: &Wire| {
        wire.stream.set_nonblocking(true).expect("a mode");
        !matches!((&wire.stream).read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    wait_until("one has ended", || tunnels.iter().filter(|wire| ended(wire)).count() == 1);
    assert!(limited(&proxy, Limit::ClientShare) >= 1);
}

/// A registry in a file, in which `users` is registered later.
struct Registry {
    folder: tempfile::TempDir,
}

impl Registry {
    fn new() -> Self {
        let registry = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::write(registry.path(), "[services]\n").expect("written");
        registry
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("services.toml")
    }

    fn config(&self) -> String {
        format!("[registry.file]\npath = {:?}\nrescan = \"100ms\"\n", self.path())
    }

    fn announce(&self, endpoint: &str, proxy: &Proxy) {
        fs::write(self.path(), format!("[services.users]\nendpoints = ['{endpoint}']\n")).expect("written");
        wait_until("it is registered", || {
            let service = proxy.app().state.directory.get("users");
            service.is_some_and(|service| {
                service.snapshot().endpoints().any(|registered| registered.registered.address == endpoint)
            })
        });
    }
}

/// Issue 10, 5: a connection to one of the own listeners is refused, whatever leads there.
#[test]
fn nothing_leads_to_the_proxy_itself() {
    let registry = Registry::new();
    let listeners = [
        one_listener(""),
        one_listener("protocol = \"tcp\"\nservice = \"users\""),
        "[[listener]]\naddress = \"0.0.0.0:0\"\nprotocol = \"tcp\"\nservice = \"users\"\n".to_owned(),
    ];
    let checked = "[service.users]\nhealth_check = { type = \"tcp\", interval = \"100ms\" }\n\
                   ejection = { panic_percent = 100 }\n";
    let proxy = Proxy::start(&format!("{}{}{checked}", listeners.concat(), registry.config()));
    let ports: Vec<u16> = proxy.addresses.iter().map(SocketAddr::port).collect();
    let own = [
        format!("127.0.0.1:{}", ports[1]),
        format!("localhost:{}", ports[1]),
        format!("127.0.0.1:{}", ports[2]),
        format!("127.1.2.3:{}", ports[2]),
        format!("127.0.0.1:{}", ports[0]),
    ];
    for (number, endpoint) in own.iter().enumerate() {
        registry.announce(endpoint, &proxy);
        // TCP, HTTP, a tunnel to the service, one to a host, SOCKS5, a request that is passed through.
        let mut tcp = proxy.client_of(1);
        tcp.expect_end();
        proxy.client().get("/").assert_refused(508, "router", "proxy_loop_detected");
        let mut tunnel = proxy.client();
        tunnel.send("CONNECT users:80 HTTP/1.1\r\nHost: users:80\r\n\r\n");
        assert_eq!(tunnel.head().expect("a tunnel").status(), 200);
        tunnel.get("/").assert_refused(508, "router", "proxy_loop_detected");
        let mut passed = proxy.client();
        passed.send(format!("CONNECT {endpoint} HTTP/1.1\r\nHost: {endpoint}\r\n\r\n"));
        assert_eq!(passed.response().status(), 508, "{endpoint}");
        let mut passed = proxy.client();
        passed.send(format!("GET http://{endpoint}/ HTTP/1.1\r\nHost: {endpoint}\r\n\r\n"));
        assert_eq!(passed.response().status(), 508, "{endpoint}");
        let mut socks = proxy.client();
        let port = endpoint.rsplit_once(':').expect("a port").1.parse::<u16>().expect("a port").to_be_bytes();
        socks.send([&[5, 1, 0], &[5, 1, 0, 1, 127, 0, 0, 1][..], &port].concat());
        let reply = socks.exactly(4).expect("replies");
        assert_eq!((&reply[..2], reply[3]), (&[5, 0][..], 2), "{endpoint}: not allowed");
        let fleet = proxy.app().state.directory.get("users").expect("a service").fleet.clone();
        wait_until("its check fails", || fleet.checks.failed.get() > number as u64);
        assert_eq!(fleet.checks.passed.get(), 0);
    }
    assert_eq!(proxy.upstream_connections(), 0);
    wait_until("nobody is left", || clients(&proxy) == 0);
}

/// Issue 10, 5: what is listened on changes with the configuration.
#[test]
fn a_reload_changes_what_is_own() {
    let endpoint = Endpoint::saying(OK);
    let service = users(&[&endpoint], "");
    let proxy = Proxy::start(&format!("{}{service}", one_listener("")));
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("an address");
    let listeners = format!("[[listener]]\naddress = \"{}\"\n", proxy.addresses[0]);
    let ask = || {
        let mut client = proxy.client();
        client.send(format!("GET http://{free}/ HTTP/1.1\r\nHost: {free}\r\n\r\n"));
        client.response().status()
    };
    assert_eq!(ask(), 502, "nobody is there");
    proxy.reload(&format!("{listeners}[[listener]]\naddress = \"{free}\"\n{service}")).expect("in force");
    assert_eq!(ask(), 508);
    proxy.reload(&format!("{listeners}{service}")).expect("in force");
    wait_until("nobody is there any more", || ask() == 502);
}

/// Issue 10, 5: two proxies whose TCP listeners name each other open eight tunnels for a client, and no more.
#[test]
fn a_chain_of_tunnels_ends() {
    let registries = [Registry::new(), Registry::new()];
    let listener = one_listener("protocol = \"tcp\"\nservice = \"users\"");
    let proxies = registries.each_ref().map(|registry| Proxy::start(&format!("{listener}{}", registry.config())));
    registries[0].announce(&proxies[1].addresses[0].to_string(), &proxies[0]);
    registries[1].announce(&proxies[0].addresses[0].to_string(), &proxies[1]);
    let opened = || -> Vec<u64> {
        let stats = |proxy: &Proxy| proxy.app().state.directory.get("users").expect("a service").stats();
        proxies.iter().map(|proxy| stats(proxy).tunnels.opened).collect()
    };
    proxies[0].client().expect_end();
    assert_eq!(opened(), [4, 4]);
    wait_until("nobody is left", || proxies.iter().all(|proxy| clients(proxy) == 0));
    let mut client = proxies[1].client();
    client.expect_end();
    assert_eq!(opened(), [8, 8]);
}

/// A process that may have so many descriptors.
fn process_with(descriptors: u32, config: &Path) -> Heddle {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_heddle")]);
    limited.args(["run", "--config", config.to_str().expect("UTF-8")]);
    Heddle::start(limited)
}

/// Issue 10, 5: two processes whose TCP listeners name each other, and a client that has all the connections it can get:
/// both processes can be asked, and serve others.
#[test]
fn nobody_takes_all_descriptors() {
    let endpoint = Endpoint::saying(OK);
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let processes: Vec<(Heddle, [SocketAddr; 3])> = ["a", "b"]
        .map(|name| {
            let services = file(&format!("{name}-services.toml"));
            fs::write(&services, "[services]\n").expect("written");
            let config = format!(
                "workers = 1\n[admin]\naddress = '127.0.0.1:0'\n[[listener]]\naddress = '127.0.0.1:0'\nprotocol = 'tcp'\n\
                 service = 'loop'\n[[listener]]\naddress = '127.0.0.1:0'\n[registry.file]\npath = {services:?}\n\
                 rescan = '100ms'\n[service.users]\nendpoints = ['{}']\n",
                endpoint.address
            );
            let path = file(&format!("{name}.toml"));
            fs::write(&path, config).expect("written");
            let heddle = process_with(400, &path);
            let address = |part: &str, skip| heddle.after(part, skip).trim().parse().expect("an address");
            let [tcp, http] = [0, 1].map(|skip| address("listening on ", skip));
            let admin = address("health and metrics on ", 0);
            (heddle, [tcp, http, admin])
        })
        .into();
    for (name, (_, [other, ..])) in ["a", "b"].iter().zip(processes.iter().rev()) {
        let text = format!("[services.loop]\nendpoints = ['{other}']\n");
        fs::write(file(&format!("{name}-services.toml")), text).expect("written");
    }
    for (_, [_, _, admin]) in &processes {
        process::wait_for("it is registered", || {
            get(*admin, "/state")
                .body
                .contains("\"loop\"")
                .then_some(())
                .filter(|()| get(*admin, "/ready").status == 200)
        });
    }
    let (first, [tcp, http, admin]) = &processes[0];
    let looping: Vec<_> = (0..4).map(|_| connect_from([127, 0, 0, 1], *tcp)).collect();
    let held: Vec<_> = (0..300).map(|_| connect_from([127, 0, 0, 1], *http)).collect();
    for (_, [_, http, admin]) in &processes {
        assert_eq!(get(*admin, "/live").status, 200);
        assert_eq!(wire_from([127, 0, 0, 2], *http).get("/").text(), "ok");
    }
    let state: serde_json::Value = serde_json::from_str(&get(*admin, "/state").body).expect("JSON");
    let figure = |name: &str| state["descriptors"][name].as_u64().expect("a number");
    assert_eq!((figure("limit"), figure("reserved")), (400, 64));
    assert!(figure("client_connections") <= figure("for_connections") / 2);
    assert!(figure("used") <= figure("one_client") * 2 + 8, "{state}");
    // By the defaults alone: it is told, and is no warning.
    assert_eq!(first.count("may have 400 descriptors"), 1);
    assert!(first.said().iter().any(|line| line.contains("INFO") && line.contains("descriptors")));
    drop((looping, held));
    let _ = std::io::stdout().flush();
    let _ = http;
}
