//! `heddle run` and `heddle check` as commands: what they say, and with which exit code they end.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use process::{Heddle, command, connect, get, run, serve, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

const LISTENER: &str = "[admin]\naddress = '127.0.0.1:0'\n[[listener]]\naddress = '127.0.0.1:0'\n";

fn config(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("heddle.toml");
    fs::write(&path, text).expect("write");
    (folder, path)
}

fn start(path: &Path) -> Heddle {
    Heddle::start(command(&["run", "--config", path.to_str().expect("UTF-8")]))
}

#[test]
fn a_command_line_that_cannot_be_understood_is_a_usage_error() {
    for args in [&[] as &[&str], &["walk"], &["run"], &["check", "--config"], &["demo", "--port", "high"]] {
        let (code, _, said) = run(args);
        assert_eq!(code, 64, "{args:?}: {said}");
        assert!(!said.is_empty());
    }
    for args in [&["--help"], &["--version"]] {
        assert_eq!(run(args).0, 0, "{args:?}");
    }
}

#[test]
fn check_says_what_a_configuration_says() {
    let (_folder, path) = config("[[listener]]\naddress = '127.0.0.1:0'\n[service.users]\nbalancer = 'random'\n");
    let (code, said, _) = run(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("service   users: random"), "{said}");
}

/// Balancers that are missing, that refuse their settings or that cannot be used are named with their lines, all of
/// them, and a start says the same.
#[test]
fn balancers_that_cannot_be_used_are_problems_with_a_line() {
    let services = "plugins = 'plugins'
[service.a]
balancer = 'none-such'
[service.b]
balancer = { plugin = 'url-hash', by = 'moon' }
[service.c]
balancer = 'broken'
[service.d]
balancer = 'round-robin'
";
    let (folder, path) = config(&format!("{services}{LISTENER}"));
    fs::create_dir(folder.path().join("plugins")).expect("a folder");
    fs::write(folder.path().join("plugins/broken.wasm"), "nonsense").expect("write");
    let (code, _, checked) = run(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(code, 1);
    let lines: Vec<&str> = checked.lines().collect();
    let expected = [
        ("heddle.toml:3: service.a.balancer: no policy is called \"none-such\"; expected the file ", "none-such.wasm"),
        ("heddle.toml:5: service.b.balancer: url-hash refuses its settings {\"by\":\"moon\"}; ", "expected"),
        ("heddle.toml:7: service.c.balancer: ", "broken.wasm cannot be used: not WebAssembly"),
    ];
    assert_eq!(lines.len(), expected.len(), "{checked}");
    for (line, (start, part)) in lines.iter().zip(expected) {
        assert!(line.contains(start) && line.contains(part), "{line}");
    }

    let (code, said) = start(&path).wait();
    assert_eq!(code, Some(1));
    for line in lines {
        assert!(said.iter().any(|said| said == line), "{line} is missing: {said:#?}");
    }
}

/// Issue 10, 7: a broken file in the place of a built-in policy is worth a word before a start, but must not prevent one;
/// check and start agree.
#[test]
fn a_broken_file_in_the_place_of_a_built_in_policy_does_not_keep_a_proxy_from_starting() {
    let (folder, path) = config(&format!("plugins = 'plugins'\n{LISTENER}"));
    fs::create_dir(folder.path().join("plugins")).expect("a folder");
    fs::write(folder.path().join("plugins/round-robin.wasm"), "nonsense").expect("write");
    let (code, _, checked) = run(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(code, 0, "{checked}");
    assert!(checked.contains("round-robin.wasm cannot be used: not WebAssembly"), "{checked}");
    let heddle = start(&path);
    heddle.address("listening on ");
    heddle.after("refused: not WebAssembly", 0);
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address");
    for text in [
        format!("admin = false\n[[listener]]\naddress = '{address}'\n"),
        format!("[admin]\naddress = '{address}'\n[[listener]]\naddress = '127.0.0.1:0'\n"),
    ] {
        let (_folder, path) = config(&text);
        let (code, said) = start(&path).wait();
        assert_eq!(code, Some(1));
        let expected = format!("heddle: cannot listen on {address}: Address already in use");
        assert!(said.iter().any(|line| line.starts_with(&expected)), "{said:#?}");
    }
}

#[test]
fn a_request_under_way_is_finished_after_sigterm() {
    let (arrived, arrives) = channel();
    let (allow, allowed) = channel::<()>();
    let server = serve(move || {
        let _ = arrived.send(());
        let _ = allowed.recv();
    });
    let (_folder, path) = config(&format!("drain = '1m'\n{LISTENER}[service.users]\nendpoints = ['{server}']\n"));
    let heddle = start(&path);
    let (proxy, admin) = (heddle.address("listening on "), heddle.address("health and metrics on "));
    let client = std::thread::spawn(move || get(proxy, "http://users/slow"));
    arrives.recv_timeout(process::DEADLINE).expect("the request arrives");
    assert_eq!(get(admin, "/ready").status, 200);

    heddle.signal(Signal::TERM);
    wait_for("it is no longer ready", || (get(admin, "/ready").status == 503).then_some(()));
    assert_eq!(get(admin, "/live").status, 200);
    wait_for("it accepts no more", || connect(proxy).is_err().then_some(()));
    allow.send(()).expect("the server waits");
    let answer = client.join().expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, "GET /slow HTTP/1.1"));
    let (code, said) = heddle.wait();
    assert_eq!(code, Some(0), "{said:#?}");
    assert!(said.iter().all(|line| !line.contains("not everything was finished")), "{said:#?}");
}

/// A log that goes into a file has no colours.
#[test]
fn lines_of_the_log_are_plain_where_no_terminal_is() {
    let (_folder, path) = config(LISTENER);
    let heddle = start(&path);
    heddle.address("listening on ");
    heddle.signal(Signal::INT);
    let (code, said) = heddle.wait();
    assert_eq!(code, Some(0));
    assert!(said.iter().all(|line| !line.contains('\u{1b}')), "{said:?}");
}
