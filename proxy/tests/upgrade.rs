//! Upgrade in place: another process takes over every listening socket while requests are made all the time.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use process::{Heddle, command, connect, get, serve, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

const IN_FORCE: &str = "goes on with the configuration in ";
const TAKEN_OVER: &str = "has taken over from another process";

/// A configuration file whose listeners have ports of their own.
struct Stage {
    folder: TempDir,
    server: SocketAddr,
    port: u16,
    admin_port: u16,
}

impl Stage {
    fn new() -> Self {
        let server = serve(|| {});
        // Of the system's choice, and free again: the first process is given them by number.
        let held: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let port = |held: &TcpListener| held.local_addr().expect("an address").port();
        let (port, admin_port) = (port(&held[0]), port(&held[1]));
        Self { folder: tempfile::tempdir().expect("a folder"), server, port, admin_port }
    }

    fn write(&self, workers: usize, more: &str) {
        let Self { server, port, admin_port, .. } = self;
        let text = format!(
            "workers = {workers}\ndrain = '20s'\nadmin_socket = 'admin.sock'\n[admin]\naddress = '127.0.0.1:{admin_port}'\n\
             [[listener]]\naddress = '127.0.0.1:{port}'\n{more}\n[service.users]\nendpoints = ['{server}']\n"
        );
        // As a whole, so that nobody reads half of it.
        fs::write(self.folder.path().join("new.toml"), text).expect("written");
        fs::rename(self.folder.path().join("new.toml"), self.path()).expect("renamed");
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("heddle.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn proxy(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn admin(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.admin_port))
    }

    fn start(&self, more: &[&str]) -> Heddle {
        let path = self.path();
        let args = ["run", "--config", path.to_str().expect("UTF-8")];
        Heddle::start(command(&[&args, more].concat()))
    }

    /// A process that takes over with this in its configuration, in a file of its own.
    fn start_other(&self, first: &str, last: &str) -> Heddle {
        let good = fs::read_to_string(self.path()).expect("read");
        let elsewhere = self.folder.path().join("other.toml");
        fs::write(&elsewhere, format!("{first}\n{good}{last}\n")).expect("written");
        Heddle::start(command(&["run", "--config", elsewhere.to_str().expect("UTF-8"), "--take-over"]))
    }

    /// One that has all sockets, and waits for a registry that does not answer.
    fn start_waiting(&self) -> Heddle {
        let etcd = "[registry.etcd]\nendpoints = ['http://127.0.0.1:1']\nwatch = [{ prefix = '/s/' }]";
        let waits = self.start_other("", etcd);
        waits.after("listening on ", 0);
        waits
    }

    /// A process that takes over, and has done so.
    fn upgrade(&self) -> Heddle {
        let heddle = self.start(&["--take-over"]);
        heddle.after(TAKEN_OVER, 0);
        heddle
    }
}

/// Clients that make requests until they are told to stop: some on connections that they keep, others on a new one for
/// each. A request whose connection was used before, and ended before a byte of the response, is made again.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(proxy: SocketAddr) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let client = |keeps: bool| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut kept: Option<TcpStream> = None;
                while !stop.load(SeqCst) {
                    let used = kept.take();
                    let is_used = used.is_some();
                    let mut stream = used.unwrap_or_else(|| connect(proxy).expect("neither refused nor reset"));
                    match exchange(&mut stream, keeps) {
                        Ok(stays) => {
                            answered.fetch_add(1, SeqCst);
                            kept = stays.then_some(stream);
                        }
                        Err(Lost { before_a_byte: true, .. }) if is_used => {}
                        Err(lost) => panic!("a request has failed: {lost:?}"),
                    }
                }
            })
        };
        let clients = [true, true, false, false].map(client).into();
        Self { stop, answered, clients }
    }

    fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }

    /// Waits until more requests have been answered; at once where a client has failed.
    fn go_on(&self, more: usize) {
        let enough = self.answered() + more;
        wait_for("requests are answered", || {
            (self.answered() >= enough || self.clients.iter().any(JoinHandle::is_finished)).then_some(())
        });
    }

    #[track_caller]
    fn stop(self) -> usize {
        self.stop.store(true, SeqCst);
        for client in self.clients {
            client.join().expect("no request failed");
        }
        self.answered.load(SeqCst)
    }
}

#[derive(Debug)]
struct Lost {
    before_a_byte: bool,
    #[expect(dead_code, reason = "shown")]
    why: String,
}

