//! How keys and values lie in the paged cache of one layer.
//!
//! Knows shapes; which block belongs to whom is the scheduler's affair.

use super::Cpu;

/// Heads of an attention layer. A row of its input holds all q heads, then all k heads, then all v heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl HeadShape {
    /// Elements of a row: q, k and v.
    pub fn row_len(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share a key and value head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }
}

/// The cache of one layer, in f32: K is `[block][kv_head][dim][slot]`, so that the scores of a block's slots lie side by
/// side in a vector; V is `[block][kv_head][slot][dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head; a multiple of 8.
    pub head_dim: usize,
}

impl KvLayout {
    /// Tokens of a block.
    pub const BLOCK_SIZE: usize = 16;

    /// Floats of one head of one block, in K and in V alike.
    pub fn head_len(&self) -> usize {
        self.head_dim * Self::BLOCK_SIZE
    }

    /// Floats of one block, in K and in V alike.
    pub fn block_len(&self) -> usize {
        self.kv_heads * self.head_len()
    }

    /// Where a head of a block starts, in K and in V alike.
    pub fn head_start(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.head_len()
    }
}

/// The cache of one layer, to read.
#[derive(Clone, Copy)]
pub struct KvLayerRef<'a> {
    /// Its layout.
    pub layout: KvLayout,
    /// `[block][kv_head][dim][slot]`.
    pub keys: &'a [f32],
    /// `[block][kv_head][slot][dim]`.
    pub values: &'a [f32],
}

impl KvLayerRef<'_> {
    /// Blocks of the cache.
    ///
    /// # Panics
    /// If K and V are not of one length, or not of whole blocks.
    pub fn blocks(&self) -> usize {
        blocks(self.layout, self.keys.len(), self.values.len())
    }
}

/// The cache of one layer, to write.
pub struct KvLayerMut<'a> {
    /// Its layout.
    pub layout: KvLayout,
    /// `[block][kv_head][dim][slot]`.
    pub keys: &'a mut [f32],
    /// `[block][kv_head][slot][dim]`.
    pub values: &'a mut [f32],
}

impl KvLayerMut<'_> {
    /// Blocks of the cache.
    ///
    /// # Panics
    /// If K and V are not of one length, or not of whole blocks.
    pub fn blocks(&self) -> usize {
        blocks(self.layout, self.keys.len(), self.values.len())
    }
}

fn blocks(layout: KvLayout, keys: usize, values: usize) -> usize {
    let len = layout.block_len();
    assert!(len > 0 && keys == values && keys.is_multiple_of(len), "K and V hold the same whole blocks");
    keys / len
}

impl Cpu {
    /// Copies whole blocks, `(from, to)`, in order.
    ///
    /// # Panics
    /// If a block is outside the cache.
    pub fn copy_blocks(&self, kv: KvLayerMut<'_>, copies: &[(u32, u32)]) {
        let (blocks, len) = (kv.blocks(), kv.layout.block_len());
        for &(from, to) in copies {
            let (from, to) = (from as usize, to as usize);
            assert!(from < blocks && to < blocks, "blocks {from} and {to} are inside a cache of {blocks}");
            kv.keys.copy_within(from * len..(from + 1) * len, to * len);
            kv.values.copy_within(from * len..(from + 1) * len, to * len);
        }
    }
}
