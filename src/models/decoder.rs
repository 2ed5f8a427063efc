//! The one decoder: what a `DecoderSpec` says, over a set of weights.
//!
//! Knows no family by name and no scheduling: a batch of packed rows goes in, logits of chosen tokens come out.

use std::ops::Range;

use candle_core::{Result, bail};

use crate::layers::{AttentionBuffers, GatedMlp, LatentAttention, Linear, MixtureOfExperts, RmsNorm, SelfAttention};
use crate::ops::{self, Compute, KvCache, KvLayer, Rope, RopeTable, RowIndices, StepInputs, Tensor, Weight};
use crate::weights::{LoadError, WeightName, Weights};

use super::load::Loader;
use super::spec::DecoderSpec;
use super::workspace::{TokenAttention, TokenBuffers, Workspace};

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
    Compute(candle_core::Error),
}

impl From<candle_core::Error> for DecoderError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(ops::without_backtrace(error))
    }
}

pub(super) struct Layer {
    pub(super) attention_norm: RmsNorm,
    pub(super) attention: Attention,
    pub(super) ffn_norm: RmsNorm,
    pub(super) block: Block,
}

/// How a layer looks back.
#[allow(clippy::large_enum_variant)] // one a layer, in a list that does not move
pub(super) enum Attention {
    /// At keys and values of each head.
    Heads(SelfAttention),
    /// At a latent that all heads share.
    Latent(LatentAttention),
}

/// A layer's feed-forward block.
#[allow(clippy::large_enum_variant)] // as above
pub(super) enum Block {
    /// One block, of this width.
    Dense(GatedMlp, usize),
    /// Many, and one of this width that all tokens go through, 0 where there is none.
    Experts(MixtureOfExperts, usize),
}

/// What comes after the last layer.
struct Output {
    norm: RmsNorm,
    linear: Linear,
}

/// A decoder-only transformer, ready to run; or some layers of one, whose neighbours run elsewhere.
pub(crate) struct Decoder {
    spec: DecoderSpec,
    /// With the first layer.
    embedding: Option<Weight>,
    layers: Vec<Layer>,
    /// With the last layer.
    output: Option<Output>,
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
        let layers = 0..spec.layers;
        Self::load_layers(compute, spec, weights, context, layers)
    }

    /// The same of some layers: the embedding belongs to the first one, the output to the last.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_layers(
        compute: &Compute,
        spec: DecoderSpec,
        weights: &Weights,
        context: u32,
        layers: Range<usize>,
    ) -> std::result::Result<Self, DecoderError> {
        let loader = Loader { compute, spec: &spec, weights };
        let embedding = match layers.start {
            0 => Some(loader.embedding()?),
            _ => None,
        };
        let output = if layers.end == spec.layers {
            let weight = match &embedding {
                Some(embedding) if spec.tied_embeddings => embedding.clone(),
                None if spec.tied_embeddings => loader.embedding()?,
                _ => loader.weight(&[(WeightName::Output, spec.vocab)], spec.hidden)?,
            };
            let norm = loader.norm(WeightName::OutputNorm, spec.hidden)?;
            Some(Output { norm, linear: Linear::new(weight, None) })
        } else {
            None
        };
        let layers = layers.map(|layer| loader.layer(layer as u32)).collect::<std::result::Result<Vec<_>, _>>()?;
        let angles = super::rope::table(&spec.rope, context as usize);
        let rope = RopeTable::new(spec.rope.layout, spec.rope.rotary_dim, angles.cos, angles.sin)?;
        let rope = Rope::load(compute, rope)?;
        Ok(Self { layers, output, rope, embedding, spec })
    }

    /// What it is.
    pub(crate) fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// How many layers it has here, each with keys and values.
    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Runs a step's tokens through its layers; their keys and values go to `kv`. What [`Self::logits`] needs stays in
    /// `workspace`. Without the first layer it begins with the residual stream that is there; without the last one, which
    /// is for the CPU, it leaves the whole stream for the next layer there.
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
        if let Some(embedding) = &self.embedding {
            ops::embed(compute, embedding, inputs, &buffers.residual)?;
        }
        for (index, (layer, kv)) in self.layers.iter().zip(kv.layers()).enumerate() {
            let (residual, update, normed) = (&buffers.residual, &buffers.update, &buffers.normed);
            if index == 0 {
                layer.attention_norm.forward(compute, residual, normed)?;
            } else {
                // Adds what the layer before has left in `update`.
                layer.attention_norm.add_forward(compute, residual, update, normed)?;
            }
            layer.attend(compute, inputs, &self.rope, kv, &buffers)?;
            layer.ffn_norm.add_forward(compute, residual, update, normed)?;
            layer.transform(compute, &buffers)?;
        }
        if self.output.is_none() {
            ops::add(compute, &buffers.residual, &buffers.update)?;
        }
        Ok(())
    }

    /// Logits of some of the last forward's tokens, by index, into a tensor `[indices, vocab]` of the workspace.
    ///
    /// # Errors
    /// If there are more indices than the workspace has rows for, or one is outside the step.
    pub(crate) fn logits(&self, compute: &Compute, indices: RowIndices<'_>, workspace: &Workspace) -> Result<Tensor> {
        let Some(output) = &self.output else { bail!("logits of a decoder without its last layer") };
        let normed = self.hidden(compute, indices, workspace)?;
        let rows = workspace.rows(indices.count())?;
        output.linear.forward(compute, &normed, &rows.logits)?;
        Ok(rows.logits)
    }

    /// Hidden states of some of the last forward's tokens after the last norm, by index, into a tensor `[indices, hidden]`
    /// of the workspace, where the next logits go over them.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub(crate) fn hidden(&self, compute: &Compute, indices: RowIndices<'_>, workspace: &Workspace) -> Result<Tensor> {
        let Some(output) = &self.output else { bail!("hidden states of a decoder without its last layer") };
        let rows = workspace.rows(indices.count())?;
        let (residual, update) = (workspace.residual(), workspace.update());
        output.norm.add_forward_rows(compute, residual, update, indices, &rows.normed)?;
        Ok(rows.normed)
    }
}

