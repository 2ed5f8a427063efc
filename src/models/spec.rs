//! What one decoder looks like, in numbers and flags: everything that its forward pass depends on besides the weights.
//!
//! Knows no file format; the builders in this folder fill it in, and nothing enters it unchecked.

use std::path::Path;

use super::rope::RopeSpec;
use crate::config::KvDType;
use crate::ops::KvLayout;
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
    /// Multiplies q·k: 1 / sqrt(head_dim).
    pub attention_scale: f32,
}

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
        let [hidden, ffn, vocab, head] = [self.hidden, self.ffn, self.vocab, self.head_dim].map(|size| size as u64);
        let (q, kv) = (self.q_heads as u64 * head, self.kv_heads as u64 * head);
        let bias = |present: bool, size: u64| if present { size } else { 0 };
        let biases =
            bias(self.qkv_bias, q + 2 * kv) + bias(self.o_bias, hidden) + bias(self.mlp_bias, 2 * ffn + hidden);
        let norms = 2 * hidden + bias(self.qk_norm, 2 * head);
        let layer = hidden * (2 * q + 2 * kv) + 3 * hidden * ffn + norms + biases;
        vocab * hidden * if self.tied_embeddings { 1 } else { 2 } + self.layers as u64 * layer + hidden
    }

    /// How a layer's keys and values lie in a cache of `dtype`.
    pub(crate) fn kv_layout(&self, dtype: KvDType) -> KvLayout {
        KvLayout { kv_heads: self.kv_heads, head_dim: self.head_dim, dtype }
    }

    /// Its matrices, as they are stacked: names and rows of each stack, and its columns.
    pub(crate) fn stacks(&self) -> Vec<Stack> {
        let (q, kv) = (self.q_heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, ffn) = (self.hidden, self.ffn);
        let mut stacks = vec![Stack { parts: vec![(WeightName::TokenEmbedding, self.vocab)], columns: hidden }];
        if !self.tied_embeddings {
            stacks.push(Stack { parts: vec![(WeightName::Output, self.vocab)], columns: hidden });
        }
        for layer in 0..self.layers as u32 {
            let qkv = vec![(WeightName::Q(layer), q), (WeightName::K(layer), kv), (WeightName::V(layer), kv)];
            stacks.push(Stack { parts: qkv, columns: hidden });
            stacks.push(Stack { parts: vec![(WeightName::O(layer), hidden)], columns: q });
            let gate_up = vec![(WeightName::Gate(layer), ffn), (WeightName::Up(layer), ffn)];
            stacks.push(Stack { parts: gate_up, columns: hidden });
            stacks.push(Stack { parts: vec![(WeightName::Down(layer), hidden)], columns: ffn });
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

/// 1 / sqrt(head_dim), rounded once as transformers does.
pub(super) fn attention_scale(head_dim: usize) -> f32 {
    (head_dim as f64).powf(-0.5) as f32
}
