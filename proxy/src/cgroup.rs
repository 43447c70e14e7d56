//! How much memory this process may have, by the control group that it runs in (cgroups(7), versions 1 and 2).
//!
//! A container's limit is no property of the machine, and what is sized by the machine's memory does not fit into it. The
//! limit of every group from the process's own up to the root holds; the smallest counts. In a container the own group's
//! path may be that of the host, where nothing is mounted; the root of the mount is then the container's own group.

use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// The most bytes that this process may have; `None` where no group limits it, or that cannot be read.
pub fn memory_limit() -> Option<u64> {
    memory_limit_by(|path| std::fs::read_to_string(path).ok())
}

fn memory_limit_by(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    // `0::/path` for version 2; `4:memory:/path`, or several controllers with commas, for version 1.
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (root, file) = match controllers {
            "" => (PathBuf::from(ROOT), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (Path::new(ROOT).join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let own = root.join(path.trim_start_matches('/'));
        let all = own.ancestors().take_while(|group| group.starts_with(&root));
        // "max" in version 2; version 1 has a number near 2^63 for no limit.
        all.filter_map(|group| read(&group.join(file))?.trim().parse().ok().filter(|limit| *limit < 1 << 60)).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(files: &[(&str, &str)]) -> Option<u64> {
        memory_limit_by(|path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn version_2() {
        let own = ("/proc/self/cgroup", "0::/pods/one\n");
        assert_eq!(limit(&[own, ("/sys/fs/cgroup/pods/one/memory.max", "268435456\n")]), Some(256 << 20));
        assert_eq!(
            limit(&[
                own,
                ("/sys/fs/cgroup/pods/one/memory.max", "max\n"),
                ("/sys/fs/cgroup/pods/memory.max", "1048576\n"),
            ]),
            Some(1 << 20)
        );
        assert_eq!(limit(&[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "4096\n")]), Some(4096));
        assert_eq!(limit(&[own, ("/sys/fs/cgroup/pods/one/memory.max", "max\n")]), None);
    }

    #[test]
    fn version_1() {
        let own = ("/proc/self/cgroup", "11:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n");
        let (group, root) =
            ("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes");
        assert_eq!(limit(&[own, (group, "1073741824\n"), (root, "9223372036854771712\n")]), Some(1 << 30));
        assert_eq!(limit(&[own, (root, "268435456\n")]), Some(256 << 20), "a container sees its own group as the root");
        assert_eq!(limit(&[own, (root, "9223372036854771712\n")]), None);
        assert_eq!(limit(&[]), None);
    }
}
