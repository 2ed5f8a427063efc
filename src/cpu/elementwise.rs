//! What is done to each row by itself: normalisation, the gated activation, embedding.

use super::decode::{decode_row, with_decoder};
use super::exp::exp;
use super::matrix::MatrixRef;
use super::simd::{Kernel, Lanes, dispatch};
use super::{Cpu, CpuError, SharedMut};

/// Elements that one task handles; fewer than twice as many are left to the caller alone.
const CHUNK: usize = 8192;

impl Cpu {
    /// Calls `one(from, to)` over rows `0..rows` of `width` elements, in chunks.
    fn rows(&self, rows: usize, width: usize, one: &(dyn Fn(usize, usize) + Sync)) {
        let chunk = (CHUNK / width.max(1)).max(1);
        if rows * width < 2 * CHUNK {
            return one(0, rows);
        }
        self.pool.run(rows.div_ceil(chunk), &|task, _| one(task * chunk, ((task + 1) * chunk).min(rows)));
    }

    /// `out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight`: `x` and `out` `[t, h]`, `weight [h]`.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        assert!(width > 0 && x.len().is_multiple_of(width) && out.len() == x.len(), "x and out are [t, h]");
        let out = SharedMut::new(out);
        self.rows(x.len() / width, width, &|from, to| {
            dispatch(self.simd, RmsNorm { x: &x[from * width..to * width], from, weight, eps, out });
        });
    }

    /// `residual += x`, then `out = rms_norm(residual)`: all `[t, h]`, `weight [h]`.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        assert!(width > 0 && x.len().is_multiple_of(width), "x is [t, h]");
        assert!(out.len() == x.len() && residual.len() == x.len(), "residual and out are as x");
        let (residual, out) = (SharedMut::new(residual), SharedMut::new(out));
        self.rows(x.len() / width, width, &|from, to| {
            // SAFETY: each row belongs to one task.
            let residual = unsafe { residual.slice(from * width, (to - from) * width) };
            dispatch(self.simd, Add { x: &x[from * width..to * width], sum: residual });
            dispatch(self.simd, RmsNorm { x: residual, from, weight, eps, out });
        });
    }

    /// `out[t, i] = silu(gate[t, i]) * up[t, i]`, `silu(x) = x / (1 + e^-x)`: `gate_up [t, 2 width]` holds a row's gates,
    /// then its ups; `out [t, width]`.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn silu_mul(&self, gate_up: &[f32], width: usize, out: &mut [f32]) {
        assert!(width > 0 && out.len().is_multiple_of(width), "out is [t, width]");
        assert_eq!(gate_up.len(), out.len() * 2, "gate_up is [t, 2 width]");
        let rows = out.len() / width;
        let out = SharedMut::new(out);
        self.rows(rows, width, &|from, to| {
            for row in from..to {
                // SAFETY: each row belongs to one task.
                let out = unsafe { out.slice(row * width, width) };
                let (gate, up) = gate_up[row * 2 * width..(row + 1) * 2 * width].split_at(width);
                dispatch(self.simd, SiluMul { gate, up, out });
            }
        });
    }

    /// `out[t] = table[ids[t]]`, as floats: `out [t, columns of the table]`.
    ///
    /// # Errors
    /// If an id has no row; `out` is untouched then.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn embed(&self, table: MatrixRef<'_>, ids: &[u32], out: &mut [f32]) -> Result<(), CpuError> {
        let width = table.columns();
        assert_eq!(out.len(), ids.len() * width, "out is [t, h]");
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.rows()) {
            return Err(CpuError::TokenId { id, rows: table.rows() });
        }
        let out = SharedMut::new(out);
        self.rows(ids.len(), width, &|from, to| {
            for (row, &id) in ids.iter().enumerate().take(to).skip(from) {
                // SAFETY: each row belongs to one task.
                let out = unsafe { out.slice(row * width, width) };
                dispatch(self.simd, DecodeRow { table, row: id as usize, out: &mut *out });
                if let Some(order) = table.input_order() {
                    let columns = out.to_vec();
                    order.iter().zip(columns).for_each(|(input, value)| out[*input as usize] = value);
                }
            }
        });
        Ok(())
    }
}

/// Stores the first `n` lanes of `v`.
///
/// # Safety
/// `p` must hold `n` floats, `n` at most `L::N`.
#[inline(always)]
unsafe fn store_first<L: Lanes>(p: *mut f32, v: L::V, n: usize) {
    let mut lanes = [0.0_f32; 16];
    // SAFETY: 16 floats hold a vector of any level, and `p` holds `n`.
    unsafe {
        L::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
    }
}

/// What is done to each pair of elements: a trait rather than a closure, since only a method can be told to be inlined
/// always, and one that is not would lose the instructions of its level.
trait Pairwise<L: Lanes> {
    unsafe fn apply(&self, a: L::V, b: L::V) -> L::V;
}

