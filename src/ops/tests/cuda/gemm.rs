//! Products with weights: each way against a plain f32 product on the host.

use std::path::PathBuf;
use std::sync::OnceLock;

use half::{bf16, f16};

use super::gpu;
use crate::cuda::{Blas, CudaError, DType, DeviceTensor, GEMV_ROWS, Gemm, Product};

pub(super) fn gemm() -> &'static Gemm {
    static GEMM: OnceLock<Gemm> = OnceLock::new();
    GEMM.get_or_init(|| {
        let folders: Vec<PathBuf> =
            std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("lib64")).into_iter().collect();
        Gemm::load(gpu(), Blas::open(gpu(), &folders)).expect("our kernels are in this build")
    })
}

/// Uniform in -1..1, never near zero on the whole, from a seed.
pub(super) fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The values as bytes of `dtype`, and what they are after that rounding.
pub(super) fn rounded(values: &[f32], dtype: DType) -> (Vec<u8>, Vec<f32>) {
    match dtype {
        DType::Bf16 => values
            .iter()
            .map(|v| bf16::from_f32(*v))
            .map(|v| (v.to_le_bytes(), v.to_f32()))
            .fold(Default::default(), collect),
        _ => values
            .iter()
            .map(|v| f16::from_f32(*v))
            .map(|v| (v.to_le_bytes(), v.to_f32()))
            .fold(Default::default(), collect),
    }
}

fn collect(mut all: (Vec<u8>, Vec<f32>), (bytes, value): ([u8; 2], f32)) -> (Vec<u8>, Vec<f32>) {
    all.0.extend(bytes);
    all.1.push(value);
    all
}

pub(super) fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        DType::Bf16 => pairs.map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        DType::F16 => pairs.map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("four"))).collect(),
    }
}

/// x `[M, K]` · w `[N, K]`^T in f32, each sum in eight lanes, over all the host's threads.
pub(super) fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let outputs = w.len() / inputs;
    let mut y = vec![0.0; x.len() / inputs * outputs];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = (x.len() / inputs).div_ceil(threads);
    std::thread::scope(|scope| {
        for (x, y) in x.chunks(rows * inputs).zip(y.chunks_mut(rows * outputs)) {
            scope.spawn(move || {
                for (x, y) in x.chunks(inputs).zip(y.chunks_mut(outputs)) {
                    for (w, y) in w.chunks(inputs).zip(y) {
                        let mut lanes = [0_f32; 8];
                        for (x, w) in x.chunks_exact(8).zip(w.chunks_exact(8)) {
                            for i in 0..8 {
                                lanes[i] += x[i] * w[i];
                            }
                        }
                        *y = lanes.iter().sum();
                    }
                }
            });
        }
    });
    y
}

/// ||found - expected|| / ||expected||.
pub(super) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

pub(super) fn tensor(rows: usize, columns: usize, dtype: DType, bytes: &[u8]) -> DeviceTensor {
    let tensor = gpu().empty(rows, columns, dtype, "a test").expect("room");
    gpu().upload(&tensor, bytes).expect("it fits");
    tensor
}

const ROWS: [usize; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 127, 128, 129, 300];
const INPUTS: [usize; 6] = [8, 40, 96, 576, 1536, 4104];
const OUTPUTS: [usize; 5] = [8, 24, 130, 1056, 2049];

