//! Where requests and tunnels for other hosts may go, however they are asked for, and how many connections one client
//! may have.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/client.rs"]
mod client;
#[path = "support/http.rs"]
mod http;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use client::named;
use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};
use socket2::{Domain, Socket, Type};

/// How a client asks for a host.
#[derive(Debug, Clone, Copy)]
enum Way {
    Request,
    Connect,
    Socks,
}

const WAYS: [Way; 3] = [Way::Request, Way::Connect, Way::Socks];

/// Asks for a host; the error of a refusal.
#[track_caller]
fn ask(way: Way, at: SocketAddr, host: &str, port: u16) -> Result<(), String> {
    let mut client = Wire::connect(at);
    let error = |message: http::Message| match message.status() {
        200 => Ok(()),
        status => {
            let said = message.header("proxy-status").expect("a reason");
            let error = said.split("error=").nth(1).and_then(|rest| rest.split(';').next()).expect("an error");
            Err(format!("{status} {error}"))
        }
    };
    match way {
        Way::Request => {
            client.send(format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
            error(client.response())
        }
        Way::Connect => error(client.connect_to(&format!("{host}:{port}"))),
        Way::Socks => {
            let length = u8::try_from(host.len()).expect("a short name");
            client.send([&[5, 1, 0, 5, 1, 0, 3, length], host.as_bytes(), &port.to_be_bytes()].concat());
            match client.exactly(4).expect("replies")[3] {
                0 => Ok(()),
                reply => Err(format!("socks {reply}")),
            }
        }
    }
}

/// Asks in every way.
#[track_caller]
fn expect(at: SocketAddr, host: &str, port: u16, refused: Option<&str>) {
    for way in WAYS {
        let expected = match (way, refused) {
            (_, None) => Ok(()),
            (Way::Socks, Some(_)) => Err("socks 2".to_owned()),
            (_, Some(error)) => Err(error.to_owned()),
        };
        // SOCKS has addresses of IPv6 without brackets.
        let host = if matches!(way, Way::Socks) { host.trim_matches(['[', ']']) } else { host };
        assert_eq!(ask(way, at, host, port), expected, "{way:?} for {host}:{port}");
    }
}

/// How often an endpoint was connected to. Connections are accepted in order: once one of the test's own has been served
/// all others have been counted.
#[track_caller]
fn connections_before(endpoint: &Endpoint) -> usize {
    assert_eq!(Wire::connect(endpoint.address).get("/").status(), 200);
    endpoint.connections() - 1
}

const ADDRESS: Option<&str> = Some("403 destination_ip_prohibited");
const PORT: Option<&str> = Some("403 http_request_denied");

/// The same proxy as seen from this machine, for one that listens on all addresses.
fn local(proxy: &Proxy, listener: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), proxy.addresses[listener].port())
}

fn everywhere(settings: &str) -> String {
    format!("[[listener]]\naddress = \"0.0.0.0:0\"\n{settings}\n")
}

#[test]
fn what_nobody_means_is_denied_in_every_spelling() {
    let endpoint = Endpoint::saying(OK);
    let listeners = one_listener("") + &one_listener("passthrough = { allow_networks = [\"0.0.0.0/0\", \"::/0\"] }");
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&endpoint], "")));
    for at in &proxy.addresses {
        for host in [
            "169.254.169.254",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:a9fe:a9fe::1]",
            "2852039166",
            "0xA9FEA9FE",
            "0251.0376.0251.0376",
            "169.254.43518",
            "[fd00:ec2::254]",
            "100.100.100.200",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
        ] {
            expect(*at, host, 80, ADDRESS);
        }
    }
}

#[test]
fn loopback_is_denied_to_those_who_are_not_on_it() {
    let (host, service) = (named("host"), Endpoint::saying(OK));
    let port = host.address.port();
    let listeners = everywhere("passthrough = true")
        + &everywhere("passthrough = { allow_networks = [\"0.0.0.0/0\"] }")
        + &everywhere("passthrough = { allow_networks = [\"127.0.0.0/8\"] }")
        + &everywhere("passthrough = { allow_networks = [\"127.0.0.0/8\"], deny_networks = [\"127.0.0.0/16\"] }")
        + &everywhere("");
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&service], "")));
    for name in
        ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
    {
        for listener in [0, 1, 3] {
            expect(local(&proxy, listener), name, port, ADDRESS);
        }
    }
    assert_eq!(connections_before(&host), 0);
    for name in ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"] {
        expect(local(&proxy, 2), name, port, None);
    }
    expect(local(&proxy, 2), "10.0.0.1", port, ADDRESS);
    // Nothing passes through by default where others can ask.
    expect(local(&proxy, 4), "127.0.0.1", port, Some("404 destination_not_found"));
    assert_eq!(service.connections(), 0);
}

