//! How the engine is sized. An embedder builds one by hand; the command line resolves one from its settings.
//!
//! Knows no source of settings and no machine: what is `None` is decided when a model is loaded.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use super::{ConfigError, KvDType, ToolParser, WeightFormat};

/// Most sequences that one step may be configured to hold.
pub const MAX_SEQUENCES: u32 = 4096;

/// How many steps lie between computing a token and committing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lag {
    /// A step is committed before the next one is scheduled: what a CPU wants, which computes where it schedules.
    #[default]
    Zero,
    /// The next step is scheduled, over a placeholder, while this one still runs: what keeps a GPU busy.
    One,
}

impl Lag {
    /// Steps that may be executed and not committed when the next one is scheduled.
    pub fn steps(self) -> usize {
        match self {
            Self::Zero => 0,
            Self::One => 1,
        }
    }
}

/// Where a model is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum DeviceWish {
    /// The first GPU that can be used, else the CPU, which says why.
    #[default]
    Auto,
    /// The CPU, whatever else is here.
    Cpu,
    /// A GPU, or an error that says why not: this one of the driver's list, or the first that can be used.
    Cuda(Option<u32>),
}

impl fmt::Display for DeviceWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Why a text is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no device; auto, cpu, cuda and cuda:N are")]
pub struct DeviceWishError(String);

impl FromStr for DeviceWish {
    type Err = DeviceWishError;

    fn from_str(text: &str) -> Result<Self, DeviceWishError> {
        let lower = text.trim().to_ascii_lowercase();
        let fail = || DeviceWishError(text.to_owned());
        match lower.split_once(':') {
            None if lower == "auto" => Ok(Self::Auto),
            None if lower == "cpu" => Ok(Self::Cpu),
            None if lower == "cuda" || lower == "gpu" => Ok(Self::Cuda(None)),
            Some(("cuda" | "gpu", ordinal)) => Ok(Self::Cuda(Some(ordinal.parse().map_err(|_| fail())?))),
            _ => Err(fail()),
        }
    }
}

impl TryFrom<String> for DeviceWish {
    type Error = DeviceWishError;

    fn try_from(text: String) -> Result<Self, DeviceWishError> {
        text.parse()
    }
}

/// How many layers run on a GPU where one serves: those nearest to the output, and the output with them. The others run on
/// the CPU, slower by as much as its memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "LayersText")]
pub enum GpuLayers {
    /// As many as fit.
    #[default]
    Auto,
    /// All of them, or an error that says what would fit.
    All,
    /// So many, or all if there are fewer. 0: the model runs on the CPU.
    Count(u32),
}

/// A number, as it may stand in `lantern.toml`, or a word.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum LayersText {
    Number(u32),
    Text(String),
}

impl TryFrom<LayersText> for GpuLayers {
    type Error = GpuLayersError;

    fn try_from(text: LayersText) -> Result<Self, GpuLayersError> {
        match text {
            LayersText::Number(count) => Ok(Self::Count(count)),
            LayersText::Text(text) => text.parse(),
        }
    }
}

/// Why a text is no number of layers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no number of layers; auto, all and whole numbers are")]
pub struct GpuLayersError(String);

impl FromStr for GpuLayers {
    type Err = GpuLayersError;

    fn from_str(text: &str) -> Result<Self, GpuLayersError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            count => count.parse().map(Self::Count).map_err(|_| GpuLayersError(text.to_owned())),
        }
    }
}

