//! How much memory there is, and how much of it this process may still take.
//!
//! Knows Linux's files only. A container's limit counts as the machine's.

use std::fs;
use std::path::{Path, PathBuf};

/// Main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that the machine has or the container allows, whichever is less.
    pub total_bytes: u64,
    /// Bytes that can be taken without swapping and without reaching the container's limit.
    pub available_bytes: u64,
}

impl Memory {
    /// What the files under `root` tell; `None` where there is no `/proc/meminfo`.
    pub(super) fn read_under(root: &Path) -> Option<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let mut memory = parse_meminfo(&meminfo)?;
        for group in control_groups(root) {
            if let Some((limit, used)) = group.limit_and_use() {
                memory.total_bytes = memory.total_bytes.min(limit);
                memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
            }
        }
        Some(memory)
    }
}

/// Source: proc_meminfo(5). Values are in kibibytes although they say kB.
fn parse_meminfo(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let total_bytes = bytes("MemTotal")?;
    // Kernels before 3.14 have no MemAvailable.
    let available_bytes = bytes("MemAvailable").or_else(|| bytes("MemFree"))?;
    Some(Memory { total_bytes, available_bytes })
}

/// One control group's folder, in the files of its version.
struct ControlGroup {
    folder: PathBuf,
    limit_file: &'static str,
    use_file: &'static str,
    inactive_key: &'static str,
}

impl ControlGroup {
    /// `(limit, used)` in bytes; `None` without a limit. Cached file pages that nobody touches lately do not count as
    /// used: the kernel takes them back before it refuses memory.
    fn limit_and_use(&self) -> Option<(u64, u64)> {
        let number = |file| fs::read_to_string(self.folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = number(self.limit_file)?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix(self.inactive_key)?.trim().parse().ok());
        Some((limit, number(self.use_file).unwrap_or(0).saturating_sub(inactive.unwrap_or(0))))
    }
}

/// This process's control groups and all above them: any may hold a limit.
/// Source: cgroups(7); Documentation/admin-guide/cgroup-v2.rst, memory interface files.
fn control_groups(root: &Path) -> Vec<ControlGroup> {
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (mount, limit_file, use_file, inactive_key) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        } else {
            continue;
        };
        let mount = root.join(mount);
        // Within a container the path may be the host's: what does not exist has no limit, the mount's top may.
        let innermost = mount.join(path.trim_start_matches('/'));
        let above = innermost.ancestors().take_while(|folder| folder.starts_with(&mount));
        groups.extend(above.map(|folder| ControlGroup {
            folder: folder.to_owned(),
            limit_file,
            use_file,
            inactive_key,
        }));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MEMINFO: &str = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n";

    /// A machine of 16 GiB with 8 GiB available, and these files besides.
    fn memory(files: &[(&str, &str)]) -> Option<Memory> {
        let root = tempfile::tempdir().expect("a folder");
        for (name, text) in [("proc/meminfo", MEMINFO)].iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        Memory::read_under(root.path())
    }

    #[test]
    fn the_machine_itself_and_each_kind_of_container() {
        let machine = Memory { total_bytes: 16 * GIB, available_bytes: 8 * GIB };
        let v2 = ("proc/self/cgroup", "0::/app/worker\n");
        let v1 = ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n");
        type Files<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&str, Files<'_>, Memory); 7] = [
            ("no group", &[], machine),
            ("v2 without a limit", &[v2, ("sys/fs/cgroup/app/worker/memory.max", "max\n")], machine),
            (
                "v2 with a limit",
                &[
                    v2,
                    ("sys/fs/cgroup/app/worker/memory.max", "4294967296\n"),
                    ("sys/fs/cgroup/app/worker/memory.current", "3221225472\n"),
                    ("sys/fs/cgroup/app/worker/memory.stat", "anon 1\ninactive_file 1073741824\nactive_file 7\n"),
                ],
                Memory { total_bytes: 4 * GIB, available_bytes: 2 * GIB },
            ),
            (
                "v2 with a limit above",
                &[v2, ("sys/fs/cgroup/app/memory.max", "2147483648"), ("sys/fs/cgroup/app/memory.current", "0")],
                Memory { total_bytes: 2 * GIB, available_bytes: 2 * GIB },
            ),
            (
                "v2 with a path of the host",
                &[("proc/self/cgroup", "0::/../../host\n"), ("sys/fs/cgroup/memory.max", "1073741824")],
                Memory { total_bytes: GIB, available_bytes: GIB },
            ),
            (
                "v1 with a limit",
                &[
                    v1,
                    ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1073741824\n"),
                    ("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "2147483648\n"),
                ],
                Memory { total_bytes: GIB, available_bytes: 0 },
            ),
            (
                "v1's number for no limit",
                &[v1, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")],
                machine,
            ),
        ];
        for (case, files, expected) in cases {
            assert_eq!(memory(files), Some(expected), "{case}");
        }
    }

    #[test]
    fn an_old_kernel_has_free_memory_only_and_nonsense_is_nothing() {
        let old = parse_meminfo("MemTotal: 2048 kB\nMemFree: 1024 kB\n");
        assert_eq!(old, Some(Memory { total_bytes: 2 << 20, available_bytes: 1 << 20 }));
        assert_eq!(parse_meminfo("MemTotal: many kB\n"), None);
        assert_eq!(parse_meminfo("MemTotal: 18446744073709551615 kB\nMemFree: 1 kB\n"), None);
    }
}
