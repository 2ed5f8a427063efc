//! `lantern bench`: how fast a model runs on this machine, in process or over HTTP.
//!
//! Knows no kernels: it measures what [`Llm::generate`] or the server gives.

mod floor;
mod http;
mod measure;
mod report;
mod serving;

use super::flags::{EngineFlags, StoreFlags};
use super::load;
use super::{CliError, Session};
use crate::config::{Config, RandomFormat, Settings};
use crate::device::{self, Ceilings, Device, Hardware, Probing};
use crate::hub::Store;
use crate::llm::Llm;
use http::HttpDoor;
use measure::{Bench, Door};
use report::{Measured, Report};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `lantern bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern bench\n  lantern bench qwen2.5:1.5b --sequences 1,4,16\n  \
                        lantern bench --prompt 2048 --generate 128 --json\n  \
                        lantern bench llama3.1:8b --serving --http --sequences 1,32,256")]
pub struct BenchArgs {
    /// Model to measure [default: smollm2:135m]
    model: Option<String>,
    /// Measure the shapes of this config.json with random weights, instead of a model
    #[arg(long, value_name = "CONFIG", conflicts_with = "model")]
    random_weights: Option<PathBuf>,
    /// Format of the random weights: bf16, q4_0, q4_1, q8_0, int4, fp8, q4_k, q6_k, or q4_k_m as llama.cpp mixes it
    #[arg(long, value_name = "FORMAT", requires = "random_weights", default_value = "bf16")]
    weights: RandomFormat,
    /// With --random-weights: tokens take the experts in turn, as on the average of real text
    #[arg(long, requires = "random_weights")]
    even_routing: bool,
    /// Measure what servers are compared by: all requests at once, 512 tokens in and 256 out, and long prompts
    #[arg(long)]
    serving: bool,
    /// With --serving: the same over HTTP, to the server on a port of this machine
    #[arg(long, requires = "serving")]
    http: bool,
    /// With --serving: GB/s that a large copy in the device's memory reads and writes [default: measured on a GPU]
    #[arg(long, value_name = "GB/S", requires = "serving", value_parser = rate, hide_short_help = true)]
    copy_gbps: Option<f64>,
    /// With --serving: TFLOP/s of a large bf16 matrix product [default: measured on a GPU]
    #[arg(long, value_name = "TFLOP/S", requires = "serving", value_parser = rate, hide_short_help = true)]
    matmul_tflops: Option<f64>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Tokens of the prompt whose computation is timed
    #[arg(long, value_name = "TOKENS", conflicts_with = "serving", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt: u32,
    /// Tokens that each sequence generates
    #[arg(long, value_name = "TOKENS", conflicts_with = "serving", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    generate: u32,
    /// How many sequences generate together, a list
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [1, 16], value_parser = clap::value_parser!(u32).range(1..=4096))]
    sequences: Vec<u32>,
    /// How often each figure is measured, after one warm-up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Measures and prints.
///
/// # Errors
/// [`CliError`].
pub fn run(args: BenchArgs, session: &Session) -> Result<(), CliError> {
    let settings = args.engine.clone().fill(args.store.clone().fill(Settings::default()));
    let config = session.resolve(settings)?;
    session.log(&config, "warn")?;
    let hardware = Hardware::detect();
    let measured_ceilings = measured_ceilings(&args, &config);
    let driver_was_started = measured_ceilings.is_some();
    let started = Instant::now();
    let llm = match &args.random_weights {
        Some(shapes) => Llm::builder()
            .random_weights(shapes)
            .random_format(args.weights)
            .even_routing(args.even_routing)
            .hub_config(config.hub.clone())
            .engine_config(config.engine.clone())
            .load_blocking()?,
        None => load::load(&config, args.model.as_deref(), session)?,
    };
    let start_seconds = started.elapsed().as_secs_f64();
    // A model that a GPU was measured for may still have gone to the CPU.
    let on_gpu = measured_ceilings.filter(|_| llm.info().runs_on != Device::Cpu).unwrap_or_default();
    let ceilings = told_ceilings(&args, on_gpu);
    let runtime = super::runtime()?;
    let door = if args.http { Door::Http(runtime.block_on(HttpDoor::open(&llm))?) } else { Door::InProcess };
    let mut bench = Bench::new(&llm, door, ceilings, args.repeat);
    let (mut results, mut serving) = (Vec::new(), Vec::new());
    if args.serving {
        for sequences in &args.sequences {
            serving.push(runtime.block_on(bench.answers(*sequences))?);
        }
        for sequences in [1, serving::LONG_PROMPT.1] {
            serving.push(runtime.block_on(bench.prompts(sequences))?);
        }
        // As many as can run beside what intrudes.
        let sequences = bench.sequences_beside_one().min(32);
        serving.push(runtime.block_on(bench.intrusion(sequences))?);
    } else {
        results.push(runtime.block_on(bench.prompt(args.prompt))?);
        for sequences in &args.sequences {
            results.push(runtime.block_on(bench.generate(args.generate, *sequences))?);
        }
    }
    runtime.block_on(bench.close())?;
    let over = if args.http { "over HTTP, each on a connection of its own" } else { "in process" };
    let measured = Measured { results, serving, over, ceilings, start_seconds, driver_was_started };
    let report = Report::new(&llm, &hardware, measured, measure::resident_bytes());
    session.print(&if args.json { report.to_json() } else { report.to_string() })
}

/// What the GPU that the model will go to shows while it is empty, where there is one and not all was told.
fn measured_ceilings(args: &BenchArgs, config: &Config) -> Option<Ceilings> {
    if !args.serving || (args.copy_gbps.is_some() && args.matmul_tflops.is_some()) {
        return None;
    }
    let libraries = Store::libraries_below(&config.hub.models_dir);
    let mut hardware = Hardware::detect();
    hardware.ask_driver(Probing::Wished(config.engine.device), Some(&libraries));
    // Where the wished device cannot be had, loading says so.
    let Device::Cuda { ordinal } = device::choose(&hardware, config.engine.device).ok()?.device else { return None };
    Ceilings::measure(ordinal, Some(&libraries))
        .inspect_err(|reason| tracing::warn!(%reason, "floors are not known"))
        .ok()
}

/// What was told, over what was measured.
fn told_ceilings(args: &BenchArgs, measured: Ceilings) -> Ceilings {
    Ceilings {
        copy_bytes_per_second: args.copy_gbps.map(|rate| rate * 1e9).or(measured.copy_bytes_per_second),
        flops_per_second: args.matmul_tflops.map(|rate| rate * 1e12).or(measured.flops_per_second),
    }
}

/// A rate above 0.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}
