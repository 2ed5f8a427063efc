//! One sequence's blocks, in the order of its positions.
//!
//! Knows no tokens. Copy on write is decided here, in [`BlockTable::make_writable`], and nowhere else.

use super::{BlockId, BlockKey, BlockPool};

/// No block is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no block of the KV cache is free")]
pub struct OutOfBlocks;

/// `target` has taken the place of the shared block `source` in a table: copy the content before writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOnWrite {
    /// Block to read.
    pub source: BlockId,
    /// Block to write.
    pub target: BlockId,
}

/// Holds one reference on each of its blocks; they go back by [`BlockTable::release`].
#[derive(Debug, Default)]
#[must_use = "the blocks of a dropped table are never free again"]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Blocks from the first on that have been offered to the prefix index.
    published: usize,
}

impl BlockTable {
    /// A table with blocks for `tokens` tokens: those that the index holds under `keys`, then empty ones.
    /// Changes nothing if they are not free, or if fewer than `spare` blocks would be left.
    ///
    /// # Errors
    /// [`OutOfBlocks`].
    pub fn open(pool: &mut BlockPool, keys: &[BlockKey], tokens: usize, spare: usize) -> Result<Self, OutOfBlocks> {
        let needed = pool.blocks_for(tokens);
        if needed > pool.num_total() {
            return Err(OutOfBlocks);
        }
        let found = pool.find_prefix(keys);
        if needed - found.blocks + found.free + spare > pool.num_free() {
            return Err(OutOfBlocks);
        }
        let mut blocks = Vec::with_capacity(needed + 1);
        pool.take_prefix(keys, &mut blocks);
        let published = blocks.len();
        while blocks.len() < needed {
            blocks.push(pool.allocate().ok_or(OutOfBlocks)?);
        }
        Ok(Self { blocks, published })
    }

    /// The blocks, in the order of positions.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Blocks from the first on that the prefix index gave or was offered.
    pub fn published(&self) -> usize {
        self.published
    }

    /// A second table of the same blocks.
    pub fn fork(&self, pool: &mut BlockPool) -> Self {
        for &block in &self.blocks {
            pool.share(block);
        }
        Self { blocks: self.blocks.clone(), published: self.published }
    }

    /// Sees to it that `position`, at most one past the table's end, can be written: takes a new block there, or a
    /// copy of one that others hold too. Changes nothing on error.
    ///
    /// # Errors
    /// [`OutOfBlocks`].
    ///
    /// # Panics
    /// If the index holds the block.
    pub fn make_writable(&mut self, pool: &mut BlockPool, position: usize) -> Result<Option<CopyOnWrite>, OutOfBlocks> {
        let place = pool.full_blocks(position);
        let Some(&source) = self.blocks.get(place) else {
            assert!(place == self.blocks.len(), "position {position} is past the end of {self:?}");
            self.blocks.push(pool.allocate().ok_or(OutOfBlocks)?);
            return Ok(None);
        };
        if pool.references(source) == 1 {
            pool.assert_writable(source);
            return Ok(None);
        }
        let target = pool.allocate().ok_or(OutOfBlocks)?;
        self.blocks[place] = target;
        pool.release(source);
        Ok(Some(CopyOnWrite { source, target }))
    }

    /// # Panics
    /// If somebody else could read what is written at positions `start .. end`.
    pub fn assert_writable(&self, pool: &BlockPool, start: usize, end: usize) {
        for &block in &self.blocks[pool.full_blocks(start)..pool.blocks_for(end)] {
            pool.assert_writable(block);
        }
    }

    /// Offers the blocks of `keys`, all of them computed and committed, to the prefix index.
    pub fn publish(&mut self, pool: &mut BlockPool, keys: &[BlockKey]) {
        for (&block, &key) in self.blocks.iter().zip(keys).skip(self.published) {
            pool.publish(block, key);
        }
        self.published = self.published.max(keys.len());
    }

    /// Gives all blocks back, the last first: of a sequence that is not used again, the end is forgotten first.
    pub fn release(self, pool: &mut BlockPool) {
        for &block in self.blocks.iter().rev() {
            pool.release(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_shares_until_it_writes_and_the_last_holder_keeps_the_block() {
        let mut pool = BlockPool::new(4, 2, [0; 16]);
        let mut leader = BlockTable::open(&mut pool, &[], 3, 0).unwrap();
        let mut follower = leader.fork(&mut pool);
        assert_eq!(pool.num_free(), 2);

        let copy = leader.make_writable(&mut pool, 3).unwrap().expect("a shared block is copied");
        assert_eq!((copy.source, copy.target), (follower.blocks()[1], leader.blocks()[1]));
        assert_eq!(leader.blocks()[0], follower.blocks()[0]);
        assert_eq!(follower.make_writable(&mut pool, 3), Ok(None), "nobody else holds it any more");
        leader.assert_writable(&pool, 3, 4);
        follower.assert_writable(&pool, 3, 4);

        assert_eq!(leader.make_writable(&mut pool, 4), Ok(None));
        assert_eq!(follower.make_writable(&mut pool, 4), Err(OutOfBlocks));
        leader.release(&mut pool);
        follower.release(&mut pool);
        assert_eq!(pool.num_free(), 4);
    }

    #[test]
    fn opens_with_what_the_index_holds_or_not_at_all() {
        let mut pool = BlockPool::new(3, 2, [0; 16]);
        let mut chain = pool.chain(None);
        pool.extend_chain(&mut chain, &[1, 2, 3, 4]);
        let mut first = BlockTable::open(&mut pool, chain.keys(), 4, 0).unwrap();
        first.publish(&mut pool, &chain.keys()[..1]);

        assert!(BlockTable::open(&mut pool, chain.keys(), 4, 1).is_err(), "none would be left");
        assert!(BlockTable::open(&mut pool, &[], 4, 0).is_err());
        assert_eq!((pool.num_free(), pool.references(first.blocks()[0])), (1, 1));

        let second = BlockTable::open(&mut pool, chain.keys(), 4, 0).unwrap();
        assert_eq!(second.blocks()[0], first.blocks()[0]);
        assert_ne!(second.blocks()[1], first.blocks()[1], "what is not published is not shared");
        first.release(&mut pool);
        second.release(&mut pool);

        let again = BlockTable::open(&mut pool, chain.keys(), 6, 0).unwrap();
        assert_eq!((again.published(), pool.num_free()), (1, 0), "free hits take free blocks");
        again.release(&mut pool);
    }
}
