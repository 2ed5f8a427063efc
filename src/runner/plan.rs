//! The memory plan: what weights, workspace and KV cache take, and so how many tokens fit.
//!
//! Pure functions over plain numbers; they read no hardware and allocate nothing.

mod gpu;
mod offload;
mod preview;
#[cfg(test)]
mod tests;

use crate::config::{ByteSize, EngineConfig, KvDType, StepSizes};
use crate::kv_cache::blocks_for;
use crate::models::{DecoderSpec, StepPlace, Workspace};
use crate::ops::KvLayout;

#[cfg(feature = "cuda")]
pub(crate) use gpu::{GpuMemory, GpuWeights, SPARE_TILES, StepLimits, decode_sizes, mixed_sizes, usable_bytes};
#[cfg(all(test, feature = "cuda"))]
pub(crate) use gpu::{kernel_bytes, kv_dtypes};
pub use offload::Offload;
#[cfg(feature = "cuda")]
pub(crate) use offload::{LayerPlan, PartWeights, plan_layers};
pub(crate) use preview::preview;
pub use preview::{MemoryToPlan, PlanPreview};

/// Share of the free memory that a plan may use: other programs want some as well.
pub(crate) const USABLE_SHARE: f64 = 0.92;

/// Full contexts beyond which a KV cache planned by default does not grow in main memory.
const MAX_FULL_CONTEXTS: u64 = 16;

/// Rows of logits computed at once. Each costs 4 bytes x vocabulary; beyond 64 the matrix product gains nothing.
pub(crate) const LOGIT_ROWS: usize = 64;

/// What a place takes for a model besides what the model itself says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placement {
    /// As in "there is no KV cache of fp8 on the CPU".
    pub(crate) name: &'static str,
    /// What the size of a step's buffers depends on.
    pub(crate) step: StepPlace,
    /// Types of the KV cache that there are kernels for, the one that `auto` means first.
    pub(crate) kv_dtypes: &'static [KvDType],
    /// Rows of logits computed at once.
    pub(crate) logit_rows: usize,
    /// Bytes of what kernels keep between each other, libraries counted.
    pub(crate) kernel_bytes: u64,
    /// Bytes of recorded steps.
    pub(crate) graph_bytes: u64,
    /// Share of what all that leaves over that the KV cache takes unless told otherwise.
    pub(crate) kv_share: f64,
    /// Full contexts beyond which a KV cache planned by default does not grow.
    pub(crate) max_full_contexts: u64,
}

impl Placement {
    /// In main memory, which other programs want as well.
    pub(crate) const CPU: Self = Self {
        name: "on the CPU",
        step: StepPlace::Cpu,
        kv_dtypes: &[KvDType::F32, KvDType::F16, KvDType::Bf16, KvDType::Int8],
        logit_rows: LOGIT_ROWS,
        kernel_bytes: 0,
        graph_bytes: 0,
        kv_share: 0.5,
        max_full_contexts: MAX_FULL_CONTEXTS,
    };

    /// What the KV cache is of, if `config` does not say otherwise.
    ///
    /// # Errors
    /// [`PlanError::KvDType`].
    fn kv_dtype(&self, config: &EngineConfig) -> Result<KvDType, PlanError> {
        let known = self.kv_dtypes;
        match config.kv_dtype {
            None => Ok(known[0]),
            Some(asked) if known.contains(&asked) => Ok(asked),
            Some(asked) => Err(PlanError::KvDType { asked, place: self.name, known }),
        }
    }
}

/// What a model will take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// Bytes of the weights, as they are held.
    pub(crate) weight_bytes: u64,
    /// Bytes of the step's buffers.
    pub(crate) workspace_bytes: u64,
    /// Bytes of what kernels keep between each other, libraries counted.
    pub(crate) kernel_bytes: u64,
    /// Bytes of recorded steps.
    pub(crate) graph_bytes: u64,
    /// What the KV cache stores its numbers as.
    pub(crate) kv_dtype: KvDType,
    /// Blocks of the KV cache.
    pub(crate) blocks: u32,
    /// Bytes of one block, all layers.
    pub(crate) block_bytes: u64,
    /// Prompt and answer together, in tokens.
    pub(crate) context_length: u32,
}

