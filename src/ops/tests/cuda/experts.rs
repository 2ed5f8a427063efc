//! Routes and experts: each way against loops on the host.

use super::gemm::{floats, random, relative_error, rounded, tensor};
use super::gpu;
use crate::cuda::{
    CudaError, DType, DeviceTensor, ExpertBuffers, ExpertCall, ExpertGroups, ExpertKernels, ExpertMatrices, ExpertsWay,
    RouteKernels, RouteShape,
};

pub(super) fn kernels() -> ExpertKernels {
    let route = RouteKernels::load(gpu()).expect("our kernels are in this build");
    ExpertKernels::load(gpu(), route).expect("our kernels are in this build")
}

pub(super) fn put_f32(rows: usize, values: &[f32]) -> DeviceTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(rows, values.len() / rows, DType::F32, &bytes)
}

pub(super) fn put_u32(rows: usize, values: &[u32]) -> DeviceTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(rows, values.len() / rows, DType::U32, &bytes)
}

pub(super) fn poisoned(rows: usize, columns: usize, dtype: DType) -> DeviceTensor {
    tensor(rows, columns, dtype, &vec![0xFF; rows * columns * dtype.size()])
}

pub(super) fn download(tensor: &DeviceTensor) -> Vec<u8> {
    gpu().download(tensor).expect("it was written")
}

/// Scores of one token without and with bias; the latter none outside its groups.
fn scores(logits: &[f32], bias: Option<&[f32]>, shape: RouteShape) -> (Vec<f32>, Vec<Option<f32>>) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|x| (x - highest).exp()).sum();
    let score = |x: &f32| if shape.sigmoid { 1.0 / (1.0 + (-x).exp()) } else { (x - highest).exp() / sum };
    let plain: Vec<f32> = logits.iter().map(score).collect();
    let biased: Vec<f32> = plain.iter().enumerate().map(|(e, x)| x + bias.map_or(0.0, |bias| bias[e])).collect();
    let Some(groups) = shape.groups else { return (plain, biased.into_iter().map(Some).collect()) };
    let size = logits.len() / groups.count;
    let mut order: Vec<(f32, usize)> = biased
        .chunks(size)
        .map(|group| {
            let mut group = group.to_vec();
            group.sort_by(|a, b| b.total_cmp(a));
            if groups.by_best_two { group[0] + group.get(1).unwrap_or(&0.0) } else { group[0] }
        })
        .zip(0..)
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let chosen: Vec<usize> = order[..groups.chosen].iter().map(|(_, group)| *group).collect();
    let limited = biased.iter().enumerate().map(|(e, x)| chosen.contains(&(e / size)).then_some(*x)).collect();
    (plain, limited)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_routes_take_the_best_experts() -> Result<(), CudaError> {
    let plain = RouteShape { top_k: 6, sigmoid: false, normalize: false, scale: 1.0, groups: None, even: false };
    let grouped = |count, chosen, by_best_two| Some(ExpertGroups { count, chosen, by_best_two });
    let cases = [
        (64, false, plain),
        (5, false, RouteShape { top_k: 5, normalize: true, ..plain }),
        (128, false, RouteShape { top_k: 8, normalize: true, ..plain }),
        (160, false, RouteShape { scale: 16.0, groups: grouped(8, 3, false), ..plain }),
        (
            256,
            true,
            RouteShape {
                top_k: 8,
                sigmoid: true,
                normalize: true,
                scale: 2.5,
                groups: grouped(8, 4, true),
                even: false,
            },
        ),
        (512, true, RouteShape { top_k: 16, sigmoid: true, ..plain }),
    ];
    let kernels = RouteKernels::load(gpu())?;
    for (experts, with_bias, shape) in cases {
        let tokens = 37;
        // In steps of 1/16: many are equal, and others differ by more than rounding.
        let logits: Vec<f32> = random(tokens * experts, 3).iter().map(|x| (x * 48.0).round() / 16.0).collect();
        let bias: Vec<f32> = random(experts, 5).iter().map(|x| x * 0.1).collect();
        let device_bias = with_bias.then(|| put_f32(1, &bias));
        let (ids, weights) = (poisoned(tokens, shape.top_k, DType::U32), poisoned(tokens, shape.top_k, DType::F32));
        kernels.route(gpu(), &put_f32(tokens, &logits), device_bias.as_ref(), shape, &ids, &weights)?;
        let (ids, weights) = (download(&ids), floats(&download(&weights), DType::F32));
        let ids: Vec<usize> =
            ids.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().expect("four")) as usize).collect();
        for (token, logits) in logits.chunks(experts).enumerate() {
            let (plain, limited) = scores(logits, with_bias.then_some(&bias[..]), shape);
            let mut order: Vec<usize> = (0..experts).filter(|e| limited[*e].is_some()).collect();
            order.sort_by(|a, b| limited[*b].expect("kept").total_cmp(&limited[*a].expect("kept")));
            let found = &ids[token * shape.top_k..][..shape.top_k];
            let sum: f32 = found.iter().map(|e| plain[*e]).sum();
            for (place, (&found, &expected)) in found.iter().zip(&order).enumerate() {
                let name = format!("token {token} place {place} of {experts} experts, {shape:?}");
                let close = |a: Option<f32>, b: Option<f32>| a.zip(b).is_some_and(|(a, b)| (a - b).abs() < 1e-6);
                assert!(
                    found == expected || with_bias && close(limited[found], limited[expected]),
                    "{name}: {found} is not {expected}"
                );
                let weight = plain[found] * shape.scale / if shape.normalize { sum } else { 1.0 };
                let found_weight = weights[token * shape.top_k + place];
                assert!((found_weight - weight).abs() <= 1e-4 * weight.abs(), "{name}: {found_weight} is not {weight}");
            }
        }
    }
    Ok(())
}

