//! What one decoder looks like, in numbers and flags: everything that its forward pass depends on besides the weights.
//!
//! Knows no file format; the builders in this folder fill it in, and nothing enters it unchecked.

use std::ops::Range;
use std::path::Path;

use super::rope::RopeSpec;
use crate::config::KvDType;
use crate::ops::KvLayout;
use crate::ops::{KvPlanes, LatentShape, RouteGroups, RouteParams};
use crate::weights::{LoadError, WeightName};

/// Widest hidden state; the widest public models have 16,384.
pub const MAX_HIDDEN: usize = 65_536;
/// Widest feed-forward block.
pub const MAX_FFN: usize = 1 << 20;
/// Most layers; the deepest public models have 126.
pub const MAX_LAYERS: usize = 1024;
/// Most heads.
pub const MAX_HEADS: usize = 1024;
/// Widest head.
pub const MAX_HEAD_DIM: usize = 1024;
/// Largest vocabulary.
pub const MAX_VOCAB: usize = 1 << 22;
/// Longest context, tokens.
pub const MAX_CONTEXT: u32 = 1 << 24;

/// A decoder of the Llama kind: norm, attention, norm, gated feed-forward block, with residuals.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// The architecture as its file names it.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads of a layer; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Rows of the embedding: token ids are below it.
    pub vocab: usize,
    /// Longest sequence that the model is made for, tokens; an engine may be configured for less.
    pub max_context: u32,
    /// Added to the mean square in each norm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeSpec,
    /// Whether each head of q and k is normed before the rotation.
    pub qk_norm: bool,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Whether the projection after attention has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether the output layer is the embedding itself.
    pub tied_embeddings: bool,
    /// For each layer, how many positions a token sees, itself counted; `None` is all before it.
    pub sliding_window: Vec<Option<u32>>,
    /// Multiplies q·k: 1 / sqrt(head_dim), times what YaRN may ask for.
    pub attention_scale: f32,
    /// Where feed-forward blocks are mixtures of experts.
    pub experts: Option<ExpertsSpec>,
    /// Where keys and values are made of a latent that all heads share; then `head_dim` is that of q and `kv_heads` is
    /// `q_heads`.
    pub latent: Option<LatentSpec>,
}

/// Feed-forward blocks that are mixtures of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// Whether a layer's block is one; the others have one dense block.
    pub layers: Vec<bool>,
    /// Experts of a layer.
    pub count: usize,
    /// Width of an expert.
    pub ffn: usize,
    /// Width of the block that every token goes through besides.
    pub shared_ffn: Option<usize>,
    /// Whether that block's output is weighed by a gate of its own.
    pub shared_gate: bool,
    /// Whether the choice is corrected by a bias for each expert.
    pub correction: bool,
    /// How experts are chosen.
    pub routing: RouteParams,
}

/// Attention whose keys and values are made of a latent.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Heads and widths.
    pub shape: LatentShape,
    /// Width of the latent that q is made of; `None`: it is made of the layer's input.
    pub query_rank: Option<usize>,
}

/// Most experts of a layer.
pub const MAX_EXPERTS: usize = 4096;

/// Matrices of the same columns, one above the other.
pub(crate) struct Stack {
    /// Names and rows.
    pub(crate) parts: Vec<(WeightName, usize)>,
    /// Columns of all of them.
    pub(crate) columns: usize,
}

impl DecoderSpec {
    /// Elements of all its weights.
    pub(crate) fn parameters(&self) -> u64 {
        let vocabularies = if self.tied_embeddings { 1 } else { 2 };
        vocabularies * self.vocabulary_parameters() + self.layer_parameters(0..self.layers) + self.hidden as u64
    }

    /// Elements of the embedding, and of the output layer.
    pub(crate) fn vocabulary_parameters(&self) -> u64 {
        self.vocab as u64 * self.hidden as u64
    }

    /// Elements of some layers' weights.
    pub(crate) fn layer_parameters(&self, layers: Range<usize>) -> u64 {
        let [hidden, ffn, head] = [self.hidden, self.ffn, self.head_dim].map(|size| size as u64);
        let (q, kv) = (self.q_heads as u64 * head, self.kv_heads as u64 * head);
        let bias = |present: bool, size: u64| if present { size } else { 0 };
        let biases =
            bias(self.qkv_bias, q + 2 * kv) + bias(self.o_bias, hidden) + bias(self.mlp_bias, 2 * ffn + hidden);
        let norms = 2 * hidden + bias(self.qk_norm, 2 * head);
        let attention = match &self.latent {
            None => hidden * (2 * q + 2 * kv),
            Some(latent) => latent.parameters(hidden),
        };
        let block = |layer: usize| match self.experts_of(layer as u32) {
            Some(experts) => experts.parameters(hidden, experts.count),
            None => 3 * hidden * ffn,
        };
        layers.map(|layer| attention + norms + biases + block(layer)).sum()
    }

