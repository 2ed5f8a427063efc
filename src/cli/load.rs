//! From a name to a model in memory, with its download shown on the way.
//!
//! Knows no server.

use super::progress::Bar;
use super::{CliError, Session};
use crate::config::{Config, HubConfig, environment};
use crate::hub::{Catalog, HubError, HubOptions, ModelName, Store};
use crate::llm::{DEFAULT_MODEL, Llm};

/// Context, in tokens, that the catalog's models are measured with when it is said what fits.
pub const BUILT_IN_CONTEXT: u32 = 8192;

/// How the hub is spoken to.
pub fn hub_options(config: &HubConfig) -> HubOptions {
    let options = HubOptions::from_lookup(environment);
    HubOptions { offline: options.offline || config.offline, ..options }
}

/// The store in the configured folder.
///
/// # Errors
/// [`CliError::Hub`] where the folder cannot be made.
pub fn store(config: &HubConfig) -> Result<Store, CliError> {
    Ok(Store::open(&config.models_dir)?)
}

/// What a person typed, understood.
///
/// # Errors
/// A name that means nothing; near ones are named.
pub fn parse_name(text: &str) -> Result<ModelName, CliError> {
    Ok(ModelName::parse(text, &Catalog::embedded()).map_err(HubError::from)?)
}

/// Loads `model`, or the default one, fetching it first if need be.
///
/// # Errors
/// [`CliError::Load`].
pub fn load(config: &Config, model: Option<&str>, session: &Session) -> Result<Llm, CliError> {
    let builder = Llm::builder()
        .model(model.unwrap_or(DEFAULT_MODEL))
        .hub_config(config.hub.clone())
        .hub_options(hub_options(&config.hub))
        .engine_config(config.engine.clone())
        .progress(Bar::new(session.terminal));
    Ok(builder.load_blocking()?)
}
