//! Products with weights: all ways beside each other, in microseconds and as a rate.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::gemm::{gemm, random, rounded, tensor};
use super::gpu;
use crate::cuda::{CudaError, DType, DeviceTensor, GEMV_ROWS, Product};

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
            if name.ends_with("gate_up") && rows <= GEMV_ROWS {
                let half = gpu().zeros(rows, outputs / 2, DType::Bf16, "a test")?;
                let mut turn = weights.iter().cycle();
                let calls = weights.len().max(4);
                let microseconds =
                    gpu().time(calls, |gpu| gemm().linear_silu(gpu, &x, turn.next().expect("endless"), &half))?;
                line += &format!("  with silu {microseconds:.1}");
            }
            println!("{line}");
        }
    }
    bench_host(&start)
}

/// Our own tiles of each kind beside each other, and what is taken unasked.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_gemm_tiles() -> Result<(), CudaError> {
    let start = Instant::now();
    println!("microseconds (TFLOP/s)");
    for (name, outputs, inputs) in WEIGHTS.into_iter().filter(|(name, ..)| !name.ends_with("head")) {
        let copies = ROTATED_BYTES.div_ceil(outputs * inputs * 2);
        let weights: Vec<_> = (0..copies).map(|_| filled(outputs, inputs)).collect();
        for rows in [256, 4096, 8192] {
            if start.elapsed() > Duration::from_secs(35) {
                continue;
            }
            let x = filled(rows, inputs);
            let y = gpu().zeros(rows, outputs, DType::Bf16, "a test")?;
            let mut line = format!("{name:<13}{outputs:>7} x {inputs:<6} rows {rows:<5}");
            let ways = gemm().products(rows).into_iter().chain(gemm().tiles(outputs));
            for way in ways {
                let microseconds = measure(way, &x, &weights, &y)?;
                let rate = 2.0 * (rows * outputs * inputs) as f64 / microseconds / 1e6;
                line += &format!("{way:?} {microseconds:.1} ({rate:.0})  ");
            }
            println!("{line}");
        }
    }
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    Ok(())
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
