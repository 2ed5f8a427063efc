//! Attention against a reference, and against itself in other batches, chunks and block tables.

use super::{Random, assert_close, assert_same_bits, cpus};
use crate::config::KvDType;
use crate::cpu::{AttentionRef, Cpu, HeadShape, KvLayerMut, KvLayerRef, KvLayout, RopeLayout, RopeTable};

/// One sequence: q, k and v of every token.
struct Sequence {
    heads: HeadShape,
    qkv: Vec<f32>,
}

impl Sequence {
    fn new(random: &mut Random, heads: HeadShape, len: usize) -> Self {
        Self { heads, qkv: random.floats(len * heads.row_len()).iter().map(|x| x * 2.0).collect() }
    }

    fn len(&self) -> usize {
        self.qkv.len() / self.heads.row_len()
    }

    fn rows(&self, from: usize, to: usize) -> &[f32] {
        &self.qkv[from * self.heads.row_len()..to * self.heads.row_len()]
    }

    /// Attention of tokens `from..`, naively.
    fn reference(&self, from: usize, scale: f32, window: usize) -> Vec<f64> {
        let HeadShape { q_heads, kv_heads, head_dim: d } = self.heads;
        let part = |t: usize, head: usize| &self.qkv[t * self.heads.row_len() + head * d..][..d];
        let mut out = Vec::new();
        for t in from..self.len() {
            for head in 0..q_heads {
                let kv = head / (q_heads / kv_heads);
                let seen = (t + 1).saturating_sub(window)..t + 1;
                let score = |s: usize| {
                    let k = part(s, q_heads + kv);
                    part(t, head).iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                        * f64::from(scale)
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let max = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let value = |i: usize| {
                    seen.clone()
                        .zip(&weights)
                        .map(|(s, w)| f64::from(part(s, q_heads + kv_heads + kv)[i]) * w)
                        .sum::<f64>()
                };
                out.extend((0..d).map(|i| value(i) / total));
            }
        }
        out
    }
}

/// A cache whose unused slots hold no number: all bits set is that in every type of float.
struct Cache {
    layout: KvLayout,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Cache {
    fn new(heads: HeadShape, blocks: usize, dtype: KvDType) -> Self {
        let layout = KvLayout { kv_heads: heads.kv_heads, head_dim: heads.head_dim, dtype, planes: Default::default() };
        let bytes = blocks * layout.block_bytes();
        Self { layout, keys: vec![0xff; bytes], values: vec![0xff; bytes] }
    }

    /// Writes tokens `from..to` of a sequence through its block table, unrotated.
    fn write(&mut self, cpu: &Cpu, sequence: &Sequence, from: usize, to: usize, table: &[u32]) {
        let rope = RopeTable::new(RopeLayout::Halves, 2, vec![1.0], vec![0.0]).expect("one position");
        let slots: Vec<u32> = (from..to).map(|t| table[t / 16] * 16 + t as u32 % 16).collect();
        let mut rows = sequence.rows(from, to).to_vec();
        let kv = KvLayerMut { layout: self.layout, keys: &mut self.keys, values: &mut self.values };
        cpu.rope_and_cache(&mut rows, sequence.heads, &vec![0; to - from], &slots, &rope, None, kv);
    }

    fn layer(&self) -> KvLayerRef<'_> {
        KvLayerRef { layout: self.layout, keys: &self.keys, values: &self.values }
    }
}

const SCALE: f32 = 0.3;

/// Types of the cache, and how far attention over them may be from the reference.
const TYPES: [(KvDType, f64); 4] =
    [(KvDType::F32, 1e-5), (KvDType::F16, 1e-2), (KvDType::Bf16, 8e-2), (KvDType::Int8, 8e-2)];

/// Attention of `(sequence, from, to, table)` together, the cache holding all tokens below `to`.
fn attend(cpu: &Cpu, cache: &Cache, batch: &[(&Sequence, usize, usize, &[u32])], window: Option<u32>) -> Vec<f32> {
    let heads = batch[0].0.heads;
    let mut qkv = Vec::new();
    let (mut cu_seqlens_q, mut context_lens, mut block_tables, mut block_table_offsets) =
        (vec![0], vec![], vec![], vec![0]);
    for &(sequence, from, to, table) in batch {
        qkv.extend_from_slice(sequence.rows(from, to));
        cu_seqlens_q.push((qkv.len() / heads.row_len()) as u32);
        context_lens.push(to as u32);
        block_tables.extend_from_slice(table);
        block_table_offsets.push(block_tables.len() as u32);
    }
    let inputs = AttentionRef {
        cu_seqlens_q: &cu_seqlens_q,
        context_lens: &context_lens,
        block_tables: &block_tables,
        block_table_offsets: &block_table_offsets,
    };
    let mut out = vec![f32::NAN; qkv.len() / heads.row_len() * heads.q_heads * heads.head_dim];
    cpu.attention(&qkv, heads, cache.layer(), inputs, SCALE, window, &mut out);
    out
}

/// Block ids 1, 2, .. or another order of them.
fn table(random: &mut Random, blocks: usize, shuffled: bool) -> Vec<u32> {
    let mut table: Vec<u32> = (1..=blocks as u32).collect();
    if shuffled {
        for i in (1..blocks).rev() {
            table.swap(i, random.next() as usize % (i + 1));
        }
    }
    table
}

#[test]
fn attention_matches_the_reference_whole_in_chunks_and_with_any_block_table() {
    let mut random = Random(20);
    let shapes = [(9, 3, 64), (4, 4, 8), (7, 1, 16), (5, 1, 24), (2, 1, 96), (8, 2, 128), (2, 2, 256)];
    for (i, (q_heads, kv_heads, head_dim)) in shapes.into_iter().enumerate() {
        let heads = HeadShape { q_heads, kv_heads, head_dim };
        let len = [5, 16, 17, 70, 100, 33, 50][i];
        for window in [None, Some(1), Some(20)] {
            let sequence = Sequence::new(&mut random, heads, len);
            let blocks = len.div_ceil(16);
            let straight = table(&mut random, blocks, false);
            let shuffled = table(&mut random, blocks, true);
            for (cpu, (dtype, tolerance)) in cpus(2).into_iter().flat_map(|cpu| {
                let cpu = std::rc::Rc::new(cpu);
                TYPES.map(|dtype| (cpu.clone(), dtype))
            }) {
                let what = format!("{} {dtype} {heads:?} {len} tokens, window {window:?}", cpu.simd());
                let mut cache = Cache::new(heads, blocks + 1, dtype);
                cache.write(&cpu, &sequence, 0, len, &straight);
                let whole = attend(&cpu, &cache, &[(&sequence, 0, len, &straight)], window);
                let expected = sequence.reference(0, SCALE, window.map_or(usize::MAX, |w| w as usize));
                assert_close(&what, &whole, &expected, tolerance);
                let mut cache = Cache::new(heads, blocks + 1, dtype);
                let (mut from, mut chunked) = (0, Vec::new());
                while from < len {
                    let to = (from + 1 + random.next() as usize % 20).min(len);
                    cache.write(&cpu, &sequence, from, to, &shuffled);
                    chunked.extend(attend(&cpu, &cache, &[(&sequence, from, to, &shuffled)], window));
                    from = to;
                }
                assert_same_bits(&what, &chunked, &whole);
            }
        }
    }
}

#[test]
fn long_contexts_are_the_same_alone_in_a_chunk_and_on_any_threads() {
    let mut random = Random(21);
    let heads = HeadShape { q_heads: 3, kv_heads: 1, head_dim: 16 };
    let len = 2500;
    let sequence = Sequence::new(&mut random, heads, len);
    let blocks = table(&mut random, len.div_ceil(16), true);
    for window in [None, Some(1100)] {
        for one in cpus(1) {
            let mut cache = Cache::new(heads, blocks.len() + 1, KvDType::F32);
            cache.write(&one, &sequence, 0, len, &blocks);
            let chunk = attend(&one, &cache, &[(&sequence, len - 9, len, &blocks)], window);
            let expected = sequence.reference(len - 9, SCALE, window.map_or(usize::MAX, |w| w as usize));
            assert_close("a chunk", &chunk, &expected, 1e-5);
            for many in cpus(2).into_iter().chain(cpus(5)).filter(|many| many.simd() == one.simd()) {
                let what = format!("{} threads, {}", many.threads(), many.simd());
                assert_same_bits(&what, &attend(&many, &cache, &[(&sequence, len - 9, len, &blocks)], window), &chunk);
                let last = attend(&many, &cache, &[(&sequence, len - 1, len, &blocks)], window);
                assert_same_bits(&what, &last, &chunk[8 * 48..]);
            }
        }
    }
}

#[test]
fn a_batch_of_prompts_and_single_tokens_is_each_alone() {
    let mut random = Random(22);
    let heads = HeadShape { q_heads: 4, kv_heads: 2, head_dim: 32 };
    let sequences: Vec<Sequence> = [40, 3, 17, 90].map(|len| Sequence::new(&mut random, heads, len)).into();
    let tables: [Vec<u32>; 4] = [vec![7, 2, 9], vec![0], vec![11, 4], vec![1, 3, 5, 6, 8, 10]];
    let starts = [0, 2, 16, 30];
    for (cpu, dtype) in cpus(3).into_iter().zip([KvDType::Int8, KvDType::F32, KvDType::F16]) {
        let mut cache = Cache::new(heads, 12, dtype);
        let mut batch: Vec<(&Sequence, usize, usize, &[u32])> = Vec::new();
        for ((sequence, table), from) in sequences.iter().zip(&tables).zip(starts) {
            cache.write(&cpu, sequence, 0, sequence.len(), table);
            batch.push((sequence, from, sequence.len(), table));
        }
        let together = attend(&cpu, &cache, &batch, None);
        let alone: Vec<f32> = batch.iter().flat_map(|&one| attend(&cpu, &cache, &[one], None)).collect();
        assert_same_bits(&format!("{}", cpu.simd()), &together, &alone);
    }
}
