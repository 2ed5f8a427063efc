//! Hidden states of prompts on their way to one vector: a prompt may take many steps.
//!
//! Knows no device: a runner adds up what a step has given, here the steps are added up.

use std::collections::HashMap;
use std::ops::Range;

use crate::request::{Pooling, Request, SeqId};
use crate::scheduler::ScheduledRow;

/// A step's part of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolPart {
    seq: SeqId,
    /// The tokens that count, by their places in the step.
    pub(super) tokens: Range<u32>,
    /// Nothing came before.
    is_first: bool,
    /// Over how many tokens the mean is, where this is the last part.
    divisor: Option<usize>,
}

/// Sums of prompts whose end is still to come.
#[derive(Debug, Default)]
pub(super) struct Pools {
    sums: HashMap<SeqId, Vec<f64>>,
}

impl Pools {
    /// What of `row`, a part of `request`, is pooled; `None` where nothing is.
    pub(super) fn part(row: &ScheduledRow, request: &Request) -> Option<PoolPart> {
        let (first, end) = (row.tokens.start as u32, row.tokens.end as u32);
        let prompt = request.prompt.len();
        let (start, is_last) = (row.start as usize, row.start as usize + row.tokens.len() == prompt);
        if start >= prompt {
            return None;
        }
        let part = |tokens, is_first, count| {
            Some(PoolPart { seq: row.seq, tokens, is_first, divisor: is_last.then_some(count) })
        };
        match request.pooling? {
            Pooling::Mean => part(first..end, start == 0, prompt),
            Pooling::Last if is_last => part(end - 1..end, true, 1),
            Pooling::Last => None,
        }
    }

    /// Adds hidden states of `part`, or sums of some, each `[width]`, in the order of the tokens: the sum of a prompt does
    /// not depend on how it was cut into steps.
    pub(super) fn add<'a>(&mut self, part: &PoolPart, states: impl Iterator<Item = &'a [f32]>) {
        let total = self.sums.entry(part.seq).or_default();
        for state in states {
            total.resize(state.len(), 0.0);
            total.iter_mut().zip(state).for_each(|(total, value)| *total += f64::from(*value));
        }
    }

    /// Begins `part`, before its states are added.
    pub(super) fn begin(&mut self, part: &PoolPart) {
        if part.is_first {
            // A preempted prompt comes again from its first token.
            self.sums.remove(&part.seq);
        }
    }

    /// Ends `part`; the vector, where it was the last one.
    pub(super) fn end(&mut self, part: &PoolPart) -> Option<(SeqId, Vec<f32>)> {
        let divisor = part.divisor? as f64;
        let total = self.sums.remove(&part.seq)?;
        Some((part.seq, total.into_iter().map(|value| (value / divisor) as f32).collect()))
    }

    /// Forgets a sequence.
    pub(super) fn release(&mut self, seq: SeqId) {
        self.sums.remove(&seq);
    }
}
