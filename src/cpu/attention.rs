//! Attention of new tokens over the paged cache: each query reads K and V through the block table, never a copy of them.
//!
//! The arithmetic of one query does not depend on its neighbours. Positions are cut into spans of [`SPAN`], counted from
//! position 0. Inside a span blocks come in order with an online softmax; then the spans are merged in order. A slot that
//! the query does not see takes no part in any sum, whatever it holds.

mod kernel;

use super::kv::{HeadShape, KvLayerRef, KvLayout};
use super::simd::dispatch;
use super::{Cpu, SharedMut};
use kernel::Attend;
pub(super) use kernel::Sequence;

/// Positions of a span.
const SPAN: usize = 1024;

/// New tokens of a sequence that one task handles.
const TOKENS: usize = 32;

/// Which tokens are new and where the context of each sequence lies. `s` sequences, `t` new tokens in all.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRef<'a> {
    /// Sequence `i` has the new tokens `cu_seqlens_q[i]..cu_seqlens_q[i + 1]`; `[s + 1]`, from 0 to `t`.
    pub cu_seqlens_q: &'a [u32],
    /// Tokens of each sequence whose k and v are in the cache, the new ones counted; `[s]`.
    pub context_lens: &'a [u32],
    /// Block tables of all sequences, one after the other.
    pub block_tables: &'a [u32],
    /// Sequence `i` has the blocks `block_tables[offsets[i]..offsets[i + 1]]`; `[s + 1]`.
    pub block_table_offsets: &'a [u32],
}

impl<'a> AttentionRef<'a> {
    /// Sequences of the batch.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub(super) fn sequences(self, tokens: usize, blocks: usize) -> Vec<Sequence<'a>> {
        let count = self.context_lens.len();
        assert_eq!(self.cu_seqlens_q.len(), count + 1, "cu_seqlens_q is [s + 1]");
        assert_eq!(self.block_table_offsets.len(), count + 1, "block_table_offsets is [s + 1]");
        assert_eq!(self.cu_seqlens_q[0], 0, "the first sequence starts at token 0");
        assert_eq!(self.cu_seqlens_q[count] as usize, tokens, "the last sequence ends at the last token");
        let sequence = |i: usize| {
            let (from, to) = (self.cu_seqlens_q[i] as usize, self.cu_seqlens_q[i + 1] as usize);
            let context = self.context_lens[i] as usize;
            assert!(from <= to && to - from <= context, "a context holds its new tokens");
            let (first, last) = (self.block_table_offsets[i] as usize, self.block_table_offsets[i + 1] as usize);
            let table = &self.block_tables[first..last];
            let used = &table[..context.div_ceil(KvLayout::BLOCK_SIZE)];
            assert!(used.iter().all(|&block| (block as usize) < blocks), "blocks are inside the cache");
            Sequence { first_token: from, tokens: to - from, first_position: context - (to - from), blocks: used }
        };
        (0..count).map(sequence).collect()
    }
}

impl Cpu {
    /// Attention of each new token over its sequence's cache up to itself: `softmax(q k^T * scale) v`.
    /// `qkv [t, (q_heads + 2 kv_heads) * head_dim]`, of which q is read; `out [t, q_heads * head_dim]`. With a
    /// `sliding_window` of `w` the token at position `p` sees positions `p - w + 1 ..= p` only.
    ///
    /// # Panics
    /// If lengths do not fit together, or a block is outside the cache.
    #[allow(clippy::too_many_arguments)] // each is a different thing
    pub fn attention(
        &self,
        qkv: &[f32],
        heads: HeadShape,
        kv: KvLayerRef<'_>,
        inputs: AttentionRef<'_>,
        scale: f32,
        sliding_window: Option<u32>,
        out: &mut [f32],
    ) {
        let row_len = heads.row_len();
        assert!(heads.kv_heads > 0 && heads.q_heads.is_multiple_of(heads.kv_heads), "q heads come in whole groups");
        assert!(heads.head_dim.is_multiple_of(8), "a head has a multiple of 8 elements");
        assert!(qkv.len().is_multiple_of(row_len), "qkv is [t, (q + 2 kv) * d]");
        let tokens = qkv.len() / row_len;
        assert_eq!(out.len(), tokens * heads.q_heads * heads.head_dim, "out is [t, q * d]");
        let own = KvLayout { kv_heads: heads.kv_heads, head_dim: heads.head_dim, ..kv.layout };
        assert_eq!(kv.layout, own, "the layer's own cache");
        let sequences = inputs.sequences(tokens, kv.blocks());
        let window = sliding_window.map_or(usize::MAX, |window| window as usize);
        assert!(window > 0, "a window holds the token itself");
        let mut work = Vec::new();
        for (i, sequence) in sequences.iter().enumerate() {
            for from in (0..sequence.tokens).step_by(TOKENS) {
                work.extend((0..heads.kv_heads).map(|head| (i, head, from, (from + TOKENS).min(sequence.tokens))));
            }
        }
        // The longest first, so that no thread is left with a long one at the end.
        work.sort_by_key(|&(i, _, _, to)| std::cmp::Reverse(sequences[i].first_position + to));
        let out = SharedMut::new(out);
        self.pool.run(work.len(), &|task, thread| {
            let (i, kv_head, from, to) = work[task];
            let mut scratch = self.scratch(thread);
            let scratch = scratch.floats(kernel::scratch_len(heads.head_dim));
            let sequence = &sequences[i];
            dispatch(
                self.simd,
                Attend { qkv, heads, kv, sequence, kv_head, tokens: (from, to), scale, window, out, scratch },
            );
        });
    }
}
