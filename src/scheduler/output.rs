//! What one step computes, as flat plain data that a runner turns into tensors.
//!
//! Knows no tensors: `block_tables` and `tokens` are packed row after row, with offsets beside them.

use std::ops::Range;

use crate::kv_cache::BlockId;
use crate::request::{SeqId, TokenId};

/// Copy of a whole block, before the step writes: the second half of copy on write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Block to read.
    pub source: BlockId,
    /// Block to write.
    pub target: BlockId,
}

/// One sequence's part of a step: positions `start .. start + tokens.len()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledRow {
    /// Whose tokens.
    pub seq: SeqId,
    /// Position of the row's first token.
    pub start: u32,
    /// Where its tokens stand in [`SchedulerOutput::tokens`].
    pub tokens: Range<usize>,
    /// Where its blocks stand in [`SchedulerOutput::block_tables`]; enough for every position up to the row's end.
    pub blocks: Range<usize>,
    /// The row's last token is the one that the step before sampled for `seq` and that is not committed yet
    /// (lag 1); what `tokens` holds there is a placeholder.
    pub follows_sample: bool,
    /// The sequences that draw a token from the row's last logits, as a range of [`SchedulerOutput::samples`]:
    /// none for an unfinished prompt, one while decoding, `n` where a prompt of `n` choices ends.
    pub samples: Range<usize>,
    /// Whether log-probabilities of the row's prompt tokens are wanted.
    pub prompt_logprobs: bool,
}

/// What one step computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    /// Number of the step, from 1.
    pub step: u64,
    /// To be done before anything else, in order.
    pub copies: Vec<BlockCopy>,
    /// Decodes first, then prompt chunks.
    pub rows: Vec<ScheduledRow>,
    /// Token ids of all rows.
    pub tokens: Vec<TokenId>,
    /// Block ids of all rows.
    pub block_tables: Vec<BlockId>,
    /// Who draws a token, row after row.
    pub samples: Vec<SeqId>,
    /// Sequences that ended since the step before: whoever keeps state for them drops it now.
    pub released: Vec<SeqId>,
}

impl SchedulerOutput {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
