//! Vectors of floats as the machine has them, behind one trait; the level is detected once, at run time.
//!
//! Knows registers, not kernels. A kernel is written once over [`Lanes`] and compiled for each level by [`dispatch`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::fmt;

/// Which instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SimdLevel {
    /// Arrays of 8 floats that the compiler maps to what the target always has.
    Portable,
    /// 8 lanes: AVX2, FMA and F16C.
    Avx2,
    /// 16 lanes: AVX-512 F, BW and VL.
    Avx512,
}

impl SimdLevel {
    /// The best level of this machine.
    pub fn detect() -> Self {
        Self::available().into_iter().max().unwrap_or(Self::Portable)
    }

    /// Every level that this machine can run.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|level| level.is_available()).collect()
    }

    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        }
    }

    /// Whether this machine can run it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }

    /// Whether this machine can run it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Weights that a decoder yields at a time: the smallest block of all formats.
pub const GROUP: usize = 32;

/// One vector of floats and the few operations that the kernels need.
///
/// Each function is as unsafe as the instructions it stands for: the machine must have them (only [`dispatch`]
/// picks an implementation), and pointers must be good for the lanes that are read or written; no alignment is needed.
#[allow(clippy::missing_safety_doc)]
pub trait Lanes: Copy + 'static {
    /// [`Lanes::N`] floats.
    type V: Copy;
    /// [`Lanes::N`] integers of 32 bits.
    type I: Copy;
    /// Lanes of a vector: 8 or 16.
    const N: usize;
    /// Vectors of a [`GROUP`]: 4 or 2.
    const VECS: usize = GROUP / Self::N;
    /// Rows by columns of the largest register tile of a matrix product.
    const TILE: (usize, usize);
    /// Groups of a block that a product takes together where a block has several: 2 if there are registers for both. Two
    /// groups may have their nibbles in the same bytes, which are then widened once.
    const GROUPS: usize;
    /// What nibbles mean, in the form that is read fastest.
    type Nibbles: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// The first `n < N` lanes; the others are 0 and their memory is not touched.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Asks memory for the line that `p` lies in, which need not exist.
    unsafe fn prefetch(p: *const u8);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The larger lane; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller lane; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the machine can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest whole number, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// Two to the power of whole numbers from -127 (which gives 0) to 128 (infinity).
    unsafe fn exp2_whole(a: Self::V) -> Self::V;
    /// Lanes `from..to` of `a`, and those of `b` elsewhere.
    unsafe fn select_range(from: usize, to: usize, a: Self::V, b: Self::V) -> Self::V;

    /// The sum of all lanes: 16 are folded to 8 (`l + l+8`), then neighbours are added, thrice.
    unsafe fn sum(a: Self::V) -> f32;
    /// The sums of four vectors, each in the order of [`Lanes::sum`].
    unsafe fn sum4(a: [Self::V; 4]) -> [f32; 4];
    /// The largest lane; NaN may be lost.
    unsafe fn max_lane(a: Self::V) -> f32;

    /// `N` bytes as integers.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// `N` signed bytes as integers.
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// `N` half-precision floats.
    unsafe fn load_f16(p: *const u8) -> Self::V;
    /// `N` bfloat16 floats.
    unsafe fn load_bf16(p: *const u8) -> Self::V;
    /// One half-precision float.
    unsafe fn f16(p: *const u8) -> f32;
    /// One half-precision float in every lane.
    unsafe fn splat_f16(p: *const u8) -> Self::V;
    /// Two neighbouring half-precision floats, each in every lane.
    unsafe fn splat_f16_pair(p: *const u8) -> (Self::V, Self::V);
    unsafe fn and(a: Self::I, mask: i32) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn shr<const BITS: u32>(a: Self::I) -> Self::I;
    unsafe fn shl<const BITS: u32>(a: Self::I) -> Self::I;
    /// Lane `l` is bit `first + l` of `word`, as 0 or 1.
    unsafe fn bits(word: u32, first: usize) -> Self::I;
    unsafe fn to_f32(a: Self::I) -> Self::V;
    /// Nibbles that mean `scale * nibble + offset`. The product must be exact: whether the sum is fused is the level's
    /// affair.
    unsafe fn nibbles(scale: Self::V, offset: Self::V) -> Self::Nibbles;
    /// What the low nibbles of bytes mean.
    unsafe fn low_nibbles(bytes: Self::I, meaning: Self::Nibbles) -> Self::V;
    /// What the high nibbles of bytes mean.
    unsafe fn high_nibbles(bytes: Self::I, meaning: Self::Nibbles) -> Self::V;
    /// The floats whose bits are those of `a` and `bits`.
    unsafe fn float_of_bits(a: Self::I, bits: u32) -> Self::V;
}

/// Work that is compiled once for each level. `run` and all that it calls must be `#[inline(always)]`, so that the
/// instructions of the level hold throughout.
pub trait Kernel {
    /// The work.
    ///
    /// # Safety
    /// The machine must have the instructions of `L`.
    unsafe fn run<L: Lanes>(self);
}

/// Runs `kernel` with the vectors of `level`, which must be available on this machine.
#[inline]
pub fn dispatch<K: Kernel>(level: SimdLevel, kernel: K) {
    match level {
        // SAFETY: needs no instructions beyond the target's own.
        SimdLevel::Portable => unsafe { kernel.run::<portable::Portable>() },
        // SAFETY: a `SimdLevel` inside `Cpu` was checked against this machine when it was made.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => unsafe { avx512::run(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        SimdLevel::Avx2 | SimdLevel::Avx512 => unreachable!("{level} is never available here"),
    }
}
