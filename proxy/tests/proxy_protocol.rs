//! The PROXY protocol: accepted from those who may send it, and sent to services that ask for it.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;
#[path = "support/peers.rs"]
mod peers;

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};

use http::{Endpoint, Message, OK, Proxy, Wire, one_listener, users, wait_until};
use peers::{Server, run};

const TRUSTED: &str = "proxy_protocol = [\"127.0.0.0/8\"]\nforwarded = \"legacy\"\nheader_timeout = \"300ms\"";

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n";

/// Version 2 with this command and family.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u8::try_from(rest.len()).expect("short");
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family, 0, length], rest].concat()
}

/// From 192.0.2.7:4711 to 192.0.2.1:80, and something more.
fn v2_from() -> Vec<u8> {
    v2(0x21, 0x11, &[192, 0, 2, 7, 192, 0, 2, 1, 0x12, 0x67, 0, 80, 0x04, 0, 1, 0])
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: users\r\n\r\n";

#[test]
fn the_client_is_the_one_that_the_header_names() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], TRUSTED, "");
    let v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n".to_vec();
    let mapped = b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 4711 80\r\n".to_vec();
    for (header, client) in [
        (V1.to_vec(), "192.0.2.7"),
        (v2_from(), "192.0.2.7"),
        (v6, "2001:db8::7"),
        (mapped, "192.0.2.7"),
        // Who speaks for itself is taken for what it is.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x20, 0, &[]), "127.0.0.1"),
        (v2(0x21, 0x31, &[0; 216]), "127.0.0.1"),
    ] {
        // With the first request in one piece, and in as many pieces as there are bytes.
        for size in [1000, 1] {
            let mut wire = proxy.client();
            for piece in [&header[..], REQUEST].concat().chunks(size) {
                wire.send(piece);
            }
            assert_eq!(wire.response().status(), 200);
            assert_eq!(endpoint.last().header("x-forwarded-for").as_deref(), Some(client), "{}", header.escape_ascii());
            // It stands for all requests of the connection.
            wire.send(REQUEST);
            assert_eq!(wire.response().status(), 200);
            assert_eq!(endpoint.last().header("x-forwarded-for").as_deref(), Some(client));
        }
    }
}

#[test]
fn without_a_header_nothing_is_served_to_those_who_must_send_one() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], TRUSTED, "");
    let too_long = [&v2(0x21, 0x11, &[0; 12])[..14], &[0x20, 0]].concat();
    for start in [REQUEST, b"PROXY TCP4 192.0.2.7\r\n", b"PROXY", b"", &too_long] {
        let mut wire = proxy.client();
        wire.send(start);
        wire.expect_end();
    }
    assert_eq!(endpoint.connections(), 0);
}

#[test]
fn from_others_a_header_is_no_request() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "proxy_protocol = [\"10.0.0.0/8\"]\nforwarded = \"legacy\"", "");
    let mut wire = proxy.client();
    wire.send([V1, REQUEST].concat());
    wire.response().assert_refused(400, "router", "http_request_error");
    wire.expect_end();
    assert_eq!(endpoint.connections(), 0);
    let mut wire = proxy.client();
    wire.send(REQUEST);
    assert_eq!(wire.response().status(), 200);
    assert_eq!(endpoint.last().header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
}

#[test]
fn curl_sends_it() {
    let endpoint = Endpoint::answering(|request: &Message| {
        let client = request.header("x-forwarded-for").unwrap_or_default();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{client}", client.len())
    });
    let proxy = Proxy::with(&[&endpoint], TRUSTED, "");
    let url = format!("http://{}/", proxy.addresses[0]);
    let args = ["-sS", "--max-time", "20", "--haproxy-protocol", "-H", "Host: users", &url];
    assert_eq!(run("curl", &args, b""), "127.0.0.1");
}

/// What an endpoint was sent first, as far as it is this long.
struct First(Endpoint, Arc<Mutex<Option<Vec<u8>>>>);

