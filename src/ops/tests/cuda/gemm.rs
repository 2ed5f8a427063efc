//! Products with weights: each way against a plain f32 product on the host, and all ways beside each other.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use super::gpu;
use crate::cuda::{Blas, CudaError, DType, DeviceTensor, Gemm, Product};

fn gemm() -> &'static Gemm {
    static GEMM: OnceLock<Gemm> = OnceLock::new();
    GEMM.get_or_init(|| {
        let folders: Vec<PathBuf> =
            std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("lib64")).into_iter().collect();
        Gemm::load(gpu(), Blas::open(gpu(), &folders)).expect("our kernels are in this build")
    })
}

/// Uniform in -1..1, never near zero on the whole, from a seed.
fn random(count: usize, seed: u64) -> Vec<f32> {
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
fn rounded(values: &[f32], dtype: DType) -> (Vec<u8>, Vec<f32>) {
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

fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        DType::Bf16 => pairs.map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        DType::F16 => pairs.map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("four"))).collect(),
    }
}

/// x `[M, K]` · w `[N, K]`^T in f32, each sum in eight lanes, over all the host's threads.
fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
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
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

fn tensor(rows: usize, columns: usize, dtype: DType, bytes: &[u8]) -> DeviceTensor {
    let tensor = gpu().empty(rows, columns, dtype, "a test").expect("room");
    gpu().upload(&tensor, bytes).expect("it fits");
    tensor
}

const ROWS: [usize; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 127, 128, 129, 300];
const INPUTS: [usize; 6] = [8, 40, 96, 576, 1536, 4104];
const OUTPUTS: [usize; 5] = [8, 24, 130, 1000, 2049];

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
            for way in gemm().products(rows) {
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
                    DType::F32 => 1e-5,
                    DType::F16 => 5e-4,
                    _ => 4e-3,
                };
                if !(error <= allowed) {
                    wrong.push(format!("{name}: off by {error:.2e}"));
                }
            }
        }
    }
    wrong
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
    let (outputs, inputs, most) = (1000, 1536, 300);
    let x = tensor(most, inputs, DType::Bf16, &rounded(&random(most * inputs, 1), DType::Bf16).0);
    let w = tensor(outputs, inputs, DType::Bf16, &rounded(&random(outputs * inputs, 2), DType::Bf16).0);
    for rows in [1, 5, 16, 300] {
        for way in gemm().products(rows) {
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

/// Weight shapes `[N, K]` of an 8B Llama and a 1.5B Qwen.
const WEIGHTS: [(&str, usize, usize); 10] = [
    ("8B qkv", 6144, 4096),
    ("8B o", 4096, 4096),
    ("8B gate_up", 28672, 4096),
    ("8B down", 4096, 14336),
    ("8B head", 128_256, 4096),
    ("1.5B qkv", 2048, 1536),
    ("1.5B o", 1536, 1536),
    ("1.5B gate_up", 17920, 1536),
    ("1.5B down", 1536, 8960),
    ("1.5B head", 151_936, 1536),
];

/// Bytes of weights that are rotated over: more than any L2 cache holds.
const ROTATED_BYTES: usize = 200 << 20;

/// A bf16 matrix of random values that repeat: quick to make.
fn filled(rows: usize, columns: usize) -> DeviceTensor {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| rounded(&random((1 << 20) + 3, 5), DType::Bf16).0);
    let whole: Vec<u8> = bytes.repeat((rows * columns * 2).div_ceil(bytes.len()));
    tensor(rows, columns, DType::Bf16, &whole[..rows * columns * 2])
}

/// Microseconds of one product.
fn measure(way: Product, x: &DeviceTensor, weights: &[DeviceTensor], y: &DeviceTensor) -> Result<f64, CudaError> {
    let mut turn = weights.iter().cycle();
    gpu().time(weights.len().max(4), |gpu| gemm().linear_by(way, gpu, x, turn.next().expect("endless"), y))
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_gemm() -> Result<(), CudaError> {
    let start = Instant::now();
    println!("{}\nmicroseconds (GB/s of weights to 64 rows, TFLOP/s beyond)", gemm().description());
    for (name, outputs, inputs) in WEIGHTS {
        let copies = ROTATED_BYTES.div_ceil(outputs * inputs * 2);
        let weights: Vec<_> = (0..copies).map(|_| filled(outputs, inputs)).collect();
        for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 4096, 8192] {
            if start.elapsed() > Duration::from_secs(50) || (rows > 512 && name.ends_with("head")) {
                continue;
            }
            let x = filled(rows, inputs);
            let y = gpu().zeros(rows, outputs, DType::Bf16, "a test")?;
            let mut line = format!("{name:<13}{outputs:>7} x {inputs:<6} rows {rows:<5}");
            for way in gemm().products(rows) {
                let microseconds = measure(way, &x, &weights, &y)?;
                let rate = if rows <= 64 {
                    format!("{:.0} GB/s", (outputs * inputs * 2) as f64 / microseconds / 1e3)
                } else {
                    format!("{:.0} TFLOP/s", 2.0 * (rows * outputs * inputs) as f64 / microseconds / 1e6)
                };
                line += &format!("{way:?} {microseconds:.1} ({rate})  ");
            }
            if let Some(tuned) = gemm().tune(gpu(), &x, &weights, &y, Duration::from_millis(30))? {
                line += &format!("tuned {:.1} of {}", tuned.microseconds, tuned.candidates);
            }
            println!("{line}");
        }
    }
    bench_host(&start)
}

/// What a product costs the host.
fn bench_host(start: &Instant) -> Result<(), CudaError> {
    let of = |rows, columns| gpu().zeros(rows, columns, DType::Bf16, "a test");
    let w = of(64, 64)?;
    for rows in [4, 16] {
        let (x, y) = (of(rows, 64)?, of(rows, 64)?);
        for way in gemm().products(rows) {
            gemm().linear_by(way, gpu(), &x, &w, &y)?;
            gpu().synchronize()?;
            let before = Instant::now();
            for _ in 0..200 {
                gemm().linear_by(way, gpu(), &x, &w, &y)?;
            }
            let host = before.elapsed().as_secs_f64() * 1e6 / 200.0;
            println!("host: {way:?} with {rows} rows {host:.2} microseconds");
            gpu().synchronize()?;
        }
    }
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    Ok(())
}
