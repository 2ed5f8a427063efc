//! Log-probabilities of a row: one token's own, its rank, and the likeliest alternatives.
//!
//! Knows nothing of penalties and filters: what is reported is the model's own distribution.

use crate::request::{TokenId, TokenLogprobs};

/// Of `logits` [vocab]: the natural log-probability and rank of `token`, and the `count` likeliest tokens.
pub(crate) fn token_logprobs(logits: &[f32], token: TokenId, count: u32) -> TokenLogprobs {
    let normaliser = log_sum_exp(logits);
    let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let ahead = logits.iter().filter(|logit| **logit > own).count();
    TokenLogprobs {
        logprob: (f64::from(own) - normaliser) as f32,
        rank: ahead as u32 + 1,
        top: likeliest(logits, count as usize)
            .into_iter()
            .map(|(token, logit)| (token, (f64::from(logit) - normaliser) as f32))
            .collect(),
    }
}

/// log(sum(exp(logits))), summed in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// The `count` largest logits, best first; of equals the smaller id first.
fn likeliest(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return top;
    }
    for (token, logit) in logits.iter().enumerate() {
        if top.len() == count && top[count - 1].1 >= *logit {
            continue;
        }
        let place = top.partition_point(|(_, better)| better >= logit);
        top.insert(place, (token as TokenId, *logit));
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_ranks_and_alternatives() {
        let logits: Vec<f32> = [0.125_f32, 0.5, 0.125, 0.25].iter().map(|p| p.ln() + 3.0).collect();
        let found = token_logprobs(&logits, 3, 3);
        assert!((found.logprob - 0.25_f32.ln()).abs() < 1e-6);
        assert_eq!(found.rank, 2);
        let tokens: Vec<TokenId> = found.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [1, 3, 0]);
        assert!((found.top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
        assert_eq!(token_logprobs(&logits, 0, 0).top, []);
        assert_eq!(token_logprobs(&logits, 2, 9).top.len(), 4);
    }
}
