//! What belongs to a sequence besides its blocks: its place in the random stream, its history, its slot on the GPU.
//!
//! A slot holds the sequence's last token and the counts that penalties ask for. There are as many as a step has rows; a
//! sequence that is not in the step gives its slot up when another needs it, and gets its history back with the next.

use std::sync::Arc;

use rayon::prelude::*;

use crate::cuda::SampleRow;
use crate::request::{Request, SamplingParams, SeqId, TokenId, TokenMask};

/// Masks that are computed one after another; a mask of JSON takes some 50 microseconds.
const MOST_MASKS_ALONE: usize = 2;

/// Top bit of an id that stands for a slot's last token.
const LATE_TOKEN: u32 = 1 << 31;

/// A sequence that was started and not released.
pub(super) struct SequenceState {
    seq: SeqId,
    pub(super) request: Arc<Request>,
    /// What stays the same in all its draws. Kept here, for a step of hundreds of rows has no time to look into their requests.
    draw: SampleRow,
    /// Draws before which some tokens may not come.
    min_tokens: u32,
    /// Draws that were begun.
    drawn: u32,
    /// Tokens that were collected.
    pub(super) generated: Vec<TokenId>,
    slot: Option<u32>,
    /// Which tokens may come next, where it follows a grammar.
    mask: Option<Box<dyn TokenMask>>,
    /// The tokens that may come next, as [`TokenMask::allowed`] has them; empty: all.
    allowed: Vec<u32>,
    /// Why it cannot go on.
    broken: Option<String>,
    /// The last step that had it.
    step: u64,
}

impl SequenceState {
    /// Whether penalties look at its history.
    pub(super) fn counts_history(&self) -> bool {
        self.draw.flags & SampleRow::PENALTIES != 0
    }

    fn compute_mask(&mut self) {
        self.allowed.clear();
        match self.mask.as_mut().map(|mask| mask.allowed()) {
            Some(Ok(Some(allowed))) => self.allowed.extend_from_slice(allowed),
            Some(Err(reason)) => {
                self.broken.get_or_insert(reason);
            }
            Some(Ok(None)) | None => {}
        }
    }

    /// Tokens that may not come yet.
    pub(super) fn banned(&self) -> impl Iterator<Item = TokenId> + '_ {
        banned(&self.request)
    }

    /// How many alternatives come with each token, if its log-probability was asked for.
    pub(super) fn logprobs(&self) -> Option<u32> {
        Some(self.draw.top_logprobs).filter(|count| *count != SampleRow::NO_LOGPROBS)
    }
}

/// Whether penalties look at a sequence's history.
fn counts_history(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
}

/// Tokens that may not come before the least number has.
fn banned(request: &Request) -> impl Iterator<Item = TokenId> + '_ {
    let stop = &request.stop;
    let none = stop.min_tokens == 0;
    stop.eos_token_ids.iter().chain(&stop.stop_token_ids).copied().filter(move |_| !none)
}

/// All sequences and who has which slot.
pub(super) struct Sequences {
    /// By [`SeqId::place`].
    states: Vec<Option<SequenceState>>,
    free: Vec<u32>,
    step: u64,
}

impl Sequences {
    /// `slots` of them, all free.
    pub(super) fn new(slots: usize) -> Self {
        Self { states: Vec::new(), free: (0..slots as u32).rev().collect(), step: 0 }
    }

