//! [`Lanes`] with AVX-512 F, BW and VL: 16 lanes, 32 registers.

// SAFETY of every block in this file: the caller of `run` has found the instructions on this machine, all else is
// inlined into it, and whoever passes a pointer promises that it is valid for as many elements as the function names.

use super::{Kernel, Lanes};
use std::arch::x86_64::*;

/// 16 lanes.
#[derive(Clone, Copy)]
pub struct Avx512;

/// Compiles `kernel` with AVX-512 F, BW and VL beside AVX2, FMA and F16C.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub unsafe fn run<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<Avx512>() }
}

/// Mask of the first `n` lanes, `n` at most 16.
#[inline(always)]
fn first_mask(n: usize) -> __mmask16 {
    ((1_u32 << n.min(16)) - 1) as __mmask16
}

/// 16 bytes as integers; the empty assembly is there for what AVX2's `widen` says.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen(p: *const u8) -> __m512i {
    // SAFETY: the caller promises 16 bytes; the assembly has no instruction.
    unsafe {
        let mut lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        std::arch::asm!("/* {0} */", inout(zmm_reg) lanes, options(pure, nomem, nostack, preserves_flags));
        lanes
    }
}

/// The lower and the upper half, added.
#[inline(always)]
unsafe fn fold(a: __m512) -> __m256 {
    unsafe {
        let upper = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, a);
        _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_castps512_ps256(upper))
    }
}

impl Lanes for Avx512 {
    type V = __m512;
    type I = __m512i;
    const N: usize = 16;
    const TILE: (usize, usize) = (6, 4);
    const GROUPS: usize = 2;
    /// The 16 meanings: a permutation picks by the low 4 bits of each lane and looks at no others.
    type Nibbles = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first_mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(a: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    unsafe fn select_range(from: usize, to: usize, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(first_mask(to) & !first_mask(from), b, a) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe {
            let folded = fold(a);
            let pairs = _mm256_hadd_ps(folded, folded);
            let quads = _mm256_hadd_ps(pairs, pairs);
            _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads)))
        }
    }
    #[inline(always)]
    unsafe fn sum4(a: [__m512; 4]) -> [f32; 4] {
        unsafe {
            let lower = _mm256_hadd_ps(fold(a[0]), fold(a[1]));
            let upper = _mm256_hadd_ps(fold(a[2]), fold(a[3]));
            let quads = _mm256_hadd_ps(lower, upper);
            let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }
    #[inline(always)]
    unsafe fn max_lane(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512i {
        unsafe { widen(p) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(p.cast::<u16>().read_unaligned())))) }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn splat_f16_pair(p: *const u8) -> (__m512, __m512) {
        unsafe {
            let pairs = _mm512_cvtph_ps(_mm256_set1_epi32(p.cast::<i32>().read_unaligned()));
            (_mm512_moveldup_ps(pairs), _mm512_movehdup_ps(pairs))
        }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, mask: i32) -> __m512i {
        unsafe { _mm512_and_si512(a, _mm512_set1_epi32(mask)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<BITS>(a) }
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<BITS>(a) }
    }
    #[inline(always)]
    unsafe fn bits(word: u32, first: usize) -> __m512i {
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32));
            Self::and(_mm512_srlv_epi32(_mm512_set1_epi32(word.cast_signed()), lanes), 1)
        }
    }
    #[inline(always)]
    unsafe fn to_f32(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn nibbles(scale: __m512, offset: __m512) -> __m512 {
        unsafe {
            let all =
                _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
            _mm512_fmadd_ps(scale, all, offset)
        }
    }
    #[inline(always)]
    unsafe fn low_nibbles(bytes: __m512i, meaning: __m512) -> __m512 {
        unsafe { _mm512_permutexvar_ps(bytes, meaning) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(bytes: __m512i, meaning: __m512) -> __m512 {
        unsafe { _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), meaning) }
    }
    #[inline(always)]
    unsafe fn float_of_bits(a: __m512i, bits: u32) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_or_si512(a, _mm512_set1_epi32(bits.cast_signed()))) }
    }
}
