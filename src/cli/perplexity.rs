//! `lantern perplexity`: how well a model predicts a text, to see what a smaller format costs.
//!
//! Knows no method: the library does.

use std::path::PathBuf;

use super::flags::{EngineFlags, StoreFlags};
use super::load;
use super::{CliError, Session};
use crate::config::Settings;
use crate::llm::{Llm, Perplexity};

/// Arguments of `lantern perplexity`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern perplexity smollm2:135m text.txt\n  \
                        lantern perplexity ./model text.txt --quantize q4_k --kv-cache-dtype int8")]
pub struct PerplexityArgs {
    /// Model: a name of the catalog, org/name, a folder or a .gguf file
    model: String,
    /// Text in UTF-8
    file: PathBuf,
    /// Tokens of a window; those of its second half are scored
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    window: u32,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Measures and prints.
///
/// # Errors
/// [`CliError`]: the model or the text cannot be read, or the text is shorter than a window.
pub fn run(args: PerplexityArgs, session: &Session) -> Result<(), CliError> {
    let settings = args.engine.fill(args.store.fill(Settings::default()));
    let mut config = session.resolve(settings)?;
    session.log(&config, "warn")?;
    let text = std::fs::read_to_string(&args.file)
        .map_err(|source| CliError::Refused(format!("{}: {source}", args.file.display())))?;
    // A window, and the token behind it.
    config.engine.context_length.get_or_insert(args.window.saturating_add(1).max(16));
    let llm = load::load(&config, Some(&args.model), session)?;
    let found = super::runtime()?.block_on(llm.perplexity(&text, args.window as usize))?;
    if args.json {
        let json = serde_json::to_string_pretty(&found).map_err(|error| CliError::Refused(error.to_string()))?;
        return session.print(&format!("{json}\n"));
    }
    session.print(&describe(&llm, found, args.window))
}

fn describe(llm: &Llm, found: Perplexity, window: u32) -> String {
    let Perplexity { perplexity, error, windows, tokens } = found;
    let info = llm.info();
    format!(
        "{} in {}, KV cache in {}\nperplexity {perplexity:.4} +- {error:.4}: {tokens} tokens, in the second halves of \
         {windows} windows of {window}\n",
        info.name, info.format, info.kv_dtype
    )
}
