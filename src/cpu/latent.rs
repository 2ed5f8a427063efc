//! Attention over a latent cache: what all heads share of a token's keys and values lies there once.
//!
//! A query is the one that the up-projection of keys was absorbed into; what comes out is a latent that the
//! up-projection of values still has to expand. The arithmetic of one query does not depend on its neighbours: it meets
//! its context in order, from position 0.
//!
//! Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C.

use super::attention::{AttentionRef, Sequence};
use super::elementwise::normalise;
use super::exp::{exp, exp_one};
use super::kv::{KvLayerMut, KvLayerRef, KvLayout, KvPlanes};
use super::kv_element::{self, KvElement, KvKernel};
use super::simd::{Kernel, Lanes, dispatch};
use super::{Cpu, RopeTable, SharedMut};

/// Slots of a block.
const SLOTS: usize = KvLayout::BLOCK_SIZE;

/// Queries that share each load of a latent.
const ROWS: usize = 4;

/// Queries of one task.
const TASK: usize = 32;

/// Heads over a latent cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Query heads.
    pub heads: usize,
    /// Elements that keys are made of by the up-projection, and values: a multiple of 32.
    pub rank: usize,
    /// Elements behind those that are rotated and the same for all heads; even.
    pub rope: usize,
    /// Elements of a head of q before the rotated ones.
    pub nope: usize,
    /// Elements of a head of values.
    pub value: usize,
}

impl LatentShape {
    /// Elements of a token in the cache, and of an absorbed query.
    pub fn width(&self) -> usize {
        self.rank + self.rope
    }

    /// Elements of a head of q.
    pub fn query(&self) -> usize {
        self.nope + self.rope
    }
}

impl Cpu {
    /// For each of `t` new tokens: rotates the last `rope` elements of each head of `q [t, heads * (nope + rope)]`, norms
    /// the first `rank` elements of `latent [t, rank + rope]` with `norm [rank]`, rotates the others, all in place, and
    /// writes the latent into the cache at the token's slot. `positions [t]`, `slots [t]`.
    ///
    /// # Panics
    /// If lengths do not fit together, a position is outside the table, or a slot outside the cache.
    #[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
    pub fn latent_cache(
        &self,
        q: &mut [f32],
        latent: &mut [f32],
        shape: LatentShape,
        norm: &[f32],
        eps: f32,
        positions: &[u32],
        slots: &[u32],
        rope: &RopeTable,
        kv: KvLayerMut<'_>,
    ) {
        let (tokens, width) = (positions.len(), shape.width());
        assert_eq!(q.len(), tokens * shape.heads * shape.query(), "q is [t, heads * (nope + rope)]");
        assert_eq!((latent.len(), norm.len()), (tokens * width, shape.rank), "latent is [t, rank + rope]");
        assert_eq!((slots.len(), rope.rotary_dim()), (tokens, shape.rope), "one slot for each token");
        assert!(positions.iter().all(|&p| (p as usize) < rope.max_positions()), "positions are inside the table");
        check_layout(kv.layout, shape);
        let end = kv.blocks() * SLOTS;
        assert!(slots.iter().all(|&slot| (slot as usize) < end), "slots are inside the cache");
        let q_row = shape.heads * shape.query();
        let (q, rows) = (SharedMut::new(q), SharedMut::new(&mut *latent));
        self.pool.run(tokens, &|token, _| {
            // SAFETY: each token's rows belong to one task.
            let (q, row) = unsafe { (q.slice(token * q_row, q_row), rows.slice(token * width, width)) };
            let position = positions[token] as usize;
            for head in q.chunks_exact_mut(shape.query()) {
                rope.rotate(&mut head[shape.nope..], position);
            }
            rope.rotate(&mut row[shape.rank..], position);
            dispatch(self.simd, Norm { row: &mut row[..shape.rank], norm, eps });
        });
        for (row, &slot) in latent.chunks_exact(width).zip(slots) {
            let (block, place) = (slot as usize / SLOTS, slot as usize % SLOTS);
            let to = &mut kv.keys[kv.layout.head_start(block, 0)..][..kv.layout.head_bytes()];
            kv_element::write_head(&kv.layout, to, place, place * width, 1, row);
        }
    }

