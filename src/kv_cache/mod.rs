//! Bookkeeping of the paged KV cache: blocks, tables, prefix index. Holds no tensors.

/// One block of the KV cache: the same index in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
