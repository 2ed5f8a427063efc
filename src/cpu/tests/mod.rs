//! The kernels against naive references in f64, and against themselves in other batches, bitwise.

mod attention;
mod elementwise;
mod matmul;
mod pool;
mod route;

use super::{Cpu, Format, MatrixRef, SimdLevel};
use std::num::NonZeroUsize;

/// A small generator with a fixed seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Even in -1 to 1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// Random bytes of a matrix, with scales that are small finite numbers.
    fn matrix(&mut self, format: Format, rows: usize, columns: usize) -> Vec<u8> {
        let blocks = rows * columns / format.block_len();
        (0..blocks).flat_map(|_| self.block(format)).collect()
    }

    fn block(&mut self, format: Format) -> Vec<u8> {
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| self.next() as u8).collect();
        let scales: &[usize] = match format {
            Format::F32 => return self.float().to_le_bytes().to_vec(),
            Format::F16 => return half(self.float()).to_vec(),
            Format::Bf16 => return half::bf16::from_f32(self.float()).to_le_bytes().to_vec(),
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
            Format::Int4x32 | Format::Int4x64 | Format::Int4x128 => {
                bytes[2..4].copy_from_slice(&half((self.next() % 16) as f32));
                &[0]
            }
            Format::Int8x32 | Format::Int8x64 | Format::Int8x128 => {
                bytes[2..4].copy_from_slice(&half((self.next() % 256) as f32));
                &[0]
            }
            Format::Fp8x32 | Format::Fp8x64 | Format::Fp8x128 => {
                // 0x7f and 0xff are no numbers.
                bytes[4..].iter_mut().for_each(|byte| *byte &= if *byte & 0x7f == 0x7f { 0x80 } else { 0xff });
                bytes[..4].copy_from_slice(&(self.float() / 256.0).to_le_bytes());
                return bytes;
            }
        };
        for &at in scales {
            bytes[at..at + 2].copy_from_slice(&half(self.float() / 16.0));
        }
        bytes
    }
}

/// Every level of this machine, with `threads`.
fn cpus(threads: usize) -> Vec<Cpu> {
    let threads = NonZeroUsize::new(threads);
    SimdLevel::available().into_iter().filter_map(|level| Cpu::with_simd(threads, level)).collect()
}

/// A matrix over checked bytes.
fn matrix(format: Format, rows: usize, columns: usize, data: &[u8]) -> MatrixRef<'_> {
    MatrixRef::new(format, rows, columns, data).expect("the bytes fit")
}

/// Fails unless all bits are equal.
#[track_caller]
fn assert_same_bits(what: &str, left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len(), "{what}");
    if let Some(i) = (0..left.len()).find(|&i| left[i].to_bits() != right[i].to_bits()) {
        panic!("{what}: element {i} is {} and {}", left[i], right[i]);
    }
}

/// Fails unless each element is within `tolerance`, relative to the largest expected one.
#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3_f64, |largest, x| largest.max(x.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / largest;
        assert!(error <= tolerance, "{what}: element {i} is {found}, expected {expected}");
    }
}

/// The f32 that these bytes are.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
}
