//! The K formats: blocks of 256 weights, whose groups have scales of their own inside the block.

use super::super::format::Format;
use super::super::simd::{GROUP, Lanes};
use super::{Decoder, decoder};

/// Groups of a block.
const GROUPS: usize = 8;

/// Start of the block that holds `group`, and the group's place in it.
#[inline(always)]
unsafe fn locate<D: Decoder>(row: *const u8, group: usize) -> (*const u8, usize) {
    // SAFETY: the caller promises that the row holds the group.
    (unsafe { row.add((group / GROUPS).wrapping_mul(D::FORMAT.block_bytes())) }, group % GROUPS)
}

/// Scale and offset of group `g`, 6 bits each, from the 12 bytes that hold 8 of both.
#[inline(always)]
unsafe fn scale_and_offset(p: *const u8, g: usize) -> (f32, f32) {
    // SAFETY: `p` holds 12 bytes, and `g` is below 8.
    let at = |i: usize| u32::from(unsafe { *p.add(i) });
    let (scale, offset) = if g < 4 {
        (at(g) & 63, at(g + 4) & 63)
    } else {
        ((at(g + 4) & 15) | ((at(g - 4) >> 6) << 4), (at(g + 4) >> 4) | ((at(g) >> 6) << 4))
    };
    (scale as f32, offset as f32)
}

/// 32 nibbles of group `g`: groups 0 and 1 share the first 32 bytes as low and high nibbles, and so on. Vector `j`.
#[inline(always)]
unsafe fn nibbles<L: Lanes>(p: *const u8, g: usize, j: usize) -> L::I {
    // SAFETY: `p` holds 128 bytes, and `g` is below 8.
    unsafe {
        let bytes = L::load_u8(p.add(g / 2 * 32 + j * L::N));
        if g.is_multiple_of(2) { L::and(bytes, 15) } else { L::shr::<4>(bytes) }
    }
}

decoder!(
    /// 4 bits, a scale and an offset per 32.
    Q4K, Format::Q4K, |L, row, group, out| {
        let (p, g) = locate::<Self>(row, group);
        let (scale, offset) = scale_and_offset(p.add(4), g);
        let scale = L::splat(L::f16(p) * scale);
        let offset = L::splat(-(L::f16(p.add(2)) * offset));
        for j in 0..L::VECS {
            out[j] = L::fma(scale, L::to_f32(nibbles::<L>(p.add(16), g, j)), offset);
        }
    }
);
decoder!(
    /// 5 bits, a scale and an offset per 32.
    Q5K, Format::Q5K, |L, row, group, out| {
        let (p, g) = locate::<Self>(row, group);
        let (scale, offset) = scale_and_offset(p.add(4), g);
        let scale = L::splat(L::f16(p) * scale);
        let offset = L::splat(-(L::f16(p.add(2)) * offset));
        let bit = 1_i32 << g;
        for j in 0..L::VECS {
            // The fifth bit is worth 16; where it stands in its byte it is worth `bit`.
            let high = L::to_f32(L::and(L::load_u8(p.add(16 + j * L::N)), bit));
            let low = L::to_f32(nibbles::<L>(p.add(48), g, j));
            out[j] = L::fma(scale, L::fma(high, L::splat(16.0 / bit as f32), low), offset);
        }
    }
);
decoder!(
    /// 6 bits around 32, a signed scale of 8 bits per 16.
    Q6K, Format::Q6K, |L, row, group, out| {
        let (p, g) = locate::<Self>(row, group);
        // Each half of the block has 64 bytes of low nibbles, 32 bytes of upper bits and 8 scales.
        let (half, quarter) = (g / 4, g % 4);
        let low = p.add(half * 64 + quarter % 2 * 32);
        let high = p.add(128 + half * 32);
        let scales = p.add(192 + g * 2).cast::<i8>();
        let d = L::f16(p.add(208));
        for j in 0..L::VECS {
            let low = L::load_u8(low.add(j * L::N));
            let low = if quarter < 2 { L::and(low, 15) } else { L::shr::<4>(low) };
            let high = L::load_u8(high.add(j * L::N));
            let high = match quarter {
                0 => L::shl::<4>(L::and(high, 3)),
                1 => L::shl::<2>(L::and(high, 12)),
                2 => L::and(high, 48),
                _ => L::shr::<2>(L::and(high, 192)),
            };
            let scale = d * f32::from(*scales.add(j * L::N / 16));
            out[j] = L::fma(L::splat(scale), L::to_f32(L::or(low, high)), L::splat(-32.0 * scale));
        }
    }
);

/// Loads weights that scalar code has computed.
#[inline(always)]
unsafe fn load_group<L: Lanes>(weights: &[f32; GROUP], out: &mut [L::V; 4]) {
    for j in 0..L::VECS {
        // SAFETY: `VECS` vectors of `N` floats are the array.
        out[j] = unsafe { L::load(weights.as_ptr().add(j * L::N)) };
    }
}

decoder!(
    /// 2 bits, a scale and an offset of 4 bits per 16.
    Q2K, Format::Q2K, |L, row, group, out| {
        let (p, g) = locate::<Self>(row, group);
        let (d, dmin) = (L::f16(p.add(80)), L::f16(p.add(82)));
        let quants = p.add(16 + g / 4 * 32);
        let mut weights = [0.0; GROUP];
        for l in 0..GROUP {
            let scale = *p.add(g * 2 + l / 16);
            let quant = (*quants.add(l) >> (g % 4 * 2)) & 3;
            weights[l] = d * f32::from(scale & 15) * f32::from(quant) - dmin * f32::from(scale >> 4);
        }
        load_group::<L>(&weights, &mut out);
    }
);
decoder!(
    /// 3 bits around 4, a scale of 6 bits around 32 per 16.
    Q3K, Format::Q3K, |L, row, group, out| {
        let (p, g) = locate::<Self>(row, group);
        let d = L::f16(p.add(108));
        let quants = p.add(32 + g / 4 * 32);
        let packed = p.add(96);
        let mut weights = [0.0; GROUP];
        for l in 0..GROUP {
            let s = g * 2 + l / 16;
            let low = (*packed.add(s % 8) >> (s / 8 * 4)) & 15;
            let high = (*packed.add(8 + s % 4) >> (s / 4 * 2)) & 3;
            let scale = f32::from(low | (high << 4)) - 32.0;
            let third = (*p.add(l) >> g) & 1;
            let quant = f32::from((*quants.add(l) >> (g % 4 * 2)) & 3) - if third == 1 { 0.0 } else { 4.0 };
            weights[l] = d * scale * quant;
        }
        load_group::<L>(&weights, &mut out);
    }
);
