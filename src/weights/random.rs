//! Weights of a model that has none: random numbers of the right shapes, for measuring.
//!
//! A matrix's numbers come from its name, so that every run has the same. They are drawn when they are first read; a GPU
//! draws its own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use half::bf16;

use super::WeightName;

/// Bytes of bf16 numbers that are drawn at first use.
pub(super) struct RandomBytes {
    seed: u64,
    elements: usize,
    deviation: f32,
    drawn: OnceLock<Vec<u8>>,
}

impl RandomBytes {
    pub(super) fn new(seed: u64, elements: usize, deviation: f32) -> Self {
        Self { seed, elements, deviation, drawn: OnceLock::new() }
    }
}

impl AsRef<[u8]> for RandomBytes {
    fn as_ref(&self) -> &[u8] {
        self.drawn.get_or_init(|| {
            let numbers = normals(self.seed, self.elements);
            numbers.flat_map(|number| bf16::from_f32(number * self.deviation).to_le_bytes()).collect()
        })
    }
}

/// The seed of a weight.
pub(super) fn seed(name: WeightName) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// `count` numbers of mean 0 and variance 1: sums of four uniform ones, which are near enough to normal.
fn normals(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |index| {
        // Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64).
        let mut bits = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xFFFF).sum();
        // Four numbers uniform in 0..65536 have the mean 131070 and the deviation 65536 / sqrt(3).
        (sum as f32 - 131_070.0) / 37_837.2
    })
}

/// A vector's numbers: norms near 1, biases near 0.
pub(super) fn vector(name: WeightName, length: usize) -> Vec<f32> {
    use WeightName::{AttentionNorm, FfnNorm, KNorm, OutputNorm, QNorm};
    let norm = matches!(name, OutputNorm | AttentionNorm(_) | FfnNorm(_) | QNorm(_) | KNorm(_));
    let middle = if norm { 1.0 } else { 0.0 };
    normals(seed(name), length).map(|number| middle + 0.1 * number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_enough_and_stay_the_same() {
        let numbers: Vec<f32> = normals(7, 100_000).collect();
        let mean = numbers.iter().sum::<f32>() / 1e5;
        let variance = numbers.iter().map(|number| number * number).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert_eq!(normals(7, 10).collect::<Vec<_>>(), numbers[..10]);
        assert_ne!(seed(WeightName::Q(0)), seed(WeightName::Q(1)));
    }
}
