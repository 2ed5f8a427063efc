//! Draws on the GPU beside the sampler on the CPU: the same tokens from the same seeds.

use std::sync::{Arc, OnceLock};

use crate::cuda::{DType, DeviceTensor, Gpu, SampleOutput, SampleRow, Sampling, SamplingNeeds};
use crate::request::{Request, SamplingParams, SeqId, StopConditions};
use crate::runner::gpu::sample_row;
use crate::sampling::{Sampler, token_logprobs};

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Gpu::open(0).expect("an NVIDIA GPU"));
    gpu.bind().expect("the GPU was opened");
    gpu
}

/// Bell-shaped numbers of the standard deviation `spread`, from a seed.
fn bells(count: usize, seed: u64, spread: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (next() + next() + next() + next()) * 1.732 * spread).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A batch on the GPU.
struct Batch {
    sampling: Sampling,
    logits: DeviceTensor,
    rows: DeviceTensor,
    outputs: DeviceTensor,
}

impl Batch {
    fn new(rows: usize, vocab: usize, logits: &[f32]) -> Self {
        let empty = |columns, dtype| gpu().empty(rows, columns, dtype, "a test").expect("room");
        let sampling = Sampling::new(gpu(), rows, vocab).expect("kernels and room");
        let logits_tensor = empty(vocab, DType::F32);
        gpu().upload(&logits_tensor, &bytes(logits)).expect("it fits");
        let outputs = empty(size_of::<SampleOutput>(), DType::U8);
        gpu().upload(&outputs, &vec![0xFF; outputs.bytes()]).expect("it fits");
        Self { sampling, logits: logits_tensor, rows: empty(size_of::<SampleRow>(), DType::U8), outputs }
    }

    fn sample(&self, rows: &[SampleRow]) -> Vec<SampleOutput> {
        gpu().upload(&self.rows, SampleRow::as_bytes(rows)).expect("it fits");
        let needs = SamplingNeeds::of(rows);
        self.sampling.sample(gpu(), &self.logits, &self.rows, needs, &self.outputs).expect("launched");
        SampleOutput::read(&gpu().download(&self.outputs).expect("kernels ran")).collect()
    }
}

fn request(sampling: SamplingParams, prompt: &[u32], min_tokens: u32) -> Arc<Request> {
    let stop = StopConditions {
        max_tokens: 1 << 20,
        min_tokens,
        ignore_eos: false,
        eos_token_ids: Arc::from([5, 11]),
        stop_token_ids: vec![17],
    };
    Arc::new(Request {
        prompt: prompt.into(),
        n: 1,
        sampling,
        stop,
        tenant: Default::default(),
        cache_salt: None,
        priority: 0,
        masks: None,
        pooling: None,
        answered: 0,
    })
}

fn row(params: &SamplingParams, slot: u32, seed: u64, drawn: u32) -> SampleRow {
    SampleRow { choice: slot, drawn, ..sample_row(params, slot, seed) }
}

