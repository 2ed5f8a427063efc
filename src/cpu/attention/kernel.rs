//! One sequence, one K and V head, some new tokens: rows of queries in tiles that share each load of K and V.

use super::SPAN;
use crate::cpu::SharedMut;
use crate::cpu::exp::{exp, exp_one};
use crate::cpu::kv::{HeadShape, KvLayerRef, KvLayout};
use crate::cpu::kv_element::{self, KvElement, KvKernel};
use crate::cpu::simd::{Kernel, Lanes};

/// Slots of a block.
const SLOTS: usize = KvLayout::BLOCK_SIZE;

/// Most queries of a tile.
const ROWS: usize = 6;

/// Floats of scratch that a task needs: queries, sums of a span, sums of all spans, and a block's weights.
pub fn scratch_len(head_dim: usize) -> usize {
    3 * ROWS * head_dim + ROWS * SLOTS
}

/// New tokens of a sequence and where its context lies.
pub struct Sequence<'a> {
    /// Row of its first new token.
    pub first_token: usize,
    /// New tokens.
    pub tokens: usize,
    /// Position of its first new token.
    pub first_position: usize,
    /// Blocks of its context, in order.
    pub blocks: &'a [u32],
}

/// The queries of the new tokens `tokens.0..tokens.1` that share one K and V head.
pub struct Attend<'a> {
    pub qkv: &'a [f32],
    pub heads: HeadShape,
    pub kv: KvLayerRef<'a>,
    pub sequence: &'a Sequence<'a>,
    pub kv_head: usize,
    pub tokens: (usize, usize),
    pub scale: f32,
    pub window: usize,
    pub out: SharedMut<'a>,
    /// [`scratch_len`] floats.
    pub scratch: &'a mut [f32],
}

/// Online softmax of one query: the largest score, the sum of weights relative to it, and whether it saw any slot.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
    seen: bool,
}

impl State {
    const NEW: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, seen: false };
}

/// One query: where it is read and written, and the positions that it sees.
#[derive(Clone, Copy)]
struct Query {
    q: *const f32,
    out: *mut f32,
    from: usize,
    to: usize,
}

/// Scratch of a tile: q `[head_dim][R]`, sums of a span and of all `[R][head_dim]`, weights of a block `[R][SLOTS]`.
#[derive(Clone, Copy)]
struct Memory {
    q: *mut f32,
    span: *mut f32,
    total: *mut f32,
    weights: *mut f32,
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
    unsafe fn run<L: Lanes, E: KvElement>(mut self) {
        // SAFETY: as above.
        unsafe { self.attend::<L, E>() }
    }
}

