//! One sequence and where it stands, and the table of all of them.
//!
//! Knows nothing of other sequences: who is served next is decided elsewhere.

use std::sync::Arc;

use super::fair_queue::Ticket;
use super::memory::SequenceMemory;
use crate::request::{FinishReason, RequestId, SeqId, StopConditions, TokenId};

/// What all choices of a request have in common.
#[derive(Debug)]
pub(super) struct RequestFacts {
    pub(super) id: RequestId,
    /// Requests are numbered as they come.
    pub(super) arrival: u64,
    pub(super) choices: u32,
    pub(super) priority: i32,
    pub(super) stop: StopConditions,
    pub(super) prompt_logprobs: bool,
    /// Something is asked of each of the prompt's tokens, so that none may come from the prefix cache.
    pub(super) whole_prompt: bool,
}

impl RequestFacts {
    /// What stands in the queue for its sequence `seq`.
    pub(super) fn ticket(&self, seq: SeqId) -> Ticket {
        Ticket { priority: self.priority, arrival: self.arrival, seq }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In its tenant's queue; holds no blocks.
    Waiting,
    /// A choice whose first one, the leader, is in the queue.
    Parked,
    /// A choice whose leader computes the prompt; counts as running.
    Following,
    /// Holds blocks and takes part in steps.
    Running,
}

impl State {
    /// Whether it counts against `max_sequences`.
    pub(super) fn occupies(self) -> bool {
        matches!(self, Self::Following | Self::Running)
    }
}

/// What a running sequence wants from the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Its next token.
    Decode,
    /// A chunk of what is left of its prompt, or of what it lost by preemption.
    Prompt,
    /// Nothing: its last token is being computed.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Arc<RequestFacts>,
    pub(super) choice: u32,
    /// Place in the fair queue.
    pub(super) tenant: usize,
    pub(super) state: State,
    pub(super) prompt_len: usize,
    /// Tokens, prompt included, at which it ends.
    pub(super) max_len: usize,
    /// Prompt and answer, as far as committed.
    pub(super) tokens: Vec<TokenId>,
    /// Samples in flight: tokens that will follow `tokens`.
    pub(super) pending: usize,
    /// Tokens from the first on that are computed, or are in a step in flight.
    pub(super) computed: usize,
    /// Tokens from the first on that its tenant has paid for; computing them again is free.
    pub(super) charged: usize,
    pub(super) memory: SequenceMemory,
}

impl Sequence {
    /// Committed tokens of the answer.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens that are to be computed before the next one can be sampled.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() + self.pending - self.computed
    }

    pub(super) fn work(&self) -> Work {
        if self.tokens.len() + self.pending >= self.max_len {
            Work::Nothing
        } else if self.left() == 1 && self.computed >= self.prompt_len {
            Work::Decode
        } else {
            Work::Prompt
        }
    }

    /// Whether the last committed token ends it.
    pub(super) fn end(&self) -> Option<FinishReason> {
        let stop = &self.request.stop;
        let last = *self.tokens.last()?;
        if self.generated() > stop.min_tokens as usize && stop.is_stop(last) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.max_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

struct Slot {
    generation: u32,
    sequence: Option<Sequence>,
}

/// All living sequences, each in the slot that its [`SeqId`] names; the id of an ended one finds nothing.
#[derive(Default)]
pub(super) struct Sequences {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Sequences {
    pub(super) fn insert(&mut self, sequence: Sequence) -> SeqId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, sequence: None });
            (self.slots.len() - 1) as u32
        });
        let Slot { generation, sequence: place } = &mut self.slots[slot as usize];
        *place = Some(sequence);
        SeqId::new(slot, *generation)
    }

    pub(super) fn get(&self, id: SeqId) -> Option<&Sequence> {
        let slot = self.slots.get(id.place())?;
        slot.sequence.as_ref().filter(|_| slot.generation == id.generation())
    }

    pub(super) fn get_mut(&mut self, id: SeqId) -> Option<&mut Sequence> {
        let slot = self.slots.get_mut(id.place())?;
        slot.sequence.as_mut().filter(|_| slot.generation == id.generation())
    }

    pub(super) fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        self.get(id)?;
        let slot = &mut self.slots[id.place()];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.place() as u32);
        slot.sequence.take()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl std::ops::Index<SeqId> for Sequences {
    type Output = Sequence;

    /// # Panics
    /// If the sequence has ended.
    fn index(&self, id: SeqId) -> &Sequence {
        self.get(id).unwrap_or_else(|| panic!("{id:?} has ended"))
    }
}

impl std::ops::IndexMut<SeqId> for Sequences {
    /// # Panics
    /// If the sequence has ended.
    fn index_mut(&mut self, id: SeqId) -> &mut Sequence {
        self.get_mut(id).unwrap_or_else(|| panic!("{id:?} has ended"))
    }
}
