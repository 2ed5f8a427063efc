//! Weights of a model that has none: random numbers of the right shapes, for measuring.
//!
//! A matrix's numbers come from its name, so that every run has the same. They are drawn when they are first read; a GPU
//! draws its own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};

use super::WeightName;
use super::mix::Mix;
use crate::ops::{Format, Matrix, Random};

/// What all weights of a model are drawn by.
#[derive(Clone, Copy, Debug)]
pub(super) struct RandomWeights {
    /// Which format each is in.
    pub(super) mix: Mix,
    /// Elements of all weights.
    pub(super) parameters: u64,
}

impl RandomWeights {
    /// The format of a matrix whose rows have `columns` elements.
    pub(super) fn format_of(&self, name: WeightName, columns: usize) -> Format {
        self.mix.format_of(name, columns).unwrap_or(Format::Bf16)
    }

    pub(super) fn matrix(&self, name: WeightName, rows: usize, columns: usize) -> Matrix {
        let format = self.format_of(name, columns);
        // Keeps the variance of what goes through a layer.
        let deviation = 1.0 / (columns as f32).sqrt();
        let random = Random { seed: seed(name), deviation, scales: scales(format, deviation), mask: mask(format) };
        let bytes = rows * format.row_bytes(columns).expect("chosen to fit");
        Matrix::random(
            format,
            rows,
            columns,
            Arc::new(RandomBytes { format, random, bytes, drawn: OnceLock::new() }),
            random,
        )
    }
}

/// Bytes of random numbers that are drawn at first use.
struct RandomBytes {
    format: Format,
    random: Random,
    bytes: usize,
    drawn: OnceLock<Vec<u8>>,
}

impl AsRef<[u8]> for RandomBytes {
    fn as_ref(&self) -> &[u8] {
        let Random { seed, deviation, scales, mask } = self.random;
        self.drawn.get_or_init(|| match self.format {
            Format::Bf16 => {
                let numbers = normals(seed, self.bytes / 2);
                numbers.flat_map(|number| bf16::from_f32(number * deviation).to_le_bytes()).collect()
            }
            format => {
                let words = (0..self.bytes.div_ceil(8) as u64).flat_map(|index| split_mix(seed, index).to_le_bytes());
                let mut bytes: Vec<u8> = words.take(self.bytes).map(|byte| byte & mask).collect();
                for block in bytes.chunks_exact_mut(format.block_bytes()) {
                    scales.iter().for_each(|(at, bits)| block[*at..at + 2].copy_from_slice(&bits.to_le_bytes()));
                }
                bytes
            }
        })
    }
}

/// What stands in blocks of otherwise random bits, so that weights have this deviation and a mean near 0: where the scale
/// lies and what part of the deviation it is, and how many times the scale the offset is, where there is one.
///
/// The parts: the deviation of a random quant times a random scale, less a random offset.
fn scales(format: Format, deviation: f32) -> [(usize, u16); 2] {
    let (at, part, offset) = match format {
        Format::F32 | Format::F16 | Format::Bf16 => return [(0, 0); 2],
        // One f32 in two halves.
        Format::Fp8x32 | Format::Fp8x64 | Format::Fp8x128 => {
            let bits = (deviation / 0.616).to_bits();
            return [(0, bits as u16), (2, (bits >> 16) as u16)];
        }
        // Zeros in the middle, which are whole numbers.
        Format::Int4x32 | Format::Int4x64 | Format::Int4x128 => {
            return [(0, f16::from_f32(deviation / 4.61).to_bits()), (2, f16::from_f32(8.0).to_bits())];
        }
        Format::Int8x32 | Format::Int8x64 | Format::Int8x128 => {
            return [(0, f16::from_f32(deviation / 73.9).to_bits()), (2, f16::from_f32(128.0).to_bits())];
        }
        Format::Q4_0 => (0, 4.61, None),
        Format::Q4_1 => (0, 4.61, Some((2, -7.5))),
        Format::Q5_0 => (0, 9.23, None),
        Format::Q5_1 => (0, 9.23, Some((2, -15.5))),
        Format::Q8_0 => (0, 73.9, None),
        Format::Q2K => (80, 13.9, Some((82, 1.5))),
        Format::Q3K => (108, 43.3, None),
        Format::Q4K => (0, 258.0, Some((2, 7.5))),
        Format::Q5K => (0, 527.0, Some((2, 15.5))),
        Format::Q6K => (208, 1366.0, None),
    };
    let scale = deviation / part;
    let bits = |value: f32| f16::from_f32(value).to_bits();
    let first = (at, bits(scale));
    [first, offset.map_or(first, |(at, times)| (at, bits(times * scale)))]
}

