//! Stopping the real binary: what is told to clients, what is finished, what is cut off, and the exit code.
//!
//! Times in the configurations are far longer than a test may take, except for those whose end is waited for.

#![cfg(test)]

#[path = "support/frames.rs"]
mod frames;
#[path = "support/http.rs"]
mod http1;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use frames::{END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PREFACE, STATUS_200, literal};
use http1::{DEADLINE, Endpoint, OK, Proxy, Wire, one_listener};
use process::{Heddle, command, connect, get, post, wait_for};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const GET: &str = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";

/// An endpoint that answers once it is given a word.
fn gated() -> (Endpoint, Sender<()>) {
    let (open, gate) = channel();
    let gate = Mutex::new(gate);
    let endpoint = Endpoint::answering(move |_| {
        let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        OK
    });
    (endpoint, open)
}

/// A proxy of one worker, whose first listener speaks HTTP for `users`.
struct Stage {
    folder: TempDir,
    heddle: Heddle,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Stage {
    fn start(times: &str, rest: &str, endpoint: &Endpoint) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("heddle.toml");
        let text = format!(
            "workers = 1\nadmin_socket = 'admin.sock'\n{times}\n[admin]\naddress = '127.0.0.1:0'\n{}{rest}
            [service.users]\nprotocol = 'http1'\nendpoints = ['{}']\n",
            one_listener(""),
            endpoint.address
        );
        fs::write(&path, text).expect("write");
        let heddle = Heddle::start(command(&["run", "--config", path.to_str().expect("UTF-8")]));
        let (proxy, admin) = (heddle.address("listening on "), heddle.address("health and metrics on "));
        heddle.after("commands on ", 0);
        Self { folder, heddle, proxy, admin }
    }

    fn client(&self) -> Wire {
        Wire::connect(self.proxy)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// Has it told to stop, and waits until everybody can know.
    fn terminate(&self) {
        self.heddle.signal(Signal::TERM);
        self.wait_not_ready();
    }

    fn wait_not_ready(&self) {
        wait_for("it is no longer ready", || (get(self.admin, "/ready").status == 503).then_some(()));
    }

    fn wait_closed(&self) {
        wait_for("it accepts no more", || connect(self.proxy).is_err().then_some(()));
    }

    fn in_flight(&self, count: u64) {
        wait_for("the requests are under way", || {
            let state: serde_json::Value = serde_json::from_str(&get(self.admin, "/state").body).expect("JSON");
            (state["services"][0]["endpoints"][0]["in_flight"] == count).then_some(())
        });
    }

    /// The exit code, and whether something is said to have been cut off.
    fn end(self) -> (Option<i32>, bool) {
        let (code, said) = self.heddle.wait();
        (code, said.iter().any(|line| line.contains("not everything was finished in time")))
    }
}

const FINISHED: (Option<i32>, bool) = (Some(0), false);
const CUT: (Option<i32>, bool) = (Some(1), true);

/// The worker has been told to leave once one of its responses says so.
fn wait_leaving(stage: &Stage) {
    wait_for("a response says that its connection ends", || {
        let mut client = stage.client();
        let answer = client.get("/");
        assert_eq!(answer.status(), 200);
        let said = answer.header("connection").as_deref() == Some("close");
        if said {
            client.expect_end();
        }
        said.then_some(())
    });
}

#[test]
fn during_the_delay_connections_are_accepted_and_clients_are_told_to_leave() {
    let endpoint = Endpoint::saying(OK);
    let stage = Stage::start("drain_delay = '1h'\ndrain = '1h'", "", &endpoint);
    let (mut first, mut second) = (stage.client(), stage.client());
    for client in [&mut first, &mut second] {
        assert_eq!(client.get("/").header("connection"), None);
    }
    stage.terminate();
    wait_leaving(&stage);
    // Nobody is closed before being told, whom a request could be on its way from.
    assert!(first.is_silent() && second.is_silent());
    let answer = first.get("/");
    assert_eq!((answer.status(), answer.header("connection").as_deref()), (200, Some("close")));
    first.expect_end();
    assert_eq!(get(stage.admin, "/live").status, 200);
    // A second signal ends the delay too. Nothing is under way.
    stage.heddle.signal(Signal::TERM);
    second.expect_end();
    assert_eq!(stage.end(), FINISHED);
}

#[test]
fn the_delay_ends() {
    let endpoint = Endpoint::saying(OK);
    let stage = Stage::start("drain_delay = '300ms'\ndrain = '1h'", "", &endpoint);
    let mut idle = stage.client();
    assert_eq!(idle.get("/").status(), 200);
    stage.heddle.signal(Signal::INT);
    idle.expect_end();
    stage.wait_closed();
    assert_eq!(stage.end(), FINISHED);
}

/// `GET http://users/` on a stream.
fn ask(client: &mut Frames, stream: u32) {
    let block = [&[0x82, 0x86, 0x84][..], &literal(":authority", "users")].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM, stream, &block);
}

