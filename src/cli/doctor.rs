//! `lantern doctor`: what this machine has, what is reachable from it, and which models fit it.
//!
//! With `--plan`, what one model takes, without loading it. Changes nothing.

mod gpus;
mod plan;

pub use plan::memory_here;

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::Client;
use super::flags::{AddressFlags, StoreFlags};
use super::load::{self, BUILT_IN_CONTEXT};
use super::startup::count;
use super::table::{Align, Table};
use super::{CliError, Session};
use crate::config::{ByteSize, Config, DeviceWish, Settings};
use crate::device::{self, Device, DeviceChoice, Hardware, Probing};
use crate::hub::{Catalog, Entry, Store};

/// Longest wait for the hub's front page.
const HUB_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `lantern doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern doctor\n  lantern doctor --offline\n  \
                        lantern doctor --plan qwen2.5:7b --vram 8GiB --context 8192\n  \
                        lantern doctor --plan ./config.json --vram 24GiB --quantize q4_k")]
pub struct DoctorArgs {
    #[command(flatten)]
    plan: plan::PlanFlags,
    #[command(flatten)]
    address: AddressFlags,
    #[command(flatten)]
    store: StoreFlags,
}

/// Prints the report.
///
/// # Errors
/// [`CliError`]: the settings are not valid.
pub fn run(args: DoctorArgs, session: &Session) -> Result<(), CliError> {
    if args.plan.is_asked() {
        return plan::run(args.plan, args.store, session);
    }
    let config = session.resolve(args.store.fill(args.address.fill(Settings::default())))?;
    let mut hardware = Hardware::detect();
    hardware.ask_driver(Probing::All, Some(&Store::libraries_below(&config.hub.models_dir)));
    let choice = device::choose(&hardware, DeviceWish::Auto).map_err(|error| CliError::Refused(error.to_string()))?;
    let machine = describe_machine(&hardware, &choice);
    session.print(&format!("Lantern {}\n\n{machine}", env!("CARGO_PKG_VERSION")))?;
    session.print(&line("store", &describe_store(&config.hub.models_dir)))?;
    session.print(&line("server", &describe_server(&config)))?;
    session.print(&line("hub", &describe_hub(&config)))?;
    session.print(&gpus::describe(&choice.climb))?;
    session.print(&format!("\n{}", describe_models(Catalog::embedded().entries(), &hardware, &choice)))
}

fn line(name: &str, text: &str) -> String {
    format!("{name:<11}{text}\n")
}

fn describe_machine(hardware: &Hardware, choice: &DeviceChoice) -> String {
    let simd = match hardware.simd.as_slice() {
        [] => "none that kernels are here for: the portable ones run, slowly".to_owned(),
        simd => simd.join(", "),
    };
    let memory = match hardware.memory {
        Some(memory) => format!("{}, {} free", ByteSize(memory.total_bytes), ByteSize(memory.available_bytes)),
        None => "unknown on this system".to_owned(),
    };
    let place = match choice.device {
        Device::Cpu => hardware.describe_cpu(hardware.cores),
        Device::Cuda { ordinal } => gpus::describe_place(&choice.climb, ordinal),
    };
    let device = format!("{place}\n{:11}because {}", "", choice.reason);
    [
        line("processor", hardware.processor.as_deref().unwrap_or("unknown")),
        line("cores", &hardware.cores.to_string()),
        line("SIMD", &simd),
        line("memory", &memory),
        line("device", &device),
    ]
    .concat()
}

fn describe_store(folder: &Path) -> String {
    match free_disk_bytes(folder) {
        Some(bytes) => format!("{}, {} free", folder.display(), ByteSize(bytes)),
        None => folder.display().to_string(),
    }
}

/// Bytes that an ordinary user may still write where `folder` is or will be.
#[cfg(unix)]
fn free_disk_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists()).filter(|there| !there.as_os_str().is_empty());
    let disk = rustix::fs::statvfs(there.unwrap_or(Path::new("."))).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free_disk_bytes(_folder: &Path) -> Option<u64> {
    None
}

fn describe_server(config: &Config) -> String {
    let client = Client::new(&config.server.address);
    match client.models() {
        Ok(models) => format!("http://{} serves {}", client.address(), models.join(", ")),
        Err(error) => error.to_string(),
    }
}

fn describe_hub(config: &Config) -> String {
    let options = load::hub_options(&config.hub);
    if options.offline {
        return format!("{} (not asked: downloads are switched off)", options.endpoint);
    }
    let started = Instant::now();
    let agent =
        ureq::Agent::config_builder().timeout_global(Some(HUB_TIMEOUT)).http_status_as_error(false).build().new_agent();
    match agent.head(&options.endpoint).call() {
        Ok(_) => format!("{} answers in {} ms", options.endpoint, started.elapsed().as_millis()),
        Err(error) => format!("{} cannot be reached\n{:11}because {error}", options.endpoint, ""),
    }
}

/// The catalog, with what each model takes where it would run, and whether that is free.
fn describe_models(entries: &[Entry], hardware: &Hardware, choice: &DeviceChoice) -> String {
    let mut table = Table::new([
        ("MODEL", Align::Left),
        ("PARAMETERS", Align::Right),
        ("DOWNLOAD", Align::Right),
        ("MEMORY", Align::Right),
        ("FITS", Align::Left),
    ]);
    let (place, free_and_total) = match choice.device {
        Device::Cpu => ("main memory", hardware.memory.map(|memory| (memory.available_bytes, memory.total_bytes))),
        Device::Cuda { ordinal } => ("the GPU's memory, in bf16,", gpus::memory(&choice.climb, ordinal)),
    };
    for entry in entries {
        let context = BUILT_IN_CONTEXT.min(entry.context_tokens);
        let needed = match choice.device {
            Device::Cpu => entry.memory_bytes(context),
            Device::Cuda { .. } => entry.gpu_memory_bytes(context),
        };
        let fits = match free_and_total {
            None => "unknown",
            Some((free_bytes, _)) if needed <= free_bytes / 100 * 92 => "yes",
            Some((_, total_bytes)) if needed <= total_bytes / 100 * 92 => "once memory is freed",
            Some(_) => "no",
        };
        table.push([
            entry.name.clone(),
            count(entry.parameters),
            ByteSize(entry.bytes).to_string(),
            ByteSize(needed).to_string(),
            fits.to_owned(),
        ]);
    }
    format!("{table}\nMEMORY is {place} for one user with {BUILT_IN_CONTEXT} tokens of context.\n")
}
