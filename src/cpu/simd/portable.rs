//! [`Lanes`] as plain arrays: correct everywhere, and fast where the compiler vectorises them.

// SAFETY of every block in this file: whoever passes a pointer promises that it is valid for as many elements as the
// function names; the rest is plain arithmetic.

use super::Lanes;
use half::{bf16, f16};

/// Arrays of 8.
#[derive(Clone, Copy)]
pub struct Portable;

const N: usize = 8;

#[inline(always)]
fn map2(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|l| f(a[l], b[l]))
}

#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction a fused multiply-add is a library call, a hundred times slower.
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

impl Lanes for Portable {
    type V = [f32; N];
    type I = [i32; N];
    const N: usize = N;
    const TILE: (usize, usize) = (4, 3);
    const GROUPS: usize = 1;
    type Nibbles = ([f32; N], [f32; N]);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        std::array::from_fn(|l| if l < n { unsafe { p.add(l).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|l| multiply_add(a[l], b[l], c[l]))
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2_whole(a: Self::V) -> Self::V {
        // A NaN casts to 0, hence to 1: it comes back through the factor that this is multiplied with.
        a.map(|x| f32::from_bits((((x as i32).wrapping_add(127)) << 23).cast_unsigned()))
    }
    #[inline(always)]
    unsafe fn select_range(from: usize, to: usize, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|l| if l >= from && l < to { a[l] } else { b[l] })
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))
    }
    #[inline(always)]
    unsafe fn sum4(a: [Self::V; 4]) -> [f32; 4] {
        a.map(|a| unsafe { Self::sum(a) })
    }
    #[inline(always)]
    unsafe fn max_lane(a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        unsafe { p.cast::<[u8; N]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::I {
        unsafe { p.cast::<[i8; N]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::V {
        unsafe { p.cast::<[[u8; 2]; N]>().read() }.map(|b| f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::V {
        unsafe { p.cast::<[[u8; 2]; N]>().read() }.map(|b| bf16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> f32 {
        f16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() }).to_f32()
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> Self::V {
        [unsafe { Self::f16(p) }; N]
    }
    #[inline(always)]
    unsafe fn splat_f16_pair(p: *const u8) -> (Self::V, Self::V) {
        unsafe { (Self::splat_f16(p), Self::splat_f16(p.add(2))) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, mask: i32) -> Self::I {
        a.map(|x| x & mask)
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|l| a[l] | b[l])
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(a: Self::I) -> Self::I {
        a.map(|x| x.cast_unsigned().wrapping_shr(BITS).cast_signed())
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(a: Self::I) -> Self::I {
        a.map(|x| x.wrapping_shl(BITS))
    }
    #[inline(always)]
    unsafe fn bits(word: u32, first: usize) -> Self::I {
        std::array::from_fn(|l| (word.wrapping_shr((first + l) as u32) & 1).cast_signed())
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> Self::V {
        a.map(|x| x as f32)
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
    unsafe fn float_of_bits(a: Self::I, bits: u32) -> Self::V {
        a.map(|x| f32::from_bits(x.cast_unsigned() | bits))
    }
}
