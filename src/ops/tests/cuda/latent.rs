//! Latent attention and what surrounds it, beside loops on the host and beside itself in other batches.

use super::gemm::{floats, random, relative_error, rounded, tensor};
use super::gpu;
use crate::cuda::{
    AttentionArrays, AttentionPlan, CudaError, DType, DeviceTensor, EXPANDED_DIM, ExpandedLatents, HeadKernels,
    HeadMatrices, HeadPart, LATENT_DIM, LATENT_ROTARY_DIM, LATENT_WIDTH, LatentHeads, LatentKernels, LatentRope,
    Splits,
};

const BLOCK: usize = 16;

fn kernels() -> LatentKernels {
    LatentKernels::load(gpu()).expect("our kernels are in this build")
}

fn put_u32(values: &[u32], spare: usize) -> DeviceTensor {
    let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes.extend(vec![0xFF; spare * 4]);
    tensor(1, values.len() + spare, DType::U32, &bytes)
}

fn put_f32(values: &[f32]) -> DeviceTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(1, values.len(), DType::F32, &bytes)
}

fn poisoned(rows: usize, columns: usize, dtype: DType) -> DeviceTensor {
    tensor(rows, columns, dtype, &vec![0xFF; rows * columns * dtype.size()])
}

/// A row: its tokens in the cache and how many of them are new.
type Lens = (usize, usize);

/// Rows over one cache, on both sides. Slots that belong to no token hold no number.
struct Rows {
    heads: usize,
    dtype: DType,
    lens: Vec<Lens>,
    tables: Vec<Vec<u32>>,
    q: Vec<f32>,
    q_bytes: Vec<u8>,
    latents: Vec<f32>,
    device_latents: DeviceTensor,
}

impl Rows {
    fn new(heads: usize, lens: &[Lens], dtype: DType) -> Self {
        let blocks: usize = lens.iter().map(|(context, _)| context.div_ceil(BLOCK)).sum::<usize>() + 1;
        // Every second block from the end, then the others: no table rises.
        let mut ids = (0..blocks as u32).rev().step_by(2).chain((0..blocks as u32 - 1).rev().step_by(2));
        let mut latents = vec![f32::NAN; blocks * BLOCK * LATENT_WIDTH];
        let mut tables = Vec::new();
        for (row, (context, _)) in lens.iter().enumerate() {
            let table: Vec<u32> = ids.by_ref().take(context.div_ceil(BLOCK)).collect();
            let values = rounded(&random(context * LATENT_WIDTH, row as u64 + 9), dtype).1;
            for (token, values) in values.chunks(LATENT_WIDTH).enumerate() {
                let slot = table[token / BLOCK] as usize * BLOCK + token % BLOCK;
                latents[slot * LATENT_WIDTH..][..LATENT_WIDTH].copy_from_slice(values);
            }
            tables.push(table);
        }
        let device_latents = tensor(blocks * BLOCK, LATENT_WIDTH, dtype, &rounded(&latents, dtype).0);
        let tokens: usize = lens.iter().map(|(_, queries)| queries).sum();
        let (q_bytes, q) = rounded(&random(tokens * heads * LATENT_WIDTH, 2), dtype);
        Self { heads, dtype, lens: lens.to_vec(), tables, q, q_bytes, latents, device_latents }
    }

    fn shape(&self) -> LatentHeads {
        LatentHeads { heads: self.heads, scale: 0.1 }
    }

    fn first_token(&self, row: usize) -> usize {
        self.lens[..row].iter().map(|(_, queries)| queries).sum()
    }

