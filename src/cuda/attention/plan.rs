//! What the attention kernels of a step work through, as plain data. Knows no GPU.
//!
//! A row with one query is cut into items, chunks of its context; a row with more into tiles of queries. The cut of a
//! row depends on that row alone, so its result is bit for bit the same in any batch.

use super::AttentionShape;

/// Tokens of the shortest chunk of a context.
pub const CHUNK_TOKENS: usize = 256;

/// The most chunks of a row; longer contexts have longer chunks.
pub const MAX_CHUNKS: usize = 32;

/// Query heads that the decode kernel takes together.
pub(super) const HEADS_PER_TILE: usize = 8;

/// Tokens of a chunk of a context of `context` tokens; `kernels/attention/attention_decode.cu` computes the same.
pub fn chunk_tokens(context: usize) -> usize {
    CHUNK_TOKENS * context.div_ceil(CHUNK_TOKENS * MAX_CHUNKS)
}

/// Chunks of a context of `context` tokens.
pub fn chunks(context: usize) -> usize {
    if context == 0 { 0 } else { context.div_ceil(chunk_tokens(context)) }
}

/// Bytes of the buffer for what chunks hand to the merge: for each item and q head `head_dim + 4` floats.
pub fn partial_bytes(max_items: usize, shape: &AttentionShape) -> usize {
    max_items * shape.q_heads * (shape.head_dim + 4) * size_of::<f32>()
}

/// Bytes of the counters of finished chunks: one for each row and tile of q heads.
pub fn counter_bytes(max_rows: usize, shape: &AttentionShape) -> usize {
    max_rows * shape.kv_heads * shape.head_tiles() * size_of::<u32>()
}

/// Queries of the tiles of the prefill kernels.
pub(super) const TILE_QUERIES: [usize; 2] = [64, 128];

/// Tokens of a step up to which tiles are small: larger ones would leave multiprocessors idle.
const SMALL_STEP_TOKENS: usize = 640;

/// Queries of a tile in a step of so many tokens.
pub fn tile_queries(head_dim: usize, step_tokens: usize) -> usize {
    let [small, large] = TILE_QUERIES;
    if head_dim == 256 || step_tokens <= SMALL_STEP_TOKENS { small } else { large }
}

/// The work of a step, in buffers that are used again.
#[derive(Clone, Debug, Default)]
pub struct AttentionPlan {
    /// `(row, chunk)` of the rows with one query, the longest chunks first, so that none is left alone at the end.
    pub items: Vec<[u32; 2]>,
    /// Items of the rows before each row, `[rows]`: where its partial results are.
    pub first_item: Vec<u32>,
    /// `(row, first query)` of the rows with more queries, those that see the most tokens first.
    pub tiles: Vec<[u32; 2]>,
}

impl AttentionPlan {
    /// The most items of `rows` rows of at most `max_context` tokens: the grid bound of a graph.
    pub fn max_items(rows: usize, max_context: usize) -> usize {
        rows * max_context.div_ceil(CHUNK_TOKENS).min(MAX_CHUNKS)
    }

    /// Plans a step of rows with `context_lens` tokens in the cache, `q_lens` of them new, in tiles of `tile_queries`. A
    /// row without queries is padding and gets no work.
    ///
    /// # Panics
    /// If the lengths differ, or a row has more queries than tokens.
    pub fn fill(&mut self, context_lens: &[u32], q_lens: &[u32], tile_queries: usize) {
        assert_eq!(context_lens.len(), q_lens.len(), "a row has a context and queries");
        self.items.clear();
        self.first_item.clear();
        self.tiles.clear();
        let mut items = 0;
        for (row, (&context, &queries)) in context_lens.iter().zip(q_lens).enumerate() {
            assert!(queries <= context, "a context holds its new tokens");
            self.first_item.push(items);
            if queries == 1 {
                items += chunks(context as usize) as u32;
            } else {
                let starts = (0..queries).step_by(tile_queries);
                self.tiles.extend(starts.map(|first| [row as u32, first]));
            }
        }
        let decodes = || (0_u32..).zip(context_lens.iter().zip(q_lens)).filter(|(_, (_, queries))| **queries == 1);
        let long = CHUNK_TOKENS * MAX_CHUNKS;
        for pass in [Pass::LongChunks, Pass::ShortChunks, Pass::Tails] {
            for (row, (&context, _)) in decodes() {
                let context = context as usize;
                let whole = if context == 0 { 0 } else { context / chunk_tokens(context) };
                let range = match pass {
                    Pass::LongChunks if context > long => 0..whole,
                    Pass::ShortChunks if context <= long => 0..whole,
                    Pass::Tails => whole..chunks(context),
                    _ => continue,
                };
                self.items.extend(range.map(|chunk| [row, chunk as u32]));
            }
        }
        let last_seen = |&[row, first]: &[u32; 2]| {
            let (context, queries) = (context_lens[row as usize], q_lens[row as usize]);
            context - queries + queries.min(first + tile_queries as u32)
        };
        self.tiles.sort_by_key(|tile| std::cmp::Reverse(last_seen(tile)));
    }
}

/// Items of one size go together.
#[derive(Clone, Copy)]
enum Pass {
    LongChunks,
    ShortChunks,
    Tails,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_depend_on_the_context_alone_and_are_at_most_32() {
        let cases = [(1, 256, 1), (256, 256, 1), (257, 256, 2), (8192, 256, 32), (8193, 512, 17), (131_072, 4096, 32)];
        for (context, tokens, count) in cases {
            assert_eq!((chunk_tokens(context), chunks(context)), (tokens, count), "{context}");
        }
        assert_eq!(chunks(0), 0);
        for context in (0..40_000).step_by(7) {
            assert!(chunks(context) <= AttentionPlan::max_items(1, context), "{context}");
        }
    }

    #[test]
    fn each_chunk_of_each_single_query_is_an_item_once_long_ones_first() {
        let (contexts, queries) = ([300, 9000, 0, 40, 256, 700], [1, 1, 0, 40, 1, 1]);
        let mut plan = AttentionPlan::default();
        plan.fill(&contexts, &queries, 128);
        plan.fill(&contexts, &queries, 128);
        assert_eq!(plan.first_item, [0, 2, 20, 20, 20, 21]);
        assert_eq!(plan.items.len(), 24);
        assert!(plan.items[..17].iter().all(|&[row, _]| row == 1), "chunks of 512 tokens first");
        assert_eq!(plan.items[17..21], [[0, 0], [4, 0], [5, 0], [5, 1]]);
        assert_eq!(plan.items[21..], [[0, 1], [1, 17], [5, 2]]);
        let mut slots: Vec<u32> =
            plan.items.iter().map(|&[row, chunk]| plan.first_item[row as usize] + chunk).collect();
        slots.sort_unstable();
        assert!(slots.into_iter().eq(0..24), "partial results have places of their own");
    }

    #[test]
    fn tiles_cover_all_queries_the_costliest_first() {
        let mut plan = AttentionPlan::default();
        plan.fill(&[300, 5, 1, 1000], &[300, 2, 1, 130], 128);
        assert_eq!(plan.tiles, [[3, 128], [3, 0], [0, 256], [0, 128], [0, 0], [1, 0]]);
        assert_eq!(plan.items, [[2, 0]]);
        plan.fill(&[130], &[130], 64);
        assert_eq!(plan.tiles, [[0, 128], [0, 64], [0, 0]]);
    }
}
