//! Experts in block formats: each way against loops on the host over what the CPU's decoders read.

use super::experts::{Layer, Tokens, kernels as dense_kernels, put_f32, put_u32};
use super::gemm::{floats, random, relative_error, tensor};
use super::{gpu, quant};
use crate::cuda::{
    BlockFormat, BlockMatrix, CudaError, DType, DeviceTensor, DrawnBlocks, ExpertBlockKernels, ExpertBlocks,
    ExpertBlocksWay, ExpertBuffers, ExpertCall, ExpertRange, Unpacking,
};
use crate::ops::Format;

fn kernels() -> ExpertBlockKernels {
    ExpertBlockKernels::load(gpu(), dense_kernels()).expect("our kernels are in this build")
}

type Stored = (Format, BlockFormat, &'static [usize]);

fn stored(format: Format) -> Stored {
    quant::FORMATS.into_iter().find(|(other, ..)| *other == format).expect("the GPU reads it")
}

/// A layer of experts, on both sides.
struct BlockLayer {
    experts: usize,
    layer: Layer,
    /// Gate, up and down.
    matrices: [BlockMatrix; 3],
}

impl BlockLayer {
    /// `formats` of gate and up, and of down.
    fn new(formats: [Stored; 2], experts: usize, [hidden, inner]: [usize; 2], to: Tokens) -> Result<Self, CudaError> {
        let [gate, down] = formats;
        let mut gate_up = Vec::new();
        let mut values = [Vec::new(), Vec::new(), Vec::new()];
        let shapes = [(gate, inner, hidden), (gate, inner, hidden), (down, hidden, inner)];
        let mut matrices = Vec::new();
        for (which, ((format, block_format, scales), rows, columns)) in shapes.into_iter().enumerate() {
            let whole = BlockMatrix::empty(gpu(), block_format, experts * rows, columns)?;
            for expert in 0..experts {
                let matrix = quant::blocks(format, scales, rows, columns, 7 + (3 * expert + which) as u64);
                let bytes = matrix.bytes();
                let staging = tensor(rows, bytes.len() / rows, DType::U8, bytes);
                quant::kernels().repack(gpu(), &staging, &whole, expert * rows, rows)?;
                gpu().synchronize()?;
                values[which].extend(matrix.dequantize());
            }
            matrices.push(whole);
        }
        let [gates, ups, downs] = values;
        for (gate, up) in gates.chunks(inner * hidden).zip(ups.chunks(inner * hidden)) {
            gate_up.extend_from_slice(gate);
            gate_up.extend_from_slice(up);
        }
        let layer = Layer::new(experts, [gate_up, downs], inner, to);
        let matrices = matrices.try_into().expect("three of them");
        Ok(Self { experts, layer, matrices })
    }

    /// What `way` makes of the tokens from `from` on.
    fn run(
        &self,
        kernels: &ExpertBlockKernels,
        way: ExpertBlocksWay,
        from: usize,
        count: usize,
    ) -> Result<Vec<u8>, CudaError> {
        let [gate, up, down] = &self.matrices;
        let experts = ExpertBlocks { count: self.experts, gate, up, down };
        self.layer.run(from, count, |call| kernels.experts_by(way, gpu(), call, experts))
    }

    /// What is made of the first tokens where weights are made dense, `at_once` experts at a time.
    fn run_unpacked(&self, count: usize, at_once: usize, dtype: DType) -> Result<Vec<u8>, CudaError> {
        let [gate, up, down] = &self.matrices;
        let (h, f) = (gate.columns(), down.columns());
        let room = tensor(at_once * 2 * f, h, dtype, &vec![0xFF; at_once * 2 * f * h * 2]);
        let mut unpack_gate_up = |ExpertRange { first, count }: ExpertRange| {
            let dense = room.reshape(2 * count * f, h, dtype);
            quant::kernels().unpack_folded(gpu(), &gate.slice(first * f, count * f), &dense, f)?;
            let below = dense.slice(f, (2 * count - 1) * f);
            quant::kernels().unpack_folded(gpu(), &up.slice(first * f, count * f), &below, f)?;
            Ok(dense)
        };
        let mut unpack_down = |ExpertRange { first, count }: ExpertRange| {
            let dense = room.reshape(count * h, f, dtype);
            quant::kernels().unpack(gpu(), &down.slice(first * h, count * h), &dense)?;
            Ok(dense)
        };
        self.layer.run(0, count, |call| {
            let gate_up = Unpacking { at_once, unpack: &mut unpack_gate_up };
            let down = Unpacking { at_once, unpack: &mut unpack_down };
            dense_kernels().experts_unpacked(gpu(), call, self.experts, f, [gate_up, down])
        })
    }
}

/// What is wrong with any way of such a layer.
fn compare(
    kernels: &ExpertBlockKernels,
    formats: [Stored; 2],
    (experts, sizes): (usize, [usize; 2]),
    to: Tokens,
) -> Result<Vec<String>, CudaError> {
    let layer = BlockLayer::new(formats, experts, sizes, to)?;
    let expected = layer.layer.expected();
    let mut wrong = Vec::new();
    let by_way = |way| Ok((format!("{way:?}"), layer.run(kernels, way, 0, to.count)?));
    let unpacked = (to.count > 30).then(|| Ok(("unpacked".into(), layer.run_unpacked(to.count, 3, to.dtype)?)));
    for found in ExpertBlocksWay::ALL.into_iter().map(by_way).chain(unpacked) {
        let (way, found): (String, Vec<u8>) = found?;
        let found = floats(&found, to.dtype);
        let error = relative_error(&found, &expected);
        let limit = if to.dtype == DType::Bf16 { 1e-2 } else { 2e-3 };
        if error.is_nan() || error > limit {
            let (gate, down) = (formats[0].0, formats[1].0);
            let Tokens { count, top_k, dtype } = to;
            wrong.push(format!(
                "{way} {gate}, {down}: {top_k} of {experts} x {sizes:?}, {count} tokens of {dtype:?}: off by {error:.2e}"
            ));
        }
    }
    Ok(wrong)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_experts_in_blocks_are_the_sum_of_their_mlps() -> Result<(), CudaError> {
    let kernels = kernels();
    let mut wrong = Vec::new();
    for own in quant::FORMATS {
        let len = own.0.block_len().max(32);
        // Records of plain formats that are not whole, where blocks are short.
        let sizes = [3 * len, if len == 256 { 256 } else { 5 * len }];
        for dtype in [DType::Bf16, DType::F16] {
            for count in [1, 3, 9, 33, 200] {
                wrong.extend(compare(&kernels, [own, own], (7, sizes), Tokens { count, top_k: 3, dtype })?);
            }
        }
    }
    for (gate, down, sizes) in [
        (Format::Q4K, Format::Q6K, [512, 768]),
        (Format::Q4K, Format::Q5_0, [256, 352]),
        (Format::Q5K, Format::Q8_0, [768, 96]),
        (Format::Int4x128, Format::Int4x64, [384, 192]),
    ] {
        for count in [1, 8, 40, 300] {
            let to = Tokens { count, top_k: 6, dtype: DType::Bf16 };
            wrong.extend(compare(&kernels, [stored(gate), stored(down)], (12, sizes), to)?);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Small enough for the race checker: a format of each kind, one token, and enough for experts to be made dense.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_experts_in_blocks() -> Result<(), CudaError> {
    let kernels = kernels();
    let mut wrong = Vec::new();
    for (gate, down, sizes) in [(Format::Q4K, Format::Q6K, [256, 256]), (Format::Q8_0, Format::Q5_0, [96, 160])] {
        for count in [1, 33] {
            let to = Tokens { count, top_k: 2, dtype: DType::Bf16 };
            wrong.extend(compare(&kernels, [stored(gate), stored(down)], (4, sizes), to)?);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_tokens_experts_in_blocks_do_not_depend_on_the_batch() -> Result<(), CudaError> {
    let kernels = kernels();
    let to = Tokens { count: 80, top_k: 4, dtype: DType::Bf16 };
    let layer = BlockLayer::new([stored(Format::Q4K), stored(Format::Q6K)], 16, [512, 256], to)?;
    for way in ExpertBlocksWay::ALL {
        let all = layer.run(&kernels, way, 0, to.count)?;
        let row = all.len() / to.count;
        for token in [0, 3, 79] {
            let alone = layer.run(&kernels, way, token, 1)?;
            assert!(alone == all[token * row..][..row], "{way:?}: token {token} is not the same alone");
        }
    }
    Ok(())
}

/// Random experts of Q4_K_M: gate and up in Q4_K, down in `down`.
fn drawn(format: BlockFormat, rows: usize, columns: usize, seed: u64) -> Result<BlockMatrix, CudaError> {
    let whole = BlockMatrix::empty(gpu(), format, rows, columns)?;
    let piece = rows / 16;
    let blocks = piece * columns / format.block_len();
    let staging = gpu().empty(1, blocks * 256, DType::U8, "a test")?;
    let scales = match format {
        BlockFormat::Q6K => [(208, 0x1000), (208, 0x1000)],
        _ => [(0, 0x1000), (2, 0x1000)],
    };
    for from in 0..16 {
        quant::kernels().draw(
            gpu(),
            &staging,
            format,
            from * blocks,
            blocks,
            DrawnBlocks { seed, scales, mask: 0xFF },
        )?;
        quant::kernels().repack(gpu(), &staging, &whole, from * piece, piece)?;
    }
    gpu().synchronize()?;
    Ok(whole)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_experts_in_blocks() -> Result<(), CudaError> {
    let kernels = kernels();
    println!("microseconds of a layer's experts, evenly chosen: each way (GB/s of chosen weights, TFLOP/s)");
    let (experts, hidden, inner, top_k) = (128, 2048, 768, 8);
    for down_format in [BlockFormat::Q4K, BlockFormat::Q6K] {
        let gate = drawn(BlockFormat::Q4K, experts * inner, hidden, 1)?;
        let up = drawn(BlockFormat::Q4K, experts * inner, hidden, 2)?;
        let down = drawn(down_format, experts * hidden, inner, 3)?;
        let matrices = ExpertBlocks { count: experts, gate: &gate, up: &up, down: &down };
        let bits = 2.0 * 4.5 + if down_format == BlockFormat::Q4K { 4.5 } else { 6.5625 };
        for tokens in [1, 2, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192] {
            let fill = |seed: u64| -> Result<DeviceTensor, CudaError> {
                let tensor = gpu().empty(tokens, hidden, DType::Bf16, "a test")?;
                crate::cuda::ElementwiseKernels::load(gpu())?.fill_random(gpu(), &tensor, seed, 0.05)?;
                Ok(tensor)
            };
            let (x, dst, pairs) = (fill(3)?, fill(4)?, tokens * top_k);
            // Other experts each time, for few tokens to find none of theirs in L2.
            let turns = (0..4).map(|turn| {
                let ids: Vec<u32> = (0..pairs).map(|pair| ((pair + turn * 23) % experts) as u32).collect();
                put_u32(tokens, &ids)
            });
            let ids: Vec<DeviceTensor> = turns.collect();
            let weights = put_f32(tokens, &random(pairs, 5));
            let buffers = ExpertBuffers::new(gpu(), pairs, experts, hidden, inner, DType::Bf16)?;
            let chosen = ExpertBlocksWay::choose(tokens, pairs, experts);
            let mut line = format!("Q4_K, {down_format:?} tokens {tokens:<5} {chosen:?}:");
            for way in ExpertBlocksWay::ALL {
                if way == ExpertBlocksWay::Pairs && tokens > 64 || way == ExpertBlocksWay::Few && tokens > 1024 {
                    continue;
                }
                let mut turn = ids.iter().cycle();
                let microseconds = gpu().time(if tokens > 512 { 4 } else { 16 }, |gpu| {
                    let ids = turn.next().expect("endless");
                    let call = ExpertCall { x: &x, ids, weights: &weights, buffers: &buffers, dst: &dst };
                    kernels.experts_by(way, gpu, call, matrices)
                })?;
                let values = (hidden * inner) as f64;
                let rate = pairs.min(experts) as f64 * values * bits / 8.0 / microseconds / 1e3;
                let flops = 6.0 * pairs as f64 * values / microseconds / 1e6;
                line += &format!(" {way:?} {microseconds:.1} ({rate:.0}, {flops:.0})");
            }
            println!("{line}");
        }
    }
    Ok(())
}
