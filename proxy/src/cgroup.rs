//! How much memory this process may have, by the control groups that it runs in (cgroups(7), versions 1 and 2).
//!
//! A container's limit is no property of the machine, and what is sized by the machine's memory does not fit into it. The
//! limit of every group from the process's own up to the root holds; the tightest counts. In a container the own group's
//! path may be that of the host, where nothing is mounted; the root of the mount is then the container's own group.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Version 1 has a number near 2^63 for no limit, version 2 the word `max`.
const NO_LIMIT: u64 = 1 << 60;

/// The most bytes that this process may have; `None` where no group limits it, or that cannot be read.
pub fn memory_limit() -> Option<u64> {
    limit(&membership(), Path::new(ROOT))
}

/// What the groups leave of their limits, in bytes, without the pages of files that the kernel drops before it runs out of
/// memory; `None` where no group has a limit.
pub fn memory_left() -> Option<u64> {
    left(&membership(), Path::new(ROOT))
}

/// The most bytes that this process may have by its groups and the machine; 1 GiB where neither is known.
pub fn available_memory() -> u64 {
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine(&text));
    memory_limit().into_iter().chain(of_machine).min().unwrap_or(1 << 30)
}

/// `0::/path` for version 2; `4:memory:/path`, or several controllers with commas, for version 1.
fn membership() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// A group that has a limit on memory.
struct Limited {
    folder: PathBuf,
    limit: u64,
    /// The name of the file that says how much is used.
    usage: &'static str,
}

impl Limited {
    fn left(&self) -> Option<u64> {
        let used = number(&self.folder.join(self.usage))?.saturating_sub(self.reclaimable());
        Some(self.limit.saturating_sub(used))
    }

    fn reclaimable(&self) -> u64 {
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let value = |line: &str| {
            line.strip_prefix("inactive_file ").or(line.strip_prefix("total_inactive_file "))?.parse().ok()
        };
        stat.lines().filter_map(value).max().unwrap_or(0)
    }
}

/// Those of the groups that a process with this `/proc/self/cgroup` is in, and of those above them, that have a limit.
fn limited(membership: &str, root: &Path) -> Vec<Limited> {
    let mut all = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (base, limit, usage) = match controllers {
            "" => (root.to_owned(), "memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let own = base.join(path.trim_start_matches('/'));
        for folder in own.ancestors().take_while(|group| group.starts_with(&base)) {
            let limit = number(&folder.join(limit)).filter(|limit| *limit < NO_LIMIT);
            all.extend(limit.map(|limit| Limited { folder: folder.to_owned(), limit, usage }));
        }
    }
    all
}

fn limit(membership: &str, root: &Path) -> Option<u64> {
    limited(membership, root).iter().map(|group| group.limit).min()
}

fn left(membership: &str, root: &Path) -> Option<u64> {
    limited(membership, root).iter().filter_map(Limited::left).min()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// `MemTotal:  16384 kB` (proc_meminfo(5)), whose kB are of 1,024 bytes.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of groups with these files.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn limit_of(membership: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit(membership, groups(files).path())
    }

    #[test]
    fn version_2() {
        let own = "0::/pods/one\n";
        assert_eq!(limit_of(own, &[("pods/one/memory.max", "268435456\n")]), Some(256 << 20));
        let above = [("pods/one/memory.max", "max\n"), ("pods/memory.max", "1048576\n")];
        assert_eq!(limit_of(own, &above), Some(1 << 20));
        assert_eq!(limit_of("0::/\n", &[("memory.max", "4096\n")]), Some(4096));
        assert_eq!(limit_of("0::/../elsewhere\n", &[("memory.max", "50\n")]), Some(50), "a container's own group");
        assert_eq!(limit_of(own, &[("pods/one/memory.max", "max\n")]), None);
    }

    #[test]
    fn version_1() {
        let own = "11:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n";
        let (group, root) = ("memory/docker/x/memory.limit_in_bytes", "memory/memory.limit_in_bytes");
        let none = "9223372036854771712\n";
        assert_eq!(limit_of(own, &[(group, "1073741824\n"), (root, none)]), Some(1 << 30));
        assert_eq!(
            limit_of(own, &[(root, "268435456\n")]),
            Some(256 << 20),
            "a container sees its own group as the root"
        );
        assert_eq!(limit_of(own, &[(root, none)]), None);
        assert_eq!(limit_of("nonsense", &[]), None);
    }

    #[test]
    fn the_group_that_leaves_least_counts() {
        let mut files = vec![("pod/me/memory.max", "max\n"), ("pod/me/memory.current", "1000\n")];
        let left = |membership: &str, files: &[(&str, &str)]| left(membership, groups(files).path());
        assert_eq!(left("0::/pod/me\n", &files), None);
        files.extend([
            ("pod/memory.max", "10000\n"),
            ("pod/memory.current", "4000\n"),
            ("pod/memory.stat", "anon 1\ninactive_file 500\n"),
        ]);
        assert_eq!(left("0::/pod/me\n", &files), Some(6500));
        files.push(("pod/me/memory.max", "900\n"));
        assert_eq!(left("0::/pod/me\n", &files), Some(0));
        files.extend([("memory/box/memory.limit_in_bytes", "300\n"), ("memory/box/memory.usage_in_bytes", "100\n")]);
        assert_eq!(left("3:cpu,memory:/box\n", &files), Some(200));
    }

    #[test]
    fn the_machine_bounds_it_too() {
        assert_eq!(machine("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        assert!(available_memory() > 0);
    }
}