/// How far apart two tokens lie in the walk, as a share of all weights: 0 for neighbours.
fn gap(logits: &[f32], params: &SamplingParams, a: u32, b: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |token: u32| f64::from(((logits[token as usize] - max) / params.temperature).exp());
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if params.top_k.is_some() || params.top_p < 1.0 {
        order.sort_by(|x, y| weight(*y).total_cmp(&weight(*x)).then(x.cmp(y)));
    }
    let place = |wanted: u32| order.iter().position(|token| *token == wanted).expect("a token");
    let (first, last) = (place(a).min(place(b)), place(a).max(place(b)));
    let total: f64 = order.iter().map(|token| weight(*token)).sum();
    order[first + 1..last].iter().map(|token| weight(*token)).sum::<f64>() / total
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_draws_are_those_of_the_cpu() {
    let base = SamplingParams::default();
    let settings = [
        base.clone(),
        SamplingParams { temperature: 0.6, ..base.clone() },
        SamplingParams { temperature: 1.7, ..base.clone() },
        SamplingParams { min_p: 0.05, ..base.clone() },
        SamplingParams { top_k: Some(2), ..base.clone() },
        SamplingParams { top_k: Some(50), ..base.clone() },
        SamplingParams { top_k: Some(20_000), temperature: 3.0, ..base.clone() },
        SamplingParams { top_k: Some(1_000_000), ..base.clone() },
        SamplingParams { top_p: 0.9, temperature: 0.6, ..base.clone() },
        SamplingParams { top_p: 0.999, temperature: 4.0, ..base.clone() },
        SamplingParams { top_p: 0.8, top_k: Some(20), temperature: 0.7, ..base.clone() },
        SamplingParams { top_p: 0.95, top_k: Some(64), min_p: 0.01, ..base.clone() },
        SamplingParams { top_k: Some(1), ..base.clone() },
        SamplingParams { top_k: Some(40), top_p: 0.9, temperature: 0.8, ..base.clone() },
        SamplingParams { top_k: Some(600), top_p: 0.95, ..base.clone() },
        SamplingParams { temperature: f32::from_bits(1), ..base },
    ];
    // A row of less than a slice, of just more than one, and more slices than warps.
    let shapes = [(256, 32_003, 79), (7, 151_936, 20), (1, 151_936, 20), (5, 50, 40), (4, 4097, 40), (3, 12_289, 40)];
    for (rows, vocab, steps) in shapes {
        let mut logits = bells(rows * vocab, 3, 3.0);
        // Every other row is coarse, so that many weights are equal.
        for row in logits.chunks_mut(vocab).step_by(2) {
            row.iter_mut().for_each(|logit| *logit = (*logit * 4.0).round() / 4.0);
        }
        let batch = Batch::new(rows, vocab, &logits);
        for params in &settings {
            let (mut wrong, seed) = (0, 0x1234_5678_9ABC);
            let drawn: Vec<Vec<SampleOutput>> = (0..steps)
                .map(|step| {
                    batch.sample(&(0..rows as u32).map(|slot| row(params, slot, seed, step)).collect::<Vec<_>>())
                })
                .collect();
            let request = request(params.clone(), &[1], 0);
            let expected = on_all_cores(rows, |slot| {
                let mut sampler = Sampler::default();
                sampler.start(SeqId(0), request.clone(), slot as u32, seed);
                let logits = &logits[slot * vocab..][..vocab];
                (0..steps).map(|_| sampler.sample(SeqId(0), logits).expect("finite").token).collect::<Vec<u32>>()
            });
            for (slot, tokens) in expected.iter().enumerate() {
                for (token, outputs) in tokens.iter().zip(&drawn) {
                    assert_eq!(outputs[slot].status, 0);
                    if outputs[slot].token != *token {
                        wrong += 1;
                        let gap = gap(&logits[slot * vocab..][..vocab], params, *token, outputs[slot].token);
                        assert!(gap < 1e-5, "{params:?}: {token} and {} are {gap} apart", outputs[slot].token);
                    }
                }
            }
            let draws = rows * steps as usize;
            assert!(wrong * 1000 <= draws.max(1000), "{params:?}: {wrong} of {draws} differ");
        }
    }
}

/// Rows whose slices have no room to list what matters: all logits equal, steps of equals, a crowd in one slice alone,
/// a slice that holds nearly all weight beside a flat rest. Exact weights keep the CPU's answer exact.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_draws_from_flat_rows_search_the_whole_row() {
    let (rows, vocab, steps) = (6, 12_291, 50);
    let mut logits = vec![0.0_f32; rows * vocab];
    for (index, row) in logits.chunks_mut(vocab).enumerate() {
        for (token, logit) in row.iter_mut().enumerate() {
            *logit = match index {
                0 => 1.5,
                1 => -((token % 3) as f32),
                2 if (5000..6000).contains(&token) => 4.0,
                3 if token == 4097 => 9.0,
                4 if token % 2 == 1 => f32::NAN,
                5 if token > 700 => f32::NEG_INFINITY,
                _ => 0.0,
            };
        }
    }
    let base = SamplingParams::default();
    let settings = [
        SamplingParams { top_k: Some(40), ..base.clone() },
        SamplingParams { top_k: Some(513), ..base.clone() },
        SamplingParams { top_k: Some(5000), top_p: 0.5, ..base.clone() },
        SamplingParams { top_p: 0.9, ..base.clone() },
        SamplingParams { top_p: 0.01, ..base.clone() },
        SamplingParams { top_k: Some(40), top_p: 0.9, min_p: 0.5, ..base.clone() },
        SamplingParams { top_k: Some(100_000), ..base.clone() },
        base,
    ];
    let batch = Batch::new(rows, vocab, &logits);
    for params in &settings {
        let (mut wrong, seed) = (0, 0xFEED_5EED);
        let request = request(params.clone(), &[1], 0);
        let mut samplers: Vec<Sampler> = (0..rows).map(|_| Sampler::default()).collect();
        for (slot, sampler) in samplers.iter_mut().enumerate() {
            sampler.start(SeqId(0), request.clone(), slot as u32, seed);
        }
        for step in 0..steps {
            let found = batch.sample(&(0..rows as u32).map(|slot| row(params, slot, seed, step)).collect::<Vec<_>>());
            for (slot, sampler) in samplers.iter_mut().enumerate() {
                let logits = &logits[slot * vocab..][..vocab];
                let token = sampler.sample(SeqId(0), logits).expect("finite").token;
                assert_eq!(found[slot].status, 0);
                assert!(logits[found[slot].token as usize] > f32::NEG_INFINITY, "row {slot}: {}", found[slot].token);
                wrong += u32::from(found[slot].token != token);
            }
        }
        assert!(wrong <= 1, "{params:?}: {wrong} differ");
    }
}

