//! Latent attention over Candle's tensors.

use super::kv_layer::{KvLayer, TokenSlots};
use super::tensors::{Source, expect_shape, shape2, write_f32};
use crate::cpu::{AttentionRef, Cpu, KvLayout, KvPlanes, LatentShape, RopeTable, Strided};
use crate::ops::Matrix;
use candle_core::{Result, Tensor, bail};

/// Rotates `q [t, heads * (nope + rope)]`, norms and rotates `latent [t, rank + rope]`, in place, and writes the latter
/// into the cache.
///
/// # Errors
/// If shapes do not fit, a position is outside the table, or a slot outside the cache.
#[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
pub fn latent_cache(
    cpu: &Cpu,
    q: &Tensor,
    latent: &Tensor,
    shape: LatentShape,
    norm: &Tensor,
    eps: f32,
    tokens: TokenSlots<'_>,
    rope: &RopeTable,
    kv: &KvLayer,
) -> Result<()> {
    const OP: &str = "latent_cache";
    let TokenSlots { positions, slots } = tokens;
    expect_shape(q, OP, "q", &[positions.len(), shape.heads * shape.query()])?;
    expect_shape(latent, OP, "the latent", &[positions.len(), shape.width()])?;
    expect_shape(norm, OP, "the norm", &[shape.rank])?;
    check(OP, shape, kv)?;
    if slots.len() != positions.len() || rope.rotary_dim() != shape.rope {
        bail!("{OP}: {} slots for {} tokens, {} rotated", slots.len(), positions.len(), rope.rotary_dim());
    }
    if let Some(position) = positions.iter().find(|&&position| position as usize >= rope.max_positions()) {
        bail!("{OP}: position {position} is outside a table of {}", rope.max_positions());
    }
    let end = kv.blocks() * KvLayout::BLOCK_SIZE;
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= end) {
        bail!("{OP}: slot {slot} is outside a cache of {end}");
    }
    let norm = Source::new(norm, OP, "the norm")?;
    write_f32(q, OP, &[latent], |q| {
        write_f32(latent, OP, &[], |latent| {
            kv.write(|kv| cpu.latent_cache(q, latent, shape, &norm, eps, positions, slots, rope, kv));
            Ok(())
        })
    })
}

/// Absorbs the up-projection of keys: of each head of `q [t, heads * (nope + rope)]` the first part times its matrix of
/// `weights`, `[rank, nope]` each, and the rotated part as it is, to `dst [t, heads * (rank + rope)]`.
///
/// # Errors
/// If shapes do not fit.
pub fn absorb_queries(cpu: &Cpu, q: &Tensor, weights: &[Matrix], shape: LatentShape, dst: &Tensor) -> Result<()> {
    const OP: &str = "absorb_queries";
    let (tokens, _) = shape2(q, OP, "q")?;
    let (from, to) = (shape.heads * shape.query(), shape.heads * shape.width());
    expect_shape(q, OP, "q", &[tokens, from])?;
    expect_shape(dst, OP, "the destination", &[tokens, to])?;
    expect_weights(OP, weights, shape.heads, shape.rank, shape.nope)?;
    write_f32(dst, OP, &[q], |out| {
        let q = Source::new(q, OP, "q")?;
        for (head, weight) in weights.iter().enumerate() {
            let x = Strided { offset: head * shape.query(), stride: from };
            let place = Strided { offset: head * shape.width(), stride: to };
            cpu.matmul_strided(tokens, (&q, x), shape.nope, &[weight.as_matrix_ref()], None, (out, place));
        }
        for (out, q) in out.chunks_exact_mut(shape.width()).zip(q.chunks_exact(shape.query())) {
            out[shape.rank..].copy_from_slice(&q[shape.nope..]);
        }
        Ok(())
    })
}

/// Attention of absorbed queries `q [t, heads * (rank + rope)]` to `dst [t, heads * rank]`.
///
/// # Errors
/// If shapes do not fit.
///
/// # Panics
/// If `inputs` does not fit itself or the cache: a wrong block table would show one user another's text.
pub fn latent_attention(
    cpu: &Cpu,
    q: &Tensor,
    shape: LatentShape,
    kv: &KvLayer,
    inputs: AttentionRef<'_>,
    scale: f32,
    dst: &Tensor,
) -> Result<()> {
    const OP: &str = "latent_attention";
    let (tokens, _) = shape2(q, OP, "q")?;
    expect_shape(q, OP, "q", &[tokens, shape.heads * shape.width()])?;
    expect_shape(dst, OP, "the destination", &[tokens, shape.heads * shape.rank])?;
    check(OP, shape, kv)?;
    write_f32(dst, OP, &[q], |out| {
        let q = Source::new(q, OP, "q")?;
        kv.read(|layer| cpu.latent_attention(&q, shape, layer, inputs, scale, out));
        Ok(())
    })
}

/// Expands latents to values: each head of `latents [t, heads * rank]` times its matrix of `weights`, `[value, rank]`
/// each, to `dst [t, heads * value]`.
///
/// # Errors
/// If shapes do not fit.
pub fn expand_values(cpu: &Cpu, latents: &Tensor, weights: &[Matrix], shape: LatentShape, dst: &Tensor) -> Result<()> {
    const OP: &str = "expand_values";
    let (tokens, _) = shape2(latents, OP, "latents")?;
    let (from, to) = (shape.heads * shape.rank, shape.heads * shape.value);
    expect_shape(latents, OP, "latents", &[tokens, from])?;
    expect_shape(dst, OP, "the destination", &[tokens, to])?;
    expect_weights(OP, weights, shape.heads, shape.value, shape.rank)?;
    write_f32(dst, OP, &[latents], |out| {
        let latents = Source::new(latents, OP, "latents")?;
        for (head, weight) in weights.iter().enumerate() {
            let x = Strided { offset: head * shape.rank, stride: from };
            let place = Strided { offset: head * shape.value, stride: to };
            cpu.matmul_strided(tokens, (&latents, x), shape.rank, &[weight.as_matrix_ref()], None, (out, place));
        }
        Ok(())
    })
}

fn expect_weights(op: &str, weights: &[Matrix], heads: usize, rows: usize, columns: usize) -> Result<()> {
    let fits = weights.iter().all(|weight| (weight.rows(), weight.columns()) == (rows, columns));
    if weights.len() != heads || !fits {
        bail!("{op}: {weights:?} are not {heads} of [{rows}, {columns}]");
    }
    Ok(())
}

fn check(op: &'static str, shape: LatentShape, kv: &KvLayer) -> Result<()> {
    let layout = kv.layout();
    if layout.planes != KvPlanes::Latent || layout.kv_heads != 1 || layout.head_dim != shape.width() {
        bail!("{op}: {shape:?} does not fit a cache of {layout:?}");
    }
    Ok(())
}