/// Sizes and limits of one engine. Resolved once; nothing changes it after start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Where the model runs.
    pub device: DeviceWish,
    /// Threads that compute, the engine's own among them. `None`: one for each core that this process may use.
    pub threads: Option<NonZeroUsize>,
    /// Most tokens of prompt and answer together. `None`: what the model was made for, or what fits if that is less.
    pub context_length: Option<u32>,
    /// Bytes of the KV cache; a model beside which there is no room for so many is refused. `None`: planned from the memory
    /// that is free.
    pub kv_cache_bytes: Option<u64>,
    /// Most bytes of the KV cache where [`Self::kv_cache_bytes`] does not set them: fewer where there is room for fewer.
    pub kv_cache_most_bytes: Option<u64>,
    /// What the KV cache stores its numbers as. `None`: the model's own type on a GPU, f32 on the CPU.
    pub kv_dtype: Option<KvDType>,
    /// Bytes of a GPU's memory that this process may take. `None`: what is free. A large card then does as a small one
    /// would.
    pub gpu_memory_limit_bytes: Option<u64>,
    /// Layers that run on a GPU where one serves.
    pub gpu_layers: GpuLayers,
    /// Bytes of main memory that are promised to others: they look free until they are used.
    pub reserved_bytes: u64,
    /// Tokens of context for which there must be memory, or for all that are wanted if those are fewer: with less a model
    /// counts as one that does not fit.
    pub least_context: u32,
    /// Sequences in one step, 1 to [`MAX_SEQUENCES`]. `None`: see [`StepSizes`], as for the next three.
    pub max_sequences: Option<u32>,
    /// Tokens in one step, at least `max_sequences`.
    pub max_step_tokens: Option<u32>,
    /// Prompt tokens in one step while somebody decodes, at least 1.
    pub max_prompt_chunk_while_decoding: Option<u32>,
    /// Requests that wait besides those that run; one more is refused. 256: minutes of work, not hours.
    pub max_waiting: u32,
    /// Keep the blocks of what was computed, and use them again where a prompt begins the same.
    pub prefix_cache: bool,
    /// How late tokens are committed.
    pub lag: Option<Lag>,
    /// What weights of bf16, f16 or f32 are turned into when they are read: q8_0, fp8, q6_k or q4_k. `None`: they stay as
    /// they are.
    pub quantize: Option<WeightFormat>,
    /// What becomes of models that are quantised already where that is set.
    pub already_quantized: AlreadyQuantized,
    /// How calls of tools are read.
    pub tool_parser: ToolParser,
}

/// What becomes of a model that is quantised already, where weights are to be turned into another format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlreadyQuantized {
    /// It is refused: whoever names a model and a format means both.
    #[default]
    Refuse,
    /// It is served as it is, which is logged: the format was meant for whatever models there are.
    Keep,
}

/// The sizes of a step, resolved for where it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSizes {
    /// Sequences in one step.
    pub max_sequences: u32,
    /// Tokens in one step.
    pub max_step_tokens: u32,
    /// Prompt tokens in one step while somebody decodes.
    pub max_prompt_chunk_while_decoding: u32,
    /// Where that is more, prompt tokens in such a step for each sequence that decodes.
    pub prompt_tokens_per_decode: u32,
    /// Where that is more, prompt tokens in such a step for each request that waits, up to eight times the chunk.
    pub prompt_tokens_per_waiting: u32,
    /// Such a step computes a multiple of so many tokens in all, unless it is smaller.
    pub step_multiple: u32,
    /// How late tokens are committed.
    pub lag: Lag,
}

impl StepSizes {
    /// A processor's. Beyond 64 sequences its step grows about as fast as its rows; with 512 tokens a prompt's matrix
    /// products reach full speed and the workspace stays some tens of megabytes; a chunk of 128 delays the next token of
    /// others by no more than a fraction of a second on a small processor; and it computes where it schedules.
    pub const CPU: Self = Self {
        max_sequences: 64,
        max_step_tokens: 512,
        max_prompt_chunk_while_decoding: 128,
        prompt_tokens_per_decode: 0,
        prompt_tokens_per_waiting: 0,
        step_multiple: 1,
        lag: Lag::Zero,
    };

