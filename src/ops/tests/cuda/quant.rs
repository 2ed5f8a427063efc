//! Weights in block formats on the GPU beside what the CPU's decoders read from the same bytes.

use std::sync::{Arc, OnceLock};

use super::gemm::{floats, product, random, relative_error, rounded, tensor};
use super::gpu;
use crate::cuda::{BlockFormat, BlockMatrix, CudaError, DType, DeviceTensor, DrawnBlocks, QuantKernels};
use crate::ops::{Format, Matrix};

pub(super) fn kernels() -> &'static QuantKernels {
    static KERNELS: OnceLock<QuantKernels> = OnceLock::new();
    KERNELS.get_or_init(|| QuantKernels::load(gpu()).expect("our kernels are in this build"))
}

/// Each format of files that the GPU reads, and where f16 numbers stand in its blocks.
pub(super) const FORMATS: [(Format, BlockFormat, &[usize]); 17] = [
    (Format::Q4_0, BlockFormat::Q4_0, &[0]),
    (Format::Q4_1, BlockFormat::Q4_1, &[0, 2]),
    (Format::Q5_0, BlockFormat::Q5_0, &[0]),
    (Format::Q5_1, BlockFormat::Q5_1, &[0, 2]),
    (Format::Q8_0, BlockFormat::Q8_0, &[0]),
    (Format::Q2K, BlockFormat::Q2K, &[80, 82]),
    (Format::Q3K, BlockFormat::Q3K, &[108]),
    (Format::Q4K, BlockFormat::Q4K, &[0, 2]),
    (Format::Q5K, BlockFormat::Q5K, &[0, 2]),
    (Format::Q6K, BlockFormat::Q6K, &[208]),
    (Format::Int4x32, BlockFormat::Int4(32), &[0]),
    (Format::Int4x64, BlockFormat::Int4(64), &[0]),
    (Format::Int4x128, BlockFormat::Int4(128), &[0]),
    (Format::Int8x32, BlockFormat::Int8(32), &[0]),
    (Format::Int8x128, BlockFormat::Int8(128), &[0]),
    (Format::Fp8x32, BlockFormat::Fp8(32), &[]),
    (Format::Fp8x128, BlockFormat::Fp8(128), &[]),
];