    /// `[tokens, heads * 512]`.
    fn expected(&self) -> Vec<f32> {
        let mut out = Vec::new();
        for (row, &(context, queries)) in self.lens.iter().enumerate() {
            for query in 0..queries {
                let seen = context - queries + query + 1;
                let latent = |token: usize| {
                    let slot = self.tables[row][token / BLOCK] as usize * BLOCK + token % BLOCK;
                    &self.latents[slot * LATENT_WIDTH..][..LATENT_WIDTH]
                };
                for head in 0..self.heads {
                    let at = (self.first_token(row) + query) * self.heads + head;
                    let q = &self.q[at * LATENT_WIDTH..][..LATENT_WIDTH];
                    let dot = |token: usize| latent(token).iter().zip(q).map(|(a, b)| a * b).sum::<f32>();
                    let scores: Vec<f32> = (0..seen).map(|token| dot(token) * self.shape().scale).collect();
                    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let weights: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
                    let sum: f32 = weights.iter().sum();
                    let mut value = vec![0.0; LATENT_DIM];
                    for (token, weight) in weights.iter().enumerate() {
                        value.iter_mut().zip(latent(token)).for_each(|(value, x)| *value += weight / sum * x);
                    }
                    out.extend(value);
                }
            }
        }
        out
    }

    /// The arrays of `rows`, with tiles of `tile_queries` and room for some more of everything.
    fn arrays(&self, rows: &[usize], tile_queries: usize) -> (AttentionArrays, AttentionPlan) {
        let (mut cu_seqlens, mut tables, mut offsets) = (vec![0], Vec::new(), vec![0]);
        for &row in rows {
            cu_seqlens.push(cu_seqlens.last().expect("one") + self.lens[row].1 as u32);
            tables.extend_from_slice(&self.tables[row]);
            offsets.push(tables.len() as u32);
        }
        let contexts: Vec<u32> = rows.iter().map(|row| self.lens[*row].0 as u32).collect();
        let queries: Vec<u32> = rows.iter().map(|row| self.lens[*row].1 as u32).collect();
        let mut plan = AttentionPlan::default();
        plan.fill(&contexts, &queries, tile_queries, Splits::NONE);
        let arrays = AttentionArrays {
            cu_seqlens_q: put_u32(&cu_seqlens, 0),
            context_lens: put_u32(&contexts, 0),
            block_tables: put_u32(&tables, 1),
            table_offsets: put_u32(&offsets, 0),
            items: put_u32(plan.items.as_flattened(), 6),
            first_item: put_u32(&plan.first_item, 0),
            item_count: put_u32(&[plan.items.len() as u32], 0),
            tiles: put_u32(plan.tiles.as_flattened(), 8),
        };
        (arrays, plan)
    }

    /// What the kernels make of `rows`, with tiles of `tile_queries`.
    fn run(&self, rows: &[usize], tile_queries: usize) -> Result<Vec<u8>, CudaError> {
        let token_bytes = self.heads * LATENT_WIDTH * 2;
        let mut q = Vec::new();
        for &row in rows {
            let queries = self.lens[row].1;
            q.extend_from_slice(&self.q_bytes[self.first_token(row) * token_bytes..][..queries * token_bytes]);
        }
        let tokens = q.len() / token_bytes;
        let (arrays, plan) = self.arrays(rows, tile_queries);
        let max_items = plan.items.len() + 3; // as in a graph, the bound is higher than the count
        let q = tensor(tokens, self.heads * LATENT_WIDTH, self.dtype, &q);
        let out = poisoned(tokens, self.heads * LATENT_DIM, self.dtype);
        let partials = poisoned(1, LatentKernels::partials(max_items, self.heads), DType::F32);
        let (kernels, latents) = (kernels(), &self.device_latents);
        kernels.decode(gpu(), self.shape(), &q, latents, &arrays, &partials, max_items, &out)?;
        // The spare tiles are of no row.
        kernels.prefill(gpu(), self.shape(), &q, latents, &arrays, plan.tiles.len() + 2, tile_queries, &out)?;
        gpu().download(&out)
    }
}