/// One request and its whole answer; whether the connection stays.
fn exchange(stream: &mut TcpStream, keeps: bool) -> Result<bool, Lost> {
    let mut answer = Vec::new();
    let lost = |answer: &[u8], why: String| Lost { before_a_byte: answer.is_empty(), why };
    let close = if keeps { "" } else { "connection: close\r\n" };
    let request = format!("GET / HTTP/1.1\r\nhost: users\r\n{close}\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| lost(&answer, error.to_string()))?;
    let expected = b"GET / HTTP/1.1";
    loop {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => return Err(lost(&answer, "the connection ended".into())),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&answer, error.to_string())),
        }
        let Some(at) = answer.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let (head, body) = answer.split_at(at + 4);
        if body.len() < expected.len() {
            continue;
        }
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ") && body == expected, "{head}{}", String::from_utf8_lossy(body));
        return Ok(keeps && !head.contains("connection: close"));
    }
}

/// Upgrades, with more and fewer workers than before, and reloads between them.
fn upgrade_and_reload(rounds: usize) {
    let stage = Stage::new();
    stage.write(2, "");
    let mut heddle = stage.start(&[]);
    wait_for("it serves", || connect(stage.proxy()).ok());
    let load = Load::start(stage.proxy());
    load.go_on(100);
    for round in 0..rounds {
        // The listener as it is, and in every other round another one beside it.
        let other = ["", "[[listener]]\naddress = '127.0.0.1:0'"][round % 2];
        if round % 4 < 2 {
            let workers = [1, 2][round % 4];
            stage.write(workers, other);
            let next = stage.upgrade();
            load.go_on(20);
            let (code, said) = std::mem::replace(&mut heddle, next).wait();
            assert_eq!(code, Some(0), "{said:#?}");
        } else {
            let workers = 2;
            let before = heddle.count(IN_FORCE);
            stage.write(workers, &format!("max_headers = {}\n{other}", 100 + round));
            heddle.signal(Signal::HUP);
            heddle.after(IN_FORCE, before);
            load.go_on(20);
        }
    }
    let answered = load.stop();
    println!("{rounds} upgrades and reloads; {answered} requests, none failed");
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
    assert!(!stage.socket().exists(), "the last one removes the socket for commands");
}

#[test]
fn no_request_fails_while_one_process_takes_over_from_another() {
    upgrade_and_reload(10);
}

/// What is required of 200, which takes minutes: `cargo test --test upgrade -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn no_request_fails_in_200_upgrades_and_reloads() {
    upgrade_and_reload(200);
}

/// Everything that keeps a process from starting: the one that runs goes on, and can be taken over from later.
#[test]
fn a_process_that_does_not_start_changes_nothing() {
    let stage = Stage::new();
    stage.write(2, "");
    let heddle = stage.start(&[]);
    wait_for("it serves", || connect(stage.proxy()).ok());
    let load = Load::start(stage.proxy());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    for (more, why) in [
        (format!("[[listener]]\naddress = '{}'", taken.local_addr().expect("an address")), "Address already in use"),
        ("[service.x]\nbalancer = 'none-such'".to_owned(), "no policy is called"),
        ("nonsense".to_owned(), "other.toml:"),
    ] {
        let (code, said) = stage.start_other("", &more).wait();
        assert_eq!(code, Some(1), "{said:#?}");
        assert!(said.iter().any(|line| line.contains(why)), "{why}: {said:#?}");
        load.go_on(20);
    }
    // One that dies on its way.
    let waits = stage.start_waiting();
    waits.signal(Signal::KILL);
    waits.wait();
    heddle.after("takes over no more", 0);
    load.go_on(20);
    assert_eq!(get(stage.admin(), "/ready").status, 200);

    let next = stage.upgrade();
    load.go_on(20);
    assert_eq!(heddle.wait().0, Some(0));
    load.stop();
    // And without being told to take over nobody shares an address.
    let (code, said) = stage.start(&[]).wait();
    assert_eq!(code, Some(1));
    assert!(said.iter().any(|line| line.contains("in use") || line.contains("answers there")), "{said:#?}");
    drop(next);
}

/// Whoever stops the new process before it has taken over stops only that one.
#[test]
fn a_signal_before_it_has_taken_over_stops_only_the_new_process() {
    let stage = Stage::new();
    stage.write(2, "");
    let heddle = stage.start(&[]);
    wait_for("it serves", || connect(stage.proxy()).ok());
    let load = Load::start(stage.proxy());
    let is_stopped = |(code, said): (Option<i32>, Vec<String>)| {
        assert_eq!(code, Some(1), "{said:#?}");
        assert!(said.iter().any(|line| line.contains("told to stop")), "{said:#?}");
        assert!(said.iter().all(|line| !line.contains(TAKEN_OVER)), "{said:#?}");
    };
    for (before, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let waits = stage.start_waiting();
        waits.signal(signal);
        is_stopped(waits.wait());
        heddle.after("takes over no more", before);
        load.go_on(20);
    }

    // Nor does it go on where nothing is left to be waited for: here it is still reading what it knew before.
    let state = stage.folder.path().join("state");
    let kept = state.join("registry.json");
    fs::create_dir(&state).expect("a folder");
    assert!(Command::new("mkfifo").arg(&kept).status().expect("mkfifo").success());
    let next = stage.start_other(&format!("state = '{}'", state.display()), "");
    let (opened, is_open) = channel();
    std::thread::spawn(move || opened.send(fs::OpenOptions::new().write(true).open(kept)));
    let pipe = is_open.recv_timeout(process::DEADLINE).expect("it reads").expect("opened");
    next.signal(Signal::TERM);
    drop(pipe);
    is_stopped(next.wait());
    heddle.after("takes over no more", 2);
    load.go_on(20);
    load.stop();
    assert_eq!(get(stage.admin(), "/ready").status, 200);
}

