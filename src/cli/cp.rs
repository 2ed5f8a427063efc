//! `lantern cp`: gives a model of this machine a second name.
//!
//! Copies no file: both names share them.

use super::flags::StoreFlags;
use super::load;
use super::{CliError, Session};
use crate::config::Settings;
use crate::llm::ModelLibrary;

/// Arguments of `lantern cp`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern cp qwen3:8b assistant")]
pub struct CpArgs {
    /// Model, as `lantern list` names it
    source: String,
    /// Its second name
    destination: String,
    #[command(flatten)]
    store: StoreFlags,
}

/// Copies the model.
///
/// # Errors
/// [`CliError::Hub`].
pub fn run(args: CpArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let options = load::hub_options(&config.hub);
    ModelLibrary::new(config.hub, options, config.engine).copy(&args.source, &args.destination)?;
    session.print(&format!("{} is also called {}\n", args.source, args.destination))
}