/// A layer's experts and a step's tokens, on the host.
pub(super) struct Layer {
    experts: usize,
    inner: usize,
    top_k: usize,
    dtype: DType,
    x: Vec<f32>,
    x_bytes: Vec<u8>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl Layer {
    /// Experts of `gate_up [experts, 2 f, h]` and `down [experts, h, f]`, for random tokens.
    pub(super) fn new(experts: usize, [gate_up, down]: [Vec<f32>; 2], inner: usize, to: Tokens) -> Self {
        let Tokens { count, top_k, dtype } = to;
        let hidden = down.len() / experts / inner;
        let (x_bytes, x) = rounded(&random(count * hidden, 1), dtype);
        // The first expert has most of the tokens, the last none.
        let choice = random(count, 4);
        let first = |token: usize| if choice[token] > 0.0 { 0 } else { (choice[token].abs() * 1e4) as usize };
        let ids =
            (0..count * top_k).map(|pair| ((first(pair / top_k) + pair % top_k) % (experts - 1)) as u32).collect();
        let weights = random(count * top_k, 6);
        Self { experts, inner, top_k, dtype, x, x_bytes, gate_up, down, ids, weights }
    }

    fn hidden(&self) -> usize {
        self.down.len() / self.experts / self.inner
    }

    pub(super) fn expected(&self) -> Vec<f32> {
        let (hidden, inner) = (self.hidden(), self.inner);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let mut out = vec![0.25; self.x.len()];
        for (pair, (&expert, &weight)) in self.ids.iter().zip(&self.weights).enumerate() {
            let token = pair / self.top_k;
            let x = &self.x[token * hidden..][..hidden];
            let matrix = &self.gate_up[expert as usize * 2 * inner * hidden..][..2 * inner * hidden];
            let act: Vec<f32> = (0..inner)
                .map(|i| {
                    let gate = dot(x, &matrix[i * hidden..][..hidden]);
                    let up = dot(x, &matrix[(inner + i) * hidden..][..hidden]);
                    gate / (1.0 + (-gate).exp()) * up * weight
                })
                .collect();
            let down = &self.down[expert as usize * hidden * inner..][..hidden * inner];
            for (out, row) in out[token * hidden..][..hidden].iter_mut().zip(down.chunks(inner)) {
                *out += dot(&act, row);
            }
        }
        out
    }

    /// What `launch` makes of the tokens from `from` on.
    pub(super) fn run(
        &self,
        from: usize,
        count: usize,
        launch: impl FnOnce(ExpertCall<'_>) -> Result<(), CudaError>,
    ) -> Result<Vec<u8>, CudaError> {
        let (hidden, size) = (self.hidden(), self.dtype.size());
        let x = tensor(count, hidden, self.dtype, &self.x_bytes[from * hidden * size..][..count * hidden * size]);
        let range = from * self.top_k..(from + count) * self.top_k;
        let (ids, weights) = (put_u32(count, &self.ids[range.clone()]), put_f32(count, &self.weights[range]));
        let pairs = count * self.top_k;
        let buffers = ExpertBuffers {
            act: poisoned(pairs, self.inner, self.dtype),
            out: poisoned(pairs, hidden, self.dtype),
            sorted: poisoned(1, pairs, DType::U32),
            offsets: poisoned(1, self.experts + 1, DType::U32),
        };
        // What is there, 0.25, is added to.
        let dst = tensor(count, hidden, self.dtype, &rounded(&vec![0.25; count * hidden], self.dtype).0);
        launch(ExpertCall { x: &x, ids: &ids, weights: &weights, buffers: &buffers, dst: &dst })?;
        Ok(download(&dst))
    }
}

/// How many tokens of a test there are, of what type, and how many experts each goes to.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub(super) count: usize,
    pub(super) top_k: usize,
    pub(super) dtype: DType,
}

/// A layer of dense experts, on both sides.
struct DenseLayer {
    layer: Layer,
    gate_up: DeviceTensor,
    down: DeviceTensor,
}

impl DenseLayer {
    fn new(experts: usize, [hidden, inner]: [usize; 2], top_k: usize, count: usize, dtype: DType) -> Self {
        let small = |count: usize, seed: u64| -> Vec<f32> { random(count, seed).iter().map(|x| x * 0.1).collect() };
        let (gate_up_bytes, gate_up) = rounded(&small(experts * 2 * inner * hidden, 2), dtype);
        let (down_bytes, down) = rounded(&small(experts * hidden * inner, 3), dtype);
        Self {
            layer: Layer::new(experts, [gate_up, down], inner, Tokens { count, top_k, dtype }),
            gate_up: tensor(experts * 2 * inner, hidden, dtype, &gate_up_bytes),
            down: tensor(experts * hidden, inner, dtype, &down_bytes),
        }
    }

