//! Attention over the paged cache, beside the CPU's and beside itself in other batches.

use super::gpu;
use crate::config::KvDType;
use crate::cpu::{Cpu, KvLayerRef};
use crate::cuda::{
    AttentionArrays, AttentionKernels, AttentionPlan, AttentionScratch, AttentionShape, AttentionTensors, DType,
    DeviceTensor, FP8_HEAD_DIMS, KvMaps, Splits, tile_queries,
};
use crate::ops::{AttentionRef, HeadShape, KvLayout};

/// A cache as the CPU's attention reads it.
fn layout(kv_heads: usize, head_dim: usize) -> KvLayout {
    KvLayout { kv_heads, head_dim, dtype: KvDType::F32, planes: Default::default() }
}

/// Tokens of a cache block.
const BLOCK: usize = 16;

/// A small generator with a fixed seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Even in -`limit` to `limit`, as `dtype` rounds it.
    fn float(&mut self, limit: f32, dtype: DType) -> f32 {
        round(((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * limit, dtype)
    }
}

fn round(x: f32, dtype: DType) -> f32 {
    if dtype == DType::Bf16 { half::bf16::from_f32(x).to_f32() } else { half::f16::from_f32(x).to_f32() }
}

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    if dtype == DType::Fp8 {
        let known: Vec<u32> = (0..=u8::MAX).map(|bits| from_fp8(bits).to_bits()).collect();
        let bits = |value: f32| known.iter().position(|known| *known == value.to_bits()).unwrap_or(0xff) as u8;
        return values.iter().map(|value| bits(*value)).collect();
    }
    let bits = |x: f32| {
        if dtype == DType::Bf16 { half::bf16::from_f32(x).to_bits() } else { half::f16::from_f32(x).to_bits() }
    };
    values.iter().flat_map(|&x| bits(x).to_le_bytes()).collect()
}

fn decode_floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let float = |bits: u16| {
        if dtype == DType::Bf16 { half::bf16::from_bits(bits).to_f32() } else { half::f16::from_bits(bits).to_f32() }
    };
    bytes.chunks_exact(2).map(|pair| float(u16::from_le_bytes([pair[0], pair[1]]))).collect()
}

fn u32_tensor(values: &[u32], spare: usize) -> DeviceTensor {
    let tensor = poisoned(1, values.len() + spare, DType::U32);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    gpu().upload(&tensor, &bytes).expect("it fits");
    tensor
}

/// A tensor full of bytes 0xFF: no number in any float, and no index.
fn poisoned(rows: usize, columns: usize, dtype: DType) -> DeviceTensor {
    let tensor = gpu().empty(rows, columns, dtype, "a test").expect("memory");
    gpu().upload(&tensor, &vec![0xFF; tensor.bytes()]).expect("it fits");
    tensor
}

/// The number that a byte of fp8 (e4m3) stands for.
pub(super) fn from_fp8(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size =
        if exponent == 0 { mantissa * 2_f32.powi(-9) } else { (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7) };
    if bits & 0x80 == 0 { size } else { -size }
}

/// A row of a batch: its cache blocks, its tokens in the cache, how many of them are new.
#[derive(Clone)]
struct Row {
    table: Vec<u32>,
    context: usize,
    queries: usize,
}

/// A cache of one layer, the same on both sides; slots that belong to no token hold no number.
struct Cache {
    layout: KvLayout,
    dtype: DType,
    cpu_keys: Vec<u8>,
    cpu_values: Vec<u8>,
    keys: DeviceTensor,
    values: DeviceTensor,
}

impl Cache {
    /// A cache of rows of these `(context, queries)`, their blocks in random order.
    fn new(random: &mut Random, layout: KvLayout, dtype: DType, lens: &[(usize, usize)]) -> (Self, Vec<Row>) {
        Self::of(random, layout, dtype, dtype, lens)
    }

