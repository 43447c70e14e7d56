//! The configuration files in `examples` and `deploy` hold, and the reference says the defaults as they are.

#![cfg(test)]

use std::path::{Path, PathBuf};

use heddle::config::checked::{ListenerTls, TlsServer};
use heddle::config::{self, Checked};
use tempfile::TempDir;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder() -> PathBuf {
    project().join("examples/config")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn load(name: &str) -> Checked {
    config::load(&folder().join(name), &[]).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The names of the configuration files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.filter(|name| name.ends_with(".toml")).collect();
    names.sort();
    names
}

/// A folder with the certificate and key that examples name, and with a certificate in the place of an authority's.
fn certificates() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["users".to_owned()]).unwrap();
    for name in ["cert.pem", "ca.pem"] {
        std::fs::write(folder.path().join(name), made.cert.pem()).unwrap();
    }
    std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    folder
}

#[test]
fn every_example_holds() {
    let names = names(&folder());
    for name in names.iter().filter(|name| *name != "tls.toml") {
        load(name);
    }
    let files = certificates();
    let tls = config::parse(&read(&folder().join("tls.toml")), &files.path().join("tls.toml"), &[]);
    assert!(tls.is_ok(), "{tls:?}");
    assert_eq!(names, ["fixed.toml", "minimal.toml", "reference.toml", "sidecar.toml", "tcp.toml", "tls.toml"]);
}

#[test]
fn what_is_deployed_holds() {
    let path = project().join("deploy/kubernetes/heddle.toml");
    let config = config::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")).config;
    // Who stops it waits for longer than it takes.
    let seconds_after = |file: &str, key: &str| -> u64 {
        let text = read(&project().join("deploy").join(file));
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)).expect(key);
        line.trim().parse().expect("seconds")
    };
    let stops = (config.drain_delay + config.drain).as_secs();
    assert!(seconds_after("kubernetes/app.yaml", "terminationGracePeriodSeconds:") > stops);
    assert!(seconds_after("systemd/heddle.service", "TimeoutStopSec=") > stops);
}

/// With what the benchmark puts in.
#[test]
fn every_template_of_the_benchmark_holds() {
    holds(&project().join("examples/bench"), &["h2c.toml", "http.toml", "lc.toml", "tcp.toml", "tls.toml"]);
    holds(&project().join("examples/bench-policies"), &["http.toml"]);
}

fn holds(folder: &Path, expected: &[&str]) {
    let files = certificates();
    let names = names(folder);
    for name in &names {
        let text = read(&folder.join(name))
            .replace("{listen_port}", "0")
            .replace("{backend_addrs}", "\"127.0.0.1:1\", \"127.0.0.1:2\"")
            .replace("{cert}", "cert.pem")
            .replace("{key}", "key.pem");
        let parsed = config::parse(&text, &files.path().join(name), &[]);
        assert!(parsed.is_ok(), "{name}: {parsed:?}");
    }
    assert_eq!(names, expected);
}

/// What the reference writes out as defaults is what holds when nothing is written.
#[test]
fn reference_says_the_defaults() {
    let written = load("reference.toml").config;
    let minimal = r#"
        [[listener]]
        address = "127.0.0.1:4140"
        [[listener]]
        address = "127.0.0.1:4143"
        [registry.etcd]
        endpoints = ["http://127.0.0.1:2379", "http://127.0.0.2:2379"]
        watch = [{ prefix = "/services/" }]
        [registry.file]
        path = "../services.toml"
        [service.users]
        balancer = { plugin = "url-hash", by = "header:x-user" }
        endpoints = ["127.0.0.1:8001", { address = "127.0.0.1:8002", weight = 2, metadata = { zone = "b" } }]
    "#;
    let silent = config::parse(minimal, &folder().join("reference.toml"), &[]).unwrap().config;
    assert_eq!(format!("{written:#?}"), format!("{silent:#?}"));
}

