//! `lantern doctor --plan`: what a model takes of a machine's memory, from its headers alone.
//!
//! Works without a GPU, and for machines that are not this one.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::estimate::Estimate;
use super::{CliError, Session};
use crate::cli::flags::{LayerFlags, StoreFlags};
use crate::cli::load;
use crate::cli::startup::count;
use crate::config::{ByteSize, Config, DeviceWish, GpuLayers, KvDTypeWish, Settings, WeightFormat};
use crate::device::{self, Ceilings, Device, Hardware, Probing};
use crate::engine::{MemoryToPlan, Offload, PlanPreview};
use crate::hub::{self, Entry, HubError, ModelName, Store};
use crate::llm::plan_preview;

/// Which model is planned, and for what machine.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Planning")]
pub struct PlanFlags {
    /// Show what this model takes, without loading it: a name, org/name, a folder, a .gguf file or a config.json
    #[arg(long, value_name = "MODEL")]
    plan: Option<String>,
    /// Plan for a GPU of this size, like 8GiB [default: where it would run here]
    #[arg(long, value_name = "SIZE", requires = "plan")]
    vram: Option<ByteSize>,
    /// Plan for this much free main memory: on the CPU, or with --vram for layers that the GPU has no room for
    #[arg(long, value_name = "SIZE", requires = "plan")]
    ram: Option<ByteSize>,
    #[command(flatten)]
    layers: LayerFlags,
    /// Tokens of prompt and answer together that each user gets
    #[arg(long, value_name = "TOKENS", requires = "plan")]
    context: Option<u32>,
    /// What the KV cache stores: auto, bf16, f16, f32, fp8 or int8
    #[arg(long, value_name = "TYPE", requires = "plan")]
    kv_cache_dtype: Option<KvDTypeWish>,
    /// Plan with the weights in this format: bf16, q8_0, fp8, q6_k or q4_k
    #[arg(long, value_name = "FORMAT", requires = "plan")]
    quantize: Option<WeightFormat>,
    /// Print JSON instead of text
    #[arg(long, requires = "plan")]
    json: bool,
}

impl PlanFlags {
    /// Whether a plan is asked for.
    pub fn is_asked(&self) -> bool {
        self.plan.is_some()
    }
}

/// Prints the plan, or what the catalog says of a model that is not here.
///
/// # Errors
/// [`CliError`]: the model is not on this machine, or its files are not valid.
pub fn run(flags: PlanFlags, store: StoreFlags, session: &Session) -> Result<(), CliError> {
    let settings = Settings {
        context: flags.context,
        kv_cache_dtype: flags.kv_cache_dtype,
        device: flags.ram.filter(|_| flags.vram.is_none()).map(|_| DeviceWish::Cpu),
        gpu_layers: flags.layers.wish(),
        ..Settings::default()
    };
    let config = session.resolve(store.fill(settings))?;
    session.log(&config, "warn")?;
    let text = match locate(flags.plan.as_deref().unwrap_or_default(), &config)? {
        Subject::Entry(entry) => {
            let (memory, _) = memory(&flags, &config)?;
            let estimate = Estimate::new(&entry, &config.engine, flags.quantize, memory)?;
            if flags.json { json(&estimate)? } else { estimate.describe() }
        }
        Subject::Headers { path, is_config } => {
            let preview = previewed(&flags, &config, &path, is_config)?;
            if flags.json { json(&preview)? } else { describe(&preview) }
        }
    };
    session.print(&text)
}

fn json(value: &impl Serialize) -> Result<String, CliError> {
    let json = serde_json::to_string_pretty(value).map_err(|error| CliError::Refused(error.to_string()))?;
    Ok(format!("{json}\n"))
}

/// The plan, and how fast its parts are.
fn previewed(flags: &PlanFlags, config: &Config, path: &Path, is_config: bool) -> Result<PlanPreview, CliError> {
    let (memory, here) = memory(flags, config)?;
    let mut preview = plan_preview(path, is_config, &config.engine, memory, flags.quantize)?;
    if let Some(offload) = &mut preview.offload {
        offload.gpu_bytes_per_second = match here {
            None => Some(OTHER_GPU_BYTES_PER_SECOND),
            Some(ordinal) => {
                let libraries = Store::libraries_below(&config.hub.models_dir);
                let ceilings = Ceilings::measure(ordinal, Some(&libraries));
                ceilings.ok().and_then(|ceilings| ceilings.copy_bytes_per_second)
            }
        };
    }
    Ok(preview)
}

