//! What the bytes of each [`Format`] mean: 32 weights at a time, as vectors of floats.
//!
//! Every kernel gets its weights from here, so that all see the same bits. The integer part of each weight times its
//! scale is exact in single precision for every format, so the order of those products does not matter; an offset is
//! added with one rounding. Source: ggml's `dequantize_row_*`.

mod groups;
mod k_quants;
mod q4_k;

use super::format::Format;
use super::simd::{GROUP, Lanes};
pub use groups::{Fp8, Int4, Int8};
pub use k_quants::{Q2K, Q3K, Q5K, Q6K};
pub use q4_k::Q4K;

/// A format that yields groups of [`GROUP`] weights, block by block.
pub trait Decoder: 'static {
    /// The format that it reads.
    const FORMAT: Format;

    /// Groups of a block; a dense format's block is one group here.
    const GROUPS: usize = if Self::FORMAT.block_len() < GROUP { 1 } else { Self::FORMAT.block_len() / GROUP };

    /// Bytes of a block of that many groups.
    const BYTES: usize = Self::FORMAT.block_bytes() * Self::GROUPS * GROUP / Self::FORMAT.block_len();

    /// What is made of a block once, for all its groups.
    type Opened: Copy + Default;

    /// Makes what the groups of a block share.
    ///
    /// # Safety
    /// `block` must hold one, and the machine must have the instructions of `L`.
    unsafe fn open<L: Lanes>(block: *const u8, opened: &mut Self::Opened);

    /// Weights `group * 32 ..` of a block: the first `L::VECS` vectors; the others are 0.
    ///
    /// # Safety
    /// `block` must hold the group, `opened` come from the same block, and the machine must have the instructions of
    /// `L`.
    unsafe fn group<L: Lanes>(block: *const u8, opened: &Self::Opened, group: usize) -> [L::V; 4];
}

/// Runs `$body` with `$decoder` standing for the decoder of `$format`.
macro_rules! with_decoder {
    ($format:expr, $decoder:ident => $body:expr) => {{
        use $crate::cpu::decode as d;
        use $crate::cpu::format::Format as F;
        macro_rules! arm {
            ($type:ty) => {{
                type $decoder = $type;
                $body
            }};
        }
        match $format {
            F::F32 => arm!(d::F32),
            F::F16 => arm!(d::F16),
            F::Bf16 => arm!(d::Bf16),
            F::Q4_0 => arm!(d::Q4_0),
            F::Q4_1 => arm!(d::Q4_1),
            F::Q5_0 => arm!(d::Q5_0),
            F::Q5_1 => arm!(d::Q5_1),
            F::Q8_0 => arm!(d::Q8_0),
            F::Q2K => arm!(d::Q2K),
            F::Q3K => arm!(d::Q3K),
            F::Q4K => arm!(d::Q4K),
            F::Q5K => arm!(d::Q5K),
            F::Q6K => arm!(d::Q6K),
            F::Int4x32 => arm!(d::Int4<32>),
            F::Int4x64 => arm!(d::Int4<64>),
            F::Int4x128 => arm!(d::Int4<128>),
            F::Int8x32 => arm!(d::Int8<32>),
            F::Int8x64 => arm!(d::Int8<64>),
            F::Int8x128 => arm!(d::Int8<128>),
            F::Fp8x32 => arm!(d::Fp8<32>),
            F::Fp8x64 => arm!(d::Fp8<64>),
            F::Fp8x128 => arm!(d::Fp8<128>),
        }
    }};
}
pub(crate) use with_decoder;

/// Writes what the nibbles of 16 bytes mean, `scale * nibble + offset`: the low ones are weights 0 to 15, the high ones 16
/// to 31.
#[inline(always)]
unsafe fn nibbles<L: Lanes>(p: *const u8, scale: L::V, offset: L::V, out: &mut [L::V; 4]) {
    let half = L::VECS / 2;
    // SAFETY: `p` holds 16 bytes, and each vector covers `N` of them from a multiple of `N`.
    unsafe {
        let meaning = L::nibbles(scale, offset);
        for j in 0..half {
            let bytes = L::load_u8(p.add(j * L::N));
            out[j] = L::low_nibbles(bytes, meaning);
            out[half + j] = L::high_nibbles(bytes, meaning);
        }
    }
}

/// Those nibbles as integers, vector `j` of them.
#[inline(always)]
unsafe fn nibble_integers<L: Lanes>(p: *const u8, j: usize) -> L::I {
    let half = L::VECS / 2;
    // SAFETY: `p` holds 16 bytes, and vector `j` covers `N` of them from a multiple of `N`.
    unsafe {
        if j < half {
            L::and(L::load_u8(p.add(j * L::N)), 15)
        } else {
            L::shr::<4>(L::load_u8(p.add((j - half) * L::N)))
        }
    }
}

/// [`nibble_integers`] with a fifth bit each, bit `i` of the word at `high` for weight `i`.
#[inline(always)]
unsafe fn fifths<L: Lanes>(p: *const u8, high: *const u8, j: usize) -> L::I {
    // SAFETY: the caller passes four bytes at `high` and 16 at `p`.
    unsafe {
        let word = u32::from_le_bytes(high.cast::<[u8; 4]>().read());
        L::or(nibble_integers::<L>(p, j), L::shl::<4>(L::bits(word, j * L::N)))
    }
}

