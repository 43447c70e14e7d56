//! The plugins folder: every way in which a file can come, change and go.

#![cfg(test)]

#[path = "support/plugins/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use heddle::plugin::{ContentHash, Folder, Origin, Plugin, watch};
use support::{Host, guest, instead, log, wait_until};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Long enough for a test never to see a rescan: what happens was announced.
const NEVER: Duration = Duration::from_secs(3600);

/// A folder that is followed for a service whose balancer bears the test's name.
struct Followed {
    host: Host,
    policy: &'static str,
    _temporary: TempDir,
    folder: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Followed {
    /// Follows a folder that holds these files.
    fn new(policy: &'static str, rescan: Duration, files: &[(&str, &[u8])]) -> Self {
        let temporary = TempDir::new().unwrap();
        let folder = temporary.path().join("plugins");
        fs::create_dir(&folder).unwrap();
        for (name, content) in files {
            fs::write(folder.join(name), content).unwrap();
        }
        Self::of(policy, rescan, temporary)
    }

    /// Follows the folder `plugins` of another one, whether it is there or not.
    fn of(policy: &'static str, rescan: Duration, temporary: TempDir) -> Self {
        log();
        let services = format!("[service.users]\nbalancer = \"{policy}\"\n[service.mark]\nbalancer = \"zz-mark\"\n");
        let host = Host::new("", &services);
        host.plugins.load_builtin().unwrap();
        let folder = temporary.path().join("plugins");
        let (stop, stopped) = oneshot::channel();
        let (followed, plugins) = (Folder::new(folder.clone()), host.plugins.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = watch(followed, plugins, rescan) => panic!("the folder is no longer followed"),
                    _ = stopped => {}
                }
            });
        });
        Self { host, policy, _temporary: temporary, folder, stop: Some(stop), thread: Some(thread) }
    }

    fn plugin(&self) -> Arc<Plugin> {
        self.host.plugin(self.policy)
    }

    fn file(&self) -> PathBuf {
        self.folder.join(self.policy).with_extension("wasm")
    }

    /// Waits until this content is in force.
    fn wait_for(&self, content: &[u8]) {
        wait_until("the content is in force", || self.plugin().current().is_some_and(|g| g.hash == hash(content)));
    }

    /// Waits until the folder as it is now has been read: a file that is new comes into force last, as it comes last by
    /// name.
    fn wait_until_read(&self) {
        let content = answering(9);
        fs::write(self.folder.join("zz-mark.wasm"), &content).unwrap();
        wait_until("the folder is read", || self.host.plugin("zz-mark").current().is_some());
    }

    fn wait_for_line(&self, parts: &[&str]) {
        let policy = format!("policy={:?}", self.policy);
        let parts: Vec<&str> = parts.iter().copied().chain([policy.as_str()]).collect();
        wait_until(&format!("a line with {parts:?}"), || !log().lines(&parts).is_empty());
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

fn hash(content: &[u8]) -> ContentHash {
    ContentHash::of(content)
}

/// A guest that always picks this slot, and so a content of its own.
fn answering(slot: u32) -> Vec<u8> {
    guest(&[("pick", &format!("(return (call $answer (i32.const {slot})))"))])
}

#[test]
fn a_new_file_comes_into_force() {
    let followed = Followed::new("new-file", NEVER, &[]);
    followed.wait_until_read();
    assert!(followed.plugin().current().is_none());
    fs::write(followed.file(), answering(1)).unwrap();
    followed.wait_for(&answering(1));
    assert_eq!(followed.plugin().current().unwrap().origin, Origin::File(followed.file()));
    followed.wait_for_line(&["INFO", "loaded from", &hash(&answering(1)).to_string()]);
}

#[test]
fn a_file_written_in_place_replaces_the_one_before() {
    let followed = Followed::new("in-place", NEVER, &[("in-place.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    fs::write(followed.file(), answering(2)).unwrap();
    followed.wait_for(&answering(2));
}

#[test]
fn a_file_renamed_over_replaces_the_one_before() {
    let followed = Followed::new("renamed", NEVER, &[("renamed.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    let beside = followed.folder.join(".renamed.part");
    fs::write(&beside, answering(2)).unwrap();
    fs::rename(&beside, followed.file()).unwrap();
    followed.wait_for(&answering(2));
}

#[test]
fn a_mounted_config_map_is_swapped() {
    let temporary = TempDir::new().unwrap();
    let folder = temporary.path().join("plugins");
    for (version, slot) in [("..2026_1", 1), ("..2026_2", 2)] {
        fs::create_dir_all(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("config-map.wasm"), answering(slot)).unwrap();
    }
    symlink("..2026_1", folder.join("..data")).unwrap();
    symlink("..data/config-map.wasm", folder.join("config-map.wasm")).unwrap();
    let followed = Followed::of("config-map", NEVER, temporary);
    followed.wait_for(&answering(1));
    symlink("..2026_2", followed.folder.join("..data_tmp")).unwrap();
    fs::rename(followed.folder.join("..data_tmp"), followed.folder.join("..data")).unwrap();
    fs::remove_dir_all(followed.folder.join("..2026_1")).unwrap();
    followed.wait_for(&answering(2));
    assert_eq!(followed.plugin().incidents(), (0, 0));
}

#[test]
fn without_its_file_a_policy_goes_back_to_the_built_in_one() {
    let followed = Followed::new("round-robin", NEVER, &[("round-robin.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    fs::remove_file(followed.file()).unwrap();
    wait_until("the built-in one is in force", || followed.plugin().current().unwrap().origin == Origin::BuiltIn);
    followed.wait_for_line(&["INFO", "its file is gone: back to the built-in policy"]);
}

#[test]
fn without_file_and_built_in_one_a_policy_in_use_stays_in_force() {
    let followed = Followed::new("no-file", NEVER, &[("no-file.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    fs::remove_file(followed.file()).unwrap();
    followed.wait_for_line(&["ERROR", "its file is gone", "it stays in force"]);
    assert_eq!(followed.plugin().current().unwrap().hash, hash(&answering(1)));
    fs::write(followed.file(), answering(2)).unwrap();
    followed.wait_for(&answering(2));
}

/// Issue 10, 7: compiling costs, so only what services use is compiled.
#[test]
fn a_policy_that_nobody_uses_is_not_loaded() {
    let followed = Followed::new("used", NEVER, &[("unused.wasm", &answering(1)), ("used.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    followed.wait_until_read();
    assert!(followed.host.plugins.get("unused").is_none());
}

#[test]
fn a_broken_file_never_replaces_what_is_in_force() {
    let followed = Followed::new("broken", NEVER, &[("broken.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    let number = followed.plugin().current().unwrap().number;
    let broken: [(Vec<u8>, &str); 4] = [
        (b"not a plugin".to_vec(), "not WebAssembly: expected a component, or a core module"),
        (answering(1)[..1_000].to_vec(), "cannot be made a component: cut short"),
        (guest(&[("configure", instead::REFUSE)]), "guests must not be told that"),
        (guest(&[("pick", instead::LOOP)]), "failed its probe (deadline"),
    ];
    for (refusals, (content, why)) in (1..).zip(&broken) {
        fs::write(followed.file(), content).unwrap();
        followed.wait_for_line(&["ERROR", "refused", &format!("file={}", followed.file().display()), why]);
        wait_until("it is counted", || followed.plugin().incidents().1 >= refusals);
        assert_eq!(followed.plugin().current().unwrap().number, number);
    }
    fs::write(followed.file(), answering(2)).unwrap();
    followed.wait_for(&answering(2));
}

#[test]
fn only_wasm_files_of_the_folder_itself_are_loaded() {
    let followed = Followed::new("below", NEVER, &[]);
    fs::create_dir(followed.folder.join("more")).unwrap();
    fs::create_dir(followed.folder.join("directory.wasm")).unwrap();
    for path in ["more/below.wasm", "directory.wasm/below.wasm", ".below.wasm", "below.wat", "below"] {
        fs::write(followed.folder.join(path), answering(1)).unwrap();
    }
    followed.wait_until_read();
    assert!(followed.plugin().current().is_none());
    let names: Vec<String> = followed.host.plugins.all().iter().map(|plugin| plugin.name.to_string()).collect();
    assert_eq!(names, ["below", "zz-mark"]);
}

#[test]
fn a_file_that_was_only_touched_is_not_loaded_again() {
    let followed = Followed::new("a-touched", NEVER, &[("a-touched.wasm", &answering(1))]);
    followed.wait_for(&answering(1));
    let number = followed.plugin().current().unwrap().number;
    fs::write(followed.file(), answering(1)).unwrap();
    followed.wait_until_read();
    assert_eq!(followed.plugin().current().unwrap().number, number);
}

#[test]
fn a_change_that_nothing_announces_is_found_by_the_rescan() {
    let elsewhere = TempDir::new().unwrap();
    let target = elsewhere.path().join("target.wasm");
    fs::write(&target, answering(1)).unwrap();
    let followed = Followed::new("silent", Duration::from_millis(20), &[]);
    symlink(&target, followed.file()).unwrap();
    followed.wait_for(&answering(1));
    fs::write(&target, answering(2)).unwrap();
    followed.wait_for(&answering(2));
}

#[test]
fn a_folder_may_come_later_and_be_made_anew() {
    let temporary = TempDir::new().unwrap();
    let followed = Followed::of("later", Duration::from_millis(20), temporary);
    fs::create_dir(&followed.folder).unwrap();
    fs::write(followed.file(), answering(1)).unwrap();
    followed.wait_for(&answering(1));
    // Put in its place in one step, so that no rescan sees it missing.
    let (other, old) = (followed.folder.with_file_name("other"), followed.folder.with_file_name("old"));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("later.wasm"), answering(2)).unwrap();
    fs::rename(&followed.folder, &old).unwrap();
    fs::rename(&other, &followed.folder).unwrap();
    followed.wait_for(&answering(2));
    fs::write(followed.file(), answering(3)).unwrap();
    followed.wait_for(&answering(3));
}
