//! Attention over the paged cache: one call serves prompt chunks and single tokens alike.
//!
//! Knows no scheduler: a step's rows arrive as packed arrays.

use crate::kv_cache::BlockId;
use crate::ops::AttentionRef;

/// Where the queries, keys and values of one step stand: `R` rows of together `T` tokens.
#[derive(Debug, Default)]
pub(crate) struct AttentionInputs {
    /// `[R + 1]`: row `r` has the tokens `cu_seqlens_q[r] .. cu_seqlens_q[r + 1]`.
    pub(crate) cu_seqlens_q: Vec<u32>,
    /// `[R]`: tokens of each row's sequence that are in the cache once the step has written its own.
    pub(crate) context_lens: Vec<u32>,
    /// The rows' blocks, one row after the other.
    pub(crate) block_tables: Vec<u32>,
    /// `[R + 1]`: row `r` has the blocks `table_offsets[r] .. table_offsets[r + 1]` of `block_tables`.
    pub(crate) table_offsets: Vec<u32>,
    /// `[T]`: block x block size + place in the block, where each token's key and value are written.
    pub(crate) slot_mapping: Vec<u32>,
}

impl AttentionInputs {
    /// Empties all arrays and keeps their memory.
    pub(crate) fn clear(&mut self) {
        self.cu_seqlens_q.clear();
        self.cu_seqlens_q.push(0);
        self.context_lens.clear();
        self.block_tables.clear();
        self.table_offsets.clear();
        self.table_offsets.push(0);
        self.slot_mapping.clear();
    }

    /// The arrays that the kernels read.
    pub(crate) fn as_ref(&self) -> AttentionRef<'_> {
        AttentionRef {
            cu_seqlens_q: &self.cu_seqlens_q,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            block_table_offsets: &self.table_offsets,
        }
    }

    /// Adds a row of `tokens` queries whose sequence then holds `context` tokens in `blocks`.
    pub(crate) fn push_row(&mut self, tokens: u32, context: u32, blocks: &[BlockId]) {
        let end = self.cu_seqlens_q.last().copied().unwrap_or(0) + tokens;
        self.cu_seqlens_q.push(end);
        self.context_lens.push(context);
        self.block_tables.extend(blocks.iter().map(|block| block.0));
        self.table_offsets.push(self.block_tables.len() as u32);
    }
}
