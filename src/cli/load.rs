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

/// A model that is loaded, and what else it was called.
pub struct Named {
    /// The model.
    pub llm: Llm,
    /// Further names that were given for the same files.
    pub further_names: Vec<String>,
}

/// Loads several models, which share the memory: what their weights and steps leave of it, each gets an equal part of for
/// its KV cache, unless that was set. One that is named twice is loaded once. How far it is goes to `loading`.
///
/// # Errors
/// [`CliError`]: one of them cannot be had, or they do not fit together.
pub fn load_all(
    config: &Config,
    models: &[String],
    session: &Session,
    loading: &Loading,
) -> Result<Vec<Named>, CliError> {
    loading.begin("loading the model", None);
    let bar = || Bar::new(session.terminal).telling(loading);
    if models.len() <= 1 {
        let llm = builder(config, models.first().map(String::as_str)).progress(bar()).load_blocking()?;
        return Ok(vec![Named { llm, further_names: Vec::new() }]);
    }
    let (store, options) = (store(&config.hub)?, hub_options(&config.hub));
    let bring = |model: &String| -> Result<Located, CliError> {
        Ok(hub::pull(&understand(model, &store, &options)?, &store, &options, &mut bar())?)
    };
    let distinct = distinct(models.iter().map(bring).collect::<Result<Vec<_>, _>>()?);
    for (index, (model, _)) in distinct.iter().enumerate() {
        let is_called_so = |(other, _): &&(Located, Vec<String>)| other.display_name == model.display_name;
        if let Some((other, _)) = distinct[..index].iter().find(is_called_so) {
            let [first, second] = [other, model].map(|model| model.kind.path().display().to_string());
            let name = &model.display_name;
            return Err(CliError::Refused(format!(
                "{first} and {second} would both be called `{name}`; rename one of them"
            )));
        }
    }
    let engine = match distinct.as_slice() {
        [_] => config.engine.clone(),
        several => share(config, several.iter().map(|(located, _)| located))?,
    };
    let count = distinct.len();
    let load = |(index, (located, further_names)): (usize, (Located, Vec<String>))| {
        loading.begin(format!("loading model {} of {count}", index + 1), None);
        let builder = Llm::builder().hub_config(config.hub.clone()).engine_config(engine.clone());
        Ok(Named { llm: builder.located(located).load_blocking()?, further_names })
    };
    distinct.into_iter().enumerate().map(load).collect()
}

/// Each model once, with the further names of those that were named again.
fn distinct(models: Vec<Located>) -> Vec<(Located, Vec<String>)> {
    let mut distinct: Vec<(Located, Vec<String>)> = Vec::with_capacity(models.len());
    for model in models {
        let Some((same, names)) = distinct.iter_mut().find(|(known, _)| known.is_same_files(&model)) else {
            distinct.push((model, Vec::new()));
            continue;
        };
        let (again, first) = (model.display_name, &same.display_name);
        if again == *first || names.contains(&again) {
            tracing::warn!("`{again}` is named twice: it is loaded once");
        } else {
            tracing::warn!("`{again}` is the same files as `{first}`: they are loaded once, and served by both names");
            names.push(again);
        }
    }
    distinct
}

/// The engine's settings for each of several models.
fn share<'a>(config: &Config, models: impl Iterator<Item = &'a Located>) -> Result<EngineConfig, CliError> {
    if config.engine.kv_cache_bytes.is_some() {
        return Ok(config.engine.clone());
    }
    let (memory, _) = memory_here(config)?;
    // What is shared is the memory of whole models.
    let whole = EngineConfig { gpu_layers: GpuLayers::All, ..config.engine.clone() };
    let (mut usable_bytes, mut fixed_bytes, mut count) = (0, 0, 0);
    for model in models {
        count += 1;
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
    let kv_cache_most_bytes = Some((usable_bytes - fixed_bytes) / count);
    Ok(EngineConfig { kv_cache_most_bytes, ..config.engine.clone() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::LocatedKind;

    #[test]
    fn a_model_that_is_named_twice_is_one_with_both_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let located = |name: &str, file: &str| {
            let path = folder.path().join(file);
            std::fs::write(&path, "GGUF").expect("a file");
            Located { kind: LocatedKind::Gguf(path), display_name: name.to_owned() }
        };
        let models = vec![located("a", "1"), located("b", "2"), located("a", "1"), located("also a", "1")];
        let distinct = distinct(models);
        let names: Vec<_> = distinct.iter().map(|(model, more)| (model.display_name.as_str(), more.concat())).collect();
        assert_eq!(names, [("a", "also a".to_owned()), ("b", String::new())]);
    }
}