/// What a GPU that is not here is taken to read each second: as the smaller cards that people have, such as an RTX 3060.
const OTHER_GPU_BYTES_PER_SECOND: f64 = 360e9;

/// What is planned.
enum Subject {
    /// A model by its headers, which may be a config.json alone.
    Headers { path: PathBuf, is_config: bool },
    /// A model of the catalog that is not on this machine.
    Entry(Box<Entry>),
}

/// What is known of a model.
fn locate(model: &str, config: &Config) -> Result<Subject, CliError> {
    let path = Path::new(model);
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if is_json && path.is_file() {
        return Ok(Subject::Headers { path: path.to_owned(), is_config: true });
    }
    // A folder of a config.json alone is as good.
    let inside = path.join("config.json");
    if inside.is_file() && !has_weights(path) {
        return Ok(Subject::Headers { path: inside, is_config: true });
    }
    let (store, options) = (load::store(&config.hub)?, load::hub_options(&config.hub));
    let name = load::understand(model, &store, &options)?;
    match (hub::resolve(&name, &store, &options), name) {
        (Ok(located), _) => Ok(Subject::Headers { path: located.kind.path().to_owned(), is_config: false }),
        (Err(HubError::NotPresent { .. }), ModelName::Catalog(entry)) => Ok(Subject::Entry(entry)),
        (Err(HubError::NotPresent { .. }), name) => Err(CliError::Refused(format!(
            "{name} is not on this machine, and a plan reads its headers; `lantern pull {name}` brings it, or give its \
             config.json"
        ))),
        (Err(error), _) => Err(error.into()),
    }
}

fn has_weights(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .any(|path| path.extension().is_some_and(|extension| extension == "safetensors" || extension == "gguf"))
}

/// Less memory than anybody plans for: a unit was forgotten.
const LEAST_BYTES: u64 = 1 << 20;

/// The memory that the flags name, or that of where a model would run here; and the GPU of this machine, if it is one.
fn memory(flags: &PlanFlags, config: &Config) -> Result<(MemoryToPlan, Option<u32>), CliError> {
    for (flag, size) in [("--vram", flags.vram), ("--ram", flags.ram)] {
        if let Some(size) = size.filter(|size| size.0 < LEAST_BYTES) {
            return Err(CliError::Refused(format!("{flag}: that is {size} alone; write it like 8GiB")));
        }
    }
    if let Some(size) = flags.vram {
        if config.engine.gpu_layers == GpuLayers::Count(0) {
            return Err(CliError::Refused("--gpu-layers 0 runs on the CPU: --vram plans nothing; give --ram".into()));
        }
        let free_bytes = || Hardware::detect().memory.map(|memory| memory.available_bytes);
        let main_bytes = flags.ram.map(|size| size.0).or_else(free_bytes).unwrap_or(UNKNOWN_BYTES);
        return Ok((MemoryToPlan::Gpu { bytes: size.0, main_bytes }, None));
    }
    if let Some(size) = flags.ram {
        return Ok((MemoryToPlan::Cpu(size.0), None));
    }
    memory_here(config)
}

/// Main memory where nobody knows how much is free: nothing is held back.
const UNKNOWN_BYTES: u64 = u64::MAX / 2;

