//! Products in fp8: numbers and scales on their way, and what cuBLASLt makes of them, beside the host.

use std::sync::{Arc, OnceLock};

use super::gemm::{floats, product, random, relative_error, rounded, tensor};
use super::{gpu, quant};
use crate::cuda::{Blas, BlockFormat, BlockMatrix, CudaError, DType, DeviceTensor, ElementwiseKernels, GemvFp8};
use crate::ops::{Format, Matrix};

fn kernels() -> &'static ElementwiseKernels {
    static KERNELS: OnceLock<ElementwiseKernels> = OnceLock::new();
    KERNELS.get_or_init(|| ElementwiseKernels::load(gpu()).expect("our kernels are in this build"))
}

/// The numbers that bytes of e4m3 stand for: a matrix whose scales are 1.
fn decoded(bytes: &[u8], columns: usize) -> Vec<f32> {
    let blocks = bytes.chunks_exact(32).flat_map(|block| 1_f32.to_le_bytes().into_iter().chain(block.iter().copied()));
    let blocks: Vec<u8> = blocks.collect();
    let (rows, range) = (bytes.len() / columns, 0..blocks.len());
    Matrix::new(Format::Fp8x32, rows, columns, Arc::new(blocks), range).expect("whole blocks").dequantize()
}

/// Random e4m3 with one scale in each row; its bytes and scales, as a file has them apart.
fn row_scaled(format: Format, rows: usize, columns: usize) -> (Matrix, Vec<u8>, Vec<f32>) {
    let quants: Vec<u8> = random(rows * columns, 5).iter().map(|value| ((value + 1.0) * 127.9) as u8 & 0xBF).collect();
    let scales: Vec<f32> = random(rows, 6).iter().map(|value| 0.02 * (1.5 + value)).collect();
    let mut blocks = Vec::new();
    for (row, scale) in quants.chunks(columns).zip(&scales) {
        for block in row.chunks(format.block_len()) {
            blocks.extend(scale.to_le_bytes().into_iter().chain(block.iter().copied()));
        }
    }
    let range = 0..blocks.len();
    (Matrix::new(format, rows, columns, Arc::new(blocks), range).expect("whole blocks"), quants, scales)
}

