//! Rotary positions, the optional norm of q and k heads, and the way of k and v into the cache: one pass over new tokens.

use super::elementwise::normalise;
use super::kv::{HeadShape, KvLayerMut, KvLayout};
use super::kv_element;
use super::simd::{Kernel, Lanes, dispatch};
use super::{Cpu, CpuError, SharedMut};

/// Which two elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `i` and `i + rotary_dim / 2`, as in Hugging Face's `rotate_half`.
    Halves,
    /// `2 i` and `2 i + 1`, as in the original paper and in GGUF files of the Llama family.
    Interleaved,
}

/// Cosines and sines of every position, each `[positions, rotary_dim / 2]`.
///
/// Source: Su et al., "RoFormer", 2021.
#[derive(Clone, Debug)]
pub struct RopeTable {
    layout: RopeLayout,
    rotary_dim: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table of `cos.len() / (rotary_dim / 2)` positions.
    ///
    /// # Errors
    /// If `rotary_dim` is odd or 0, or the tables are not of one length in whole positions.
    pub fn new(layout: RopeLayout, rotary_dim: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self, CpuError> {
        let fits = rotary_dim > 0
            && rotary_dim.is_multiple_of(2)
            && cos.len() == sin.len()
            && cos.len().is_multiple_of(rotary_dim / 2);
        if !fits {
            return Err(CpuError::RopeTable { rotary_dim, cos: cos.len(), sin: sin.len() });
        }
        Ok(Self { layout, rotary_dim, cos, sin })
    }

    /// Which elements are rotated together.
    #[cfg(any(test, feature = "cuda"))]
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }

    /// Elements of a head that are rotated, from the first on.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// Positions that the table holds.
    pub fn max_positions(&self) -> usize {
        self.cos.len() / (self.rotary_dim / 2)
    }

    /// Rotates `head [rotary_dim]` to `position`, in place.
    ///
    /// # Panics
    /// If the head has another length, or the position is outside the table.
    #[inline(always)]
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        assert_eq!(head.len(), self.rotary_dim, "all that is rotated");
        let (cos, sin) = self.at(position);
        match self.layout {
            RopeLayout::Halves => rotate_halves(head, cos, sin),
            RopeLayout::Interleaved => rotate_interleaved(head, cos, sin),
        }
    }

    /// All cosines, `[positions, rotary_dim / 2]`.
    #[cfg(feature = "cuda")]
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// All sines, `[positions, rotary_dim / 2]`.
    #[cfg(feature = "cuda")]
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// Cosines and sines of one position.
    #[inline(always)]
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.rotary_dim / 2;
        (&self.cos[position * half..(position + 1) * half], &self.sin[position * half..(position + 1) * half])
    }
}

/// RMS norms of the heads of q and k, before they are rotated (Qwen3).
#[derive(Clone, Copy)]
pub struct QkNorms<'a> {
    /// Weights for q heads, `[head_dim]`.
    pub q: &'a [f32],
    /// Weights for k heads, `[head_dim]`.
    pub k: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Tokens below which the caller works alone.
const ALONE: usize = 16;

/// Tokens that one task rotates.
const CHUNK: usize = 16;

