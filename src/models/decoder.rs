//! The one decoder: what a `DecoderSpec` says, over a set of weights.
//!
//! Knows no family by name and no scheduling: a batch of packed rows goes in, logits of chosen tokens come out.

use candle_core::Result;

use crate::layers::{AttentionBuffers, GatedMlp, HeadNorms, Linear, RmsNorm, SelfAttention};
use crate::ops::{self, Compute, HeadShape, KvCache, Rope, RopeTable, RowIndices, StepInputs, Tensor, Weight};
use crate::weights::{LoadError, WeightName, Weights};

use super::spec::DecoderSpec;
use super::workspace::Workspace;

/// Why a decoder cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// A tensor is missing or has another shape.
    #[error(transparent)]
    Files(#[from] LoadError),
    /// The rotary table is not valid.
    #[error("the rotary table cannot be built: {0}")]
    Rope(#[from] crate::ops::CpuError),
    /// A tensor could not be set up.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

struct Layer {
    attention_norm: RmsNorm,
    attention: SelfAttention,
    ffn_norm: RmsNorm,
    mlp: GatedMlp,
}

/// A decoder-only transformer, ready to run.
pub(crate) struct Decoder {
    spec: DecoderSpec,
    embedding: Weight,
    layers: Vec<Layer>,
    output_norm: RmsNorm,
    output: Linear,
    rope: Rope,
}

impl Decoder {
    /// Brings the weights that `spec` asks for to where `compute` computes. `context` is how many positions the rotary
    /// table holds.
    ///
    /// # Errors
    /// [`DecoderError`]: a tensor is missing or has another shape, or the device has no room.
    pub(crate) fn load(
        compute: &Compute,
        spec: DecoderSpec,
        weights: &Weights,
        context: u32,
    ) -> std::result::Result<Self, DecoderError> {
        let loader = Loader { compute, spec: &spec, weights };
        let embedding = loader.weight(&[(WeightName::TokenEmbedding, spec.vocab)], spec.hidden)?;
        let output = if spec.tied_embeddings {
            embedding.clone()
        } else {
            loader.weight(&[(WeightName::Output, spec.vocab)], spec.hidden)?
        };
        let layers =
            (0..spec.layers as u32).map(|layer| loader.layer(layer)).collect::<std::result::Result<Vec<_>, _>>()?;
        let output_norm = loader.norm(WeightName::OutputNorm, spec.hidden)?;
        let angles = super::rope::table(&spec.rope, context as usize);
        let rope = RopeTable::new(spec.rope.layout, spec.rope.rotary_dim, angles.cos, angles.sin)?;
        let rope = Rope::load(compute, rope)?;
        Ok(Self { layers, output_norm, output: Linear::new(output, None), rope, embedding, spec })
    }

    /// What it is.
    pub(crate) fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Runs a step's tokens through all layers; their keys and values go to `kv`. What [`Self::logits`] needs stays in
    /// `workspace`.
    ///
    /// # Errors
    /// If shapes do not fit, or there are more tokens than the workspace holds.
    pub(crate) fn forward(
        &self,
        compute: &Compute,
        inputs: StepInputs<'_>,
        kv: &KvCache,
        workspace: &Workspace,
    ) -> Result<()> {
        let buffers = workspace.tokens(inputs.tokens())?;
        ops::embed(compute, &self.embedding, inputs, &buffers.residual)?;
        let attention_buffers = AttentionBuffers { qkv: &buffers.qkv, heads: &buffers.heads, out: &buffers.update };
        for (index, (layer, kv)) in self.layers.iter().zip(kv.layers()).enumerate() {
            let (residual, update, normed) = (&buffers.residual, &buffers.update, &buffers.normed);
            if index == 0 {
                layer.attention_norm.forward(compute, residual, normed)?;
            } else {
                // Adds what the layer before has left in `update`.
                layer.attention_norm.add_forward(compute, residual, update, normed)?;
            }
            layer.attention.forward(compute, normed, inputs, &self.rope, kv, &attention_buffers)?;
            layer.ffn_norm.add_forward(compute, residual, update, normed)?;
            layer.mlp.forward(compute, normed, &buffers.gate_up, &buffers.product, update)?;
        }
        Ok(())
    }

    /// Logits of some of the last forward's tokens, by index, into a tensor `[indices, vocab]` of the workspace.
    ///
    /// # Errors
    /// If there are more indices than the workspace has rows for, or one is outside the step.
    pub(crate) fn logits(&self, compute: &Compute, indices: RowIndices<'_>, workspace: &Workspace) -> Result<Tensor> {
        let rows = workspace.rows(indices.count())?;
        let (residual, update) = (workspace.residual(), workspace.update());
        self.output_norm.add_forward_rows(compute, residual, update, indices, &rows.normed)?;
        self.output.forward(compute, &rows.normed, &rows.logits)?;
        Ok(rows.logits)
    }
}

/// A product that each step computes: `y = x w^T`, with any of some weights of one shape.
#[cfg(feature = "cuda")]
pub(crate) struct StepProduct<'a> {
    /// `[rows, in]`.
    pub(crate) x: Tensor,
    /// `[out, in]` each, of several layers where there are.
    pub(crate) weights: Vec<&'a Weight>,
    /// `[rows, out]`.
    pub(crate) y: Tensor,
}

#[cfg(feature = "cuda")]
impl Decoder {
    /// The products of a step of `rows` tokens, whose logits are all wanted, each shape once.
    ///
    /// # Errors
    /// If there are more rows than the workspace holds.
    pub(crate) fn products(&self, rows: usize, workspace: &Workspace) -> Result<Vec<StepProduct<'_>>> {
        let (tokens, logits) = (workspace.tokens(rows)?, workspace.rows(rows)?);
        let of =
            |pick: fn(&Layer) -> &Linear| self.layers.iter().take(TIMED_LAYERS).map(|l| pick(l).weight()).collect();
        let product = |x: &Tensor, weights, y: &Tensor| StepProduct { x: x.clone(), weights, y: y.clone() };
        Ok(vec![
            product(&tokens.normed, of(|layer| &layer.attention.qkv), &tokens.qkv),
            product(&tokens.heads, of(|layer| &layer.attention.output), &tokens.update),
            product(&tokens.normed, of(|layer| layer.mlp.linears()[0]), &tokens.gate_up),
            product(&tokens.product, of(|layer| layer.mlp.linears()[1]), &tokens.update),
            product(&logits.normed, vec![self.output.weight()], &logits.logits),
        ])
    }
}

