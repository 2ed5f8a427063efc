//! Q4_K: groups of nibbles, two to the same 32 bytes, each with a scale and an offset of its own.
//!
//! Where both groups are taken together their bytes are widened once and need not be told apart before. Elsewhere that
//! would be done twice, and a block is opened as those of the other K formats are.

use super::super::format::Format;
use super::super::simd::{GROUP, Lanes};
use super::Decoder;
use super::k_quants::{GROUPS, Unpacked, bytes, each, open_scales, with_offsets};

/// Bytes before a block's nibbles: two floats and what they scale.
const HEAD: usize = 16;

/// 4 bits, a scale and an offset per 32.
pub struct Q4K;

impl Decoder for Q4K {
    const FORMAT: Format = Format::Q4K;
    type Opened = Unpacked;

    #[inline(always)]
    unsafe fn open<L: Lanes>(block: *const u8, opened: &mut Unpacked) {
        // SAFETY: offsets stay inside the block, which the caller promises.
        unsafe {
            open_scales::<L>(block, opened);
            if L::GROUPS == 1 {
                for pair in 0..GROUPS / 2 {
                    let nibbles = bytes(block.add(HEAD + pair * GROUP));
                    opened.quants[pair * 2] = each(&nibbles, |byte| byte & 15);
                    opened.quants[pair * 2 + 1] = each(&nibbles, |byte| byte >> 4);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, opened: &Unpacked, group: usize) -> [L::V; 4] {
        debug_assert!(group < GROUPS);
        // SAFETY: as the caller's.
        unsafe {
            if L::GROUPS == 1 { with_offsets::<L, 32>(opened, group) } else { half_bytes::<L>(block, opened, group) }
        }
    }
}

/// Group `g`: the low nibbles of 32 bytes where it is even, the high ones of the same bytes where it is odd.
#[inline(always)]
unsafe fn half_bytes<L: Lanes>(block: *const u8, opened: &Unpacked, g: usize) -> [L::V; 4] {
    // SAFETY: bytes, scales and offsets are those of a group of the block.
    unsafe {
        let mut out = [L::splat(0.0); 4];
        let (scale, offset) = (*opened.scales.as_ptr().add(g), *opened.offsets.as_ptr().add(g));
        let meaning = L::nibbles(L::splat(scale), L::splat(offset));
        let p = block.add(HEAD).add((g / 2).wrapping_mul(GROUP));
        for j in 0..L::VECS {
            let bytes = L::load_u8(p.add(j * L::N));
            out[j] = if g.is_multiple_of(2) { L::low_nibbles(bytes, meaning) } else { L::high_nibbles(bytes, meaning) };
        }
        out
    }
}
