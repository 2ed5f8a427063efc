//! The cache of one layer as tensors, and what writes and reads it.

use std::sync::{Arc, PoisonError, RwLock};

use super::tensors::{Source, expect_shape, shape2, write_f32};
use crate::config::KvDType;
use crate::cpu::{AttentionRef, Cpu, HeadShape, KvLayerMut, KvLayerRef, KvLayout, QkNorms, RopeTable};
use candle_core::{Result, Tensor, bail};

/// K and V of one layer, as [`KvLayout`] says. Cloning shares them.
#[derive(Clone, Debug)]
pub struct KvLayer {
    layout: KvLayout,
    planes: Arc<RwLock<Planes>>,
}

/// The bytes of K and of V.
#[derive(Debug)]
struct Planes {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl KvLayer {
    /// A cache of `blocks`, zeroed.
    ///
    /// # Errors
    /// If a head is no multiple of 8 elements, or the CPU has no kernels for its type.
    pub fn zeros(layout: KvLayout, blocks: usize) -> Result<Self> {
        let KvLayout { kv_heads, head_dim, dtype, planes } = layout;
        if dtype == KvDType::Fp8 {
            bail!("a cache of {dtype} is for GPUs; on the CPU there are f32, f16, bf16 and int8");
        }
        if kv_heads == 0 || head_dim == 0 || !head_dim.is_multiple_of(8) {
            bail!("a cache of {kv_heads} heads of {head_dim}: heads must have a multiple of 8 elements");
        }
        let plane = |number: usize| vec![0; if number < planes.count() { blocks * layout.block_bytes() } else { 0 }];
        let planes = Planes { keys: plane(0), values: plane(1) };
        Ok(Self { layout, planes: Arc::new(RwLock::new(planes)) })
    }

    /// Blocks of the cache.
    pub fn blocks(&self) -> usize {
        let planes = self.planes.read().unwrap_or_else(PoisonError::into_inner);
        planes.keys.len() / self.layout.block_bytes()
    }

    /// Gives back the memory of the blocks from `blocks` on, or takes it, zeroed.
    pub fn resize(&self, blocks: usize) {
        let mut planes = self.planes.write().unwrap_or_else(PoisonError::into_inner);
        let bytes = blocks * self.layout.block_bytes();
        let Planes { keys, values } = &mut *planes;
        for plane in [keys, values].into_iter().take(self.layout.planes.count()) {
            if bytes > plane.len() {
                // Not `resize`, which would write to all of it and so take memory before it is used.
                let mut larger = vec![0; bytes];
                larger[..plane.len()].copy_from_slice(plane);
                *plane = larger;
            } else {
                plane.truncate(bytes);
                plane.shrink_to_fit();
            }
        }
    }

