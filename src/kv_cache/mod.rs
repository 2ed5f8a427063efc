//! Bookkeeping of the paged KV cache: which block holds which tokens, who uses it, and which one is reused next.
//!
//! Holds no tensors and knows no scheduler: a block is a number, the same in every layer.

mod free_list;
mod key;
mod pool;
mod table;

pub use key::{BlockKey, KeyChain};
pub use pool::BlockPool;
pub use table::{BlockTable, OutOfBlocks};

/// Blocks of `block_size` tokens that hold `tokens`.
pub fn blocks_for(tokens: u32, block_size: u32) -> u32 {
    tokens.div_ceil(block_size)
}

/// One block of the KV cache: the same index in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}