/// Rows of several queries over keys and values that were expanded, beside loops on the host. `from` is the first of them.
fn check_expanded(heads: usize, lens: &[Lens], from: usize, dtype: DType) -> Result<(), CudaError> {
    const KEY: usize = EXPANDED_DIM + LATENT_ROTARY_DIM;
    let kernels = kernels();
    let rows = Rows::new(heads, lens, dtype);
    let (arrays, plan) = rows.arrays(&(0..lens.len()).collect::<Vec<_>>(), 128);
    let first_block: usize = rows.tables[..from].iter().map(Vec::len).sum();
    let listed: Vec<u32> = rows.tables[from..].concat();
    let slots = listed.len() * BLOCK;

    let plain = poisoned(slots, LATENT_DIM, dtype);
    let rotated = poisoned(slots, LATENT_ROTARY_DIM, dtype);
    kernels.gather(gpu(), &rows.device_latents, &arrays, first_block, [&plain, &rotated])?;
    let (found_plain, found_rotated) =
        (floats(&gpu().download(&plain)?, dtype), floats(&gpu().download(&rotated)?, dtype));
    for slot in 0..slots {
        let at = listed[slot / BLOCK] as usize * BLOCK + slot % BLOCK;
        let (plain, rotated) = rows.latents[at * LATENT_WIDTH..][..LATENT_WIDTH].split_at(LATENT_DIM);
        let is_same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
        assert!(is_same(plain, &found_plain[slot * LATENT_DIM..][..LATENT_DIM]), "slot {slot}");
        assert!(is_same(rotated, &found_rotated[slot * LATENT_ROTARY_DIM..][..LATENT_ROTARY_DIM]), "slot {slot}");
    }

    // Keys and values of slots without a token are no numbers, as what latents without a number are expanded to.
    let each = 2 * EXPANDED_DIM;
    let mut kv = rounded(&random(slots * heads * each, 5), dtype).1;
    for slot in 0..slots {
        if found_plain[slot * LATENT_DIM].is_nan() {
            kv[slot * heads * each..][..heads * each].fill(f32::NAN);
        }
    }
    let tokens: usize = lens.iter().map(|(_, queries)| queries).sum();
    let (q_bytes, q) = rounded(&random(tokens * heads * KEY, 6), dtype);
    let device_q = tensor(tokens, heads * KEY, dtype, &q_bytes);
    let out = poisoned(tokens, heads * EXPANDED_DIM, dtype);
    // All but the last head at once, then that.
    for (first_head, count) in [(0, heads - 1), (heads - 1, 1)] {
        let columns = first_head * each..(first_head + count) * each;
        let own: Vec<f32> = kv.chunks(heads * each).flat_map(|row| row[columns.clone()].to_vec()).collect();
        let device_kv = tensor(slots, count * each, dtype, &rounded(&own, dtype).0);
        let expanded = ExpandedLatents { kv: &device_kv, rotated: &rotated, first_block, first_head };
        let tiles = plan.tiles.len() + 2; // the spare ones are of no row
        kernels.prefill_expanded(gpu(), rows.shape(), &device_q, expanded, &arrays, tiles, &out)?;
    }

    let found = floats(&gpu().download(&out)?, dtype);
    let (mut values, mut expected) = (Vec::new(), Vec::new());
    for (row, &(context, queries)) in lens.iter().enumerate().skip(from) {
        let first_slot = rows.tables[from..row].iter().map(Vec::len).sum::<usize>() * BLOCK;
        for (query, head) in (0..queries).flat_map(|query| (0..heads).map(move |head| (query, head))) {
            let at = (rows.first_token(row) + query) * heads + head;
            let (plain, turned) = q[at * KEY..][..KEY].split_at(EXPANDED_DIM);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let part = |slot: usize, from: usize| &kv[(slot * heads + head) * each + from..][..EXPANDED_DIM];
            let score = |slot: usize| {
                let rotated = &found_rotated[slot * LATENT_ROTARY_DIM..][..LATENT_ROTARY_DIM];
                (dot(plain, part(slot, 0)) + dot(turned, rotated)) * rows.shape().scale
            };
            let seen = first_slot..first_slot + context - queries + query + 1;
            let scores: Vec<f32> = seen.clone().map(score).collect();
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
            let sum: f32 = weights.iter().sum();
            let mut value = vec![0.0; EXPANDED_DIM];
            for (slot, weight) in seen.zip(weights) {
                let of_slot = part(slot, EXPANDED_DIM);
                value.iter_mut().zip(of_slot).for_each(|(value, x)| *value += weight / sum * x);
            }
            expected.extend(value);
            values.extend_from_slice(&found[at * EXPANDED_DIM..][..EXPANDED_DIM]);
        }
    }
    let error = relative_error(&values, &expected);
    assert!(error < if dtype == DType::Bf16 { 6e-3 } else { 1e-3 }, "{heads} heads, {dtype:?}: {error}");
    let before = rows.first_token(from) * heads * EXPANDED_DIM;
    assert!(found[..before].iter().all(|x| x.is_nan()), "rows of one query are written elsewhere");
    Ok(())
}