/// Random blocks of small weights, as a file has them.
pub(super) fn blocks(format: Format, scales: &[usize], rows: usize, columns: usize, seed: u64) -> Matrix {
    let count = rows * format.row_bytes(columns).expect("whole blocks");
    let mut bytes: Vec<u8> = random(count, seed).iter().map(|value| ((value + 1.0) * 128.0) as u8).collect();
    let numbers = random(count, seed + 1);
    for (block, number) in bytes.chunks_exact_mut(format.block_bytes()).zip(&numbers) {
        for (at, sign) in scales.iter().zip([1.0, -1.0]) {
            let scale = half::f16::from_f32(0.001 * sign * (0.6 + 0.4 * number));
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        match format.name().as_bytes() {
            [b'I', ..] => block[2..4].copy_from_slice(&half::f16::from_f32(7.0).to_le_bytes()),
            [b'F', ..] => {
                block[..4].copy_from_slice(&(0.001 * number).to_le_bytes());
                // What is no number is not in a file.
                block[4..].iter_mut().filter(|byte| **byte & 0x7F == 0x7F).for_each(|byte| *byte ^= 1);
            }
            _ => {}
        }
    }
    let range = 0..bytes.len();
    Matrix::new(format, rows, columns, Arc::new(bytes), range).expect("the size is right")
}

/// The matrix on the GPU, brought there in two parts where it has so many rows.
pub(super) fn upload(matrix: &Matrix, format: BlockFormat) -> Result<BlockMatrix, CudaError> {
    let row_bytes = matrix.bytes().len() / matrix.rows();
    let target = BlockMatrix::empty(gpu(), format, matrix.rows(), matrix.columns())?;
    let half = (matrix.rows() / 32 * 16).max(16).min(matrix.rows());
    for (from, count) in [(0, half), (half, matrix.rows() - half)].into_iter().filter(|(_, count)| *count > 0) {
        let staging =
            tensor(count, row_bytes, DType::U8, &matrix.bytes()[from * row_bytes..(from + count) * row_bytes]);
        kernels().repack(gpu(), &staging, &target, from, count)?;
        gpu().synchronize()?;
    }
    Ok(target)
}

const ROWS: [usize; 13] = [1, 2, 3, 5, 8, 9, 16, 31, 32, 33, 70, 96, 200];
const OUTPUTS: [usize; 4] = [16, 40, 130, 2049];

/// Products of all numbers of rows with one matrix, into columns of a wider y: what is wrong with them.
fn compare(matrix: &Matrix, w: &BlockMatrix, dtype: DType) -> Result<Vec<String>, CudaError> {
    let (outputs, inputs, most) = (matrix.rows(), matrix.columns(), ROWS[ROWS.len() - 1]);
    let (before, stride) = (8, outputs + 24);
    let (x_bytes, x) = rounded(&random(most * inputs, 3), dtype);
    let expected = product(&x, &matrix.dequantize(), inputs);
    let x = tensor(most, inputs, dtype, &x_bytes);
    let mut wrong = Vec::new();
    for output in [dtype, DType::F32] {
        for rows in ROWS {
            let y = tensor(rows + 1, stride, output, &vec![0xFF; (rows + 1) * stride * output.size()]);
            kernels().multiply(gpu(), &x.slice(0, rows), w, &y.slice(0, rows), before)?;
            let found = gpu().download(&y)?;
            let mut values = Vec::new();
            let mut outside = found[rows * stride * output.size()..].to_vec();
            for row in found.chunks(stride * output.size()).take(rows) {
                let (first, rest) = row.split_at(before * output.size());
                let (own, last) = rest.split_at(outputs * output.size());
                values.extend(floats(own, output));
                outside.extend(first.iter().chain(last));
            }
            let name = format!("{matrix:?} with {rows} rows of {dtype:?} -> {output:?}");
            if outside.iter().any(|byte| *byte != 0xFF) {
                wrong.push(format!("{name}: writes outside"));
            }
            let error = relative_error(&values, &expected[..rows * outputs]);
            // Quants are summed 1024 (128 for bf16) too large; tensor cores cut off what an f32 sum cannot hold.
            let allowed = match output {
                DType::F32 => 1e-4,
                DType::F16 => 6e-4,
                _ => 4e-3,
            };
            if error.is_nan() || error > allowed {
                wrong.push(format!("{name}: off by {error:.2e}"));
            }
        }
    }
    Ok(wrong)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_products_with_blocks_are_those_of_the_host() -> Result<(), CudaError> {
    let mut wrong = Vec::new();
    for (format, block_format, scales) in FORMATS {
        for outputs in OUTPUTS {
            for count in [1, 2, 3, 7, 16] {
                let matrix = blocks(format, scales, outputs, count * format.block_len(), 9 + outputs as u64);
                let w = upload(&matrix, block_format)?;
                for dtype in [DType::Bf16, DType::F16] {
                    wrong.extend(compare(&matrix, &w, dtype)?);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Small enough for the race checker.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_products_with_blocks() -> Result<(), CudaError> {
    for (format, block_format, scales) in [FORMATS[0], FORMATS[9], FORMATS[12]] {
        let matrix = blocks(format, scales, 40, 512, 4);
        let wrong = compare(&matrix, &upload(&matrix, block_format)?, DType::Bf16)?;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    Ok(())
}

/// Numbers of two bytes, of which no zero has a sign: a quant of 0 may be multiplied with a negative scale or not.
fn without_negative_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.chunks_exact_mut(2).filter(|pair| **pair == [0, 0x80]).for_each(|pair| pair[1] = 0);
    bytes
}

/// Bitwise: a weight is rounded once, as on the host.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_blocks_are_made_dense_as_on_the_host() -> Result<(), CudaError> {
    for (format, block_format, scales) in FORMATS {
        for (rows, count) in [(1, 1), (40, 3), (130, 9)] {
            let matrix = blocks(format, scales, rows, count * format.block_len(), 5);
            let w = upload(&matrix, block_format)?;
            for dtype in [DType::Bf16, DType::F16] {
                let dense = tensor(rows, matrix.columns(), dtype, &vec![0xFF; rows * matrix.columns() * 2]);
                kernels().unpack(gpu(), &w, &dense)?;
                let found = without_negative_zeros(gpu().download(&dense)?);
                let wanted = without_negative_zeros(rounded(&matrix.dequantize(), dtype).0);
                assert!(found == wanted, "{matrix:?} as {dtype:?}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_embeddings_are_looked_up_in_blocks() -> Result<(), CudaError> {
    let ids_on_gpu = |ids: &[u32]| -> DeviceTensor {
        tensor(1, ids.len(), DType::U32, &ids.iter().flat_map(|id| id.to_ne_bytes()).collect::<Vec<u8>>())
    };
    for (format, block_format, scales) in FORMATS {
        let matrix = blocks(format, scales, 50, 3 * format.block_len(), 6);
        let (w, width, values) = (upload(&matrix, block_format)?, matrix.columns(), matrix.dequantize());
        let (ids, last_tokens) = (ids_on_gpu(&[0, 49, 17, 1 << 31 | 1, 50]), ids_on_gpu(&[3, 31]));
        let residual = tensor(5, width, DType::F32, &vec![0xFF; 5 * width * 4]);
        kernels().embed(gpu(), &w, &ids, &last_tokens, &residual)?;
        // Outside the table counts as 0.
        let wanted: Vec<f32> =
            [0, 49, 17, 31, 0].iter().flat_map(|row| &values[row * width..][..width]).copied().collect();
        let error = relative_error(&floats(&gpu().download(&residual)?, DType::F32), &wanted);
        assert!(error < 1e-6, "{format}: off by {error:.2e}");
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_gated_products_with_blocks_are_those_of_the_host() -> Result<(), CudaError> {
    for (format, block_format, scales) in FORMATS {
        let (hidden, inputs) = (144, 5 * format.block_len());
        let matrix = blocks(format, scales, 2 * hidden, inputs, 7);
        let w = upload(&matrix, block_format)?;
        for dtype in [DType::Bf16, DType::F16] {
            let (x_bytes, x) = rounded(&random(8 * inputs, 8), dtype);
            let both = product(&x, &matrix.dequantize(), inputs);
            let silu = |gate: f32| gate / (1.0 + (-gate).exp());
            let row =
                |row: &[f32]| row[..hidden].iter().zip(&row[hidden..]).map(|(g, u)| silu(*g) * u).collect::<Vec<_>>();
            let expected: Vec<f32> = both.chunks(2 * hidden).flat_map(row).collect();
            let x = tensor(8, inputs, dtype, &x_bytes);
            for rows in [1, 3, 8] {
                let y = tensor(rows + 1, hidden, dtype, &vec![0xFF; (rows + 1) * hidden * 2]);
                let (gate, up) = (w.slice(0, hidden), w.slice(hidden, hidden));
                kernels().silu(gpu(), &x.slice(0, rows), &gate, &up, &y.slice(0, rows))?;
                let found = gpu().download(&y)?;
                let (found, guard) = found.split_at(rows * hidden * 2);
                assert!(guard.iter().all(|byte| *byte == 0xFF), "{format}: writes past y");
                let error = relative_error(&floats(found, dtype), &expected[..rows * hidden]);
                assert!(error < 4e-3, "{format} with {rows} rows of {dtype:?}: off by {error:.2e}");
            }
        }
    }
    Ok(())
}

/// What a row gives does not depend on how many rows the product has: up to 8, up to 32, and beyond.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_rows_with_blocks_are_the_same_bits_alone_and_together() -> Result<(), CudaError> {
    let matrix = blocks(Format::Q4K, &[0, 2], 1536, 1536, 3);
    let w = upload(&matrix, BlockFormat::Q4K)?;
    let x = tensor(70, 1536, DType::Bf16, &rounded(&random(70 * 1536, 1), DType::Bf16).0);
    let of = |from: usize, rows: usize| {
        let y = tensor(rows, 1536, DType::F32, &vec![0xFF; rows * 1536 * 4]);
        kernels().multiply(gpu(), &x.slice(from, rows), &w, &y, 0)?;
        gpu().download(&y)
    };
    let row = 1536 * 4;
    let (few, many) = (of(0, 8)?, of(0, 70)?);
    for at in [0, 3, 7] {
        assert!(of(at, 1)? == few[at * row..][..row], "row {at} alone");
    }
    assert!(of(3, 40)? == many[3 * row..][..40 * row], "forty rows of many");
    assert!(of(3, 9)? == of(0, 32)?[3 * row..][..9 * row], "nine rows of 32");
    assert!(of(0, 70)? == many, "again");
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_wrong_products_with_blocks_are_errors() -> Result<(), CudaError> {
    let w = BlockMatrix::empty(gpu(), BlockFormat::Q4K, 32, 512)?;
    let of = |rows, columns, dtype| gpu().zeros(rows, columns, dtype, "a test");
    for (x, y, first) in [
        (of(2, 256, DType::Bf16)?, of(2, 32, DType::Bf16)?, 0),
        (of(2, 512, DType::Bf16)?, of(3, 32, DType::Bf16)?, 0),
        (of(2, 512, DType::Bf16)?, of(2, 32, DType::Bf16)?, 1),
        (of(2, 512, DType::F16)?, of(2, 32, DType::Bf16)?, 0),
        (of(2, 512, DType::F32)?, of(2, 32, DType::F32)?, 0),
    ] {
        assert!(kernels().multiply(gpu(), &x, &w, &y, first).is_err(), "{x:?} -> {y:?} from {first}");
    }
    assert!(BlockMatrix::empty(gpu(), BlockFormat::Q4K, 32, 500).is_err());
    Ok(())
}

/// Weight shapes of an 8B Llama: microseconds, and GB/s of weights.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_quant() -> Result<(), CudaError> {
    let shapes = [
        ("qkv", 6144, 4096),
        ("o", 4096, 4096),
        ("gate_up", 28_672, 4096),
        ("down", 4096, 14_336),
        ("head", 128_256, 4096),
    ];
    let formats = [BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::Q4_0, BlockFormat::Q8_0, BlockFormat::Int4(128)];
    for format in formats {
        for (name, outputs, inputs) in shapes {
            let bytes = format.bytes(outputs, inputs);
            let copies = (200_usize << 20).div_ceil(bytes);
            let weights: Vec<_> = (0..copies)
                .map(|copy| drawn(format, outputs, inputs, copy as u64))
                .collect::<Result<_, CudaError>>()?;
            let mut line = format!("{format:?} {name:<8}{outputs:>7} x {inputs:<6}");
            let calls = weights.len().max(4);
            for rows in [1, 4, 8, 16, 32, 64, 96] {
                let x = tensor(rows, inputs, DType::Bf16, &rounded(&random(rows * inputs, 2), DType::Bf16).0);
                let y = gpu().zeros(rows, outputs, DType::Bf16, "a test")?;
                let mut turn = weights.iter().cycle();
                let us = gpu().time(calls, |gpu| kernels().multiply(gpu, &x, turn.next().expect("endless"), &y, 0))?;
                line += &format!("  {rows}: {us:.1} ({:.0})", bytes as f64 / us / 1e3);
            }
            if name != "head" {
                let dense = gpu().empty(outputs, inputs, DType::Bf16, "a test")?;
                let mut turn = weights.iter().cycle();
                let us = gpu().time(calls, |gpu| kernels().unpack(gpu, turn.next().expect("endless"), &dense))?;
                line += &format!("  dense: {us:.1}");
            }
            println!("{line}");
        }
    }
    Ok(())
}

/// A matrix of random blocks.
fn drawn(format: BlockFormat, rows: usize, columns: usize, seed: u64) -> Result<BlockMatrix, CudaError> {
    let target = BlockMatrix::empty(gpu(), format, rows, columns)?;
    let (count, at_once) = (columns / format.block_len(), 1024);
    let staging = gpu().empty(at_once, columns * 2, DType::U8, "a test")?;
    let scale = half::f16::from_f32(0.001).to_bits();
    for from in (0..rows).step_by(at_once) {
        let rows = at_once.min(rows - from);
        let drawn = DrawnBlocks { seed, scales: [(0, scale), (2, scale)], mask: 0xFF };
        kernels().draw(gpu(), &staging, format, from * count, rows * count, drawn)?;
        kernels().repack(gpu(), &staging, &target, from, rows)?;
    }
    gpu().synchronize()?;
    Ok(target)
}
