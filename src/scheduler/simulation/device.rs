//! A model and its KV cache, faked so that a mistake in the bookkeeping changes what it says.
//!
//! Each slot of each block keeps the token written to it. A sampled token is a hash of all tokens of the context,
//! read back through the row's blocks: a wrong table, a block reused too early, a missing copy or a stale prefix
//! hit gives another answer than the same request gets alone.

use std::collections::HashMap;
use std::sync::Arc;

use super::scenario::{Random, VOCABULARY};
use crate::kv_cache::BlockId;
use crate::request::{SeqId, TokenId};
use crate::scheduler::{ScheduledRow, SchedulerOutput};

/// What a sequence of these tokens says next, in this stream.
pub(super) fn next_token(context: impl Iterator<Item = TokenId>, seed: u64, choice: u32) -> TokenId {
    let mut state = Random(seed ^ u64::from(choice) << 40);
    for token in context {
        state.0 ^= u64::from(token);
        state.0 = state.next();
    }
    (state.next() % u64::from(VOCABULARY)) as TokenId
}

/// One written slot; the salt shows sharing between those who must not share.
#[derive(Clone, Debug, PartialEq)]
struct Slot {
    token: TokenId,
    position: usize,
    salt: Option<Arc<str>>,
}

/// What the device knows of a sequence: nothing about blocks or tokens but the last sampled one.
pub(super) struct Stream {
    pub(super) seed: u64,
    pub(super) choice: u32,
    pub(super) salt: Option<Arc<str>>,
    pub(super) last: Option<TokenId>,
}

pub(super) struct Device {
    block_size: usize,
    slots: Vec<Option<Slot>>,
    pub(super) streams: HashMap<SeqId, Stream>,
}

impl Device {
    pub(super) fn new(num_blocks: u32, block_size: u32) -> Self {
        Self {
            block_size: block_size as usize,
            slots: vec![None; (num_blocks * block_size) as usize],
            streams: HashMap::new(),
        }
    }

    /// What goes is lost, and what comes holds nothing.
    pub(super) fn resize(&mut self, num_blocks: u32) {
        self.slots.resize(num_blocks as usize * self.block_size, None);
    }

    /// Runs one step and returns its samples.
    pub(super) fn execute(&mut self, output: &SchedulerOutput) -> Vec<(SeqId, TokenId)> {
        for seq in &output.released {
            assert!(self.streams.remove(seq).is_some(), "{seq:?} is released twice");
        }
        for copy in &output.copies {
            for offset in 0..self.block_size {
                let slot = self.slots[copy.source.0 as usize * self.block_size + offset].clone();
                self.slots[copy.target.0 as usize * self.block_size + offset] = slot;
            }
        }
        for row in &output.rows {
            self.write(row, output);
        }
        let mut samples = Vec::new();
        for row in &output.rows {
            for seq in &output.samples[row.samples.clone()] {
                samples.push((*seq, self.sample(row, *seq, output)));
            }
        }
        for (seq, token) in &samples {
            self.stream(*seq).last = Some(*token);
        }
        samples
    }

    fn stream(&mut self, seq: SeqId) -> &mut Stream {
        self.streams.get_mut(&seq).unwrap_or_else(|| panic!("{seq:?} is in a step after it was released"))
    }

    fn write(&mut self, row: &ScheduledRow, output: &SchedulerOutput) {
        let salt = self.stream(row.seq).salt.clone();
        let blocks = &output.block_tables[row.blocks.clone()];
        let tokens = &output.tokens[row.tokens.clone()];
        for (offset, &token) in tokens.iter().enumerate() {
            let is_placeholder = row.follows_sample && offset + 1 == tokens.len();
            let token = if is_placeholder { self.stream(row.seq).last.unwrap() } else { token };
            let position = row.start as usize + offset;
            let at = self.slot(blocks, position);
            self.slots[at] = Some(Slot { token, position, salt: salt.clone() });
        }
    }

    fn sample(&self, row: &ScheduledRow, seq: SeqId, output: &SchedulerOutput) -> TokenId {
        let stream = &self.streams[&seq];
        let blocks = &output.block_tables[row.blocks.clone()];
        let context = (0..row.start as usize + row.tokens.len()).map(|position| {
            let slot = self.slots[self.slot(blocks, position)].as_ref();
            let slot = slot.unwrap_or_else(|| panic!("{seq:?} reads position {position}, never written"));
            assert_eq!((slot.position, &slot.salt), (position, &stream.salt), "{seq:?} reads what is not its own");
            slot.token
        });
        next_token(context, stream.seed, stream.choice)
    }

    fn slot(&self, blocks: &[BlockId], position: usize) -> usize {
        blocks[position / self.block_size].0 as usize * self.block_size + position % self.block_size
    }
}