/// The memory of where a model would run here, and which GPU that is, if it is one.
///
/// # Errors
/// [`CliError::Refused`]: the device that is wished for cannot be had, or nobody knows how much memory is free.
pub fn memory_here(config: &Config) -> Result<(MemoryToPlan, Option<u32>), CliError> {
    let mut hardware = Hardware::detect();
    let without_gpu = config.engine.gpu_layers == GpuLayers::Count(0);
    let wish = if without_gpu { DeviceWish::Cpu } else { config.engine.device };
    hardware.ask_driver(Probing::All, Some(&Store::libraries_below(&config.hub.models_dir)));
    let choice = device::choose(&hardware, wish).map_err(|error| CliError::Refused(error.to_string()))?;
    let unknown = || CliError::Refused("this system does not say how much memory is free; give --ram or --vram".into());
    let free_bytes = hardware.memory.map(|memory| memory.available_bytes);
    match choice.device {
        Device::Cpu => Ok((MemoryToPlan::Cpu(free_bytes.ok_or_else(unknown)?), None)),
        Device::Cuda { ordinal } => {
            let (_, total_bytes) = super::gpus::memory(&choice.climb, ordinal).ok_or_else(unknown)?;
            let bytes = config.engine.gpu_memory_limit_bytes.map_or(total_bytes, |limit| limit.min(total_bytes));
            Ok((MemoryToPlan::Gpu { bytes, main_bytes: free_bytes.unwrap_or(UNKNOWN_BYTES) }, Some(ordinal)))
        }
    }
}

/// The plan as people read it.
fn describe(plan: &PlanPreview) -> String {
    let line = |name: &str, text: String| format!("{name:<16}{text}\n");
    let bytes = |bytes: u64| format!("{:>9}", ByteSize(bytes).to_string());
    let place = if plan.on_gpu { "of a GPU" } else { "of main memory, on the CPU" };
    let mut text = line("model", format!("{} ({} parameters, {})", plan.model, count(plan.parameters), plan.format));
    text += &line("memory", format!("{} {place}", ByteSize(plan.memory_bytes)));
    text += "\n";
    text += &line("weights", bytes(plan.weight_bytes));
    text += &line("largest step", format!("{}   {} tokens", bytes(plan.step_bytes), plan.max_step_tokens));
    if plan.on_gpu {
        text += &line("kernels", format!("{}   attention, sampling, tables, libraries", bytes(plan.kernel_bytes)));
        text += &line("recorded steps", bytes(plan.graph_bytes));
        text += &line("driver", bytes(plan.driver_bytes));
    }
    let context = plan.context_length;
    let each = format!("{} a user of {context} tokens, in {}", ByteSize(plan.kv_user_bytes), plan.kv_dtype);
    text += &line("KV cache", format!("{}   {each}", bytes(plan.kv_bytes)));
    let others = plan.memory_bytes.saturating_sub(plan.usable_bytes + plan.driver_bytes);
    text += &line("kept free", format!("{}   for other programs", bytes(others)));
    match &plan.reason {
        None => {
            text += &line("left over", bytes(plan.left_bytes));
            let users = if plan.users == 1 { "user" } else { "users" };
            match &plan.offload {
                None => text += &format!("\nIt fits: {} {users} with {context} tokens of context each.\n", plan.users),
                Some(offload) => text += &describe_parts(plan, offload, users),
            }
        }
        Some(reason) => {
            text += &format!("\nIt does not fit: {reason}.\n");
            for advice in &plan.would_fit {
                text += &format!("  would fit: {advice}\n");
            }
            if plan.would_fit.is_empty() {
                text += "  all of it fits with no setting; a smaller format (--quantize), more main memory beside the GPU (--ram) \
                         or a smaller model may help\n";
            }
        }
    }
    text
}

