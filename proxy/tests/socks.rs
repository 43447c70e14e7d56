//! SOCKS5 on the port of everything else, byte for byte and by others' clients.

#![cfg(test)]

#[path = "support/client.rs"]
mod client;
#[path = "support/http.rs"]
mod http;
#[path = "support/tls.rs"]
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use client::{curl, echo, greeter, named};
use http::{Endpoint, OK, Proxy, Wire, one_listener, users};
use tls::Authority;

/// For clients that speak first, however slow the machine is.
const PATIENT: &str = "detect_timeout = \"10s\"";

/// A request to connect to a name.
fn to_name(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("a short name");
    [&[5, 1, 0, 3, length], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// A request to connect to an address.
fn to_address(address: SocketAddr) -> Vec<u8> {
    let (kind, ip) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (4, ip.octets().to_vec()),
    };
    [&[5, 1, 0, kind][..], &ip, &address.port().to_be_bytes()].concat()
}

/// Greets, asks, and reads the reply: its code, and the address that it says.
#[track_caller]
fn ask(client: &mut Wire, request: &[u8]) -> (u8, SocketAddr) {
    client.send([5, 1, 0]);
    assert_eq!(client.exactly(2).expect("a method"), [5, 0]);
    client.send(request);
    reply(client)
}

#[track_caller]
fn reply(client: &mut Wire) -> (u8, SocketAddr) {
    let reply = client.exactly(10).expect("a reply");
    assert_eq!((reply[0], reply[2], reply[3]), (5, 0, 1), "{reply:?}");
    let ip = Ipv4Addr::new(reply[4], reply[5], reply[6], reply[7]);
    (reply[1], SocketAddr::new(ip.into(), u16::from_be_bytes([reply[8], reply[9]])))
}

#[test]
fn curl_reaches_services_by_name() {
    let authority = Authority::new();
    let (a, b) = (named("a"), named("b"));
    let pair = authority.issue("inside", &["users"]);
    let certificate = format!("[[certificate]]\ncertificate = {:?}\nkey = {:?}\n", pair.certificate, pair.key);
    let proxy = Proxy::start(&format!("{certificate}{}{}", one_listener(PATIENT), users(&[&a, &b], "")));
    let (at, ca) = (proxy.addresses[0].to_string(), authority.path());
    let everything = [("ALL_PROXY", &*format!("socks5h://{at}"))];
    // By the command line, and by the variable that all programs know.
    for (args, variables) in [(&["--socks5-hostname", &at][..], &[][..]), (&[], &everything)] {
        for (scheme, version) in [("http", "--http1.1"), ("https", "--http1.1"), ("https", "--http2")] {
            let url = format!("{scheme}://users/[1-4]");
            let answers = curl(&[args, &[version, "--cacert", &ca, &url]].concat(), variables);
            let of = |name: &str| answers.lines().filter(|line| line.starts_with(name)).count();
            assert_eq!((of("a "), of("b ")), (2, 2), "{answers}");
        }
        assert_eq!(curl(&[args, &["http://users.mesh/"]].concat(), variables).len(), "a GET / HTTP/1.1\n".len());
    }
}

#[test]
fn curl_reaches_other_hosts() {
    let (host, service) = (named("host"), Endpoint::saying(OK));
    let proxy = Proxy::to(&service);
    let (at, port) = (proxy.addresses[0].to_string(), host.address.port());
    for (how, name) in
        [("--socks5-hostname", "localhost"), ("--socks5-hostname", "127.0.0.1"), ("--socks5", "127.0.0.1")]
    {
        let url = format!("http://{name}:{port}/");
        assert_eq!(curl(&[how, &at, &url], &[]), "host GET / HTTP/1.1\n");
    }
    assert_eq!(service.connections(), 0);
}

#[test]
fn a_service_may_speak_first() {
    let endpoint = greeter();
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    assert_eq!(ask(&mut client, &to_name("users", 25)), (0, "0.0.0.0:0".parse().unwrap()));
    assert_eq!(client.line(), "220 hello\r\n");
    client.send("EHLO me\r\n");
    assert_eq!(client.line(), "echo EHLO me\r\n");
    client.finish();
    assert_eq!(client.line(), "bye\r\n");
    client.expect_end();
}

#[test]
fn the_reply_comes_once_the_host_is_reached() {
    let (host, service) = (echo(), Endpoint::saying(OK));
    let proxy = Proxy::to(&service);
    for request in [to_address(host.address), to_name("127.0.0.1", host.address.port())] {
        let mut client = proxy.client();
        let (code, bound) = ask(&mut client, &request);
        assert_eq!((code, bound.ip()), (0, Ipv4Addr::LOCALHOST.into()));
        assert!(bound.port() != 0 && bound != host.address, "{bound}");
        client.send("hello\r\n");
        assert_eq!(client.line(), "echo hello\r\n");
        client.finish();
        assert_eq!(client.line(), "bye\r\n");
        client.expect_end();
    }
}

#[test]
fn messages_may_come_in_any_pieces() {
    let host = echo();
    let proxy = Proxy::to(&host);
    let all = [&[5, 2, 2, 0][..], &to_name("127.0.0.1", host.address.port()), b"eager\r\n"].concat();
    for length in [1, 2, 3, 5, all.len()] {
        let mut client = proxy.client();
        for piece in all.chunks(length) {
            client.send(piece);
        }
        assert_eq!(client.exactly(2).expect("a method"), [5, 0]);
        assert_eq!(reply(&mut client).0, 0, "in pieces of {length}");
        assert_eq!(client.line(), "echo eager\r\n");
    }
}

#[test]
fn what_is_not_served_is_answered_in_the_words_of_socks() {
    let endpoint = Endpoint::saying(OK);
    let listeners = one_listener("") + &one_listener("passthrough = false") + &one_listener("service = \"not-yet\"");
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], "")));
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let metadata: SocketAddr = "169.254.169.254:80".parse().unwrap();
    let mapped: SocketAddr = "[::ffff:169.254.169.254]:80".parse().unwrap();
    let mut bind = to_address(closed);
    bind[1] = 2;
    let mut udp = to_address(closed);
    udp[1] = 3;
    for (listener, request, code) in [
        (0, to_address(metadata), 2),
        (0, to_address(mapped), 2),
        (0, to_name("169.254.169.254", 80), 2),
        (0, to_name("0xA9FEA9FE", 80), 2),
        (1, to_name("nobody", 80), 2),
        (1, to_address(closed), 2),
        (2, to_name("users", 80), 4),
        (0, to_address(closed), 5),
        (0, bind, 7),
        (0, udp, 7),
        (0, vec![5, 1, 0, 2], 8),
        (0, to_name("a b", 80), 1),
        (0, to_name("users", 0), 1),
        (0, vec![4, 1, 0, 80], 1),
    ] {
        let mut client = proxy.client_of(listener);
        assert_eq!(ask(&mut client, &request), (code, "0.0.0.0:0".parse().unwrap()), "{request:?}");
        client.expect_end();
    }
    // Who insists on authentication is told that there is none.
    for greeting in [&[5, 1, 2][..], &[5, 2, 1, 2], &[5, 0]] {
        let mut client = proxy.client();
        client.send(greeting);
        assert_eq!(client.exactly(2).expect("a method"), [5, 0xff], "{greeting:?}");
        client.expect_end();
    }
    assert_eq!(endpoint.connections(), 0);
}

/// Each step has to be over within `header_timeout`.
#[test]
fn a_client_that_does_not_go_on_is_not_waited_for() {
    let endpoint = Endpoint::saying(OK);
    let proxy = Proxy::with(&[&endpoint], "header_timeout = \"100ms\"", "");
    for start in [&[5][..], &[5, 3, 0], &[5, 1, 0, 5, 1, 0]] {
        let mut client = proxy.client();
        client.send(start);
        if start == [5, 1, 0, 5, 1, 0] {
            assert_eq!(client.exactly(2).expect("a method"), [5, 0]);
        }
        client.expect_end();
    }
}