    /// For activations of `dtype`, itself of `stored`.
    fn of(
        random: &mut Random,
        layout: KvLayout,
        dtype: DType,
        stored: DType,
        lens: &[(usize, usize)],
    ) -> (Self, Vec<Row>) {
        // Of fp8 any number below 1.
        let draw = |random: &mut Random| match stored {
            DType::Fp8 => from_fp8((random.next() & 0x80) as u8 | (random.next() % 0x38) as u8),
            _ => random.float(1.0, dtype),
        };
        let blocks: usize = 3 + lens.iter().map(|(context, _)| context.div_ceil(BLOCK)).sum::<usize>();
        let mut ids: Vec<u32> = (0..blocks as u32).collect();
        for i in (1..blocks).rev() {
            ids.swap(i, random.next() as usize % (i + 1));
        }
        let (heads, d) = (layout.kv_heads, layout.head_dim);
        let len = blocks * heads * BLOCK * d;
        let (mut cpu_keys, mut cpu_values) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        let (mut keys, mut values) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        let mut rows = Vec::new();
        for &(context, queries) in lens {
            let table = ids.split_off(ids.len() - context.div_ceil(BLOCK));
            for token in 0..context {
                let (block, slot) = (table[token / BLOCK] as usize, token % BLOCK);
                for start in (0..heads).map(|head| (block * heads + head) * BLOCK * d) {
                    for i in 0..d {
                        let (k, v) = (draw(random), draw(random));
                        cpu_keys[start + i * BLOCK + slot] = k;
                        keys[start + slot * d + i] = k;
                        cpu_values[start + slot * d + i] = v;
                        values[start + slot * d + i] = v;
                    }
                }
            }
            rows.push(Row { table, context, queries });
        }
        let device = |values: &[f32]| {
            let tensor = gpu().empty(blocks * heads * BLOCK, d, stored, "a test").expect("memory");
            gpu().upload(&tensor, &encode(values, stored)).expect("it fits");
            tensor
        };
        let (keys, values) = (device(&keys), device(&values));
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (cpu_keys, cpu_values) = (bytes(&cpu_keys), bytes(&cpu_values));
        (Self { layout, dtype, cpu_keys, cpu_values, keys, values }, rows)
    }
}

/// Rows that are computed together, with their qkv.
struct Batch<'a> {
    cache: &'a Cache,
    shape: AttentionShape,
    rows: Vec<Row>,
    qkv: Vec<f32>,
}

impl<'a> Batch<'a> {
    fn new(random: &mut Random, cache: &'a Cache, shape: AttentionShape, rows: &[Row]) -> Self {
        let tokens: usize = rows.iter().map(|row| row.queries).sum();
        let q = shape.q_heads * shape.head_dim;
        // k and v of the step are in the cache already: nothing may read them here.
        let mut qkv = vec![f32::NAN; tokens * shape.row_len()];
        for row in qkv.chunks_exact_mut(shape.row_len()) {
            row[..q].fill_with(|| random.float(4.0, cache.dtype));
        }
        Self { cache, shape, rows: rows.to_vec(), qkv }
    }

    /// The batch of row `index` alone.
    fn alone(&self, index: usize) -> Self {
        let before: usize = self.rows[..index].iter().map(|row| row.queries).sum();
        let len = self.shape.row_len();
        let qkv = self.qkv[before * len..(before + self.rows[index].queries) * len].to_vec();
        Self { cache: self.cache, shape: self.shape, rows: vec![self.rows[index].clone()], qkv }
    }

    fn tokens(&self) -> usize {
        self.qkv.len() / self.shape.row_len()
    }

    fn out_len(&self) -> usize {
        self.shape.q_heads * self.shape.head_dim
    }

    fn lens(&self) -> (Vec<u32>, Vec<u32>) {
        self.rows.iter().map(|row| (row.context as u32, row.queries as u32)).unzip()
    }

