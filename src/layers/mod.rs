//! The layers a decoder is made of. They call `ops` only.
//!
//! They know no model family and no step: shapes and arrays come from the decoder.

mod attention;
mod experts;
mod latent;
mod linear;
mod mlp;
mod norm;

pub(crate) use attention::{AttentionBuffers, HeadNorms, SelfAttention};
pub(crate) use experts::{ExpertStepBuffers, MixtureOfExperts};
pub(crate) use latent::{LatentAttention, LatentBuffers, LatentQuery};
pub(crate) use linear::Linear;
pub(crate) use mlp::GatedMlp;
pub(crate) use norm::RmsNorm;
