//! The K formats: blocks of 256 weights, whose groups have scales of their own inside the block.
//!
//! Groups share bytes: several have their bits in one, and scales are packed across each other. So a block is opened once:
//! its bits become bytes, 32 or more in an instruction, and its scales floats. What is left for a group is the same for
//! all K formats, and no more than a format of whole bytes takes.

use super::super::format::Format;
use super::super::simd::{GROUP, Lanes};
use super::Decoder;

/// Groups of a block.
pub(super) const GROUPS: usize = 8;

/// The integers of one group.
type Quants = [u8; GROUP];

/// A block whose bits were told apart. What is read soon after it was stored must not straddle two cache lines: the
/// processor would wait for both.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub struct Unpacked {
    /// By group; signed bytes where a format has no offsets. Not filled where Q4_K is read as it lies.
    pub(super) quants: [Quants; GROUPS],
    /// Of 16 weights each, or of 32: then half of them are there.
    pub(super) scales: [f32; 16],
    /// As many, to be added.
    pub(super) offsets: [f32; 16],
}

/// `f` of each pair of bytes. A plain loop over arrays, which the compiler turns into vectors at every level.
#[inline(always)]
fn zip(a: &Quants, b: &Quants, f: impl Fn(u8, u8) -> u8) -> Quants {
    let mut out = [0; GROUP];
    for l in 0..GROUP {
        out[l] = f(a[l], b[l]);
    }
    out
}

/// `f` of each byte; `array::map` would not become vectors.
#[inline(always)]
pub(super) fn each(a: &Quants, f: impl Fn(u8) -> u8) -> Quants {
    zip(a, a, |byte, _| f(byte))
}

/// 32 bytes.
#[inline(always)]
pub(super) unsafe fn bytes(p: *const u8) -> Quants {
    // SAFETY: the caller promises them.
    unsafe { p.cast::<Quants>().read() }
}

/// `d` times each of the integers.
#[inline(always)]
fn times<const LEN: usize>(d: f32, integers: [u8; LEN], value: impl Fn(u8) -> f32) -> [f32; LEN] {
    let mut out = [0.0; LEN];
    for i in 0..LEN {
        out[i] = d * value(integers[i]);
    }
    out
}

/// Scales and offsets of 8 groups, 6 bits each, from the 12 bytes that hold them: the first four of both have bytes of
/// their own, whose upper two bits are those of the last four.
#[inline(always)]
unsafe fn six_bits(p: *const u8) -> ([u8; GROUPS], [u8; GROUPS]) {
    /// A byte four times.
    const fn four(byte: u8) -> u32 {
        u32::from_le_bytes([byte; 4])
    }
    // SAFETY: the caller promises 12 bytes.
    let words = unsafe { p.cast::<[[u8; 4]; 3]>().read() };
    let [scales, offsets, nibbles] = words.map(u32::from_le_bytes);
    let both = |first: u32, last: u32| {
        let last = (last & four(15)) | ((first >> 2) & four(48));
        (u64::from(first & four(63)) | (u64::from(last) << 32)).to_le_bytes()
    };
    (both(scales, nibbles), both(offsets, nibbles >> 4))
}

/// Scales and offsets of a block that starts with `d` and `dmin` and has them packed as [`six_bits`].
#[inline(always)]
pub(super) unsafe fn open_scales<L: Lanes>(p: *const u8, opened: &mut Unpacked) {
    // SAFETY: as the caller's.
    unsafe {
        let (scales, offsets) = six_bits(p.add(4));
        opened.scales[..GROUPS].copy_from_slice(&times(L::f16(p), scales, f32::from));
        opened.offsets[..GROUPS].copy_from_slice(&times(-L::f16(p.add(2)), offsets, f32::from));
    }
}

/// Group `g`: a scale and an offset per `LEN` weights.
#[inline(always)]
pub(super) unsafe fn with_offsets<L: Lanes, const LEN: usize>(opened: &Unpacked, g: usize) -> [L::V; 4] {
    // SAFETY: quants and scales are indexed by a group of the block.
    unsafe {
        let mut out = [L::splat(0.0); 4];
        let quants = opened.quants.as_ptr().add(g).cast::<u8>();
        for j in 0..L::VECS {
            let s = g.wrapping_mul(GROUP / LEN).wrapping_add(j * L::N / LEN);
            let (scale, offset) = (*opened.scales.as_ptr().add(s), *opened.offsets.as_ptr().add(s));
            out[j] = L::fma(L::splat(scale), L::to_f32(L::load_u8(quants.add(j * L::N))), L::splat(offset));
        }
        out
    }
}

/// Group `g`: signed integers, a scale per 16.
#[inline(always)]
unsafe fn signed<L: Lanes>(opened: &Unpacked, g: usize) -> [L::V; 4] {
    // SAFETY: quants and scales are indexed by a group of the block.
    unsafe {
        let mut out = [L::splat(0.0); 4];
        let quants = opened.quants.as_ptr().add(g).cast::<u8>();
        for j in 0..L::VECS {
            let s = g.wrapping_mul(2).wrapping_add(j * L::N / 16);
            let scale = *opened.scales.as_ptr().add(s);
            out[j] = L::mul(L::splat(scale), L::to_f32(L::load_i8(quants.add(j * L::N))));
        }
        out
    }
}