/// Reads to the end of the connection; whether a response with 200 was among it, and GOAWAY.
fn answered_and_sent_away(client: &mut Frames) -> (bool, bool) {
    let (mut answered, mut sent_away) = (false, false);
    while let Some(frame) = client.next() {
        answered |= frame.kind == HEADERS && frame.payload[0] == STATUS_200;
        sent_away |= frame.kind == GOAWAY;
    }
    (answered, sent_away)
}

#[test]
fn during_the_delay_clients_of_http_2_are_sent_away_after_a_request() {
    let endpoint = Endpoint::saying(OK);
    let stage = Stage::start("drain_delay = '1h'\ndrain = '1h'", "", &endpoint);
    let mut before = Frames::client(stage.client());
    ask(&mut before, 1);
    assert_eq!(before.until(HEADERS).payload[0], STATUS_200);
    stage.terminate();
    assert_eq!(answered_and_sent_away(&mut before), (false, true));
    wait_leaving(&stage);
    let mut new = Frames::client(stage.client());
    ask(&mut new, 1);
    assert_eq!(answered_and_sent_away(&mut new), (true, true));
    assert_eq!(post(&stage.socket(), "/shutdown").0, 200);
    assert_eq!(stage.end(), FINISHED);
}

#[test]
fn streams_under_way_are_finished() {
    let (endpoint, open) = gated();
    let stage = Stage::start("drain = '1h'", "", &endpoint);
    let mut client = Frames::client(stage.client());
    for stream in [1, 3] {
        ask(&mut client, stream);
    }
    stage.in_flight(2);
    stage.terminate();
    stage.wait_closed();
    client.until(GOAWAY);
    for _ in 0..2 {
        open.send(()).unwrap();
        assert_eq!(client.until(HEADERS).payload[0], STATUS_200);
    }
    while client.next().is_some() {}
    assert_eq!(stage.end(), FINISHED);
}