    pub(super) fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64) {
        let mask = request.masks.as_ref().map(|masks| masks.start());
        let mut draw =
            SampleRow { choice, ban_count: banned(&request).count() as u32, ..sample_row(&request.sampling, 0, seed) };
        draw.flags += u32::from(counts_history(&request.sampling)) * SampleRow::PENALTIES;
        let state = SequenceState {
            seq,
            min_tokens: request.stop.min_tokens,
            request,
            draw,
            drawn: 0,
            generated: Vec::new(),
            slot: None,
            mask,
            allowed: Vec::new(),
            broken: None,
            step: 0,
        };
        if self.states.len() <= seq.place() {
            self.states.resize_with(seq.place() + 1, || None);
        }
        self.free.extend(self.states[seq.place()].replace(state).and_then(|old| old.slot));
    }

    /// Forgets a sequence. Work in flight may still write its slot; what comes after it in the stream clears it first.
    pub(super) fn release(&mut self, seq: SeqId) {
        if self.get(seq).is_some() {
            self.free.extend(self.states[seq.place()].take().and_then(|state| state.slot));
        }
    }

    pub(super) fn get(&self, seq: SeqId) -> Option<&SequenceState> {
        self.states.get(seq.place())?.as_ref().filter(|state| state.seq == seq)
    }

    fn get_mut(&mut self, seq: SeqId) -> Option<&mut SequenceState> {
        self.states.get_mut(seq.place())?.as_mut().filter(|state| state.seq == seq)
    }

    /// A token of a sequence has come; the sequence, and why it cannot follow its grammar any further, told once.
    pub(super) fn collected(&mut self, seq: SeqId, token: TokenId) -> Option<(&SequenceState, Option<String>)> {
        let state = self.get_mut(seq)?;
        state.generated.push(token);
        if let Some(Err(reason)) = state.mask.as_mut().map(|mask| mask.commit(token)) {
            state.broken.get_or_insert(reason);
        }
        let broken = state.broken.take();
        Some((state, broken))
    }

    /// Whether any of `seqs` has rules for its next token.
    pub(super) fn have_masks(&self, seqs: &[SeqId]) -> bool {
        seqs.iter().any(|seq| self.get(*seq).is_some_and(|state| state.mask.is_some()))
    }

    /// Finds out which tokens may come next in each sequence of the step, several at a time where there are many. One that
    /// cannot be followed any further is told with its next token, by [`Self::collected`].
    pub(super) fn compute_masks(&mut self) {
        let step = self.step;
        let states = self.states.iter_mut().flatten().filter(|state| state.step == step && state.mask.is_some());
        let mut states: Vec<_> = states.collect();
        if states.len() > MOST_MASKS_ALONE {
            states.par_iter_mut().for_each(|state| state.compute_mask());
        } else {
            states.iter_mut().for_each(|state| state.compute_mask());
        }
    }

    /// Slot of `seq` and the tokens that may come next, where not all may, as the last [`Self::compute_masks`] found.
    pub(super) fn mask(&self, seq: SeqId) -> Option<(u32, &[u32])> {
        let state = self.get(seq)?;
        (!state.allowed.is_empty()).then_some((state.slot?, &state.allowed))
    }

    /// Gives every one of `seqs`, which are all of a step's, a slot. Those that are new to theirs go to `fresh`.
    pub(super) fn assign(&mut self, seqs: impl Iterator<Item = SeqId> + Clone, fresh: &mut Vec<(SeqId, u32)>) {
        self.step += 1;
        fresh.clear();
        let step = self.step;
        for seq in seqs.clone() {
            if let Some(state) = self.get_mut(seq) {
                state.step = step;
            }
        }
        for seq in seqs {
            if self.get(seq).is_none_or(|state| state.slot.is_some()) {
                continue;
            }
            let Some(slot) = self.free.pop().or_else(|| self.evict()) else { continue };
            if let Some(state) = self.get_mut(seq) {
                state.slot = Some(slot);
                fresh.push((seq, slot));
            }
        }
    }

    /// Takes the slot of the sequence that has not been in a step for longest.
    fn evict(&mut self) -> Option<u32> {
        let states = self.states.iter_mut().flatten();
        let idle = states.filter(|state| state.slot.is_some() && state.step < self.step);
        idle.min_by_key(|state| state.step)?.slot.take()
    }

    /// The id that stands for the last token of `seq`, drawn in a step that may still run.
    pub(super) fn late_token(&self, seq: SeqId) -> Option<TokenId> {
        Some(LATE_TOKEN | self.get(seq)?.slot?)
    }

    /// The parameters of the next draw of `seq`, which then counts as begun.
    ///
    /// # Panics
    /// If `seq` was not started or has no slot.
    pub(super) fn next_draw(&mut self, seq: SeqId) -> SampleRow {
        let state = self.get_mut(seq).expect("a sampled sequence was started");
        let slot = state.slot.expect("a sampled sequence has a slot");
        let banned = state.drawn < state.min_tokens;
        let flags = state.draw.flags + u32::from(banned) * SampleRow::BANS;
        let row = SampleRow { slot, flags, drawn: state.drawn, ..state.draw };
        state.drawn += 1;
        row
    }
}

/// What a request's parameters say of a draw: the first one of its first choice, without penalties and bans.
pub(in crate::runner) fn sample_row(params: &SamplingParams, slot: u32, seed: u64) -> SampleRow {
    SampleRow {
        slot,
        temperature: params.temperature,
        top_k: params.top_k.unwrap_or(0),
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        top_logprobs: params.logprobs.unwrap_or(SampleRow::NO_LOGPROBS),
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        bias_count: params.logit_bias.len() as u32,
        ..SampleRow::IDLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Arc<Request> {
        Arc::new(Request {
            prompt: [1, 2].as_slice().into(),
            n: 1,
            sampling: Default::default(),
            stop: crate::request::StopConditions {
                max_tokens: 9,
                min_tokens: 0,
                ignore_eos: false,
                eos_token_ids: Arc::from([7]),
                stop_token_ids: vec![],
            },
            tenant: Default::default(),
            cache_salt: None,
            priority: 0,
            masks: None,
            pooling: None,
            answered: 0,
        })
    }

    fn sequences(slots: usize, count: u64) -> Sequences {
        let mut sequences = Sequences::new(slots);
        (0..count).for_each(|seq| sequences.start(SeqId(seq), request(), 0, 5));
        sequences
    }

    fn assign(sequences: &mut Sequences, seqs: &[u64]) -> Vec<u64> {
        let mut fresh = Vec::new();
        sequences.assign(seqs.iter().map(|seq| SeqId(*seq)), &mut fresh);
        fresh.into_iter().map(|(seq, _)| seq.0).collect()
    }

    #[test]
    fn the_longest_idle_gives_its_slot_up_and_none_in_the_step_does() {
        let mut sequences = sequences(2, 4);
        assert_eq!(assign(&mut sequences, &[0, 1]), [0, 1]);
        assert!(assign(&mut sequences, &[1]).is_empty());
        assert_eq!(assign(&mut sequences, &[1, 2]), [2]);
        assert!(sequences.late_token(SeqId(0)).is_none());
        let slots = [1, 2].map(|seq| sequences.late_token(SeqId(seq)).expect("it has a slot"));
        assert_ne!(slots[0], slots[1]);
        assert_eq!(assign(&mut sequences, &[0, 2]), [0]);
        sequences.release(SeqId(2));
        assert_eq!(assign(&mut sequences, &[0, 3]), [3]);
    }

    #[test]
    fn draws_are_counted_when_they_begin() {
        let mut sequences = sequences(1, 1);
        assign(&mut sequences, &[0]);
        assert_eq!(sequences.next_draw(SeqId(0)).drawn, 0);
        assert_eq!(sequences.next_draw(SeqId(0)).drawn, 1);
    }
}
