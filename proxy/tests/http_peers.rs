//! Clients as they are out there.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;
#[path = "support/python.rs"]
mod python;

use std::process::Command;

use http::{Endpoint, Message, Proxy, bytes};
use python::python_with;

/// Answers with what it was sent, and says what the request was.
fn echo() -> Endpoint {
    Endpoint::answering(|request: &Message| {
        let host = request.header("host").unwrap_or_default();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-seen: {} {host}\r\n\r\n",
            request.body.len(),
            request.start
        );
        [head.as_bytes(), &request.body].concat()
    })
}

/// Runs a program to its end; what it printed.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    // Proxies are what these tests are about: the machine's own must not come between.
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
        command.env_remove(variable);
    }
    let output = command.args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn curl() {
    let endpoint = echo();
    let proxy = Proxy::to(&endpoint);
    let at = format!("http://{}", proxy.addresses[0]);
    let write = ["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_version} %{http_code} %header{x-seen}\n"];
    let curl = |args: &[&str]| run("curl", &[&write[..], args].concat());
    // Several on one connection, as an application has them.
    let many = curl(&["--proxy", &at, "http://users/[1-3]"]);
    let expected: Vec<String> = (1..4).map(|n| format!("1.1 200 GET /{n} HTTP/1.1 users\n")).collect();
    assert_eq!(many.replace("/dev/null", ""), expected.concat());
    assert_eq!(curl(&["-H", "Host: users", &format!("{at}/a")]), "1.1 200 GET /a HTTP/1.1 users\n");
    assert!(curl(&["-0", "--proxy", &at, "http://users/"]).ends_with(" 200 GET / HTTP/1.1 users\n"));
    assert_eq!(curl(&["-I", "--proxy", &at, "http://users/"]), "1.1 200 HEAD / HTTP/1.1 users\n");
    let h2 = ["--http2-prior-knowledge", "-H", "Host: users.mesh"];
    assert_eq!(curl(&[&h2[..], &[&format!("{at}/a")]].concat()), "2 200 GET /a HTTP/1.1 users.mesh\n");
    assert!(
        curl(&["--proxy", &at, "http://nobody.invalid/"]).starts_with("1.1 50"),
        "502 or 504, as names are resolved"
    );

    // Bodies large enough for curl to ask with Expect first, of known and of unknown length, and over HTTP/2.
    let folder = tempfile::tempdir().expect("a folder");
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    std::fs::write(&sent, bytes(3 << 20)).expect("written");
    let (upload, got_path) = (format!("@{}", sent.display()), got.display().to_string());
    for how in [&["-H", "X: y"][..], &["-H", "Transfer-Encoding: chunked"], &["--http2-prior-knowledge"]] {
        let common = ["-sS", "--max-time", "20", "-o", &got_path, "--data-binary", &upload, "-H", "Host: users", &at];
        run("curl", &[&common[..], how].concat());
        assert!(std::fs::read(&got).expect("an answer") == bytes(3 << 20), "{how:?}");
        std::fs::remove_file(&got).expect("removed");
    }
}

#[test]
fn python_requests() {
    let endpoint = echo();
    let proxy = Proxy::to(&endpoint);
    let script = "
import sys, requests
session = requests.Session()
session.trust_env = False
session.proxies = {'http': 'http://' + sys.argv[1]}
for n in range(3):
    answer = session.get(f'http://users/{n}', timeout=20)
    assert answer.status_code == 200, answer
    assert answer.headers['x-seen'] == f'GET /{n} HTTP/1.1 users', answer.headers
body = bytes(range(256)) * 5000
assert session.post('http://users.mesh/', data=body, timeout=20).content == body
pieces = (body[i:i + 1000] for i in range(0, len(body), 1000))
assert session.put('http://users/', data=pieces, timeout=20).content == body
";
    run(python_with("requests"), &["-c", script, &proxy.addresses[0].to_string()]);
    assert_eq!(endpoint.connections(), 1);
}

/// Byte for byte what `net/http` sends with `http.ProxyURL`, twice on one connection, and what undici's `ProxyAgent`
/// sends: without a tunnel if it is told so, and else with one.
#[test]
fn go_and_node() {
    let endpoint = echo();
    let proxy = Proxy::to(&endpoint);
    let mut client = proxy.client();
    for n in 0..2 {
        client.send(format!(
            "GET http://users/go?n={n} HTTP/1.1\r\nHost: users\r\nUser-Agent: Go-http-client/1.1\r\n\
             Accept-Encoding: gzip\r\n\r\n"
        ));
        assert_eq!(client.response().header("x-seen"), Some(format!("GET /go?n={n} HTTP/1.1 users")));
    }
    client.send(
        "POST http://users/go HTTP/1.1\r\nHost: users\r\nUser-Agent: Go-http-client/1.1\r\n\
         Transfer-Encoding: chunked\r\nAccept-Encoding: gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    assert_eq!(client.response().text(), "hello");
    let mut client = proxy.client();
    client.send(
        "GET http://users/node HTTP/1.1\r\nhost: users\r\nconnection: keep-alive\r\naccept: */*\r\n\
         accept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\naccept-encoding: gzip, deflate\r\n\r\n",
    );
    assert_eq!(client.response().header("x-seen").as_deref(), Some("GET /node HTTP/1.1 users"));
    for connection in ["close", "keep-alive"] {
        let mut client = proxy.client();
        let connect = format!(
            "CONNECT users:80 HTTP/1.1\r\nhost: users\r\nconnection: {connection}\r\nproxy-connection: keep-alive\r\n\r\n"
        );
        client.send(&connect);
        let tunnel = client.head().expect("a head");
        assert_eq!((tunnel.status(), tunnel.header("transfer-encoding")), (200, None));
        assert_eq!(tunnel.header("content-length"), None);
        for n in 0..2 {
            client.send(format!("GET /node?{n} HTTP/1.1\r\nhost: users\r\nconnection: keep-alive\r\n\r\n"));
            assert_eq!(client.response().header("x-seen"), Some(format!("GET /node?{n} HTTP/1.1 users")));
        }
        // Sent without waiting for the answer, which RFC 9110, 9.3.6 lets a client do.
        let mut client = proxy.client();
        client.send(format!("{connect}GET /eager HTTP/1.1\r\nhost: users\r\n\r\n"));
        assert_eq!(client.head().expect("a head").status(), 200);
        assert_eq!(client.response().header("x-seen").as_deref(), Some("GET /eager HTTP/1.1 users"));
    }
    assert_eq!(endpoint.connections(), 1);
}