/// One pair of matrices, for all row counts and ways: what is wrong with them.
fn compare(outputs: usize, inputs: usize, input: DType) -> Vec<String> {
    let most = ROWS[ROWS.len() - 1];
    let (x_bytes, x) = rounded(&random(most * inputs, 3 + inputs as u64), input);
    let (w_bytes, w) = rounded(&random(outputs * inputs, 7 + outputs as u64), input);
    let expected = product(&x, &w, inputs);
    let x = tensor(most, inputs, input, &x_bytes);
    let w = tensor(outputs, inputs, input, &w_bytes);
    let mut wrong = Vec::new();
    for output in [input, DType::F32] {
        for rows in ROWS {
            for way in gemm().products(rows).into_iter().chain(gemm().tiles(outputs)) {
                let bytes = vec![0xFF; (rows + 1) * outputs * output.size()];
                let y = tensor(rows + 1, outputs, output, &bytes);
                let name = format!("{way:?} {rows} x {outputs} x {inputs} {input:?} -> {output:?}");
                if let Err(error) = gemm().linear_by(way, gpu(), &x.slice(0, rows), &w, &y.slice(0, rows)) {
                    wrong.push(format!("{name}: {error}"));
                    continue;
                }
                let found = gpu().download(&y).expect("the product ran");
                let (found, guard) = found.split_at(rows * outputs * output.size());
                if guard.iter().any(|byte| *byte != 0xFF) {
                    wrong.push(format!("{name}: writes past y"));
                }
                let error = relative_error(&floats(found, output), &expected[..rows * outputs]);
                let allowed = match output {
                    DType::F32 => 3e-5, // tensor cores cut off what an f32 sum cannot hold
                    DType::F16 => 5e-4,
                    _ => 4e-3,
                };
                if error.is_nan() || error > allowed {
                    wrong.push(format!("{name}: off by {error:.2e}"));
                }
            }
        }
    }
    wrong
}