    /// Elements of some layers' weights that are not multiplied with a token: those of experts that it does not go to.
    pub(crate) fn idle_parameters(&self, layers: Range<usize>) -> u64 {
        let idle = |experts: &ExpertsSpec| {
            (experts.count - experts.routing.top_k) as u64 * 3 * self.hidden as u64 * experts.ffn as u64
        };
        layers.filter_map(|layer| self.experts_of(layer as u32)).map(idle).sum()
    }

    /// Whether the block of `layer` is a mixture of experts.
    pub(crate) fn experts_of(&self, layer: u32) -> Option<&ExpertsSpec> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer as usize) == Some(&true))
    }

    /// Width of the widest dense block: gate and up together are twice as wide.
    pub(crate) fn widest_ffn(&self) -> usize {
        let Some(experts) = &self.experts else { return self.ffn };
        let dense = if experts.layers.iter().all(|is| *is) { 0 } else { self.ffn };
        dense.max(experts.shared_ffn.unwrap_or(0)).max(experts.ffn)
    }

    /// How a layer's keys and values lie in a cache of `dtype`.
    pub(crate) fn kv_layout(&self, dtype: KvDType) -> KvLayout {
        match &self.latent {
            Some(latent) => KvLayout { kv_heads: 1, head_dim: latent.shape.width(), dtype, planes: KvPlanes::Latent },
            None => {
                KvLayout { kv_heads: self.kv_heads, head_dim: self.head_dim, dtype, planes: KvPlanes::KeysAndValues }
            }
        }
    }

    /// Its matrices, as they are stacked: names and rows of each stack, and its columns. Without those of experts, and those
    /// that a GPU has dense whatever they are stored as.
    pub(crate) fn stacks(&self) -> Vec<Stack> {
        let (q, kv) = (self.q_heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, ffn) = (self.hidden, self.ffn);
        let mut stacks = vec![Stack { parts: vec![(WeightName::TokenEmbedding, self.vocab)], columns: hidden }];
        if !self.tied_embeddings {
            stacks.push(Stack { parts: vec![(WeightName::Output, self.vocab)], columns: hidden });
        }
        let mut stack = |parts: &[(WeightName, usize)], columns: usize| {
            stacks.push(Stack { parts: parts.to_vec(), columns });
        };
        for layer in 0..self.layers as u32 {
            use WeightName::{Down, Gate, K, LatentDown, O, Q, QueryDown, QueryUp, Router, Up, V};
            use WeightName::{SharedDown, SharedGate, SharedUp};
            match &self.latent {
                None => {
                    stack(&[(Q(layer), q), (K(layer), kv), (V(layer), kv)], hidden);
                    stack(&[(O(layer), hidden)], q);
                }
                Some(LatentSpec { shape, query_rank }) => {
                    let q = shape.heads * shape.query();
                    match *query_rank {
                        None => stack(&[(Q(layer), q)], hidden),
                        Some(rank) => {
                            stack(&[(QueryDown(layer), rank)], hidden);
                            stack(&[(QueryUp(layer), q)], rank);
                        }
                    }
                    stack(&[(LatentDown(layer), shape.width())], hidden);
                    stack(&[(O(layer), hidden)], shape.heads * shape.value);
                }
            }
            let Some(experts) = self.experts_of(layer) else {
                stack(&[(Gate(layer), ffn), (Up(layer), ffn)], hidden);
                stack(&[(Down(layer), hidden)], ffn);
                continue;
            };
            stack(&[(Router(layer), experts.count)], hidden);
            if let Some(ffn) = experts.shared_ffn {
                stack(&[(SharedGate(layer), ffn), (SharedUp(layer), ffn)], hidden);
                stack(&[(SharedDown(layer), hidden)], ffn);
            }
        }
        stacks
    }

    /// What follows from the other numbers and holds for every family.
    pub(super) fn check(self, file: &Path) -> Result<Self, LoadError> {
        let refuse =
            |item: &str, expected: String, found: usize| Err(LoadError::unexpected(file, item, expected, found));
        let limits = [
            ("hidden size", self.hidden, MAX_HIDDEN),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of attention heads", self.q_heads, MAX_HEADS),
            ("number of key heads", self.kv_heads, MAX_HEADS),
            ("head size", self.head_dim, MAX_HEAD_DIM),
            ("feed-forward size", self.ffn, MAX_FFN),
            ("vocabulary size", self.vocab, MAX_VOCAB),
            ("context length", self.max_context as usize, MAX_CONTEXT as usize),
        ];
        for (item, found, most) in limits {
            if !(1..=most).contains(&found) {
                return refuse(item, format!("1 to {most}"), found);
            }
        }
        if let Some(experts) = &self.experts {
            experts.check(file)?;
        }
        if let Some(latent) = &self.latent {
            return latent.check(file).map(|()| self);
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} attention heads", self.q_heads);
            return refuse("number of key heads", expected, self.kv_heads);
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse("head size", "an even number".to_owned(), self.head_dim);
        }
        let rotary_dim = self.rope.rotary_dim;
        if !rotary_dim.is_multiple_of(2) || !(2..=self.head_dim).contains(&rotary_dim) {
            let expected = format!("an even number up to the head size {}", self.head_dim);
            return refuse("number of rotated dimensions", expected, rotary_dim);
        }
        Ok(self)
    }
}

