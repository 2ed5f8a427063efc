//! What the attention kernels of a step work through, as plain data. Knows no GPU.
//!
//! A row with one query is cut into items, chunks of its context: by that row alone, so its result is bit for bit the same in
//! any batch. A row with more is cut into tiles of queries; where these are too few to fill the card, their keys are divided
//! among several blocks by [`Splits`], and what is summed apart depends on the step then.

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

/// Parts of tiles whose sums a buffer of [`partial_bytes`] has room for: `head_dim + 8` floats for each query and q head.
pub fn part_slots(max_items: usize, shape: &AttentionShape) -> usize {
    let part_bytes = DIVIDED_TILE_QUERIES * shape.q_heads * (shape.head_dim + 8) * size_of::<f32>();
    partial_bytes(max_items, shape) / part_bytes
}

/// Bytes of the counters of finished chunks, one for each row and tile of q heads, or of finished parts, one for each slot
/// and q head.
pub fn counter_bytes(max_items: usize, max_rows: usize, shape: &AttentionShape) -> usize {
    let chunks = max_rows * shape.kv_heads * shape.head_tiles();
    chunks.max(part_slots(max_items, shape) * shape.q_heads) * size_of::<u32>()
}

/// Queries of the tiles of the prefill kernels.
pub(super) const TILE_QUERIES: [usize; 2] = [64, 128];

/// Queries of the tiles whose keys may be divided.
pub(super) const DIVIDED_TILE_QUERIES: usize = TILE_QUERIES[0];

/// Tokens of a step up to which tiles are small: larger ones would leave multiprocessors idle.
const SMALL_STEP_TOKENS: usize = 640;

/// Queries of a tile in a step of so many tokens.
pub fn tile_queries(head_dim: usize, step_tokens: usize) -> usize {
    let [small, large] = TILE_QUERIES;
    if head_dim == 256 || step_tokens <= SMALL_STEP_TOKENS { small } else { large }
}

/// The most parts of a tile.
const MAX_PARTS: usize = 16;

/// Fewest keys of a part: with fewer, merging costs what the parts win.
const MIN_PART_TOKENS: usize = 512;

/// How far tiles of queries may be divided over their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Tiles that the card works on at once, all their heads.
    pub tiles_at_once: usize,
    /// The most tiles of the step, each part counted.
    pub max_tiles: usize,
    /// Parts that have a place for what they leave to be merged.
    pub slots: usize,
}

impl Splits {
    /// No tile is divided: a query's bits depend on its row alone.
    pub const NONE: Self = Self { tiles_at_once: 0, max_tiles: 0, slots: 0 };

    /// The most parts of each of `tiles` tiles.
    fn parts(&self, tiles: usize) -> usize {
        let most = self.tiles_at_once.min(self.max_tiles).min(self.slots);
        most.checked_div(tiles).unwrap_or(1).clamp(1, MAX_PARTS)
    }
}

/// The work of a step, in buffers that are used again.
#[derive(Clone, Debug, Default)]
pub struct AttentionPlan {
    /// `(row, chunk)` of the rows with one query, the longest chunks first, so that none is left alone at the end.
    pub items: Vec<[u32; 2]>,
    /// Items of the rows before each row, `[rows]`: where its partial results are.
    pub first_item: Vec<u32>,
    /// `(row, first query, part << 16 | parts, slot)` of the rows with more queries, those that take longest first. Parts of a
    /// tile have slots one behind the other, of which the first is named.
    pub tiles: Vec<[u32; 4]>,
    /// The tiles before they are divided: `(row, first query)`.
    whole_tiles: Vec<[u32; 2]>,
}

impl AttentionPlan {
    /// The most items of `rows` rows of at most `max_context` tokens: the grid bound of a graph.
    pub fn max_items(rows: usize, max_context: usize) -> usize {
        rows * max_context.div_ceil(CHUNK_TOKENS).min(MAX_CHUNKS)
    }

