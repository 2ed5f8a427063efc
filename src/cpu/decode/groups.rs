//! Groups of 32, 64 or 128 weights with a scale each: integers around a zero, and floats of 8 bits.
//!
//! An integer less its zero is exact, and so are the products of both with the scale: what is decoded is what the
//! checkpoint means.

use super::super::format::Format;
use super::super::simd::{GROUP, Lanes};
use super::{Decoder, nibbles};

/// Bytes before a block's weights: scale and zero, or a scale of 32 bits.
const HEAD: usize = 4;

/// Nibbles around a zero, `LEN` to a scale.
pub struct Int4<const LEN: usize>;

impl<const LEN: usize> Decoder for Int4<LEN> {
    const FORMAT: Format = match LEN {
        32 => Format::Int4x32,
        64 => Format::Int4x64,
        128 => Format::Int4x128,
        _ => panic!("no such group"),
    };

    type Opened = ();

    #[inline(always)]
    unsafe fn open<L: Lanes>(_: *const u8, (): &mut ()) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), group: usize) -> [L::V; 4] {
        // SAFETY: the caller promises that the block holds the group; its nibbles take half as many bytes as weights.
        unsafe {
            let mut out = [L::splat(0.0); 4];
            let (scale, zero) = L::splat_f16_pair(block);
            let offset = L::mul(scale, L::sub(L::splat(0.0), zero));
            nibbles::<L>(block.add(HEAD + group * (GROUP / 2)), scale, offset, &mut out);
            out
        }
    }
}

/// Unsigned bytes around a zero, `LEN` to a scale.
pub struct Int8<const LEN: usize>;

impl<const LEN: usize> Decoder for Int8<LEN> {
    const FORMAT: Format = match LEN {
        32 => Format::Int8x32,
        64 => Format::Int8x64,
        128 => Format::Int8x128,
        _ => panic!("no such group"),
    };

    type Opened = ();

    #[inline(always)]
    unsafe fn open<L: Lanes>(_: *const u8, (): &mut ()) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), group: usize) -> [L::V; 4] {
        // SAFETY: the caller promises that the block holds the group, a byte a weight.
        unsafe {
            let mut out = [L::splat(0.0); 4];
            let (scale, zero) = L::splat_f16_pair(block);
            let p = block.add(HEAD + group * GROUP);
            for j in 0..L::VECS {
                out[j] = L::mul(scale, L::sub(L::to_f32(L::load_u8(p.add(j * L::N))), zero));
            }
            out
        }
    }
}

/// Floats of 8 bits (e4m3fn), `LEN` to a scale.
pub struct Fp8<const LEN: usize>;

impl<const LEN: usize> Decoder for Fp8<LEN> {
    const FORMAT: Format = match LEN {
        32 => Format::Fp8x32,
        64 => Format::Fp8x64,
        128 => Format::Fp8x128,
        _ => panic!("no such group"),
    };

    type Opened = ();

    #[inline(always)]
    unsafe fn open<L: Lanes>(_: *const u8, (): &mut ()) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), group: usize) -> [L::V; 4] {
        // SAFETY: the caller promises that the block holds the group, a byte a weight.
        unsafe {
            let mut out = [L::splat(0.0); 4];
            let scale = L::splat(f32::from_le_bytes(block.cast::<[u8; 4]>().read()));
            let p = block.add(HEAD + group * GROUP);
            for j in 0..L::VECS {
                out[j] = L::mul(scale, e4m3::<L>(p.add(j * L::N)));
            }
            out
        }
    }
}

/// What `N` bytes mean as e4m3fn: a sign, 4 bits of exponent with a bias of 7, 3 bits of fraction.
///
/// Put where a single has them, exponent and fraction mean 2^-120 times as much, in numbers that some processors are slow
/// with. With 112 added to the exponent they are `x` = 2^-8 times as much, but for exponent 0, which has no leading one:
/// there they are 2 x - 2^-14. That is the smaller of the two there, and the larger one elsewhere.
#[inline(always)]
unsafe fn e4m3<L: Lanes>(p: *const u8) -> L::V {
    /// The exponent 112 in a single, and 256 as one.
    const EXPONENT: u32 = 112 << 23;
    const RESTORE: u32 = 0x4380_0000;
    // SAFETY: the caller promises `N` bytes.
    unsafe {
        let bytes = L::load_u8(p);
        let x = L::float_of_bits(L::shl::<20>(L::and(bytes, 0x7f)), EXPONENT);
        let magnitude = L::min(x, L::fma(x, L::splat(2.0), L::splat(-1.0 / 16384.0)));
        L::mul(magnitude, L::float_of_bits(L::shl::<24>(L::and(bytes, 0x80)), RESTORE))
    }
}
