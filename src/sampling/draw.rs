//! Draws one token from a row of logits: temperature, min_p, top_k, top_p, in this order, then one uniform number.
//!
//! Knows no history and no batch. Equal logits are ordered by token id, so a draw has one answer.

use std::cmp::Ordering;

use crate::request::{SamplingParams, TokenId};

/// Room for the candidates of one row, kept between rows.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    candidates: Vec<Candidate>,
}

/// A token and its weight: exp((logit - max) / temperature).
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: TokenId,
    weight: f32,
}

impl Candidate {
    /// Likelier first, then the smaller id.
    fn order(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

/// The largest of `logits` and its first index; `None` where there is no finite one.
pub(super) fn argmax(logits: &[f32]) -> Option<(TokenId, f32)> {
    // Two passes: the first has no branch and so runs in vector registers.
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, |max, logit| if logit > max { logit } else { max });
    let index = logits.iter().position(|logit| *logit == max)?;
    max.is_finite().then_some((index as TokenId, max))
}

/// Draws a token from `logits` [vocab] with the number `uniform` in [0, 1); `None` where no logit is finite.
pub(super) fn draw(logits: &[f32], params: &SamplingParams, uniform: f64, scratch: &mut Scratch) -> Option<TokenId> {
    let (likeliest, max) = argmax(logits)?;
    if params.temperature == 0.0 || params.top_k == Some(1) {
        return Some(likeliest);
    }
    let candidates = &mut scratch.candidates;
    weigh(logits, max, params, candidates);
    if let Some(k) = params.top_k.map(|k| k as usize).filter(|k| *k < candidates.len()) {
        candidates.select_nth_unstable_by(k - 1, Candidate::order);
        candidates.truncate(k);
    }
    if params.top_p < 1.0 {
        keep_top_p(candidates, params.top_p);
    } else if params.top_k.is_some() {
        // Selection leaves an order of its own; the walk below wants a defined one.
        candidates.sort_unstable_by(Candidate::order);
    }
    pick(candidates, uniform)
}

/// Fills `candidates` with what temperature and min_p leave, in order of token id.
fn weigh(logits: &[f32], max: f32, params: &SamplingParams, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    for (token, logit) in logits.iter().enumerate() {
        // Divided, not scaled: the reciprocal of a tiny temperature is infinite, and 0 times it no number.
        let weight = ((logit - max) / params.temperature).exp();
        // The likeliest token's weight is 1, so min_p compares with the weight itself.
        if weight > 0.0 && weight >= params.min_p {
            candidates.push(Candidate { token: token as TokenId, weight });
        }
    }
}

/// Keeps the smallest set of likeliest candidates whose share reaches `top_p`; leaves them sorted.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let wanted = total * f64::from(top_p);
    let (mut sorted, mut sum) = (0, 0.0);
    // Sorts piece by piece: the set is mostly far smaller than the vocabulary.
    let mut piece = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let length = piece.min(rest.len());
        if length < rest.len() {
            rest.select_nth_unstable_by(length - 1, Candidate::order);
        }
        rest[..length].sort_unstable_by(Candidate::order);
        for (index, candidate) in rest[..length].iter().enumerate() {
            sum += f64::from(candidate.weight);
            if sum >= wanted {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += length;
        piece *= 4;
    }
}

/// The candidate at which the running sum of weights passes `uniform` of the whole.
fn pick(candidates: &[Candidate], uniform: f64) -> Option<TokenId> {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let wanted = total * uniform;
    let mut sum = 0.0;
    for candidate in candidates {
        sum += f64::from(candidate.weight);
        if sum > wanted {
            return Some(candidate.token);
        }
    }
    candidates.last().map(|candidate| candidate.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::random::uniform;

    fn frequencies(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
        let (mut counts, draws) = (vec![0_u32; logits.len()], 20_000);
        let mut scratch = Scratch::default();
        for position in 0..draws {
            let token = draw(logits, params, uniform(3, 0, position), &mut scratch).expect("finite logits");
            counts[token as usize] += 1;
        }
        counts.iter().map(|count| f64::from(*count) / f64::from(draws)).collect()
    }

    fn assert_close(found: &[f64], wanted: &[f64]) {
        for (found_one, wanted_one) in found.iter().zip(wanted) {
            assert!((found_one - wanted_one).abs() < 0.015, "{found:?} is not {wanted:?}");
        }
    }

    /// Logits of the probabilities 0.5, 0.25, 0.125, 0.125.
    fn logits() -> Vec<f32> {
        [0.125_f32, 0.5, 0.125, 0.25].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn each_filter_leaves_its_distribution() {
        let all = SamplingParams::default();
        assert_close(&frequencies(&logits(), &all), &[0.125, 0.5, 0.125, 0.25]);
        let two = SamplingParams { top_k: Some(2), ..all.clone() };
        assert_close(&frequencies(&logits(), &two), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        let three = SamplingParams { top_k: Some(3), ..all.clone() };
        assert_close(&frequencies(&logits(), &three), &[1.0 / 7.0, 4.0 / 7.0, 0.0, 2.0 / 7.0]);
        let top_p = SamplingParams { top_p: 0.7, ..all.clone() };
        assert_close(&frequencies(&logits(), &top_p), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        let min_p = SamplingParams { min_p: 0.4, ..all.clone() };
        assert_close(&frequencies(&logits(), &min_p), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        let cold = SamplingParams { temperature: 0.5, ..all };
        assert_close(&frequencies(&logits(), &cold), &[1.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0, 4.0 / 22.0]);
    }

    #[test]
    fn the_smallest_temperature_is_greedy() {
        let cold = SamplingParams { temperature: f32::from_bits(1), ..SamplingParams::default() };
        assert_eq!(draw(&logits(), &cold, 0.999, &mut Scratch::default()), Some(1));
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, f32::NAN]), Some((1, 3.0)));
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn piecewise_top_p_equals_a_whole_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| (uniform(9, 0, i) * 6.0) as f32).collect();
        for top_p in [0.05, 0.5, 0.9, 0.999] {
            let params = SamplingParams { top_p, ..SamplingParams::default() };
            let (_, max) = argmax(&logits).expect("finite");
            let mut candidates = Vec::new();
            weigh(&logits, max, &params, &mut candidates);
            let mut whole = candidates.clone();
            whole.sort_by(Candidate::order);
            keep_top_p(&mut candidates, top_p);
            let kept: Vec<TokenId> = candidates.iter().map(|candidate| candidate.token).collect();
            let first: Vec<TokenId> = whole[..kept.len()].iter().map(|candidate| candidate.token).collect();
            assert_eq!(kept, first);
            assert!(kept.len() > 1);
        }
    }
}
