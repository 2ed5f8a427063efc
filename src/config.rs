//! Flags, environment and `lantern.toml`, resolved once into validated configuration.
//!
//! Knows no command line: flags arrive as one layer of [`Settings`]. Nobody else reads the environment.

mod address;
mod engine;
mod keep_alive;
mod kv_dtype;
mod random_format;
mod settings;
mod size;
mod tool_parser;
mod weight_format;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::{Address, DEFAULT_HOST, DEFAULT_PORT, HostError, HostText};
pub use engine::{
    AlreadyQuantized, DeviceWish, DeviceWishError, EngineConfig, GpuLayers, GpuLayersError, Lag, MAX_SEQUENCES,
    StepSizes,
};
pub use keep_alive::{KeepAlive, KeepAliveError};
pub use kv_dtype::{KvDType, KvDTypeError, KvDTypeWish};
pub use random_format::{RandomFormat, RandomFormatError, RandomModel};
pub use settings::{KEYS, Lookup, Origins, Settings};
pub use size::{ByteSize, SizeError};
pub use tool_parser::{ToolParser, ToolParserError};
pub use weight_format::{WeightFormat, WeightFormatError};

/// Everything that can be set, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Model to serve where none is named; `None`: the catalog's default.
    pub model: Option<String>,
    /// Where and how the server serves.
    pub server: ServeConfig,
    /// How the engine is sized.
    pub engine: EngineConfig,
    /// Where models are kept and whether they may be fetched. How the hub is spoken to is the hub's own matter.
    pub hub: HubConfig,
    /// What is logged, in the filter language of `tracing`: `info`, `lantern=debug`. `None`: what suits the command.
    pub log: Option<String>,
    /// How long an idle model stays loaded.
    pub keep_alive: KeepAlive,
}

/// Where the server serves, and those of its limits that were set; the server knows its own defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where it listens: 127.0.0.1:11434 unless set, which only this machine reaches.
    pub address: Address,
    /// How long running requests may go on after the order to stop.
    pub drain_timeout: Option<Duration>,
    /// Most bytes of a request's body.
    pub max_body_bytes: Option<usize>,
    /// Web pages of which origins may call, besides those of this machine; `*` is all.
    pub origins: Vec<String>,
}

/// Where models are kept and whether they may be fetched. How the hub is spoken to is the hub's own matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// Folder that holds downloaded models.
    pub models_dir: PathBuf,
    /// Never use the network.
    pub offline: bool,
    /// The registry that is asked for Ollama's names, as `https://host` or `host`.
    pub ollama_registry: Option<String>,
}

impl HubConfig {
    /// What an embedder gets without asking for more: the folder that the environment names.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`] where no variable tells a folder to keep models in.
    pub fn from_environment(lookup: Lookup<'_>) -> Result<Self, ConfigError> {
        Self::resolve(&Settings::from_environment(lookup)?, lookup)
    }