    /// Attention of each new token over its sequence's latents up to itself: `q [t, heads * (rank + rope)]`, absorbed, and
    /// `out [t, heads * rank]`.
    ///
    /// # Panics
    /// If lengths do not fit together, or a block is outside the cache.
    pub fn latent_attention(
        &self,
        q: &[f32],
        shape: LatentShape,
        kv: KvLayerRef<'_>,
        inputs: AttentionRef<'_>,
        scale: f32,
        out: &mut [f32],
    ) {
        let q_row = shape.heads * shape.width();
        assert!(q.len().is_multiple_of(q_row), "q is [t, heads * (rank + rope)]");
        let tokens = q.len() / q_row;
        assert_eq!(out.len(), tokens * shape.heads * shape.rank, "out is [t, heads * rank]");
        check_layout(kv.layout, shape);
        let sequences = inputs.sequences(tokens, kv.blocks());
        let mut work = Vec::new();
        for sequence in &sequences {
            let rows = sequence.tokens * shape.heads;
            // Few rows are spread over all threads.
            let task = rows.div_ceil(4 * self.threads()).next_multiple_of(ROWS).min(TASK);
            work.extend((0..rows).step_by(task).map(|from| (sequence, from, (from + task).min(rows))));
        }
        // The longest first, so that no thread is left with a long one at the end.
        work.sort_by_key(|(sequence, _, to)| std::cmp::Reverse(sequence.first_position + to.div_ceil(shape.heads)));
        let out = SharedMut::new(out);
        self.pool.run(work.len(), &|task, _| {
            let (sequence, from, to) = work[task];
            dispatch(self.simd, Attend { q, shape, kv, sequence, rows: (from, to), scale, out });
        });
    }
}

fn check_layout(layout: KvLayout, shape: LatentShape) {
    let own = KvLayout { kv_heads: 1, head_dim: shape.width(), planes: KvPlanes::Latent, dtype: layout.dtype };
    assert_eq!(layout, own, "the cache holds latents of the layer's width");
    assert!(shape.rank.is_multiple_of(32) && shape.rope.is_multiple_of(16), "latents come in whole vectors");
}

/// Norms a row in place.
struct Norm<'a> {
    row: &'a mut [f32],
    norm: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let out = self.row.as_mut_ptr();
        // SAFETY: row and weight hold as many floats; the kernel reads each element before it writes it.
        unsafe { normalise::<L>(out, self.norm, self.eps, out) };
    }
}

/// Queries `rows.0..rows.1` of a sequence: query `r` is head `r % heads` of new token `r / heads`.
struct Attend<'a> {
    q: &'a [f32],
    shape: LatentShape,
    kv: KvLayerRef<'a>,
    sequence: &'a Sequence<'a>,
    rows: (usize, usize),
    scale: f32,
    out: SharedMut<'a, f32>,
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller of `run` vouches for the instructions.
        unsafe { kv_element::dispatch::<L, _>(self.kv.layout.dtype, self) }
    }
}

impl KvKernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes, E: KvElement>(self) {
        // SAFETY: as above.
        unsafe { self.attend::<L, E>() }
    }
}

/// Online softmax of one query: the largest score, and the sum of weights relative to it.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