macro_rules! k_decoder {
    (
        $(#[$doc:meta])* $name:ident, $format:expr, $group:expr,
        |$lanes:ident, $p:ident, $opened:ident| $body:block
    ) => {
        $(#[$doc])*
        pub struct $name;
        impl Decoder for $name {
            const FORMAT: Format = $format;
            type Opened = Unpacked;
            #[inline(always)]
            unsafe fn open<$lanes: Lanes>($p: *const u8, $opened: &mut Unpacked) {
                // SAFETY: offsets stay inside the block, which the caller promises.
                unsafe { $body }
            }
            #[inline(always)]
            unsafe fn group<$lanes: Lanes>(_: *const u8, opened: &Unpacked, group: usize) -> [$lanes::V; 4] {
                debug_assert!(group < GROUPS);
                // SAFETY: as the caller's.
                unsafe { $group(opened, group) }
            }
        }
    };
}

k_decoder!(
    /// 5 bits, a scale and an offset per 32.
    Q5K, Format::Q5K, with_offsets::<L, 32>, |L, p, opened| {
        open_scales::<L>(p, opened);
        let mut fifths = bytes(p.add(16));
        for pair in 0..GROUPS / 2 {
            let nibbles = bytes(p.add(48 + pair * GROUP));
            opened.quants[pair * 2] = zip(&nibbles, &fifths, |low, high| (low & 15) | ((high & 1) << 4));
            opened.quants[pair * 2 + 1] = zip(&nibbles, &fifths, |low, high| (low >> 4) | ((high & 2) << 3));
            fifths = each(&fifths, |byte| byte >> 2);
        }
    }
);
k_decoder!(
    /// 6 bits around 32, a signed scale of 8 bits per 16.
    Q6K, Format::Q6K, signed::<L>, |L, p, opened| {
        opened.scales = times(L::f16(p.add(208)), p.add(192).cast::<[u8; 16]>().read(), |s| f32::from(s.cast_signed()));
        // Each half of the block has 64 bytes of low nibbles and 32 bytes of upper bits.
        for half in 0..2 {
            let (first, second) = (bytes(p.add(half * 64)), bytes(p.add(half * 64 + 32)));
            let high = bytes(p.add(128 + half * 32));
            let around = |low: u8, high: u8| (low | high).wrapping_sub(32);
            let quants = &mut opened.quants[half * 4..][..4];
            quants[0] = zip(&first, &high, |low, high| around(low & 15, (high & 3) << 4));
            quants[1] = zip(&second, &high, |low, high| around(low & 15, (high & 12) << 2));
            quants[2] = zip(&first, &high, |low, high| around(low >> 4, high & 48));
            quants[3] = zip(&second, &high, |low, high| around(low >> 4, (high & 192) >> 2));
        }
    }
);
k_decoder!(
    /// 2 bits, a scale and an offset of 4 bits per 16.
    Q2K, Format::Q2K, with_offsets::<L, 16>, |L, p, opened| {
        let pairs = p.cast::<[u8; 16]>().read();
        opened.scales = times(L::f16(p.add(80)), pairs, |pair| f32::from(pair & 15));
        opened.offsets = times(-L::f16(p.add(82)), pairs, |pair| f32::from(pair >> 4));
        for half in 0..2 {
            let mut quants = bytes(p.add(16 + half * GROUP));
            for quarter in 0..4 {
                opened.quants[half * 4 + quarter] = each(&quants, |byte| byte & 3);
                quants = each(&quants, |byte| byte >> 2);
            }
        }
    }
);
k_decoder!(
    /// 3 bits around 4, a scale of 6 bits around 32 per 16.
    Q3K, Format::Q3K, signed::<L>, |L, p, opened| {
        let packed = p.add(96).cast::<[u8; 12]>().read();
        let mut scales = [0; 16];
        for s in 0..16 {
            let low = (packed[s % 8] >> (s / 8 * 4)) & 15;
            let high = (packed[8 + s % 4] >> (s / 4 * 2)) & 3;
            scales[s] = low | (high << 4);
        }
        opened.scales = times(L::f16(p.add(108)), scales, |scale| f32::from(scale) - 32.0);
        let mut thirds = bytes(p);
        for half in 0..2 {
            let mut quants = bytes(p.add(32 + half * GROUP));
            for quarter in 0..4 {
                let around = |low: u8, high: u8| ((low & 3) | ((high & 1) << 2)).wrapping_sub(4);
                opened.quants[half * 4 + quarter] = zip(&quants, &thirds, around);
                quants = each(&quants, |byte| byte >> 2);
                thirds = each(&thirds, |byte| byte >> 1);
            }
        }
    }
);
