//! Several rows of activations: weights are decoded once into a tile of floats, which all rows then use.

use super::{PANEL, Piece};
use crate::cpu::SharedMut;
use crate::cpu::decode::{decode_row, with_decoder};
use crate::cpu::simd::{Kernel, Lanes};

/// Accumulators of the largest tile.
const MOST_LANES: usize = 24;

/// The outputs of one piece for some rows of activations.
pub struct Gemm<'a> {
    /// `[t, columns]`.
    pub x: &'a [f32],
    pub columns: usize,
    /// Rows to compute, from and to.
    pub rows: (usize, usize),
    /// Floats from row to row of `x` and of `out`.
    pub strides: (usize, usize),
    pub piece: Piece<'a>,
    /// `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// `[t, outputs]`.
    pub out: SharedMut<'a>,
    /// `[TILE_OUTPUTS, PANEL]`.
    pub scratch: &'a mut [f32],
}

/// What the tiles of one panel share.
#[derive(Clone, Copy)]
struct Panel {
    /// Activations at the panel's start, and floats from row to row.
    x: *const f32,
    x_stride: usize,
    /// Decoded weights, and floats from output to output.
    weights: *const f32,
    weights_stride: usize,
    /// Inputs of this panel.
    len: usize,
    /// Place of the piece's first output in row 0 of `out`, and floats from row to row.
    out: *mut f32,
    out_stride: usize,
    /// Whether sums are stored rather than added to what the panels before gave.
    first: bool,
    /// The piece's bias; null before the last panel, and where there is none.
    bias: *const f32,
}

impl Kernel for Gemm<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let part = self.piece.part;
        let count = self.piece.to - self.piece.from;
        let place = self.piece.offset + self.piece.from;
        let mut from = 0;
        while from < self.columns {
            let len = (self.columns - from).min(PANEL);
            let stride = len.next_multiple_of(L::N);
            assert!(stride * count <= self.scratch.len());
            with_decoder!(part.format(), D => for n in 0..count {
                // SAFETY: the matrix holds the row, and the scratch `count` rows of whole vectors.
                unsafe {
                    let row = part.data().as_ptr().add((self.piece.from + n) * part.row_bytes());
                    decode_row::<L, D>(row, from, len, self.scratch.as_mut_ptr().add(n * stride));
                }
            });
            let last = from + len == self.columns;
            let panel = Panel {
                x: self.x[from..].as_ptr(),
                x_stride: self.strides.0,
                weights: self.scratch.as_ptr(),
                weights_stride: stride,
                len,
                // SAFETY: the piece's first output is inside row 0.
                out: unsafe { self.out.as_ptr().add(place) },
                out_stride: self.strides.1,
                first: from == 0,
                bias: self.bias.filter(|_| last).map_or(std::ptr::null(), |bias| bias[place..].as_ptr()),
            };
            // SAFETY: rows are inside `x` and `out`; these rows of these outputs belong to this task alone. Tiles may
            // read past `count` outputs of the scratch, whose length is a multiple of every tile's width.
            unsafe { strips::<L>(panel, self.rows.0, self.rows.1, count) };
            from += len;
        }
    }
}

/// All rows of a panel, in strips that fill the registers, the largest first.
#[inline(always)]
unsafe fn strips<L: Lanes>(panel: Panel, from: usize, to: usize, count: usize) {
    let mut row = from;
    // SAFETY: as the caller's.
    unsafe {
        if L::TILE == (6, 4) {
            while to - row >= 6 {
                strip::<L, 6, 4>(panel, row, count);
                row += 6;
            }
        }
        while to - row >= 4 {
            strip::<L, 4, 3>(panel, row, count);
            row += 4;
        }
        match to - row {
            3 => strip::<L, 3, 4>(panel, row, count),
            2 => strip::<L, 2, 6>(panel, row, count),
            1 => strip::<L, 1, 8>(panel, row, count),
            _ => {}
        }
    }
}

/// `R` rows with all outputs, `C` at a time.
#[inline(always)]
unsafe fn strip<L: Lanes, const R: usize, const C: usize>(panel: Panel, row: usize, count: usize) {
    for column in (0..count).step_by(C) {
        // SAFETY: as the caller's.
        unsafe { tile::<L, R, C>(panel, row, column, (count - column).min(C)) };
    }
}

