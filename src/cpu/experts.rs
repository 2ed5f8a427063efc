//! Mixtures of experts: which experts a token goes to, and what they make of it.
//!
//! Only the weights of chosen experts are read. A token's experts are added up in ascending order, whoever else is in the
//! batch.

use super::Cpu;
use super::matrix::MatrixRef;

/// How the router's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// All experts' scores add up to 1.
    Softmax,
    /// Each by itself.
    Sigmoid,
}

/// Experts are chosen from the best groups of them alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGroups {
    /// Groups of equal size, neighbours together.
    pub groups: usize,
    /// How many are chosen from.
    pub top_groups: usize,
    /// Scores of its best experts that a group's score adds up: 1 or 2.
    pub best: usize,
}

/// How experts are chosen and weighed.
///
/// Source: `DeepseekV2TopkRouter`, `DeepseekV3TopkRouter`, `Qwen2MoeTopKRouter` of transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteParams {
    /// Experts of a token.
    pub top_k: usize,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Whether the weights of a token's experts add up to `scale`.
    pub normalize: bool,
    /// Multiplies the weights.
    pub scale: f32,
    /// Limits the choice.
    pub groups: Option<RouteGroups>,
    /// Whether tokens take the experts in turn, whatever their logits: for benchmarks, whose random weights would choose the
    /// same few.
    pub even: bool,
}

/// The weights of one expert.
#[derive(Clone, Copy)]
pub struct ExpertRef<'a> {
    /// `[f, h]`.
    pub gate: MatrixRef<'a>,
    /// `[f, h]`.
    pub up: MatrixRef<'a>,
    /// `[h, f]`.
    pub down: MatrixRef<'a>,
}

/// Where experts compute, for up to `t` tokens each.
pub struct ExpertBuffers<'a> {
    /// `[t, h]`.
    pub x: &'a mut [f32],
    /// `[t, 2 f]`.
    pub gate_up: &'a mut [f32],
    /// `[t, f]`.
    pub product: &'a mut [f32],
    /// `[t, h]`.
    pub down: &'a mut [f32],
}

