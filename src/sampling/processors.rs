//! What changes a row's logits before a token is drawn: penalties, bias, and tokens that may not come yet.
//!
//! Knows one row at a time; each row brings its own parameters and history.

use std::collections::{HashMap, HashSet};

use crate::request::{Request, SamplingParams, StopConditions, TokenId};

/// What a sequence has seen, as far as its penalties ask.
#[derive(Debug, Default)]
pub(super) struct History {
    prompt: HashSet<TokenId>,
    generated: HashMap<TokenId, u32>,
    /// Tokens drawn so far.
    pub(super) drawn: u32,
}

impl History {
    pub(super) fn new(request: &Request) -> Self {
        let counts_prompt = request.sampling.repetition_penalty != 1.0;
        let (prompt, answered) = request.prompt_and_answered();
        let prompt = if counts_prompt { prompt.iter().copied().collect() } else { HashSet::new() };
        let mut generated = HashMap::new();
        for token in answered {
            *generated.entry(*token).or_insert(0) += 1;
        }
        Self { prompt, generated, drawn: 0 }
    }

    pub(super) fn push(&mut self, token: TokenId) {
        self.drawn += 1;
        *self.generated.entry(token).or_insert(0) += 1;
    }
}

/// Whether `params` leaves logits as the model gave them, at every step of an answer without `min_tokens`.
fn changes_nothing(params: &SamplingParams) -> bool {
    params.repetition_penalty == 1.0
        && params.presence_penalty == 0.0
        && params.frequency_penalty == 0.0
        && params.logit_bias.is_empty()
}

/// Applies bias, penalties and the ban on end tokens before `min_tokens` to `logits` [vocab].
/// Tokens outside the vocabulary are passed over.
pub(super) fn process(logits: &mut [f32], params: &SamplingParams, stop: &StopConditions, history: &History) {
    if !changes_nothing(params) {
        penalise(logits, params, history);
        for (token, bias) in &params.logit_bias {
            change(logits, *token, |logit| logit + bias);
        }
    }
    if history.drawn < stop.min_tokens {
        for token in stop.eos_token_ids.iter().chain(&stop.stop_token_ids) {
            change(logits, *token, |_| f32::NEG_INFINITY);
        }
    }
}

/// Leaves of `logits` [vocab] those of tokens whose bit in `allowed` is set.
pub(super) fn keep(logits: &mut [f32], allowed: &[u32]) {
    for (index, logits) in logits.chunks_mut(u32::BITS as usize).enumerate() {
        let word = allowed.get(index).copied().unwrap_or(0);
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn penalise(logits: &mut [f32], params: &SamplingParams, history: &History) {
    let penalty = params.repetition_penalty;
    if penalty != 1.0 {
        let fresh_prompt = history.prompt.iter().filter(|token| !history.generated.contains_key(token));
        for token in history.generated.keys().chain(fresh_prompt) {
            change(logits, *token, |logit| if logit > 0.0 { logit / penalty } else { logit * penalty });
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        for (token, count) in &history.generated {
            let penalty = params.presence_penalty + params.frequency_penalty * *count as f32;
            change(logits, *token, |logit| logit - penalty);
        }
    }
}

fn change(logits: &mut [f32], token: TokenId, with: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = with(*logit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn stop(min_tokens: u32) -> StopConditions {
        StopConditions {
            max_tokens: 10,
            min_tokens,
            ignore_eos: false,
            eos_token_ids: Arc::from([1]),
            stop_token_ids: vec![2, 99],
        }
    }

    const LOGITS: [f32; 4] = [1.0, -1.0, 2.0, 4.0];

    fn request(params: SamplingParams, prompt: &[TokenId], min_tokens: u32) -> Request {
        Request {
            prompt: prompt.into(),
            n: 1,
            sampling: params,
            stop: stop(min_tokens),
            tenant: Default::default(),
            cache_salt: None,
            priority: 0,
            masks: None,
            pooling: None,
            answered: 0,
        }
    }

    fn after(params: SamplingParams, prompt: &[TokenId], generated: &[TokenId], min_tokens: u32) -> Vec<f32> {
        let request = request(params, prompt, min_tokens);
        let mut history = History::new(&request);
        generated.iter().for_each(|token| history.push(*token));
        let mut logits = LOGITS.to_vec();
        process(&mut logits, &request.sampling, &request.stop, &history);
        logits
    }

    #[test]
    fn repetition_counts_prompt_and_answer_once() {
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        assert_eq!(after(params, &[1, 3], &[3, 3], 0), [1.0, -2.0, 2.0, 2.0]);
    }

    #[test]
    fn presence_and_frequency_count_the_answer_alone() {
        let params = SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
        assert_eq!(after(params, &[0], &[3, 3, 1], 0), [1.0, -1.75, 2.0, 3.0]);
    }

    #[test]
    fn the_beginning_of_an_answer_counts_as_the_answers() {
        let params = SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
        let prompt = [0, 3, 3, 1];
        let whole = after(params.clone(), &prompt[..1], &prompt[1..], 0);
        let request = Request { answered: 3, ..request(params, &prompt, 0) };
        let mut logits = LOGITS;
        process(&mut logits, &request.sampling, &request.stop, &History::new(&request));
        assert_eq!(logits.as_slice(), whole);
        assert_eq!(History::new(&request).drawn, 0);
    }

    #[test]
    fn bias_is_added_and_unknown_tokens_are_passed_over() {
        let params = SamplingParams { logit_bias: vec![(0, 5.0), (77, 1.0)], ..SamplingParams::default() };
        assert_eq!(after(params, &[0], &[], 0), [6.0, -1.0, 2.0, 4.0]);
    }

    #[test]
    fn end_tokens_wait_for_min_tokens() {
        let banned = f32::NEG_INFINITY;
        assert_eq!(after(SamplingParams::default(), &[0], &[3], 2), [1.0, banned, banned, 4.0]);
        assert_eq!(after(SamplingParams::default(), &[0], &[3, 3], 2), [1.0, -1.0, 2.0, 4.0]);
    }
}