/// What is said of a model that fits in two parts.
fn describe_parts(plan: &PlanPreview, offload: &Offload, users: &str) -> String {
    let context = plan.context_length;
    let mut text = format!(
        "\nIt fits in two parts: {} {users} with {context} tokens of context each.\nlayers          {offload}\n",
        plan.users
    );
    if offload.gpu_bytes_per_second == Some(OTHER_GPU_BYTES_PER_SECOND) {
        text += "  that is with a GPU that reads 360 GB a second; this one is not here to be timed\n";
    }
    for advice in &plan.would_fit {
        text += &format!("  would fit as a whole: {advice}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preview() -> PlanPreview {
        PlanPreview {
            model: "qwen2.5-7b".into(),
            parameters: 7_615_616_512,
            format: "Q4_K".into(),
            on_gpu: true,
            memory_bytes: 8 << 30,
            driver_bytes: 384 << 20,
            usable_bytes: 7_532_340_019,
            weight_bytes: 4_800_000_000,
            step_bytes: 364_000_000,
            kernel_bytes: 211_000_000,
            graph_bytes: 90_000_000,
            kv_dtype: "bf16".into(),
            kv_token_bytes: 57_344,
            context_length: 8192,
            kv_user_bytes: 469_762_048,
            users: 4,
            kv_bytes: 2_000_000_000,
            left_bytes: 67_340_019,
            offload: None,
            max_sequences: 64,
            max_step_tokens: 2048,
            reason: None,
            would_fit: Vec::new(),
        }
    }

    #[test]
    fn a_plan_reads_as_a_table_and_ends_with_what_fits() {
        let expected = "\
model           qwen2.5-7b (7.62 billion parameters, Q4_K)
memory          8.59 GB of a GPU

weights           4.80 GB
largest step       364 MB   2048 tokens
kernels            211 MB   attention, sampling, tables, libraries
recorded steps    90.0 MB
driver             403 MB
KV cache          2.00 GB   470 MB a user of 8192 tokens, in bf16
kept free          655 MB   for other programs
left over         67.3 MB

It fits: 4 users with 8192 tokens of context each.
";
        assert_eq!(describe(&preview()), expected);
    }

    #[test]
    fn what_fits_in_two_parts_says_so_and_how_fast_it_is() {
        let offload = Offload {
            gpu_layers: 20,
            cpu_layers: 8,
            cpu_bytes: 5_000_000_000,
            cpu_weight_bytes: 4_500_000_000,
            cpu_token_bytes: 3_000_000_000,
            gpu_token_bytes: 8_000_000_000,
            cpu_bytes_per_second: Some(30e9),
            gpu_bytes_per_second: Some(800e9),
        };
        let would_fit = vec!["a smaller format, q4_k or a file of about its size".to_owned()];
        let text = describe(&PlanPreview { offload: Some(offload), would_fit, ..preview() });
        let end = "
It fits in two parts: 4 users with 8192 tokens of context each.
layers          20 of 28 on the GPU, 8 on the CPU in 5.00 GB of main memory: slower, at most 9.1 tokens a second for one user
  would fit as a whole: a smaller format, q4_k or a file of about its size
";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn the_speed_of_a_gpu_that_is_not_here_is_assumed_and_counted() {
        let settings = Settings { models_dir: Some("/nowhere".into()), ..Settings::default() };
        let config = Config::resolve(settings, &|_| None, &|_| Ok(None)).expect("valid");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plans/qwen2.5-7b.json");
        let sizes = [8, 64].map(|gib| Some(ByteSize(gib << 30)));
        let flags = PlanFlags { plan: Some(file.into()), vram: sizes[0], ram: sizes[1], ..PlanFlags::default() };
        let preview = previewed(&flags, &config, Path::new(file), true).expect("a plan");
        let offload = preview.offload.expect("layers on the CPU");
        let tokens = offload.expected_tokens_per_second().expect("both rates are known");
        let seconds = offload.gpu_token_bytes as f64 / 360e9;
        let of_the_cpu = offload.cpu_token_bytes as f64 / offload.cpu_bytes_per_second.expect("it was timed");
        assert!((tokens * (seconds + of_the_cpu) - 1.0).abs() < 1e-9 && seconds > 0.01, "{offload:?}");
        assert!(describe(&preview).contains("with a GPU that reads 360 GB a second"), "{}", describe(&preview));
    }

    #[test]
    fn what_does_not_fit_says_what_would() {
        let reason = Some("the model needs more".to_owned());
        let would_fit = vec!["a context of 4096 tokens: --context 4096".to_owned()];
        let text = describe(&PlanPreview { reason, would_fit, users: 0, ..preview() });
        assert!(text.ends_with(
            "\nIt does not fit: the model needs more.\n  would fit: a context of 4096 tokens: --context 4096\n"
        ));
        assert!(!text.contains("left over"), "{text}");
        let on_cpu = describe(&PlanPreview { on_gpu: false, ..preview() });
        assert!(on_cpu.contains("of main memory, on the CPU") && !on_cpu.contains("driver"), "{on_cpu}");
    }
}
