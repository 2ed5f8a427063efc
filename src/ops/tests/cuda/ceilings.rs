//! What a card reaches at most, which floors are worked out from.

use std::path::PathBuf;

use super::gpu;
use crate::cuda::{Blas, CudaError, card_rates};

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_ceilings() -> Result<(), CudaError> {
    let folders: Vec<PathBuf> =
        std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("lib64")).into_iter().collect();
    if let Err(missing) = Blas::open(gpu(), &folders) {
        eprintln!("cuda_bench_ceilings is passed over: {missing}");
        return Ok(());
    }
    let rates = card_rates(0, &folders)?;
    let flops_per_second = rates.flops_per_second.expect("cuBLASLt is here");
    let (copy, product) = (rates.copy_bytes_per_second / 1e9, flops_per_second / 1e12);
    println!("copy {copy:.0} GB/s, read and written; bf16 product {product:.0} TFLOP/s");
    // No card with bf16 tensor cores is slower, and none is a hundred times as fast.
    assert!((100.0..30_000.0).contains(&copy), "{copy}");
    assert!((10.0..10_000.0).contains(&product), "{product}");
    Ok(())
}
