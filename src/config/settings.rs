//! One layer of settings: what a file, the environment or the flags say, with nothing filled in.
//!
//! Knows no defaults: [`super::Config`] lays the layers over each other and fills the gaps.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{ByteSize, ConfigError, DeviceWish, GpuLayers, HostText, KeepAlive, KvDTypeWish, ToolParser, WeightFormat};

/// Looks up one environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One layer of settings. The names of its fields are the keys of `lantern.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Model to serve where none is named.
    pub model: Option<String>,
    /// Where the server listens; may carry a port.
    pub host: Option<HostText>,
    /// Its port.
    pub port: Option<u16>,
    /// Folder that holds downloaded models.
    pub models_dir: Option<PathBuf>,
    /// Never use the network.
    pub offline: Option<bool>,
    /// See [`super::HubConfig::ollama_registry`].
    pub ollama_registry: Option<String>,
    /// How long an idle model stays loaded.
    pub keep_alive: Option<KeepAlive>,
    /// See [`super::EngineConfig::device`].
    pub device: Option<DeviceWish>,
    /// See [`super::EngineConfig::threads`].
    pub threads: Option<NonZeroUsize>,
    /// See [`super::EngineConfig::context_length`].
    pub context: Option<u32>,
    /// See [`super::EngineConfig::kv_cache_bytes`].
    pub kv_cache: Option<ByteSize>,
    /// See [`super::EngineConfig::kv_dtype`].
    pub kv_cache_dtype: Option<KvDTypeWish>,
    /// See [`super::EngineConfig::quantize`].
    pub quantize: Option<WeightFormat>,
    /// See [`super::EngineConfig::gpu_memory_limit_bytes`].
    pub gpu_memory_limit: Option<ByteSize>,
    /// See [`super::EngineConfig::gpu_layers`].
    pub gpu_layers: Option<GpuLayers>,
    /// See [`super::EngineConfig::max_sequences`].
    pub max_sequences: Option<u32>,
    /// See [`super::EngineConfig::max_step_tokens`].
    pub max_step_tokens: Option<u32>,
    /// See [`super::EngineConfig::max_prompt_chunk_while_decoding`].
    pub max_prompt_chunk_while_decoding: Option<u32>,
    /// See [`super::EngineConfig::max_waiting`].
    pub max_waiting: Option<u32>,
    /// See [`super::EngineConfig::prefix_cache`].
    pub prefix_cache: Option<bool>,
    /// See [`super::EngineConfig::tool_parser`].
    pub tool_parser: Option<ToolParser>,
    /// See [`super::ServeConfig::drain_timeout`], in seconds.
    pub drain_timeout_s: Option<u64>,
    /// See [`super::ServeConfig::max_body_bytes`].
    pub max_body: Option<ByteSize>,
    /// See [`super::ServeConfig::origins`].
    pub origins: Option<Origins>,
    /// See [`super::Config::log`].
    pub log: Option<String>,
}

/// Web pages' origins: a list in `lantern.toml`, text with commas in the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Origins(pub Vec<String>);

impl FromStr for Origins {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
        Ok(Self(origins.map(str::to_owned).collect()))
    }
}

/// The keys of `lantern.toml`.
pub const KEYS: [&str; 25] = [
    "model",
    "host",
    "port",
    "models_dir",
    "offline",
    "ollama_registry",
    "keep_alive",
    "device",
    "threads",
    "context",
    "kv_cache",
    "kv_cache_dtype",
    "quantize",
    "gpu_memory_limit",
    "gpu_layers",
    "max_sequences",
    "max_step_tokens",
    "max_prompt_chunk_while_decoding",
    "max_waiting",
    "prefix_cache",
    "tool_parser",
    "drain_timeout_s",
    "max_body",
    "origins",
    "log",
];

