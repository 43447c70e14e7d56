//! How much memory this process may have: the least of what its control groups and the machine allow.

use std::fs;
use std::path::{Path, PathBuf};

/// In bytes. Where nothing says, 1 GiB.
pub fn bytes() -> usize {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = limit_files(&groups).into_iter().filter_map(|file| fs::read_to_string(file).ok());
    let of_groups = of_groups.filter_map(|text| text.trim().parse::<usize>().ok());
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine(&text));
    of_groups.chain(of_machine).min().unwrap_or(1 << 30)
}

/// The files that may limit a process of these groups (cgroups(7)): of its own group and of those above it, as seen from
/// inside a container too, where the group's path may be another one.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files =
        vec![PathBuf::from("/sys/fs/cgroup/memory.max"), PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().take(32).map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

/// `MemTotal:  16384 kB` (proc_meminfo(5)), whose kB are of 1,024 bytes.
fn machine(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_every_group_above() {
        let files = limit_files("0::/a/b\n3:cpu,cpuacct:/c\n5:memory:/d\nnonsense\n");
        let named = |path: &str| files.contains(&PathBuf::from(path));
        assert!(named("/sys/fs/cgroup/a/b/memory.max") && named("/sys/fs/cgroup/a/memory.max"));
        assert!(named("/sys/fs/cgroup/memory/d/memory.limit_in_bytes") && named("/sys/fs/cgroup/memory.max"));
        assert!(!files.iter().any(|file| file.to_string_lossy().contains("/c/")));
        assert_eq!(machine("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        assert!(bytes() > 0);
    }
}
