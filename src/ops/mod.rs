//! The operations a step is made of, each writing into a tensor that the `Workspace` holds.
//!
//! Checks shapes, dtypes and layouts, then hands slices to the kernels; allocates no results. Knows no models. Every
//! tensor is f32, contiguous and on the CPU; a destination may start anywhere in its storage, such as the first rows of
//! a larger tensor, but shares it with no source.

mod kv_layer;
mod matrix;
mod tensors;
#[cfg(test)]
mod tests;

pub use crate::cpu::{AttentionRef, Cpu, CpuError, Format, HeadShape, KvLayout, MatrixRef, RopeLayout, RopeTable};
pub use kv_layer::{KvLayer, QkNormTensors, TokenSlots, attention, copy_blocks, rope_and_cache};
#[cfg(test)]
pub use matrix::MatrixError;
pub use matrix::{Bytes, Matrix};

use candle_core::{Error, Result, Tensor, bail};
use std::num::NonZeroUsize;
use std::sync::Arc;
pub use tensors::Source;
use tensors::{expect_shape, shape2, write_f32};

/// What computes: handed down by reference, cheap to clone.
#[derive(Clone)]
pub struct Compute {
    cpu: Arc<Cpu>,
}

impl Compute {
    /// The CPU with `threads` threads, all cores where `None`.
    pub fn new(threads: Option<NonZeroUsize>) -> Self {
        Self::from_cpu(Arc::new(Cpu::new(threads)))
    }

    /// A CPU that is there already.
    pub fn from_cpu(cpu: Arc<Cpu>) -> Self {
        Self { cpu }
    }

    /// The CPU's kernels.
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }
}

/// `dst[t] = table[ids[t]]`, as floats: `dst [t, columns of the table]`.
///
/// # Errors
/// If an id has no row, or shapes do not fit.
pub fn embed(compute: &Compute, table: &Matrix, ids: &[u32], dst: &Tensor) -> Result<()> {
    const OP: &str = "embed";
    expect_shape(dst, OP, "the destination", &[ids.len(), table.columns()])?;
    write_f32(dst, OP, &[], |out| compute.cpu.embed(table.as_matrix_ref(), ids, out).map_err(Error::wrap))
}

/// `dst[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight`: `x` and `dst` `[t, h]`, `weight [h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn rms_norm(compute: &Compute, x: &Tensor, weight: &Tensor, eps: f32, dst: &Tensor) -> Result<()> {
    const OP: &str = "rms_norm";
    let (rows, width) = shape2(x, OP, "x")?;
    expect_shape(weight, OP, "weight", &[width])?;
    expect_shape(dst, OP, "the destination", &[rows, width])?;
    write_f32(dst, OP, &[x, weight], |out| {
        compute.cpu.rms_norm(&Source::new(x, OP, "x")?, &Source::new(weight, OP, "weight")?, eps, out);
        Ok(())
    })
}

/// `residual += x` in place, then `dst = rms_norm(residual)`: `residual`, `x`, `dst` `[t, h]`, `weight [h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn add_rms_norm(
    compute: &Compute,
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dst: &Tensor,
) -> Result<()> {
    const OP: &str = "add_rms_norm";
    let (rows, width) = shape2(x, OP, "x")?;
    expect_shape(residual, OP, "residual", &[rows, width])?;
    expect_shape(weight, OP, "weight", &[width])?;
    expect_shape(dst, OP, "the destination", &[rows, width])?;
    write_f32(dst, OP, &[residual, x, weight], |out| {
        write_f32(residual, OP, &[x, weight], |residual| {
            let (x, weight) = (Source::new(x, OP, "x")?, Source::new(weight, OP, "weight")?);
            compute.cpu.add_rms_norm(residual, &x, &weight, eps, out);
            Ok(())
        })
    })
}

/// `dst[t, n] = sum over k of x[t, k] * w[n, k] (+ bias[n])`: `x [t, k]`, `dst [t, n]`, `bias [n]`; `n` runs over the rows
/// of all `parts`, stacked, whose formats may differ.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn linear(compute: &Compute, x: &Tensor, parts: &[Matrix], bias: Option<&Tensor>, dst: &Tensor) -> Result<()> {
    const OP: &str = "linear";
    let (rows, columns) = shape2(x, OP, "x")?;
    let outputs = parts.iter().map(Matrix::rows).sum();
    if let Some(part) = parts.iter().find(|part| part.columns() != columns) {
        bail!("{OP}: {part:?} has not the {columns} columns of x");
    }
    expect_shape(dst, OP, "the destination", &[rows, outputs])?;
    if let Some(bias) = bias {
        expect_shape(bias, OP, "bias", &[outputs])?;
    }
    let sources: Vec<&Tensor> = std::iter::once(x).chain(bias).collect();
    let parts: Vec<MatrixRef<'_>> = parts.iter().map(Matrix::as_matrix_ref).collect();
    write_f32(dst, OP, &sources, |out| {
        let bias = bias.map(|bias| Source::new(bias, OP, "bias")).transpose()?;
        compute.cpu.matmul(&Source::new(x, OP, "x")?, columns, &parts, bias.as_deref(), out);
        Ok(())
    })
}

/// `dst[t, i] = silu(gate[t, i]) * up[t, i]`: `gate_up [t, 2 f]` holds a row's gates, then its ups; `dst [t, f]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn silu_mul(compute: &Compute, gate_up: &Tensor, dst: &Tensor) -> Result<()> {
    const OP: &str = "silu_mul";
    let (rows, width) = shape2(dst, OP, "the destination")?;
    expect_shape(gate_up, OP, "gate_up", &[rows, 2 * width])?;
    write_f32(dst, OP, &[gate_up], |out| {
        compute.cpu.silu_mul(&Source::new(gate_up, OP, "gate_up")?, width, out);
        Ok(())
    })
}

/// `dst[i] = x[rows[i]]`: `x [t, h]`, `dst [rows.len(), h]`.
///
/// # Errors
/// If a row is outside `x`, or shapes or dtypes do not fit.
pub fn gather_rows(_compute: &Compute, x: &Tensor, rows: &[u32], dst: &Tensor) -> Result<()> {
    const OP: &str = "gather_rows";
    let (count, width) = shape2(x, OP, "x")?;
    expect_shape(dst, OP, "the destination", &[rows.len(), width])?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= count) {
        bail!("{OP}: row {row} is outside {count}");
    }
    write_f32(dst, OP, &[x], |out| {
        let x = Source::new(x, OP, "x")?;
        for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
            out.copy_from_slice(&x[row as usize * width..][..width]);
        }
        Ok(())
    })
}
