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
    let file = FileSource { path: path.to_owned(), rescan, rules: checked::SourceRules::default() };
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

/// Issue 10, 14: the folder of the file is deleted, or moved away, and made anew; nothing reads it by itself meanwhile.
#[test]
fn a_folder_that_is_made_anew_is_followed_at_once() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("mounted/services");
    let path = folder.join("services.toml");
    std::fs::create_dir_all(&folder).expect("a folder");
    write(&path, ONE);
    let driver = Driver::start(&registry(&path, NEVER), None);
    driver.wait_for("users", &["10.0.0.1:80"]);
    for (round, content, address) in [(0, OTHER, "10.0.0.3:80"), (1, ONE, "10.0.0.1:80"), (2, OTHER, "10.0.0.3:80")] {
        match round {
            0 => std::fs::remove_dir_all(&folder).expect("removed"),
            1 => std::fs::remove_dir_all(root.path().join("mounted")).expect("removed"),
            _ => std::fs::rename(&folder, root.path().join("away")).expect("moved"),
        }
        breaks(&driver);
        std::fs::create_dir_all(&folder).expect("a folder");
        write(&path, content);
        driver.wait_for("users", &[address]);
    }
}

/// Issue 10, 13: addresses that nobody means are no endpoints, from a file, the configuration and the snapshot on disk;
/// networks are allowed and denied for each source by itself.
#[test]
fn addresses_that_nobody_means_are_no_endpoints() {
    let bad = ["169.254.169.254:80", "[::ffff:169.254.169.254]:80", "[fe80::1]:80", "224.0.0.1:80", "0.0.0.0:80"];
    let addresses = || bad.iter().chain(&["127.0.0.1:80", "10.0.0.1:80"]);
    let text = addresses().map(|address| format!("{address:?}")).collect::<Vec<_>>().join(", ");
    let (folder, path) = folder_with(&format!("[services.users]\nendpoints = [{text}]\n"));
    let mut config = registry(&path, NEVER);
    let fixed = |address: &&str| FixedEndpoint { address: (*address).into(), weight: 1, metadata: Vec::new() };
    config.fixed = HashMap::from([("fixed".into(), addresses().map(fixed).collect())]);
    let state = folder.path().join("state");
    let driver = Driver::start(&config, Some(&state));
    driver.wait_ready();
    for service in ["users", "fixed"] {
        assert_eq!(driver.told().addresses(service), ["10.0.0.1:80", "127.0.0.1:80"]);
    }
    let report = driver.report();
    for source in &report.sources {
        assert_eq!((source.skipped, source.skipped_keys.len()), (5, 5), "{source:#?}");
        assert!(source.skipped_keys.iter().all(|skipped| skipped.reason.contains("not to be connected to")));
    }
    driver.stop();

    // What a file on disk says counts no more than what a source says.
    let snapshot = std::fs::read_to_string(state.join("registry.json")).expect("a snapshot");
    std::fs::write(state.join("registry.json"), snapshot.replace("10.0.0.1:80", "169.254.169.254:80")).expect("write");
    write(&path, "broken");
    let driver = Driver::start(&config, Some(&state));
    assert_eq!(driver.told().addresses("users"), ["127.0.0.1:80"]);
    driver.stop();

    write(&path, ONE);
    let network = |address: &str, prefix| checked::Network { address: address.parse().expect("an address"), prefix };
    let file = config.file.as_mut().expect("a file");
    file.rules.deny_networks = vec![network("10.0.0.0", 8)];
    config.fixed_rules.allow_networks = vec![network("169.254.169.254", 32)];
    let driver = Driver::start(&config, None);
    driver.wait_ready();
    assert!(driver.told().addresses("users").is_empty());
    assert_eq!(driver.told().addresses("fixed"), ["169.254.169.254:80", "[::ffff:169.254.169.254]:80"]);
}

/// Issue 10, 14: a weight that cannot be read is 1, and what is wrong with it is shown.
#[test]
fn a_weight_that_cannot_be_read_keeps_the_endpoint() {
    let (_folder, path) = folder_with("[services.users]\nendpoints = [{ address = '10.0.0.1:80', weight = -3 }]");
    let driver = Driver::start(&registry(&path, NEVER), None);
    driver.wait_ready();
    assert_eq!(driver.told().services["users"]["10.0.0.1:80"].weight, 1);
    let report = driver.report();
    let [skipped] = &report.sources[0].skipped_keys[..] else { panic!("{report:#?}") };
    assert_eq!((skipped.key.as_str(), skipped.kept), ("users/10.0.0.1:80", true));
    assert!(skipped.reason.contains("the weight -3 is no whole number"), "{}", skipped.reason);
    write(&path, ONE);
    driver.wait_status("it is mended", |report| report.sources[0].skipped_keys.is_empty());
}