    /// How it lies.
    pub(super) fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Calls `write` with K and V.
    pub(super) fn write(&self, write: impl FnOnce(KvLayerMut<'_>)) {
        let mut planes = self.planes.write().unwrap_or_else(PoisonError::into_inner);
        let Planes { keys, values } = &mut *planes;
        write(KvLayerMut { layout: self.layout, keys, values });
    }

    /// Calls `read` with K and V.
    pub(super) fn read(&self, read: impl FnOnce(KvLayerRef<'_>)) {
        let planes = self.planes.read().unwrap_or_else(PoisonError::into_inner);
        read(KvLayerRef { layout: self.layout, keys: &planes.keys, values: &planes.values });
    }
}

/// Where the new tokens of a step stand.
#[derive(Clone, Copy, Debug)]
pub struct TokenSlots<'a> {
    /// Position of each token in its sequence, `[t]`.
    pub positions: &'a [u32],
    /// Place of each token in the cache, block * 16 + place in the block, `[t]`.
    pub slots: &'a [u32],
}

/// Weights of the RMS norms of q and k heads.
#[derive(Clone, Copy, Debug)]
pub struct QkNormTensors<'a> {
    /// `[head_dim]`, f32.
    pub q: &'a Tensor,
    /// `[head_dim]`, f32.
    pub k: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Adds `bias` (where there is one) to `qkv [t, (q_heads + 2 kv_heads) * head_dim]`, norms (where `norms`) and rotates
/// its q and k heads, all in place, then writes k and v into the cache.
///
/// # Errors
/// If shapes or dtypes do not fit, a position is outside the table, or a slot outside the cache.
#[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
pub fn rope_and_cache(
    cpu: &Cpu,
    qkv: &Tensor,
    bias: Option<&Tensor>,
    heads: HeadShape,
    tokens: TokenSlots<'_>,
    rope: &RopeTable,
    norms: Option<QkNormTensors<'_>>,
    kv: &KvLayer,
) -> Result<()> {
    const OP: &str = "rope_and_cache";
    let TokenSlots { positions, slots } = tokens;
    expect_shape(qkv, OP, "qkv", &[positions.len(), heads.row_len()])?;
    check_heads(OP, heads, kv)?;
    if slots.len() != positions.len() {
        bail!("{OP}: {} slots for {} tokens", slots.len(), positions.len());
    }
    if rope.rotary_dim() > heads.head_dim {
        bail!("{OP}: {} of {} elements of a head would be rotated", rope.rotary_dim(), heads.head_dim);
    }
    if let Some(position) = positions.iter().find(|&&position| position as usize >= rope.max_positions()) {
        bail!("{OP}: position {position} is outside a table of {}", rope.max_positions());
    }
    let end = kv.blocks() * KvLayout::BLOCK_SIZE;
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= end) {
        bail!("{OP}: slot {slot} is outside a cache of {end}");
    }
    if let Some(norms) = norms {
        expect_shape(norms.q, OP, "the norm of q", &[heads.head_dim])?;
        expect_shape(norms.k, OP, "the norm of k", &[heads.head_dim])?;
    }
    let weights = match norms {
        Some(norms) => {
            Some((Source::new(norms.q, OP, "the norm of q")?, Source::new(norms.k, OP, "the norm of k")?, norms.eps))
        }
        None => None,
    };
    let norms = weights.as_ref().map(|(q, k, eps)| QkNorms { q, k, eps: *eps });
    if let Some(bias) = bias {
        expect_shape(bias, OP, "bias", &[heads.row_len()])?;
    }
    let bias = bias.map(|bias| Source::new(bias, OP, "bias")).transpose()?;
    write_f32(qkv, OP, &[], |qkv| {
        if let Some(bias) = &bias {
            for row in qkv.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias.iter()).for_each(|(value, bias)| *value += bias);
            }
        }
        kv.write(|kv| cpu.rope_and_cache(qkv, heads, positions, slots, rope, norms, kv));
        Ok(())
    })
}

/// Attention of each new token over its sequence's cache up to itself: q of `qkv [t, (q_heads + 2 kv_heads) * head_dim]`,
/// `dst [t, q_heads * head_dim]`. With a `sliding_window` of `w` the token at position `p` sees `p - w + 1 ..= p` only.
///
/// # Errors
/// If shapes or dtypes do not fit.
///
/// # Panics
/// If `inputs` does not fit itself or the cache: a wrong block table would show one user another's text.
#[allow(clippy::too_many_arguments)] // each is a different thing
pub fn attention(
    cpu: &Cpu,
    qkv: &Tensor,
    heads: HeadShape,
    kv: &KvLayer,
    inputs: AttentionRef<'_>,
    scale: f32,
    sliding_window: Option<u32>,
    dst: &Tensor,
) -> Result<()> {
    const OP: &str = "attention";
    let (tokens, _) = shape2(qkv, OP, "qkv")?;
    expect_shape(qkv, OP, "qkv", &[tokens, heads.row_len()])?;
    expect_shape(dst, OP, "the destination", &[tokens, heads.q_heads * heads.head_dim])?;
    check_heads(OP, heads, kv)?;
    if sliding_window == Some(0) {
        bail!("{OP}: a window of 0 tokens");
    }
    write_f32(dst, OP, &[qkv], |out| {
        let qkv = Source::new(qkv, OP, "qkv")?;
        kv.read(|layer| cpu.attention(&qkv, heads, layer, inputs, scale, sliding_window, out));
        Ok(())
    })
}

/// Copies whole blocks of the cache, `(from, to)`, in order.
///
/// # Errors
/// If a block is outside the cache.
pub fn copy_blocks(cpu: &Cpu, kv: &KvLayer, copies: &[(u32, u32)]) -> Result<()> {
    const OP: &str = "copy_blocks";
    let blocks = kv.blocks();
    if let Some((from, to)) = copies.iter().find(|(from, to)| *from.max(to) as usize >= blocks) {
        bail!("{OP}: blocks {from} and {to} are not both inside a cache of {blocks}");
    }
    kv.write(|kv| cpu.copy_blocks(kv, copies));
    Ok(())
}

fn check_heads(op: &'static str, heads: HeadShape, kv: &KvLayer) -> Result<()> {
    let own = KvLayout { kv_heads: heads.kv_heads, head_dim: heads.head_dim, ..kv.layout };
    if kv.layout != own || !heads.q_heads.is_multiple_of(heads.kv_heads) {
        bail!("{op}: {heads:?} does not fit a cache of {:?}", kv.layout);
    }
    Ok(())
}