    /// `cu_seqlens_q`, block tables and their offsets.
    fn arrays(&self) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let (mut starts, mut tables, mut offsets) = (vec![0], Vec::new(), vec![0]);
        for row in &self.rows {
            starts.push(starts[starts.len() - 1] + row.queries as u32);
            tables.extend_from_slice(&row.table);
            offsets.push(tables.len() as u32);
        }
        (starts, tables, offsets)
    }

    fn on_cpu(&self) -> Vec<f32> {
        let (cu_seqlens_q, block_tables, block_table_offsets) = self.arrays();
        let inputs = AttentionRef {
            cu_seqlens_q: &cu_seqlens_q,
            context_lens: &self.lens().0,
            block_tables: &block_tables,
            block_table_offsets: &block_table_offsets,
        };
        let AttentionShape { q_heads, kv_heads, head_dim, scale, sliding_window } = self.shape;
        let heads = HeadShape { q_heads, kv_heads, head_dim };
        let Cache { layout, cpu_keys, cpu_values, .. } = self.cache;
        let kv = KvLayerRef { layout: *layout, keys: cpu_keys, values: cpu_values };
        let mut out = vec![f32::NAN; self.tokens() * self.out_len()];
        Cpu::new(None).attention(&self.qkv, heads, kv, inputs, scale, sliding_window, &mut out);
        out
    }

    fn on_gpu(&self, kernels: &AttentionKernels, tile_queries: usize) -> Device {
        self.divided(kernels, tile_queries, Splits::NONE)
    }

    /// In tiles that are divided as `splits` allows.
    fn divided(&self, kernels: &AttentionKernels, tile_queries: usize, splits: Splits) -> Device {
        let (context_lens, q_lens) = self.lens();
        let mut plan = AttentionPlan::default();
        plan.fill(&context_lens, &q_lens, tile_queries, splits);
        let (starts, tables, offsets) = self.arrays();
        let arrays = AttentionArrays {
            cu_seqlens_q: u32_tensor(&starts, 0),
            context_lens: u32_tensor(&context_lens, 0),
            block_tables: u32_tensor(&tables, 1),
            table_offsets: u32_tensor(&offsets, 0),
            items: u32_tensor(plan.items.as_flattened(), 8),
            first_item: u32_tensor(&plan.first_item, 0),
            item_count: u32_tensor(&[plan.items.len() as u32], 0),
            tiles: u32_tensor(plan.tiles.as_flattened(), 8),
        };
        let max_items = plan.items.len() + 3; // as in a graph, the bound is higher than the count
        let room = max_items + 72 * splits.slots;
        let scratch = AttentionScratch::new(gpu(), room, self.rows.len(), &self.shape).expect("memory");
        gpu().upload(&scratch.partials, &vec![0xFF; scratch.partials.bytes()]).expect("it fits");
        let qkv = poisoned(self.tokens(), self.shape.row_len(), self.cache.dtype);
        gpu().upload(&qkv, &encode(&self.qkv, self.cache.dtype)).expect("it fits");
        let out = poisoned(self.tokens(), self.out_len(), self.cache.dtype);
        let (keys, values) = (self.cache.keys.clone(), self.cache.values.clone());
        let (shape, kernels) = (self.shape, kernels.clone());
        let tiles = plan.tiles.len();
        let maps = kernels.maps(gpu(), self.cache.dtype, &keys, &values).expect("maps");
        Device { shape, kernels, arrays, scratch, max_items, tiles, tile_queries, qkv, keys, values, maps, out }
    }

    /// Fails unless each token's output is within the dtype's rounding of the CPU's.
    #[track_caller]
    fn assert_close(&self, found: &[u8], expected: &[f32], what: &str) {
        let found = decode_floats(found, self.cache.dtype);
        let limit = if self.cache.dtype == DType::Bf16 { 1e-2 } else { 2e-3 };
        let mut token = 0;
        for row in &self.rows {
            for query in 0..row.queries {
                let range = token * self.out_len()..(token + 1) * self.out_len();
                let (found, expected) = (&found[range.clone()], &expected[range]);
                let square = |x: f32| f64::from(x) * f64::from(x);
                let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
                let norm: f64 = expected.iter().map(|&x| square(x)).sum();
                let error = (error / norm).sqrt();
                assert!(
                    error < limit,
                    "{what}: query {query} of {} at context {} is off by {error:e}; {:?} window {:?}, {:?}",
                    row.queries,
                    row.context,
                    (self.shape.q_heads, self.shape.kv_heads, self.shape.head_dim),
                    self.shape.sliding_window,
                    self.cache.dtype,
                );
                token += 1;
            }
        }
    }
}

/// A batch on the GPU.
struct Device {
    shape: AttentionShape,
    kernels: AttentionKernels,
    arrays: AttentionArrays,
    scratch: AttentionScratch,
    max_items: usize,
    tiles: usize,
    tile_queries: usize,
    qkv: DeviceTensor,
    keys: DeviceTensor,
    values: DeviceTensor,
    maps: Option<KvMaps>,
    out: DeviceTensor,
}

