//! From a name to a model in memory, with its download shown on the way.
//!
//! Knows no server.

use super::doctor::memory_here;
use super::progress::Bar;
use super::{CliError, Session};
use crate::config::{ByteSize, Config, EngineConfig, GpuLayers, HubConfig, environment};
use crate::hub::{self, Catalog, HubError, HubOptions, Located, ModelName, Store};
use crate::llm::{DEFAULT_MODEL, Llm, LlmBuilder, configured, plan_preview};
use crate::server::Loading;

/// Context, in tokens, that the catalog's models are measured with when it is said what fits.
pub const BUILT_IN_CONTEXT: u32 = 8192;

/// How the hub is spoken to.
pub fn hub_options(config: &HubConfig) -> HubOptions {
    configured(HubOptions::from_lookup(environment), config)
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
pub fn understand(text: &str, store: &Store, options: &HubOptions) -> Result<ModelName, CliError> {
    Ok(hub::understand(text, &Catalog::embedded(), store, options).map_err(HubError::from)?)
}

/// Loads several models, which share the memory: what their weights and steps leave of it, each gets an equal part of for
/// its KV cache, unless that was set. How far it is goes to `loading`.
///
/// # Errors
/// [`CliError`]: one of them cannot be had, or they do not fit together.
pub fn load_all(
    config: &Config,
    models: &[String],
    session: &Session,
    loading: &Loading,
) -> Result<Vec<Llm>, CliError> {
    loading.begin("loading the model", None);
    let bar = || Bar::new(session.terminal).telling(loading);
    if models.len() <= 1 {
        return Ok(vec![builder(config, models.first().map(String::as_str)).progress(bar()).load_blocking()?]);
    }
    let (store, options) = (store(&config.hub)?, hub_options(&config.hub));
    let bring = |model: &String| -> Result<Located, CliError> {
        Ok(hub::pull(&understand(model, &store, &options)?, &store, &options, &mut bar())?)
    };
    let located = models.iter().map(bring).collect::<Result<Vec<_>, _>>()?;
    let engine = share(config, &located)?;
    let count = located.len();
    let load = |(index, located): (usize, Located)| {
        loading.begin(format!("loading model {} of {count}", index + 1), None);
        let builder = Llm::builder().hub_config(config.hub.clone()).engine_config(engine.clone());
        Ok(builder.located(located).load_blocking()?)
    };
    located.into_iter().enumerate().map(load).collect()
}

/// The engine's settings for each of several models.
fn share(config: &Config, models: &[Located]) -> Result<EngineConfig, CliError> {
    if config.engine.kv_cache_bytes.is_some() {
        return Ok(config.engine.clone());
    }
    let (memory, _) = memory_here(config)?;
    // What is shared is the memory of whole models.
    let whole = EngineConfig { gpu_layers: GpuLayers::All, ..config.engine.clone() };
    let (mut usable_bytes, mut fixed_bytes) = (0, 0);
    for model in models {
        let plan = plan_preview(model.kind.path(), false, &whole, memory, None)?;
        usable_bytes = plan.usable_bytes;
        fixed_bytes += plan.weight_bytes + plan.step_bytes + plan.kernel_bytes + plan.graph_bytes;
    }
    if fixed_bytes >= usable_bytes {
        let (needed, usable) = (ByteSize(fixed_bytes), ByteSize(usable_bytes));
        return Err(CliError::Refused(format!(
            "these models need {needed} without any KV cache, and {usable} can be had; serve fewer of them, and the others \
             are loaded when they are asked for"
        )));
    }
    let kv_cache_bytes = Some((usable_bytes - fixed_bytes) / models.len() as u64);
    Ok(EngineConfig { kv_cache_bytes, ..config.engine.clone() })
}

/// Loads `model`, or the default one, fetching it first if need be.
///
/// # Errors
/// [`CliError::Load`].
pub fn load(config: &Config, model: Option<&str>, session: &Session) -> Result<Llm, CliError> {
    Ok(builder(config, model).progress(Bar::new(session.terminal)).load_blocking()?)
}

fn builder(config: &Config, model: Option<&str>) -> LlmBuilder {
    Llm::builder()
        .model(model.unwrap_or(DEFAULT_MODEL))
        .hub_config(config.hub.clone())
        .hub_options(hub_options(&config.hub))
        .engine_config(config.engine.clone())
}