/// The other process would not have the listeners that it opens.
#[test]
fn a_configuration_that_changes_while_another_process_takes_over_waits() {
    let stage = Stage::new();
    stage.write(2, "");
    let heddle = stage.start(&[]);
    wait_for("it serves", || connect(stage.proxy()).ok());
    let waits = stage.start_waiting();
    stage.write(2, "[[listener]]\naddress = '127.0.0.1:0'");
    heddle.after("a changed configuration waits", 0);
    assert_eq!((heddle.count(IN_FORCE), heddle.count(" listening on ")), (0, 1), "{:#?}", heddle.said());
    waits.signal(Signal::KILL);
    waits.wait();
    heddle.after(IN_FORCE, 0);
    assert_eq!(heddle.count(" listening on "), 2, "{:#?}", heddle.said());
}

/// Sockets are taken from this user's processes, and root's. Only root can be somebody else.
#[test]
fn sockets_of_somebody_else_are_not_taken() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let stage = Stage::new();
    stage.write(1, "");
    fs::set_permissions(stage.folder.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    let mut stranger = Command::new("python3");
    stranger.args([
        "-c",
        "import os, socket, sys\nlistener = socket.socket(socket.AF_UNIX)\nos.setuid(65534)\n\
         listener.bind(sys.argv[1])\nlistener.listen()\nprint('it listens', flush=True)\nlistener.accept()[0].recv(1)",
    ]);
    stranger.arg(stage.socket());
    let stranger = Heddle::start(stranger);
    stranger.after("it listens", 0);
    let (code, said) = stage.start(&["--take-over"]).wait();
    assert_eq!(code, Some(1), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("neither this user nor root")), "{said:#?}");
}

/// An address that the new configuration lacks is listened on until its queue is empty, and then no more; and what is
/// under way is finished by the process that began it.
#[test]
fn what_the_new_process_does_not_take_is_finished_by_the_old_one() {
    let stage = Stage::new();
    let extra = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    stage.write(1, &format!("[[listener]]\naddress = '{extra}'"));
    let old = stage.start(&[]);
    wait_for("it serves", || connect(extra).ok());
    let (mut kept, mut fresh) = (connect(extra).expect("connected"), connect(extra).expect("connected"));
    assert!(exchange(&mut kept, true).expect("answered"));
    kept.write_all(b"GET / HTTP/1.1\r\n").expect("sent");
    let half = "the first line of a request has been read";
    wait_for(half, || (get(stage.admin(), "/ready").status == 200).then_some(()));
    stage.write(2, "");
    let _new = stage.upgrade();
    wait_for("nobody listens", || connect(extra).is_err().then_some(()));
    let answered = exchange(&mut fresh, true).expect("a connection that was there is served");
    assert!(!answered, "and asked to leave");
    kept.write_all(b"host: users\r\n\r\n").expect("sent");
    let mut rest = String::new();
    kept.read_to_string(&mut rest).expect("answered and closed");
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert_eq!(old.wait().0, Some(0));
    assert_eq!(get(stage.proxy(), "/").status, 200);
    assert_eq!(get(stage.admin(), "/ready").status, 200);
}

/// As users of nginx know it.
#[test]
fn sigusr2_has_the_process_start_its_successor() {
    let stage = Stage::new();
    stage.write(2, "");
    let old = stage.start(&[]);
    wait_for("it serves", || connect(stage.proxy()).ok());
    let load = Load::start(stage.proxy());
    load.go_on(20);
    old.signal(Signal::USR2);
    // Both write to the same place.
    old.after(TAKEN_OVER, 0);
    old.after("another process has taken over", 0);
    load.go_on(20);
    load.stop();
    let uptime = || get(stage.admin(), "/ready").status;
    assert_eq!(uptime(), 200);
    std::os::unix::net::UnixStream::connect(stage.socket())
        .and_then(|mut socket| {
            socket.write_all(b"POST /shutdown HTTP/1.1\r\nhost: heddle\r\ncontent-length: 0\r\n\r\n")?;
            socket.read_to_string(&mut String::new())
        })
        .expect("the successor takes commands");
    wait_for("it has ended", || connect(stage.proxy()).is_err().then_some(()));
}
