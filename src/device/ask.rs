//! Asks the driver, in the ladder's order, and no further than the ladder goes.
//!
//! Decides nothing.

use std::path::{Path, PathBuf};

use crate::config::{DeviceWish, environment};
use crate::cuda;

use super::facts::{CudaFacts, DriverFacts, GpuFacts, Images, ProbeFailure, Probing, StartFailure};
use super::gpu::NvidiaFacts;
use super::ladder::{Rung, climb};

/// Asks the driver. `libraries` is the folder that may hold cuBLAS besides the system's.
pub(super) fn ask(probing: Probing, libraries: Option<&Path>, nvidia: &NvidiaFacts) -> CudaFacts {
    if probing == Probing::Wished(DeviceWish::Cpu) {
        return CudaFacts::NotAsked;
    }
    let mut facts = ask_driver();
    if !facts.gpus.as_ref().is_ok_and(|gpus| gpus.is_empty()) {
        let folders: Vec<PathBuf> = libraries.map(Path::to_owned).into_iter().collect();
        facts.cublas = cuda::find_blas(&folders).map_err(|cuda::BlasMissing(reason)| reason);
    }
    for at in 0..facts.gpus.as_ref().map_or(0, Vec::len) {
        // What has failed before the probe needs none.
        let waits = climb(&facts, nvidia).gpus.get(at).is_some_and(|gpu| gpu.waits_for_probe());
        let is_wanted = match probing {
            Probing::Wished(DeviceWish::Cuda(Some(ordinal))) => ordinal as usize == at,
            Probing::None => false,
            _ => true,
        };
        if let (true, true, Ok(gpus)) = (waits, is_wanted, &mut facts.gpus) {
            let outcome = cuda::probe(at).map_err(describe_failure);
            let is_enough = outcome.is_ok() && probing != Probing::All;
            gpus[at].probe = Some(outcome);
            if is_enough {
                break;
            }
        }
    }
    CudaFacts::Asked(Box::new(facts))
}

/// All but cuBLAS and the probes.
fn ask_driver() -> DriverFacts {
    let (machine_code, ptx) = cuda::IMAGES;
    let owned = |archs: &[&str]| archs.iter().map(|arch| (*arch).to_owned()).collect();
    let mut facts = DriverFacts {
        library: cuda::open_driver().map(|path| path.display().to_string()),
        start: Ok(()),
        cuda_version: (0, 0),
        gpus: Ok(Vec::new()),
        cublas: Err("not looked for".to_owned()),
        visible_devices: environment("CUDA_VISIBLE_DEVICES"),
        images: Images { machine_code: owned(machine_code), ptx: owned(ptx) },
    };
    if facts.library.is_err() {
        return facts;
    }
    facts.cuda_version = cuda::driver_version();
    facts.start = cuda::start()
        .map_err(|failure| StartFailure { is_no_device: failure.code == cuda::NO_DEVICE, message: failure.message });
    // Older drivers may lack functions that are asked for below.
    let driver = climb(&facts, &NvidiaFacts::default()).driver;
    if driver.last().is_some_and(|step| step.rung == Rung::Gpu) {
        facts.gpus = cuda::gpus().map_err(|error| error.to_string()).map(|found| {
            let gpu = |gpu: cuda::FoundGpu| GpuFacts {
                name: gpu.name,
                compute_capability: gpu.compute_capability,
                total_bytes: gpu.total_bytes,
                probe: None,
            };
            found.into_iter().map(gpu).collect()
        });
    }
    facts
}

fn describe_failure(error: cuda::ProbeError) -> ProbeFailure {
    match error {
        cuda::ProbeError::NoImage(message) => ProbeFailure::NoImage(message),
        cuda::ProbeError::Wrong(message) => ProbeFailure::Wrong(message),
        cuda::ProbeError::Failed(error) => ProbeFailure::Failed(error.to_string()),
    }
}
