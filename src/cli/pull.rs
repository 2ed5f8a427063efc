//! `lantern pull`: brings a model to this machine.
//!
//! Loads nothing.

use super::flags::StoreFlags;
use super::load;
use super::progress::Bar;
use super::{CliError, Session};
use crate::config::Settings;
use crate::hub;

/// Arguments of `lantern pull`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern pull qwen3:8b\n  lantern pull Qwen/Qwen2.5-0.5B-Instruct\n  \
                        lantern pull ollama://llama3.2:1b\n\n\
                        What was interrupted goes on where it stopped when the same command is given again.")]
pub struct PullArgs {
    /// Models: names of the catalog, org/name on the hub, or ollama://name:tag
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    store: StoreFlags,
}

/// Downloads what is not here yet.
///
/// # Errors
/// [`CliError::Hub`], at the first model that cannot be fetched.
pub fn run(args: PullArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let (store, options) = (load::store(&config.hub)?, load::hub_options(&config.hub));
    for model in &args.models {
        let name = load::understand(model, &store, &options)?;
        let located = hub::pull(&name, &store, &options, &mut Bar::new(session.terminal))?;
        session.print(&format!("{name} is here: {}\n", located.kind.path().display()))?;
    }
    Ok(())
}
