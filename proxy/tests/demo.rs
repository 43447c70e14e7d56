//! `heddle demo`: it checks itself, the commands that it prints do what it says, and it cleans up behind itself.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use process::{Heddle, command, get, wait_for};
use rustix::process::Signal;

/// A demo whose folder is made in `folder`.
fn demo(folder: &Path, args: &[&str]) -> Heddle {
    let mut command = command(&["demo"]);
    command.args(args).env("TMPDIR", folder);
    Heddle::start(command)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("a folder").next().is_none()
}

/// Ports are free ones, so that two at once do not meet.
#[test]
fn it_checks_itself_twice_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let both = [demo(folder.path(), &["--check"]), demo(folder.path(), &["--check"])];
    for demo in both {
        let (code, said) = demo.wait();
        assert_eq!(code, Some(0), "{said:#?}");
        for part in [
            "users-1 17 %, users-2 33 %, users-3 50 %",
            "users-1 25 %, users-2  0 %, users-3 75 %",
            "none of them failed",
        ] {
            assert!(said.iter().any(|line| line.starts_with("ok  ") && line.contains(part)), "{part}: {said:#?}");
        }
    }
    assert!(is_empty(folder.path()), "the folders are removed");
}

#[test]
fn the_commands_that_it_prints_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = demo(folder.path(), &["--port", "0", "--admin-port", "0"]);
    demo.after("Ctrl-C ends it", 0);
    let (proxy, admin) = (demo.address("  proxy      "), demo.address("  admin      "));

    let answer = get(proxy, "http://users/hello?a=b");
    assert!(
        answer.body.starts_with("users-") && answer.body.contains("\nGET /hello?a=b\n  host: users\n"),
        "{answer:?}"
    );
    assert_eq!(get(admin, "/ready").status, 200);

    let printed = demo.said();
    let run = |start: &str, expected: &str| {
        let line =
            printed.iter().map(|line| line.trim()).find(|line| line.starts_with(start) && !line.contains("curl"));
        let line = line.unwrap_or_else(|| panic!("no command {start}: {printed:#?}"));
        let before = demo.count(expected);
        let status = Command::new("sh").args(["-c", line]).status().expect("a shell");
        assert!(status.success(), "{line}");
        demo.after(expected, before)
    };
    let path = printed.iter().find_map(|line| line.strip_prefix("  files      ")?.split_once(','));
    let (path, _) = path.expect("where the files are");
    run(&format!("cp {path}/policies/"), "plugin    weighted-round-robin: loaded from");
    run("echo nonsense", "plugin    weighted-round-robin: refused: not WebAssembly");
    run("rm ", "plugin    weighted-round-robin: its file is gone: back to the built-in policy");
    run(&format!("cp {path}/without"), " left");
    run(&format!("cp {path}/all"), " joined (weight 2)");

    let shown = get(admin, "/state").body;
    let state: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(state["services"][0]["endpoints"].as_array().map(Vec::len), Some(3), "{shown}");

    demo.signal(Signal::INT);
    let (code, said) = demo.wait();
    assert_eq!(code, Some(0), "{said:#?}");
    assert!(is_empty(folder.path()), "the folder is removed");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    for options in [["--port", &port, "--admin-port", "0"], ["--port", "0", "--admin-port", &port]] {
        let (code, said) = demo(folder.path(), &options).wait();
        assert_eq!(code, Some(1));
        let expected = format!("cannot listen on 127.0.0.1:{port}");
        assert!(said.iter().any(|line| line.contains(&expected) && line.contains("--port")), "{said:?}");
    }
    assert!(is_empty(folder.path()), "the folders are removed");
}

/// Nobody may be left with a folder because a signal came early.
#[test]
fn a_signal_that_comes_early_ends_it_in_good_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = demo(folder.path(), &["--port", "0", "--admin-port", "0"]);
    wait_for("it makes its folder", || (!is_empty(folder.path())).then_some(()));
    demo.signal(Signal::TERM);
    let (code, said) = demo.wait();
    assert_eq!(code, Some(0), "{said:#?}");
    assert!(is_empty(folder.path()), "the folder is removed");
}