    fn resolve(settings: &Settings, lookup: Lookup<'_>) -> Result<Self, ConfigError> {
        let set = |name| lookup(name).filter(|value| !value.is_empty());
        let home = || set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        let data_home = || set("XDG_DATA_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".local/share")));
        let models_dir = match &settings.models_dir {
            Some(models_dir) => models_dir.clone(),
            None => data_home().ok_or(ConfigError::NoHome)?.join("lantern/models"),
        };
        let ollama_registry = settings.ollama_registry.clone();
        Ok(Self { models_dir, offline: settings.offline.unwrap_or(false), ollama_registry })
    }
}

/// Why the settings are not valid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable does not parse.
    #[error("the environment variable {name} is `{value}`, which is not valid")]
    Environment {
        /// Its name.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// Why it does not parse.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file cannot be read or is not valid.
    #[error("{} is not valid", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file holds a key that nothing reads.
    #[error("{}: there is no key `{key}`; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it may have been meant as.
        hint: String,
    },
    /// A number is outside its range.
    #[error("{name} is {value}, outside {low} to {high}")]
    OutOfRange {
        /// Name of the setting.
        name: &'static str,
        /// What it is.
        value: u64,
        /// The least it may be.
        low: u64,
        /// The most it may be.
        high: u64,
    },
    /// A format that weights are not turned into when they are read.
    #[error("quantize is {0}, which weights are not turned into when a model is loaded; q8_0, fp8, q6_k and q4_k are")]
    Quantize(&'static str),
    /// There is no folder to keep models in.
    #[error("no folder to keep models in: HOME is not set; give one with --models-dir or LANTERN_MODELS")]
    NoHome,
}

/// Looks up a variable of this process's environment: what [`Config::resolve`] is given outside tests.
pub fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Reads a file that need not be there: what [`Config::resolve`] is given outside tests.
///
/// # Errors
/// Any but [`io::ErrorKind::NotFound`], which is `None`.
pub fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Config {
    /// Lays `flags` over the environment over `lantern.toml` over the defaults, and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`], which names the setting and where it stands.
    pub fn resolve(
        flags: Settings,
        lookup: Lookup<'_>,
        read: &dyn Fn(&Path) -> io::Result<Option<String>>,
    ) -> Result<Self, ConfigError> {
        let layers = [flags, Settings::from_environment(lookup)?, from_files(lookup, read)?];
        let address = resolve_address(&layers);
        let flag = layers[0].quantize;
        let settings = layers.into_iter().reduce(Settings::or).unwrap_or_default();
        let already_quantized = match (flag, settings.quantize) {
            // What stands in a file or in the environment is for all models.
            (None, Some(_)) => AlreadyQuantized::Keep,
            _ => AlreadyQuantized::Refuse,
        };
        let config = Self {
            hub: HubConfig::resolve(&settings, lookup)?,
            server: resolve_server(&settings, address)?,
            engine: EngineConfig { already_quantized, ..resolve_engine(&settings) },
            model: settings.model,
            log: settings.log,
            keep_alive: settings.keep_alive.unwrap_or_default(),
        };
        config.engine.validate()?;
        Ok(config)
    }
}

/// The settings of `./lantern.toml`, else of the one in the user's configuration folder, else none.
fn from_files(lookup: Lookup<'_>, read: &dyn Fn(&Path) -> io::Result<Option<String>>) -> Result<Settings, ConfigError> {
    let set = |name| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config_home = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    let places = [Some(PathBuf::from("lantern.toml")), config_home.map(|folder| folder.join("lantern/lantern.toml"))];
    for path in places.into_iter().flatten() {
        let text = read(&path).map_err(|source| ConfigError::File { path: path.clone(), source: Box::new(source) })?;
        if let Some(text) = text {
            return Settings::from_toml(&path, &text);
        }
    }
    Ok(Settings::default())
}

/// The highest host wins, and the highest port. The port inside a host that lost is lost with it: an address is one
/// thing.
fn resolve_address(layers: &[Settings]) -> Address {
    let mut host = None;
    let mut port = None;
    for layer in layers {
        port = port.or(layer.port);
        if let (None, Some(text)) = (host, &layer.host) {
            host = Some(text.host.as_deref());
            port = port.or(text.port);
        }
    }
    let default = Address::default();
    Address { host: host.flatten().map_or(default.host, str::to_owned), port: port.unwrap_or(default.port) }
}

fn resolve_server(settings: &Settings, address: Address) -> Result<ServeConfig, ConfigError> {
    if let Some(seconds) = settings.drain_timeout_s {
        engine::within("drain_timeout_s", seconds, 0, 86_400)?;
    }
    if let Some(size) = settings.max_body {
        engine::within("max_body", size.0, 1 << 10, 1 << 30)?;
    }
    Ok(ServeConfig {
        address,
        drain_timeout: settings.drain_timeout_s.map(Duration::from_secs),
        max_body_bytes: settings.max_body.and_then(|size| usize::try_from(size.0).ok()),
        origins: settings.origins.clone().unwrap_or_default().0,
    })
}

fn resolve_engine(settings: &Settings) -> EngineConfig {
    let default = EngineConfig::default();
    EngineConfig {
        threads: settings.threads,
        context_length: settings.context,
        kv_cache_bytes: settings.kv_cache.map(|size| size.0),
        kv_cache_most_bytes: None,
        kv_dtype: settings.kv_cache_dtype.and_then(|wish| wish.0),
        gpu_memory_limit_bytes: settings.gpu_memory_limit.map(|size| size.0),
        gpu_layers: settings.gpu_layers.unwrap_or_default(),
        max_sequences: settings.max_sequences,
        max_step_tokens: settings.max_step_tokens,
        max_prompt_chunk_while_decoding: settings.max_prompt_chunk_while_decoding,
        max_waiting: settings.max_waiting.unwrap_or(default.max_waiting),
        prefix_cache: settings.prefix_cache.unwrap_or(default.prefix_cache),
        lag: default.lag,
        quantize: settings.quantize,
        already_quantized: default.already_quantized,
        device: settings.device.unwrap_or(default.device),
        reserved_bytes: default.reserved_bytes,
        tool_parser: settings.tool_parser.unwrap_or_default(),
        least_context: default.least_context,
    }
}

#[cfg(test)]
mod tests;
