//! What tests of tunnels have in common: endpoints that tell themselves apart, and others' programs as clients.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::Shutdown;
use std::process::Command;

use super::http::{Endpoint, Message, Wire};

/// Says its name and the request line to each request.
pub fn named(name: &'static str) -> Endpoint {
    Endpoint::answering(move |request: &Message| {
        let body = format!("{name} {}\n", request.start);
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    })
}

/// Greets before it is spoken to, as SMTP does, and then says back line by line; at the end it says goodbye.
pub fn greeter() -> Endpoint {
    Endpoint::start(|_, mut wire| {
        wire.send("220 hello\r\n");
        echo_lines(&mut wire);
    })
}

/// Says back line by line; at the end it says goodbye.
pub fn echo() -> Endpoint {
    Endpoint::start(|_, mut wire| echo_lines(&mut wire))
}

fn echo_lines(wire: &mut Wire) {
    while let Ok(line) = wire.until(b"\n") {
        wire.send([b"echo ", &line[..]].concat());
    }
    let _who_has_gone_hears_nothing = wire.try_send("bye\r\n");
}

impl Wire {
    /// A line with its end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        String::from_utf8(self.until(b"\n").expect("a line")).expect("text")
    }

    /// Ends this direction; the other goes on.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("an end");
    }

    /// Asks for a tunnel; the answer's head.
    #[track_caller]
    pub fn connect_to(&mut self, target: &str) -> Message {
        self.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        let head = self.head().expect("an answer");
        if head.status() == 200 {
            // RFC 9110, 9.3.6.
            assert_eq!((head.header("content-length"), head.header("transfer-encoding")), (None, None));
            return head;
        }
        self.with_body(head, true).expect("a whole answer")
    }
}

/// Runs a program to its end; what it printed, and whether it says that all went well.
#[track_caller]
pub fn run(program: &str, args: &[&str], variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(program);
    // Proxies are what these tests are about: the machine's own must not come between.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    let output = command.args(args).envs(variables.iter().copied()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Runs curl; what it printed.
#[track_caller]
pub fn curl(args: &[&str], variables: &[(&str, &str)]) -> String {
    let common = ["-sS", "--max-time", "20"];
    let (ok, out) = run("curl", &[&common[..], args].concat(), variables);
    assert!(ok, "curl {args:?}: {out}");
    out
}

/// Runs a Python script that needs `requests`, with these arguments.
#[track_caller]
pub fn python(script: &str, args: &[&str], variables: &[(&str, &str)]) -> String {
    // Debian's own sees Debian's packages, also where another Python comes first.
    let has_requests = |python: &&&str| run(python, &["-c", "import requests"], &[]).0;
    let python = ["python3", "/usr/bin/python3"].iter().find(has_requests).expect("Debian's python3-requests");
    let (ok, out) = run(python, &[&["-c", script][..], args].concat(), variables);
    assert!(ok, "{out}");
    out
}