/// A format whose groups share nothing: `$p` is where its one group starts.
macro_rules! decoder {
    ($(#[$doc:meta])* $name:ident, $format:expr, |$lanes:ident, $p:ident, $out:ident| $body:block) => {
        $(#[$doc])*
        pub struct $name;
        impl Decoder for $name {
            const FORMAT: Format = $format;
            type Opened = ();
            #[inline(always)]
            unsafe fn open<L: Lanes>(_: *const u8, (): &mut ()) {}
            #[inline(always)]
            unsafe fn group<$lanes: Lanes>($p: *const u8, (): &(), _: usize) -> [$lanes::V; 4] {
                // SAFETY: offsets stay inside the group's bytes, which the caller promises.
                unsafe {
                    let mut $out = [$lanes::splat(0.0); 4];
                    $body
                    $out
                }
            }
        }
    };
}

decoder!(
    /// Single precision.
    F32, Format::F32, |L, p, out| {
        let p = p.cast::<f32>();
        for j in 0..L::VECS {
            out[j] = L::load(p.add(j * L::N));
        }
    }
);
decoder!(
    /// Half precision.
    F16, Format::F16, |L, p, out| {
        for j in 0..L::VECS {
            out[j] = L::load_f16(p.add(j * 2 * L::N));
        }
    }
);
decoder!(
    /// bfloat16.
    Bf16, Format::Bf16, |L, p, out| {
        for j in 0..L::VECS {
            out[j] = L::load_bf16(p.add(j * 2 * L::N));
        }
    }
);
decoder!(
    /// Nibbles around 8.
    Q4_0, Format::Q4_0, |L, p, out| {
        let scale = L::splat_f16(p);
        nibbles::<L>(p.add(2), scale, L::mul(scale, L::splat(-8.0)), &mut out);
    }
);
decoder!(
    /// Nibbles with an offset.
    Q4_1, Format::Q4_1, |L, p, out| {
        let (scale, offset) = L::splat_f16_pair(p);
        nibbles::<L>(p.add(4), scale, offset, &mut out);
    }
);
decoder!(
    /// Five bits around 16.
    Q5_0, Format::Q5_0, |L, p, out| {
        let scale = L::splat_f16(p);
        let offset = L::mul(scale, L::splat(-16.0));
        for j in 0..L::VECS {
            out[j] = L::fma(scale, L::to_f32(fifths::<L>(p.add(6), p.add(2), j)), offset);
        }
    }
);
decoder!(
    /// Five bits with an offset.
    Q5_1, Format::Q5_1, |L, p, out| {
        let (scale, offset) = L::splat_f16_pair(p);
        for j in 0..L::VECS {
            out[j] = L::fma(scale, L::to_f32(fifths::<L>(p.add(8), p.add(4), j)), offset);
        }
    }
);
decoder!(
    /// Signed bytes.
    Q8_0, Format::Q8_0, |L, p, out| {
        let scale = L::splat_f16(p);
        for j in 0..L::VECS {
            out[j] = L::mul(scale, L::to_f32(L::load_i8(p.add(2 + j * L::N))));
        }
    }
);

/// Most bytes that [`GROUP`] weights of a dense format take.
const TAIL_BYTES: usize = 4 * GROUP;

/// The last `len < 32` weights of a dense row that starts at weight `from`; zeros follow them.
///
/// # Safety
/// `row` must hold `from + len` weights of a dense format, and the machine must have the instructions of `L`.
#[inline(always)]
pub unsafe fn tail<L: Lanes, D: Decoder>(row: *const u8, from: usize, len: usize) -> [L::V; 4] {
    let bytes = D::FORMAT.block_bytes();
    assert!(D::FORMAT.block_len() == 1 && len < GROUP, "only dense rows have a tail");
    let mut buffer = [0_u8; TAIL_BYTES];
    // SAFETY: the row holds the bytes, and `len * bytes` is below the buffer's length.
    unsafe {
        std::ptr::copy_nonoverlapping(row.add(from * bytes), buffer.as_mut_ptr(), len * bytes);
        D::group::<L>(buffer.as_ptr(), &D::Opened::default(), 0)
    }
}

/// Writes weights `from..from + len` of a row to `out`; `from` is where a block starts, or a multiple of 32 of a dense row,
/// and what is no whole block at the end is a dense row's. The last vector is written whole, filled up with zeros.
///
/// # Safety
/// `row` must hold the weights, `out` room for `len` rounded up to a multiple of `L::N`, and the machine must have the
/// instructions of `L`.
#[inline(always)]
pub unsafe fn decode_row<L: Lanes, D: Decoder>(row: *const u8, from: usize, len: usize, out: *mut f32) {
    let block_len = const { D::GROUPS * GROUP };
    debug_assert!(from.is_multiple_of(block_len));
    let mut opened = D::Opened::default();
    // SAFETY: blocks and tail stay within `from + len` weights and `len` floats rounded up to whole vectors.
    unsafe {
        let first = from / block_len;
        let whole = len / block_len;
        for b in 0..whole {
            let block = row.add(first.wrapping_add(b).wrapping_mul(D::BYTES));
            let out = out.add(b.wrapping_mul(block_len));
            D::open::<L>(block, &mut opened);
            for g in 0..D::GROUPS {
                let weights = D::group::<L>(block, &opened, g);
                for j in 0..L::VECS {
                    L::store(out.add(g.wrapping_mul(GROUP) + j * L::N), weights[j]);
                }
            }
        }
        let left = len % block_len;
        if left > 0 {
            let weights = tail::<L, D>(row, from + whole * block_len, left);
            for j in 0..L::VECS {
                if j * L::N < left {
                    L::store(out.add(whole * block_len + j * L::N), weights[j]);
                }
            }
        }
    }
}
