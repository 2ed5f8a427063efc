//! Where a model runs and why: one pure function over plain facts.
//!
//! Knows no driver.

use crate::config::DeviceWish;

use super::facts::CudaFacts;
use super::ladder::{Climb, GpuClimb, climb};
use super::{Hardware, NvidiaFacts};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// This machine's processor.
    #[default]
    Cpu,
    /// One NVIDIA GPU.
    Cuda {
        /// Its number in the driver's order.
        ordinal: u32,
    },
}

/// The device that was chosen, and why not a faster one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// Where the model runs.
    pub device: Device,
    /// Why there, as the end of a sentence: `this build has no CUDA`.
    pub reason: String,
    /// How far each GPU came, where they were asked.
    pub climb: Climb,
}

/// Why the device that was asked for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device `{wish}` was asked for, but {reason}")]
pub struct DeviceError {
    /// What was asked for.
    pub wish: DeviceWish,
    /// The first thing that is missing.
    pub reason: String,
}

/// Decides where a model runs.
///
/// # Errors
/// [`DeviceError`] where a GPU was asked for and cannot be used.
pub fn choose(hardware: &Hardware, wish: DeviceWish) -> Result<DeviceChoice, DeviceError> {
    let climb = match &hardware.cuda {
        CudaFacts::Asked(facts) => climb(facts, &hardware.nvidia),
        CudaFacts::NotBuilt | CudaFacts::NotAsked => Climb::default(),
    };
    let found = match (wish, &hardware.cuda) {
        (DeviceWish::Cpu, _) => Err("it was asked for".to_owned()),
        (_, CudaFacts::NotBuilt) => Err(why_no_cuda(&hardware.nvidia)),
        (_, CudaFacts::NotAsked) => Err("the GPUs were not looked at".to_owned()),
        (DeviceWish::Auto | DeviceWish::Cuda(None), CudaFacts::Asked(_)) => first_gpu(&climb),
        (DeviceWish::Cuda(Some(ordinal)), CudaFacts::Asked(_)) => this_gpu(&climb, ordinal),
    };
    match (found, wish) {
        (Ok((ordinal, reason)), _) => Ok(DeviceChoice { device: Device::Cuda { ordinal }, reason, climb }),
        (Err(reason), DeviceWish::Cuda(_)) => Err(DeviceError { wish, reason }),
        (Err(reason), _) => Ok(DeviceChoice { device: Device::Cpu, reason, climb }),
    }
}

/// The first GPU that can be used and why it is this one, or why there is none.
fn first_gpu(climb: &Climb) -> Result<(u32, String), String> {
    if let Some(failure) = climb.driver_failure() {
        return Err(failure.reason.clone());
    }
    // What stands before the one that is taken, or all.
    let end = climb.gpus.iter().position(GpuClimb::can_be_used).unwrap_or(climb.gpus.len());
    let reasons: Vec<&str> = climb.gpus[..end].iter().filter_map(|gpu| Some(gpu.failure()?.reason.as_str())).collect();
    let Some(gpu) = climb.gpus.get(end) else { return Err(reasons.join("; ")) };
    let mut reason = match reasons.as_slice() {
        [] => "it is the first GPU that can be used".to_owned(),
        reasons => format!("it is the first GPU that can be used ({})", reasons.join("; ")),
    };
    if let Some(note) = gpu.note() {
        reason = format!("{reason}; {note}");
    }
    Ok((gpu.ordinal, reason))
}

/// GPU `wanted`, or why it cannot be used.
fn this_gpu(climb: &Climb, wanted: u32) -> Result<(u32, String), String> {
    if let Some(failure) = climb.driver_failure() {
        return Err(failure.reason.clone());
    }
    let gpu = climb.gpus.iter().find(|gpu| gpu.ordinal == wanted).ok_or_else(|| match climb.gpus.len() {
        1 => format!("there is no GPU {wanted}: the only one is 0"),
        count => format!("there is no GPU {wanted}: they are 0 to {}", count.saturating_sub(1)),
    })?;
    match gpu.failure() {
        Some(failure) => Err(failure.reason.clone()),
        None if !gpu.can_be_used() => Err(format!("{} was not tried", gpu.name)),
        None => {
            Ok((wanted, gpu.note().map_or("it was asked for".to_owned(), |note| format!("it was asked for; {note}"))))
        }
    }
}

/// What was seen, where this build asks no driver.
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