/// `out[i] = f(a[i], b[i])` over whole vectors, then over a partial one.
///
/// # Safety
/// The three must hold `len` floats; `out` may be `a` or `b`.
#[inline(always)]
unsafe fn zip<L: Lanes>(len: usize, a: *const f32, b: *const f32, out: *mut f32, f: impl Pairwise<L>) {
    // SAFETY: each access stays below `len`.
    unsafe {
        let whole = len / L::N * L::N;
        for i in (0..whole).step_by(L::N) {
            L::store(out.add(i), f.apply(L::load(a.add(i)), L::load(b.add(i))));
        }
        let left = len - whole;
        if left > 0 {
            let v = f.apply(L::load_first(a.add(whole), left), L::load_first(b.add(whole), left));
            store_first::<L>(out.add(whole), v, left);
        }
    }
}

/// Sum of squares: vector `i` goes to accumulator `i mod 4`, the accumulators are added in pairs, then the lanes.
///
/// # Safety
/// The machine must have the instructions of `L`.
#[inline(always)]
unsafe fn sum_of_squares<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: each access stays below `x.len()`.
    unsafe {
        let mut lanes = [L::splat(0.0); 4];
        let mut blocks = x.chunks_exact(4 * L::N);
        for block in &mut blocks {
            for (j, lane) in lanes.iter_mut().enumerate() {
                let v = L::load(block.as_ptr().add(j * L::N));
                *lane = L::fma(v, v, *lane);
            }
        }
        for (lane, part) in lanes.iter_mut().zip(blocks.remainder().chunks(L::N)) {
            let v = if part.len() == L::N { L::load(part.as_ptr()) } else { L::load_first(part.as_ptr(), part.len()) };
            *lane = L::fma(v, v, *lane);
        }
        L::sum(L::add(L::add(lanes[0], lanes[1]), L::add(lanes[2], lanes[3])))
    }
}

/// One row, normalised: `out = x / sqrt(mean(x^2) + eps) * weight`; `out` may be `x`.
///
/// # Safety
/// `x` and `out` must hold as many floats as `weight`, and the machine must have the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn normalise<L: Lanes>(x: *const f32, weight: &[f32], eps: f32, out: *mut f32) {
    let len = weight.len();
    // SAFETY: lengths are the caller's promise; nothing is written while the slice lives.
    unsafe {
        let mean = sum_of_squares::<L>(std::slice::from_raw_parts(x, len)) / len as f32;
        zip::<L>(len, x, weight.as_ptr(), out, Scaled(1.0 / (mean + eps).sqrt()));
    }
}

/// `a * factor * b`.
struct Scaled(f32);

impl<L: Lanes> Pairwise<L> for Scaled {
    #[inline(always)]
    unsafe fn apply(&self, a: L::V, b: L::V) -> L::V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { L::mul(L::mul(a, L::splat(self.0)), b) }
    }
}

/// `a + b`.
struct Sum;

impl<L: Lanes> Pairwise<L> for Sum {
    #[inline(always)]
    unsafe fn apply(&self, a: L::V, b: L::V) -> L::V {
        // SAFETY: as above.
        unsafe { L::add(a, b) }
    }
}

/// `a / (1 + e^-a) * b`.
struct SiluTimes;

impl<L: Lanes> Pairwise<L> for SiluTimes {
    #[inline(always)]
    unsafe fn apply(&self, a: L::V, b: L::V) -> L::V {
        // SAFETY: as above.
        unsafe {
            let silu = L::div(a, L::add(L::splat(1.0), exp::<L>(L::sub(L::splat(0.0), a))));
            L::mul(silu, b)
        }
    }
}

struct RmsNorm<'a> {
    /// Rows `from..` of the whole.
    x: &'a [f32],
    from: usize,
    weight: &'a [f32],
    eps: f32,
    out: SharedMut<'a>,
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.weight.len();
        for (i, x) in self.x.chunks_exact(width).enumerate() {
            // SAFETY: each row belongs to one task and holds `width` floats.
            unsafe {
                let out = self.out.slice((self.from + i) * width, width);
                normalise::<L>(x.as_ptr(), self.weight, self.eps, out.as_mut_ptr());
            }
        }
    }
}

struct Add<'a> {
    x: &'a [f32],
    sum: &'a mut [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let sum = self.sum.as_mut_ptr();
        // SAFETY: both are of one length.
        unsafe { zip::<L>(self.x.len(), sum, self.x.as_ptr(), sum, Sum) };
    }
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (gate, up) = (self.gate.as_ptr(), self.up.as_ptr());
        // SAFETY: the three are of one length.
        unsafe { zip::<L>(self.out.len(), gate, up, self.out.as_mut_ptr(), SiluTimes) };
    }
}

struct DecodeRow<'a> {
    table: MatrixRef<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for DecodeRow<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.out.len();
        with_decoder!(self.table.format(), D => {
            let row = self.table.data()[self.row * self.table.row_bytes()..].as_ptr();
            // SAFETY: the table holds the row; whole groups go straight to `out`, the last few weights through a buffer
            // with room for whole vectors.
            unsafe {
                let groups = width / super::simd::GROUP * super::simd::GROUP;
                decode_row::<L, D>(row, 0, groups, self.out.as_mut_ptr());
                if groups < width {
                    let mut last = [0.0_f32; super::simd::GROUP];
                    decode_row::<L, D>(row, groups, width - groups, last.as_mut_ptr());
                    self.out[groups..].copy_from_slice(&last[..width - groups]);
                }
            }
        });
    }
}