/// Why a model does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Weights alone take more than there is.
    #[error(
        "the model needs {} (weights {}, working memory {}, the least KV cache {}) and {} can be had; use a smaller model \
         or format", ByteSize(*needed_bytes), ByteSize(*weight_bytes), ByteSize(*workspace_bytes),
         ByteSize(*least_kv_bytes), ByteSize(*free_bytes)
    )]
    DoesNotFit {
        /// All together.
        needed_bytes: u64,
        /// Bytes of the weights.
        weight_bytes: u64,
        /// Bytes of the step's buffers and of what else is needed.
        workspace_bytes: u64,
        /// Bytes of the smallest KV cache.
        least_kv_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The KV cache that was asked for is too large.
    #[error(
        "a KV cache of {} does not fit: there is room for {}; ask for less (--kv-cache), or for none in particular",
        ByteSize(*asked_bytes), ByteSize(*fit_bytes)
    )]
    KvCacheTooLarge {
        /// Bytes that were asked for.
        asked_bytes: u64,
        /// Bytes that there are beside weights and steps.
        fit_bytes: u64,
    },
    /// The context that was asked for is too long.
    #[error(
        "a context of {asked} tokens does not fit: the KV cache holds {fits}; ask for less context or more KV cache"
    )]
    ContextTooLong {
        /// What was asked for, in tokens.
        asked: u32,
        /// What fits, in tokens.
        fits: u64,
    },
    /// All layers were to be on the GPU.
    #[error(
        "{error}; {fit} of {layers} layers would fit the GPU, the others on the CPU: --gpu-layers {fit} or --gpu-layers auto"
    )]
    Layers {
        /// Why not all of them fit.
        error: Box<PlanError>,
        /// How many do.
        fit: usize,
        /// How many there are.
        layers: usize,
    },
    /// The KV cache cannot be of this type here.
    #[error(
        "there is no KV cache of {asked} {place}; what can be had is {}",
        known.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
    )]
    KvDType {
        /// What was asked for.
        asked: KvDType,
        /// Where the model runs.
        place: &'static str,
        /// The types that can be had there.
        known: &'static [KvDType],
    },
    /// The model was not made for so long a context.
    #[error("a context of {asked} tokens is more than the {trained} that the model was made for")]
    ContextBeyondModel {
        /// What was asked for, in tokens.
        asked: u32,
        /// What the model was made for, in tokens.
        trained: u32,
    },
}

impl PlanError {
    /// Whether more memory, or fewer layers in it, would do.
    pub(crate) fn is_for_want_of_memory(&self) -> bool {
        match self {
            Self::DoesNotFit { .. }
            | Self::KvCacheTooLarge { .. }
            | Self::ContextTooLong { .. }
            | Self::Layers { .. } => true,
            Self::KvDType { .. } | Self::ContextBeyondModel { .. } => false,
        }
    }
}

impl MemoryPlan {
    /// Bytes of the KV cache.
    pub(crate) fn kv_bytes(&self) -> u64 {
        u64::from(self.blocks) * self.block_bytes
    }

    /// Bytes of the KV cache that one token takes.
    pub(crate) fn kv_token_bytes(&self) -> u64 {
        self.block_bytes / KvLayout::BLOCK_SIZE as u64
    }

    /// Tokens that the KV cache holds.
    pub(crate) fn kv_tokens(&self) -> u64 {
        u64::from(self.blocks) * KvLayout::BLOCK_SIZE as u64
    }

    /// Blocks of the KV cache that one request of the full context takes.
    pub(crate) fn least_blocks(&self) -> u32 {
        blocks_for(self.context_length, KvLayout::BLOCK_SIZE as u32)
    }

    /// Requests of the full context that fit at once.
    pub(crate) fn full_contexts(&self) -> u32 {
        u32::try_from(self.kv_tokens() / u64::from(self.context_length)).unwrap_or(u32::MAX)
    }