/// A row's draw from the slices' lists is the same beside rows that must be searched, and in any place.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_draws_do_not_depend_on_other_rows() {
    let vocab = 32_003;
    let own = bells(vocab, 17, 3.0);
    let params = SamplingParams { top_k: Some(40), top_p: 0.9, temperature: 0.8, ..SamplingParams::default() };
    let alone = Batch::new(1, vocab, &own);
    let mut logits = vec![0.25_f32; 3 * vocab];
    logits[2 * vocab..].copy_from_slice(&own);
    let beside = Batch::new(3, vocab, &logits);
    for step in 0..20 {
        let asked = row(&params, 0, 3, step);
        let others = [0, 1, 2].map(|slot| SampleRow { slot, choice: 0, ..asked });
        assert_eq!(alone.sample(&[asked])[0].token, beside.sample(&others)[2].token);
    }
}

/// `one` of `0..count`, each on some core of the host.
fn on_all_cores<T: Send>(count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let share = count.div_ceil(threads);
        let one = &one;
        let work = |from: usize| move || (from..(from + share).min(count)).map(one).collect::<Vec<T>>();
        let handles: Vec<_> = (0..count).step_by(share).map(|from| scope.spawn(work(from))).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("no panic")).collect()
    })
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_greedy_takes_the_first_of_equals_and_passes_nan_over() {
    for (rows, vocab) in [(1, 1), (1, 32_003), (7, 32_003), (256, 151_936)] {
        let mut logits = bells(rows * vocab, 5, 2.0);
        for (index, row) in logits.chunks_mut(vocab).enumerate() {
            let place = (index * 7919 + 13) % vocab;
            row[place] = 50.0;
            row[(place + 4097).min(vocab - 1)] = 50.0;
            row[vocab - 1] = if place == vocab - 1 { 50.0 } else { f32::NAN };
            match index {
                1 => row.fill(f32::NAN),
                2 => row.fill(f32::NEG_INFINITY),
                3 => row[9] = f32::INFINITY,
                4 => row
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, logit)| *logit = if i == 3 { -0.0 } else { -1.0 / i as f32 }),
                _ => {}
            }
        }
        let batch = Batch::new(rows, vocab, &logits);
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let asked: Vec<SampleRow> = (0..rows as u32).map(|slot| row(&params, slot, 1, 0)).collect();
        for _ in 0..2 {
            let found = batch.sample(&asked);
            let request = request(params.clone(), &[1], 0);
            for (index, (found, logits)) in found.iter().zip(logits.chunks(vocab)).enumerate() {
                let mut sampler = Sampler::default();
                sampler.start(SeqId(0), request.clone(), 0, 1);
                let expected = sampler.sample(SeqId(0), logits).ok().map(|sampled| sampled.token);
                assert_eq!((found.status == 0).then_some(found.token), expected, "row {index} of {rows}");
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_penalties_bias_and_bans_follow_the_history() {
    let (rows, vocab, steps) = (9, 32_003, 40);
    let logits = bells(rows * vocab, 8, 2.0);
    let params = |slot: usize| SamplingParams {
        temperature: if slot.is_multiple_of(2) { 0.0 } else { 0.8 },
        top_p: 0.9,
        repetition_penalty: if slot.is_multiple_of(3) { 1.3 } else { 1.0 },
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        logit_bias: vec![(5, 30.0), (32_002, 29.0), (77, 28.0), (99_999, 1.0)],
        ..SamplingParams::default()
    };
    let prompt = [5, 77, 77, 100, 40_000];
    let batch = Batch::new(rows, vocab, &logits);
    let mut sampler = Sampler::default();
    let mut alive = vec![true; rows];
    for slot in 0..rows {
        let params = params(slot);
        let begun = batch.sampling.begin_slot(
            gpu(),
            slot as u32,
            Some(3),
            Some((&prompt, &[])),
            &params.logit_bias,
            &[5, 11, 17],
        );
        begun.expect("room");
        sampler.start(SeqId(slot as u64), request(params, &prompt, 3), slot as u32, 77);
    }
    for step in 0..steps {
        let flags = SampleRow::PENALTIES + u32::from(step < 3) * SampleRow::BANS;
        let asked = |slot: usize| SampleRow { flags, ban_count: 3, ..row(&params(slot), slot as u32, 77, step) };
        let found = batch.sample(&(0..rows).map(asked).collect::<Vec<_>>());
        for slot in (0..rows).filter(|slot| alive[*slot]).collect::<Vec<_>>() {
            let token = sampler.sample(SeqId(slot as u64), &logits[slot * vocab..][..vocab]).expect("finite").token;
            let same = found[slot].token == token;
            assert!(same || !slot.is_multiple_of(2), "greedy row {slot} at {step}: {} not {token}", found[slot].token);
            alive[slot] = same; // after a draw that fell to a neighbour the histories differ
        }
    }
    assert!(alive.iter().filter(|alive| **alive).count() >= rows - 1, "{alive:?}");
}

/// Small enough for the race checker: rows of one slice and of several, every other one under a mask, drawn in each way.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_race_draws_by_masks() {
    let base = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
    let settings = [
        SamplingParams { temperature: 0.0, ..base.clone() },
        SamplingParams { temperature: 0.9, ..base.clone() },
        SamplingParams { top_k: Some(40), ..base.clone() },
        SamplingParams { top_p: 0.9, min_p: 0.01, ..base.clone() },
        SamplingParams { top_k: Some(700), top_p: 0.999, ..base },
    ];
    for (rows, vocab) in [(4, 4099), (3, 1000)] {
        let mut logits = bells(rows * vocab, 31, 2.0);
        let batch = Batch::new(rows, vocab, &logits);
        for (slot, row) in logits.chunks_mut(vocab).enumerate().skip(1).step_by(2) {
            let is_allowed = |token: usize| (token * 7 + slot).is_multiple_of(3);
            let mask = (0..vocab.div_ceil(32)).map(|word| {
                let bits = (0..32).filter(|bit| 32 * word + bit < vocab && is_allowed(32 * word + bit));
                bits.fold(0_u32, |mask, bit| mask | 1 << bit)
            });
            let mask: Vec<u8> = mask.flat_map(u32::to_ne_bytes).collect();
            gpu().upload(&batch.sampling.mask(slot as u32), &mask).expect("it fits");
            row.iter_mut().enumerate().filter(|(token, _)| !is_allowed(*token)).for_each(|(_, logit)| {
                *logit = f32::NEG_INFINITY;
            });
        }
        for params in &settings {
            let request = request(params.clone(), &[1], 0);
            for step in 0..4 {
                let flags = |slot: u32| if slot.is_multiple_of(2) { 0 } else { SampleRow::MASK };
                let asked = |slot: u32| SampleRow { flags: flags(slot), ..row(params, slot, 5, step) };
                let found = batch.sample(&(0..rows as u32).map(asked).collect::<Vec<_>>());
                for (slot, (found, logits)) in found.iter().zip(logits.chunks(vocab)).enumerate() {
                    let mut sampler = Sampler::default();
                    sampler.start(SeqId(0), request.clone(), slot as u32, 5);
                    let drawn = (0..=step).map(|_| sampler.sample(SeqId(0), logits).expect("finite").token);
                    let token = drawn.last().expect("one at least");
                    assert!(logits[found.token as usize].is_finite(), "{params:?}: {} is masked", found.token);
                    let same = found.token == token
                        || params.temperature > 0.0 && gap(logits, params, token, found.token) < 1e-5;
                    assert!(same, "{params:?} row {slot} step {step}: {} is not {token}", found.token);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_logprobs_are_those_of_the_cpu() {
    for (rows, vocab, spread) in
        [(1, 151_936, 3.0), (7, 32_003, 0.001), (33, 32_003, 4.0), (2, 50, 1.0), (3, 4099, 5.0)]
    {
        let mut logits = bells(rows * vocab, 21, spread);
        logits[vocab - 3] = logits[1]; // equals
        let batch = Batch::new(rows, vocab, &logits);
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 131 % vocab as u32).collect();
        let device = gpu().empty(1, rows, DType::U32, "a test").expect("room");
        let target_bytes: Vec<u8> = targets.iter().flat_map(|target| target.to_ne_bytes()).collect();
        gpu().upload(&device, &target_bytes).expect("it fits");
        let sampling = &batch.sampling;
        sampling.prompt_logprobs(gpu(), &batch.logits, &device, 20, &batch.outputs).expect("launched");
        let given: Vec<_> = SampleOutput::read(&gpu().download(&batch.outputs).expect("kernels ran")).collect();
        sampling.prompt_logprobs(gpu(), &batch.logits, &device, 0, &batch.outputs).expect("launched");
        let plain: Vec<_> = SampleOutput::read(&gpu().download(&batch.outputs).expect("kernels ran")).collect();
        for (with, without) in given.iter().zip(&plain) {
            assert_eq!((with.logprob, with.rank), (without.logprob, without.rank));
        }
        let params = SamplingParams { logprobs: Some(20), ..SamplingParams::default() };
        let drawn = batch.sample(&(0..rows as u32).map(|slot| row(&params, slot, 4, 0)).collect::<Vec<_>>());
        for (index, row) in logits.chunks(vocab).enumerate() {
            for (found, token) in [(&given[index], targets[index]), (&drawn[index], drawn[index].token)] {
                let wanted = token_logprobs(row, token, 20);
                assert_eq!((found.token, found.rank), (token, wanted.rank));
                assert!((found.logprob - wanted.logprob).abs() < 1e-4);
                for (place, (id, logprob)) in wanted.top.iter().enumerate() {
                    assert_eq!(found.top_ids[place], *id, "row {index}, place {place}");
                    assert!((found.top_logprobs[place] - logprob).abs() < 1e-4);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_sampling() {
    let base = SamplingParams { logprobs: None, ..SamplingParams::default() };
    let settings = [
        ("greedy", SamplingParams { temperature: 0.0, ..base.clone() }),
        ("temperature", SamplingParams { temperature: 0.8, ..base.clone() }),
        ("top_k 50", SamplingParams { top_k: Some(50), ..base.clone() }),
        ("top_k 40, top_p 0.9", SamplingParams { top_k: Some(40), top_p: 0.9, temperature: 0.8, ..base.clone() }),
        ("top_p 0.9", SamplingParams { top_p: 0.9, temperature: 0.6, ..base.clone() }),
        ("greedy, 20 logprobs", SamplingParams { temperature: 0.0, logprobs: Some(20), ..base }),
    ];
    for (rows, vocab) in [(1, 128_256), (8, 128_256), (64, 128_256), (256, 128_256), (256, 151_936)] {
        let batch = Batch::new(rows, vocab, &bells(rows * vocab, 2, 3.0));
        for (name, params) in &settings {
            let asked: Vec<SampleRow> = (0..rows as u32).map(|slot| row(params, slot, 9, 1)).collect();
            gpu().upload(&batch.rows, SampleRow::as_bytes(&asked)).expect("it fits");
            let needs = SamplingNeeds::of(&asked);
            let work = |gpu: &Gpu| batch.sampling.sample(gpu, &batch.logits, &batch.rows, needs, &batch.outputs);
            let us = gpu().time(20, work).expect("it runs");
            let gigabytes = (4 * rows * vocab) as f64 / us / 1e3;
            println!("{rows:4} x {vocab} {name:20} {us:9.1} us  {gigabytes:7.0} GB/s of logits");
        }
    }
}
