//! The format that weights are planned in, or turned into when a model is loaded.
//!
//! Knows names and sizes, not how blocks are made.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::RandomFormat;

/// A format that weights may be turned into, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum WeightFormat {
    /// Two bytes a weight.
    Bf16,
    /// e4m3 with a scale a row, a byte a weight; the embedding and the output layer keep two.
    Fp8,
    /// GGUF's, 8.5 bits.
    Q8_0,
    /// GGUF's, 6.56 bits.
    Q6K,
    /// GGUF's Q4_K_M: 4.5 bits, and 6.56 for the output layer and for v and down of half of the layers.
    Q4K,
}

/// Why a text is no format of weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no format to turn weights into; {names} are", names = WeightFormat::ALL.map(WeightFormat::name).join(", "))]
pub struct WeightFormatError(String);

impl WeightFormat {
    /// All of them, the most exact first.
    pub const ALL: [Self; 5] = [Self::Bf16, Self::Q8_0, Self::Fp8, Self::Q6K, Self::Q4K];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q4K => "q4_k",
        }
    }

    /// The formats of matrices that are turned into this one when they are read; `None`: that is not done.
    pub const fn mix(self) -> Option<RandomFormat> {
        match self {
            Self::Bf16 => None,
            Self::Fp8 => Some(RandomFormat::Fp8),
            Self::Q8_0 => Some(RandomFormat::Q8_0),
            Self::Q6K => Some(RandomFormat::Q6K),
            Self::Q4K => Some(RandomFormat::Q4KM),
        }
    }

    /// Bytes of `parameters` weights, about: what a mix takes more is that of models of 7 to 8 billion weights.
    pub(crate) fn bytes(self, parameters: u64) -> u64 {
        let (bytes, weights) = match self {
            Self::Bf16 => (2, 1),
            Self::Fp8 => (145, 128),
            Self::Q8_0 => (34, 32),
            Self::Q6K => (210, 256),
            Self::Q4K => (157, 256),
        };
        (u128::from(parameters) * bytes / weights) as u64
    }
}

impl FromStr for WeightFormat {
    type Err = WeightFormatError;

    fn from_str(text: &str) -> Result<Self, WeightFormatError> {
        let lower = text.trim().to_ascii_lowercase();
        let known = Self::ALL.into_iter().find(|format| format.name() == lower);
        known.ok_or_else(|| WeightFormatError(text.to_owned()))
    }
}

impl TryFrom<String> for WeightFormat {
    type Error = WeightFormatError;

    fn try_from(text: String) -> Result<Self, WeightFormatError> {
        text.parse()
    }
}
