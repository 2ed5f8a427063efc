//! Dense matrices turned into blocks, a few rows at a time on every core.
//!
//! Knows no names. The blocks are candle's: ggml's reference quantisers in Rust.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Error, Result, Tensor, bail};
use rayon::prelude::*;

use crate::ops::{Format, Matrix};

/// Elements that one core turns at a time: 1 MB as f32.
const ELEMENTS_AT_ONCE: usize = 1 << 18;

/// `matrix`, which is dense, in blocks of `format`, in memory of its own. `release` is told of bytes that have been read.
///
/// # Errors
/// `format` has no blocks that are made here, or rows are no whole number of them.
pub(super) fn quantize(matrix: &Matrix, format: Format, release: &(dyn Fn(&[u8]) + Sync)) -> Result<Matrix> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let dtype = ggml_type(format)?;
    let Some(row_bytes) = format.row_bytes(columns) else { bail!("rows of {columns} are no whole blocks of {format}") };
    let rows_at_once = (ELEMENTS_AT_ONCE / columns.max(1)).max(1);
    let mut blocks = vec![0; rows * row_bytes];
    blocks.par_chunks_mut(rows_at_once * row_bytes).enumerate().try_for_each(|(index, blocks)| {
        let (from, count) = (index * rows_at_once, blocks.len() / row_bytes);
        let values = matrix.dequantize_rows(from, count);
        release(matrix.slice(from, count).bytes());
        let values = Tensor::from_vec(values, (count, columns), &Device::Cpu)?;
        blocks.copy_from_slice(&QTensor::quantize(&values, dtype)?.data()?);
        Ok::<(), Error>(())
    })?;
    release(matrix.bytes());
    let range = 0..blocks.len();
    Matrix::new(format, rows, columns, Arc::new(blocks), range).map_err(Error::wrap)
}

/// What candle calls a format that it quantises to.
fn ggml_type(format: Format) -> Result<GgmlDType> {
    Ok(match format {
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q6K => GgmlDType::Q6K,
        other => bail!("nothing turns weights into {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A matrix of numbers near a normal distribution, whose rows are of different size.
    fn numbers(rows: usize, columns: usize) -> Vec<f32> {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..rows * columns).map(|at| (uniform() + uniform() + uniform()) * (1 + at / columns) as f32).collect()
    }

    /// ||a - b|| / ||b||.
    fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let difference: f64 = found.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
        (difference / wanted.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
    }

    /// The largest relative error of rows of normal numbers, by format: about half a step of a block's largest number.
    const TOLERANCES: [(Format, f64); 5] =
        [(Format::Q8_0, 0.008), (Format::Q6K, 0.025), (Format::Q5_0, 0.06), (Format::Q4K, 0.09), (Format::Q4_0, 0.12)];

    #[test]
    fn blocks_are_near_the_numbers_by_our_own_decoder_and_as_near_as_by_candles() {
        // Several pieces, of which the last is smaller.
        let (rows, columns) = (700, 1024);
        let values = numbers(rows, columns);
        let matrix = Matrix::from_f32(rows, columns, &values).expect("a matrix");
        let mut last = 0.0;
        for (format, tolerance) in TOLERANCES {
            let released = Mutex::new(0);
            let blocks = quantize(&matrix, format, &|bytes| *released.lock().expect("no panic") += bytes.len());
            let blocks = blocks.expect("whole blocks");
            assert_eq!((blocks.format(), blocks.rows(), blocks.columns()), (format, rows, columns));
            assert_eq!(
                released.into_inner().expect("no panic"),
                2 * matrix.bytes().len(),
                "each byte, and all once more"
            );
            let ours = blocks.dequantize();
            for (row, (ours, wanted)) in ours.chunks(columns).zip(values.chunks(columns)).enumerate() {
                let error = relative_error(ours, wanted);
                assert!(error > last * 0.5 && error < tolerance, "{format} row {row}: {error}");
            }
            last = relative_error(&ours, &values);
            let whole = Tensor::from_slice(&values, (rows, columns), &Device::Cpu).expect("a tensor");
            let whole = QTensor::quantize(&whole, ggml_type(format).expect("known")).expect("whole blocks");
            let theirs = whole.dequantize(&Device::Cpu).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
            let difference = relative_error(&ours, &theirs.expect("f32"));
            assert!(difference < 1e-6, "{format}: our decoder reads other numbers than candle's: {difference}");
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_are_refused() {
        let matrix = Matrix::from_f32(2, 48, &numbers(2, 48)).expect("a matrix");
        let error = quantize(&matrix, Format::Q8_0, &|_| ()).expect_err("48 is no multiple of 32").to_string();
        // A backtrace may follow.
        assert_eq!(error.lines().next(), Some("rows of 48 are no whole blocks of Q8_0"));
        assert!(quantize(&matrix, Format::Bf16, &|_| ()).is_err());
    }
}
