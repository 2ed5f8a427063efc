//! What the driver says of itself and its GPUs: plain data, which a test can lay out.
//!
//! Knows no driver.

use crate::config::DeviceWish;

/// Whether the driver was asked, and what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CudaFacts {
    /// This build has no CUDA.
    #[default]
    NotBuilt,
    /// Nobody has asked yet.
    NotAsked,
    /// It was asked.
    Asked(Box<DriverFacts>),
}

/// Which GPUs are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// Those that the wish needs: up to the first that can be used, or the one that is named.
    Wished(DeviceWish),
    /// Every one.
    All,
    /// None: what the driver says of them is enough.
    None,
}

/// The driver's answers. Each is asked for only where those before it are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFacts {
    /// The file of the driver's library, or why it could not be opened.
    pub library: Result<String, String>,
    /// Whether it starts.
    pub start: Result<(), StartFailure>,
    /// The CUDA version that it speaks, major and minor.
    pub cuda_version: (u32, u32),
    /// Its GPUs in its order, or why it does not list them.
    pub gpus: Result<Vec<GpuFacts>, String>,
    /// Version and file of cuBLASLt, or why it could not be opened.
    pub cublas: Result<String, String>,
    /// What CUDA_VISIBLE_DEVICES is set to.
    pub visible_devices: Option<String>,
    /// What this build's kernels were compiled for.
    pub images: Images,
}

/// Why the driver does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// Whether that means: it has no GPU that this process may use.
    pub is_no_device: bool,
    /// The driver's number and words.
    pub message: String,
}

/// Compute capabilities without their dot, as the compiler is given them: `80`, `90a`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Those that have machine code.
    pub machine_code: Vec<String>,
    /// Those that have PTX, which the driver compiles for them and for any later card.
    pub ptx: Vec<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// The driver's name of it.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// What the probe found: the bytes that were free, or why it failed. `None`: it was not run.
    pub probe: Option<Result<u64, ProbeFailure>>,
}

/// Why a GPU did not pass the probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    /// This build has no kernel image for it; the driver's words.
    NoImage(String),
    /// It computed something else than it should.
    Wrong(String),
    /// A call failed.
    Failed(String),
}

impl Images {
    /// `machine code for 8.0, 9.0a and PTX for 8.0`.
    pub fn describe(&self) -> String {
        let list = |kind: &str, archs: &[String]| {
            let dotted = archs.iter().map(|arch| dotted(arch)).collect::<Vec<_>>().join(", ");
            if archs.is_empty() { format!("no {kind}") } else { format!("{kind} for {dotted}") }
        };
        format!("{} and {}", list("machine code", &self.machine_code), list("PTX", &self.ptx))
    }
}

/// `120` as `12.0`, `90a` as `9.0a`.
fn dotted(arch: &str) -> String {
    let digits = arch.bytes().take_while(u8::is_ascii_digit).count();
    let (major, minor) = arch.split_at(digits.saturating_sub(1));
    format!("{major}.{minor}")
}