    /// A GPU's. Decoding grows cheaper a sequence up to 256 of them; prompts reach full speed at thousands of tokens; a
    /// chunk of 256 keeps a step below three times one that only decodes. Beside more than 32 that decode, eight prompt
    /// tokens for each: such steps take long anyway, and smaller chunks cost a tenth of the throughput. Where many wait,
    /// 64 for each of them, up to 2,048. Matrix products compute 128 rows at a time, and steps are recorded for multiples
    /// of that. The host works while the GPU does.
    pub const GPU: Self = Self {
        max_sequences: 256,
        max_step_tokens: 8192,
        max_prompt_chunk_while_decoding: 256,
        prompt_tokens_per_decode: 8,
        prompt_tokens_per_waiting: 64,
        step_multiple: 128,
        lag: Lag::One,
    };

    /// A GPU's with little memory: buffers of a large step would take what the KV cache needs.
    pub const SMALL_GPU: Self =
        Self { max_sequences: 64, max_step_tokens: 2048, prompt_tokens_per_waiting: 16, ..Self::GPU };

    /// A GPU's that the weights nearly fill.
    pub const TINY_GPU: Self = Self { max_sequences: 16, max_step_tokens: 512, ..Self::SMALL_GPU };
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: DeviceWish::Auto,
            threads: None,
            context_length: None,
            kv_cache_bytes: None,
            kv_cache_most_bytes: None,
            kv_dtype: None,
            gpu_memory_limit_bytes: None,
            reserved_bytes: 0,
            tool_parser: ToolParser::Auto,
            least_context: 0,
            gpu_layers: GpuLayers::Auto,
            max_sequences: None,
            max_step_tokens: None,
            max_prompt_chunk_while_decoding: None,
            max_waiting: 256,
            prefix_cache: true,
            lag: None,
            quantize: None,
            already_quantized: AlreadyQuantized::Refuse,
        }
    }
}

impl EngineConfig {
    /// Holds every number against its range.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] for the first number outside its range; [`ConfigError::Quantize`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(format) = self.quantize.filter(|format| format.mix().is_none()) {
            return Err(ConfigError::Quantize(format.name()));
        }
        if let Some(threads) = self.threads {
            within("threads", threads.get() as u64, 1, 1024)?;
        }
        if let Some(context) = self.context_length {
            within("context", context.into(), 16, 1 << 24)?;
        }
        if let Some(bytes) = self.kv_cache_bytes {
            within("kv_cache", bytes, 1 << 20, 1 << 50)?;
        }
        if let Some(bytes) = self.gpu_memory_limit_bytes {
            within("gpu_memory_limit", bytes, 256 << 20, 1 << 50)?;
        }
        let sizes = self.step_sizes(StepSizes::CPU);
        within("max_sequences", sizes.max_sequences.into(), 1, MAX_SEQUENCES.into())?;
        within("max_step_tokens", sizes.max_step_tokens.into(), sizes.max_sequences.max(16).into(), 1 << 20)?;
        within("max_prompt_chunk_while_decoding", sizes.max_prompt_chunk_while_decoding.into(), 1, 1 << 20)?;
        within("max_waiting", self.max_waiting.into(), 0, 1 << 20)
    }

    /// What was set, over `defaults`. Whoever asks for more sequences alone means that a step holds them all; whoever asks
    /// for smaller steps alone means fewer sequences too.
    pub fn step_sizes(&self, defaults: StepSizes) -> StepSizes {
        let most_sequences = self.max_step_tokens.map_or(u32::MAX, |tokens| tokens.max(1));
        let own_chunk = self.max_prompt_chunk_while_decoding.is_some();
        let max_sequences = self.max_sequences.unwrap_or(defaults.max_sequences.min(most_sequences));
        StepSizes {
            max_sequences,
            max_step_tokens: self.max_step_tokens.unwrap_or(defaults.max_step_tokens.max(max_sequences)),
            max_prompt_chunk_while_decoding: self
                .max_prompt_chunk_while_decoding
                .unwrap_or(defaults.max_prompt_chunk_while_decoding),
            // Who sets the chunk means it.
            prompt_tokens_per_decode: if own_chunk { 0 } else { defaults.prompt_tokens_per_decode },
            prompt_tokens_per_waiting: if own_chunk { 0 } else { defaults.prompt_tokens_per_waiting },
            step_multiple: if own_chunk { 1 } else { defaults.step_multiple },
            lag: self.lag.unwrap_or(defaults.lag),
        }
    }
}