impl First {
    fn of(length: usize) -> Self {
        let first: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
        let seen = first.clone();
        let endpoint = Endpoint::start(move |_, mut wire| {
            *seen.lock().unwrap() = Some(wire.exactly(length).expect("a header"));
            wire.send("220 ready\r\n");
            wire.expect_end();
        });
        Self(endpoint, first)
    }

    #[track_caller]
    fn wait(&self) -> Vec<u8> {
        wait_until("something was sent", || self.1.lock().unwrap().is_some());
        self.1.lock().unwrap().take().expect("bytes")
    }
}

const TCP: &str = "protocol = \"tcp\"\nservice = \"users\"";

/// The header goes before everything else, and does not wait for the client to say anything.
#[test]
fn endpoints_are_told_who_connects_to_what() {
    // On all addresses, so that only the socket knows which of them the client chose.
    let listener = format!("[[listener]]\naddress = \"0.0.0.0:0\"\n{TCP}\n");
    // Ports that are given out have five digits.
    let v1 = First::of("PROXY TCP4 127.0.0.1 127.0.0.2 32768 32768\r\n".len());
    let v2 = First::of(28);
    for (version, first) in [("v1", &v1), ("v2", &v2)] {
        let settings = format!("proxy_protocol = {version:?}");
        let proxy = Proxy::start(&format!("{listener}\n{}", users(&[&first.0], &settings)));
        let port = proxy.addresses[0].port();
        let client = Wire::connect(SocketAddr::from(([127, 0, 0, 2], port)));
        let from = client.stream.local_addr().unwrap();
        let header = first.wait();
        if version == "v1" {
            let expected = format!("PROXY TCP4 {} 127.0.0.2 {} {port}\r\n", from.ip(), from.port());
            assert_eq!(String::from_utf8_lossy(&header), expected);
        } else {
            let IpAddr::V4(ip) = from.ip() else { panic!("{from}") };
            let [a, b] = from.port().to_be_bytes();
            let [c, d] = port.to_be_bytes();
            let addresses = [&ip.octets()[..], &[127, 0, 0, 2, a, b, c, d]].concat();
            assert_eq!(header, self::v2(0x21, 0x11, &addresses));
        }
        let mut greeting = [0; 11];
        (&client.stream).read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
    }
}

#[test]
fn what_one_proxy_said_is_said_to_the_next() {
    let first = First::of(V1.len());
    let listener = format!("{TCP}\nproxy_protocol = [\"127.0.0.0/8\"]");
    let proxy = Proxy::with(&[&first.0], &listener, "proxy_protocol = \"v1\"");
    let mut wire = proxy.client();
    wire.send(v2_from());
    assert_eq!(String::from_utf8_lossy(&first.wait()), String::from_utf8_lossy(V1));
}

/// Requests of several clients share a connection: none of them is what a header could name.
#[test]
fn requests_carry_none() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "", "proxy_protocol = \"v1\"");
    assert_eq!(proxy.client().get("/").status(), 200);
    assert_eq!(endpoint.last().start, "GET / HTTP/1.1");
}

#[test]
fn nginx_takes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8").to_owned();
    let nginx = Server::start("nginx", |port| {
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log stderr;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
             fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
             server {{ listen 127.0.0.1:{port} proxy_protocol;\n\
             return 200 \"$proxy_protocol_addr:$proxy_protocol_port\"; }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).expect("written");
        let mut command = Command::new("nginx");
        command.args(["-p", &path, "-c", &format!("{path}/nginx.conf"), "-e", "stderr"]);
        command
    });
    for version in ["v1", "v2"] {
        let proxy = Proxy::start(&format!(
            "{}\n[service.users]\nendpoints = [\"{}\"]\nproxy_protocol = {version:?}\n",
            one_listener(TCP),
            nginx.address
        ));
        let mut client = proxy.client();
        let from = client.stream.local_addr().expect("an address");
        assert_eq!(client.get("/").text(), from.to_string());
    }
}
