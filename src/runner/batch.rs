//! One step's inputs, packed: what the scheduler planned, as the arrays that kernels read.
//!
//! Knows no models. The buffers are kept between steps, so that a step allocates nothing.

use crate::attention::AttentionInputs;
use crate::ops::StepInputs;
use crate::request::{SeqId, TokenId};
use crate::scheduler::SchedulerOutput;

/// One step's inputs. `T` tokens, of `R` rows (sequences).
#[derive(Debug, Default)]
pub(crate) struct InputBatch {
    /// `[T]`.
    pub(crate) tokens: Vec<TokenId>,
    /// `[T]`: each token's place in its sequence.
    pub(crate) positions: Vec<u32>,
    /// Where the rows' keys and values stand.
    pub(crate) attention: AttentionInputs,
    /// Which tokens' logits are wanted, ascending; indices into `tokens`.
    pub(crate) logit_tokens: Vec<u32>,
}

impl InputBatch {
    /// Packs `output`. A token that the scheduler does not know yet is what `last_sampled` gives for its sequence.
    pub(crate) fn fill(
        &mut self,
        output: &SchedulerOutput,
        block_size: u32,
        last_sampled: impl Fn(SeqId) -> Option<TokenId>,
    ) {
        self.clear();
        for row in &output.rows {
            let blocks = &output.block_tables[row.blocks.clone()];
            let length = row.tokens.len() as u32;
            self.tokens.extend_from_slice(&output.tokens[row.tokens.clone()]);
            if row.follows_sample
                && let (Some(last), Some(sampled)) = (self.tokens.last_mut(), last_sampled(row.seq))
            {
                *last = sampled;
            }
            for position in row.start..row.start + length {
                let block = blocks[(position / block_size) as usize];
                self.positions.push(position);
                self.attention.slot_mapping.push(block.0 * block_size + position % block_size);
            }
            self.attention.push_row(length, row.start + length, blocks);
            let end = self.tokens.len() as u32;
            if row.prompt_logprobs {
                self.logit_tokens.extend(end - length..end);
            } else if !row.samples.is_empty() {
                self.logit_tokens.push(end - 1);
            }
        }
    }

    /// The step as the CPU reads it.
    pub(crate) fn on_cpu(&self) -> StepInputs<'_> {
        let Self { tokens: ids, positions, attention, .. } = self;
        StepInputs::Cpu { ids, positions, slots: &attention.slot_mapping, attention: attention.as_ref() }
    }

    /// Empties all arrays and keeps their memory.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.logit_tokens.clear();
        self.attention.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::BlockId;
    use crate::scheduler::ScheduledRow;

    #[test]
    fn rows_are_packed_and_late_tokens_filled_in() {
        let row = |seq, start, tokens, blocks, follows_sample, samples, prompt_logprobs| ScheduledRow {
            seq: SeqId(seq),
            start,
            tokens,
            blocks,
            follows_sample,
            samples,
            prompt_logprobs,
        };
        let output = SchedulerOutput {
            rows: vec![
                row(1, 5, 0..1, 0..2, true, 0..1, false),
                row(2, 3, 1..4, 2..4, false, 1..1, false),
                row(3, 0, 4..6, 4..5, false, 1..2, true),
            ],
            tokens: vec![0, 11, 12, 13, 21, 22],
            block_tables: [7, 9, 4, 2, 1].map(BlockId).to_vec(),
            samples: vec![SeqId(1), SeqId(3)],
            ..SchedulerOutput::default()
        };
        let mut batch = InputBatch::default();
        for _ in 0..2 {
            batch.fill(&output, 4, |seq| (seq == SeqId(1)).then_some(77));
            assert_eq!(batch.tokens, [77, 11, 12, 13, 21, 22]);
            assert_eq!(batch.positions, [5, 3, 4, 5, 0, 1]);
            assert_eq!(batch.attention.slot_mapping, [37, 19, 8, 9, 4, 5]);
            assert_eq!(batch.attention.cu_seqlens_q, [0, 1, 4, 6]);
            assert_eq!(batch.attention.context_lens, [6, 6, 2]);
            assert_eq!(batch.attention.block_tables, [7, 9, 4, 2, 1]);
            assert_eq!(batch.attention.table_offsets, [0, 2, 4, 5]);
            assert_eq!(batch.logit_tokens, [0, 4, 5]);
        }
    }
}
