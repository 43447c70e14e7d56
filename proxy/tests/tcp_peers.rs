//! Programs as they are out there, over a TCP listener.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;
#[path = "support/peers.rs"]
mod peers;

use std::process::Command;

use http::{Proxy, bytes, wait_until};
use peers::{Server, run};

/// Redis speaks a protocol of its own: small messages, large values, and thousands of commands at once.
#[test]
fn redis() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start("redis-server", |port| {
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(folder.path());
        command
    });
    let proxy = Proxy::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nservice = \"cache\"\n\
         [service.cache]\nendpoints = [\"{}\"]\n",
        server.address
    ));
    let port = proxy.addresses[0].port().to_string();
    let cli = |args: &[&str], input: &[u8]| run("redis-cli", &[&["-p", &port], args].concat(), input);
    assert_eq!(cli(&["ping"], b""), "PONG\n");
    assert_eq!(cli(&["set", "greeting", "hello"], b""), "OK\n");
    assert_eq!(cli(&["get", "greeting"], b""), "hello\n");
    // A value of three megabytes, in hexadecimal since redis-cli escapes what is not text.
    let value: String = bytes(3 << 19).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(cli(&["-x", "set", "large"], value.as_bytes()), "OK\n");
    assert!(cli(&["get", "large"], b"").trim_end() == value);
    // Ten thousand commands without waiting for an answer.
    let many: String = (0..10_000).map(|n| format!("set key:{n} {n}\r\n")).collect();
    assert!(cli(&["--pipe"], many.as_bytes()).contains("errors: 0, replies: 10000"));
    assert_eq!(cli(&["dbsize"], b""), "10002\n");
    let stats = proxy.app().state.directory.get("cache").expect("a service");
    wait_until("each redis-cli was a tunnel that has ended", || stats.stats().tunnels.ended == [7, 0, 0, 0]);
}
