//! What is loaded, where it runs, and how much fits: what start-up prints and `/health` tells.

use crate::device::Device;
use crate::engine::Offload;

/// What one token costs a model: from it a benchmark works out how fast the model could be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCost {
    /// Weights that are multiplied: all but an embedding table that is only looked up in.
    pub parameters: u64,
    /// Their bytes.
    pub weight_bytes: u64,
    /// Bytes that its keys and values take in the KV cache, and that each later token of its sequence reads.
    pub kv_bytes: u64,
}

/// A loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Name under which it is served.
    pub name: String,
    /// Architecture, as in `llama`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// What the weights are stored as: `Q4_1`, `BF16`, or the most common of several.
    pub format: String,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Prompt and answer together, in tokens.
    pub context_length: u32,
    /// Values of a hidden state, and so of an embedding.
    pub embedding_length: usize,
    /// Where it runs, as in `CPU, 2 threads, AVX2`.
    pub device: String,
    /// The same for programs; weights and KV cache are in this device's memory.
    pub runs_on: Device,
    /// Why it runs there.
    pub device_reason: String,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// What the KV cache stores its numbers as: `bf16`, `f32`, `int8` ...
    pub kv_dtype: String,
    /// Bytes that weights, KV cache and all else were planned to take.
    pub planned_bytes: u64,
    /// On a GPU, the bytes that they took once the model was ready; nothing grows after that.
    pub used_bytes: Option<u64>,
    /// Where a GPU has no room for all layers, how they are divided: what the others take is in main memory, and `kv_bytes`,
    /// `planned_bytes` and `used_bytes` are the GPU's.
    pub offload: Option<Offload>,
    /// How many requests of `context_length` tokens the KV cache holds at once; at least 1.
    pub full_contexts: u32,
    /// Tokens the KV cache holds in all.
    pub kv_tokens: u64,
    /// What one token costs.
    pub token_cost: TokenCost,
    /// When it was loaded, in seconds since 1970.
    pub loaded_at_unix_s: u64,
}

impl ModelInfo {
    /// Whether it runs on a GPU.
    pub fn is_on_gpu(&self) -> bool {
        self.runs_on != Device::Cpu
    }
}
