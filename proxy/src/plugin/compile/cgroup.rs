//! How much memory the process's own cgroup leaves.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory of a compilation where nobody has set it.
const DEFAULT: u64 = 512 << 20;

/// The smaller of 512 MiB and half of what the cgroup leaves, in bytes.
pub fn memory_for_a_child() -> u64 {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    left(&membership, Path::new("/sys/fs/cgroup")).map_or(DEFAULT, |left| (left / 2).min(DEFAULT))
}

/// What the process's cgroup and those above it leave, in bytes; none where there is no limit. `membership` is what
/// `/proc/self/cgroup` says. In a container the path that it names may not be visible; its own group is the root then.
fn left(membership: &str, root: &Path) -> Option<u64> {
    let mut least: Option<u64> = None;
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
        let group: PathBuf = base.join(path.trim_start_matches('/'));
        for group in group.ancestors().take_while(|group| group.starts_with(&base)) {
            let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
            if let Some((limit, usage)) = number(limit).zip(number(usage)) {
                let used = usage.saturating_sub(reclaimable(group));
                let left = limit.saturating_sub(used);
                least = Some(least.map_or(left, |least| least.min(left)));
            }
        }
    }
    least
}

/// Pages of files that the kernel drops before it runs out of memory.
fn reclaimable(group: &Path) -> u64 {
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let value =
        |line: &str| line.strip_prefix("inactive_file ").or(line.strip_prefix("total_inactive_file "))?.parse().ok();
    stat.lines().filter_map(value).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let of = |membership: &str| left(membership, root.path());
        assert_eq!(of("0::/pod/me\n"), None);
        write("pod/me/memory.max", "max\n");
        write("pod/me/memory.current", "1000\n");
        assert_eq!(of("0::/pod/me\n"), None);
        write("pod/memory.max", "10000\n");
        write("pod/memory.current", "4000\n");
        write("pod/memory.stat", "anon 1\ninactive_file 500\n");
        assert_eq!(of("0::/pod/me\n"), Some(6500));
        write("pod/me/memory.max", "900\n");
        assert_eq!(of("0::/pod/me\n"), Some(0));
        write("memory/box/memory.limit_in_bytes", "300\n");
        write("memory/box/memory.usage_in_bytes", "100\n");
        assert_eq!(of("3:cpu,memory:/box\n"), Some(200));
        // A container that does not see the path of its own group.
        write("memory.max", "50\n");
        write("memory.current", "20\n");
        assert_eq!(of("0::/../elsewhere\n"), Some(30));
    }
}
