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
    let whole: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_')) =>
            {
                rest
            }
            _ => line,
        })
        .collect();
    let problems = config::parse(&whole.join("\n"), &folder().join("reference.toml"), &[]).unwrap_err();
    let found: Vec<_> = problems.iter().map(|problem| (problem.key.as_str(), problem.found.as_str())).collect();
    assert!(problems.iter().all(|problem| problem.found != "unknown key"), "{problems}");
    assert!(found.contains(&("registry.etcd.password_file", "stands beside password")), "{problems}");
}
