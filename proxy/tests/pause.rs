//! Pausing: what is registered and not picked, by the registry's word and by command.

#![cfg(test)]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/http.rs"]
mod http;
#[path = "support/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};

use etcd::Etcd;
use http::{DEADLINE, Endpoint, Message, Proxy, Wire, one_listener, wait_until};
use process::{ask_unix, post};
use tempfile::TempDir;

const SLOW: &str = "GET /slow HTTP/1.1\r\nHost: users\r\n\r\n";

/// Answers with its name; a request for `/slow` waits for a word.
fn named(name: &'static str) -> (Endpoint, Sender<()>) {
    let (open, gate) = channel();
    let gate = Mutex::new(gate);
    let endpoint = Endpoint::answering(move |request: &Message| {
        if request.start.contains("/slow") {
            gate.lock().unwrap().recv_timeout(DEADLINE).expect("a word");
        }
        format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}")
    });
    (endpoint, open)
}

/// A proxy of two workers that takes commands, and clients of both.
struct Stage {
    folder: TempDir,
    proxy: Proxy,
    clients: Vec<Wire>,
}

impl Stage {
    fn start(registry: &str, before: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        before(folder.path());
        let (socket, registry) =
            (folder.path().join("admin.sock"), registry.replace("FOLDER", folder.path().to_str().unwrap()));
        let config = format!(
            "admin = false\nadmin_socket = {socket:?}\nworkers = 2\ndrain = '20s'\n{}{registry}",
            one_listener("passthrough = false")
        );
        let proxy = Proxy::start(&config);
        let clients = (0..8).map(|_| proxy.client()).collect();
        let state = proxy.app().state.clone();
        wait_until("both workers have clients", || {
            state.workers.connections.iter().all(|count| count.load(Relaxed) > 1)
        });
        Self { folder, proxy, clients }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// Who answers, on all connections.
    fn who(&mut self) -> BTreeSet<String> {
        (0..5).flat_map(|_| self.clients.iter_mut().map(|client| client.get("/").text()).collect::<Vec<_>>()).collect()
    }

    #[track_caller]
    fn assert_answer(&mut self, names: &[&str]) {
        assert_eq!(self.who().iter().map(String::as_str).collect::<Vec<_>>(), names);
    }

    #[track_caller]
    fn wait_for(&mut self, names: &[&str]) {
        wait_until(&format!("{names:?} answer"), || self.who().iter().eq(names));
    }

    /// The service is refused on every connection, and says why.
    #[track_caller]
    fn assert_paused(&mut self) {
        for client in &mut self.clients {
            let answer = client.get("/");
            answer.assert_refused(503, "pause", "destination_unavailable");
            assert_eq!(answer.header("retry-after").as_deref(), Some("5"));
            assert_eq!(answer.text(), "heddle: pause: users is paused\n");
        }
    }

    fn post(&self, target: &str) -> (u16, serde_json::Value) {
        post(&self.socket(), target)
    }

    /// `users` as the state has it.
    fn shown(&self) -> serde_json::Value {
        let state = ask_unix(&self.socket(), "GET", "/state").expect("an answer").body;
        let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
        state["services"].as_array().unwrap().iter().find(|service| service["name"] == "users").cloned().unwrap()
    }

    fn figure(&self, line: &str) -> bool {
        ask_unix(&self.socket(), "GET", "/metrics").expect("an answer").body.lines().any(|said| said == line)
    }
}

fn users(endpoints: &[&Endpoint]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    format!("[service.users]\nendpoints = {endpoints:?}\n")
}

#[test]
fn an_endpoint_that_is_told_to_pause_is_not_picked_by_any_worker() {
    let ((a, open), (b, _)) = (named("a"), named("b"));
    let mut stage = Stage::start(&users(&[&a, &b]), |_| ());
    stage.assert_answer(&["a", "b"]);
    // With the other one paused, the slow request is a's.
    let mut slow = stage.proxy.client();
    stage.post(&format!("/services/users/endpoints/{}/pause", b.address));
    slow.send(SLOW);
    wait_until("a is busy", || stage.shown()["endpoints"][0]["in_flight"] == 1);
    stage.post(&format!("/services/users/endpoints/{}/resume", b.address));
    let target = format!("/services/users/endpoints/{}", a.address);
    let (code, said) = stage.post(&format!("{target}/pause"));
    assert_eq!((code, &said["paused"], &said["paused_by"]), (200, &true.into(), &vec!["admin"].into()));
    stage.assert_answer(&["b"]);
    let shown = stage.shown();
    let a_shown = &shown["endpoints"][0];
    assert_eq!((&a_shown["paused_by"], &a_shown["eligible"]), (&vec!["admin"].into(), &false.into()), "{shown}");
    assert!(stage.figure("heddle_endpoints_paused{service=\"users\"} 1.0"));
    assert!(stage.figure("heddle_service_paused{service=\"users\"} 0.0"));

    // What was under way ends as if nothing were.
    open.send(()).unwrap();
    assert_eq!(slow.response().text(), "a");
    let (code, said) = stage.post(&format!("{target}/resume"));
    assert_eq!((code, &said["paused"]), (200, &false.into()));
    stage.assert_answer(&["a", "b"]);
}

#[test]
fn a_service_that_is_told_to_pause_says_so() {
    let (a, open) = named("a");
    let mut stage = Stage::start(&users(&[&a]), |_| ());
    let mut slow = stage.proxy.client();
    slow.send(SLOW);
    wait_until("the request is under way", || stage.proxy.in_flight() == 1);
    assert_eq!(stage.post("/services/users/pause").0, 200);
    stage.assert_paused();
    assert_eq!(stage.shown()["paused_by"], serde_json::json!(["admin"]));
    assert!(stage.figure("heddle_service_paused{service=\"users\"} 1.0"));
    open.send(()).unwrap();
    assert_eq!(slow.response().text(), "a");
    assert_eq!(stage.post("/services/users/resume").0, 200);
    stage.assert_answer(&["a"]);
}

/// Replaces the services file.
fn write(folder: &Path, text: &str) {
    let new = folder.join("new");
    fs::write(&new, text).expect("write");
    fs::rename(new, folder.join("services.toml")).expect("rename");
}

const FILE: &str = "[registry.file]\npath = 'FOLDER/services.toml'\nrescan = '100ms'\n";

#[test]
fn a_file_pauses_endpoints_and_services() {
    let ((a, _), (b, _)) = (named("a"), named("b"));
    let text = |service: &str, of_a: &str| {
        format!("[services.users]\n{service}endpoints = [{{ address = '{}'{of_a} }}, '{}']\n", a.address, b.address)
    };
    let mut stage = Stage::start(FILE, |folder| write(folder, &text("", ", paused = true")));
    stage.assert_answer(&["b"]);
    assert_eq!(stage.shown()["endpoints"][0]["paused_by"], serde_json::json!(["registry"]));
    // A command does not lift what the registry says.
    let target = format!("/services/users/endpoints/{}", a.address);
    let (code, said) = stage.post(&format!("{target}/resume"));
    assert_eq!((code, &said["paused_by"]), (409, &vec!["registry"].into()));
    stage.assert_answer(&["b"]);
    write(stage.folder.path(), &text("", ", metadata = { paused = \"false\" }"));
    stage.wait_for(&["a", "b"]);

    // One by command lasts while the registration changes, and is forgotten with it.
    assert_eq!(stage.post(&format!("{target}/pause")).0, 200);
    write(stage.folder.path(), &text("", ", weight = 7"));
    let weight = |stage: &Stage| stage.shown()["endpoints"][0]["weight"] == 7;
    wait_until("the change has come", || weight(&stage));
    stage.assert_answer(&["b"]);
    write(stage.folder.path(), &format!("[services.users]\nendpoints = ['{}']\n", b.address));
    wait_until("a has left", || stage.shown()["endpoints"].as_array().unwrap().len() == 1);
    write(stage.folder.path(), &text("", ""));
    stage.wait_for(&["a", "b"]);

    write(stage.folder.path(), &text("paused = true\n", ""));
    wait_until("the pause has come", || stage.clients[0].get("/").status() == 503);
    stage.assert_paused();
    assert_eq!(stage.post("/services/users/resume").0, 409);
    write(stage.folder.path(), &text("", ""));
    stage.wait_for(&["a", "b"]);
}

#[test]
fn etcd_pauses_endpoints_and_services() {
    let etcd = Etcd::start();
    let ((a, _), (b, _)) = (named("a"), named("b"));
    let registration = |endpoint: &Endpoint, rest: &str| format!("{{\"address\":\"{}\"{rest}}}", endpoint.address);
    let lease = etcd.grant(600);
    etcd.put_leased("/services/users/a", &registration(&a, ""), &lease);
    etcd.put("/services/users/b", &registration(&b, ""));
    let watch = format!(
        "[registry.etcd]\nendpoints = ['{}']\nwatch = [{{ prefix = '/services/', layout = 'heddle' }}]\n",
        etcd.url()
    );
    let mut stage = Stage::start(&watch, |_| ());
    stage.wait_for(&["a", "b"]);

    // The registration keeps its lease, and with it its end.
    let paused = registration(&a, ",\"metadata\":{\"paused\":true}");
    etcd.ctl(&["put", "--ignore-lease", "/services/users/a", &paused]);
    stage.wait_for(&["b"]);
    etcd.ctl(&["put", "--ignore-lease", "/services/users/a", &registration(&a, "")]);
    stage.wait_for(&["a", "b"]);

    etcd.put("/services/users/paused", "true");
    wait_until("the pause has come", || stage.clients[0].get("/").status() == 503);
    stage.assert_paused();
    // A value that says nothing changes nothing; an end of the key does.
    etcd.put("/services/users/paused", "maybe");
    etcd.put("/services/users/b", &registration(&b, ",\"weight\":7"));
    wait_until("the change has come", || {
        stage.shown()["endpoints"].as_array().unwrap().iter().any(|endpoint| endpoint["weight"] == 7)
    });
    stage.assert_paused();
    etcd.delete("/services/users/paused");
    stage.wait_for(&["a", "b"]);
    etcd.ctl(&["lease", "revoke", &lease]);
    stage.wait_for(&["b"]);

    // A pause that ends by itself.
    let lease = etcd.grant(600);
    etcd.put_leased("/services/users/paused", "true", &lease);
    wait_until("the pause has come", || stage.clients[0].get("/").status() == 503);
    etcd.ctl(&["lease", "revoke", &lease]);
    stage.wait_for(&["b"]);
}