impl Settings {
    /// What the environment says. A variable that is set to nothing counts as not set.
    ///
    /// # Errors
    /// [`ConfigError::Environment`] for the first variable that does not parse.
    pub fn from_environment(lookup: Lookup<'_>) -> Result<Self, ConfigError> {
        let read = Variables(lookup);
        Ok(Self {
            model: read.first(&["LANTERN_MODEL"])?,
            host: read.first(&["LANTERN_HOST", "OLLAMA_HOST"])?,
            port: read.first(&["LANTERN_PORT"])?,
            models_dir: read.first(&["LANTERN_MODELS", "OLLAMA_MODELS"])?,
            offline: read.switch("LANTERN_OFFLINE")?,
            ollama_registry: read.first(&["LANTERN_OLLAMA_REGISTRY"])?,
            keep_alive: read.first(&["LANTERN_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE"])?,
            device: read.first(&["LANTERN_DEVICE"])?,
            threads: read.first(&["LANTERN_THREADS"])?,
            context: read.first(&["LANTERN_CONTEXT"])?,
            kv_cache: read.first(&["LANTERN_KV_CACHE"])?,
            kv_cache_dtype: read.first(&["LANTERN_KV_CACHE_DTYPE"])?,
            quantize: read.first(&["LANTERN_QUANTIZE"])?,
            gpu_memory_limit: read.first(&["LANTERN_GPU_MEMORY_LIMIT"])?,
            gpu_layers: read.first(&["LANTERN_GPU_LAYERS"])?,
            max_sequences: read.first(&["LANTERN_MAX_SEQUENCES"])?,
            max_step_tokens: read.first(&["LANTERN_MAX_STEP_TOKENS"])?,
            max_prompt_chunk_while_decoding: read.first(&["LANTERN_MAX_PROMPT_CHUNK_WHILE_DECODING"])?,
            max_waiting: read.first(&["LANTERN_MAX_WAITING"])?,
            prefix_cache: read.switch("LANTERN_PREFIX_CACHE")?,
            tool_parser: read.first(&["LANTERN_TOOL_PARSER"])?,
            drain_timeout_s: read.first(&["LANTERN_DRAIN_TIMEOUT_S"])?,
            max_body: read.first(&["LANTERN_MAX_BODY"])?,
            origins: read.first(&["LANTERN_ORIGINS", "OLLAMA_ORIGINS"])?,
            log: read.first(&["LANTERN_LOG"])?,
        })
    }

    /// What `lantern.toml` says; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::File`] where it is no TOML or a value has the wrong type; [`ConfigError::UnknownKey`].
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file_error = |source| ConfigError::File { path: path.to_owned(), source: Box::new(source) };
        let table: toml::Table = text.parse().map_err(file_error)?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key: key.clone(), hint: near_keys(key) });
        }
        toml::from_str(text).map_err(file_error)
    }

    /// These settings, and where they are silent, those of `below`. The address is not one field: see
    /// [`super::Config`].
    pub(super) fn or(self, below: Self) -> Self {
        Self {
            model: self.model.or(below.model),
            host: self.host.or(below.host),
            port: self.port.or(below.port),
            models_dir: self.models_dir.or(below.models_dir),
            offline: self.offline.or(below.offline),
            ollama_registry: self.ollama_registry.or(below.ollama_registry),
            keep_alive: self.keep_alive.or(below.keep_alive),
            device: self.device.or(below.device),
            threads: self.threads.or(below.threads),
            context: self.context.or(below.context),
            kv_cache: self.kv_cache.or(below.kv_cache),
            kv_cache_dtype: self.kv_cache_dtype.or(below.kv_cache_dtype),
            quantize: self.quantize.or(below.quantize),
            gpu_memory_limit: self.gpu_memory_limit.or(below.gpu_memory_limit),
            gpu_layers: self.gpu_layers.or(below.gpu_layers),
            max_sequences: self.max_sequences.or(below.max_sequences),
            max_step_tokens: self.max_step_tokens.or(below.max_step_tokens),
            max_prompt_chunk_while_decoding: self
                .max_prompt_chunk_while_decoding
                .or(below.max_prompt_chunk_while_decoding),
            max_waiting: self.max_waiting.or(below.max_waiting),
            prefix_cache: self.prefix_cache.or(below.prefix_cache),
            tool_parser: self.tool_parser.or(below.tool_parser),
            drain_timeout_s: self.drain_timeout_s.or(below.drain_timeout_s),
            max_body: self.max_body.or(below.max_body),
            origins: self.origins.or(below.origins),
            log: self.log.or(below.log),
        }
    }
}

/// The environment, with errors that name the variable.
struct Variables<'a>(Lookup<'a>);

impl Variables<'_> {
    /// The first of `names` that is set: ours stand before Ollama's.
    fn first<T>(&self, names: &[&'static str]) -> Result<Option<T>, ConfigError>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        for &name in names {
            if let Some(text) = (self.0)(name).filter(|text| !text.trim().is_empty()) {
                return match text.parse() {
                    Ok(value) => Ok(Some(value)),
                    Err(source) => Err(ConfigError::Environment { name, value: text, source: Box::new(source) }),
                };
            }
        }
        Ok(None)
    }

    fn switch(&self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        Ok(self.first::<Switch>(&[name])?.map(|switch| switch.0))
    }
}

/// On or off, in the words people use in environments.
struct Switch(bool);

