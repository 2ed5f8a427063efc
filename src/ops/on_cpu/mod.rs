//! The operations over Candle's tensors on the CPU: f32, contiguous.
//!
//! Checks shapes, dtypes and layouts, then hands slices to the kernels; allocates no results. A destination may start
//! anywhere in its storage, such as the first rows of a larger tensor, but shares it with no source.

mod experts;
mod kv_layer;
mod latent;
mod tensors;

pub use experts::{ExpertTensors, Experts, Routes, clear, experts, route, scale_by_sigmoid};
pub use kv_layer::{KvLayer, QkNormTensors, TokenSlots, attention, copy_blocks, rope_and_cache};
pub use latent::{absorb_queries, expand_values, latent_attention, latent_cache};
pub use tensors::Source;

use super::Matrix;
use crate::cpu::{Cpu, MatrixRef};
use candle_core::{Error, Result, Tensor, bail};
use tensors::{expect_shape, shape2, write_f32};

/// `dst[t] = table[ids[t]]`, as floats: `dst [t, columns of the table]`.
///
/// # Errors
/// If an id has no row, or shapes do not fit.
pub fn embed(cpu: &Cpu, table: &Matrix, ids: &[u32], dst: &Tensor) -> Result<()> {
    const OP: &str = "embed";
    expect_shape(dst, OP, "the destination", &[ids.len(), table.columns()])?;
    write_f32(dst, OP, &[], |out| cpu.embed(table.as_matrix_ref(), ids, out).map_err(Error::wrap))
}

/// `dst[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight`: `x` and `dst` `[t, h]`, `weight [h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn rms_norm(cpu: &Cpu, x: &Tensor, weight: &Tensor, eps: f32, dst: &Tensor) -> Result<()> {
    const OP: &str = "rms_norm";
    let (rows, width) = shape2(x, OP, "x")?;
    expect_shape(weight, OP, "weight", &[width])?;
    expect_shape(dst, OP, "the destination", &[rows, width])?;
    write_f32(dst, OP, &[x, weight], |out| {
        cpu.rms_norm(&Source::new(x, OP, "x")?, &Source::new(weight, OP, "weight")?, eps, out);
        Ok(())
    })
}

/// `residual += x` in place, then `dst = rms_norm(residual)`: `residual`, `x`, `dst` `[t, h]`, `weight [h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn add_rms_norm(cpu: &Cpu, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32, dst: &Tensor) -> Result<()> {
    const OP: &str = "add_rms_norm";
    let (rows, width) = shape2(x, OP, "x")?;
    expect_shape(residual, OP, "residual", &[rows, width])?;
    expect_shape(weight, OP, "weight", &[width])?;
    expect_shape(dst, OP, "the destination", &[rows, width])?;
    write_f32(dst, OP, &[residual, x, weight], |out| {
        write_f32(residual, OP, &[x, weight], |residual| {
            let (x, weight) = (Source::new(x, OP, "x")?, Source::new(weight, OP, "weight")?);
            cpu.add_rms_norm(residual, &x, &weight, eps, out);
            Ok(())
        })
    })
}

/// `residual += x` in place: both `[t, h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn add(residual: &Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "add";
    let (rows, width) = shape2(x, OP, "x")?;
    expect_shape(residual, OP, "residual", &[rows, width])?;
    write_f32(residual, OP, &[x], |residual| {
        let x = Source::new(x, OP, "x")?;
        residual.iter_mut().zip(x.iter()).for_each(|(residual, x)| *residual += x);
        Ok(())
    })
}

/// `dst[t, n] = sum over k of x[t, k] * w[n, k] (+ bias[n])`: `x [t, k]`, `dst [t, n]`, `bias [n]`; `n` runs over the rows
/// of all `parts`, stacked, whose formats may differ.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn linear(cpu: &Cpu, x: &Tensor, parts: &[Matrix], bias: Option<&Tensor>, dst: &Tensor) -> Result<()> {
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
        cpu.matmul(&Source::new(x, OP, "x")?, columns, &parts, bias.as_deref(), out);
        Ok(())
    })
}

/// `dst[t, i] = silu(gate[t, i]) * up[t, i]`: `gate_up [t, 2 f]` holds a row's gates, then its ups; `dst [t, f]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn silu_mul(cpu: &Cpu, gate_up: &Tensor, dst: &Tensor) -> Result<()> {
    const OP: &str = "silu_mul";
    let (rows, width) = shape2(dst, OP, "the destination")?;
    expect_shape(gate_up, OP, "gate_up", &[rows, 2 * width])?;
    write_f32(dst, OP, &[gate_up], |out| {
        cpu.silu_mul(&Source::new(gate_up, OP, "gate_up")?, width, out);
        Ok(())
    })
}

/// `residual[row] += x[row]` in place for each of `rows`, then `dst[i] = rms_norm(residual[rows[i]])`: `residual`, `x`
/// `[t, h]`, `weight [h]`, `dst [rows.len(), h]`. A row comes once at most, since it is added to.
///
/// # Errors
/// If a row is outside `x`, or shapes or dtypes do not fit.
pub fn add_rms_norm_rows(
    cpu: &Cpu,
    residual: &Tensor,
    x: &Tensor,
    rows: &[u32],
    weight: &Tensor,
    eps: f32,
    dst: &Tensor,
) -> Result<()> {
    const OP: &str = "add_rms_norm_rows";
    let (count, width) = shape2(x, OP, "x")?;
    expect_shape(residual, OP, "residual", &[count, width])?;
    expect_shape(weight, OP, "weight", &[width])?;
    expect_shape(dst, OP, "the destination", &[rows.len(), width])?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= count) {
        bail!("{OP}: row {row} is outside {count}");
    }
    write_f32(dst, OP, &[residual, x, weight], |out| {
        write_f32(residual, OP, &[x, weight], |residual| {
            let (x, weight) = (Source::new(x, OP, "x")?, Source::new(weight, OP, "weight")?);
            for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
                let place = row as usize * width..(row as usize + 1) * width;
                cpu.add_rms_norm(&mut residual[place.clone()], &x[place], &weight, eps, out);
            }
            Ok(())
        })
    })
}