#[test]
fn lists_hold_for_every_way_to_ask() {
    let (host, service) = (named("host"), Endpoint::saying(OK));
    let port = host.address.port();
    let passthrough = |keys: &str| one_listener(&format!("passthrough = {{ {keys} }}"));
    let listeners = passthrough(&format!("allow_ports = [443, \"{port}-{port}\"]"))
        + &passthrough(&format!("deny_ports = [{port}]"))
        + &passthrough(&format!("allow_ports = [\"1-65535\"], deny_ports = [{port}]"))
        + &passthrough("allow_networks = [\"10.0.0.0/8\"]")
        + &passthrough("deny_networks = [\"127.0.0.1\"]")
        + &passthrough("allow_networks = [\"127.0.0.0/8\"], deny_networks = [\"127.0.0.0/24\"]")
        + &passthrough("allow_networks = [\"127.0.0.0/8\"], deny_networks = [\"127.1.0.0/16\"]");
    let proxy = Proxy::start(&format!("{listeners}{}", users(&[&service], "")));
    let at = |listener: usize| proxy.addresses[listener];
    expect(at(0), "127.0.0.1", if port == 80 { 81 } else { 80 }, PORT);
    expect(at(1), "127.0.0.1", port, PORT);
    expect(at(2), "127.0.0.1", port, PORT);
    expect(at(3), "127.0.0.1", port, ADDRESS);
    expect(at(4), "127.0.0.1", port, ADDRESS);
    expect(at(5), "127.0.0.1", port, ADDRESS);
    expect(at(6), "127.1.0.1", port, ADDRESS);
    expect(at(0), "127.0.0.1", port, None);
    expect(at(6), "127.0.0.1", port, None);
    // A connection that one listener keeps is not another's: after all of these it is still denied there.
    expect(at(4), "127.0.0.1", port, ADDRESS);
    assert_eq!((connections_before(&host), service.connections()), (6, 0));
}

/// Services are not other hosts: what the registry announces is what the operator announced.
#[test]
fn lists_are_not_for_services() {
    let endpoint = named("users");
    let none = "passthrough = { deny_networks = [\"0.0.0.0/0\", \"::/0\"], deny_ports = [\"1-65535\"] }";
    let proxy = Proxy::with(&[&endpoint], none, "");
    expect(proxy.addresses[0], "users", 80, None);
    expect(proxy.addresses[0], "127.0.0.1", endpoint.address.port(), PORT);
}

/// A connection from this address of loopback; all of 127.0.0.0/8 is this machine.
fn client_from(address: Ipv4Addr, to: SocketAddr) -> Wire {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(address.into(), 0).into()).expect("bound");
    socket.connect(&to.into()).expect("a connection");
    Wire::new(TcpStream::from(socket))
}

#[test]
fn a_client_has_so_many_connections_and_no_more() {
    let endpoint = named("a");
    let limited = "max_connections_per_client = 2";
    let config = format!("workers = 2\n{}{}{}", one_listener(limited), one_listener(limited), users(&[&endpoint], ""));
    let proxy = Proxy::start(&config);
    let refused = || proxy.app().state.listeners()[0].refusals().next().expect("a reason").1;
    let mut held: Vec<Wire> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut held {
        assert_eq!(client.get("/").status(), 200);
    }
    for n in 1..4 {
        proxy.client().expect_end();
        assert_eq!(refused(), n);
    }
    // Others are others, and so are other listeners.
    assert_eq!(client_from(Ipv4Addr::new(127, 0, 0, 2), proxy.addresses[0]).get("/").status(), 200);
    assert_eq!(proxy.client_of(1).get("/").status(), 200);
    // Whoever goes makes room.
    drop(held.pop());
    let mut replaced = None;
    wait_until("there is room", || {
        let mut client = proxy.client();
        let sent = client.try_send("GET / HTTP/1.1\r\nHost: users\r\n\r\n").is_ok();
        let served = sent && client.try_response().is_ok_and(|answer| answer.status() == 200);
        replaced = served.then_some(client);
        served
    });
    proxy.client().expect_end();
    assert_eq!(held.pop().expect("a client").get("/").status(), 200);
}

/// Behind a balancer that says whom it connects for, these are the clients, and the balancer is none.
#[test]
fn clients_are_counted_by_whom_a_header_names() {
    let endpoint = named("a");
    let limited = "max_connections_per_client = 1\nproxy_protocol = [\"127.0.0.1\"]";
    let proxy = Proxy::with(&[&endpoint], limited, "");
    let client = |last: u8| {
        let mut client = proxy.client();
        client.send(format!("PROXY TCP4 192.0.2.{last} 192.0.2.100 4711 80\r\n"));
        client
    };
    let mut held: Vec<Wire> = (1..4).map(client).collect();
    for client in &mut held {
        assert_eq!(client.get("/").status(), 200);
    }
    client(1).expect_end();
    let refused = || proxy.app().state.listeners()[0].refusals().next().expect("a reason").1;
    assert_eq!(refused(), 1);
    // Who says nothing of others is counted for itself.
    let mut own = proxy.client();
    own.send("PROXY UNKNOWN\r\n");
    assert_eq!(own.get("/").status(), 200);
    // Whoever goes makes room.
    drop(held.remove(0));
    wait_until("there is room", || {
        let mut client = client(1);
        let sent = client.try_send("GET / HTTP/1.1\r\nHost: users\r\n\r\n").is_ok();
        sent && client.try_response().is_ok_and(|answer| answer.status() == 200)
    });
}