impl Device {
    fn tensors(&self) -> AttentionTensors<'_> {
        let Self { qkv, keys, values, maps, out, .. } = self;
        AttentionTensors { qkv, keys, values, maps: maps.as_ref(), out }
    }

    fn decode(&self) {
        self.kernels
            .decode(gpu(), &self.shape, self.tensors(), &self.arrays, &self.scratch, self.max_items)
            .expect("a launch");
    }

    fn prefill(&self) {
        let (tensors, queries) = (self.tensors(), self.tile_queries);
        let tiles = [self.tiles, queries];
        self.kernels.prefill(gpu(), &self.shape, tensors, &self.arrays, &self.scratch, tiles).expect("a launch");
    }

    fn out(&self) -> Vec<u8> {
        gpu().download(&self.out).expect("the kernels ran")
    }

    fn counters_are_zero(&self) -> bool {
        gpu().download(&self.scratch.counters).expect("the kernels ran").iter().all(|&byte| byte == 0)
    }
}

fn shape(kv_heads: usize, group: usize, head_dim: usize, sliding_window: Option<u32>) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { q_heads: kv_heads * group, kv_heads, head_dim, scale, sliding_window }
}

/// Parts of every tile that sees enough.
const PARTS: Splits = Splits { tiles_at_once: 1000, max_tiles: 1000, slots: 100 };

const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];
const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];
const GROUPS: [usize; 8] = [1, 3, 4, 6, 7, 8, 12, 16];
const WINDOWS: [Option<u32>; 4] = [None, Some(1), Some(37), Some(700)];

/// Runs `lens` with every head size, dtype, group and window.
fn compare(seed: u64, lens: &[(usize, usize)], what: &str) {
    let kernels = AttentionKernels::load(gpu()).expect("kernels");
    let mut random = Random(seed);
    for head_dim in HEAD_DIMS {
        let has_fp8 = FP8_HEAD_DIMS.contains(&head_dim);
        let types = DTYPES.into_iter().flat_map(|dtype| [(dtype, dtype), (dtype, DType::Fp8)]);
        for (dtype, stored) in types.filter(|(_, stored)| has_fp8 || *stored != DType::Fp8) {
            let (cache, rows) = Cache::of(&mut random, layout(2, head_dim), dtype, stored, lens);
            for group in GROUPS {
                for window in WINDOWS {
                    let batch = Batch::new(&mut random, &cache, shape(2, group, head_dim, window), &rows);
                    let device = batch.on_gpu(&kernels, 64);
                    device.decode();
                    device.prefill();
                    let expected = batch.on_cpu();
                    batch.assert_close(&device.out(), &expected, what);
                    let divided = batch.divided(&kernels, 64, PARTS);
                    divided.decode();
                    divided.prefill();
                    batch.assert_close(&divided.out(), &expected, "divided");
                    assert!(divided.counters_are_zero(), "{what}: counters are ready for the next launch");
                    if head_dim < 256 {
                        let large = Device { maps: None, ..batch.on_gpu(&kernels, 128) };
                        large.decode();
                        large.prefill();
                        assert!(large.out() == device.out(), "{what}: the size of tiles changes bits");
                        // Hopper's own, where it is one.
                        let large = batch.on_gpu(&kernels, 128);
                        large.decode();
                        large.prefill();
                        batch.assert_close(&large.out(), &expected, "large tiles");
                    }
                }
            }
        }
    }
}

