//! What can be seen of NVIDIA GPUs without loading their driver's library.
//!
//! Knows Linux's files only; the ladder that a CUDA build climbs starts after this.

use std::fs;
use std::path::Path;

/// What the system's files tell about NVIDIA GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NvidiaFacts {
    /// Version of the kernel driver that is loaded.
    pub driver_version: Option<String>,
    /// Names of the GPUs that the driver drives.
    pub gpus: Vec<String>,
    /// Graphics devices with NVIDIA's PCI vendor number, whether or not a driver drives them.
    pub pci_devices: usize,
}

impl NvidiaFacts {
    /// Whether any GPU is there.
    pub fn any(&self) -> bool {
        self.driver_version.is_some() || !self.gpus.is_empty() || self.pci_devices > 0
    }

    pub(super) fn read_under(root: &Path) -> Self {
        let version = fs::read_to_string(root.join("proc/driver/nvidia/version")).ok();
        Self {
            driver_version: version.as_deref().and_then(parse_driver_version),
            gpus: gpu_names(&root.join("proc/driver/nvidia/gpus")),
            pci_devices: pci_devices(&root.join("sys/bus/pci/devices")),
        }
    }
}

/// The number in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024`, or
/// `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.51.03  Release Build`.
fn parse_driver_version(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

fn gpu_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| {
            let information = fs::read_to_string(entry.path().join("information")).ok()?;
            Some(information.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
        })
        .collect();
    names.sort();
    names
}

fn pci_devices(folder: &Path) -> usize {
    let starts_with = |path: &Path, name, prefix| {
        fs::read_to_string(path.join(name)).is_ok_and(|text| text.trim().starts_with(prefix))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    // Class 03 is a display controller; the sound device on the same card is none.
    entries
        .map(|entry| entry.path())
        .filter(|path| starts_with(path, "vendor", "0x10de") && starts_with(path, "class", "0x03"))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_versions_are_found_in_both_forms() {
        let cases = [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 13.2",
                Some("550.54.14"),
            ),
            ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.51  Release Build", Some("575.51")),
            ("something else", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_driver_version(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_card_is_seen_with_and_without_its_driver() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        assert!(!NvidiaFacts::read_under(root.path()).any());
        write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
        write("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n");
        write("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n");
        write("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n");
        write("sys/bus/pci/devices/0000:02:00.0/vendor", "0x8086\n");
        write("sys/bus/pci/devices/0000:02:00.0/class", "0x030000\n");
        let bare = NvidiaFacts::read_under(root.path());
        assert_eq!(bare, NvidiaFacts { pci_devices: 1, ..NvidiaFacts::default() });
        assert!(bare.any());
        write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu");
        write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ: 1\n");
        let driven = NvidiaFacts::read_under(root.path());
        assert_eq!(driven.gpus, ["NVIDIA GeForce RTX 3060"]);
        assert_eq!(driven.driver_version.as_deref(), Some("550.54.14"));
    }
}