impl FromStr for Switch {
    type Err = SwitchError;

    fn from_str(text: &str) -> Result<Self, SwitchError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Self(true)),
            "0" | "false" | "no" | "off" => Ok(Self(false)),
            _ => Err(SwitchError(text.to_owned())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is neither on (1, true, yes, on) nor off (0, false, no, off)")]
struct SwitchError(String);

/// The keys that `key` may have been meant as, as a sentence.
fn near_keys(key: &str) -> String {
    let mut near: Vec<_> = KEYS
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(key, known), *known))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<_> = near.iter().take(3).map(|(_, known)| format!("`{known}`")).collect();
    match near.is_empty() {
        true => format!("the keys are {}", KEYS.join(", ")),
        false => format!("did you mean {}?", near.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_keys_is_that_of_the_fields() {
        let error = toml::from_str::<Settings>("no_such_key = 1").expect_err("an unknown key").to_string();
        let mut listed: Vec<_> = error.split('`').skip(1).step_by(2).collect();
        assert_eq!(listed.remove(0), "no_such_key", "{error}");
        assert_eq!(listed, KEYS);
    }

    #[test]
    fn a_file_is_read_with_sizes_and_hosts_as_text() {
        let text = "origins = ['https://a.example', '*']\nmodel = 'qwen3:8b'\nhost = '0.0.0.0:8080'\nkv_cache = '8GiB'\nmax_body = 1024\nkeep_alive = '5m'\n\
                    offline = true\nthreads = 4\ngpu_layers = 20\ntool_parser = 'hermes'\n";
        let settings = Settings::from_toml(Path::new("lantern.toml"), text).expect("valid settings");
        assert_eq!(settings.host, Some(HostText { host: Some("0.0.0.0".into()), port: Some(8080) }));
        assert_eq!(settings.kv_cache, Some(ByteSize(8 << 30)));
        assert_eq!(settings.max_body, Some(ByteSize(1024)));
        assert_eq!(settings.keep_alive, "5m".parse().ok());
        assert_eq!(settings.offline, Some(true));
        assert_eq!(settings.threads, NonZeroUsize::new(4));
        assert_eq!(settings.origins, "https://a.example,*".parse().ok());
        assert_eq!(settings.gpu_layers, Some(GpuLayers::Count(20)));
        assert_eq!(settings.tool_parser, Some(ToolParser::Hermes));
        assert_eq!(settings.port, None);
    }

    #[test]
    fn a_wrong_file_says_what_and_where() {
        let cases = [
            ("prot = 1", "lantern.toml: there is no key `prot`; did you mean `port`?"),
            ("max_sequence = 1", "lantern.toml: there is no key `max_sequence`; did you mean `max_sequences`?"),
            ("zzzzzz = 1", "lantern.toml: there is no key `zzzzzz`; the keys are model, host, port,"),
        ];
        for (text, expected) in cases {
            let error = Settings::from_toml(Path::new("lantern.toml"), text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let causes = [
            ("port = 70000", "70000"),
            ("port = [", "line 1"),
            ("kv_cache = 'lots'", "`lots` is no size; write it like 8GiB"),
            ("host = 'https://x'", "`https://` is not spoken here"),
            ("threads = 0", "nonzero"),
            ("tool_parser = 'qwen'", "`qwen` is no parser of tool calls; auto, hermes, deepseek, llama3 and json are"),
            ("gpu_layers = 'some'", "`some` is no number of layers; auto, all and whole numbers are"),
        ];
        for (text, expected) in causes {
            let error = Settings::from_toml(Path::new("lantern.toml"), text).expect_err(text);
            let cause = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(cause.contains(expected), "{text}: {cause}");
        }
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let cases = [
            ("LANTERN_PORT", "abc", "invalid digit found in string"),
            (
                "OLLAMA_HOST",
                "https://x",
                "`https://` is not spoken here; only http is (a proxy in front can speak TLS)",
            ),
            ("LANTERN_OFFLINE", "maybe", "`maybe` is neither on (1, true, yes, on) nor off (0, false, no, off)"),
            ("LANTERN_KV_CACHE", "8 elephants", "`8 elephants` is no size; write it like 8GiB, 512MB or 1048576"),
        ];
        for (name, value, expected) in cases {
            let lookup = |asked: &str| (asked == name).then(|| value.to_owned());
            let error = Settings::from_environment(&lookup).expect_err(name);
            assert_eq!(error.to_string(), format!("the environment variable {name} is `{value}`, which is not valid"));
            assert_eq!(std::error::Error::source(&error).expect("a cause").to_string(), expected);
        }
    }
}