fn quantized(x: &DeviceTensor) -> Result<(DeviceTensor, DeviceTensor), CudaError> {
    let quants = tensor(x.rows(), x.columns(), DType::Fp8, &vec![0x7F; x.rows() * x.columns()]);
    let scales = tensor(1, x.rows(), DType::F32, &vec![0xFF; 4 * x.rows()]);
    kernels().quantize_rows(gpu(), x, &quants, &scales)?;
    Ok((quants, scales))
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_rows_are_rounded_to_fp8_by_their_largest() -> Result<(), CudaError> {
    for dtype in [DType::Bf16, DType::F16] {
        for (rows, columns) in [(1, 32), (3, 96), (5, 4096), (2, 14_336), (2, 20_000)] {
            let mut values = random(rows * columns, 8);
            values[columns - 1] = 3.5;
            if rows > 1 {
                values[columns..2 * columns].fill(0.0);
            }
            let (bytes, x) = rounded(&values, dtype);
            let (quants, scales) = quantized(&tensor(rows, columns, dtype, &bytes))?;
            let scales = floats(&gpu().download(&scales)?, DType::F32);
            let found = decoded(&gpu().download(&quants)?, columns);
            for (row, (x, found)) in x.chunks(columns).zip(found.chunks(columns)).enumerate() {
                let most = x.iter().fold(0_f32, |most, value| most.max(value.abs()));
                let scale = if most > 0.0 { most / 448.0 } else { 1.0 };
                assert!((scales[row] / scale - 1.0).abs() < 1e-6, "row {row} of {columns}: {} {scale}", scales[row]);
                for (x, quant) in x.iter().zip(found) {
                    // Half of the last of three bits; below the smallest normal number half of the smallest of all.
                    let allowed = (x.abs() / 16.0).max(scale / 1024.0) * 1.001;
                    assert!(
                        (quant * scale - x).abs() <= allowed,
                        "row {row} of {columns}: {x} became {}",
                        quant * scale
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_numbers_and_scales_of_fp8_come_apart_exactly() -> Result<(), CudaError> {
    for (format, block_format) in [(Format::Fp8x32, BlockFormat::Fp8(32)), (Format::Fp8x128, BlockFormat::Fp8(128))] {
        for (rows, columns) in [(16, 128), (40, 384), (130, 1152)] {
            let (matrix, quants, scales) = row_scaled(format, rows, columns);
            let w = quant::upload(&matrix, block_format)?;
            let found = tensor(rows, columns, DType::Fp8, &vec![0x7F; rows * columns]);
            let found_scales = tensor(1, rows, DType::F32, &vec![0xFF; 4 * rows]);
            quant::kernels().unpack_fp8(gpu(), &w, &found, &found_scales)?;
            // Zeros may change their sign.
            let plain =
                |bytes: &[u8]| bytes.iter().map(|byte| if *byte == 0x80 { 0 } else { *byte }).collect::<Vec<_>>();
            assert_eq!(plain(&gpu().download(&found)?), plain(&quants), "{format} [{rows}, {columns}]");
            assert_eq!(floats(&gpu().download(&found_scales)?, DType::F32), scales, "{format} [{rows}, {columns}]");
        }
    }
    Ok(())
}

/// cuBLASLt, where it opens and multiplies fp8 with a scale a row; else `test` is passed over, and that is said.
fn blas_of_fp8(test: &str) -> Option<Blas> {
    match Blas::open(gpu(), &[]) {
        Ok(blas) if blas.takes_fp8() => return Some(blas),
        Ok(blas) => eprintln!("{test} is passed over: {} has no such product of fp8 here", blas.description()),
        Err(missing) => eprintln!("{test} is passed over: {missing}"),
    }
    None
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_products_in_fp8_are_those_of_the_host() -> Result<(), CudaError> {
    let Some(blas) = blas_of_fp8("cuda_products_in_fp8_are_those_of_the_host") else { return Ok(()) };
    for (rows, outputs, inputs) in [(1, 64, 128), (97, 160, 384), (200, 2048, 1024), (513, 48, 4096)] {
        let (matrix, quants, _) = row_scaled(Format::Fp8x128, outputs, inputs);
        let (bytes, _) = rounded(&random(rows * inputs, 3), DType::Bf16);
        let (x, x_scales) = quantized(&tensor(rows, inputs, DType::Bf16, &bytes))?;
        let scales = floats(&gpu().download(&x_scales)?, DType::F32);
        let mut x_values = decoded(&gpu().download(&x)?, inputs);
        for (row, scale) in x_values.chunks_mut(inputs).zip(&scales) {
            row.iter_mut().for_each(|value| *value *= scale);
        }
        let expected = product(&x_values, &matrix.dequantize(), inputs);
        let w = quant::upload(&matrix, BlockFormat::Fp8(128))?;
        let (w8, w_scales) =
            (tensor(outputs, inputs, DType::Fp8, &quants), gpu().empty(1, outputs, DType::F32, "a test")?);
        quant::kernels().unpack_fp8(gpu(), &w, &w8, &w_scales)?;
        let y = tensor(rows, outputs, DType::Bf16, &vec![0xFF; 2 * rows * outputs]);
        blas.multiply_fp8(gpu(), (&x, &x_scales), (&w8, &w_scales), &y)?;
        let error = relative_error(&floats(&gpu().download(&y)?, DType::Bf16), &expected);
        assert!(error < 6e-3, "{rows} rows of [{outputs}, {inputs}]: off by {error:.2e}");
    }
    Ok(())
}

fn gemv() -> &'static GemvFp8 {
    static KERNELS: OnceLock<GemvFp8> = OnceLock::new();
    KERNELS.get_or_init(|| GemvFp8::load(gpu()).expect("our kernels are in this build"))
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_products_of_few_rows_with_fp8_are_those_of_the_host() -> Result<(), CudaError> {
    for (outputs, inputs) in [(16, 128), (40, 384), (130, 1152), (4096, 512)] {
        let (matrix, quants, scales) = row_scaled(Format::Fp8x128, outputs, inputs);
        let w = tensor(outputs, inputs, DType::Fp8, &quants);
        let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_ne_bytes()).collect();
        let scales = tensor(1, outputs, DType::F32, &scales);
        for dtype in [DType::Bf16, DType::F16] {
            let (bytes, x) = rounded(&random(8 * inputs, 3), dtype);
            let expected = product(&x, &matrix.dequantize(), inputs);
            let x = tensor(8, inputs, dtype, &bytes);
            let mut first = None;
            for rows in [1, 2, 5, 8] {
                for output in [dtype, DType::F32] {
                    let y = tensor(rows + 1, outputs, output, &vec![0xFF; (rows + 1) * outputs * output.size()]);
                    gemv().multiply(gpu(), &x.slice(0, rows), (&w, &scales), &y.slice(0, rows))?;
                    let found = gpu().download(&y)?;
                    let (own, outside) = found.split_at(rows * outputs * output.size());
                    assert!(outside.iter().all(|byte| *byte == 0xFF), "writes outside");
                    let error = relative_error(&floats(own, output), &expected[..rows * outputs]);
                    let limit = if output == DType::F32 { 1e-4 } else { 4e-3 };
                    assert!(error < limit, "{rows} rows of [{outputs}, {inputs}] {dtype:?}: off by {error:.2e}");
                    if output == DType::F32 {
                        let row = own[..4 * outputs].to_vec();
                        assert!(*first.get_or_insert(row.clone()) == row, "a row depends on the others");
                    }
                }
                let half = outputs / 2;
                let y = tensor(rows, half, dtype, &vec![0xFF; rows * half * 2]);
                gemv().silu(gpu(), &x.slice(0, rows), (&w, &scales), &y)?;
                let silu = |row: &[f32]| -> Vec<f32> {
                    let (gate, up) = row.split_at(half);
                    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
                };
                let wanted: Vec<f32> = expected.chunks(outputs).take(rows).flat_map(silu).collect();
                let error = relative_error(&floats(&gpu().download(&y)?, dtype), &wanted);
                assert!(error < 6e-3, "gated, {rows} rows of [{outputs}, {inputs}] {dtype:?}: off by {error:.2e}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_fp8() -> Result<(), CudaError> {
    let Some(blas) = blas_of_fp8("cuda_bench_fp8") else { return Ok(()) };
    for (outputs, inputs) in [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)] {
        let w = BlockMatrix::empty(gpu(), BlockFormat::Fp8(128), outputs, inputs)?;
        let (w8, w_scales) =
            (gpu().zeros(outputs, inputs, DType::Fp8, "a test")?, gpu().zeros(1, outputs, DType::F32, "a test")?);
        let unpack = gpu().time(16, |gpu| quant::kernels().unpack_fp8(gpu, &w, &w8, &w_scales))?;
        let mut line = format!("{outputs:>6} x {inputs:<6} unpack {unpack:.1}");
        for rows in [1, 8] {
            let x = tensor(rows, inputs, DType::Bf16, &rounded(&random(rows * inputs, 3), DType::Bf16).0);
            let y = gpu().empty(rows, outputs, DType::Bf16, "a test")?;
            // Several matrices in turn, more than the L2 cache holds.
            let all: Vec<_> =
                (0..8).map(|_| gpu().zeros(outputs, inputs, DType::Fp8, "a test")).collect::<Result<_, _>>()?;
            let mut turn = all.iter().cycle();
            let us = gpu().time(32, |gpu| gemv().multiply(gpu, &x, (turn.next().expect("endless"), &w_scales), &y))?;
            line += &format!("  {rows}: {us:.1} us ({:.0} GB/s)", (outputs * inputs) as f64 / us / 1e3);
        }
        for rows in [128, 512, 2048, 8192] {
            let bytes = rounded(&random(rows * inputs, 3), DType::Bf16).0;
            let x = tensor(rows, inputs, DType::Bf16, &bytes);
            let (x8, x_scales) = quantized(&x)?;
            let y = gpu().empty(rows, outputs, DType::Bf16, "a test")?;
            let quantize = gpu().time(16, |gpu| kernels().quantize_rows(gpu, &x, &x8, &x_scales))?;
            let us = gpu().time(16, |gpu| blas.multiply_fp8(gpu, (&x8, &x_scales), (&w8, &w_scales), &y))?;
            let rate = 2.0 * (rows * outputs * inputs) as f64 / us / 1e6;
            line += &format!("  {rows}: {quantize:.1} + {us:.1} us ({rate:.0} TFLOP/s)");
        }
        println!("{line}");
    }
    Ok(())
}
