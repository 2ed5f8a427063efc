//! What this machine has, and where a model runs on it and why.
//!
//! Plain facts and one pure decision: knows no models and no tensors.

#[cfg(feature = "cuda")]
mod ask;
mod ceilings;
mod choose;
mod facts;
mod gpu;
mod ladder;
mod memory;

use std::path::Path;

use crate::cpu::SimdLevel;

pub use ceilings::Ceilings;
pub use choose::{Device, DeviceChoice, DeviceError, choose};
pub use facts::{CudaFacts, DriverFacts, GpuFacts, Images, ProbeFailure, Probing, StartFailure};
pub use gpu::NvidiaFacts;
pub use ladder::{Climb, Failure, GpuClimb, Outcome, Rung, Step};
pub use memory::Memory;

/// Facts about this machine. What cannot be found out is `None` or empty, never an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Cores that this process may use, with its affinity and its container's quota counted in; at least 1.
    pub cores: usize,
    /// Name of the processor.
    pub processor: Option<String>,
    /// SIMD extensions that kernels exist for, the best last: `AVX2`, `AVX-512`.
    pub simd: Vec<&'static str>,
    /// Main memory, or what this process's container allows of it.
    pub memory: Option<Memory>,
    /// What is seen of NVIDIA GPUs without their driver's library.
    pub nvidia: NvidiaFacts,
    /// What the driver says of them, once it was asked.
    pub cuda: CudaFacts,
}

impl Hardware {
    /// Looks at this machine. The GPUs' driver is not asked: see [`Self::ask_driver`].
    pub fn detect() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            simd: detect_simd(),
            cuda: if cfg!(feature = "cuda") { CudaFacts::NotAsked } else { CudaFacts::NotBuilt },
            ..Self::read_under(Path::new("/"))
        }
    }

    /// The facts that the files under `root` tell, so that a test can lay out a machine of its own.
    fn read_under(root: &Path) -> Self {
        Self {
            cores: 1,
            processor: processor_name(root),
            simd: Vec::new(),
            memory: Memory::read_under(root),
            nvidia: NvidiaFacts::read_under(root),
            cuda: CudaFacts::NotBuilt,
        }
    }

    /// Asks the GPUs' driver and runs a small kernel on those GPUs that the wish may need. Takes some tenths of a second
    /// a GPU. `libraries` is the folder that may hold cuBLAS besides the system's. Nothing in a build without CUDA.
    pub fn ask_driver(&mut self, probing: Probing, libraries: Option<&Path>) {
        #[cfg(feature = "cuda")]
        {
            self.cuda = ask::ask(probing, libraries, &self.nvidia);
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (probing, libraries);
        }
    }

    /// The CPU in a few words: `CPU, 2 threads, AVX2`.
    pub fn describe_cpu(&self, threads: usize) -> String {
        let simd = self.simd.last().copied().unwrap_or("no SIMD kernels");
        let plural = if threads == 1 { "" } else { "s" };
        format!("CPU, {threads} thread{plural}, {simd}")
    }
}

/// What the kernels themselves would choose from, so that nobody is told otherwise.
fn detect_simd() -> Vec<&'static str> {
    let levels = SimdLevel::available().into_iter();
    levels.filter(|level| *level != SimdLevel::Portable).map(SimdLevel::name).collect()
}

fn processor_name(root: &Path) -> Option<String> {
    let cpuinfo = std::fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_core_and_more_memory_than_is_free() {
        let hardware = Hardware::detect();
        assert!(hardware.cores >= 1);
        if let Some(memory) = hardware.memory {
            assert!(memory.available_bytes <= memory.total_bytes, "{memory:?}");
            assert!(memory.total_bytes > 0);
        }
    }

    #[test]
    fn a_machine_without_proc_is_unknown_and_no_error() {
        let empty = tempfile::tempdir().expect("a folder");
        let hardware = Hardware::read_under(empty.path());
        assert_eq!(hardware, Hardware { cores: 1, ..Hardware::default() });
    }

    #[test]
    fn the_processor_is_named() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join("proc")).expect("a folder");
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 3.00GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU\n";
        std::fs::write(root.path().join("proc/cpuinfo"), cpuinfo).expect("a file");
        assert_eq!(processor_name(root.path()).as_deref(), Some("Some CPU @ 3.00GHz"));
    }

    #[test]
    fn a_cpu_is_described_by_its_best_kernels() {
        let with = |simd: &[&'static str]| Hardware { cores: 2, simd: simd.to_vec(), ..Hardware::default() };
        assert_eq!(with(&["AVX2"]).describe_cpu(2), "CPU, 2 threads, AVX2");
        assert_eq!(with(&["AVX2", "AVX-512"]).describe_cpu(1), "CPU, 1 thread, AVX-512");
        assert_eq!(with(&[]).describe_cpu(4), "CPU, 4 threads, no SIMD kernels");
    }
}
