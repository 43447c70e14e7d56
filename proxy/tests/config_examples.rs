//! The configuration files in `examples/config` hold, and the reference says the defaults as they are.

#![cfg(test)]

use std::path::{Path, PathBuf};

use heddle::config::{self, Checked};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config")
}

fn load(name: &str) -> Checked {
    config::load(&folder().join(name), &[]).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_example_holds() {
    let mut names: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    names.sort();
    for name in &names {
        load(name);
    }
    assert_eq!(names, ["fixed.toml", "minimal.toml", "reference.toml", "sidecar.toml"]);
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

/// Each key of the reference that is commented out can be written.
#[test]
fn reference_names_only_keys_that_exist() {
    let text = std::fs::read_to_string(folder().join("reference.toml")).unwrap();
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
    let reference = uncommented(&std::fs::read_to_string(folder().join("reference.toml")).unwrap());
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
        service = { default = { X, tls = { X }, pool = { X } } }
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
