//! Matrix products: rows of activations with rows of weights, in one order of addition whatever the batch.
//!
//! The order, for each output element: K is cut into panels of [`PANEL`]; within a panel lane `l` adds the products of
//! `k = l mod N` one after the other with fused multiply-adds; the lanes are added in the fixed tree of `Lanes::sum`;
//! panels are added in order; the bias comes last. One row takes the way through `gemv`, more take that through `gemm`,
//! and both compute exactly this. Work is split over outputs and rows, never over K.

mod gemm;
mod gemv;

use super::matrix::MatrixRef;
use super::simd::dispatch;
use super::{Cpu, SharedMut};
use gemm::Gemm;
use gemv::Gemv;

/// Inputs that are summed in lanes before the lanes are added: a strip of activations and a few rows of weights of this
/// length fit the first-level cache together.
pub const PANEL: usize = 1024;

/// Outputs whose weights are decoded at a time: 192 KiB of floats, which stay in the second-level cache.
pub const TILE_OUTPUTS: usize = 48;

/// Floats of scratch that one thread needs.
pub const SCRATCH: usize = TILE_OUTPUTS * PANEL;

/// Products below which the caller works alone: waking others would take longer.
const ALONE: usize = 40_000;

/// Rows above which a product may also be split over rows.
const ROW_BLOCK: usize = 128;

/// Some outputs of one part, for some rows: what one task computes.
#[derive(Clone, Copy)]
struct Piece<'a> {
    part: MatrixRef<'a>,
    /// Outputs of the part, `from..to`.
    from: usize,
    to: usize,
    /// Where output 0 of the part stands in a row of `out`.
    offset: usize,
    /// Which of the parts.
    index: usize,
}

/// Rows that lie apart: row `t` is `row_len` elements from `offset + t * stride` on.
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    /// Where row 0 starts.
    pub offset: usize,
    /// Elements from row to row.
    pub stride: usize,
}

impl Cpu {
    /// `out[t, n] = sum over k of x[t, k] * w[n, k] (+ bias[n])`: `x [t, columns]`, `out [t, n]`, where `n` runs over the
    /// rows of all `parts`, stacked; their formats may differ. `bias [n]`.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn matmul(&self, x: &[f32], columns: usize, parts: &[MatrixRef<'_>], bias: Option<&[f32]>, out: &mut [f32]) {
        let outputs: usize = parts.iter().map(MatrixRef::rows).sum();
        assert!(columns > 0 && x.len().is_multiple_of(columns), "x has whole rows");
        let rows = x.len() / columns;
        assert_eq!(out.len(), rows * outputs, "out is [t, n]");
        let (from, to) = (Strided { offset: 0, stride: columns }, Strided { offset: 0, stride: outputs });
        self.matmul_strided(rows, (x, from), columns, parts, bias, (out, to));
    }

    /// [`Self::matmul`] of `rows` rows that lie apart, as do those of the result: a head of each token, say.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn matmul_strided(
        &self,
        rows: usize,
        (x, x_place): (&[f32], Strided),
        columns: usize,
        parts: &[MatrixRef<'_>],
        bias: Option<&[f32]>,
        (out, place): (&mut [f32], Strided),
    ) {
        let outputs: usize = parts.iter().map(MatrixRef::rows).sum();
        let end = |place: Strided, len: usize| place.offset + rows.saturating_sub(1) * place.stride + len;
        assert!(rows == 0 || end(x_place, columns) <= x.len() && end(place, outputs) <= out.len(), "rows are inside");
        assert!(x_place.stride >= columns && place.stride >= outputs, "rows do not overlap");
        assert!(parts.iter().all(|part| part.columns() == columns), "weights have as many columns as x");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "bias is [n]");
        let (x, out) = (&x[x_place.offset.min(x.len())..], SharedMut::new(&mut out[place.offset..]));
        let ordered: Vec<Option<Vec<f32>>> =
            parts.iter().map(|part| in_order(x, (rows, x_place.stride), part)).collect();
        if rows == 1 {
            let x = &x[..columns];
            let chunk = (outputs / (8 * self.threads())).next_multiple_of(4).clamp(16, 256);
            let pieces = cut(parts, chunk);
            let one = |task: usize, _: usize| {
                let piece = pieces[task];
                let x = ordered[piece.index].as_deref().unwrap_or(x);
                dispatch(self.simd, Gemv { x, piece, bias, out });
            };
            self.share(columns * outputs, pieces.len(), &one);
        } else if rows > 1 {
            let pieces = cut(parts, TILE_OUTPUTS);
            let mut row_blocks = 1;
            while pieces.len() * row_blocks < 4 * self.threads() && rows / row_blocks > ROW_BLOCK {
                row_blocks *= 2;
            }
            let block = rows.div_ceil(row_blocks).next_multiple_of(12);
            let strides = (x_place.stride, place.stride);
            let one = |task: usize, thread: usize| {
                let (piece, from) = (pieces[task / row_blocks], task % row_blocks * block);
                let (from, to) = (from.min(rows), (from + block).min(rows));
                let mut scratch = self.scratch(thread);
                let scratch = scratch.floats(SCRATCH);
                // Rows that were put in order lie one after the other.
                let (x, strides) = match &ordered[piece.index] {
                    Some(ordered) => (ordered.as_slice(), (columns, strides.1)),
                    None => (x, strides),
                };
                dispatch(self.simd, Gemm { x, columns, rows: (from, to), strides, piece, bias, out, scratch });
            };
            self.share(columns * outputs * rows, pieces.len() * row_blocks, &one);
        }
    }

    /// Runs `tasks` on all threads, or on the caller alone where there are few `products`.
    fn share(&self, products: usize, tasks: usize, one: &(dyn Fn(usize, usize) + Sync)) {
        if products < ALONE { (0..tasks).for_each(|task| one(task, 0)) } else { self.pool.run(tasks, one) }
    }
}

/// The rows of `x`, `stride` apart, in the order of the columns of `part`, where that is another.
fn in_order(x: &[f32], (rows, stride): (usize, usize), part: &MatrixRef<'_>) -> Option<Vec<f32>> {
    let order = part.input_order()?;
    let inputs = (0..rows).flat_map(|row| order.iter().map(move |input| x[row * stride + *input as usize]));
    Some(inputs.collect())
}

/// Pieces of at most `chunk` outputs; none straddles two parts.
fn cut<'a>(parts: &[MatrixRef<'a>], chunk: usize) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    for (index, &part) in parts.iter().enumerate() {
        for from in (0..part.rows()).step_by(chunk) {
            pieces.push(Piece { part, from, to: (from + chunk).min(part.rows()), offset, index });
        }
        offset += part.rows();
    }
    pieces
}
