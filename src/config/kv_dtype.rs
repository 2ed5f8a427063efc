//! What the KV cache stores its numbers as.
//!
//! Knows no device: which types a device has kernels for, `runner` says when a model is planned.

use std::fmt;
use std::str::FromStr;

/// The type of the KV cache's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 32-bit float.
    F32,
    /// 8-bit float with 4 bits of exponent (e4m3), saturated at 448.
    Fp8,
    /// 8-bit integers, with a scale in f32 for each token and head.
    Int8,
}

impl KvDType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Bf16, Self::F16, Self::F32, Self::Fp8, Self::Int8];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of an element, without its share of a scale.
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8 | Self::Int8 => 1,
        }
    }

    /// Bytes of the scale of a token's head, where there is one.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::Int8 => size_of::<f32>(),
            Self::Bf16 | Self::F16 | Self::F32 | Self::Fp8 => 0,
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type of the KV cache as settings name it: one of them, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct KvDTypeWish(pub Option<KvDType>);

/// Why a text is no type of the KV cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no type of a KV cache; auto, bf16, f16, f32, fp8 and int8 are")]
pub struct KvDTypeError(String);

impl FromStr for KvDTypeWish {
    type Err = KvDTypeError;

    fn from_str(text: &str) -> Result<Self, KvDTypeError> {
        let lower = text.trim().to_ascii_lowercase();
        if lower == "auto" {
            return Ok(Self(None));
        }
        // vLLM's names for the same things.
        let known = match lower.as_str() {
            "bfloat16" => "bf16",
            "float16" => "f16",
            "fp8_e4m3" => "fp8",
            other => other,
        };
        match KvDType::ALL.into_iter().find(|dtype| dtype.name() == known) {
            Some(dtype) => Ok(Self(Some(dtype))),
            None => Err(KvDTypeError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for KvDTypeWish {
    type Error = KvDTypeError;

    fn try_from(text: String) -> Result<Self, KvDTypeError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_written() {
        for dtype in KvDType::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(KvDTypeWish(Some(dtype))));
        }
        assert_eq!(" AUTO ".parse(), Ok(KvDTypeWish(None)));
        assert_eq!("fp8_e4m3".parse(), Ok(KvDTypeWish(Some(KvDType::Fp8))));
        for text in ["", "int4", "f64", "fp8_e5m2"] {
            let error = text.parse::<KvDTypeWish>().expect_err(text).to_string();
            assert_eq!(error, format!("`{text}` is no type of a KV cache; auto, bf16, f16, f32, fp8 and int8 are"));
        }
    }
}
