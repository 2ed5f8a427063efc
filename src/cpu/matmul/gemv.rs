//! One row of activations: weights are decoded in registers and read once.

use super::{PANEL, Piece};
use crate::cpu::SharedMut;
use crate::cpu::decode::{self, Decoder, with_decoder};
use crate::cpu::simd::{GROUP, Kernel, Lanes};

/// Outputs computed side by side, so that their chains of additions hide each other's latency.
const SIDE: usize = 4;

/// How far ahead of its use a weight is asked for, at least, in bytes: a few hundred nanoseconds of work, so that memory has
/// answered by then. The machine's own prefetcher gives up at each short row.
const AHEAD: usize = 4096;

/// The same, at most: well inside a second-level cache, so that what was asked for is still there when it is used.
const MOST_AHEAD: usize = 128 << 10;

/// Bytes that come from memory together.
const LINE: usize = 64;

/// The outputs of one piece for one row of activations.
pub struct Gemv<'a> {
    /// `[columns]`.
    pub x: &'a [f32],
    pub piece: Piece<'a>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    /// `[n]`.
    pub out: SharedMut<'a>,
}

impl Kernel for Gemv<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller of `run` vouches for the instructions.
        with_decoder!(self.piece.part.format(), D => unsafe { self.decode::<L, D>() });
    }
}

impl Gemv<'_> {
    #[inline(always)]
    unsafe fn decode<L: Lanes, D: Decoder>(self) {
        let Self { x, piece, bias, out } = self;
        let part = piece.part;
        let (data, row_bytes) = (part.data().as_ptr(), part.row_bytes());
        let ahead = ahead(row_bytes);
        // Here, as it takes a while to fill and each block is opened into it anyway.
        let mut opened = [D::Opened::default(); SIDE];
        for from in (piece.from..piece.to).step_by(SIDE) {
            // Where fewer than four are left, the last is computed again and dropped.
            // SAFETY: the matrix holds row `from + r`, which is below `to`.
            let rows: [*const u8; SIDE] =
                std::array::from_fn(|r| unsafe { data.add((from + r).min(piece.to - 1) * row_bytes) });
            // SAFETY: each row holds as many weights as `x`.
            let sums = unsafe { dots::<L, D>(x, rows, ahead, &mut opened) };
            for (r, sum) in sums.into_iter().enumerate().take(piece.to - from) {
                let output = piece.offset + from + r;
                // SAFETY: each output belongs to one piece, hence to one task.
                unsafe { out.write(output, bias.map_or(sum, |bias| sum + bias[output])) };
            }
        }
    }
}

/// Bytes from a weight to the one that is asked for meanwhile: the same place of rows that come later, a whole number of
/// steps of [`SIDE`] rows away. Any other distance would often land in a row beside, whose bytes there have just been used.
/// Very long rows are left to the machine's prefetcher, which is asked a little ahead of itself.
fn ahead(row_bytes: usize) -> usize {
    let step = SIDE * row_bytes;
    if step > MOST_AHEAD { AHEAD } else { step * AHEAD.div_ceil(step) }
}

/// Products of `x` with four rows.
#[inline(always)]
unsafe fn dots<L: Lanes, D: Decoder>(
    x: &[f32],
    rows: [*const u8; SIDE],
    ahead: usize,
    opened: &mut [D::Opened; SIDE],
) -> [f32; SIDE] {
    let block_len = const { D::GROUPS * GROUP };
    let mut totals = [0.0; SIDE];
    let mut from = 0;
    // SAFETY: blocks and tail stay below `x.len()` weights of each row and floats of `x`.
    unsafe {
        while from < x.len() {
            let len = (x.len() - from).min(PANEL);
            let mut lanes = [L::splat(0.0); SIDE];
            let first = from / block_len;
            for b in first..first.wrapping_add(len / block_len) {
                let x = x.as_ptr().add(b.wrapping_mul(block_len));
                let blocks = rows.map(|row| row.wrapping_add(b.wrapping_mul(D::BYTES)));
                lanes = add_blocks::<L, D>(x, blocks, ahead, opened, lanes);
            }
            let left = len % block_len;
            if left > 0 {
                lanes = add_tails::<L, D>(&x[..from + len], rows, left, lanes);
            }
            let sums = L::sum4(lanes);
            for r in 0..SIDE {
                totals[r] = if from == 0 { sums[r] } else { totals[r] + sums[r] };
            }
            from += len;
        }
    }
    totals
}

/// Adds to `lanes` the products of a block of each row, whose bytes `ahead` are asked for.
#[inline(always)]
unsafe fn add_blocks<L: Lanes, D: Decoder>(
    x: *const f32,
    blocks: [*const u8; SIDE],
    ahead: usize,
    opened: &mut [D::Opened; SIDE],
    mut lanes: [L::V; SIDE],
) -> [L::V; SIDE] {
    // SAFETY: the caller promises the blocks, and as many floats of `x`.
    unsafe {
        for r in 0..SIDE {
            for line in (0..D::BYTES).step_by(LINE) {
                L::prefetch(blocks[r].wrapping_add(ahead.wrapping_add(line)));
            }
            D::open::<L>(blocks[r], &mut opened[r]);
        }
        let together = const { if D::GROUPS.is_multiple_of(L::GROUPS) { L::GROUPS } else { 1 } };
        for first in (0..D::GROUPS).step_by(together) {
            for r in 0..SIDE {
                for g in first..first.wrapping_add(together) {
                    let (x, weights) = (x.add(g.wrapping_mul(GROUP)), D::group::<L>(blocks[r], &opened[r], g));
                    for j in 0..L::VECS {
                        lanes[r] = L::fma(weights[j], L::load(x.add(j * L::N)), lanes[r]);
                    }
                }
            }
        }
    }
    lanes
}

/// Adds to `lanes` the products of the last `left < 32` weights of each row of a dense format.
#[inline(always)]
unsafe fn add_tails<L: Lanes, D: Decoder>(
    x: &[f32],
    rows: [*const u8; SIDE],
    left: usize,
    mut lanes: [L::V; SIDE],
) -> [L::V; SIDE] {
    let at = x.len() - left;
    let mut last = [0.0_f32; GROUP];
    last[..left].copy_from_slice(&x[at..]);
    for r in 0..SIDE {
        // SAFETY: the caller promises that each row has as many weights as `x` floats.
        unsafe {
            let weights = decode::tail::<L, D>(rows[r], at, left);
            for j in 0..L::VECS {
                if j * L::N < left {
                    lanes[r] = L::fma(weights[j], L::load(last.as_ptr().add(j * L::N)), lanes[r]);
                }
            }
        }
    }
    lanes
}
