//! Reads keys of GGUF metadata that start with the architecture's name, with a range for each, so that every error names
//! the file and the key.
//!
//! Knows the keys of experts, which several architectures share; no others.
//!
//! Source: the GGUF specification, "[llm]"; `gguf/constants.py` and the loader of llama.cpp.

use super::spec::{self, ExpertsSpec};
use crate::ops::{RouteGroups, RouteParams, Scoring};
use crate::weights::{LoadError, Metadata};

/// Keys of one architecture.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// All of the file's.
    pub metadata: &'a Metadata,
    /// What their names start with.
    pub arch: &'a str,
}

/// What the experts of an architecture are where its files do not say.
pub struct ExpertDefaults {
    /// Whether the weights of a token's experts add up to 1.
    pub normalize: bool,
    /// Width of the block that all tokens go through.
    pub shared_ffn: Option<usize>,
    /// Whether that block has a gate.
    pub shared_gate: bool,
    /// Whether the choice is corrected.
    pub correction: bool,
}

impl Keys<'_> {
    /// The whole name of a key.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// An error about `key`.
    pub fn unexpected(&self, key: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> LoadError {
        LoadError::unexpected(self.metadata.file(), self.name(key), expected, found)
    }

    /// A whole number from 1 to `most`, which must be there.
    pub fn size(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        let found = self.optional_size(key, most)?;
        found.ok_or_else(|| LoadError::missing_key(self.metadata.file(), self.name(key), format_args!("1 to {most}")))
    }

    /// A whole number from 1 to `most`.
    pub fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>, LoadError> {
        match self.metadata.get::<u32>(&self.name(key))?.map(|number| number as usize) {
            Some(number) if !(1..=most).contains(&number) => {
                Err(self.unexpected(key, format_args!("1 to {most}"), number))
            }
            found => Ok(found),
        }
    }

    /// A whole number up to `most`; 0 where the file does not say.
    pub fn count(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        match self.metadata.get::<u32>(&self.name(key))?.unwrap_or(0) as usize {
            number if number > most => Err(self.unexpected(key, format_args!("up to {most}"), number)),
            number => Ok(number),
        }
    }

    /// A number in `range`.
    pub fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>, LoadError> {
        match self.metadata.get::<f64>(&self.name(key))? {
            Some(number) if !range.contains(&number) => {
                let expected = format_args!("a number from {} to {}", range.start(), range.end()).to_string();
                Err(self.unexpected(key, expected, number))
            }
            found => Ok(found),
        }
    }

    /// The experts of a model of `layers` layers: all but the first `leading_dense_block_count` have some.
    pub fn experts(&self, layers: usize, defaults: ExpertDefaults) -> Result<ExpertsSpec, LoadError> {
        let scoring = match self.count("expert_gating_func", 2)? {
            0 | 1 => Scoring::Softmax,
            _ => Scoring::Sigmoid,
        };
        let groups = self.count("expert_group_count", spec::MAX_EXPERTS)?;
        let groups = match groups {
            0 | 1 => None,
            groups => Some(RouteGroups {
                groups,
                top_groups: self.size("expert_group_used_count", groups)?,
                // As in the models themselves: the best expert speaks for a group in V2, the two best in V3.
                best: if scoring == Scoring::Sigmoid { 2 } else { 1 },
            }),
        };
        // A scale of 0 is how some converters write none.
        let scale = self.number("expert_weights_scale", 0.0..=1e3)?.filter(|scale| *scale != 0.0);
        let normalize = self.metadata.get(&self.name("expert_weights_norm"))?.unwrap_or(defaults.normalize);
        let first = self.count("leading_dense_block_count", spec::MAX_LAYERS)?;
        Ok(ExpertsSpec {
            layers: (0..layers).map(|layer| layer >= first).collect(),
            count: self.size("expert_count", spec::MAX_EXPERTS)?,
            ffn: self.size("expert_feed_forward_length", spec::MAX_FFN)?,
            shared_ffn: defaults.shared_ffn,
            shared_gate: defaults.shared_gate,
            correction: defaults.correction,
            routing: RouteParams {
                top_k: self.size("expert_used_count", spec::MAX_EXPERTS)?,
                scoring,
                normalize,
                scale: scale.unwrap_or(1.0) as f32,
                groups,
                even: false,
            },
        })
    }
}
