//! `lantern bench`: how fast a model runs on this machine, in process and without HTTP.
//!
//! Knows no kernels: it measures what [`Llm::generate`] gives.

mod measure;
mod report;

use super::flags::{EngineFlags, StoreFlags};
use super::load;
use super::{CliError, Session};
use crate::config::Settings;
use crate::device::Hardware;
use measure::Bench;
use report::Report;

/// Arguments of `lantern bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern bench\n  lantern bench qwen2.5:1.5b --sequences 1,4,16\n  \
                        lantern bench --prompt 2048 --generate 128 --json")]
pub struct BenchArgs {
    /// Model to measure [default: smollm2:135m]
    model: Option<String>,
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
    let llm = load::load(&config, args.model.as_deref(), session)?;
    let mut bench = Bench::new(&llm, args.repeat);
    let runtime = super::runtime()?;
    let mut rows = vec![runtime.block_on(bench.prompt(args.prompt))?];
    for sequences in &args.sequences {
        rows.push(runtime.block_on(bench.generate(args.generate, *sequences))?);
    }
    let report = Report::new(&llm, &hardware, rows, measure::resident_bytes());
    session.print(&if args.json { report.to_json() } else { report.to_string() })
}