impl Layer {
    /// Attention of what is in `normed`, to `update`.
    fn attend(
        &self,
        compute: &Compute,
        inputs: StepInputs<'_>,
        rope: &Rope,
        kv: &KvLayer,
        buffers: &TokenBuffers,
    ) -> Result<()> {
        let (x, out) = (&buffers.normed, &buffers.update);
        match (&self.attention, &buffers.attention) {
            (Attention::Heads(attention), TokenAttention::Heads { qkv, heads }) => {
                attention.forward(compute, x, inputs, rope, kv, &AttentionBuffers { qkv, heads, out })
            }
            (Attention::Latent(attention), TokenAttention::Latent(buffers)) => {
                attention.forward(compute, x, inputs, rope, kv, buffers, out)
            }
            _ => bail!("a workspace of another kind of attention"),
        }
    }

    /// The feed-forward block of what is in `normed`, to `update`.
    fn transform(&self, compute: &Compute, buffers: &TokenBuffers) -> Result<()> {
        let (x, out) = (&buffers.normed, &buffers.update);
        match (&self.block, &buffers.experts) {
            (Block::Dense(mlp, width), _) => {
                let (gate_up, product) = buffers.block(*width)?;
                mlp.forward(compute, x, &gate_up, &product, out)
            }
            (Block::Experts(mixture, shared), Some(experts)) => {
                let (gate_up, product) = buffers.block(*shared)?;
                mixture.forward(compute, x, experts, &gate_up, &product, out)
            }
            (Block::Experts(..), None) => bail!("a workspace without room for experts"),
        }
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
        let layers = || self.layers.iter().take(TIMED_LAYERS);
        let mut products = Vec::new();
        let product = |x: &Tensor, weights, y: &Tensor| StepProduct { x: x.clone(), weights, y: y.clone() };
        if let TokenAttention::Heads { qkv, heads } = &tokens.attention {
            let of = |pick: fn(&SelfAttention) -> &Linear| {
                layers().filter_map(|layer| layer.heads().map(|attention| pick(attention).weight())).collect()
            };
            products.push(product(&tokens.normed, of(|attention| &attention.qkv), qkv));
            products.push(product(heads, of(|attention| &attention.output), &tokens.update));
        }
        let dense = || layers().filter_map(Layer::dense);
        if let Some((_, width)) = dense().next() {
            let (gate_up, inner) = tokens.block(width)?;
            products.push(product(
                &tokens.normed,
                dense().map(|(mlp, _)| mlp.linears()[0].weight()).collect(),
                &gate_up,
            ));
            products.push(product(&inner, dense().map(|(mlp, _)| mlp.linears()[1].weight()).collect(), &tokens.update));
        }
        if let Some(output) = &self.output {
            products.push(product(&logits.normed, vec![output.linear.weight()], &logits.logits));
        }
        Ok(products)
    }
}

#[cfg(feature = "cuda")]
impl Layer {
    fn heads(&self) -> Option<&SelfAttention> {
        match &self.attention {
            Attention::Heads(attention) => Some(attention),
            Attention::Latent(_) => None,
        }
    }

    /// The one block, and its width.
    fn dense(&self) -> Option<(&GatedMlp, usize)> {
        match &self.block {
            Block::Dense(mlp, width) => Some((mlp, *width)),
            Block::Experts(..) => None,
        }
    }
}

/// Layers whose weights are taken in turn where products are timed: together more than a cache holds.
#[cfg(feature = "cuda")]
const TIMED_LAYERS: usize = 12;
