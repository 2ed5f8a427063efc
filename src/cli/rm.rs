//! `lantern rm`: removes models from this machine.
//!
//! Touches nothing outside the store.

use super::flags::StoreFlags;
use super::load;
use super::{CliError, Session};
use crate::config::Settings;

/// Arguments of `lantern rm`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern rm qwen3:8b")]
pub struct RmArgs {
    /// Models, as `lantern list` names them
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    store: StoreFlags,
}

/// Removes each model; the first that is not there ends it.
///
/// # Errors
/// [`CliError::Hub`].
pub fn run(args: RmArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let store = load::store(&config.hub)?;
    for model in &args.models {
        store.remove(model)?;
        session.print(&format!("removed {model}\n"))?;
    }
    Ok(())
}
