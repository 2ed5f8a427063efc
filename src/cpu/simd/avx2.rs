//! [`Lanes`] with AVX2, FMA and F16C: 8 lanes, 16 registers.

// SAFETY of every block in this file: the caller of `run` has found the instructions on this machine, all else is
// inlined into it, and whoever passes a pointer promises that it is valid for as many elements as the function names.

use super::{Kernel, Lanes};
use std::arch::x86_64::*;

/// 8 lanes.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Compiles `kernel` with AVX2, FMA and F16C.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<Avx2>() }
}

/// All ones in the first 8 of 16, so that a load at `8 - n` yields a mask of the first `n` lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn first_mask(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    // SAFETY: 8 of 16 integers from index 8 - n, n at most 8.
    unsafe { _mm256_loadu_si256(FIRST.as_ptr().add(8 - n).cast()) }
}

/// 8 bytes as integers.
///
/// Two nibbles come out of each byte. Left alone, the compiler moves their masks before the widening and widens twice,
/// which is the dearer step; it cannot look through the empty assembly.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen(p: *const u8) -> __m256i {
    // SAFETY: the caller promises 8 bytes; the assembly has no instruction.
    unsafe {
        let mut lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        std::arch::asm!("/* {0} */", inout(ymm_reg) lanes, options(pure, nomem, nostack, preserves_flags));
        lanes
    }
}

impl Lanes for Avx2 {
    type V = __m256;
    type I = __m256i;
    const N: usize = 8;
    const TILE: (usize, usize) = (4, 3);
    const GROUPS: usize = 1;
    type Nibbles = (__m256, __m256);

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(p, first_mask(n)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(a: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    unsafe fn select_range(from: usize, to: usize, a: __m256, b: __m256) -> __m256 {
        unsafe {
            let mask = _mm256_andnot_si256(first_mask(from.min(8)), first_mask(to.min(8)));
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask))
        }
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        unsafe {
            let pairs = _mm256_hadd_ps(a, a);
            let quads = _mm256_hadd_ps(pairs, pairs);
            _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads)))
        }
    }
    #[inline(always)]
    unsafe fn sum4(a: [__m256; 4]) -> [f32; 4] {
        unsafe {
            let quads = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
            let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }
    #[inline(always)]
    unsafe fn max_lane(a: __m256) -> f32 {
        unsafe {
            let m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
            _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m256i {
        unsafe { widen(p) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(p.cast::<u16>().read_unaligned())))) }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn splat_f16_pair(p: *const u8) -> (__m256, __m256) {
        unsafe {
            let pairs = _mm256_cvtph_ps(_mm_set1_epi32(p.cast::<i32>().read_unaligned()));
            (_mm256_moveldup_ps(pairs), _mm256_movehdup_ps(pairs))
        }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, mask: i32) -> __m256i {
        unsafe { _mm256_and_si256(a, _mm256_set1_epi32(mask)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(a: __m256i) -> __m256i {
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(BITS.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(a: __m256i) -> __m256i {
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn bits(word: u32, first: usize) -> __m256i {
        unsafe {
            let lanes = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first as i32));
            Self::and(_mm256_srlv_epi32(_mm256_set1_epi32(word.cast_signed()), lanes), 1)
        }
    }
    #[inline(always)]
    unsafe fn to_f32(a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn nibbles(scale: Self::V, offset: Self::V) -> Self::Nibbles {
        (scale, offset)
    }
    #[inline(always)]
    unsafe fn low_nibbles(bytes: Self::I, (scale, offset): Self::Nibbles) -> Self::V {
        unsafe { Self::fma(scale, Self::to_f32(Self::and(bytes, 15)), offset) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(bytes: Self::I, (scale, offset): Self::Nibbles) -> Self::V {
        unsafe { Self::fma(scale, Self::to_f32(Self::shr::<4>(bytes)), offset) }
    }
    #[inline(always)]
    unsafe fn float_of_bits(a: __m256i, bits: u32) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_or_si256(a, _mm256_set1_epi32(bits.cast_signed()))) }
    }
}
