//! Going on where the context is full: what is left out of it, and the request that continues the answer.
//!
//! Knows no engine and no text: [`super::generation`] submits what is made here.

use crate::request::{Request, StopConditions, TokenId};

/// Most tokens of an answer whose context is shifted, in contexts: a model that finds no end must not run for ever.
/// Source: the limit of `num_predict` in Ollama.
const MOST_CONTEXTS: usize = 10;

/// One answer that goes on past its context.
pub(super) struct Shift {
    /// The request that runs.
    request: Request,
    /// What it has generated.
    generated: Vec<TokenId>,
    /// Tokens at the beginning of the prompt that stay.
    keep: usize,
    /// Most tokens of prompt and answer.
    max_context: usize,
    /// Tokens that the answer may still have, those of the running request among them.
    left: usize,
    /// Whether the context was shifted before.
    begun: bool,
}

impl Shift {
    /// For `request`, which has one choice and no masks. `keep` tokens of its prompt are to stay; at least one does, and at
    /// most half a context, so that a shift makes room for many tokens. The answer may have `max_tokens`, if that is said.
    pub(super) fn new(request: &Request, keep: u32, max_context: usize, max_tokens: Option<u32>) -> Self {
        let most = MOST_CONTEXTS * max_context;
        Self {
            request: request.clone(),
            generated: Vec::new(),
            keep: (keep as usize).min(request.prompt.len()).min(max_context / 2).max(1),
            max_context,
            left: max_tokens.map_or(most, |tokens| most.min(tokens as usize)),
            begun: false,
        }
    }

    /// Whether the context was shifted before.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// One more token of the answer.
    pub(super) fn push(&mut self, token: TokenId) {
        self.generated.push(token);
    }

    /// What continues the answer when the running request has ended for its length: its prompt is the beginning that stays
    /// and the newer half of the rest. `None`: the answer is as long as it may be.
    pub(super) fn next(&mut self) -> Option<Request> {
        self.left = self.left.saturating_sub(self.generated.len());
        if self.left == 0 {
            return None;
        }
        let window = [&self.request.prompt[..], &self.generated].concat();
        let (kept, rest) = window.split_at(self.keep);
        let newer = &rest[(rest.len() / 2).max(1)..];
        let room = self.max_context - kept.len() - newer.len();
        let generated = std::mem::take(&mut self.generated).len() as u32;
        let request = &mut self.request;
        request.stop = StopConditions {
            max_tokens: self.left.min(room) as u32,
            min_tokens: request.stop.min_tokens.saturating_sub(generated),
            ..request.stop.clone()
        };
        self.begun = true;
        request.prompt = [kept, newer].concat().into();
        request.answered = (request.answered + generated).min(newer.len() as u32);
        request.sampling.prompt_logprobs = None;
        // The draws of the next context are others than those of this one.
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(1));
        Some(request.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::SamplingParams;

    fn request(prompt: u32, max_tokens: u32) -> Request {
        Request {
            prompt: (0..prompt).collect(),
            n: 1,
            sampling: SamplingParams { seed: Some(u64::MAX), prompt_logprobs: Some(1), ..SamplingParams::default() },
            stop: StopConditions {
                max_tokens,
                min_tokens: 5,
                ignore_eos: false,
                eos_token_ids: [].into(),
                stop_token_ids: Vec::new(),
            },
            tenant: Default::default(),
            cache_salt: None,
            priority: 0,
            masks: None,
            pooling: None,
            answered: 0,
        }
    }

    #[test]
    fn the_beginning_and_the_newer_half_of_the_rest_stay() {
        let mut shift = Shift::new(&request(6, 4), 2, 10, None);
        (6..10).for_each(|token| shift.push(token));
        let second = shift.next().expect("it goes on");
        assert_eq!(second.prompt[..], [0, 1, 6, 7, 8, 9]);
        assert_eq!((second.answered, second.stop.max_tokens, second.stop.min_tokens), (4, 4, 1));
        assert_eq!((second.sampling.seed, second.sampling.prompt_logprobs), (Some(0), None));
        (10..14).for_each(|token| shift.push(token));
        let third = shift.next().expect("it goes on");
        assert_eq!((&third.prompt[..], third.answered), (&[0, 1, 10, 11, 12, 13][..], 4));
        assert_eq!((third.stop.max_tokens, third.stop.min_tokens), (4, 0));
    }

    #[test]
    fn what_stays_leaves_room() {
        // Tokens to keep, those of the prompt, and what is left of ten after the first shift.
        for (keep, prompt, left) in [(0, 6, 6), (4, 6, 7), (9, 9, 8), (u32::MAX, 3, 7), (u32::MAX, 9, 8)] {
            let mut shift = Shift::new(&request(prompt, 10 - prompt), keep, 10, None);
            (prompt..10).for_each(|token| shift.push(token));
            let next = shift.next().expect("it goes on");
            assert_eq!(next.prompt.len(), left, "{keep} of {prompt}");
            assert_eq!(next.stop.max_tokens as usize, 10 - left, "{keep} of {prompt}");
            assert_eq!((next.prompt[0], next.prompt.last()), (0, Some(&9)), "{keep} of {prompt}");
        }
    }

    #[test]
    fn an_answer_ends_at_its_own_limit_and_at_ten_contexts() {
        for (max_tokens, expected) in [(Some(1), 1), (Some(2), 2), (Some(7), 7), (None, 20), (Some(99), 20)] {
            let first = max_tokens.map_or(1, |most: u32| most.min(1));
            let mut shift = Shift::new(&request(1, first), 1, 2, max_tokens);
            let (mut total, mut most) = (0, first);
            loop {
                (0..most).for_each(|token| shift.push(token));
                total += most;
                let Some(next) = shift.next() else { break };
                most = next.stop.max_tokens;
                assert_eq!(next.prompt.len() + most as usize, 2);
            }
            assert_eq!(total, expected, "{max_tokens:?}");
        }
    }
}