impl Cpu {
    /// For each of `t` new tokens: norms the heads of q and k (where `norms`), rotates them in place, and writes k and v
    /// into the cache at the token's slot. `qkv [t, (q_heads + 2 kv_heads) * head_dim]`, `positions [t]`, `slots [t]`
    /// (block * 16 + place in the block).
    ///
    /// # Panics
    /// If lengths do not fit together, a position is outside the table, or a slot outside the cache.
    #[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
    pub fn rope_and_cache(
        &self,
        qkv: &mut [f32],
        heads: HeadShape,
        positions: &[u32],
        slots: &[u32],
        rope: &RopeTable,
        norms: Option<QkNorms<'_>>,
        kv: KvLayerMut<'_>,
    ) {
        let (tokens, d) = (positions.len(), heads.head_dim);
        assert_eq!(qkv.len(), tokens * heads.row_len(), "qkv is [t, (q + 2 kv) * d]");
        assert_eq!(slots.len(), tokens, "one slot for each token");
        assert!(rope.rotary_dim <= d, "no more is rotated than a head has");
        assert!(positions.iter().all(|&p| (p as usize) < rope.max_positions()), "positions are inside the table");
        assert!(norms.is_none_or(|n| n.q.len() == d && n.k.len() == d), "norm weights are [head_dim]");
        let own = KvLayout { kv_heads: heads.kv_heads, head_dim: d, ..kv.layout };
        assert_eq!(kv.layout, own, "the cache has the layer's heads");
        let slots_end = kv.blocks() * KvLayout::BLOCK_SIZE;
        assert!(slots.iter().all(|&slot| (slot as usize) < slots_end), "slots are inside the cache");
        let row_len = heads.row_len();
        let shared = SharedMut::new(qkv);
        let rotate = |from: usize, to: usize| {
            // SAFETY: each token's row belongs to one task.
            let rows = unsafe { shared.slice(from * row_len, (to - from) * row_len) };
            dispatch(self.simd, Rotate { rows, heads, positions: &positions[from..to], rope, norms });
        };
        let layout = kv.layout;
        let (keys, values) = (SharedMut::new(kv.keys), SharedMut::new(kv.values));
        if tokens < ALONE {
            rotate(0, tokens);
            (0..heads.kv_heads).for_each(|head| write_head(qkv, heads, slots, head, layout, keys, values));
        } else {
            let tasks = tokens.div_ceil(CHUNK);
            self.pool.run(tasks, &|task, _| rotate(task * CHUNK, ((task + 1) * CHUNK).min(tokens)));
            // One task for each head: even if two tokens had the same slot, no two tasks would write one place.
            let qkv = &*qkv;
            self.pool.run(heads.kv_heads, &|head, _| write_head(qkv, heads, slots, head, layout, keys, values));
        }
    }
}

/// Writes one k and v head of all tokens into the cache.
fn write_head(
    qkv: &[f32],
    heads: HeadShape,
    slots: &[u32],
    head: usize,
    layout: KvLayout,
    keys: SharedMut<'_, u8>,
    values: SharedMut<'_, u8>,
) {
    let d = heads.head_dim;
    for (row, &slot) in qkv.chunks_exact(heads.row_len()).zip(slots) {
        let (block, place) = (slot as usize / KvLayout::BLOCK_SIZE, slot as usize % KvLayout::BLOCK_SIZE);
        let k = &row[(heads.q_heads + head) * d..][..d];
        let v = &row[(heads.q_heads + heads.kv_heads + head) * d..][..d];
        let start = layout.head_start(block, head);
        // SAFETY: this head of every block belongs to this task alone.
        let (keys, values) =
            unsafe { (keys.slice(start, layout.head_bytes()), values.slice(start, layout.head_bytes())) };
        kv_element::write_head(&layout, keys, place, place, KvLayout::BLOCK_SIZE, k);
        kv_element::write_head(&layout, values, place, place * d, 1, v);
    }
}

/// Norms and rotates the q and k heads of some rows.
struct Rotate<'a> {
    rows: &'a mut [f32],
    heads: HeadShape,
    positions: &'a [u32],
    rope: &'a RopeTable,
    norms: Option<QkNorms<'a>>,
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let HeadShape { q_heads, kv_heads, head_dim: d } = self.heads;
        for (row, &position) in self.rows.chunks_exact_mut(self.heads.row_len()).zip(self.positions) {
            for (number, head) in row.chunks_exact_mut(d).take(q_heads + kv_heads).enumerate() {
                if let Some(norms) = self.norms {
                    let weight = if number < q_heads { norms.q } else { norms.k };
                    let out = head.as_mut_ptr();
                    // SAFETY: head and weight hold `d` floats; the kernel reads each element before it writes it.
                    unsafe { normalise::<L>(out, weight, norms.eps, out) };
                }
                self.rope.rotate(&mut head[..self.rope.rotary_dim], position as usize);
            }
        }
    }
}

#[inline(always)]
fn rotate_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn rotate_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
    }
}