/// `R` rows with `C` outputs, of which `valid` are stored.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const C: usize>(panel: Panel, row: usize, column: usize, valid: usize) {
    // SAFETY: whole vectors stay below `len` floats of each row; the last one, if partial, reads only what is there.
    unsafe {
        let x = panel.x.add(row * panel.x_stride);
        let weights = panel.weights.add(column * panel.weights_stride);
        let mut lanes = [[L::splat(0.0); C]; R];
        let whole = panel.len / L::N * L::N;
        let mut k = 0;
        while k < whole {
            let mut w = [L::splat(0.0); C];
            for c in 0..C {
                w[c] = L::load(weights.add(c.wrapping_mul(panel.weights_stride).wrapping_add(k)));
            }
            for r in 0..R {
                let x = L::load(x.add(r.wrapping_mul(panel.x_stride).wrapping_add(k)));
                for c in 0..C {
                    lanes[r][c] = L::fma(x, w[c], lanes[r][c]);
                }
            }
            k = k.wrapping_add(L::N);
        }
        if whole < panel.len {
            for r in 0..R {
                let x = L::load_first(x.add(r * panel.x_stride + whole), panel.len - whole);
                for c in 0..C {
                    lanes[r][c] = L::fma(x, L::load(weights.add(c * panel.weights_stride + whole)), lanes[r][c]);
                }
            }
        }
        store::<L, R, C>(panel, row, column, valid, lanes);
    }
}

/// Adds the lanes of each accumulator, four accumulators at a time, and stores the sums.
#[inline(always)]
unsafe fn store<L: Lanes, const R: usize, const C: usize>(
    panel: Panel,
    row: usize,
    column: usize,
    valid: usize,
    lanes: [[L::V; C]; R],
) {
    const { assert!((R * C).is_multiple_of(4) && R * C <= MOST_LANES) };
    // Through memory, so that the loop before keeps its accumulators in registers: no variable index reaches them.
    let mut spilled = [std::mem::MaybeUninit::<L::V>::uninit(); MOST_LANES];
    for r in 0..R {
        for c in 0..C {
            spilled[r * C + c].write(lanes[r][c]);
        }
    }
    let mut sums = [0.0_f32; MOST_LANES];
    for (sums, lanes) in sums.chunks_exact_mut(4).zip(spilled.chunks_exact(4)).take(R * C / 4) {
        // SAFETY: the first `R * C` elements were written.
        let four = unsafe {
            L::sum4([lanes[0].assume_init(), lanes[1].assume_init(), lanes[2].assume_init(), lanes[3].assume_init()])
        };
        sums.copy_from_slice(&four);
    }
    // SAFETY: the caller promises that the rows and the valid columns are inside `out` and `bias`.
    unsafe {
        let out = panel.out.add(row.wrapping_mul(panel.out_stride).wrapping_add(column));
        if valid == C && panel.first && panel.bias.is_null() {
            for r in 0..R {
                let from = sums.as_ptr().add(r * C);
                std::ptr::copy_nonoverlapping(from, out.add(r.wrapping_mul(panel.out_stride)), C);
            }
        } else {
            finish::<R, C>(panel, out, column, valid, &sums);
        }
    }
}

/// Stores the `valid` columns of a tile's sums, after those of earlier panels and before the bias.
#[inline(always)]
unsafe fn finish<const R: usize, const C: usize>(
    panel: Panel,
    out: *mut f32,
    column: usize,
    valid: usize,
    sums: &[f32; MOST_LANES],
) {
    for r in 0..R {
        for c in 0..valid.min(C) {
            // SAFETY: as the caller's.
            unsafe {
                let place = out.add(r.wrapping_mul(panel.out_stride).wrapping_add(c));
                let mut sum = sums[r * C + c];
                if !panel.first {
                    sum += *place;
                }
                if !panel.bias.is_null() {
                    sum += *panel.bias.add(column.wrapping_add(c));
                }
                *place = sum;
            }
        }
    }
}
