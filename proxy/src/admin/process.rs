//! What the operating system says about this process.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Resident memory in bytes; none where the system does not say.
pub fn resident_memory() -> Option<u64> {
    resident(&fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmRSS:     1234 kB` in `/proc/PID/status` (proc_pid_status(5)), whose kB are of 1,024 bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// CPU time of all threads since the start.
pub fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_its_line() {
        assert_eq!(resident("VmPeak:\t 1 kB\nVmRSS:\t   20 kB\n"), Some(20 * 1024));
        assert_eq!(resident("VmPeak:\t 1 kB\n"), None);
        assert_eq!(resident("VmRSS:\t many kB\n"), None);
    }
}
