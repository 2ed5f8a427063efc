//! Bookkeeping of the paged KV cache: blocks, tables, prefix index. Holds no tensors.
