//! The ladder that each GPU climbs: from the driver's library to a kernel that computes, rung by rung.
//!
//! One pure function over plain facts. Its first failure is a GPU's reason, worded as the end of a sentence.

use super::facts::{DriverFacts, GpuFacts, ProbeFailure};
use super::gpu::NvidiaFacts;

/// The CUDA version that a driver must speak at least, and the driver that brings it.
const NEEDED_CUDA: (u32, u32) = (13, 0);
const NEEDED_DRIVER: &str = "580";
/// The least compute capability that the kernels are written for.
const NEEDED_CAPABILITY: (u32, u32) = (8, 0);
/// What serves where cuBLAS does not.
const WITHOUT_CUBLAS: &str = "our own matrix product serves, slower; `lantern cuda install` gets cuBLAS";

/// A rung, in the order in which they are climbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The driver's library is found.
    Library,
    /// The driver starts.
    Start,
    /// The driver is new enough.
    Version,
    /// The driver offers a GPU.
    Gpu,
    /// The GPU's compute capability is enough.
    Capability,
    /// cuBLAS is found. Without it the climb goes on.
    Cublas,
    /// This build has code for the GPU.
    Image,
    /// A probe kernel gives the right answer.
    Probe,
}

impl Rung {
    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Library => "driver library",
            Self::Start => "driver starts",
            Self::Version => "driver version",
            Self::Gpu => "a GPU",
            Self::Capability => "capability",
            Self::Cublas => "cuBLAS",
            Self::Image => "kernel image",
            Self::Probe => "probe kernel",
        }
    }
}

/// How a rung was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passed; what was seen.
    Passed(String),
    /// Passed, with something that a person should know.
    Noted(String),
    /// Not passed.
    Failed(Failure),
    /// Not tried: another GPU was taken before.
    NotTried,
}

/// Why a rung was not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The end of a sentence: `the NVIDIA driver does not start: ...`.
    pub reason: String,
    /// What to do about it, where something can be done.
    pub remedy: Option<String>,
}

/// One rung and how it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rung.
    pub rung: Rung,
    /// How it was taken.
    pub outcome: Outcome,
}

/// One GPU's climb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuClimb {
    /// Its number, as in `cuda:0`.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// Bytes of it that were free, where that is known.
    pub free_bytes: Option<u64>,
    /// From [`Rung::Capability`] to the last one tried.
    pub steps: Vec<Step>,
}

/// The driver's climb, which all GPUs share, and each GPU's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Climb {
    /// From [`Rung::Library`] to the last one tried.
    pub driver: Vec<Step>,
    /// All GPUs, where the driver has passed its rungs.
    pub gpus: Vec<GpuClimb>,
}

impl Climb {
    /// Why no GPU can be used at all.
    pub fn driver_failure(&self) -> Option<&Failure> {
        first_failure(&self.driver)
    }
}

impl GpuClimb {
    /// Why this GPU cannot be used.
    pub fn failure(&self) -> Option<&Failure> {
        first_failure(&self.steps)
    }

    /// Whether it has passed every rung.
    pub fn can_be_used(&self) -> bool {
        matches!(self.steps.last(), Some(Step { rung: Rung::Probe, outcome: Outcome::Passed(_) }))
    }

    /// Whether nothing but the probe is left to try.
    pub fn waits_for_probe(&self) -> bool {
        self.steps.last().is_some_and(|step| step.outcome == Outcome::NotTried)
    }

    /// What a person should know although it can be used.
    pub fn note(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| match &step.outcome {
            Outcome::Noted(note) => Some(note.as_str()),
            _ => None,
        })
    }
}

fn first_failure(steps: &[Step]) -> Option<&Failure> {
    steps.iter().find_map(|step| match &step.outcome {
        Outcome::Failed(failure) => Some(failure),
        _ => None,
    })
}

/// How a rung is taken: what the driver says, and what else it is about.
type Take<T> = fn(&DriverFacts, &T) -> Outcome;

/// Climbs as far as the facts go. `nvidia` is what the system's files tell, for better words.
pub fn climb(facts: &DriverFacts, nvidia: &NvidiaFacts) -> Climb {
    let mut climb = Climb::default();
    let rungs: [(Rung, Take<NvidiaFacts>); 4] =
        [(Rung::Library, library), (Rung::Start, start), (Rung::Version, version), (Rung::Gpu, any_gpu)];
    for (rung, take) in rungs {
        climb.driver.push(Step { rung, outcome: take(facts, nvidia) });
        if climb.driver_failure().is_some() {
            return climb;
        }
    }
    let gpus = facts.gpus.iter().flatten();
    climb.gpus = gpus.zip(0..).map(|(gpu, ordinal)| climb_gpu(facts, gpu, ordinal)).collect();
    climb
}

fn climb_gpu(facts: &DriverFacts, gpu: &GpuFacts, ordinal: u32) -> GpuClimb {
    let free_bytes = gpu.probe.as_ref().and_then(|probe| probe.as_ref().ok()).copied();
    let mut climb =
        GpuClimb { ordinal, name: gpu.name.clone(), total_bytes: gpu.total_bytes, free_bytes, steps: Vec::new() };
    let rungs: [(Rung, Take<GpuFacts>); 4] =
        [(Rung::Capability, capability), (Rung::Cublas, cublas), (Rung::Image, image), (Rung::Probe, probe)];
    for (rung, take) in rungs {
        let outcome = take(facts, gpu);
        let goes_on = !matches!(outcome, Outcome::Failed(_) | Outcome::NotTried);
        climb.steps.push(Step { rung, outcome });
        if !goes_on {
            break;
        }
    }
    climb
}