impl Attend<'_> {
    /// All queries of the task, over a cache of `E`.
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: KvElement>(&mut self) {
        let d = self.heads.head_dim;
        assert!(self.scratch.len() >= scratch_len(d));
        let start = self.scratch.as_mut_ptr();
        let size = ROWS * d;
        // SAFETY: the four parts lie one after the other inside the scratch.
        let memory = unsafe {
            Memory { q: start, span: start.add(size), total: start.add(2 * size), weights: start.add(3 * size) }
        };
        let group = self.heads.group();
        let (mut row, end) = (self.tokens.0 * group, self.tokens.1 * group);
        while row < end {
            let count = (end - row).min(ROWS);
            // SAFETY: the caller of `run` vouches for the instructions; rows are inside `qkv` and `out`.
            unsafe {
                match count {
                    1 => self.tile::<L, E, 1>(row, memory),
                    2 => self.tile::<L, E, 2>(row, memory),
                    3 => self.tile::<L, E, 3>(row, memory),
                    4 => self.tile::<L, E, 4>(row, memory),
                    5 => self.tile::<L, E, 5>(row, memory),
                    _ => self.tile::<L, E, 6>(row, memory),
                }
            }
            row += count;
        }
    }

    /// Query `row` of the task's head: token `row / group`, head `row % group` of the group.
    #[inline(always)]
    unsafe fn query(&self, row: usize) -> Query {
        let (d, group) = (self.heads.head_dim, self.heads.group());
        let (token, head) = (row / group, self.kv_head * group + row % group);
        let line = self.sequence.first_token + token;
        let position = self.sequence.first_position + token;
        // SAFETY: the token and the head are inside `qkv` and `out`, whose lengths were checked.
        unsafe {
            Query {
                q: self.qkv.as_ptr().add(line * self.heads.row_len() + head * d),
                out: self.out.as_ptr().add((line * self.heads.q_heads + head) * d),
                from: (position + 1).saturating_sub(self.window),
                to: position + 1,
            }
        }
    }

    /// `R` queries from `row` on, over all that they see.
    #[inline(always)]
    unsafe fn tile<L: Lanes, E: KvElement, const R: usize>(&self, row: usize, memory: Memory) {
        let d = self.heads.head_dim;
        // SAFETY: queries are inside `qkv` and `out`, the scratch holds `ROWS` of each part, and `R <= ROWS`.
        unsafe {
            let queries: [Query; R] = std::array::from_fn(|r| self.query(row + r));
            for (r, query) in queries.iter().enumerate() {
                for i in 0..d {
                    *memory.q.add(i.wrapping_mul(R).wrapping_add(r)) = *query.q.add(i);
                }
            }
            let from = queries.iter().map(|query| query.from).min().unwrap_or(0);
            let to = queries.iter().map(|query| query.to).max().unwrap_or(0);
            let mut total = [State::NEW; R];
            for span in from / SPAN..to.div_ceil(SPAN) {
                let states = self.span::<L, E, R>(&queries, span * SPAN, to.min((span + 1) * SPAN), memory);
                for r in 0..R {
                    let sums = memory.total.add(r * d);
                    total[r] = merge::<L>(d, total[r], sums, states[r], memory.span.add(r * d));
                }
            }
            for (r, query) in queries.iter().enumerate() {
                let sums = memory.total.add(r * d);
                std::ptr::copy_nonoverlapping(sums, query.out, d);
                scale_row::<L>(d, query.out, 1.0 / total[r].sum);
            }
        }
    }

    /// The part of a tile inside one span: blocks of positions `from..to`.
    #[inline(always)]
    unsafe fn span<L: Lanes, E: KvElement, const R: usize>(
        &self,
        queries: &[Query; R],
        from: usize,
        to: usize,
        memory: Memory,
    ) -> [State; R] {
        let d = self.heads.head_dim;
        let mut states = [State::NEW; R];
        // SAFETY: blocks were checked to be inside the cache; the scratch holds `R` rows.
        unsafe {
            std::ptr::write_bytes(memory.span, 0, R * d);
            let first = queries.iter().map(|query| query.from).min().unwrap_or(0).max(from);
            for index in first / SLOTS..to.div_ceil(SLOTS) {
                let start = self.kv.layout.head_start(self.sequence.blocks[index] as usize, self.kv_head);
                let (keys, values) = (self.kv.keys.as_ptr().add(start), self.kv.values.as_ptr().add(start));
                let position = index * SLOTS;
                // Slots of the block that each query sees.
                let seen: [(usize, usize); R] = queries
                    .map(|query| (query.from.saturating_sub(position), query.to.saturating_sub(position).min(SLOTS)));
                let mut scores = scores::<L, E, R>(d, keys, memory.q);
                let scales = self.kv.layout.element_bytes();
                if E::SCALED {
                    scale_scores::<L, R>(&mut scores, keys.add(scales).cast());
                }
                self.soften::<L, R>(scores, seen, &mut states, memory);
                if E::SCALED {
                    scale_weights::<L, R>(memory.weights, values.add(scales).cast());
                }
                if seen.iter().all(|&seen| seen == (0, SLOTS)) {
                    weigh::<L, E, R>(d, values, (0, SLOTS), memory.weights, memory.span);
                } else {
                    for (r, &seen) in seen.iter().enumerate() {
                        weigh::<L, E, 1>(d, values, seen, memory.weights.add(r * SLOTS), memory.span.add(r * d));
                    }
                }
            }
        }
        states
    }

    /// Turns scores into weights, and brings sums and states to the new largest score.
    #[inline(always)]
    unsafe fn soften<L: Lanes, const R: usize>(
        &self,
        scores: [[L::V; 2]; R],
        seen: [(usize, usize); R],
        states: &mut [State; R],
        memory: Memory,
    ) {
        let d = self.heads.head_dim;
        let lowest = f32::NEG_INFINITY;
        // SAFETY: weights hold `R` rows of `SLOTS`, spans `R` rows of `d`.
        unsafe {
            let mut scores = scores;
            let mut shrink = [0.0_f32; 16];
            for r in 0..R {
                let (from, to) = seen[r];
                let mut max = L::splat(lowest);
                for j in 0..SLOTS / L::N {
                    let mut score = L::mul(scores[r][j], L::splat(self.scale));
                    if (from, to) != (0, SLOTS) {
                        let (from, to) = (from.saturating_sub(j * L::N), to.saturating_sub(j * L::N));
                        score = L::select_range(from, to, score, L::splat(lowest));
                    }
                    max = L::max(max, score);
                    scores[r][j] = score;
                }
                let max = states[r].max.max(L::max_lane(max));
                shrink[r] = states[r].max - max;
                if from < to {
                    states[r].max = max;
                }
            }
            L::store(shrink.as_mut_ptr(), exp::<L>(L::load(shrink.as_ptr())));
            for r in 0..R {
                if seen[r].0 >= seen[r].1 {
                    continue;
                }
                let mut sum = L::splat(0.0);
                for j in 0..SLOTS / L::N {
                    let weight = exp::<L>(L::sub(scores[r][j], L::splat(states[r].max)));
                    L::store(memory.weights.add(r * SLOTS + j * L::N), weight);
                    sum = L::add(sum, weight);
                }
                states[r].sum = states[r].sum * shrink[r] + L::sum(sum);
                if states[r].seen && shrink[r] != 1.0 {
                    scale_row::<L>(d, memory.span.add(r * d), shrink[r]);
                }
                states[r].seen = true;
            }
        }
    }
}