/// The kernel is Hopper's own: elsewhere latents are not expanded.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_expanded_latents_are_attended_to_as_defined() -> Result<(), CudaError> {
    if !kernels().expands(EXPANDED_DIM, EXPANDED_DIM, 128) {
        return Ok(());
    }
    for dtype in [DType::Bf16, DType::F16] {
        check_expanded(3, &[(20, 1), (300, 1), (2, 2), (33, 33), (300, 70), (130, 130), (400, 257)], 2, dtype)?;
        check_expanded(16, &[(128, 128), (129, 3)], 0, dtype)?;
    }
    Ok(())
}

/// Small enough for the race checker.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_expanded_latents() -> Result<(), CudaError> {
    if !kernels().expands(EXPANDED_DIM, EXPANDED_DIM, 128) {
        return Ok(());
    }
    check_expanded(2, &[(17, 1), (160, 140)], 1, DType::Bf16)
}

const LENS: [Lens; 10] =
    [(1, 1), (16, 1), (17, 1), (257, 1), (700, 1), (2, 2), (33, 33), (300, 70), (70, 5), (130, 130)];

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_latent_attention_is_the_definitions() -> Result<(), CudaError> {
    for dtype in [DType::Bf16, DType::F16] {
        for heads in [1, 16, 20, 40] {
            let rows = Rows::new(heads, &LENS, dtype);
            let all: Vec<usize> = (0..LENS.len()).collect();
            let found = floats(&rows.run(&all, 128)?, dtype);
            let error = relative_error(&found, &rows.expected());
            let limit = if dtype == DType::Bf16 { 6e-3 } else { 1e-3 };
            assert!(error < limit, "{heads} heads, {dtype:?}: {error}");
        }
    }
    Ok(())
}

