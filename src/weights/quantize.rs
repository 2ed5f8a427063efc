//! Dense matrices turned into blocks, a few rows at a time on every core.
//!
//! Knows no names. GGUF's blocks are candle's: ggml's reference quantisers in Rust. Those of fp8 have one scale in each row.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Error, Result, Tensor, bail};
use rayon::prelude::*;

use crate::ops::{Format, Matrix, without_backtrace};

/// Elements that one core turns at a time: 1 MB as f32.
const ELEMENTS_AT_ONCE: usize = 1 << 18;

/// `matrix`, which is dense, in blocks of `format`, in memory of its own. `release` is told of bytes that have been read.
///
/// # Errors
/// `format` has no blocks that are made here, or rows are no whole number of them.
pub(super) fn quantize(matrix: &Matrix, format: Format, release: &(dyn Fn(&[u8]) + Sync)) -> Result<Matrix> {
    turn(matrix, format, release).map_err(without_backtrace)
}

fn turn(matrix: &Matrix, format: Format, release: &(dyn Fn(&[u8]) + Sync)) -> Result<Matrix> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let encoding = Encoding::of(format)?;
    let Some(row_bytes) = format.row_bytes(columns) else { bail!("rows of {columns} are no whole blocks of {format}") };
    let rows_at_once = (ELEMENTS_AT_ONCE / columns.max(1)).max(1);
    let mut blocks = vec![0; rows * row_bytes];
    blocks.par_chunks_mut(rows_at_once * row_bytes).enumerate().try_for_each(|(index, blocks)| {
        let (from, count) = (index * rows_at_once, blocks.len() / row_bytes);
        let values = matrix.dequantize_rows(from, count);
        release(matrix.slice(from, count).bytes());
        match encoding {
            Encoding::Ggml(dtype) => {
                let values = Tensor::from_vec(values, (count, columns), &Device::Cpu)?;
                blocks.copy_from_slice(&QTensor::quantize(&values, dtype)?.data()?);
                Ok(())
            }
            Encoding::Fp8 => {
                let rows = values.chunks(columns).zip(blocks.chunks_mut(row_bytes));
                rows.enumerate().try_for_each(|(row, (values, blocks))| match write_fp8(values, format, blocks) {
                    true => Ok(()),
                    false => bail!("row {} has a number that is not finite", from + row),
                })
            }
        }
    })?;
    release(matrix.bytes());
    let range = 0..blocks.len();
    Matrix::new(format, rows, columns, Arc::new(blocks), range).map_err(Error::wrap)
}

/// Who makes the blocks of a format.
#[derive(Clone, Copy)]
enum Encoding {
    /// Candle, which calls the format so.
    Ggml(GgmlDType),
    /// [`write_fp8`].
    Fp8,
}

impl Encoding {
    fn of(format: Format) -> Result<Self> {
        Ok(Self::Ggml(match format {
            Format::Q4_0 => GgmlDType::Q4_0,
            Format::Q5_0 => GgmlDType::Q5_0,
            Format::Q8_0 => GgmlDType::Q8_0,
            Format::Q4K => GgmlDType::Q4K,
            Format::Q6K => GgmlDType::Q6K,
            Format::Fp8x32 | Format::Fp8x64 | Format::Fp8x128 => return Ok(Self::Fp8),
            other => bail!("nothing turns weights into {other}"),
        }))
    }
}

/// The largest e4m3.
const MOST_E4M3: f32 = 448.0;

/// Writes a row as blocks of fp8 that all have the same scale, with which the row's largest number becomes [`MOST_E4M3`];
/// 1 for a row of zeros. Whether all numbers are finite: else what is written means nothing.
fn write_fp8(row: &[f32], format: Format, blocks: &mut [u8]) -> bool {
    let most = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    // Rows of the smallest numbers that there are have no scale.
    let scale = if most / MOST_E4M3 >= f32::MIN_POSITIVE { most / MOST_E4M3 } else { 1.0 };
    for (values, block) in row.chunks(format.block_len()).zip(blocks.chunks_mut(format.block_bytes())) {
        let (head, body) = block.split_at_mut(4);
        head.copy_from_slice(&scale.to_le_bytes());
        body.iter_mut().zip(values).for_each(|(byte, value)| *byte = e4m3(value / scale));
    }
    row.iter().all(|value| value.is_finite())
}