/// Multiplies the scores of a block's slots by the scales of its keys, `[slot]`.
#[inline(always)]
unsafe fn scale_scores<L: Lanes, const R: usize>(scores: &mut [[L::V; 2]; R], scales: *const f32) {
    // SAFETY: the caller promises a scale for each slot.
    unsafe {
        for j in 0..SLOTS / L::N {
            let scale = L::load(scales.add(j * L::N));
            for r in 0..R {
                scores[r][j] = L::mul(scores[r][j], scale);
            }
        }
    }
}

/// Multiplies the weights `[R][SLOTS]` of a block's slots by the scales of its values, `[slot]`. Where a slot is not seen
/// there may be anything, before and after.
#[inline(always)]
unsafe fn scale_weights<L: Lanes, const R: usize>(weights: *mut f32, scales: *const f32) {
    // SAFETY: the caller promises a scale for each slot, and `R` rows of weights.
    unsafe {
        for j in 0..SLOTS / L::N {
            let scale = L::load(scales.add(j * L::N));
            for r in 0..R {
                let place = weights.add(r * SLOTS + j * L::N);
                L::store(place, L::mul(L::load(place), scale));
            }
        }
    }
}

/// Scores of `R` queries with the 16 slots of a block, added up over `dim` in order. `keys [dim][slot]`, `q [dim][R]`.
#[inline(always)]
unsafe fn scores<L: Lanes, E: KvElement, const R: usize>(d: usize, keys: *const u8, q: *const f32) -> [[L::V; 2]; R] {
    // SAFETY: `keys` holds `d` rows of 16, `q` `d` rows of `R`.
    unsafe {
        let mut sums = [[L::splat(0.0); 2]; R];
        let (mut keys, mut q) = (keys, q);
        for _ in 0..d {
            let mut k = [L::splat(0.0); 2];
            for j in 0..SLOTS / L::N {
                k[j] = E::load::<L>(keys.add(j * L::N * E::BYTES));
            }
            for r in 0..R {
                let q = L::splat(*q.add(r));
                for j in 0..SLOTS / L::N {
                    sums[r][j] = L::fma(q, k[j], sums[r][j]);
                }
            }
            keys = keys.add(SLOTS * E::BYTES);
            q = q.add(R);
        }
        sums
    }
}

