//! What is done to rows by themselves, beside the CPU's kernels on the same rounded inputs.

use half::{bf16, f16};

use super::gpu;
use crate::config::KvDType;
use crate::cpu::{Cpu, HeadShape, KvLayerMut, KvLayout, QkNorms, RopeLayout, RopeTable};
use crate::cuda::{CachePlanes, DType, DeviceTensor, ElementwiseKernels, RopeKernels, RopeShape, RopeWeights};

const TYPES: [DType; 2] = [DType::Bf16, DType::F16];

/// Uniform in -1..1 from a seed.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn kernels() -> ElementwiseKernels {
    ElementwiseKernels::load(gpu()).expect("our kernels are in this build")
}

fn to_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
    }
}

fn to_floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        DType::Bf16 => pairs.map(|pair| bf16::from_ne_bytes(pair).to_f32()).collect(),
        DType::F16 => pairs.map(|pair| f16::from_ne_bytes(pair).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|word| f32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect(),
    }
}

/// `values` on the GPU, and as they are there after rounding.
fn put(rows: usize, values: &[f32], dtype: DType) -> (DeviceTensor, Vec<f32>) {
    let tensor = gpu().empty(rows, values.len() / rows, dtype, "a test").expect("room");
    let bytes = to_bytes(values, dtype);
    gpu().upload(&tensor, &bytes).expect("it fits");
    (tensor, to_floats(&bytes, dtype))
}

fn put_ids(ids: &[u32]) -> DeviceTensor {
    let tensor = gpu().empty(1, ids.len(), DType::U32, "a test").expect("room");
    gpu().upload(&tensor, &ids.iter().flat_map(|id| id.to_ne_bytes()).collect::<Vec<u8>>()).expect("it fits");
    tensor
}

/// A tensor of NaN.
fn poisoned(rows: usize, columns: usize, dtype: DType) -> DeviceTensor {
    let tensor = gpu().empty(rows, columns, dtype, "a test").expect("room");
    gpu().upload(&tensor, &vec![0xFF; tensor.bytes()]).expect("it fits");
    tensor
}

fn get(tensor: &DeviceTensor) -> Vec<f32> {
    to_floats(&gpu().download(tensor).expect("kernels ran"), tensor.dtype())
}

