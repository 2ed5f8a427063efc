//! All blocks of one cache: reference counts, the prefix index, and the order of reuse.
//!
//! Knows no sequences. Its accounting is asserted in release builds too: a wrong count would show one user
//! another's text.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::free_list::FreeList;
use super::key::{BlockKey, KeyChain, KeyHasher, KeyIsHash};
use super::{BlockId, blocks_for};
use crate::request::TokenId;

/// Small, and apart from the keys: each step looks at one for each sequence.
#[derive(Clone, Copy)]
struct Block {
    references: u32,
    /// Whether the index holds it, under its key.
    indexed: bool,
}

/// What the prefix index knows of a sequence's first blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Blocks found, from the first on.
    pub blocks: usize,
    /// How many of them nobody uses: taking them takes free blocks.
    pub free: usize,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Tokens of full blocks that were looked for in the prefix index.
    pub queried_tokens: u64,
    /// Tokens of blocks that were found there and taken.
    pub hit_tokens: u64,
    /// Indexed blocks whose content was given up for another.
    pub evictions: u64,
}

/// A number of blocks. A block is free or referenced; a free one keeps its content until it is reused, the least recently
/// used first, or until the pool is made smaller.
pub struct BlockPool {
    block_size: u32,
    blocks: Vec<Block>,
    /// Of each block; means something for those that are indexed.
    keys: Vec<BlockKey>,
    free: FreeList,
    index: HashMap<BlockKey, BlockId, BuildHasherDefault<KeyIsHash>>,
    hasher: KeyHasher,
    stats: PoolStats,
}

impl BlockPool {
    /// `num_blocks` free blocks of `block_size` tokens; `hash_key` is drawn at random by each engine.
    pub fn new(num_blocks: u32, block_size: u32, hash_key: [u8; 16]) -> Self {
        let mut index = HashMap::default();
        index.reserve(num_blocks as usize);
        Self {
            block_size,
            blocks: vec![Block { references: 0, indexed: false }; num_blocks as usize],
            keys: vec![BlockKey::default(); num_blocks as usize],
            free: FreeList::full(num_blocks),
            index,
            hasher: KeyHasher::new(hash_key),
            stats: PoolStats::default(),
        }
    }

    /// Has the blocks `0 .. num_blocks` from now on: the contents of those that go are given up, and those that come are free
    /// and hold nothing.
    ///
    /// # Panics
    /// If a block that goes is in use.
    pub fn resize(&mut self, num_blocks: u32) {
        for id in (num_blocks..self.blocks.len() as u32).map(BlockId) {
            let Block { references, indexed } = self.blocks[id.index()];
            assert!(references == 0, "{id:?} goes with {references} references");
            if indexed {
                let held = self.index.remove(&self.keys[id.index()]);
                assert!(held == Some(id), "the index holds {held:?} for the content of {id:?}");
                self.stats.evictions += 1;
            }
        }
        self.blocks.resize(num_blocks as usize, Block { references: 0, indexed: false });
        self.keys.resize(num_blocks as usize, BlockKey::default());
        self.free.resize(num_blocks);
        assert!(
            self.free.len() <= self.blocks.len() && self.index.len() <= self.blocks.len(),
            "of each block one entry"
        );
    }

    /// Tokens a block.
    pub fn block_size(&self) -> usize {
        self.block_size as usize
    }

    /// Blocks that nobody uses.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// All blocks.
    pub fn num_total(&self) -> usize {
        self.blocks.len()
    }

    /// Counts since the start.
    pub fn stats(&self) -> PoolStats {
        self.stats
    }

    /// How many tables hold `block`.
    pub fn references(&self, block: BlockId) -> u32 {
        self.blocks[block.index()].references
    }

    /// Blocks that `tokens` tokens fill. Divides 32 bits, for it is done often and half as long as 64.
    pub fn full_blocks(&self, tokens: usize) -> usize {
        (tokens as u32 / self.block_size) as usize
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        blocks_for(tokens as u32, self.block_size) as usize
    }

