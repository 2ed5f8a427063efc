//! How keys and values lie in the paged cache of one layer.
//!
//! Knows shapes and types; which block belongs to whom is the scheduler's affair.

use super::Cpu;
use crate::config::KvDType;

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

/// What a layer keeps of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPlanes {
    /// Keys and values of each head.
    #[default]
    KeysAndValues,
    /// One latent that both are made of, `[block][slot][dim]`, in the place of K.
    Latent,
}

impl KvPlanes {
    /// How many planes there are.
    pub fn count(self) -> usize {
        match self {
            Self::KeysAndValues => 2,
            Self::Latent => 1,
        }
    }
}

/// The cache of one layer: K is `[block][kv_head][dim][slot]`, so that the scores of a block's slots lie side by side in a
/// vector; V is `[block][kv_head][slot][dim]`. Where the type has scales, those of a block's head follow its elements:
/// 16 of f32, one a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head; a multiple of 8.
    pub head_dim: usize,
    /// What an element is stored as.
    pub dtype: KvDType,
    /// What is kept.
    pub planes: KvPlanes,
}

impl KvLayout {
    /// Tokens of a block.
    pub const BLOCK_SIZE: usize = 16;

    /// Bytes of the elements of one head of one block, in K and in V alike.
    pub fn element_bytes(&self) -> usize {
        self.head_dim * Self::BLOCK_SIZE * self.dtype.element_bytes()
    }

    /// Bytes of one head of one block, scales counted, in K and in V alike.
    pub fn head_bytes(&self) -> usize {
        self.element_bytes() + Self::BLOCK_SIZE * self.dtype.scale_bytes()
    }

    /// Bytes of one block of one plane.
    pub fn block_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Byte at which a head of a block starts, in K and in V alike.
    pub fn head_start(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.head_bytes()
    }
}

/// The cache of one layer, to read.
#[derive(Clone, Copy)]
pub struct KvLayerRef<'a> {
    /// Its layout.
    pub layout: KvLayout,
    /// `[block][kv_head][dim][slot]`, as bytes.
    pub keys: &'a [u8],
    /// `[block][kv_head][slot][dim]`, as bytes.
    pub values: &'a [u8],
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
    /// `[block][kv_head][dim][slot]`, as bytes.
    pub keys: &'a mut [u8],
    /// `[block][kv_head][slot][dim]`, as bytes.
    pub values: &'a mut [u8],
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
    let bytes = layout.block_bytes();
    let planes = [keys, values];
    let fits = planes[..layout.planes.count()].iter().all(|plane| *plane == keys)
        && planes[layout.planes.count()..].iter().all(|plane| *plane == 0);
    assert!(bytes > 0 && fits && keys.is_multiple_of(bytes), "all planes hold the same whole blocks");
    keys / bytes
}

impl Cpu {
    /// Copies whole blocks, `(from, to)`, in order.
    ///
    /// # Panics
    /// If a block is outside the cache.
    pub fn copy_blocks(&self, kv: KvLayerMut<'_>, copies: &[(u32, u32)]) {
        let (blocks, bytes) = (kv.blocks(), kv.layout.block_bytes());
        for &(from, to) in copies {
            let (from, to) = (from as usize, to as usize);
            assert!(from < blocks && to < blocks, "blocks {from} and {to} are inside a cache of {blocks}");
            kv.keys.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            if kv.layout.planes == KvPlanes::KeysAndValues {
                kv.values.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            }
        }
    }
}
