//! Flags that several commands share, and how they become a layer of settings.
//!
//! Knows no environment and no defaults: `config` lays those under.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::config::{ByteSize, DeviceWish, GpuLayers, HostText, KvDTypeWish, Settings, ToolParser, WeightFormat};

/// Where the server is.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AddressFlags {
    /// Host of the server, with or without a port [default: 127.0.0.1; LANTERN_HOST, OLLAMA_HOST]
    #[arg(long, value_name = "HOST[:PORT]")]
    host: Option<HostText>,
    /// Port of the server [default: 11434; LANTERN_PORT]
    #[arg(long)]
    port: Option<u16>,
}

/// Where models are kept.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct StoreFlags {
    /// Folder that holds the models [LANTERN_MODELS, OLLAMA_MODELS]
    #[arg(long, value_name = "FOLDER")]
    models_dir: Option<PathBuf>,
    /// Never use the network [LANTERN_OFFLINE]
    #[arg(long)]
    offline: bool,
    /// Ollama registry that is asked for names which the catalog lacks, as https://host [LANTERN_OLLAMA_REGISTRY]
    #[arg(long, value_name = "URL")]
    ollama_registry: Option<String>,
}

/// Which layers run on a GPU.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LayerFlags {
    /// Layers on the GPU, the others on the CPU: auto (as many as fit), all, or a number [default: auto]
    #[arg(long, value_name = "N|auto|all")]
    gpu_layers: Option<GpuLayers>,
    /// Refuse a model that does not fit the GPU instead of running some layers on the CPU, as --gpu-layers all does
    #[arg(long, conflicts_with = "gpu_layers")]
    no_offload: bool,
}

impl LayerFlags {
    /// What was asked for.
    pub fn wish(&self) -> Option<GpuLayers> {
        if self.no_offload { Some(GpuLayers::All) } else { self.gpu_layers }
    }
}

/// How a model is loaded.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineFlags {
    /// Where the model runs: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    device: Option<DeviceWish>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Most tokens of prompt and answer together [default: the model's own, or what fits]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Memory for the KV cache, like 2GiB [default: planned from what is free]
    #[arg(long, value_name = "SIZE")]
    kv_cache: Option<ByteSize>,
    /// What the KV cache stores: auto, bf16, f16, f32, fp8 (GPUs) or int8 (the CPU) [default: auto]
    #[arg(long, value_name = "TYPE")]
    kv_cache_dtype: Option<KvDTypeWish>,
    /// Turn weights of bf16, f16 or f32 into q8_0, fp8, q6_k or q4_k while they are read [default: as they are]
    ///
    /// Models named on the same command line must not be quantised already; all others, and any where LANTERN_QUANTIZE or
    /// lantern.toml says so, are served as they are then
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<WeightFormat>,
    /// Most memory taken of a GPU, like 8GiB: a large card does as one of that size would [default: what is free]
    #[arg(long, value_name = "SIZE")]
    gpu_memory_limit: Option<ByteSize>,
    #[command(flatten)]
    layers: LayerFlags,
    /// Most sequences computed at once [default: 64]
    #[arg(long, value_name = "N")]
    max_sequences: Option<u32>,
    /// Most requests that wait; one more gets 429 [default: 256]
    #[arg(long, value_name = "N")]
    max_waiting: Option<u32>,
    /// Most tokens computed in one step [default: 512]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_step_tokens: Option<u32>,
    /// Most prompt tokens in a step while others decode [default: 128]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_prompt_chunk_while_decoding: Option<u32>,
    /// Do not reuse what was computed for prompts that begin the same
    #[arg(long, hide_short_help = true)]
    no_prefix_cache: bool,
    /// How calls of tools are read: auto (as the chat template says), hermes, deepseek, llama3 or json [default: auto]
    #[arg(long, value_name = "FORM", hide_short_help = true)]
    tool_parser: Option<ToolParser>,
}

impl AddressFlags {
    /// These flags over `settings`.
    pub fn fill(self, settings: Settings) -> Settings {
        Settings { host: self.host, port: self.port, ..settings }
    }
}

impl StoreFlags {
    /// These flags over `settings`.
    pub fn fill(self, settings: Settings) -> Settings {
        Settings {
            models_dir: self.models_dir,
            offline: self.offline.then_some(true),
            ollama_registry: self.ollama_registry,
            ..settings
        }
    }
}

impl EngineFlags {
    /// These flags over `settings`.
    pub fn fill(self, settings: Settings) -> Settings {
        Settings {
            device: self.device,
            threads: self.threads,
            context: self.context,
            kv_cache: self.kv_cache,
            kv_cache_dtype: self.kv_cache_dtype,
            quantize: self.quantize,
            gpu_memory_limit: self.gpu_memory_limit,
            gpu_layers: self.layers.wish(),
            max_sequences: self.max_sequences,
            max_waiting: self.max_waiting,
            max_step_tokens: self.max_step_tokens,
            max_prompt_chunk_while_decoding: self.max_prompt_chunk_while_decoding,
            prefix_cache: self.no_prefix_cache.then_some(false),
            tool_parser: self.tool_parser,
            ..settings
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KvDType;
    use clap::Parser;

    #[derive(Parser)]
    struct All {
        #[command(flatten)]
        address: AddressFlags,
        #[command(flatten)]
        store: StoreFlags,
        #[command(flatten)]
        engine: EngineFlags,
    }

    fn settings(flags: &str) -> Settings {
        let words = std::iter::once("test").chain(flags.split_whitespace());
        let all = All::try_parse_from(words).expect(flags);
        all.engine.fill(all.store.fill(all.address.fill(Settings::default())))
    }

    #[test]
    fn no_flags_say_nothing() {
        assert_eq!(settings(""), Settings::default());
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let flags = "--host 0.0.0.0:1 --port 2 --models-dir /m --offline --ollama-registry https://r.example \
                     --device cpu --threads 3 --context 4096 --kv-cache 2GiB --kv-cache-dtype fp8 --quantize q6_k \
                     --gpu-memory-limit 3GiB --gpu-layers 20 \
                     --max-sequences 5 --max-waiting 6 --max-step-tokens 700 \
                     --max-prompt-chunk-while-decoding 8 --no-prefix-cache --tool-parser llama3";
        let expected = Settings {
            host: "0.0.0.0:1".parse().ok(),
            port: Some(2),
            models_dir: Some("/m".into()),
            offline: Some(true),
            ollama_registry: Some("https://r.example".into()),
            device: Some(DeviceWish::Cpu),
            threads: NonZeroUsize::new(3),
            context: Some(4096),
            kv_cache: Some(ByteSize(2 << 30)),
            kv_cache_dtype: Some(KvDTypeWish(Some(KvDType::Fp8))),
            quantize: Some(WeightFormat::Q6K),
            gpu_memory_limit: Some(ByteSize(3 << 30)),
            gpu_layers: Some(GpuLayers::Count(20)),
            max_sequences: Some(5),
            max_waiting: Some(6),
            max_step_tokens: Some(700),
            max_prompt_chunk_while_decoding: Some(8),
            prefix_cache: Some(false),
            tool_parser: Some(ToolParser::Llama3),
            ..Settings::default()
        };
        assert_eq!(settings(flags), expected);
        assert_eq!(settings("--no-offload").gpu_layers, Some(GpuLayers::All));
    }
}
