//! Says which model to load and how, finds its files, fetches them where they are missing, and loads it.
//!
//! Reads the environment through `config` only, and only for what the caller has not set.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::config::{
    EngineConfig, GpuLayers, HubConfig, KvDType, RandomFormat, RandomModel, ToolParser, WeightFormat, environment,
};
use crate::hub::{self, Catalog, HubOptions, Located, Progress, Store};

use super::handle::Llm;
use super::library::configured;
use super::load::{LoadError, load_files};
use crate::engine::ModelFiles;

/// The model that is loaded where none is named.
pub const DEFAULT_MODEL: &str = "smollm2:135m";

/// A model to be loaded. Everything is optional.
#[derive(Default)]
pub struct LlmBuilder {
    model: Option<String>,
    located: Option<Located>,
    random_weights: Option<PathBuf>,
    random: RandomModel,
    served_name: Option<String>,
    engine: EngineConfig,
    hub: Option<HubConfig>,
    hub_options: Option<HubOptions>,
    progress: Option<Box<dyn Progress>>,
}

impl LlmBuilder {
    /// What to load: a name of the catalog (`smollm2:135m`), a repository (`org/name`), a folder or a `.gguf` file.
    /// [`DEFAULT_MODEL`] unless set.
    pub fn model(mut self, name_or_path: impl Into<String>) -> Self {
        self.model = Some(name_or_path.into());
        self
    }

    /// A model whose files have been found already.
    pub fn located(mut self, located: Located) -> Self {
        self.located = Some(located);
        self
    }

    /// Instead of a model that has been trained, one of the shapes that this config.json says, with random weights and
    /// numbers for words: to measure with.
    pub fn random_weights(mut self, config: impl Into<PathBuf>) -> Self {
        self.random_weights = Some(config.into());
        self
    }

    /// The format that [`Self::random_weights`] are drawn in; bf16 unless set.
    pub fn random_format(mut self, format: RandomFormat) -> Self {
        self.random.format = format;
        self
    }

    /// Whether tokens of [`Self::random_weights`] take the experts of a layer in turn, rather than as random routers choose;
    /// not unless set.
    pub fn even_routing(mut self, even: bool) -> Self {
        self.random.even_routing = even;
        self
    }

    /// The name under which it is served; unless set, the one it is known by.
    pub fn served_name(mut self, name: impl Into<String>) -> Self {
        self.served_name = Some(name.into());
        self
    }

    /// Folder that holds downloaded models; unless set, the one that LANTERN_MODELS or the system names.
    pub fn models_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        let before = self.hub.take();
        let offline = before.as_ref().is_some_and(|hub| hub.offline);
        let ollama_registry = before.and_then(|hub| hub.ollama_registry);
        self.hub = Some(HubConfig { models_dir: folder.into(), offline, ollama_registry });
        self
    }

    /// Where models are kept and whether they may be fetched.
    pub fn hub_config(mut self, config: HubConfig) -> Self {
        self.hub = Some(config);
        self
    }

    /// How the hub is spoken to; unless set, as the environment says.
    pub fn hub_options(mut self, options: HubOptions) -> Self {
        self.hub_options = Some(options);
        self
    }

    /// All sizes and limits at once.
    pub fn engine_config(mut self, config: EngineConfig) -> Self {
        self.engine = config;
        self
    }

    /// Threads that compute. 0 is taken as 1.
    pub fn threads(mut self, threads: usize) -> Self {
        self.engine.threads = NonZeroUsize::new(threads.max(1));
        self
    }

    /// Most tokens of prompt and answer together.
    pub fn context_length(mut self, tokens: u32) -> Self {
        self.engine.context_length = Some(tokens);
        self
    }

    /// Bytes of the KV cache.
    pub fn kv_cache_bytes(mut self, bytes: u64) -> Self {
        self.engine.kv_cache_bytes = Some(bytes);
        self
    }

    /// What the KV cache stores its numbers as.
    pub fn kv_dtype(mut self, dtype: KvDType) -> Self {
        self.engine.kv_dtype = Some(dtype);
        self
    }

    /// What weights of bf16, f16 or f32 are turned into when they are read: q8_0, fp8, q6_k or q4_k.
    pub fn quantize(mut self, format: WeightFormat) -> Self {
        self.engine.quantize = Some(format);
        self
    }

    /// Bytes of a GPU's memory that this process may take.
    pub fn gpu_memory_limit_bytes(mut self, bytes: u64) -> Self {
        self.engine.gpu_memory_limit_bytes = Some(bytes);
        self
    }

    /// Layers that run on a GPU where one serves; the others run on the CPU.
    pub fn gpu_layers(mut self, layers: GpuLayers) -> Self {
        self.engine.gpu_layers = layers;
        self
    }

    /// Sequences in one step.
    pub fn max_sequences(mut self, sequences: u32) -> Self {
        self.engine.max_sequences = Some(sequences);
        self
    }

    /// Requests that wait besides those that run.
    pub fn max_waiting(mut self, requests: u32) -> Self {
        self.engine.max_waiting = requests;
        self
    }

    /// How calls of tools are read, where that is to be another way than the chat template says.
    pub fn tool_parser(mut self, parser: ToolParser) -> Self {
        self.engine.tool_parser = parser;
        self
    }

    /// Hears of the progress of a download.
    pub fn progress(mut self, progress: impl Progress + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Loads the model; fetches it first where it is not here. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load_blocking(mut self) -> Result<Llm, LoadError> {
        let hub = match self.hub.take() {
            Some(config) => Ok(config),
            None => HubConfig::from_environment(&environment),
        };
        let libraries = hub.as_ref().ok().map(|hub| Store::libraries_below(&hub.models_dir));
        if let Some(config) = &self.random_weights {
            let name = self.served_name.as_deref().unwrap_or("random");
            return load_files(
                ModelFiles::RandomWeights(config, self.random),
                name,
                &self.engine,
                libraries.as_deref(),
            );
        }
        let located = match self.located.take() {
            Some(located) => located,
            None => self.locate(hub?)?,
        };
        let name = self.served_name.unwrap_or(located.display_name);
        load_files(ModelFiles::Stored(located.kind.path()), &name, &self.engine, libraries.as_deref())
    }

    /// As [`Self::load_blocking`], for async callers.
    ///
    /// # Errors
    /// [`LoadError`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn load(self) -> Result<Llm, LoadError> {
        match tokio::task::spawn_blocking(|| self.load_blocking()).await {
            Ok(loaded) => loaded,
            Err(error) => Err(LoadError::BrokenOff(error.into())),
        }
    }

    fn locate(&mut self, config: HubConfig) -> Result<hub::Located, LoadError> {
        let catalog = Catalog::embedded();
        let options = self.hub_options.take().unwrap_or_else(|| HubOptions::from_lookup(environment));
        let options = configured(options, &config);
        let store = Store::open(config.models_dir)?;
        let model = self.model.as_deref().unwrap_or(DEFAULT_MODEL);
        let name = hub::understand(model, &catalog, &store, &options).map_err(hub::HubError::from)?;
        let mut silent = ();
        let progress: &mut dyn Progress = match &mut self.progress {
            Some(progress) => progress.as_mut(),
            None => &mut silent,
        };
        Ok(hub::pull(&name, &store, &options, progress)?)
    }
}