/// Small enough for the race checker: a tail, a merge of chunks, and a chunk of a prompt in tiles of both sizes.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_latent_attention() -> Result<(), CudaError> {
    let rows = Rows::new(4, &[(17, 1), (300, 1), (70, 33)], DType::Bf16);
    for tile_queries in [64, 128] {
        let error = relative_error(&floats(&rows.run(&[0, 1, 2], tile_queries)?, DType::Bf16), &rows.expected());
        assert!(error < 6e-3, "tiles of {tile_queries}: {error}");
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_latent_attention_of_a_row_does_not_depend_on_the_batch() -> Result<(), CudaError> {
    let rows = Rows::new(20, &LENS, DType::Bf16);
    let all = rows.run(&(0..LENS.len()).collect::<Vec<_>>(), 128)?;
    let token_bytes = 20 * LATENT_DIM * 2;
    for (row, (_, queries)) in LENS.iter().enumerate() {
        let alone = rows.run(&[row], 64)?;
        let there = &all[rows.first_token(row) * token_bytes..][..queries * token_bytes];
        assert!(alone == there, "row {row} is not the same alone");
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_latents_are_normed_rotated_and_cached() -> Result<(), CudaError> {
    let (tokens, heads, plain, rotary, dtype) = (37, 5, 24, 64, DType::Bf16);
    let (q_row, kv_row) = (heads * (plain + rotary) + 8, LATENT_WIDTH + 16);
    let (q_bytes, q) = rounded(&random(tokens * q_row, 1), dtype);
    let (kv_bytes, kv) = rounded(&random(tokens * kv_row, 2), dtype);
    let norm = random(LATENT_DIM, 3);
    let angles = random(100 * rotary / 2, 4);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|x| ((x * 3.0).cos(), (x * 3.0).sin())).unzip();
    let positions: Vec<u32> = (0..tokens as u32).map(|token| token * 13 % 99).collect();
    // One token is padding.
    let slots: Vec<u32> =
        (0..tokens as u32).map(|token| if token == 5 { u32::MAX } else { (token * 7 + 3) % 64 }).collect();
    for interleaved in [false, true] {
        let turn = |x: &[f32], position: u32, i: usize| {
            let (pair, first, a, b) = if interleaved {
                (i / 2, i.is_multiple_of(2), x[i / 2 * 2], x[i / 2 * 2 + 1])
            } else {
                (i % 32, i < 32, x[i % 32], x[i % 32 + 32])
            };
            let at = position as usize * rotary / 2 + pair;
            if first { a * cos[at] - b * sin[at] } else { b * cos[at] + a * sin[at] }
        };
        let device_q = tensor(tokens, q_row, dtype, &q_bytes);
        let device_kv = tensor(tokens, kv_row, dtype, &kv_bytes);
        let latents = poisoned(64, LATENT_WIDTH, dtype);
        let (device_norm, device_cos, device_sin) = (put_f32(&norm), put_f32(&cos), put_f32(&sin));
        let rope = LatentRope {
            heads,
            plain_dim: plain,
            norm: &device_norm,
            eps: 1e-6,
            cos: &device_cos,
            sin: &device_sin,
            interleaved,
        };
        let (device_positions, device_slots) = (put_u32(&positions, 0), put_u32(&slots, 0));
        kernels().rope_and_cache(gpu(), &device_q, &device_kv, rope, &device_positions, &device_slots, &latents)?;
        let found_q = floats(&gpu().download(&device_q)?, dtype);
        let found = floats(&gpu().download(&latents)?, dtype);
        let mut written = 0;
        for token in 0..tokens {
            let row = &q[token * q_row..][..q_row];
            for i in 0..q_row {
                let (head, element) = (i / (plain + rotary), i % (plain + rotary));
                let expected = if head < heads && element >= plain {
                    let start = head * (plain + rotary) + plain;
                    turn(&row[start..start + rotary], positions[token], element - plain)
                } else {
                    row[i]
                };
                let found = found_q[token * q_row + i];
                assert!((found - expected).abs() < 0.01, "q of token {token} at {i}: {found} is not {expected}");
            }
            let Some(cached) = found.chunks(LATENT_WIDTH).nth(slots[token] as usize) else { continue };
            written += 1;
            let row = &kv[token * kv_row..][..LATENT_WIDTH];
            let squares: f32 = row[..LATENT_DIM].iter().map(|x| x * x).sum();
            let scale = 1.0 / (squares / LATENT_DIM as f32 + 1e-6).sqrt();
            for (i, found) in cached.iter().enumerate() {
                let expected = if i < LATENT_DIM {
                    row[i] * scale * norm[i]
                } else {
                    turn(&row[LATENT_DIM..], positions[token], i - LATENT_DIM)
                };
                assert!((found - expected).abs() < 0.02, "latent of token {token} at {i}: {found} is not {expected}");
            }
        }
        assert_eq!(written, tokens - 1);
        let untouched = found.chunks(LATENT_WIDTH).filter(|row| row.iter().all(|x| x.is_nan())).count();
        assert_eq!(untouched, 64 - written, "padding writes nothing");
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_heads_have_a_matrix_each() -> Result<(), CudaError> {
    let kernels = HeadKernels::load(gpu())?;
    for dtype in [DType::Bf16, DType::F16] {
        for (heads, outputs, inputs, tail) in [(5, 136, 72, 8), (3, 64, 512, 0), (16, 512, 128, 64)] {
            for rows in [1, 8, 9, 16, 17, 130] {
                let (x_stride, y_stride) = (inputs + tail + 16, outputs + tail + 8);
                let (x_bytes, x) = rounded(&random(rows * (heads * x_stride + 8), 1), dtype);
                let (w_bytes, w) = rounded(&random(heads * outputs * inputs, 2), dtype);
                let device_x = tensor(rows, heads * x_stride + 8, dtype, &x_bytes);
                let device_w = tensor(heads * outputs, inputs, dtype, &w_bytes);
                let y = poisoned(rows, heads * y_stride, dtype);
                let from = HeadPart { rows: &device_x, first: 8, stride: x_stride };
                let to = HeadPart { rows: &y, first: 0, stride: y_stride };
                kernels.multiply(gpu(), heads, from, HeadMatrices::stacked(&device_w, heads), to, tail)?;
                let found = floats(&gpu().download(&y)?, dtype);
                let (mut products, mut expected) = (Vec::new(), Vec::new());
                for row in 0..rows {
                    for head in 0..heads {
                        let x = &x[row * (heads * x_stride + 8) + 8 + head * x_stride..][..inputs + tail];
                        let y = &found[(row * heads + head) * y_stride..][..y_stride];
                        let matrix = &w[head * outputs * inputs..][..outputs * inputs];
                        products.extend_from_slice(&y[..outputs]);
                        expected
                            .extend(matrix.chunks(inputs).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum::<f32>()));
                        assert_eq!(y[outputs..][..tail], x[inputs..], "row {row} head {head}: the tail");
                        assert!(y[outputs + tail..].iter().all(|x| x.is_nan()), "row {row} head {head}: wrote outside");
                    }
                }
                let error = relative_error(&products, &expected);
                let limit = if dtype == DType::Bf16 { 4e-3 } else { 6e-4 };
                assert!(error < limit, "{heads} x {outputs} x {inputs}, {rows} rows, {dtype:?}: {error}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_latent() -> Result<(), CudaError> {
    let kernels = kernels();
    println!("microseconds of latent attention (GB/s of latents for rows of one query, TFLOP/s for prompts)");
    for (heads, rows, context, queries) in [
        (16, 1, 768, 1),
        (16, 32, 768, 1),
        (16, 128, 768, 1),
        (16, 1, 32768, 1),
        (128, 32, 4096, 1),
        (16, 1, 4096, 4096),
    ] {
        let blocks = rows * context / BLOCK;
        let latents = gpu().zeros(blocks * BLOCK, LATENT_WIDTH, DType::Bf16, "a test")?;
        let q = gpu().zeros(rows * queries, heads * LATENT_WIDTH, DType::Bf16, "a test")?;
        let out = gpu().zeros(rows * queries, heads * LATENT_DIM, DType::Bf16, "a test")?;
        let elementwise = crate::cuda::ElementwiseKernels::load(gpu())?;
        elementwise.fill_random(gpu(), &latents, 1, 1.0)?;
        elementwise.fill_random(gpu(), &q, 2, 1.0)?;
        let mut plan = AttentionPlan::default();
        plan.fill(&vec![context as u32; rows], &vec![queries as u32; rows], 128, Splits::NONE);
        let steps = |step: usize| -> Vec<u32> { (0..=rows).map(|row| (row * step) as u32).collect() };
        let arrays = AttentionArrays {
            cu_seqlens_q: put_u32(&steps(queries), 0),
            context_lens: put_u32(&vec![context as u32; rows], 0),
            block_tables: put_u32(&(0..blocks as u32).rev().collect::<Vec<_>>(), 0),
            table_offsets: put_u32(&steps(context / BLOCK), 0),
            items: put_u32(plan.items.as_flattened(), 2),
            first_item: put_u32(&plan.first_item, 0),
            item_count: put_u32(&[plan.items.len() as u32], 0),
            tiles: put_u32(plan.tiles.as_flattened(), 2),
        };
        let items = plan.items.len();
        let partials = gpu().zeros(1, LatentKernels::partials(items.max(1), heads), DType::F32, "a test")?;
        let shape = LatentHeads { heads, scale: 0.07 };
        let microseconds = gpu().time(8, |gpu| {
            if queries == 1 {
                kernels.decode(gpu, shape, &q, &latents, &arrays, &partials, items, &out)
            } else {
                kernels.prefill(gpu, shape, &q, &latents, &arrays, plan.tiles.len(), 128, &out)
            }
        })?;
        let rate = if queries == 1 {
            format!("{:.0} GB/s", (blocks * BLOCK * LATENT_WIDTH * 2) as f64 / microseconds / 1e3)
        } else {
            let pairs = (queries * (2 * context - queries + 1) / 2 * rows * heads) as f64;
            format!("{:.0} TFLOP/s", 2.0 * pairs * (LATENT_WIDTH + LATENT_DIM) as f64 / microseconds / 1e6)
        };
        println!("{heads:<4} heads, {rows} rows of {queries} at {context}: {microseconds:.1} ({rate})");
    }
    Ok(())
}