/// The same of a listener's TLS, which is commented out since there is none without files.
#[test]
fn reference_says_the_defaults_of_tls() {
    let files = certificates();
    let text = uncommented(&read(&folder().join("reference.toml")));
    let table = text.split_once("[listener.tls]\n").expect("the table").1.split("\n\n").next().unwrap_or_default();
    let keys = table.lines().filter(|line| !line.starts_with("client_ca") && !line.starts_with("certificates"));
    let written: String = keys.map(|line| format!("{line}\n")).collect();
    let tls = |keys: &str| -> TlsServer {
        let text = format!("[[listener]]\naddress = '127.0.0.1:0'\n[listener.tls]\n{keys}");
        let parsed = config::parse(&text, &files.path().join("heddle.toml"), &[]);
        let listeners = parsed.unwrap_or_else(|problems| panic!("{problems}")).config.listeners;
        let [listener] = &listeners[..] else { panic!("{listeners:?}") };
        let ListenerTls::Terminate(tls) = &listener.tls else { panic!("{listener:?}") };
        tls.clone()
    };
    for key in ["client", "min_version", "session_tickets", "handshake_timeout"] {
        assert!(written.contains(&format!("{key} = ")), "{written}");
    }
    assert_eq!(tls(&written), tls("certificate = 'cert.pem'\nkey = 'key.pem'"));
}

/// The same of health checks, which there are none of by default.
#[test]
fn reference_says_the_defaults_of_health_checks() {
    let text = uncommented(&read(&folder().join("reference.toml")));
    let table = text.split_once("[service.users.health_check]\n").expect("the table").1;
    let check = |keys: &str| {
        let text = format!("[[listener]]\naddress = '127.0.0.1:0'\n[service.users.health_check]\n{keys}");
        let parsed = config::parse(&text, Path::new("heddle.toml"), &[]);
        let config = parsed.unwrap_or_else(|problems| panic!("{problems}")).config;
        config.services.get("users").health_check.clone().expect("a check")
    };
    let without = |names: &[&str]| -> String {
        let lines = table.lines().filter(|line| !names.iter().any(|name| line.starts_with(name)));
        lines.map(|line| format!("{line}\n")).collect()
    };
    assert_eq!(check(&without(&["service", "host"])), check("type = 'http'"));
    let grpc = without(&["type", "method", "path", "status", "host"]);
    assert!(grpc.contains("service = ") && grpc.contains("rise = "), "{grpc}");
    assert_eq!(check(&format!("type = 'grpc'\n{grpc}")), check("type = 'grpc'"));
}

/// Each key of the reference that is commented out can be written.
#[test]
fn reference_names_only_keys_that_exist() {
    let text = read(&folder().join("reference.toml"));
    let problems = config::parse(&uncommented(&text), &folder().join("reference.toml"), &[]).unwrap_err();
    let found: Vec<_> = problems.iter().map(|problem| (problem.key.as_str(), problem.found.as_str())).collect();
    assert!(problems.iter().all(|problem| problem.found != "unknown key"), "{problems}");
    assert!(found.contains(&("registry.etcd.password_file", "stands beside password")), "{problems}");
}

/// The text with the keys and tables that are commented out.
fn uncommented(text: &str) -> String {
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || "_.".contains(c));
    let is_part = |text: &str| match text.strip_prefix('[') {
        Some(table) => is_name(table.trim_matches(['[', ']'])),
        None => text.split_once(" = ").is_some_and(|(key, _)| is_name(key)),
    };
    let lines = text.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_part(rest)).unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Each key that a table knows stands in the reference.
#[test]
fn reference_names_every_key() {
    let reference = uncommented(&read(&folder().join("reference.toml")));
    let is_named = |key: &str| {
        reference.lines().any(|line| {
            let table = line.trim_start_matches('[').split(']').next().unwrap_or_default();
            let in_text = [format!("{key} = "), format!("{{ {key} = "), format!(", {key} = ")];
            line.starts_with('[') && table.split('.').any(|part| part == key)
                || in_text.iter().any(|part| line.contains(part))
        })
    };
    // A key that no table has is answered with all those that it could have been.
    let no_key = "x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x = 1";
    let tables = "certificate = [{ X }]
        listener = [{ address = '127.0.0.1:0', X, tls = { X }, passthrough = { X } }]
        plugins = { X }
        admin = { X }
        registry = { X, etcd = { X, watch = [{ X }], tls = { X } }, file = { X } }
        service = { default = { X, tls = { X }, pool = { X }, health_check = { X }, ejection = { X }, retry_budget = { X } } }
        X";
    let problems = config::parse(&tables.replace('X', no_key), Path::new("heddle.toml"), &[]).unwrap_err();
    let known: Vec<_> = problems.iter().filter(|problem| problem.found == "unknown key").collect();
    assert_eq!(known.len(), tables.matches('X').count(), "{problems}");
    for problem in known {
        let keys = problem.remedy.strip_prefix("expected one of ").unwrap_or_else(|| panic!("{problem}"));
        for key in keys.split(", ") {
            assert!(is_named(key), "{key}, beside {} of the test", problem.key);
        }
    }
}