impl Attend<'_> {
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: KvElement>(&self) {
        let (mut row, end) = (self.rows.0, self.rows.1);
        while row < end {
            // Queries of one token see the same positions; the last few of it go one by one.
            let left = (self.shape.heads - row % self.shape.heads).min(end - row);
            // SAFETY: rows are inside `q` and `out`, whose lengths were checked.
            unsafe {
                if left >= ROWS {
                    self.tile::<L, E, ROWS>(row);
                    row += ROWS;
                } else {
                    self.tile::<L, E, 1>(row);
                    row += 1;
                }
            }
        }
    }

    /// `R` heads from `row` on, of one token.
    #[inline(always)]
    unsafe fn tile<L: Lanes, E: KvElement, const R: usize>(&self, row: usize) {
        let LatentShape { heads, rank, .. } = self.shape;
        let (width, token) = (self.shape.width(), row / heads);
        let line = (self.sequence.first_token * heads) + row;
        let to = self.sequence.first_position + token + 1;
        // SAFETY: the rows are inside `q`; these rows of `out` belong to this task alone.
        let (q, out) = unsafe { (self.q.as_ptr().add(line * width), self.out.slice(line * rank, R * rank)) };
        out.fill(0.0);
        let mut states = [State { max: f32::NEG_INFINITY, sum: 0.0 }; R];
        for index in 0..to.div_ceil(SLOTS) {
            let block = &self.kv.keys[self.kv.layout.head_start(self.sequence.blocks[index] as usize, 0)..];
            let block = &block[..self.kv.layout.head_bytes()];
            let slots = (to - index * SLOTS).min(SLOTS);
            let scales = &block[self.kv.layout.element_bytes()..];
            let scale = |slot: usize| match E::SCALED {
                true => f32::from_le_bytes(std::array::from_fn(|byte| scales[4 * slot + byte])),
                false => 1.0,
            };
            // SAFETY: a block holds `SLOTS` rows of `width` elements.
            unsafe {
                let mut weights = [[0.0_f32; SLOTS]; R];
                for slot in 0..slots {
                    let scores = dots::<L, E, R>(block.as_ptr().add(slot * width * E::BYTES), q, width);
                    for r in 0..R {
                        weights[r][slot] = scores[r] * (self.scale * scale(slot));
                    }
                }
                for r in 0..R {
                    let out = &mut out[r * rank..(r + 1) * rank];
                    soften::<L>(&mut weights[r], slots, &mut states[r], out);
                    weights[r][..slots].iter_mut().enumerate().for_each(|(slot, weight)| *weight *= scale(slot));
                }
                for slot in 0..slots {
                    let weights: [f32; R] = std::array::from_fn(|r| weights[r][slot]);
                    add::<L, E, R>(block.as_ptr().add(slot * width * E::BYTES), weights, rank, out.as_mut_ptr());
                }
            }
        }
        for (r, state) in states.iter().enumerate() {
            out[r * rank..(r + 1) * rank].iter_mut().for_each(|value| *value /= state.sum);
        }
    }
}

/// Products of `R` queries `[R][width]` with one row of the cache.
#[inline(always)]
unsafe fn dots<L: Lanes, E: KvElement, const R: usize>(row: *const u8, q: *const f32, width: usize) -> [f32; R] {
    // SAFETY: the caller promises `width` elements of each, a multiple of the lanes.
    unsafe {
        let mut sums = [L::splat(0.0); R];
        for at in (0..width).step_by(L::N) {
            let k = E::load::<L>(row.add(at * E::BYTES));
            for r in 0..R {
                sums[r] = L::fma(L::load(q.add(r * width + at)), k, sums[r]);
            }
        }
        let mut scores = [0.0; R];
        for r in 0..R {
            scores[r] = L::sum(sums[r]);
        }
        scores
    }
}

/// Turns the first `slots` scores of a block into weights, and brings the sums so far to the new largest score.
#[inline(always)]
unsafe fn soften<L: Lanes>(scores: &mut [f32; SLOTS], slots: usize, state: &mut State, sums: &mut [f32]) {
    let max = scores[..slots].iter().fold(state.max, |max, score| max.max(*score));
    // SAFETY: vectors of the scores alone; the caller vouches for the instructions.
    unsafe {
        if state.max != max {
            let shrink = exp_one::<L>(state.max - max);
            state.sum *= shrink;
            sums.iter_mut().for_each(|sum| *sum *= shrink);
            state.max = max;
        }
        for at in (0..SLOTS).step_by(L::N) {
            let place = scores.as_mut_ptr().add(at);
            L::store(place, exp::<L>(L::sub(L::load(place), L::splat(max))));
        }
    }
    state.sum += scores[..slots].iter().sum::<f32>();
}

/// Adds `weight * latent` of one row of the cache to the sums `[R][rank]`.
#[inline(always)]
unsafe fn add<L: Lanes, E: KvElement, const R: usize>(row: *const u8, weights: [f32; R], rank: usize, sums: *mut f32) {
    // SAFETY: the caller promises `rank` elements of each, a multiple of the lanes.
    unsafe {
        for at in (0..rank).step_by(L::N) {
            let v = E::load::<L>(row.add(at * E::BYTES));
            for r in 0..R {
                let sum = sums.add(r * rank + at);
                L::store(sum, L::fma(L::splat(weights[r]), v, L::load(sum)));
            }
        }
    }
}
