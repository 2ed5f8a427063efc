//! From logits to token ids, each row with its own parameters and random stream.
//!
//! Knows no batch: what a row gets does not depend on its neighbours, nor on when it was computed.

mod draw;
mod logprobs;
mod processors;
mod random;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

pub(crate) use logprobs::token_logprobs;

use crate::request::{Request, SeqId, TokenId, TokenLogprobs, TokenMask};

/// One drawn token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sampled {
    pub(crate) seq: SeqId,
    pub(crate) token: TokenId,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// Why no token could be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SampleError {
    /// The grammar leaves no token, or cannot be followed.
    #[error("the answer cannot follow its grammar any further: {0}")]
    Grammar(String),
    /// All logits are NaN or infinite.
    #[error("the model gave no finite logit, so no token can be chosen")]
    NotFinite,
}

struct SequenceState {
    request: Arc<Request>,
    choice: u32,
    seed: u64,
    history: processors::History,
    mask: Option<Box<dyn TokenMask>>,
}

/// Draws tokens; keeps each sequence's history and place in its random stream.
#[derive(Default)]
pub(crate) struct Sampler {
    sequences: HashMap<SeqId, SequenceState>,
    logits: Vec<f32>,
    scratch: draw::Scratch,
}

impl Sampler {
    /// Begins to keep state for choice `choice` of `request`. `seed` is the request's own, or what
    /// [`random_seed`] gave for all of its choices.
    pub(crate) fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64) {
        let history = processors::History::new(&request);
        let mask = request.masks.as_ref().map(|masks| masks.start());
        self.sequences.insert(seq, SequenceState { request, choice, seed, history, mask });
    }

    /// Forgets a sequence.
    pub(crate) fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    /// The request of a sequence that was started.
    pub(crate) fn request(&self, seq: SeqId) -> Option<&Arc<Request>> {
        self.sequences.get(&seq).map(|state| &state.request)
    }

    /// Draws the next token of `seq` from its row of logits [vocab].
    ///
    /// # Errors
    /// [`SampleError`].
    ///
    /// # Panics
    /// If `seq` was not started.
    pub(crate) fn sample(&mut self, seq: SeqId, logits: &[f32]) -> Result<Sampled, SampleError> {
        let state = self.sequences.get_mut(&seq).expect("a sampled sequence was started");
        let params = &state.request.sampling;
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        processors::process(&mut self.logits, params, &state.request.stop, &state.history);
        if let Some(mask) = &mut state.mask
            && let Some(allowed) = mask.allowed().map_err(SampleError::Grammar)?
        {
            processors::keep(&mut self.logits, allowed);
        }
        let uniform = random::uniform(state.seed, state.choice, state.history.drawn);
        let token = draw::draw(&self.logits, params, uniform, &mut self.scratch).ok_or(SampleError::NotFinite)?;
        if let Some(mask) = &mut state.mask {
            mask.commit(token).map_err(SampleError::Grammar)?;
        }
        state.history.push(token);
        let logprobs = params.logprobs.map(|count| token_logprobs(logits, token, count));
        Ok(Sampled { seq, token, logprobs })
    }
}

/// A seed for a request that brought none.
pub(crate) fn random_seed() -> u64 {
    // The standard library's hash keys are the operating system's random bytes.
    RandomState::new().hash_one(std::process::id())
}
