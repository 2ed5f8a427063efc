//! The state that sequences keep on the device, here the blocks of the KV cache, and when it may be reused.
//!
//! Knows no tenants and no budget. Other kinds of per-sequence state (a recurrent state, an index for sparse
//! attention) would stand here, beside the blocks, behind the same five verbs.

use std::collections::VecDeque;

use crate::kv_cache::{BlockId, BlockPool, BlockTable, KeyChain, OutOfBlocks};
use crate::request::TokenId;
use crate::scheduler::BlockCopy;

/// One sequence's part.
#[derive(Debug)]
pub(super) struct SequenceMemory {
    table: BlockTable,
    chain: KeyChain,
}

impl SequenceMemory {
    /// In the order of positions.
    pub(super) fn blocks(&self) -> &[BlockId] {
        self.table.blocks()
    }
}

/// The whole of it.
pub(super) struct Memory {
    pool: BlockPool,
    /// What steps in flight may still read or write, and the last of those steps.
    held: VecDeque<(u64, BlockTable)>,
}

impl Memory {
    pub(super) fn new(pool: BlockPool) -> Self {
        Self { pool, held: VecDeque::new() }
    }

    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Has `blocks` blocks from now on. No step is in flight that may use one that goes.
    pub(super) fn resize(&mut self, blocks: u32) {
        self.pool.resize(blocks);
    }

    /// Nothing yet, for a sequence that shares among equal salts.
    pub(super) fn sequence(&self, salt: Option<&str>) -> SequenceMemory {
        SequenceMemory { table: BlockTable::default(), chain: self.pool.chain(salt) }
    }

    /// Takes room for all of `tokens`, or nothing if that leaves less than `spare` blocks. Returns how many tokens
    /// are computed already, 0 unless `reuse`; never all of them, as the last one's logits are wanted.
    pub(super) fn open(
        &mut self,
        memory: &mut SequenceMemory,
        tokens: &[TokenId],
        reuse: bool,
        spare: usize,
    ) -> Result<usize, OutOfBlocks> {
        let mut keys: &[_] = &[];
        if reuse {
            self.pool.extend_chain(&mut memory.chain, tokens);
            keys = &memory.chain.keys()[..self.pool.full_blocks(tokens.len() - 1)];
        }
        memory.table = BlockTable::open(&mut self.pool, keys, tokens.len(), spare)?;
        Ok(memory.table.published() * self.pool.block_size())
    }

    /// Sees to it that `position`, the sequence's next, can be written; perhaps after a copy.
    pub(super) fn make_writable(
        &mut self,
        memory: &mut SequenceMemory,
        position: usize,
    ) -> Result<Option<BlockCopy>, OutOfBlocks> {
        let copy = memory.table.make_writable(&mut self.pool, position)?;
        Ok(copy.map(|copy| BlockCopy { source: copy.source, target: copy.target }))
    }

    /// # Panics
    /// If another sequence could read what is written at positions `start .. end`.
    pub(super) fn assert_writable(&self, memory: &SequenceMemory, start: usize, end: usize) {
        memory.table.assert_writable(&self.pool, start, end);
    }

    /// A second sequence with the same past.
    pub(super) fn fork(&mut self, memory: &SequenceMemory) -> SequenceMemory {
        SequenceMemory { table: memory.table.fork(&mut self.pool), chain: memory.chain.clone() }
    }

    /// `computed`, the sequence from its start, is computed and committed: others may share its full blocks.
    pub(super) fn publish(&mut self, memory: &mut SequenceMemory, computed: &[TokenId]) {
        let full = self.pool.full_blocks(computed.len());
        if full > memory.table.published() {
            self.pool.extend_chain(&mut memory.chain, computed);
            memory.table.publish(&mut self.pool, &memory.chain.keys()[..full]);
        }
    }

    /// Gives back what a sequence holds: now, or once `in_flight`, the last step that may use it, is committed.
    pub(super) fn release(&mut self, memory: &mut SequenceMemory, in_flight: Option<u64>) {
        let table = std::mem::take(&mut memory.table);
        match in_flight {
            Some(step) => self.held.push_back((step, table)),
            None => table.release(&mut self.pool),
        }
    }

    /// `step` has run and nothing before it is in flight.
    pub(super) fn committed(&mut self, step: u64) {
        while let Some((_, table)) = self.held.pop_front_if(|(last, _)| *last <= step) {
            table.release(&mut self.pool);
        }
    }

    /// Whether a commit will free blocks.
    pub(super) fn holds_released(&self) -> bool {
        self.held.iter().any(|(_, table)| !table.blocks().is_empty())
    }
}

#[cfg(test)]
impl Memory {
    /// Blocks that wait for a step to be committed.
    pub(super) fn held_blocks(&self) -> impl Iterator<Item = BlockId> {
        self.held.iter().flat_map(|(_, table)| table.blocks().iter().copied())
    }
}