impl Cpu {
    /// Chooses for each token of `logits [t, experts]` its `top_k` experts: `ids [t, top_k]`, best first, the lower of
    /// equals, and `weights [t, top_k]`. `correction [experts]` is added to scores for the choice alone.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn route(
        &self,
        logits: &[f32],
        experts: usize,
        correction: Option<&[f32]>,
        params: &RouteParams,
        ids: &mut [u32],
        weights: &mut [f32],
    ) {
        let k = params.top_k;
        assert!(k > 0 && k <= experts && logits.len().is_multiple_of(experts), "logits are [t, experts]");
        assert_eq!((ids.len(), weights.len()), (logits.len() / experts * k, ids.len()), "results are [t, top_k]");
        assert!(correction.is_none_or(|correction| correction.len() == experts), "a correction for each expert");
        let mut router = Router { scores: vec![0.0; experts], choice: vec![0.0; experts], params };
        let results = ids.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k));
        for (logits, (ids, weights)) in logits.chunks_exact(experts).zip(results) {
            router.choose(logits, correction, ids, weights);
        }
        if params.even {
            ids.iter_mut().zip(0..).for_each(|(id, turn)| *id = turn % experts as u32);
        }
    }

    /// `out[t] += sum over the token's experts of weight * down(silu(gate x) * up x)`: `x [t, h]`, `out [t, h]`, `ids` and
    /// `weights` `[t, top_k]`. `expert` gives the weights of an id, and is asked for those that are chosen.
    ///
    /// # Panics
    /// If lengths do not fit together, or where `expert` does.
    #[allow(clippy::too_many_arguments)] // each is a different thing
    pub fn experts<'a>(
        &self,
        x: &[f32],
        expert: impl Fn(u32) -> ExpertRef<'a>,
        top_k: usize,
        ids: &[u32],
        weights: &[f32],
        buffers: ExpertBuffers<'_>,
        out: &mut [f32],
    ) {
        assert!(top_k > 0 && ids.len() == weights.len() && ids.len().is_multiple_of(top_k), "routes are [t, top_k]");
        let tokens = ids.len() / top_k;
        let Some(hidden) = x.len().checked_div(tokens) else { return };
        assert!(x.len() == tokens * hidden && out.len() == x.len(), "x and out are [t, h]");
        // By expert, and by token inside.
        let mut order: Vec<(u32, usize)> = ids.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let ExpertBuffers { x: gathered, gate_up, product, down } = buffers;
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            let ExpertRef { gate, up, down: project } = expert(group[0].0);
            let (count, f) = (group.len(), gate.rows());
            for (row, (_, route)) in gathered.chunks_exact_mut(hidden).zip(group) {
                row.copy_from_slice(&x[route / top_k * hidden..][..hidden]);
            }
            let rows = &gathered[..count * hidden];
            self.matmul(rows, hidden, &[gate, up], None, &mut gate_up[..count * 2 * f]);
            self.silu_mul(&gate_up[..count * 2 * f], f, &mut product[..count * f]);
            self.matmul(&product[..count * f], f, &[project], None, &mut down[..count * hidden]);
            for (row, (_, route)) in down.chunks_exact(hidden).zip(group) {
                let sum = &mut out[route / top_k * hidden..][..hidden];
                let weight = weights[*route];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    }

    /// `x[t] *= sigmoid(gates[t])`: `x [t, h]`, `gates [t]`.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub fn scale_by_sigmoid(&self, x: &mut [f32], gates: &[f32]) {
        let Some(width) = x.len().checked_div(gates.len()) else { return };
        assert_eq!(x.len(), gates.len() * width, "x is [t, h]");
        for (row, gate) in x.chunks_exact_mut(width).zip(gates) {
            let factor = sigmoid(*gate);
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Chooses the experts of one token.
struct Router<'a> {
    scores: Vec<f32>,
    /// The scores that the choice is made by; those that are out are minus infinity.
    choice: Vec<f32>,
    params: &'a RouteParams,
}

impl Router<'_> {
    fn choose(&mut self, logits: &[f32], correction: Option<&[f32]>, ids: &mut [u32], weights: &mut [f32]) {
        match self.params.scoring {
            Scoring::Softmax => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                self.scores.iter_mut().zip(logits).for_each(|(score, logit)| *score = (logit - max).exp());
                let sum: f32 = self.scores.iter().sum();
                self.scores.iter_mut().for_each(|score| *score /= sum);
            }
            Scoring::Sigmoid => {
                self.scores.iter_mut().zip(logits).for_each(|(score, logit)| *score = sigmoid(*logit));
            }
        }
        self.choice.copy_from_slice(&self.scores);
        if let Some(correction) = correction {
            self.choice.iter_mut().zip(correction).for_each(|(choice, correction)| *choice += correction);
        }
        if let Some(groups) = self.params.groups {
            self.limit(groups);
        }
        let mut sum = 0.0;
        for (id, weight) in ids.iter_mut().zip(weights.iter_mut()) {
            let best = best(&self.choice);
            self.choice[best] = f32::NEG_INFINITY;
            (*id, *weight) = (best as u32, self.scores[best]);
            sum += *weight;
        }
        let divisor = if self.params.normalize { sum + 1e-20 } else { 1.0 };
        weights.iter_mut().for_each(|weight| *weight = *weight / divisor * self.params.scale);
    }

    /// Leaves the experts of the best groups.
    fn limit(&mut self, groups: RouteGroups) {
        let size = self.choice.len() / groups.groups;
        let score = |group: &[f32]| {
            let mut group = group.to_vec();
            group.sort_by(|a, b| b.total_cmp(a));
            group.iter().take(groups.best).sum::<f32>()
        };
        let mut scores: Vec<f32> = self.choice.chunks_exact(size).map(score).collect();
        let mut keep = vec![false; groups.groups];
        for _ in 0..groups.top_groups {
            let group = best(&scores);
            (scores[group], keep[group]) = (f32::NEG_INFINITY, true);
        }
        for (group, keep) in self.choice.chunks_exact_mut(size).zip(keep) {
            if !keep {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// Index of the largest, the first of equals.
fn best(values: &[f32]) -> usize {
    (0..values.len()).reduce(|best, at| if values[at] > values[best] { at } else { best }).unwrap_or(0)
}