/// Bits of random bytes that stay. Of e4m3 all but the highest of the exponent: what is left is below 2, and a number.
fn mask(format: Format) -> u8 {
    match format {
        Format::Fp8x32 | Format::Fp8x64 | Format::Fp8x128 => 0xBF,
        _ => 0xFF,
    }
}

/// The seed of a weight.
fn seed(name: WeightName) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Random bits.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64).
fn split_mix(seed: u64, index: u64) -> u64 {
    let mut bits = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// `count` numbers of mean 0 and variance 1: sums of four uniform ones, which are near enough to normal.
fn normals(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |index| {
        let bits = split_mix(seed, index);
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xFFFF).sum();
        // Four numbers uniform in 0..65536 have the mean 131070 and the deviation 65536 / sqrt(3).
        (sum as f32 - 131_070.0) / 37_837.2
    })
}

/// A vector's numbers: norms near 1, biases near 0.
pub(super) fn vector(name: WeightName, length: usize) -> Vec<f32> {
    use WeightName::{AttentionNorm, FfnNorm, KNorm, LatentNorm, OutputNorm, QNorm, QueryNorm};
    let norm =
        matches!(name, OutputNorm | AttentionNorm(_) | FfnNorm(_) | QNorm(_) | KNorm(_) | LatentNorm(_) | QueryNorm(_));
    let middle = if norm { 1.0 } else { 0.0 };
    normals(seed(name), length).map(|number| middle + 0.1 * number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_deviation(numbers: &[f32]) -> (f32, f32) {
        let count = numbers.len() as f32;
        let mean = numbers.iter().sum::<f32>() / count;
        (mean, (numbers.iter().map(|number| (number - mean).powi(2)).sum::<f32>() / count).sqrt())
    }

    #[test]
    fn numbers_are_normal_enough_and_stay_the_same() {
        let numbers: Vec<f32> = normals(7, 100_000).collect();
        let (mean, deviation) = mean_and_deviation(&numbers);
        assert!(mean.abs() < 0.02 && (deviation - 1.0).abs() < 0.01, "{mean} {deviation}");
        assert_eq!(normals(7, 10).collect::<Vec<_>>(), numbers[..10]);
        assert_ne!(seed(WeightName::Q(0)), seed(WeightName::Q(1)));
    }

    #[test]
    fn blocks_have_the_deviation_that_is_wished() {
        for format in Format::ALL.into_iter().filter(|format| format.block_len() > 1) {
            let deviation = 1.0 / 64.0;
            let random = Random { seed: 5, deviation, scales: scales(format, deviation), mask: mask(format) };
            let bytes = 64 * format.row_bytes(4096).expect("whole blocks");
            let data = Arc::new(RandomBytes { format, random, bytes, drawn: OnceLock::new() });
            let matrix = Matrix::random(format, 64, 4096, data, random);
            let (mean, found) = mean_and_deviation(&matrix.dequantize());
            assert!((found / deviation - 1.0).abs() < 0.05, "{format}: {found}");
            assert!(mean.abs() < 0.15 * deviation, "{format}: mean {mean}");
        }
    }
}