/// Small enough for the race checker.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_products() {
    let wrong = [130, 160].map(|outputs| compare(outputs, 96, DType::Bf16)).concat();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_products_are_those_of_the_host() {
    println!("{}", gemm().description());
    let shapes = OUTPUTS.iter().flat_map(|outputs| INPUTS.iter().map(|inputs| (*outputs, *inputs)));
    let wrong: Vec<String> = shapes
        .flat_map(|(outputs, inputs)| [DType::Bf16, DType::F16].map(|dtype| compare(outputs, inputs, dtype)))
        .flatten()
        .collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_products_repeat_bitwise_and_in_graphs() -> Result<(), CudaError> {
    let (outputs, inputs, most) = (1056, 1536, 300);
    let x = tensor(most, inputs, DType::Bf16, &rounded(&random(most * inputs, 1), DType::Bf16).0);
    let w = tensor(outputs, inputs, DType::Bf16, &rounded(&random(outputs * inputs, 2), DType::Bf16).0);
    for rows in [1, 5, 16, 300] {
        for way in gemm().products(rows).into_iter().chain(gemm().tiles(outputs)) {
            let x = x.slice(0, rows);
            let y = tensor(rows, outputs, DType::Bf16, &vec![0xFF; rows * outputs * 2]);
            gemm().linear_by(way, gpu(), &x, &w, &y)?;
            let first = gpu().download(&y)?;
            gpu().upload(&y, &vec![0xFF; rows * outputs * 2])?;
            gpu().time(2, |gpu| gemm().linear_by(way, gpu, &x, &w, &y))?;
            assert!(first == gpu().download(&y)?, "{way:?} with {rows} rows differs from itself");
        }
    }
    Ok(())
}

/// More tiles than fit the GPU, so that blocks go from one to the next, with fewer slices of K than stages and more.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_blocks_of_many_tiles_give_the_same_bits_with_each_tile() -> Result<(), CudaError> {
    let rows = 1100;
    for (outputs, inputs) in [(8200, 40), (8201, 328), (8224, 576)] {
        let (x_bytes, x) = rounded(&random(rows * inputs, 21), DType::Bf16);
        let (w_bytes, w) = rounded(&random(outputs * inputs, 22), DType::Bf16);
        let expected = product(&x, &w, inputs);
        let x = tensor(rows, inputs, DType::Bf16, &x_bytes);
        let w = tensor(outputs, inputs, DType::Bf16, &w_bytes);
        for output in [DType::Bf16, DType::F32] {
            let mut first = None;
            for way in gemm().tiles(outputs) {
                let y = tensor(rows + 1, outputs, output, &vec![0xFF; (rows + 1) * outputs * output.size()]);
                gemm().linear_by(way, gpu(), &x, &w, &y.slice(0, rows))?;
                let found = gpu().download(&y)?;
                let (values, guard) = found.split_at(rows * outputs * output.size());
                assert!(guard.iter().all(|byte| *byte == 0xFF), "{way:?} writes past y");
                let error = relative_error(&floats(values, output), &expected);
                assert!(error <= 4e-3, "{way:?} of {outputs} x {inputs} -> {output:?}: off by {error:.2e}");
                assert!(*first.get_or_insert_with(|| found.clone()) == found, "{way:?}: other bits");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_wrong_products_are_errors() {
    let of = |rows, columns, dtype| gpu().zeros(rows, columns, dtype, "a test").expect("room");
    let x = of(3, 16, DType::Bf16);
    let cases = [
        (of(5, 24, DType::Bf16), of(3, 5, DType::Bf16), "the shapes don't fit"),
        (of(5, 16, DType::Bf16), of(2, 5, DType::Bf16), "the shapes don't fit"),
        (of(5, 16, DType::F16), of(3, 5, DType::Bf16), "both bf16"),
        (of(5, 16, DType::Bf16), of(3, 5, DType::F16), "x's type or f32"),
    ];
    for (w, y, reason) in cases {
        let error = gemm().linear(gpu(), &x, &w, &y).expect_err("must be refused").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_gated_products_are_those_of_the_host() -> Result<(), CudaError> {
    let (hidden, inputs) = (133, 584);
    for dtype in [DType::Bf16, DType::F16] {
        let (x_bytes, x) = rounded(&random(GEMV_ROWS * inputs, 11), dtype);
        let (w_bytes, w) = rounded(&random(2 * hidden * inputs, 12), dtype);
        let both = product(&x, &w, inputs);
        let silu = |gate: f32| gate / (1.0 + (-gate).exp());
        let expected: Vec<f32> = both
            .chunks(2 * hidden)
            .flat_map(|row| row[..hidden].iter().zip(&row[hidden..]).map(|(gate, up)| silu(*gate) * up))
            .collect();
        let x = tensor(GEMV_ROWS, inputs, dtype, &x_bytes);
        let w = tensor(2 * hidden, inputs, dtype, &w_bytes);
        for rows in 1..=GEMV_ROWS {
            let y = tensor(rows + 1, hidden, dtype, &vec![0xFF; (rows + 1) * hidden * 2]);
            gemm().linear_silu(gpu(), &x.slice(0, rows), &w, &y.slice(0, rows))?;
            let found = gpu().download(&y)?;
            let (found, guard) = found.split_at(rows * hidden * 2);
            assert!(guard.iter().all(|byte| *byte == 0xFF), "{rows} rows: writes past y");
            let error = relative_error(&floats(found, dtype), &expected[..rows * hidden]);
            assert!(error < 4e-3, "{rows} rows of {dtype:?}: off by {error:.2e}");
        }
    }
    Ok(())
}

/// What a row gives does not depend on how many rows the product has, as long as our own kernel of few rows serves it.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_few_rows_are_the_same_bits_alone_and_together() -> Result<(), CudaError> {
    for (outputs, inputs) in [(1536, 1536), (5000, 1000)] {
        let x = tensor(16, inputs, DType::Bf16, &rounded(&random(16 * inputs, 1), DType::Bf16).0);
        let w = tensor(outputs, inputs, DType::Bf16, &rounded(&random(outputs * inputs, 2), DType::Bf16).0);
        let of = |rows: usize| {
            let y = tensor(rows, outputs, DType::F32, &vec![0xFF; rows * outputs * 4]);
            gemm().linear_by(Product::Gemv, gpu(), &x.slice(0, rows), &w, &y)?;
            gpu().download(&y)
        };
        let all = of(16)?;
        for rows in [1, 3, 8, 9] {
            assert!(of(rows)? == all[..rows * outputs * 4], "{rows} rows of {outputs} x {inputs}");
        }
    }
    Ok(())
}
