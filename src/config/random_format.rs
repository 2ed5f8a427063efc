//! The format that random weights are drawn in, to measure with.
//!
//! Knows names, not what they mean.

use std::str::FromStr;

/// The format of random weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RandomFormat {
    /// bfloat16.
    #[default]
    Bf16,
    /// Each matrix in one format: 4 bits a weight, scales of groups of 32.
    Q4_0,
    /// The same with an offset for each group.
    Q4_1,
    /// 8 bits.
    Q8_0,
    /// 4 bits around a zero, groups of 128, as GPTQ and AWQ have them; the output layer is bf16.
    Int4,
    /// e4m3 with a scale a row; embeddings and the output layer are bf16.
    Fp8,
    /// 4 bits in blocks of 256.
    Q4K,
    /// 6 bits in blocks of 256.
    Q6K,
    /// As llama.cpp mixes it: Q4_K, and Q6_K for the output layer and for v and down of half of the layers.
    Q4KM,
}

/// How a model of random weights is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RandomModel {
    /// The format of its weights.
    pub format: RandomFormat,
    /// Whether its tokens take the experts in turn, as those of a trained model do on the average: random routers send most
    /// tokens to the same few experts, which flatters every rate of a batch.
    pub even_routing: bool,
}

/// Why a text is no format of random weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no format that random weights are drawn in; there are bf16, q4_0, q4_1, q8_0, int4, fp8, q4_k, q6_k and q4_k_m"
)]
pub struct RandomFormatError(String);

impl FromStr for RandomFormat {
    type Err = RandomFormatError;

    fn from_str(text: &str) -> Result<Self, RandomFormatError> {
        match text.to_ascii_lowercase().as_str() {
            "bf16" => Ok(Self::Bf16),
            "q4_0" => Ok(Self::Q4_0),
            "q4_1" => Ok(Self::Q4_1),
            "q8_0" => Ok(Self::Q8_0),
            "int4" => Ok(Self::Int4),
            "fp8" => Ok(Self::Fp8),
            "q4_k" => Ok(Self::Q4K),
            "q6_k" => Ok(Self::Q6K),
            "q4_k_m" => Ok(Self::Q4KM),
            _ => Err(RandomFormatError(text.to_owned())),
        }
    }
}
