//! One decoder's layers out of its weights, by name.
//!
//! Knows no formats: `weights` reads them, `ops` brings them to where the step computes.

use crate::layers::{
    GatedMlp, HeadNorms, LatentAttention, LatentQuery, Linear, MixtureOfExperts, RmsNorm, SelfAttention,
};
use crate::ops::{Compute, Experts, HeadShape, LatentShape, LatentUp, Matrix, Tensor, Weight};
use crate::weights::{LoadError, WeightName, Weights};

use super::decoder::{Attention, Block, DecoderError, Layer};
use super::spec::{DecoderSpec, ExpertsSpec, LatentSpec};

/// What norms of latents add to the mean square, whatever the configuration says of the other norms.
///
/// Source: `DeepseekV2RMSNorm` as `DeepseekV2Attention` makes it, in transformers and in the models' own code.
const LATENT_NORM_EPS: f32 = 1e-6;

/// Reads one decoder's tensors by name.
pub(super) struct Loader<'a> {
    pub(super) compute: &'a Compute,
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: &'a Weights,
}

impl Loader<'_> {
    pub(super) fn layer(&self, layer: u32) -> Result<Layer, DecoderError> {
        let attention = match &self.spec.latent {
            None => Attention::Heads(self.attention(layer)?),
            Some(latent) => Attention::Latent(self.latent_attention(layer, latent)?),
        };
        let block = match self.spec.experts_of(layer) {
            None => Block::Dense(self.mlp(layer)?, self.spec.ffn),
            Some(experts) => Block::Experts(self.experts(layer, experts)?, experts.shared_ffn.unwrap_or(0)),
        };
        Ok(Layer {
            attention_norm: self.norm(WeightName::AttentionNorm(layer), self.spec.hidden)?,
            attention,
            ffn_norm: self.norm(WeightName::FfnNorm(layer), self.spec.hidden)?,
            block,
        })
    }

    fn attention(&self, layer: u32) -> Result<SelfAttention, DecoderError> {
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

    fn mlp(&self, layer: u32) -> Result<GatedMlp, DecoderError> {
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

    /// A dense block of three matrices: gate and up `[ffn, hidden]`, down `[hidden, ffn]`.
    fn block(&self, [gate, up, down]: [WeightName; 3], ffn: usize) -> Result<GatedMlp, DecoderError> {
        let gate_up = self.linear(&[(gate, ffn), (up, ffn)], self.spec.hidden, None)?;
        Ok(GatedMlp::new(gate_up, self.linear(&[(down, self.spec.hidden)], ffn, None)?))
    }

    fn experts(&self, layer: u32, experts: &ExpertsSpec) -> Result<MixtureOfExperts, DecoderError> {
        let (hidden, count) = (self.spec.hidden, experts.count);
        let matrix = |name, rows, columns| self.weights.expert_matrix(name, count, rows, columns);
        let one = |expert: u32| -> Result<[Matrix; 3], LoadError> {
            Ok([
                matrix(WeightName::ExpertGate(layer, expert), experts.ffn, hidden)?,
                matrix(WeightName::ExpertUp(layer, expert), experts.ffn, hidden)?,
                matrix(WeightName::ExpertDown(layer, expert), hidden, experts.ffn)?,
            ])
        };
        let matrices = (0..count as u32).map(one).collect::<Result<Vec<_>, _>>()?;
        let shared = match experts.shared_ffn {
            Some(ffn) => {
                use WeightName::{SharedDown, SharedGate, SharedUp};
                Some(self.block([SharedGate(layer), SharedUp(layer), SharedDown(layer)], ffn)?)
            }
            None => None,
        };
        let shared_gate = match experts.shared_gate {
            true => Some(Linear::new(self.shared_weight(layer)?, None)),
            false => None,
        };
        let correction = match experts.correction {
            true => Some(self.vector(WeightName::RouterCorrection(layer), count)?),
            false => None,
        };
        Ok(MixtureOfExperts {
            router: self.linear(&[(WeightName::Router(layer), count)], hidden, None)?,
            correction,
            routing: experts.routing,
            experts: Experts::load(self.compute, matrices)?,
            shared,
            shared_gate,
        })
    }

    /// What the shared block's output is weighed by, `[1, hidden]`: GGUF files have it as a vector.
    fn shared_weight(&self, layer: u32) -> Result<Weight, DecoderError> {
        let (name, hidden) = (WeightName::SharedWeight(layer), self.spec.hidden);
        let matrix = match self.weights.matrix(name, 1, hidden) {
            Err(LoadError::Shape { .. }) => self.weights.vector_as_row(name, hidden)?,
            matrix => matrix?,
        };
        Ok(Weight::load(self.compute, vec![matrix])?)
    }

    fn latent_attention(&self, layer: u32, latent: &LatentSpec) -> Result<LatentAttention, DecoderError> {
        let (shape, hidden) = (latent.shape, self.spec.hidden);
        let q = shape.heads * shape.query();
        let query = match latent.query_rank {
            None => LatentQuery::Direct(self.linear(&[(WeightName::Q(layer), q)], hidden, None)?),
            Some(rank) => LatentQuery::LowRank {
                down: self.linear(&[(WeightName::QueryDown(layer), rank)], hidden, None)?,
                norm: RmsNorm::new(self.vector(WeightName::QueryNorm(layer), rank)?, LATENT_NORM_EPS),
                up: self.linear(&[(WeightName::QueryUp(layer), q)], rank, None)?,
            },
        };
        let (keys, values) = self.latent_up(layer, shape)?;
        Ok(LatentAttention {
            query,
            down: self.linear(&[(WeightName::LatentDown(layer), shape.width())], hidden, None)?,
            norm: self.vector(WeightName::LatentNorm(layer), shape.rank)?,
            eps: LATENT_NORM_EPS,
            up: LatentUp::load(self.compute, keys, values)?,
            output: self.linear(&[(WeightName::O(layer), hidden)], shape.heads * shape.value, None)?,
            shape,
            scale: self.spec.attention_scale,
        })
    }

    /// The up-projections of a latent, head by head: of keys `[rank, nope]`, transposed, and of values `[value, rank]`. Newer
    /// GGUF files have them so, all other files in one matrix.
    fn latent_up(&self, layer: u32, shape: LatentShape) -> Result<(Vec<Matrix>, Vec<Matrix>), DecoderError> {
        let LatentShape { heads, rank, nope, value, .. } = shape;
        let each = |matrix: Matrix, rows: usize| (0..heads).map(|head| matrix.slice(head * rows, rows)).collect();
        if self.weights.has(WeightName::LatentKeys(layer)) {
            let keys = self.weights.stack(WeightName::LatentKeys(layer), heads, rank, nope)?;
            let values = self.weights.stack(WeightName::LatentValues(layer), heads, value, rank)?;
            return Ok((each(keys, rank), each(values, value)));
        }
        let up = self.weights.matrix(WeightName::LatentUp(layer), heads * (nope + value), rank)?;
        let both: Vec<Matrix> = each(up, nope + value);
        let keys = both.iter().map(|head| head.slice(0, nope).transposed()).collect();
        Ok((keys, both.iter().map(|head| head.slice(nope, value)).collect()))
    }

    /// The matrices `[rows, columns]` as one layer, with their biases as one where there are any.
    fn linear<const N: usize>(
        &self,
        parts: &[(WeightName, usize); N],
        columns: usize,
        biases: Option<&[WeightName; N]>,
    ) -> Result<Linear, DecoderError> {
        let bias = match biases {
            None => None,
            Some(names) => {
                let lengths = parts.iter().map(|(_, rows)| *rows);
                Some(self.bias(&names.iter().copied().zip(lengths).collect::<Vec<_>>())?)
            }
        };
        Ok(Linear::new(self.weight(parts, columns)?, bias))
    }

    /// The embedding table, `[vocab, hidden]`.
    pub(super) fn embedding(&self) -> Result<Weight, DecoderError> {
        let table = self.weights.matrix(WeightName::TokenEmbedding, self.spec.vocab, self.spec.hidden)?;
        Ok(Weight::load_table(self.compute, table)?)
    }

    /// The matrices `[rows, columns]`, stacked.
    pub(super) fn weight(&self, parts: &[(WeightName, usize)], columns: usize) -> Result<Weight, DecoderError> {
        let matrices = parts
            .iter()
            .map(|(name, rows)| self.weights.matrix(*name, *rows, columns))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Weight::load(self.compute, matrices)?)
    }

    /// The vectors, one after the other.
    fn bias(&self, parts: &[(WeightName, usize)]) -> Result<Tensor, DecoderError> {
        let mut bias = Vec::new();
        for (name, length) in parts {
            bias.extend(self.weights.vector(*name, *length)?);
        }
        Ok(Tensor::vector(self.compute, bias)?)
    }

    pub(super) fn norm(&self, name: WeightName, length: usize) -> Result<RmsNorm, DecoderError> {
        Ok(RmsNorm::new(self.vector(name, length)?, self.spec.norm_eps))
    }

    fn vector(&self, name: WeightName, length: usize) -> Result<Tensor, DecoderError> {
        Ok(Tensor::vector(self.compute, self.weights.vector(name, length)?)?)
    }
}