    /// What `way` makes of the tokens from `from` on.
    fn run(&self, kernels: &ExpertKernels, way: ExpertsWay, from: usize, count: usize) -> Result<Vec<u8>, CudaError> {
        let experts = ExpertMatrices { count: self.layer.experts, gate_up: &self.gate_up, down: &self.down };
        self.layer.run(from, count, |call| kernels.experts_by(way, gpu(), call, experts))
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_experts_are_the_sum_of_their_mlps() -> Result<(), CudaError> {
    let kernels = kernels();
    for dtype in [DType::Bf16, DType::F16] {
        for (experts, sizes, top_k, tokens) in [
            (5, [72, 24], 2, 1),
            (5, [72, 24], 2, 7),
            (16, [264, 136], 4, 33),
            (64, [128, 72], 6, 150),
            (3, [64, 200], 2, 300),
            (3, [608, 352], 2, 300),
        ] {
            let layer = DenseLayer::new(experts, sizes, top_k, tokens, dtype);
            let expected = layer.layer.expected();
            for way in kernels.ways(sizes[0], sizes[1]) {
                let found = floats(&layer.run(&kernels, way, 0, tokens)?, dtype);
                let error = relative_error(&found, &expected);
                let limit = if dtype == DType::Bf16 { 8e-3 } else { 1e-3 };
                assert!(error < limit, "{way:?} {experts} x {sizes:?} x {top_k}, {tokens} tokens, {dtype:?}: {error}");
            }
        }
    }
    Ok(())
}

/// Small enough for the race checker: one token, and some to most experts.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_experts() -> Result<(), CudaError> {
    let kernels = kernels();
    for tokens in [1, 21] {
        let layer = DenseLayer::new(5, [96, 32], 2, tokens, DType::Bf16);
        for way in kernels.ways(96, 32) {
            let error =
                relative_error(&floats(&layer.run(&kernels, way, 0, tokens)?, DType::Bf16), &layer.layer.expected());
            assert!(error < 8e-3, "{way:?}, {tokens} tokens: {error}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_tokens_experts_do_not_depend_on_the_batch() -> Result<(), CudaError> {
    let kernels = kernels();
    let layer = DenseLayer::new(16, [288, 160], 4, 80, DType::Bf16);
    let row = layer.layer.hidden() * 2;
    for way in kernels.ways(288, 160) {
        let all = layer.run(&kernels, way, 0, 80)?;
        for token in [0, 3, 79] {
            let alone = layer.run(&kernels, way, token, 1)?;
            assert!(alone == all[token * row..][..row], "{way:?}: token {token} is not the same alone");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_experts() -> Result<(), CudaError> {
    let kernels = kernels();
    println!("microseconds of a layer's experts, evenly chosen (GB/s of chosen weights to 256 tokens, TFLOP/s beyond)");
    for (name, experts, hidden, inner, top_k) in [("V2-Lite", 64, 2048, 1408, 6), ("Qwen3-30B-A3B", 128, 2048, 768, 8)]
    {
        let fill = |rows: usize, columns: usize, seed: u64| -> Result<DeviceTensor, CudaError> {
            let tensor = gpu().empty(rows, columns, DType::Bf16, "a test")?;
            crate::cuda::ElementwiseKernels::load(gpu())?.fill_random(gpu(), &tensor, seed, 0.05)?;
            Ok(tensor)
        };
        let (gate_up, down) = (fill(experts * 2 * inner, hidden, 1)?, fill(experts * hidden, inner, 2)?);
        let matrices = ExpertMatrices { count: experts, gate_up: &gate_up, down: &down };
        for tokens in [1, 2, 8, 32, 128, 256, 512, 2048, 8192] {
            let (x, dst) = (fill(tokens, hidden, 3)?, fill(tokens, hidden, 4)?);
            let pairs = tokens * top_k;
            // Other experts each time, for few tokens to find none of theirs in L2.
            let ids: Vec<DeviceTensor> = (0..4)
                .map(|turn| {
                    let ids: Vec<u32> = (0..pairs).map(|pair| ((pair + turn * 23) % experts) as u32).collect();
                    put_u32(tokens, &ids)
                })
                .collect();
            let weights = put_f32(tokens, &random(pairs, 5));
            let buffers = ExpertBuffers::new(gpu(), pairs, experts, hidden, inner, DType::Bf16)?;
            let mut turn = ids.iter().cycle();
            let microseconds = gpu().time(if tokens > 512 { 4 } else { 16 }, |gpu| {
                let ids = turn.next().expect("endless");
                let call = ExpertCall { x: &x, ids, weights: &weights, buffers: &buffers, dst: &dst };
                kernels.experts(gpu, call, matrices)
            })?;
            let values = 3.0 * (hidden * inner) as f64;
            let rate = if tokens <= 256 {
                format!("{:.0} GB/s", pairs.min(experts) as f64 * values * 2.0 / microseconds / 1e3)
            } else {
                format!("{:.0} TFLOP/s", 2.0 * pairs as f64 * values / microseconds / 1e6)
            };
            let call = ExpertCall { x: &x, ids: &ids[0], weights: &weights, buffers: &buffers, dst: &dst };
            let way = kernels.choose(call, experts, inner);
            println!("{name:<14} tokens {tokens:<5} {way:?} {microseconds:.1} ({rate})");
        }
    }
    Ok(())
}