    /// No keys yet, for a sequence whose blocks are shared among equal salts.
    pub fn chain(&self, salt: Option<&str>) -> KeyChain {
        KeyChain::new(&self.hasher, salt)
    }

    /// Adds to `chain` the keys of the full blocks of `tokens`, the sequence from its start.
    pub fn extend_chain(&self, chain: &mut KeyChain, tokens: &[TokenId]) {
        chain.extend(&self.hasher, tokens, self.block_size());
    }

    /// Takes the free block that was used least recently; its content is given up. `None` if all are in use.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.pop_front()?;
        let block = &mut self.blocks[id.index()];
        assert!(block.references == 0, "{id:?} is free and has {} references", block.references);
        block.references = 1;
        if std::mem::take(&mut block.indexed) {
            let held = self.index.remove(&self.keys[id.index()]);
            assert!(held == Some(id), "the index holds {held:?} for the content of {id:?}");
            self.stats.evictions += 1;
        }
        Some(id)
    }

    /// Adds a reference to a block that is in use.
    pub fn share(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        assert!(block.references > 0, "{id:?} is shared while free");
        block.references += 1;
    }

    /// Gives a reference back. With the last one the block is free: to be reused last if the index holds it,
    /// else first, as nobody can find its content.
    pub fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        assert!(block.references > 0, "{id:?} is freed twice");
        block.references -= 1;
        match (block.references, block.indexed) {
            (0, true) => self.free.push_back(id),
            (0, false) => self.free.push_front(id),
            _ => {}
        }
    }

    /// The longest run of `keys`, from the first, that the index holds. Takes nothing and counts nothing.
    pub fn find_prefix(&self, keys: &[BlockKey]) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        for key in keys {
            let Some(id) = self.index.get(key) else { break };
            found.blocks += 1;
            found.free += usize::from(self.references(*id) == 0);
        }
        found
    }

    /// Takes a reference on the blocks of the longest run of `keys` that the index holds.
    pub fn take_prefix(&mut self, keys: &[BlockKey], blocks: &mut Vec<BlockId>) {
        self.stats.queried_tokens += (keys.len() * self.block_size()) as u64;
        for key in keys {
            let Some(&id) = self.index.get(key) else { break };
            let block = &mut self.blocks[id.index()];
            if block.references == 0 {
                self.free.remove(id);
            }
            block.references += 1;
            blocks.push(id);
            self.stats.hit_tokens += u64::from(self.block_size);
        }
    }

    /// Enters a full block, computed and committed, into the index. Where another block holds the same content
    /// already, or this one is there already, nothing changes.
    pub fn publish(&mut self, id: BlockId, key: BlockKey) {
        let block = &mut self.blocks[id.index()];
        assert!(block.references > 0, "{id:?} is published while free");
        let own = &mut self.keys[id.index()];
        if block.indexed {
            assert!(*own == key, "{id:?} is published with another content");
            return;
        }
        self.index.entry(key).or_insert_with(|| {
            block.indexed = true;
            *own = key;
            id
        });
    }

    /// # Panics
    /// If others could read what is about to be written: the block is shared or indexed.
    pub fn assert_writable(&self, id: BlockId) {
        let block = &self.blocks[id.index()];
        assert!(block.references == 1, "{id:?} is written with {} references", block.references);
        assert!(!block.indexed, "{id:?} is written while indexed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(num_blocks: u32) -> BlockPool {
        BlockPool::new(num_blocks, 2, [7; 16])
    }

    fn keys(pool: &BlockPool, tokens: &[TokenId]) -> Vec<BlockKey> {
        let mut chain = pool.chain(None);
        pool.extend_chain(&mut chain, tokens);
        chain.keys().to_vec()
    }

    #[test]
    fn free_blocks_are_found_until_they_are_reused_oldest_first() {
        let mut pool = pool(3);
        let keys = keys(&pool, &[1, 2, 3, 4]);
        let first = pool.allocate().unwrap();
        let second = pool.allocate().unwrap();
        pool.publish(first, keys[0]);
        pool.publish(second, keys[1]);
        pool.release(second);
        pool.release(first);
        assert_eq!(pool.num_free(), 3);
        assert_eq!(pool.find_prefix(&keys), PrefixMatch { blocks: 2, free: 2 });

        let unknown = pool.allocate().unwrap();
        assert!(unknown != first && unknown != second, "a block without content goes first");
        assert_eq!(pool.allocate(), Some(second), "then the one that was freed first");
        assert_eq!(pool.find_prefix(&keys), PrefixMatch { blocks: 1, free: 1 });

        let mut taken = Vec::new();
        pool.take_prefix(&keys, &mut taken);
        assert_eq!(taken, [first]);
        assert_eq!(pool.find_prefix(&keys), PrefixMatch { blocks: 1, free: 0 });
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.stats(), PoolStats { queried_tokens: 4, hit_tokens: 2, evictions: 1 });
    }

    #[test]
    fn of_two_blocks_with_one_content_the_first_is_indexed() {
        let mut pool = pool(2);
        let keys = keys(&pool, &[1, 2]);
        let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.publish(first, keys[0]);
        pool.publish(second, keys[0]);
        pool.publish(first, keys[0]);
        let mut taken = Vec::new();
        pool.take_prefix(&keys, &mut taken);
        assert_eq!(taken, [first]);
        assert_eq!(pool.references(first), 2);
    }

    #[test]
    fn a_smaller_pool_forgets_what_goes_and_keeps_what_stays() {
        let mut pool = pool(4);
        let keys = keys(&pool, &[1, 2, 3, 4, 5, 6]);
        let blocks: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(blocks, [0, 1, 2, 3].map(BlockId));
        for (id, key) in blocks.iter().zip(&keys) {
            pool.publish(*id, *key);
        }
        blocks.iter().for_each(|id| pool.release(*id));

        pool.resize(2);
        assert_eq!((pool.num_total(), pool.num_free(), pool.stats().evictions), (2, 2, 1));
        assert_eq!(pool.find_prefix(&keys), PrefixMatch { blocks: 2, free: 2 });
        let mut taken = Vec::new();
        pool.take_prefix(&keys, &mut taken);
        assert_eq!(taken, [0, 1].map(BlockId));
        assert_eq!(pool.allocate(), None, "what went is not given out");

        // One that is in use below what goes stays as it is.
        pool.resize(3);
        assert_eq!((pool.num_total(), pool.num_free()), (3, 1));
        assert_eq!(pool.find_prefix(&keys), PrefixMatch { blocks: 2, free: 0 }, "what comes back holds nothing");
        assert_eq!(pool.allocate(), Some(BlockId(2)));
        pool.release(BlockId(2));
        pool.release(taken[1]);
        pool.resize(1);
        assert_eq!((pool.num_total(), pool.num_free(), pool.references(taken[0])), (1, 0, 1));
        assert_eq!(pool.find_prefix(&keys), PrefixMatch { blocks: 1, free: 0 });
    }

    #[test]
    #[should_panic(expected = "BlockId(1) goes with 1 references")]
    fn a_block_in_use_does_not_go() {
        let mut pool = pool(2);
        pool.allocate().unwrap();
        pool.allocate().unwrap();
        pool.resize(1);
    }

    #[test]
    #[should_panic(expected = "BlockId(0) is freed twice")]
    fn freeing_twice_is_caught() {
        let mut pool = pool(1);
        let block = pool.allocate().unwrap();
        pool.release(block);
        pool.release(block);
    }

    #[test]
    #[should_panic(expected = "BlockId(0) is written with 2 references")]
    fn writing_what_others_read_is_caught() {
        let mut pool = pool(1);
        let block = pool.allocate().unwrap();
        pool.share(block);
        pool.assert_writable(block);
    }

    #[test]
    #[should_panic(expected = "BlockId(0) is written while indexed")]
    fn writing_what_the_index_holds_is_caught() {
        let mut pool = pool(1);
        let key = keys(&pool, &[1, 2])[0];
        let block = pool.allocate().unwrap();
        pool.publish(block, key);
        pool.assert_writable(block);
    }
}