impl ExpertsSpec {
    /// Elements of one layer's block, with `count` experts.
    fn parameters(&self, hidden: u64, count: usize) -> u64 {
        let shared = self.shared_ffn.unwrap_or(0) as u64;
        let router = hidden * self.count as u64 + if self.correction { self.count as u64 } else { 0 };
        3 * hidden * (count as u64 * self.ffn as u64 + shared) + router + if self.shared_gate { hidden } else { 0 }
    }

    fn check(&self, file: &Path) -> Result<(), LoadError> {
        let refuse =
            |item: &str, expected: String, found: usize| Err(LoadError::unexpected(file, item, expected, found));
        let RouteParams { top_k, groups, .. } = self.routing;
        if !(1..=MAX_EXPERTS).contains(&self.count) {
            return refuse("number of experts", format!("1 to {MAX_EXPERTS}"), self.count);
        }
        if !(1..=self.count).contains(&top_k) {
            return refuse("number of experts of a token", format!("1 to {}", self.count), top_k);
        }
        if !(1..=MAX_FFN).contains(&self.ffn) || !(1..=MAX_FFN).contains(&self.shared_ffn.unwrap_or(1)) {
            return refuse("width of an expert", format!("1 to {MAX_FFN}"), self.ffn);
        }
        let Some(RouteGroups { groups, top_groups, .. }) = groups else { return Ok(()) };
        if groups == 0 || !self.count.is_multiple_of(groups) {
            return refuse("number of groups of experts", format!("a divisor of {}", self.count), groups);
        }
        if !(1..=groups).contains(&top_groups) || top_groups * (self.count / groups) < top_k {
            let expected = format!("1 to {groups}, and enough for {top_k} experts");
            return refuse("number of groups of a token", expected, top_groups);
        }
        Ok(())
    }
}

impl LatentSpec {
    /// Elements of one layer's attention.
    fn parameters(&self, hidden: u64) -> u64 {
        let LatentShape { heads, rank, rope, nope, value } = self.shape;
        let [heads, rank, rope, nope, value] = [heads, rank, rope, nope, value].map(|size| size as u64);
        let q = heads * (nope + rope);
        let query = self.query_rank.map_or(hidden * q, |query_rank| query_rank as u64 * (hidden + q + 1));
        query + hidden * (rank + rope) + rank + rank * heads * (nope + value) + heads * value * hidden
    }

    fn check(&self, file: &Path) -> Result<(), LoadError> {
        let LatentShape { rank, rope, nope, value, .. } = self.shape;
        let sizes = [
            ("width of the latent", rank, 32),
            ("number of rotated dimensions", rope, 16),
            ("size of the other part of a head", nope, 1),
            ("size of a head of values", value, 1),
        ];
        for (item, found, step) in sizes {
            if !(1..=MAX_HIDDEN).contains(&found) || !found.is_multiple_of(step) {
                return Err(LoadError::unexpected(file, item, format_args!("a multiple of {step}"), found));
            }
        }
        if self.query_rank.is_some_and(|rank| !(1..=MAX_HIDDEN).contains(&rank)) {
            let expected = format!("1 to {MAX_HIDDEN}");
            return Err(LoadError::unexpected(
                file,
                "width of the latent of q",
                expected,
                self.query_rank.unwrap_or(0),
            ));
        }
        Ok(())
    }
}

/// 1 / sqrt(head_dim), rounded once as transformers does.
pub(super) fn attention_scale(head_dim: usize) -> f32 {
    (head_dim as f64).powf(-0.5) as f32
}
