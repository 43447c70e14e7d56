//! The file source against a real folder, and what all sources share: fixed endpoints, the snapshot, readiness.

#![cfg(test)]

#[path = "support/etcd.rs"]
mod etcd;
mod registry_driver;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd::wait_until;
use heddle::config::checked::{self, FileSource, FixedEndpoint};
use registry_driver::Driver;
use tempfile::TempDir;

const ONE: &str = "[services.users]\nendpoints = ['10.0.0.1:80']\n";
const TWO: &str = "[services.users]\nendpoints = ['10.0.0.1:80', { address = '10.0.0.2:80', weight = 2 }]\n";
const OTHER: &str = "[services.users]\nendpoints = ['10.0.0.3:80']\n";

/// Changes must be announced: the file is not read anew by itself within the time of a test.
const NEVER: Duration = Duration::from_secs(3600);

fn registry(path: &Path, rescan: Duration) -> checked::Registry {
    let file = FileSource { path: path.to_owned(), rescan };
    checked::Registry { file: Some(file), ..checked::Registry::default() }
}

fn folder_with(content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("services.toml");
    write(&path, content);
    (folder, path)
}

fn write(path: &Path, content: &str) {
    std::fs::write(path, content).expect("write");
}

/// Broken content, once it was seen, and that it changed nothing.
#[track_caller]
fn breaks(driver: &Driver) {
    let before = driver.told().changes.len();
    driver.wait_status("the fault is seen", |report| !report.sources[0].connected);
    assert_eq!(driver.told().changes.len(), before);
}

#[test]
fn written_in_place_and_renamed_over() {
    let (folder, path) = folder_with(ONE);
    let driver = Driver::start(&registry(&path, NEVER), None);
    driver.wait_ready();
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
    write(&path, TWO);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(driver.told().services["users"]["10.0.0.2:80"].weight, 2);
    assert_eq!(driver.told().changes.len(), 2);
    assert!(driver.told().changes[1].removed.is_empty(), "the first endpoint did not change");
    let beside = folder.path().join("new");
    write(&beside, OTHER);
    std::fs::rename(&beside, &path).expect("rename");
    driver.wait_for("users", &["10.0.0.3:80"]);
}

#[cfg(unix)]
#[test]
fn the_link_of_a_mounted_config_map_is_swapped() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    let version = |name: &str, content: &str| {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        write(&folder.path().join(name).join("services.toml"), content);
    };
    version("..1", ONE);
    symlink("..1", folder.path().join("..data")).expect("a link");
    let path = folder.path().join("services.toml");
    symlink("..data/services.toml", &path).expect("a link");
    let driver = Driver::start(&registry(&path, NEVER), None);
    driver.wait_for("users", &["10.0.0.1:80"]);
    version("..2", OTHER);
    symlink("..2", folder.path().join("..data_tmp")).expect("a link");
    std::fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).expect("rename");
    driver.wait_for("users", &["10.0.0.3:80"]);
}

#[test]
fn a_file_that_is_broken_empty_or_gone_keeps_the_last_good_content() {
    let (_folder, path) = folder_with(TWO);
    let driver = Driver::start(&registry(&path, NEVER), None);
    driver.wait_ready();
    for (broken, good) in [("[services.users", OTHER), ("", TWO), ("[services.users]\nendpoints = ['a']", OTHER)] {
        write(&path, broken);
        breaks(&driver);
        write(&path, good);
        driver.wait_status("it is whole again", |report| report.sources[0].connected);
    }
    std::fs::remove_file(&path).expect("remove");
    breaks(&driver);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.3:80"]);
    write(&path, ONE);
    driver.wait_for("users", &["10.0.0.1:80"]);
}

#[test]
fn where_nothing_is_announced_the_file_is_read_anew() {
    // The folder does not exist, so it cannot be watched.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("later").join("services.json");
    let driver = Driver::start(&registry(&path, Duration::from_millis(20)), None);
    driver.wait_status("the file is missed", |report| report.sources[0].relists > 0);
    assert!(!driver.report().ready);
    std::fs::create_dir(path.parent().expect("a folder")).expect("a folder");
    write(&path, r#"{"services": {"users": {"endpoints": ["10.0.0.1:80"]}}}"#);
    driver.wait_for("users", &["10.0.0.1:80"]);
    driver.wait_ready();
    write(&path, r#"{"services": {}}"#);
    driver.wait_for("users", &[]);
}

#[test]
fn a_restart_with_a_broken_file_serves_from_the_snapshot() {
    let (folder, path) = folder_with(TWO);
    let registry = registry(&path, NEVER);
    let state = folder.path().join("state");
    let driver = Driver::start(&registry, Some(&state));
    driver.wait_ready();
    let before = driver.told().services.clone();
    driver.stop();
    write(&path, "broken");
    let driver = Driver::start(&registry, Some(&state));
    assert_eq!(driver.at_start, ["users"]);
    assert_eq!(driver.told().services, before);
    assert!(driver.report().ready);
    driver.stop();

    // Another file's snapshot is not this one's.
    let other = self::registry(&folder.path().join("other.toml"), NEVER);
    let driver = Driver::start(&other, Some(&state));
    driver.wait_status("the file is missed", |report| report.sources[0].relists > 0);
    assert!(driver.at_start.is_empty() && !driver.report().ready);
    drop(driver);

    write(&state.join("registry.json"), "{");
    let driver = Driver::start(&registry, Some(&state));
    driver.wait_status("the file is refused", |report| report.sources[0].relists > 0);
    assert!(driver.at_start.is_empty() && !driver.report().ready);
    write(&path, ONE);
    driver.wait_ready();
    wait_until("a good snapshot is in its place", || {
        std::fs::read_to_string(state.join("registry.json")).is_ok_and(|text| text.contains("10.0.0.1:80"))
    });
}

#[test]
fn fixed_endpoints_are_there_at_once_and_join_those_of_other_sources() {
    let (_folder, path) = folder_with(ONE);
    let fixed = |address: &str| FixedEndpoint { address: address.into(), weight: 3, metadata: Vec::new() };
    let endpoints = vec![fixed("10.0.0.9:80"), fixed("10.0.0.1:80")];
    let only_fixed = checked::Registry { fixed: HashMap::from([("Users".into(), endpoints)]), ..Default::default() };
    let driver = Driver::start(&only_fixed, None);
    assert_eq!(driver.at_start, ["users"]);
    assert!(driver.report().ready);

    let both = checked::Registry { file: registry(&path, NEVER).file, ..only_fixed };
    let driver = Driver::start(&both, None);
    driver.wait_ready();
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80", "10.0.0.9:80"]);
    write(&path, OTHER);
    driver.wait_for("users", &["10.0.0.1:80", "10.0.0.3:80", "10.0.0.9:80"]);
    assert_eq!(driver.told().services["users"]["10.0.0.1:80"].weight, 3, "the configuration's own claim");
}

#[test]
fn without_any_source_the_registry_is_ready() {
    let driver = Driver::start(&checked::Registry::default(), None);
    assert!(driver.report().ready);
}
