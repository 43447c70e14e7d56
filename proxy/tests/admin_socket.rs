//! The admin server on a Unix socket: who may command, what is commanded, and whose file it is.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Heddle, ask, ask_unix, command, get, post, run, serve, wait_for};
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

const REST: &str = "[admin]\naddress = '127.0.0.1:0'\n[[listener]]\naddress = '127.0.0.1:0'\npassthrough = false\n";

/// A folder with a configuration, and where its socket is.
fn place(services: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!("admin_socket = 'admin.sock'\n{REST}{services}");
    fs::write(folder.path().join("heddle.toml"), text).expect("write");
    let socket = folder.path().join("admin.sock");
    (folder, socket)
}

fn start(folder: &TempDir) -> Heddle {
    let path = folder.path().join("heddle.toml");
    Heddle::start(command(&["run", "--config", path.to_str().expect("UTF-8")]))
}

fn started(folder: &TempDir) -> Heddle {
    let heddle = start(folder);
    heddle.after("commands on ", 0);
    heddle
}

fn status(socket: &Path, method: &str, target: &str) -> u16 {
    ask_unix(socket, method, target).expect("an answer").status
}

#[test]
fn it_is_its_owners_and_tells_what_the_port_tells() {
    let (folder, socket) = place("");
    let heddle = started(&folder);
    let file = fs::metadata(&socket).expect("a file");
    assert_eq!((file.mode() & 0o777, file.uid()), (0o600, geteuid().as_raw()));
    let port = heddle.address("health and metrics on ");
    for path in ["/live", "/ready", "/metrics", "/state", "/none"] {
        let (here, there) = (ask_unix(&socket, "GET", path).expect("an answer"), get(port, path));
        assert_eq!(here.status, there.status, "{path}");
        // Issue 10, 15.
        assert!(here.head.contains("x-content-type-options: nosniff"), "{path}: {here:?}");
    }
    assert!(ask_unix(&socket, "GET", "/state").expect("an answer").body.contains("\"services\""));
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
    assert!(!socket.exists());
}

/// The line of the README.
#[test]
fn curl_can_command() {
    let server = serve(|| ());
    let (folder, socket) = place(&format!("[service.users]\nendpoints = ['{server}']\n"));
    let _heddle = started(&folder);
    let target = format!("http://heddle/services/users/endpoints/{server}/pause");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", "*", "--unix-socket"])
        .arg(&socket)
        .args(["-X", "POST", &target])
        .output()
        .expect("curl");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&said["paused"], &said["paused_by"]), (&true.into(), &vec!["admin"].into()));
}

#[test]
fn a_port_takes_no_commands() {
    let (folder, socket) = place("[service.users]\n");
    let heddle = started(&folder);
    let port = heddle.address("health and metrics on ");
    for target in ["/services/users/pause", "/services/users/endpoints/127.0.0.1:1/resume", "/drain", "/shutdown"] {
        let answer = ask(port, "POST", target, "localhost").expect("an answer");
        assert_eq!(answer.status, 403, "{target}");
        assert!(answer.body.contains(&format!("curl --unix-socket {}", socket.display())), "{answer:?}");
    }
    assert_eq!(get(port, "/ready").status, 200);
    assert_eq!(post(&socket, "/services/users/resume").0, 200);
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let (folder, socket) = place("[service.users]\nendpoints = ['127.0.0.1:1', '[::1]:1']\n[service.orders]\n");
    let _heddle = started(&folder);
    let (code, said) = post(&socket, "/services/user/pause");
    assert_eq!((code, &said["services"]), (404, &vec!["orders", "users"].into()), "{said}");
    assert!(said["error"].as_str().expect("a text").contains("\"user\""), "{said}");
    let (code, said) = post(&socket, "/services/users/endpoints/127.0.0.1:2/pause");
    assert_eq!((code, &said["endpoints"]), (404, &vec!["127.0.0.1:1", "[::1]:1"].into()), "{said}");
    // Names are compared as they are in requests, and may be percent-encoded.
    assert_eq!(post(&socket, "/services/USER%73/endpoints/%5B0::1%5D:1/pause").0, 200);
    assert_eq!(post(&socket, "/services/%2e%2e%2fusers/pause").0, 404);
    let wrong = ask_unix(&socket, "GET", "/drain").expect("an answer");
    assert!(wrong.status == 405 && wrong.head.contains("allow: post"), "{wrong:?}");
    assert_eq!(status(&socket, "PUT", "/live"), 405);
    assert_eq!(status(&socket, "POST", "/services/users"), 404);
}

