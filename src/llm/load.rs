//! From files to an [`Llm`]: an engine on the weights, and the tokenizer and template beside it.
//!
//! Knows no names of models: what is loaded is a path.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{DeviceWish, EngineConfig, GpuLayers, RandomModel, ToolParser, WeightFormat};
use crate::device::{self, Device, DeviceError, Hardware, Probing};
use crate::engine::{
    self, EngineHandle, GenerationDefaults, LoadedModel, ModelFiles, StartError, Target, TokenizerSource, VocabFields,
};
use crate::tokenizer::{CHATML_TEMPLATE, ChatTemplate, GgufVocab, TemplateError, Tokenizer, TokenizerError};

use super::generate::SamplingOptions;
use super::handle::{Llm, LlmParts};
use super::info::{ModelInfo, TokenCost};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The name means nothing, or what it means is not here and could not be fetched.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// The tokenizer cannot be built.
    #[error("the tokenizer of {model} cannot be built")]
    Tokenizer {
        /// The model's name.
        model: String,
        /// What is wrong with it.
        #[source]
        source: TokenizerError,
    },
    /// The chat template cannot be used.
    #[error("the chat template of {model} cannot be used")]
    Template {
        /// The model's name.
        model: String,
        /// What is wrong with it.
        #[source]
        source: TemplateError,
    },
    /// The device that was asked for cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Its files are not valid, it does not fit, or the engine does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The task that loads it was cancelled or broke.
    #[error("the loading of the model was broken off")]
    BrokenOff(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LoadError {
    /// Whether it would fit if others left the memory, or the GPU, that they hold.
    pub fn does_not_fit(&self) -> bool {
        matches!(self, Self::Start(error) if error.does_not_fit())
    }
}

/// Loads the model in `path` (a folder or a GGUF file) and serves it as `name`.
#[cfg(test)]
pub(super) fn load_path(path: &Path, name: &str, config: &EngineConfig) -> Result<Llm, LoadError> {
    load_files(ModelFiles::Stored(path), name, config, None)
}

/// What the model in `path`, a folder, a GGUF file or a config.json alone, would take of `memory`, without loading it.
///
/// # Errors
/// [`LoadError`]: the settings contradict each other, or the files cannot be read. A model that does not fit is no error:
/// the preview says so.
pub fn plan_preview(
    path: &Path,
    is_config: bool,
    config: &EngineConfig,
    memory: engine::MemoryToPlan,
    format: Option<WeightFormat>,
) -> Result<engine::PlanPreview, LoadError> {
    config.validate()?;
    let files =
        if is_config { ModelFiles::RandomWeights(path, RandomModel::default()) } else { ModelFiles::Stored(path) };
    Ok(engine::preview(files, config, memory, format).map_err(StartError::from)?)
}

/// What the headers of the model in `path`, a folder or a GGUF file, say of it.
///
/// # Errors
/// [`LoadError`]: they make no sense.
pub fn describe_path(path: &Path) -> Result<engine::ModelFacts, LoadError> {
    Ok(engine::describe(ModelFiles::Stored(path)).map_err(StartError::from)?)
}

/// Loads the model in `files` and serves it as `name`. `libraries` is the folder that may hold cuBLAS besides the
/// system's.
pub(super) fn load_files(
    files: ModelFiles<'_>,
    name: &str,
    config: &EngineConfig,
    libraries: Option<&Path>,
) -> Result<Llm, LoadError> {
    config.validate()?;
    let mut hardware = Hardware::detect();
    // Without layers on a GPU none is looked for.
    let wish = if config.gpu_layers == GpuLayers::Count(0) { DeviceWish::Cpu } else { config.device };
    hardware.ask_driver(Probing::Wished(wish), libraries);
    #[cfg_attr(not(feature = "cuda"), allow(unused_mut))]
    let mut choice = device::choose(&hardware, wish)?;
    // Where the system does not say what is free, nothing is held back.
    let free_bytes = hardware.memory.map_or(u64::MAX / 2, |memory| memory.available_bytes);
    let free_bytes = free_bytes.saturating_sub(config.reserved_bytes);
    #[cfg(feature = "cuda")]
    if let Device::Cuda { ordinal } = choice.device {
        let library_folders = libraries.map(Path::to_owned).into_iter().collect();
        let target = engine::GpuTarget { ordinal: ordinal as usize, library_folders, main_bytes: free_bytes };
        let card = choice.climb.gpus.iter().find(|gpu| gpu.ordinal == ordinal).map_or("a GPU", |gpu| &gpu.name);
        // Who may run on either device finds nobody on the GPU who could give memory back.
        let least_context = if config.device == DeviceWish::Auto { 0 } else { config.least_context };
        match engine::start(files, &EngineConfig { least_context, ..config.clone() }, Target::Gpu(target)) {
            Ok(started) => {
                return finish(
                    started,
                    name,
                    config.tool_parser,
                    choice.device,
                    format!("{card} (cuda:{ordinal})"),
                    choice.reason,
                );
            }
            Err(error)
                if config.device == DeviceWish::Auto
                    && config.gpu_layers == GpuLayers::Auto
                    && error.is_for_the_cpu() =>
            {
                tracing::warn!(%card, %error, "the model runs on the CPU");
                choice.reason = format!("{card} cannot run this model: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    if choice.device == Device::Cpu && matches!(config.gpu_layers, GpuLayers::Count(1..)) {
        tracing::warn!(reason = choice.reason, "layers were asked to be on a GPU, and all run on the CPU");
    }
    let (engine, model) = engine::start(files, config, Target::Cpu { free_bytes })?;
    let device = hardware.describe_cpu(model.threads.unwrap_or(1));
    finish((engine, model), name, config.tool_parser, Device::Cpu, device, choice.reason)
}

/// What is said of a model, and how its text is read and written, beside the engine that runs it.
fn finish(
    (engine, model): (EngineHandle, LoadedModel),
    name: &str,
    tool_parser: ToolParser,
    runs_on: Device,
    device: String,
    device_reason: String,
) -> Result<Llm, LoadError> {
    let plan = &model.plan;
    let device = match &model.products {
        Some(products) => format!("{device}, {products}"),
        None => device,
    };
    // Of each format as large a share is looked up as of all weights together: exact where there is but one.
    let share = model.token_parameters as f64 / model.parameters.max(1) as f64;
    let weight_bytes = plan.weight_bytes + model.offload.map_or(0, |offload| offload.cpu_weight_bytes);
    let token_cost = TokenCost {
        parameters: model.token_parameters,
        weight_bytes: (weight_bytes as f64 * share) as u64,
        kv_bytes: plan.kv_token_bytes(),
    };
    let info = ModelInfo {
        name: name.to_owned(),
        architecture: model.architecture,
        parameters: model.parameters,
        format: model.format,
        weight_bytes,
        context_length: plan.context_length,
        embedding_length: model.embedding_length,
        device,
        runs_on,
        device_reason,
        token_cost,
        kv_bytes: plan.kv_bytes(),
        kv_tokens: plan.kv_tokens(),
        kv_dtype: plan.kv_dtype.to_string(),
        planned_bytes: plan.total_bytes(),
        used_bytes: model.used_bytes,
        offload: model.offload,
        full_contexts: plan.full_contexts(),
        loaded_at_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    let tokens = &model.special_tokens;
    let template = model.chat_template.as_deref().unwrap_or(CHATML_TEMPLATE);
    let template = ChatTemplate::new(template, tokens.bos.as_deref(), tokens.eos.as_deref())
        .map(|template| template.with_tool_parser(tool_parser))
        .map_err(|error| LoadError::Template { model: name.to_owned(), source: error })?;
    let defaults = recommended(&model.defaults);
    let tokenizer = build_tokenizer(model.tokenizer, name)?;
    let eos_token_ids = model.eos_token_ids.into();
    Ok(Llm::from_parts(LlmParts {
        info,
        tokenizer,
        template,
        defaults,
        eos_token_ids,
        pooling: model.pooling,
        engine,
        grammars: Default::default(),
    }))
}

/// What the model's makers recommend. GGUF files say nothing of it, and small models ramble at temperature 1: there the
/// defaults are those that Ollama's users know.
fn recommended(defaults: &GenerationDefaults) -> SamplingOptions {
    if *defaults == GenerationDefaults::default() {
        return SamplingOptions {
            temperature: Some(0.8),
            top_k: Some(40),
            top_p: Some(0.9),
            ..SamplingOptions::default()
        };
    }
    SamplingOptions {
        temperature: defaults.temperature,
        top_k: defaults.top_k,
        top_p: defaults.top_p,
        min_p: defaults.min_p,
        repetition_penalty: defaults.repetition_penalty,
        ..SamplingOptions::default()
    }
}

fn build_tokenizer(source: TokenizerSource, model: &str) -> Result<Tokenizer, LoadError> {
    let built = match source {
        TokenizerSource::File(path) => Tokenizer::from_file(path),
        TokenizerSource::Gguf(fields) => Tokenizer::from_gguf_vocab(vocab(fields)),
    };
    built.map_err(|error| LoadError::Tokenizer { model: model.to_owned(), source: error })
}

fn vocab(fields: VocabFields) -> GgufVocab {
    GgufVocab {
        model: fields.model,
        pre: fields.pre,
        tokens: fields.tokens,
        token_types: fields.token_types,
        merges: fields.merges,
        scores: fields.scores,
        bos: fields.bos_id,
        eos: fields.eos_id,
        unk: fields.unk_id,
        pad: fields.pad_id,
        add_bos: fields.add_bos,
        add_eos: fields.add_eos,
        add_space_prefix: fields.add_space_prefix,
    }
}

#[cfg(test)]
mod real;