/// The nearest number of a sign, 4 bits of exponent with a bias of 7, and 3 bits of fraction; of two the even one. What is
/// larger than all becomes the largest.
///
/// Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
fn e4m3(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let size = value.abs().min(MOST_E4M3);
    // Below 2^-6 numbers are multiples of 2^-9.
    if size < 1.0 / 64.0 {
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    // Half of the last bit that stays, less one where that bit is 0, carries into it.
    let bits = size.to_bits();
    let rounded = (bits + 0x7_FFFF + (bits >> 20 & 1)) >> 20;
    sign | (rounded - ((127 - 7) << 3)) as u8
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
            let Ok(Encoding::Ggml(dtype)) = Encoding::of(format) else { panic!("{format} is ggml's") };
            let whole = QTensor::quantize(&whole, dtype).expect("whole blocks");
            let theirs = whole.dequantize(&Device::Cpu).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
            let difference = relative_error(&ours, &theirs.expect("f32"));
            assert!(difference < 1e-6, "{format}: our decoder reads other numbers than candle's: {difference}");
        }
    }

    #[test]
    fn rows_of_fp8_have_one_scale_and_the_nearest_numbers() {
        for (format, columns) in [(Format::Fp8x32, 1056), (Format::Fp8x64, 1088), (Format::Fp8x128, 1024)] {
            // Several pieces; a row of zeros, and one of numbers that hardly are any.
            let rows = 700;
            let mut values = numbers(rows, columns);
            values[columns..2 * columns].fill(0.0);
            values[2 * columns..3 * columns].fill(f32::MIN_POSITIVE / 3.0);
            let matrix = Matrix::from_f32(rows, columns, &values).expect("a matrix");
            let blocks = quantize(&matrix, format, &|_| ()).expect("whole blocks");
            assert_eq!((blocks.format(), blocks.rows(), blocks.columns()), (format, rows, columns));
            let found = blocks.dequantize();
            let row_bytes = format.row_bytes(columns).expect("whole blocks");
            for (row, bytes) in blocks.bytes().chunks(row_bytes).enumerate() {
                let (found, wanted) = (&found[row * columns..][..columns], &values[row * columns..][..columns]);
                let most = wanted.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let scale = if row == 1 || row == 2 { 1.0 } else { most / 448.0 };
                let heads = bytes.chunks(format.block_bytes()).map(|block| &block[..4]);
                assert!(heads.into_iter().all(|head| head == scale.to_le_bytes()), "{format} row {row}");
                for (found, wanted) in found.iter().zip(wanted) {
                    // Half of the last of three bits; below the smallest normal number half of the smallest of all.
                    let allowed = (wanted.abs() / 16.0).max(scale / 1024.0) * 1.0001;
                    assert!((found - wanted).abs() <= allowed, "{format} row {row}: {wanted} became {found}");
                }
            }
        }
    }

    #[test]
    fn a_number_becomes_the_nearest_of_8_bits_and_of_two_the_even_one() {
        // All that are finite, by our own decoder.
        let mut block = 1_f32.to_le_bytes().to_vec();
        block.extend(0..=0x7E_u8);
        block.push(0);
        let range = 0..block.len();
        let all = Matrix::new(Format::Fp8x128, 1, 128, Arc::new(block), range).expect("a block").dequantize();
        for (byte, pair) in all[..0x7F].windows(2).enumerate() {
            let (byte, low, high) = (byte as u8, pair[0], pair[1]);
            let middle = (low + high) / 2.0;
            let even = byte + (byte & 1);
            let cases = [(low, byte), (middle.next_down(), byte), (middle, even), (middle.next_up(), byte + 1)];
            for (value, wanted) in cases {
                assert_eq!((e4m3(value), e4m3(-value)), (wanted, wanted | 0x80), "{value}");
            }
        }
        assert_eq!((e4m3(448.0), e4m3(1e9), e4m3(-449.0)), (0x7E, 0x7E, 0xFE));
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = numbers(3, 64);
            values[70] = bad;
            let matrix = Matrix::from_f32(3, 64, &values).expect("a matrix");
            let error = quantize(&matrix, Format::Fp8x64, &|_| ()).expect_err("it has no scale").to_string();
            assert_eq!(error, "row 1 has a number that is not finite");
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_are_refused() {
        let matrix = Matrix::from_f32(2, 48, &numbers(2, 48)).expect("a matrix");
        let error = quantize(&matrix, Format::Q8_0, &|_| ()).expect_err("48 is no multiple of 32").to_string();
        assert_eq!(error, "rows of 48 are no whole blocks of Q8_0");
        assert!(quantize(&matrix, Format::Bf16, &|_| ()).is_err());
    }
}