/// Whether `value` lies in `low..=high`.
pub(super) fn within(name: &'static str, value: u64, low: u64, high: u64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) { Ok(()) } else { Err(ConfigError::OutOfRange { name, value, low, high }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        EngineConfig::default().validate().expect("defaults");
    }

    #[test]
    fn devices_are_read_as_they_are_written() {
        let cases = [
            ("auto", DeviceWish::Auto),
            (" CPU ", DeviceWish::Cpu),
            ("cuda", DeviceWish::Cuda(None)),
            ("gpu", DeviceWish::Cuda(None)),
            ("cuda:1", DeviceWish::Cuda(Some(1))),
        ];
        for (text, expected) in cases {
            let wish: DeviceWish = text.parse().expect(text);
            assert_eq!(wish, expected);
            assert_eq!(wish.to_string().parse(), Ok(expected));
        }
        for text in ["", "tpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "auto:1"] {
            let error = text.parse::<DeviceWish>().expect_err(text).to_string();
            assert_eq!(error, format!("`{text}` is no device; auto, cpu, cuda and cuda:N are"));
        }
    }

    #[test]
    fn numbers_of_layers_are_read_and_other_words_are_not() {
        for (text, expected) in [
            ("auto", GpuLayers::Auto),
            (" ALL ", GpuLayers::All),
            ("0", GpuLayers::Count(0)),
            ("20", GpuLayers::Count(20)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in ["", "-1", "half", "2.5"] {
            let error = text.parse::<GpuLayers>().expect_err(text).to_string();
            assert_eq!(error, format!("`{text}` is no number of layers; auto, all and whole numbers are"));
        }
    }

    #[test]
    fn a_step_must_have_a_token_for_each_sequence() {
        let config = EngineConfig { max_sequences: Some(600), max_step_tokens: Some(512), ..EngineConfig::default() };
        let error = config.validate().expect_err("600 sequences do not fit into 512 tokens").to_string();
        assert_eq!(error, "max_step_tokens is 512, outside 600 to 1048576");
    }

    #[test]
    fn weights_are_turned_into_formats_that_are_made_and_into_no_others() {
        for format in WeightFormat::ALL {
            let config = EngineConfig { quantize: Some(format), ..EngineConfig::default() };
            match config.validate() {
                Ok(()) => assert_ne!(format, WeightFormat::Bf16),
                Err(error) => {
                    let name = format.name();
                    let rest = "which weights are not turned into when a model is loaded; q8_0, fp8, q6_k and q4_k are";
                    assert_eq!(error.to_string(), format!("quantize is {name}, {rest}"));
                }
            }
        }
    }

    #[test]
    fn numbers_outside_their_range_are_named() {
        let base = EngineConfig::default();
        let cases = [
            (EngineConfig { max_sequences: Some(0), ..base.clone() }, "max_sequences is 0, outside 1 to 4096"),
            (EngineConfig { context_length: Some(3), ..base.clone() }, "context is 3, outside 16 to 16777216"),
            (
                EngineConfig { max_prompt_chunk_while_decoding: Some(0), ..base.clone() },
                "max_prompt_chunk_while_decoding is 0, outside 1 to 1048576",
            ),
            (EngineConfig { threads: NonZeroUsize::new(5000), ..base }, "threads is 5000, outside 1 to 1024"),
        ];
        for (config, expected) in cases {
            assert_eq!(config.validate().expect_err(expected).to_string(), expected);
        }
    }
}