#[test]
fn what_a_killed_proxy_left_is_replaced_and_a_running_one_is_not() {
    let (folder, socket) = place("");
    let killed = started(&folder);
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(socket.exists());
    let heddle = started(&folder);
    assert_eq!(status(&socket, "GET", "/live"), 200);

    let (code, said) = start(&folder).wait();
    assert_eq!(code, Some(1));
    let expected = format!("heddle: cannot take commands on {}: another process answers there", socket.display());
    assert!(said.contains(&expected), "{said:#?}");
    assert_eq!(status(&socket, "GET", "/live"), 200);
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
}

#[test]
fn the_file_of_another_process_stays() {
    let (folder, socket) = place("");
    let heddle = started(&folder);
    fs::remove_file(&socket).expect("a file");
    let _other = UnixListener::bind(&socket).expect("a socket");
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
    UnixStream::connect(&socket).expect("the other's");
}

/// Whoever may write to the file may connect; that alone is not enough to command. Only root can be somebody else.
#[test]
fn a_peer_that_is_somebody_else_is_turned_away() {
    if !geteuid().is_root() {
        return;
    }
    let (folder, socket) = place("");
    let heddle = started(&folder);
    let everybody = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    everybody(folder.path(), 0o755);
    everybody(&socket, 0o666);
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "--max-time", "20", "--unix-socket"])
        .arg(&socket)
        .arg("http://heddle/live")
        .output()
        .expect("setpriv");
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    heddle.after("a peer was turned away", 0);
    assert_eq!(status(&socket, "GET", "/live"), 200);
}

#[test]
fn a_proxy_can_be_told_to_end() {
    for target in ["/drain", "/shutdown"] {
        let (folder, socket) = place("");
        let heddle = started(&folder);
        let (code, said) = post(&socket, target);
        assert_eq!((code, said["stopping"].is_string()), (200, true));
        assert_eq!(heddle.wait().0, Some(0), "{target}");
        assert!(!socket.exists());
    }
}

#[test]
fn a_socket_that_cannot_be_is_a_problem_with_a_line() {
    let (folder, _) = place("");
    let path = folder.path().join("heddle.toml");
    let long = "x".repeat(108);
    for (socket, problem) in [
        (long.as_str(), "expected a path of at most 107 bytes"),
        ("none/admin.sock", "expected a socket in a folder that exists"),
        ("heddle.toml", "heddle.toml is no socket; expected a path at which there is nothing else"),
    ] {
        fs::write(&path, format!("admin_socket = '{socket}'\n{REST}")).expect("write");
        let (code, _, said) = run(&["check", "--config", path.to_str().expect("UTF-8")]);
        assert_eq!(code, 1, "{socket}");
        assert!(said.contains("heddle.toml:1: admin_socket: ") && said.contains(problem), "{said}");
    }
}

/// Without a word about it nobody listens, and the port says how to have one.
#[test]
fn there_is_none_by_default() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("heddle.toml"), REST).expect("write");
    let heddle = start(&folder);
    let port = heddle.address("health and metrics on ");
    let answer = ask(port, "POST", "/drain", "localhost").expect("an answer");
    assert!(answer.status == 403 && answer.body.contains("set admin_socket"), "{answer:?}");
    let files = fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(files, 1);
    wait_for("it is ready all the same", || (get(port, "/ready").status == 200).then_some(()));
}
