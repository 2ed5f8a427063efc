//! Where a model runs and why: one pure function over plain facts.
//!
//! Knows no driver. A build with CUDA adds its rungs here.

use crate::config::DeviceWish;

use super::{Hardware, NvidiaFacts};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// This machine's processor.
    Cpu,
}

/// The device that was chosen, and why not a faster one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// Where the model runs.
    pub device: Device,
    /// Why there, as the end of a sentence: `this build has no CUDA`.
    pub reason: String,
}

/// Why the device that was asked for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device `cuda` was asked for, but {reason}")]
pub struct DeviceError {
    /// The first thing that is missing.
    pub reason: String,
}

/// Decides where a model runs.
///
/// # Errors
/// [`DeviceError`] where a GPU was asked for and cannot be used.
pub fn choose(hardware: &Hardware, wish: DeviceWish) -> Result<DeviceChoice, DeviceError> {
    let reason = match wish {
        DeviceWish::Cpu => "it was asked for".to_owned(),
        DeviceWish::Auto => why_no_cuda(&hardware.nvidia),
        DeviceWish::Cuda => return Err(DeviceError { reason: why_no_cuda(&hardware.nvidia) }),
    };
    Ok(DeviceChoice { device: Device::Cpu, reason })
}

/// The first rung of the ladder that is missing. In this build it is always the build itself.
fn why_no_cuda(nvidia: &NvidiaFacts) -> String {
    let card = nvidia.gpus.first().map_or("an NVIDIA GPU", String::as_str);
    match &nvidia.driver_version {
        Some(version) => format!("this build has no CUDA, although {card} is here (driver {version})"),
        None if nvidia.any() => {
            "this build has no CUDA, although an NVIDIA GPU is here (without its driver)".to_owned()
        }
        None => "this build has no CUDA, and no NVIDIA GPU was seen".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_what_was_seen() {
        let none = NvidiaFacts::default();
        let bare = NvidiaFacts { pci_devices: 1, ..none.clone() };
        let hidden = NvidiaFacts { driver_version: Some("550.54".into()), ..none.clone() };
        let driven = NvidiaFacts { gpus: vec!["NVIDIA GeForce RTX 3060".into()], ..hidden.clone() };
        let cases = [
            (none, "this build has no CUDA, and no NVIDIA GPU was seen"),
            (bare, "this build has no CUDA, although an NVIDIA GPU is here (without its driver)"),
            (hidden, "this build has no CUDA, although an NVIDIA GPU is here (driver 550.54)"),
            (driven, "this build has no CUDA, although NVIDIA GeForce RTX 3060 is here (driver 550.54)"),
        ];
        for (nvidia, expected) in cases {
            let hardware = Hardware { nvidia, ..Hardware::default() };
            let auto = choose(&hardware, DeviceWish::Auto).expect("the CPU is always there");
            assert_eq!(auto, DeviceChoice { device: Device::Cpu, reason: expected.to_owned() });
            let error = choose(&hardware, DeviceWish::Cuda).expect_err("no CUDA").to_string();
            assert_eq!(error, format!("the device `cuda` was asked for, but {expected}"));
            let cpu = choose(&hardware, DeviceWish::Cpu).expect("the CPU is always there");
            assert_eq!(cpu.reason, "it was asked for");
        }
    }
}