fn assert_close(found: &[f32], wanted: &[f32], dtype: DType, what: &str) {
    assert_eq!(found.len(), wanted.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let error = square(&mut found.iter().zip(wanted).map(|(a, b)| a - b)) / square(&mut wanted.iter().copied());
    let allowed = match dtype {
        DType::Bf16 => 3e-3,
        DType::F16 => 4e-4,
        _ => 1e-6,
    };
    assert!(error < allowed, "{what} of {}: {error}", dtype.suffix());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_norms_are_those_of_the_cpu() {
    let (cpu, kernels) = (Cpu::new(None), kernels());
    for (rows, width) in [(1, 8), (3, 576), (7, 4096), (2, 16_384), (5, 1001), (300, 136)] {
        for dtype in TYPES {
            let (residual, mut sum) = put(rows, &random(rows * width, 1), DType::F32);
            let (x, x_values) = put(rows, &random(rows * width, 2), dtype);
            let (weight, weights) = put(1, &random(width, 3), DType::F32);
            let dst = poisoned(rows, width, dtype);
            let mut wanted = vec![0.0; rows * width];
            kernels.rms_norm(gpu(), &residual, &weight, 1e-5, &dst).expect("launched");
            cpu.rms_norm(&sum, &weights, 1e-5, &mut wanted);
            assert_close(&get(&dst), &wanted, dtype, "rms_norm");
            kernels.rms_norm(gpu(), &x, &weight, 1e-5, &dst).expect("launched");
            cpu.rms_norm(&x_values, &weights, 1e-5, &mut wanted);
            assert_close(&get(&dst), &wanted, dtype, "rms_norm of the model's type");
            cpu.add_rms_norm(&mut sum, &x_values, &weights, 1e-5, &mut wanted);
            let picked = [rows as u32 - 1, 0];
            let gathered = poisoned(2, width, dtype);
            let ids = put_ids(&picked);
            kernels.gather_add_rms_norm(gpu(), &residual, &x, &ids, &weight, 1e-5, &gathered).expect("launched");
            let rows_wanted: Vec<f32> =
                picked.iter().flat_map(|row| wanted[*row as usize * width..][..width].to_vec()).collect();
            assert_close(&get(&gathered), &rows_wanted, dtype, "gather_add_rms_norm");
            kernels.add_rms_norm(gpu(), &residual, &x, &weight, 1e-5, &dst).expect("launched");
            assert_close(&get(&dst), &wanted, dtype, "add_rms_norm");
            assert_close(&get(&residual), &sum, DType::F32, "the residual");
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_rows_are_embedded_activated_and_biased() {
    let (cpu, kernels) = (Cpu::new(None), kernels());
    for (rows, width) in [(1, 8), (5, 1001), (33, 4104), (3, 14_336)] {
        for dtype in TYPES {
            let (gate_up, values) = put(rows, &random(rows * width * 2, 4), dtype);
            let (dst, mut wanted) = (poisoned(rows, width, dtype), vec![0.0; rows * width]);
            kernels.silu_mul(gpu(), &gate_up, &dst).expect("launched");
            cpu.silu_mul(&values, width, &mut wanted);
            assert_close(&get(&dst), &wanted, dtype, "silu_mul");
            let (bias, biases) = put(1, &random(width, 5), DType::F32);
            let before = get(&dst);
            kernels.add_bias(gpu(), &dst, &bias).expect("launched");
            let sums: Vec<f32> = before.iter().enumerate().map(|(i, v)| v + biases[i % width]).collect();
            assert_close(&get(&dst), &sums, dtype, "add_bias");
            let (table, entries) = put(rows, &random(rows * width, 6), dtype);
            let ids = put_ids(&[rows as u32 - 1, 1 << 31 | 1, u32::MAX >> 1, u32::MAX]);
            let residual = poisoned(4, width, DType::F32);
            kernels.embed(gpu(), &table, &ids, &put_ids(&[77, rows as u32 / 2]), &residual).expect("launched");
            let expected: Vec<f32> =
                [rows - 1, rows / 2, 0, 0].iter().flat_map(|row| entries[row * width..][..width].to_vec()).collect();
            assert_eq!(get(&residual), expected);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_heads_are_normed_rotated_and_cached() {
    let (cpu, rope_kernels) = (Cpu::new(None), RopeKernels::load(gpu()).expect("our kernels are in this build"));
    for (tokens, dim, rotary_dim, plain) in
        [(1, 128, 128, true), (37, 64, 64, false), (5, 96, 96, false), (19, 256, 64, true), (3, 80, 20, false)]
    {
        for (dtype, layout) in TYPES
            .into_iter()
            .zip([RopeLayout::Halves, RopeLayout::Interleaved])
            .chain([(DType::Bf16, RopeLayout::Interleaved), (DType::F16, RopeLayout::Halves)])
        {
            let heads = HeadShape { q_heads: 6, kv_heads: 3, head_dim: dim };
            let (row_len, blocks, half) = (heads.row_len(), 4, rotary_dim / 2);
            let (qkv, mut values) = put(tokens, &random(tokens * row_len, 7), dtype);
            let (bias, biases) = put(1, &random(row_len, 8), DType::F32);
            let ((q, q_weight), (k, k_weight)) =
                (put(1, &random(dim, 9), DType::F32), put(1, &random(dim, 10), DType::F32));
            let ((cos, cosines), (sin, sines)) =
                (put(50, &random(50 * half, 11), DType::F32), put(50, &random(50 * half, 12), DType::F32));
            let positions: Vec<u32> = (0..tokens as u32).map(|token| (token * 7 + 3) % 50).collect();
            let mut slots: Vec<u32> = (0..tokens as u32).map(|token| (token * 27 + 5) % 64).collect();
            let cache = || gpu().zeros(blocks * 3 * 16, dim, dtype, "a test").expect("room");
            let (keys, cached_values) = (cache(), cache());
            let shape = RopeShape {
                q_heads: 6,
                kv_heads: 3,
                head_dim: dim,
                rotary_dim,
                interleaved: layout == RopeLayout::Interleaved,
            };
            let weights = RopeWeights {
                cos: &cos,
                sin: &sin,
                bias: (!plain).then_some(&bias),
                norms: (!plain).then_some((&q, &k)),
                eps: 1e-6,
            };
            let (on_gpu, slots_on_gpu) = (put_ids(&positions), put_ids(&slots));
            let launched =
                rope_kernels.rope_and_cache(gpu(), &qkv, shape, weights, &on_gpu, &slots_on_gpu, &keys, &cached_values);
            launched.expect("launched");
            if !plain {
                values.iter_mut().enumerate().for_each(|(i, v)| *v += biases[i % row_len]);
            }
            let table = RopeTable::new(layout, rotary_dim, cosines, sines).expect("whole positions");
            let norms = (!plain).then_some(QkNorms { q: &q_weight, k: &k_weight, eps: 1e-6 });
            let kv_layout = KvLayout { kv_heads: 3, head_dim: dim, dtype: KvDType::F32, planes: Default::default() };
            let (mut k_cache, mut v_cache) =
                (vec![0; blocks * kv_layout.block_bytes()], vec![0; blocks * kv_layout.block_bytes()]);
            let kv = KvLayerMut { layout: kv_layout, keys: &mut k_cache, values: &mut v_cache };
            cpu.rope_and_cache(&mut values, heads, &positions, &slots, &table, norms, kv);
            let floats = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            let (k_cache, v_cache) = (floats(&k_cache), floats(&v_cache));
            let queries =
                |rows: &[f32]| -> Vec<f32> { rows.chunks(row_len).flat_map(|row| row[..6 * dim].to_vec()).collect() };
            assert_close(&queries(&get(&qkv)), &queries(&values), dtype, "q");
            // The CPU's keys lie with the slots of a block side by side.
            let turned: Vec<f32> = k_cache
                .chunks(16 * dim)
                .flat_map(|head| (0..16 * dim).map(|i| head[i % dim * 16 + i / dim]).collect::<Vec<_>>())
                .collect();
            assert_close(&get(&keys), &turned, dtype, "k");
            assert_close(&get(&cached_values), &v_cache, dtype, "v");
            slots.fill(u32::MAX);
            let before = get(&keys);
            let nowhere = put_ids(&slots);
            let launched =
                rope_kernels.rope_and_cache(gpu(), &qkv, shape, weights, &on_gpu, &nowhere, &keys, &cached_values);
            launched.expect("launched");
            assert_eq!(get(&keys), before);
        }
    }
}

/// What goes to a cache of fp8 is what goes to one of the model's type, to within half a step of four bits.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_heads_are_cached_as_fp8() {
    let kernels = RopeKernels::load(gpu()).expect("our kernels are in this build");
    let (tokens, dim) = (21, 128);
    for dtype in [DType::Bf16, DType::F16] {
        // Some beyond 448, which saturate.
        let numbers: Vec<f32> = random(tokens * 4 * dim, 21).iter().map(|x| x * x * x * 700.0).collect();
        let (cos, sin) = (put(50, &[1.0; 50 * 64], DType::F32).0, put(50, &[0.0; 50 * 64], DType::F32).0);
        let shape = RopeShape { q_heads: 2, kv_heads: 1, head_dim: dim, rotary_dim: dim, interleaved: false };
        let positions = put_ids(&(0..tokens as u32).collect::<Vec<_>>());
        let cached = |stored: DType| {
            let cache = || gpu().zeros(2 * 16, dim, stored, "a test").expect("room");
            let (qkv, keys, values) = (put(tokens, &numbers, dtype).0, cache(), cache());
            let weights = RopeWeights { cos: &cos, sin: &sin, bias: None, norms: None, eps: 0.0 };
            let launched = kernels.rope_and_cache(gpu(), &qkv, shape, weights, &positions, &positions, &keys, &values);
            launched.expect("launched");
            [keys, values]
        };
        for (exact, small) in cached(dtype).iter().zip(&cached(DType::Fp8)) {
            let bytes = gpu().download(small).expect("a copy");
            for (found, wanted) in bytes.iter().map(|bits| super::attention::from_fp8(*bits)).zip(get(exact)) {
                let wanted = wanted.clamp(-448.0, 448.0);
                let near = (found - wanted).abs() <= wanted.abs() / 15.0 + 2_f32.powi(-10);
                assert!(near, "{dtype:?}: {found} is not {wanted}");
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_random_weights_have_their_deviation_and_depend_on_the_seed() {
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        let (a, b) = (poisoned(1, 100_003, dtype), poisoned(1, 100_003, dtype));
        kernels().fill_random(gpu(), &a, 5, 0.02).expect("launched");
        kernels().fill_random(gpu(), &b, 6, 0.02).expect("launched");
        let (a, b) = (get(&a), get(&b));
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / a.len() as f64;
        let deviation = mean(&mut a.iter().map(|v| f64::from(*v).powi(2))).sqrt();
        let together = mean(&mut a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)));
        assert!((deviation / 0.02 - 1.0).abs() < 0.02, "{deviation}");
        assert!(mean(&mut a.iter().map(|v| f64::from(*v))).abs() < 4e-4 && together.abs() < 1e-5);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_elementwise() {
    let kernels = kernels();
    for rows in [1, 16, 256, 8192] {
        let (h, f) = (4096, 14_336);
        let (residual, x) = (poisoned(rows, h, DType::F32), poisoned(rows, h, DType::Bf16));
        let (weight, gate_up) = (poisoned(1, h, DType::F32), poisoned(rows, 2 * f, DType::Bf16));
        let (dst, wide) = (poisoned(rows, h, DType::Bf16), poisoned(rows, f, DType::Bf16));
        let norm = gpu().time(20, |gpu| kernels.add_rms_norm(gpu, &residual, &x, &weight, 1e-5, &dst));
        let silu = gpu().time(20, |gpu| kernels.silu_mul(gpu, &gate_up, &wide));
        for (name, us, bytes) in [("add_rms_norm", norm, 12 * rows * h), ("silu_mul", silu, 6 * rows * f)] {
            let us = us.expect("it runs");
            println!("{name:14} {rows:5} rows {us:8.1} us  {:6.0} GB/s", bytes as f64 / us / 1e3);
        }
    }
    let weights = poisoned(65_536, 16_384, DType::Bf16);
    let us = gpu().time(3, |gpu| kernels.fill_random(gpu, &weights, 1, 0.02)).expect("it runs");
    println!("fill_random    2 GiB {us:8.1} us  {:6.0} GB/s", weights.bytes() as f64 / us / 1e3);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_rows_are_summed_in_order_after_what_is_there() {
    for dtype in TYPES {
        for (rows, columns) in [(1, 8), (7, 300), (256, 64), (200, 4096)] {
            let (x, values) = put(rows, &random(rows * columns, 4), dtype);
            let sum = poisoned(1, columns, DType::F32);
            for goes_on in [false, true] {
                kernels().sum_rows(gpu(), &x, &sum, goes_on).expect("launched");
            }
            let found = to_floats(&gpu().download(&sum).expect("a copy"), DType::F32);
            let mut wanted = vec![0_f32; columns];
            for row in values.chunks(columns).chain(values.chunks(columns)) {
                wanted.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            assert_eq!(found, wanted, "{dtype:?} [{rows}, {columns}]");
        }
    }
}

/// Small enough for the race checker. Blocks of one pack to more than a block of threads copies at once, in caches of one
/// plane to many; pairs of which some follow from others, and some that name blocks outside.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_copies_of_blocks_are_those_of_the_host() {
    let kernels = kernels();
    for (planes, blocks, packs, count) in
        [(1, 2, 1, 3), (2, 7, 3, 9), (3, 16, 257, 20), (56, 5, 31, 6), (4, 40, 1024, 40)]
    {
        let block_bytes = 16 * packs;
        let bytes = |values: Vec<f32>| values.iter().map(|value| (value * 127.0) as i8 as u8).collect::<Vec<u8>>();
        // One row more than the planes have: nobody writes it.
        let mut wanted = bytes(random((planes * blocks + 1) * block_bytes, 41));
        let cache = gpu().empty(planes * blocks + 1, block_bytes, DType::U8, "a test").expect("room");
        gpu().upload(&cache, &wanted).expect("it fits");
        let at = |value: f32| ((value + 1.0) / 2.0 * blocks as f32) as u32;
        let drawn: Vec<u32> = random(2 * count, 42 + blocks as u64).into_iter().map(at).collect();
        let mut pairs: Vec<(u32, u32)> = drawn.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let outside = blocks as u32;
        pairs.extend([(0, 1), (1, 0), (outside, 0), (0, outside), (u32::MAX, 1), (1, u32::MAX)]);
        pairs.retain(|(from, to)| from != to);
        let device_pairs = put_ids(&pairs.iter().flat_map(|(from, to)| [*from, *to]).collect::<Vec<u32>>());
        let shape = CachePlanes { planes, blocks, block_bytes };
        kernels.copy_blocks_in_order(gpu(), &cache, shape, &pairs, &device_pairs).expect("launched");
        for (from, to) in pairs.iter().filter(|(from, to)| *from < outside && *to < outside) {
            for plane in 0..planes {
                let block = |index: u32| (plane * blocks + index as usize) * block_bytes;
                wanted.copy_within(block(*from)..block(*from) + block_bytes, block(*to));
            }
        }
        let found = gpu().download(&cache).expect("kernels ran");
        assert!(found == wanted, "{planes} planes of {blocks} blocks of {block_bytes} bytes, {pairs:?}");
        let too_many = CachePlanes { blocks: blocks + planes.max(2), ..shape };
        assert!(kernels.copy_blocks(gpu(), &cache, too_many, &device_pairs, 1).is_err(), "beyond the cache");
        let odd = CachePlanes { block_bytes: block_bytes - 8, ..shape };
        assert!(kernels.copy_blocks(gpu(), &cache, odd, &device_pairs, 1).is_err(), "no multiple of 16");
    }
}