fn failed(reason: String, remedy: &str) -> Outcome {
    Outcome::Failed(Failure { reason, remedy: (!remedy.is_empty()).then(|| remedy.to_owned()) })
}

fn library(facts: &DriverFacts, nvidia: &NvidiaFacts) -> Outcome {
    let error = match &facts.library {
        Ok(path) => return Outcome::Passed(path.clone()),
        Err(error) => error,
    };
    let install = "install NVIDIA's driver, 580 or later; in a container, start it with the GPUs (`--gpus all`)";
    match nvidia.gpus.first() {
        Some(card) => {
            failed(format!("the NVIDIA driver's library cannot be opened, although {card} is here ({error})"), install)
        }
        None if nvidia.any() => {
            failed(format!("the NVIDIA driver's library cannot be opened, although a GPU is here ({error})"), install)
        }
        None => failed(format!("no NVIDIA driver is here ({error})"), ""),
    }
}

fn start(facts: &DriverFacts, _: &NvidiaFacts) -> Outcome {
    match &facts.start {
        Ok(()) => Outcome::Passed("yes".to_owned()),
        Err(failure) if failure.is_no_device => no_gpu(facts, &failure.message),
        Err(failure) => failed(
            format!("the NVIDIA driver does not start: {}", failure.message),
            "after an update of the driver the machine must be restarted; `nvidia-smi` shows whether it works",
        ),
    }
}

fn version(facts: &DriverFacts, nvidia: &NvidiaFacts) -> Outcome {
    let (major, minor) = facts.cuda_version;
    let driver = nvidia.driver_version.as_ref().map_or_else(String::new, |version| format!(" (driver {version})"));
    if facts.cuda_version >= NEEDED_CUDA {
        return Outcome::Passed(format!("CUDA {major}.{minor}{driver}"));
    }
    let (needed_major, needed_minor) = NEEDED_CUDA;
    failed(
        format!(
            "the NVIDIA driver is too old: it speaks CUDA {major}.{minor}{driver}, and {needed_major}.{needed_minor} is \
             needed (driver {NEEDED_DRIVER} or later)"
        ),
        "update NVIDIA's driver",
    )
}

fn any_gpu(facts: &DriverFacts, _: &NvidiaFacts) -> Outcome {
    match &facts.gpus {
        Ok(gpus) if gpus.is_empty() => no_gpu(facts, "it lists none"),
        Ok(gpus) => Outcome::Passed(format!("{} found", gpus.len())),
        Err(error) => failed(format!("the NVIDIA driver does not list its GPUs: {error}"), ""),
    }
}

fn no_gpu(facts: &DriverFacts, message: &str) -> Outcome {
    match facts.visible_devices.as_deref() {
        Some(visible) => {
            let value = if visible.is_empty() { "empty".to_owned() } else { format!("`{visible}`") };
            let reason = format!("the NVIDIA driver offers no GPU: CUDA_VISIBLE_DEVICES is {value}");
            failed(reason, "unset CUDA_VISIBLE_DEVICES, or name a GPU in it")
        }
        None => failed(
            format!("the NVIDIA driver offers no GPU: {message}"),
            "`nvidia-smi` shows what it sees; in a container, start it with the GPUs (`--gpus all`)",
        ),
    }
}

fn capability(_: &DriverFacts, gpu: &GpuFacts) -> Outcome {
    let (major, minor) = gpu.compute_capability;
    if gpu.compute_capability >= NEEDED_CAPABILITY {
        return Outcome::Passed(format!("{major}.{minor}"));
    }
    let (needed_major, needed_minor) = NEEDED_CAPABILITY;
    let name = &gpu.name;
    failed(
        format!("{name} has compute capability {major}.{minor}, and {needed_major}.{needed_minor} is needed"),
        "a GeForce RTX 3060 or later has it",
    )
}

fn cublas(facts: &DriverFacts, _: &GpuFacts) -> Outcome {
    match &facts.cublas {
        Ok(file) => Outcome::Passed(file.clone()),
        Err(error) => Outcome::Noted(format!("cuBLAS is not here ({error}): {WITHOUT_CUBLAS}")),
    }
}

fn image(facts: &DriverFacts, gpu: &GpuFacts) -> Outcome {
    let message = match &gpu.probe {
        None => return Outcome::NotTried,
        Some(Err(ProbeFailure::NoImage(message))) => message,
        Some(_) => return Outcome::Passed(facts.images.describe()),
    };
    let (major, minor) = gpu.compute_capability;
    let (name, images) = (&gpu.name, facts.images.describe());
    failed(
        format!(
            "this build has no kernel image for {name}, compute capability {major}.{minor}: it has {images} ({message})"
        ),
        "use a newer build, or build with the default list of GPUs",
    )
}

fn probe(_: &DriverFacts, gpu: &GpuFacts) -> Outcome {
    let name = &gpu.name;
    match &gpu.probe {
        None => Outcome::NotTried,
        Some(Ok(_)) => Outcome::Passed("right".to_owned()),
        Some(Err(ProbeFailure::Wrong(message))) => failed(
            format!("a probe kernel gave a wrong answer on {name}: {message}"),
            "the GPU or its driver is faulty: `nvidia-smi -q` shows its errors",
        ),
        Some(Err(ProbeFailure::NoImage(message) | ProbeFailure::Failed(message))) => failed(
            format!("a probe kernel failed on {name}: {message}"),
            "`nvidia-smi` shows whether another program holds the GPU or its memory",
        ),
    }
}

#[cfg(test)]
mod tests;