/// Adds `weight * v` of the slots `from..to`, in order, to the sums of `R` queries. `values [slot][dim]`,
/// `weights [R][SLOTS]`, `sums [R][dim]`.
#[inline(always)]
unsafe fn weigh<L: Lanes, E: KvElement, const R: usize>(
    d: usize,
    values: *const u8,
    (from, to): (usize, usize),
    weights: *const f32,
    sums: *mut f32,
) {
    // SAFETY: each access stays below `d` of a row.
    unsafe {
        let mut i = 0;
        while i + 2 * L::N <= d {
            weigh_columns::<L, E, R, 2>(d, values.add(i * E::BYTES), (from, to), weights, sums.add(i));
            i += 2 * L::N;
        }
        if i + L::N <= d {
            weigh_columns::<L, E, R, 1>(d, values.add(i * E::BYTES), (from, to), weights, sums.add(i));
            i += L::N;
        }
        for i in i..d {
            for r in 0..R {
                let place = sums.add(r * d + i);
                for slot in from..to {
                    let value = E::one::<L>(values.add((slot * d + i) * E::BYTES));
                    *place = fma_one::<L>(*weights.add(r * SLOTS + slot), value, *place);
                }
            }
        }
    }
}

/// [`weigh`] for `C` vectors of each row.
#[inline(always)]
unsafe fn weigh_columns<L: Lanes, E: KvElement, const R: usize, const C: usize>(
    d: usize,
    values: *const u8,
    (from, to): (usize, usize),
    weights: *const f32,
    sums: *mut f32,
) {
    // SAFETY: the caller promises `C` vectors of each row.
    unsafe {
        let mut lanes = [[L::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                lanes[r][c] = L::load(sums.add(r.wrapping_mul(d).wrapping_add(c * L::N)));
            }
        }
        for slot in from..to {
            let values = values.add(slot.wrapping_mul(d) * E::BYTES);
            let mut v = [L::splat(0.0); C];
            for c in 0..C {
                v[c] = E::load::<L>(values.add(c * L::N * E::BYTES));
            }
            for r in 0..R {
                let weight = L::splat(*weights.add((r * SLOTS).wrapping_add(slot)));
                for c in 0..C {
                    lanes[r][c] = L::fma(weight, v[c], lanes[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                L::store(sums.add(r.wrapping_mul(d).wrapping_add(c * L::N)), lanes[r][c]);
            }
        }
    }
}

/// `a * b + c` as a lane computes it.
#[inline(always)]
unsafe fn fma_one<L: Lanes>(a: f32, b: f32, c: f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    // SAFETY: 16 floats hold a vector of any level.
    unsafe { L::store(lanes.as_mut_ptr(), L::fma(L::splat(a), L::splat(b), L::splat(c))) };
    lanes[0]
}

/// `row[i] *= factor` for `d` floats.
#[inline(always)]
unsafe fn scale_row<L: Lanes>(d: usize, row: *mut f32, factor: f32) {
    // SAFETY: each access stays below `d`, or inside a buffer of a vector's size.
    unsafe {
        let whole = d / L::N * L::N;
        for i in (0..whole).step_by(L::N) {
            L::store(row.add(i), L::mul(L::load(row.add(i)), L::splat(factor)));
        }
        if whole < d {
            let mut lanes = [0.0_f32; 16];
            L::store(lanes.as_mut_ptr(), L::mul(L::load_first(row.add(whole), d - whole), L::splat(factor)));
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), row.add(whole), d - whole);
        }
    }
}

/// Adds a span's state and sums to those of the spans before it.
#[inline(always)]
unsafe fn merge<L: Lanes>(d: usize, total: State, sums: *mut f32, span: State, span_sums: *const f32) -> State {
    // SAFETY: both hold `d` floats.
    unsafe {
        if !span.seen {
            return total;
        }
        if !total.seen {
            std::ptr::copy_nonoverlapping(span_sums, sums, d);
            return span;
        }
        let max = total.max.max(span.max);
        let (old, new) = (exp_one::<L>(total.max - max), exp_one::<L>(span.max - max));
        for i in 0..d {
            *sums.add(i) = *sums.add(i) * old + *span_sums.add(i) * new;
        }
        State { max, sum: total.sum * old + span.sum * new, seen: true }
    }
}