#[test]
fn a_head_that_has_begun_is_a_request_under_way() {
    let endpoint = Endpoint::saying(OK);
    let stage = Stage::start("drain = '1h'", "", &endpoint);
    let (mut fresh, mut used) = (stage.client(), stage.client());
    assert_eq!(used.get("/").status(), 200);
    for client in [&mut fresh, &mut used] {
        client.send("GET / HTTP/1.1\r\n");
    }
    // What was sent before this is read before it is answered.
    assert_eq!(stage.client().get("/").status(), 200);
    stage.terminate();
    stage.wait_closed();
    for client in [&mut fresh, &mut used] {
        client.send("Host: users\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status(), answer.header("connection").as_deref()), (200, Some("close")));
        client.expect_end();
    }
    assert_eq!(stage.end(), FINISHED);
}

/// A certificate and its key in the folder of the configuration.
fn certificate(folder: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["users".to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    format!("tls = {{ certificate = {:?}, key = {:?} }}\n", folder.join("cert.pem"), folder.join("key.pem"))
}

/// A client that has asked for nothing may have sent whatever comes before that.
#[test]
fn connections_on_which_nothing_was_asked_for_are_ended_and_are_no_loss() {
    let endpoint = Endpoint::saying(OK);
    let files = tempfile::tempdir().expect("a folder");
    let more = [
        one_listener(&certificate(files.path())),
        one_listener("proxy_protocol = ['127.0.0.1']"),
        one_listener("protocol = 'auto'\nservice = 'users'"),
    ];
    let stage = Stage::start("drain = '1h'", &more.concat(), &endpoint);
    let addresses: Vec<SocketAddr> =
        (0..4).map(|n| stage.heddle.after("listening on ", n).trim().parse().expect("an address")).collect();
    let [http, tls, header, auto] = addresses[..] else { panic!("{addresses:?}") };
    let hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let starts: &[(SocketAddr, &[u8])] = &[
        (http, b""),
        (http, b"\x05"),
        (http, b"\x05\x01\x00"),
        (http, b"PRI * HT"),
        (http, PREFACE),
        (http, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        (tls, b""),
        (tls, b"\x16"),
        (tls, hello),
        (header, b""),
        (header, b"PROXY TCP4 127.0.0.1 "),
        (header, b"PROXY UNKNOWN\r\n"),
        (auto, b""),
        (auto, hello),
    ];
    let mut clients: Vec<Wire> = starts
        .iter()
        .map(|(address, start)| {
            let mut client = Wire::connect(*address);
            client.send(start);
            client
        })
        .collect();
    let mut tunnel = Wire::connect(http);
    tunnel.send("CONNECT users:80 HTTP/1.1\r\nHost: users:80\r\n\r\n");
    assert_eq!(tunnel.head().expect("an answer").status(), 200);
    clients.push(tunnel);
    stage.terminate();
    assert_eq!(stage.end(), FINISHED);
    for client in &mut clients {
        while client.exactly(1).is_ok() {}
    }
}

#[test]
fn what_was_not_asked_for_in_time_is_not_cut_off() {
    let endpoint = Endpoint::saying(OK);
    // This proxy has a tenth of a second.
    let proxy = Proxy::to(&endpoint);
    let mut clients = [proxy.client(), proxy.client(), proxy.client()];
    clients[1].send(PREFACE);
    clients[2].send(b"\x05\x01\x00");
    assert!(proxy.stop());
    for client in &mut clients {
        while client.exactly(1).is_ok() {}
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    for signals in [[Signal::TERM, Signal::TERM], [Signal::INT, Signal::TERM]] {
        let (endpoint, _open) = gated();
        let stage = Stage::start("drain_delay = '1h'\ndrain = '1h'", "", &endpoint);
        let mut client = stage.client();
        client.send(GET);
        stage.in_flight(1);
        stage.heddle.signal(signals[0]);
        stage.wait_not_ready();
        stage.heddle.signal(signals[1]);
        client.expect_end();
        assert_eq!(stage.end(), CUT);
    }
}

#[test]
fn commands_stop_as_signals_do() {
    let (endpoint, open) = gated();
    let stage = Stage::start("drain = '1h'", "", &endpoint);
    let mut client = stage.client();
    client.send(GET);
    stage.in_flight(1);
    assert_eq!(post(&stage.socket(), "/drain").0, 200);
    stage.wait_closed();
    // Commands are taken to the end.
    assert_eq!(post(&stage.socket(), "/services/users/pause").0, 200);
    open.send(()).unwrap();
    let answer = client.response();
    assert_eq!((answer.text().as_str(), answer.header("connection").as_deref()), ("ok", Some("close")));
    assert_eq!(stage.end(), FINISHED);

    let (endpoint, _open) = gated();
    let stage = Stage::start("drain = '1h'", "", &endpoint);
    let mut client = stage.client();
    client.send(GET);
    stage.in_flight(1);
    assert_eq!(post(&stage.socket(), "/drain").0, 200);
    stage.wait_closed();
    assert_eq!(post(&stage.socket(), "/shutdown").0, 200);
    client.expect_end();
    assert_eq!(stage.end(), CUT);
}

/// A tunnel of TCP, and a connection that has changed to another protocol.
#[test]
fn tunnels_are_cut_off_at_the_deadline() {
    let endpoint = Endpoint::start(|_, mut wire| {
        let first = wire.until(b"\n").unwrap_or_default();
        if first.starts_with(b"GET") {
            let _ = wire.until(b"\r\n\r\n");
            wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: test\r\n\r\n");
        } else {
            wire.send("hello\n");
        }
        while wire.exactly(1).is_ok() {}
    });
    let ask = "GET / HTTP/1.1\r\nHost: users\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
    for (listener, start, answer) in [("protocol = 'tcp'\nservice = 'users'", "hi\n", "hello\n"), ("", ask, "\r\n\r\n")]
    {
        let stage = Stage::start("drain = '200ms'", &one_listener(listener), &endpoint);
        let address = stage.heddle.after("listening on ", 1).trim().parse().expect("an address");
        let mut client = Wire::connect(address);
        client.send(start);
        client.until(answer.as_bytes()).expect("an answer");
        stage.heddle.signal(Signal::TERM);
        client.expect_end();
        assert_eq!(stage.end(), CUT);
    }
}

/// What blocks whoever opens it, until somebody else does.
fn fifo(path: &Path) {
    let _there_may_be_none = fs::remove_file(path);
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).expect("a FIFO");
}

/// Issue 10, 10: a start does not wait for ever for a file that nobody writes.
#[test]
fn a_fifo_in_the_place_of_a_file_is_refused_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let tls = certificate(folder.path());
    fifo(Path::new(&at("fifo")));
    let with_ca = tls.replace(" }", ", client = 'required', client_ca = 'fifo' }");
    let listeners = ["tls = { certificate = 'fifo', key = 'fifo' }", &tls.replace("cert.pem", "fifo"), &with_ca];
    for (number, listener) in listeners.into_iter().enumerate() {
        fs::write(at(&number.to_string()), one_listener(listener)).expect("write");
    }
    for config in ["fifo", "0", "1", "2"] {
        for what in ["check", "run"] {
            let (code, said) = Heddle::start(command(&[what, "--config", &at(config)])).wait();
            assert_eq!(code, Some(1), "{what} {config}: {said:#?}");
            assert!(said.iter().any(|line| line.contains("it is a FIFO")), "{what} {config}: {said:#?}");
        }
    }
}

/// Issue 10, 10: nor do a reload and a stop, whichever file it is.
#[test]
fn files_that_are_fifos_keep_neither_health_nor_a_stop_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let tls = certificate(folder.path());
    fs::create_dir(at("state")).expect("a folder");
    fs::create_dir(at("plugins")).expect("a folder");
    for file in ["state/registry.json", "plugins/url-hash.wasm", "services.toml"] {
        fifo(&at(file));
    }
    let text = format!(
        "workers = 1\nstate = 'state'\nplugins = 'plugins'\n[admin]\naddress = '127.0.0.1:0'\n{}
        [registry.file]\npath = 'services.toml'\nrescan = '100ms'\n",
        one_listener(&tls)
    );
    fs::write(at("heddle.toml"), text).expect("write");
    let heddle = Heddle::start(command(&["run", "--config", at("heddle.toml").to_str().expect("UTF-8")]));
    let admin = heddle.address("health and metrics on ");
    heddle.after("registry.json: the registry's snapshot is ignored: cannot read it: it is a FIFO", 0);
    heddle.after("services.toml: cannot read it: it is a FIFO", 0);
    for file in ["cert.pem", "key.pem"] {
        fifo(&at(file));
    }
    wait_for("the certificate is found to be one", || {
        heddle.said().iter().any(|line| line.contains("cert.pem") && line.contains("it is a FIFO")).then_some(())
    });
    fifo(&at("heddle.toml"));
    heddle.signal(Signal::HUP);
    heddle.after("heddle.toml: cannot be read: it is a FIFO", 0);
    assert_eq!(get(admin, "/live").status, 200);
    // The services come all the same.
    fs::remove_file(at("services.toml")).expect("it was there");
    fs::write(at("services.toml"), "services = {}").expect("write");
    wait_for("it is ready", || (get(admin, "/ready").status == 200).then_some(()));
    heddle.signal(Signal::TERM);
    assert_eq!(heddle.wait().0, Some(0));
}

/// Issue 10, 10: the main thread waits here for somebody who says nothing, for 10 s.
#[test]
fn a_start_that_hangs_is_ended_by_a_signal() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("heddle.toml");
    fs::write(&config, one_listener("")).expect("write");
    let socket = folder.path().join("silent.sock");
    let silent = UnixListener::bind(&socket).expect("a socket");
    for (signals, said) in [(1, "told to stop during a start that hangs"), (2, "told to stop twice during the start")] {
        let arguments = ["run", "--config", config.to_str().unwrap(), "--take-over", socket.to_str().unwrap()];
        let heddle = Heddle::start(command(&arguments));
        let (_held, _) = silent.accept().expect("it asks for sockets");
        for _ in 0..signals {
            heddle.signal(Signal::TERM);
            // Two of one kind that come at once are one.
            #[expect(clippy::disallowed_methods, reason = "a test has nothing else to do")]
            std::thread::sleep(Duration::from_millis(200));
        }
        let (code, lines) = heddle.wait();
        assert_eq!(code, Some(1), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains(said)), "{said}: {lines:#?}");
    }
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Issue 10, 10: nobody reads standard error, and a pipe holds 64 KiB.
#[test]
fn a_log_that_nobody_reads_keeps_no_stop_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let text = format!(
        "workers = 1\ndrain = '100ms'\nadmin = false\nadmin_socket = 'admin.sock'\n{}
        [registry.file]\npath = 'services.toml'\n",
        one_listener("")
    );
    fs::write(at("heddle.toml"), text).expect("write");
    let mut command = command(&["run", "--config", at("heddle.toml").to_str().expect("UTF-8")]);
    let mut heddle = Killed(command.stderr(Stdio::piped()).spawn().expect("heddle starts"));
    let is_answered = || {
        let mut stream = UnixStream::connect(at("admin.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a socket");
        stream.write_all(b"GET /live HTTP/1.0\r\n\r\n").ok()?;
        Some(stream.read_to_end(&mut Vec::new()).is_ok())
    };
    wait_for("it takes commands", || is_answered().filter(|answered| *answered));
    let mut round = 0;
    wait_for("its log is full", || {
        round += 1;
        // A file that changes faster is never read as a whole.
        #[expect(clippy::disallowed_methods, reason = "a test has nothing else to do")]
        std::thread::sleep(Duration::from_millis(200));
        let endpoints: String = (0..15).map(|n| format!("'10.{}.0.{n}:80', ", round % 200)).collect();
        fs::write(at("services.toml"), format!("[services.users]\nendpoints = [{endpoints}]")).expect("write");
        is_answered().filter(|answered| !answered)
    });
    kill_process(Pid::from_child(&heddle.0), Signal::TERM).expect("it runs");
    wait_for("it ends", || heddle.0.try_wait().expect("a child"));
}
