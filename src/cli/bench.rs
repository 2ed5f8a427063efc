//! `lantern bench`: how fast a model runs on this machine, in process and without HTTP.
//!
//! Knows no kernels: it measures what [`Llm::generate`] gives.

mod measure;
mod report;
mod serving;

use super::flags::{EngineFlags, StoreFlags};
use super::load;
use super::{CliError, Session};
use crate::config::Settings;
use crate::device::Hardware;
use crate::llm::Llm;
use measure::Bench;
use report::{Measured, Report};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `lantern bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern bench\n  lantern bench qwen2.5:1.5b --sequences 1,4,16\n  \
                        lantern bench --prompt 2048 --generate 128 --json")]
pub struct BenchArgs {
    /// Model to measure [default: smollm2:135m]
    model: Option<String>,
    /// Measure the shapes of this config.json with random weights, instead of a model
    #[arg(long, value_name = "CONFIG", conflicts_with = "model")]
    random_weights: Option<PathBuf>,
    /// Measure what servers are compared by: all requests at once, 512 tokens in and 256 out, and long prompts
    #[arg(long)]
    serving: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Tokens of the prompt whose computation is timed
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt: u32,
    /// Tokens that each sequence generates
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
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
    let settings = args.engine.fill(args.store.fill(Settings::default()));
    let config = session.resolve(settings)?;
    session.log(&config, "warn")?;
    let hardware = Hardware::detect();
    let started = Instant::now();
    let llm = match &args.random_weights {
        Some(shapes) => Llm::builder().random_weights(shapes).engine_config(config.engine.clone()).load_blocking()?,
        None => load::load(&config, args.model.as_deref(), session)?,
    };
    let start_seconds = started.elapsed().as_secs_f64();
    let mut bench = Bench::new(&llm, args.repeat);
    let runtime = super::runtime()?;
    let (mut results, mut serving) = (Vec::new(), Vec::new());
    if args.serving {
        for sequences in &args.sequences {
            serving.push(runtime.block_on(bench.answers(*sequences))?);
        }
        for sequences in [1, serving::LONG_PROMPT.1] {
            serving.push(runtime.block_on(bench.prompts(sequences))?);
        }
        serving.push(runtime.block_on(bench.intrusion(32))?);
    } else {
        results.push(runtime.block_on(bench.prompt(args.prompt))?);
        for sequences in &args.sequences {
            results.push(runtime.block_on(bench.generate(args.generate, *sequences))?);
        }
    }
    let measured = Measured { results, serving, start_seconds };
    let report = Report::new(&llm, &hardware, measured, measure::resident_bytes());
    session.print(&if args.json { report.to_json() } else { report.to_string() })
}