/// Small enough for the race checker: each kernel once, with a tail, a merge of chunks, and a chunk of a prompt.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_attention() {
    let kernels = AttentionKernels::load(gpu()).expect("kernels");
    let mut random = Random(35);
    for head_dim in HEAD_DIMS {
        let lens = [(300, 1), (70, 33), (1, 1), (1030, 3)];
        for stored in [DType::Bf16, DType::Fp8] {
            if stored == DType::Fp8 && !FP8_HEAD_DIMS.contains(&head_dim) {
                continue;
            }
            let (cache, rows) = Cache::of(&mut random, layout(1, head_dim), DType::Bf16, stored, &lens);
            let batch = Batch::new(&mut random, &cache, shape(1, 4, head_dim, None), &rows);
            for tile_queries in [64, 128].into_iter().filter(|queries| *queries == 64 || head_dim < 256) {
                let device = batch.on_gpu(&kernels, tile_queries);
                device.decode();
                device.prefill();
                batch.assert_close(&device.out(), &batch.on_cpu(), "for the race checker");
            }
            let divided = batch.divided(&kernels, 64, PARTS);
            divided.decode();
            divided.prefill();
            batch.assert_close(&divided.out(), &batch.on_cpu(), "divided, for the race checker");
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_attention_decode_matches_the_cpu() {
    let contexts = [1, 15, 16, 17, 255, 256, 257, 1000, 9000];
    let lens: Vec<(usize, usize)> = contexts.map(|context| (context, 1)).into();
    compare(30, &lens, "decode");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_attention_prefill_matches_the_cpu() {
    let lens =
        [(2, 2), (17, 17), (63, 2), (64, 64), (65, 65), (129, 129), (300, 257), (1000, 5), (1500, 130), (3000, 70)];
    compare(31, &lens, "prefill");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_attention_of_a_mixed_batch_matches_the_cpu() {
    let lens = [(300, 1), (70, 33), (0, 0), (8200, 1), (1, 1), (200, 129)];
    compare(32, &lens, "mixed");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_attention_kernels_write_their_own_rows_only() {
    let kernels = AttentionKernels::load(gpu()).expect("kernels");
    let mut random = Random(33);
    let lens = [(300, 1), (70, 33), (600, 1)];
    let (cache, rows) = Cache::new(&mut random, layout(3, 128), DType::Bf16, &lens);
    let batch = Batch::new(&mut random, &cache, shape(3, 5, 128, None), &rows);
    let row_bytes = batch.out_len() * 2;
    let untouched = |out: &[u8], token: usize| out[token * row_bytes..][..row_bytes].iter().all(|&byte| byte == 0xFF);
    let device = batch.on_gpu(&kernels, 128);
    device.decode();
    let out = device.out();
    assert!((0..35).all(|token| untouched(&out, token) == (1..34).contains(&token)), "decode");
    let device = batch.on_gpu(&kernels, 128);
    device.prefill();
    let out = device.out();
    assert!((0..35).all(|token| untouched(&out, token) != (1..34).contains(&token)), "prefill");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_attention_decode_is_the_same_alone_in_a_batch_and_again() {
    let kernels = AttentionKernels::load(gpu()).expect("kernels");
    let mut random = Random(34);
    let lens: Vec<(usize, usize)> = (0..40).map(|i| ([5, 640, 257, 3000, 9000][i % 5] + i, 1)).collect();
    for (group, window) in [(4, None), (12, Some(1000))] {
        let (cache, rows) = Cache::new(&mut random, layout(2, 128), DType::Bf16, &lens);
        let batch = Batch::new(&mut random, &cache, shape(2, group, 128, window), &rows);
        let device = batch.on_gpu(&kernels, 128);
        device.decode();
        let together = device.out();
        for _ in 0..20 {
            gpu().upload(&device.out, &vec![0xFF; device.out.bytes()]).expect("it fits");
            device.decode();
            assert!(device.out() == together, "again");
        }
        assert!(device.counters_are_zero(), "counters are ready for the next launch");
        for index in 0..rows.len() {
            let alone = batch.alone(index).on_gpu(&kernels, 128);
            alone.decode();
            let row_bytes = batch.out_len() * 2;
            assert!(alone.out() == together[index * row_bytes..][..row_bytes], "row {index} alone");
        }
    }
}

/// What parts leave is merged in their order, whichever comes last.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_attention_in_parts_is_the_same_again() {
    let kernels = AttentionKernels::load(gpu()).expect("kernels");
    let mut random = Random(36);
    let lens = [(4096, 200), (9000, 64), (2000, 1), (700, 130)];
    for window in [None, Some(1500)] {
        let (cache, rows) = Cache::new(&mut random, layout(2, 128), DType::Bf16, &lens);
        let batch = Batch::new(&mut random, &cache, shape(2, 6, 128, window), &rows);
        let device = batch.divided(&kernels, 64, PARTS);
        device.decode();
        device.prefill();
        let first = device.out();
        batch.assert_close(&first, &batch.on_cpu(), "in parts");
        for _ in 0..20 {
            gpu().upload(&device.out, &vec![0xFF; device.out.bytes()]).expect("it fits");
            device.decode();
            device.prefill();
            assert!(device.out() == first, "again");
        }
        assert!(device.counters_are_zero(), "counters are ready for the next launch");
    }
}

/// A batch over caches that are used in turn, so that the second-level cache holds none of them.
fn bench(q_heads: usize, kv_heads: usize, rows: usize, context: usize, queries: usize) -> (f64, f64) {
    let kernels = AttentionKernels::load(gpu()).expect("kernels");
    let shape = shape(kv_heads, q_heads / kv_heads, 128, None);
    let per_row = context.div_ceil(BLOCK);
    let blocks = rows * per_row;
    let layout = layout(kv_heads, 128);
    let kv_bytes = 2 * blocks * (layout.block_bytes() / 4) * DType::Bf16.size();
    let zeros = || gpu().zeros(blocks * kv_heads * BLOCK, 128, DType::Bf16, "a bench").expect("memory");
    let cache_and_maps = |_| {
        let (keys, values) = (zeros(), zeros());
        let maps = kernels.maps(gpu(), DType::Bf16, &keys, &values).expect("maps");
        (keys, values, maps)
    };
    let caches: Vec<_> = (0..(256 << 20) / kv_bytes + 1).map(cache_and_maps).collect();
    let table = |row: usize| (0..per_row).map(|i| ((i * rows + row) as u32 * 7919) % blocks as u32).collect();
    let rows: Vec<Row> = (0..rows).map(|row| Row { table: table(row), context, queries }).collect();
    let (keys, values, _) = caches[0].clone();
    let cache = Cache { layout, dtype: DType::Bf16, cpu_keys: vec![], cpu_values: vec![], keys, values };
    let batch = Batch::new(&mut Random(35), &cache, shape, &rows);
    let dtypes = [DType::Bf16, DType::Bf16];
    let splits = Splits { slots: 100, ..kernels.splits(&shape, dtypes, 0) };
    let device = batch.divided(&kernels, tile_queries(128, batch.tokens()), splits);
    let mut calls = 0;
    let microseconds = gpu().time(caches.len().max(20), |gpu| {
        calls += 1;
        let (keys, values, maps) = &caches[calls % caches.len()];
        let tensors = AttentionTensors { keys, values, maps: maps.as_ref(), ..device.tensors() };
        if device.tiles == 0 {
            device.kernels.decode(gpu, &shape, tensors, &device.arrays, &device.scratch, device.max_items)
        } else {
            let tiles = [device.tiles, device.tile_queries];
            device.kernels.prefill(gpu, &shape, tensors, &device.arrays, &device.scratch, tiles)
        }
    });
    (microseconds.expect("the kernels ran"), kv_bytes as f64)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_attention() {
    for (q_heads, kv_heads) in [(32, 8), (12, 2)] {
        for (rows, context) in [(1, 640), (32, 640), (256, 640), (1, 32_768)] {
            let (microseconds, kv_bytes) = bench(q_heads, kv_heads, rows, context, 1);
            println!(
                "decode {q_heads}/{kv_heads} x128, {rows} rows of {context}: {microseconds:.1} us, {:.0} GB/s",
                kv_bytes / microseconds / 1e3
            );
        }
        for queries in [64, 224, 512] {
            let (microseconds, _) = bench(q_heads, kv_heads, 1, 4096, queries);
            println!("prefill {q_heads}/{kv_heads} x128, the last {queries} of 4096 tokens: {microseconds:.1} us");
        }
        let (microseconds, _) = bench(q_heads, kv_heads, 1, 4096, 4096);
        let flops = 4.0 * 128.0 * q_heads as f64 * 4096.0 * 4097.0 / 2.0;
        println!(
            "prefill {q_heads}/{kv_heads} x128, 4096 tokens: {microseconds:.1} us, {:.0} TFLOP/s",
            flops / microseconds / 1e6
        );
    }
}
