//! How fast a card can be: what a large copy and a large matrix product reach on it.
//!
//! Knows no models: floors are worked out from this elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use super::{Blas, BlasMissing, CachePlanes, CudaError, DType, ElementwiseKernels, Gemm, Gpu, Product};

/// Bytes that a timed copy reads, where a quarter of the free memory holds as much.
const COPIED_BYTES: usize = 1 << 30;
/// Bytes that one block of threads copies.
const COPY_BLOCK_BYTES: usize = 64 << 10;
/// Rows, outputs and inputs of the timed product.
const PRODUCT_SIZE: usize = 8192;
/// Copies or products that are timed in one go.
const REPEATS: usize = 10;
/// Longest search for the fastest algorithm.
const TUNING_BUDGET: Duration = Duration::from_millis(300);

/// What a card reaches.
#[derive(Clone, Debug, PartialEq)]
pub struct CardRates {
    /// Bytes read and written each second by a copy from the card's memory to itself.
    pub copy_bytes_per_second: f64,
    /// Floating-point operations each second of a bf16 product of 8192 x 8192 matrices by cuBLASLt. Where it is missing
    /// nobody knows: our own products are no ceiling.
    pub flops_per_second: Result<f64, BlasMissing>,
}

/// Measures card `ordinal`, which takes about a second and 2 GiB for as long. cuBLASLt may lie in one of
/// `library_folders`.
///
/// # Errors
/// What the driver says.
pub fn card_rates(ordinal: usize, library_folders: &[PathBuf]) -> Result<CardRates, CudaError> {
    let gpu = Gpu::open(ordinal)?;
    // The context stays for the rest of the program: cuBLASLt keeps its kernels in it, and would look for them in vain
    // in a second one.
    std::mem::forget(gpu.context().clone());
    let data = random_bytes(PRODUCT_SIZE * PRODUCT_SIZE);
    let copy_bytes_per_second = copy_rate_of(&gpu, &data)?;
    let flops_per_second = match Blas::open(&gpu, library_folders) {
        Ok(blas) => Ok(product_rate(&gpu, blas, &data)?),
        Err(missing) => Err(missing),
    };
    Ok(CardRates { copy_bytes_per_second, flops_per_second })
}

/// Bytes read and written each second by a large copy within a card's memory; takes up to 2 GiB of it for a moment.
///
/// # Errors
/// What the driver says.
pub fn copy_rate(gpu: &Gpu) -> Result<f64, CudaError> {
    copy_rate_of(gpu, &random_bytes(PRODUCT_SIZE * PRODUCT_SIZE))
}

fn copy_rate_of(gpu: &Gpu, data: &[u8]) -> Result<f64, CudaError> {
    let (free_bytes, _) = gpu.memory()?;
    let rows = (COPIED_BYTES.min(free_bytes / 4) / data.len()).max(1);
    let both = gpu.empty(2 * rows, data.len(), DType::U8, "what is copied, and its copy")?;
    for row in 0..rows {
        gpu.upload(&both.slice(row, 1), data)?;
    }
    // By a kernel of ours: the driver's own copy stays a fifth below what kernels reach.
    let kernels = ElementwiseKernels::load(gpu)?;
    let count = rows * data.len() / COPY_BLOCK_BYTES;
    let pairs: Vec<u8> =
        (0..count as u32).flat_map(|from| [from, from + count as u32]).flat_map(u32::to_ne_bytes).collect();
    let device_pairs = gpu.empty(count, 2, DType::U32, "what is copied where")?;
    gpu.upload(&device_pairs, &pairs)?;
    let planes = CachePlanes { planes: 1, blocks: 2 * count, block_bytes: COPY_BLOCK_BYTES };
    let microseconds = gpu.time(REPEATS, |gpu| kernels.copy_blocks(gpu, &both, planes, &device_pairs, count))?;
    Ok(both.bytes() as f64 / microseconds * 1e6)
}

fn product_rate(gpu: &Gpu, blas: Blas, data: &[u8]) -> Result<f64, CudaError> {
    let gemm = Gemm::load(gpu, Ok(blas))?;
    let matrix = || gpu.empty(PRODUCT_SIZE, PRODUCT_SIZE, DType::Bf16, "a product");
    let (x, w, y) = (matrix()?, matrix()?, matrix()?);
    for half in 0..2 {
        gpu.upload(&x.slice(half * PRODUCT_SIZE / 2, PRODUCT_SIZE / 2), data)?;
        gpu.upload(&w.slice(half * PRODUCT_SIZE / 2, PRODUCT_SIZE / 2), data)?;
    }
    gemm.tune(gpu, &x, std::slice::from_ref(&w), &y, TUNING_BUDGET)?;
    let microseconds = gpu.time(REPEATS, |gpu| gemm.linear_by(Product::Blas, gpu, &x, &w, &y))?;
    Ok(2.0 * (PRODUCT_SIZE as f64).powi(3) / microseconds * 1e6)
}

/// bf16 values between -2 and 2 of either sign, little-endian: zeros would draw less power and so flatter.
fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        // Source: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8, 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for word in 0..4 {
            // Sign and fraction at random, the exponent that of 0.5 or 1.
            let random = (state >> (16 * word)) as u16;
            bytes.extend(((random & 0x80ff) | 0x3f00).to_le_bytes());
        }
    }
    bytes.truncate(count);
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_bytes_are_finite_numbers_near_one() {
        let bytes = super::random_bytes(4096);
        let values = bytes.chunks_exact(2).map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
        let (mut below, mut above) = (0, 0);
        for value in values {
            assert!((0.5..2.0).contains(&value.abs()), "{value}");
            if value < 0.0 { below += 1 } else { above += 1 }
        }
        assert!(below > 800 && above > 800, "{below} {above}");
    }
}