    /// Bytes of everything.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.workspace_bytes + self.kernel_bytes + self.graph_bytes + self.kv_bytes()
    }
}

/// Plans a model of `spec` with `weight_bytes` of weights into `free_bytes`.
///
/// # Errors
/// [`PlanError`]: it does not fit, or not with the context that `config` asks for.
pub(crate) fn plan(
    spec: &DecoderSpec,
    weight_bytes: u64,
    config: &EngineConfig,
    sizes: StepSizes,
    placement: Placement,
    free_bytes: u64,
) -> Result<MemoryPlan, PlanError> {
    let context = context_wanted(spec, config)?;
    let kv_dtype = placement.kv_dtype(config)?;
    let block_bytes = block_bytes(spec, kv_dtype);
    let workspace_bytes = Workspace::bytes(spec, sizes.max_step_tokens as usize, placement.logit_rows, placement.step);
    let Placement { kernel_bytes, graph_bytes, kv_share, max_full_contexts, .. } = placement;
    let before_kv = weight_bytes.saturating_add(workspace_bytes + kernel_bytes + graph_bytes);
    let usable = (free_bytes as f64 * USABLE_SHARE) as u64;
    let left = usable.saturating_sub(before_kv);
    let block_size = KvLayout::BLOCK_SIZE as u64;
    let full = u64::from(context).div_ceil(block_size);
    let budget = match config.kv_cache_bytes.or(config.kv_cache_most_bytes.map(|most| most.min(left))) {
        Some(bytes) => bytes / block_bytes,
        // One whole context comes before the share for others.
        None => (((left as f64 * kv_share) as u64) / block_bytes)
            .min(full.saturating_mul(max_full_contexts))
            .max(full.min(left / block_bytes)),
    };
    let least = u64::from(context.min(config.least_context)).div_ceil(block_size).max(1);
    if budget == 0 || left / block_bytes < least {
        return Err(PlanError::DoesNotFit {
            needed_bytes: before_kv + least * block_bytes,
            weight_bytes,
            workspace_bytes: workspace_bytes + kernel_bytes + graph_bytes,
            least_kv_bytes: least * block_bytes,
            free_bytes: usable,
        });
    }
    if let Some(asked_bytes) = config.kv_cache_bytes.filter(|asked| *asked > left) {
        return Err(PlanError::KvCacheTooLarge { asked_bytes, fit_bytes: left });
    }
    let fits = budget * block_size;
    if let Some(asked) = config.context_length.filter(|asked| u64::from(*asked) > fits) {
        return Err(PlanError::ContextTooLong { asked, fits });
    }
    Ok(MemoryPlan {
        weight_bytes,
        workspace_bytes,
        kernel_bytes,
        graph_bytes,
        kv_dtype,
        blocks: u32::try_from(budget).unwrap_or(u32::MAX),
        block_bytes,
        context_length: u32::try_from(fits.min(u64::from(context))).unwrap_or(context),
    })
}

/// Blocks of `block_bytes` that a KV cache may have besides those that it has, where `free_bytes` are free.
pub(crate) fn room(free_bytes: u64, block_bytes: usize) -> usize {
    (free_bytes as f64 * USABLE_SHARE) as usize / block_bytes
}

/// Bytes of one block of the KV cache, all layers of `spec`.
fn block_bytes(spec: &DecoderSpec, dtype: KvDType) -> u64 {
    let layout = spec.kv_layout(dtype);
    (layout.planes.count() * spec.layers * layout.block_bytes()) as u64
}

/// The context that is asked for, or the model's own.
fn context_wanted(spec: &DecoderSpec, config: &EngineConfig) -> Result<u32, PlanError> {
    match config.context_length {
        Some(asked) if asked > spec.max_context => {
            Err(PlanError::ContextBeyondModel { asked, trained: spec.max_context })
        }
        asked => Ok(asked.unwrap_or(spec.max_context)),
    }
}
