//! The scheduler's limits: every one has a name, and none can be set so that a request never ends.

use thiserror::Error;

use crate::config::Lag;
use crate::kv_cache::blocks_for;

/// How many chunks of prompts stand in one step, at most, where a crowd waits.
pub const CROWD_CHUNKS: u32 = 8;

/// Limits of one scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens a block of the KV cache.
    pub block_size: u32,
    /// Blocks of the KV cache, at most and at first; together they hold at least `max_model_len` tokens.
    pub num_blocks: u32,
    /// Most sequences that compute at a time; a request of `n` choices counts `n`.
    pub max_sequences: u32,
    /// Most tokens a step computes; at least `max_sequences`, so that whoever decodes gets a token in each step.
    pub max_step_tokens: u32,
    /// Most prompt tokens of a step in which anybody decodes who has got a token already.
    pub max_prompt_chunk_while_decoding: u32,
    /// Where that is more, prompt tokens of such a step for each sequence that decodes: a step of many takes long anyway.
    pub prompt_tokens_per_decode: u32,
    /// Where that is more, prompt tokens of such a step for each request that waits, up to [`CROWD_CHUNKS`] times
    /// `max_prompt_chunk_while_decoding`: a crowd is not kept from its first tokens by a few who have theirs.
    pub prompt_tokens_per_waiting: u32,
    /// Of what such a step computes in all the number is a multiple, unless it is less: what is beyond would cost as much as
    /// a whole one.
    pub step_multiple: u32,
    /// Most tokens of a sequence, prompt and answer.
    pub max_model_len: u32,
    /// Most requests that wait.
    pub max_waiting: u32,
    /// Most requests of one tenant that wait, so that nobody fills the queue alone.
    pub max_waiting_per_tenant: u32,
    /// Look for a prompt's beginning among the blocks that others have left.
    pub prefix_cache: bool,
    /// How far scheduling runs ahead.
    pub lag: Lag,
}

impl SchedulerConfig {
    /// Most prompt tokens of a step in which `decodes` sequences decode and `waiting` requests wait.
    pub(super) fn prompt_tokens_beside(&self, decodes: usize, waiting: usize) -> usize {
        let chunk = self.max_prompt_chunk_while_decoding as usize;
        let crowd = (waiting * self.prompt_tokens_per_waiting as usize).min(CROWD_CHUNKS as usize * chunk);
        let tokens = chunk.max(decodes * self.prompt_tokens_per_decode as usize).max(crowd);
        let beyond = (decodes + tokens) % self.step_multiple as usize;
        if beyond < tokens { tokens - beyond } else { tokens }
    }

    /// Blocks of the KV cache without which a sequence might never end.
    pub fn least_blocks(&self) -> u32 {
        blocks_for(self.max_model_len, self.block_size)
    }

    /// Checks each limit by itself and against the others.
    ///
    /// # Errors
    /// The first limit that cannot be kept.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
            ("max_sequences", self.max_sequences),
            ("max_prompt_chunk_while_decoding", self.max_prompt_chunk_while_decoding),
            ("step_multiple", self.step_multiple),
            ("max_waiting", self.max_waiting),
            ("max_waiting_per_tenant", self.max_waiting_per_tenant),
        ];
        if let Some((name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero(name));
        }
        if self.max_model_len < 2 {
            return Err(ConfigError::ModelLength { max_model_len: self.max_model_len });
        }
        if self.max_step_tokens < self.max_sequences {
            let Self { max_step_tokens, max_sequences, .. } = *self;
            return Err(ConfigError::StepTooSmall { max_step_tokens, max_sequences });
        }
        let cache_tokens = u64::from(self.num_blocks) * u64::from(self.block_size);
        if cache_tokens < u64::from(self.max_model_len) {
            return Err(ConfigError::CacheTooSmall { cache_tokens, max_model_len: self.max_model_len });
        }
        Ok(())
    }
}

/// Limits that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Nothing could ever run.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// No room for a prompt token and an answer.
    #[error("max_model_len is {max_model_len}, but a prompt token and an answer need 2")]
    ModelLength {
        /// Tokens.
        max_model_len: u32,
    },
    /// Those who decode could wait for each other.
    #[error("a step of {max_step_tokens} tokens is too small for {max_sequences} sequences that decode")]
    StepTooSmall {
        /// Tokens.
        max_step_tokens: u32,
        /// Sequences.
        max_sequences: u32,
    },
    /// A sequence could grow past the whole cache and never end.
    #[error("the KV cache holds {cache_tokens} tokens, but one sequence may have {max_model_len}")]
    CacheTooSmall {
        /// Tokens.
        cache_tokens: u64,
        /// Tokens.
        max_model_len: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_beside_decodes_fill_whole_multiples_of_a_step() {
        let config = SchedulerConfig {
            max_step_tokens: 8192,
            max_prompt_chunk_while_decoding: 256,
            prompt_tokens_per_decode: 8,
            prompt_tokens_per_waiting: 64,
            step_multiple: 128,
            ..good()
        };
        // Sequences that decode, requests that wait, tokens of the step in all.
        let cases =
            [(1, 0, 256), (2, 0, 256), (32, 1, 256), (100, 0, 896), (256, 0, 2304), (1, 31, 1920), (9, 99, 2048)];
        for (decodes, waiting, all) in cases {
            assert_eq!(decodes + config.prompt_tokens_beside(decodes, waiting), all, "{decodes} {waiting}");
        }
        let small = SchedulerConfig { max_prompt_chunk_while_decoding: 20, prompt_tokens_per_decode: 0, ..config };
        assert_eq!(small.prompt_tokens_beside(5, 0), 20, "less than one multiple");
    }

    fn good() -> SchedulerConfig {
        SchedulerConfig {
            block_size: 16,
            num_blocks: 4,
            max_sequences: 8,
            max_step_tokens: 8,
            max_prompt_chunk_while_decoding: 1,
            prompt_tokens_per_decode: 0,
            prompt_tokens_per_waiting: 0,
            step_multiple: 1,
            max_model_len: 64,
            max_waiting: 1,
            max_waiting_per_tenant: 1,
            prefix_cache: true,
            lag: Lag::One,
        }
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let good = good();
        assert_eq!(good.validate(), Ok(()));
        let cases = [
            (SchedulerConfig { block_size: 0, ..good.clone() }, ConfigError::Zero("block_size")),
            (SchedulerConfig { max_waiting: 0, ..good.clone() }, ConfigError::Zero("max_waiting")),
            (SchedulerConfig { max_model_len: 1, ..good.clone() }, ConfigError::ModelLength { max_model_len: 1 }),
            (
                SchedulerConfig { max_step_tokens: 7, ..good.clone() },
                ConfigError::StepTooSmall { max_step_tokens: 7, max_sequences: 8 },
            ),
            (
                SchedulerConfig { max_model_len: 65, ..good.clone() },
                ConfigError::CacheTooSmall { cache_tokens: 64, max_model_len: 65 },
            ),
        ];
        for (config, error) in cases {
            assert_eq!(config.validate(), Err(error));
        }
    }
}