    /// Plans a step of rows with `context_lens` tokens in the cache, `q_lens` of them new, in tiles of `tile_queries`, small
    /// ones divided as far as `splits` lets them. A row without queries is padding and gets no work.
    ///
    /// # Panics
    /// If the lengths differ, or a row has more queries than tokens.
    pub fn fill(&mut self, context_lens: &[u32], q_lens: &[u32], tile_queries: usize, splits: Splits) {
        assert_eq!(context_lens.len(), q_lens.len(), "a row has a context and queries");
        self.items.clear();
        self.first_item.clear();
        self.whole_tiles.clear();
        let mut items = 0;
        for (row, (&context, &queries)) in context_lens.iter().zip(q_lens).enumerate() {
            assert!(queries <= context, "a context holds its new tokens");
            self.first_item.push(items);
            if queries == 1 {
                items += chunks(context as usize) as u32;
            } else {
                let starts = (0..queries).step_by(tile_queries);
                self.whole_tiles.extend(starts.map(|first| [row as u32, first]));
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
        let last_seen = |row: u32, first: u32| {
            let (context, queries) = (context_lens[row as usize], q_lens[row as usize]);
            context - queries + queries.min(first + tile_queries as u32)
        };
        self.divide(if tile_queries == DIVIDED_TILE_QUERIES { splits } else { Splits::NONE }, last_seen);
        self.tiles.sort_by_key(|[row, first, part, _]| std::cmp::Reverse(last_seen(*row, *first) / (part & 0xffff)));
    }

    /// Divides the whole tiles, of which the tile of a row that begins with a query sees `last_seen` tokens.
    fn divide(&mut self, splits: Splits, last_seen: impl Fn(u32, u32) -> u32) {
        self.tiles.clear();
        let most = splits.parts(self.whole_tiles.len());
        let mut slot = 0;
        for &[row, first] in &self.whole_tiles {
            let parts = (last_seen(row, first) as usize / MIN_PART_TOKENS).clamp(1, most) as u32;
            self.tiles.extend((0..parts).map(|part| [row, first, part << 16 | parts, slot]));
            slot += if parts > 1 { parts } else { 0 };
        }
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
        plan.fill(&contexts, &queries, 128, Splits::NONE);
        plan.fill(&contexts, &queries, 128, Splits::NONE);
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
        plan.fill(&[300, 5, 1, 1000], &[300, 2, 1, 130], 128, Splits::NONE);
        let whole = |tiles: &[[u32; 2]]| tiles.iter().map(|[row, first]| [*row, *first, 1, 0]).collect::<Vec<_>>();
        assert_eq!(plan.tiles, whole(&[[3, 128], [3, 0], [0, 256], [0, 128], [0, 0], [1, 0]]));
        assert_eq!(plan.items, [[2, 0]]);
        plan.fill(&[130], &[130], 64, Splits::NONE);
        assert_eq!(plan.tiles, whole(&[[0, 128], [0, 64], [0, 0]]));
    }

    #[test]
    fn few_tiles_over_long_contexts_are_divided_as_far_as_there_is_room() {
        let splits = Splits { tiles_at_once: 22, max_tiles: 20, slots: 19 };
        let mut plan = AttentionPlan::default();
        let mut parts_of = |context: u32, queries: u32, splits: Splits| {
            plan.fill(&[9, context], &[1, queries], 64, splits);
            let mut slots = Vec::new();
            for &[row, first, part, slot] in &plan.tiles {
                assert!(row == 1 && first.is_multiple_of(64) && first < queries);
                assert!(part >> 16 < part & 0xffff, "a part of the parts");
                slots.extend((part & 0xffff > 1).then_some(slot + (part >> 16)));
            }
            slots.sort_unstable();
            assert!(slots.iter().copied().eq(0..slots.len() as u32) && slots.len() <= splits.slots.max(1), "own slots");
            plan.tiles.len()
        };
        assert_eq!(parts_of(4096, 256, splits), 16, "19 slots for 4 tiles");
        assert_eq!(parts_of(4096, 256, Splits { slots: 100, ..splits }), 20);
        assert_eq!(parts_of(4096, 256, Splits { slots: 100, max_tiles: 100, ..splits }), 20);
        assert_eq!(parts_of(1100, 256, splits), 6, "parts of 512 keys at least: two tiles see too few for two");
        assert_eq!(parts_of(300, 256, splits), 4, "a short context");
        assert_eq!(parts_of(4096, 1280, splits), 20, "enough tiles as they are");
        assert_eq!(parts_of(100_000, 2, Splits { tiles_at_once: 264, max_tiles: 99, slots: 99 }), MAX_PARTS);
        assert_eq!(parts_of(4096, 256, Splits::NONE), 4);
    }
}