/// Layers whose weights are taken in turn where products are timed: together more than a cache holds.
#[cfg(feature = "cuda")]
const TIMED_LAYERS: usize = 12;

/// Reads one decoder's tensors by name.
struct Loader<'a> {
    compute: &'a Compute,
    spec: &'a DecoderSpec,
    weights: &'a Weights,
}

impl Loader<'_> {
    fn layer(&self, layer: u32) -> std::result::Result<Layer, DecoderError> {
        Ok(Layer {
            attention_norm: self.norm(WeightName::AttentionNorm(layer), self.spec.hidden)?,
            attention: self.attention(layer)?,
            ffn_norm: self.norm(WeightName::FfnNorm(layer), self.spec.hidden)?,
            mlp: self.mlp(layer)?,
        })
    }

    fn attention(&self, layer: u32) -> std::result::Result<SelfAttention, DecoderError> {
        let spec = self.spec;
        let (q, kv) = (spec.q_heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let head_norms = if spec.qk_norm {
            Some(HeadNorms {
                q: self.vector(WeightName::QNorm(layer), spec.head_dim)?,
                k: self.vector(WeightName::KNorm(layer), spec.head_dim)?,
                eps: spec.norm_eps,
            })
        } else {
            None
        };
        let biases = [(WeightName::QBias(layer), q), (WeightName::KBias(layer), kv), (WeightName::VBias(layer), kv)];
        let qkv_bias = if spec.qkv_bias { Some(self.bias(&biases)?) } else { None };
        Ok(SelfAttention {
            qkv: self.linear(
                &[(WeightName::Q(layer), q), (WeightName::K(layer), kv), (WeightName::V(layer), kv)],
                spec.hidden,
                None,
            )?,
            qkv_bias,
            output: self.linear(
                &[(WeightName::O(layer), spec.hidden)],
                q,
                spec.o_bias.then_some(&[WeightName::OBias(layer)]),
            )?,
            head_norms,
            heads: HeadShape { q_heads: spec.q_heads, kv_heads: spec.kv_heads, head_dim: spec.head_dim },
            scale: spec.attention_scale,
            sliding_window: spec.sliding_window.get(layer as usize).copied().flatten(),
        })
    }

    fn mlp(&self, layer: u32) -> std::result::Result<GatedMlp, DecoderError> {
        let spec = self.spec;
        let gate_up = self.linear(
            &[(WeightName::Gate(layer), spec.ffn), (WeightName::Up(layer), spec.ffn)],
            spec.hidden,
            spec.mlp_bias.then_some(&[WeightName::GateBias(layer), WeightName::UpBias(layer)]),
        )?;
        let down = self.linear(
            &[(WeightName::Down(layer), spec.hidden)],
            spec.ffn,
            spec.mlp_bias.then_some(&[WeightName::DownBias(layer)]),
        )?;
        Ok(GatedMlp::new(gate_up, down))
    }

    /// The matrices `[rows, columns]` as one layer, with their biases as one where there are any.
    fn linear<const N: usize>(
        &self,
        parts: &[(WeightName, usize); N],
        columns: usize,
        biases: Option<&[WeightName; N]>,
    ) -> std::result::Result<Linear, DecoderError> {
        let bias = match biases {
            None => None,
            Some(names) => {
                let lengths = parts.iter().map(|(_, rows)| *rows);
                Some(self.bias(&names.iter().copied().zip(lengths).collect::<Vec<_>>())?)
            }
        };
        Ok(Linear::new(self.weight(parts, columns)?, bias))
    }

    /// The matrices `[rows, columns]`, stacked.
    fn weight(&self, parts: &[(WeightName, usize)], columns: usize) -> std::result::Result<Weight, DecoderError> {
        let matrices = parts
            .iter()
            .map(|(name, rows)| self.weights.matrix(*name, *rows, columns))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Weight::load(self.compute, matrices)?)
    }

    /// The vectors, one after the other.
    fn bias(&self, parts: &[(WeightName, usize)]) -> std::result::Result<Tensor, DecoderError> {
        let mut bias = Vec::new();
        for (name, length) in parts {
            bias.extend(self.weights.vector(*name, *length)?);
        }
        Ok(Tensor::vector(self.compute, bias)?)
    }

    fn norm(&self, name: WeightName, length: usize) -> std::result::Result<RmsNorm, DecoderError> {
        Ok(RmsNorm::new(self.vector(name, length)?, self.spec.norm_eps))
    }

    fn vector(&self, name: WeightName, length: usize) -> std::result::Result<Tensor, DecoderError> {
        Ok(Tensor::vector(self.compute, self.weights.vector(name, length)?)?)
    }
}
