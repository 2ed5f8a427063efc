//! The GPU beside the CPU on all tiny models whose shapes have kernels: answers that go through the scheduler and the
//! recorded graphs. Needs an NVIDIA GPU.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use crate::config::{EngineConfig, KvDType, Lag, StepSizes};
use crate::cuda::{Blas, BlasMissing, DType, Gemm, Gpu, HEAD_DIMS};
use crate::kv_cache::BlockId;
use crate::models::{Decoder, DecoderSpec, ModelSource};
use crate::ops::{Compute, Cpu, GpuInputs, RowIndices, StepInputs};
use crate::request::{
    Pooling, Request, RequestId, SamplingParams, SeqId, StopConditions, Tenant, TokenId, TokenLogprobs,
};
use crate::runner::golden::{Fixture, Rig, Row, blocks, fixtures, pack, relative_error};
use crate::runner::load::ModelError;
use crate::runner::plan::{MemoryPlan, Placement, kv_dtypes, plan};
use crate::runner::step::StepRunner;
use crate::scheduler::{Scheduler, SchedulerConfig, SchedulerEvent, SchedulerOutput};
use crate::weights::WeightName;

use super::GpuRunner;
use super::buffers::Padding;
use super::cpu_layers::CpuLayers;
use super::golden_tests::{STRAYS, but_strays};
use super::load::{Layout, build, check, compute_for};

pub(super) const CONTEXT: usize = 256;
const BLOCKS: u64 = 64;
pub(super) const SIZES: StepSizes = StepSizes { max_sequences: 32, max_step_tokens: 256, ..StepSizes::GPU };

/// Largest relative error of logits: bf16 keeps 8 bits of a number, f16 11, and layers of 64 numbers average little out.
pub(super) fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 4e-2 } else { 6e-3 }
}

/// How many fixtures run here, and how many have heads that no kernel is made for.
const WIDE_AND_NARROW: (usize, usize) = (16, 22);

/// Fixtures that loading takes to a GPU: of dense safetensors, and of GGUF files, whose blocks stay as they are. Those that
/// other programs have quantised have tests of their own.
pub(super) fn wide_fixtures() -> Vec<Fixture> {
    let (mut wide, mut narrow) = (Vec::new(), 0);
    for fixture in fixtures().into_iter().filter(|fixture| fixture.kind() != "quantized") {
        match check(&spec(&fixture)) {
            Ok(()) => wide.push(fixture),
            Err(ModelError::NotForGpus(what)) => {
                assert!(what.contains("heads of") || what.contains("latents of"), "{}: {what}", fixture.family());
                narrow += 1;
            }
            Err(error) => panic!("{}: {error}", fixture.family()),
        }
    }
    assert_eq!((wide.len(), narrow), WIDE_AND_NARROW, "a fixture is lost, refused, or not counted here");
    wide
}

pub(super) fn spec(fixture: &Fixture) -> DecoderSpec {
    ModelSource::open(&fixture.folder).expect("the fixture loads").spec
}

/// Those without experts: a hair's breadth may give a token others.
pub(super) fn dense_fixtures() -> Vec<Fixture> {
    wide_fixtures().into_iter().filter(|fixture| !is_routed(fixture)).collect()
}

/// Whether tokens go to experts.
pub(super) fn is_routed(fixture: &Fixture) -> bool {
    spec(fixture).experts.is_some()
}

#[test]
fn every_family_has_fixtures_with_kernels() {
    let wide: Vec<DecoderSpec> = wide_fixtures().iter().map(spec).collect();
    for family in ["Llama", "Mistral", "Qwen2", "Qwen3", "Qwen2Moe", "Qwen3Moe", "DeepseekV2", "DeepseekV3"] {
        let architecture = format!("{family}ForCausalLM");
        assert!(wide.iter().any(|spec| spec.architecture == architecture), "{architecture}");
    }
    for head_dim in HEAD_DIMS {
        assert!(wide.iter().any(|spec| spec.latent.is_none() && spec.head_dim == head_dim), "heads of {head_dim}");
    }
    let windows = wide.iter().flat_map(|spec| &spec.sliding_window).filter(|window| window.is_some());
    assert_eq!(windows.count(), 4, "layers with windows");
}

/// What GGUF files keep in stacks: experts in blocks of 32 or of 256, and with gate and up of different formats, which are
/// made dense; the up-projections of latents in one matrix or in two.
#[test]
fn every_form_of_stacks_in_gguf_files_has_fixtures_with_kernels() {
    let mut seen = BTreeSet::new();
    for fixture in wide_fixtures().iter().filter(|fixture| fixture.kind() == "gguf") {
        let ModelSource { spec, weights, .. } = ModelSource::open(&fixture.folder).expect("the fixture loads");
        if spec.latent.is_some() {
            seen.insert(if weights.has(WeightName::LatentKeys(0)) { "latents in two" } else { "latents in one" });
        }
        for layer in 0..spec.layers as u32 {
            let Some(experts) = spec.experts_of(layer) else { continue };
            let format = |name, columns| weights.format(name, columns).expect("it is there");
            let gate = format(WeightName::ExpertGate(layer, 0), spec.hidden);
            let up = format(WeightName::ExpertUp(layer, 0), spec.hidden);
            let down = format(WeightName::ExpertDown(layer, 0), experts.ffn);
            seen.insert(match (gate.block_len(), down.block_len()) {
                _ if gate != up => "gate beside another up",
                (32, 32) => "gate by 32, down by 32",
                (32, 256) => "gate by 32, down by 256",
                (256, 32) => "gate by 256, down by 32",
                other => panic!("{}: blocks of {other:?}", fixture.family()),
            });
        }
    }
    let forms = [
        "gate beside another up",
        "gate by 256, down by 32",
        "gate by 32, down by 256",
        "gate by 32, down by 32",
        "latents in one",
        "latents in two",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), forms);
}

pub(super) fn runner(fixture: &Fixture, dtype: DType) -> GpuRunner {
    runner_with(fixture, dtype, None)
}

/// With a KV cache of this type.
pub(super) fn runner_with(fixture: &Fixture, dtype: DType, kv_dtype: Option<KvDType>) -> GpuRunner {
    runner_from(fixture, dtype, kv_dtype, 0)
}

/// With the layers before `first` on the CPU, whose keys and values are f32 there.
pub(super) fn runner_from(fixture: &Fixture, dtype: DType, kv_dtype: Option<KvDType>, first: usize) -> GpuRunner {
    Making { kv_dtype, first, ..Making::of(dtype) }.runner(fixture)
}

/// The one GPU of these tests: to open it takes long where the driver compiles the kernels.
pub(super) fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Gpu::open(0).expect("an NVIDIA GPU"));
    gpu.bind().expect("the GPU was opened");
    gpu.clone()
}

/// How a test's runner is made.
#[derive(Clone, Copy)]
pub(super) struct Making {
    pub(super) dtype: DType,
    pub(super) kv_dtype: Option<KvDType>,
    /// The first layer on the GPU.
    pub(super) first: usize,
    pub(super) sizes: StepSizes,
    pub(super) blocks: u64,
    pub(super) context: usize,
}

impl Making {
    pub(super) fn of(dtype: DType) -> Self {
        Self { dtype, kv_dtype: None, first: 0, sizes: SIZES, blocks: BLOCKS, context: CONTEXT }
    }

    pub(super) fn runner(self, fixture: &Fixture) -> GpuRunner {
        let source = ModelSource::open(&fixture.folder).expect("the fixture loads");
        self.runner_of(source, Blas::open(&gpu(), &[]))
    }

    /// The same of a model, with cuBLASLt or without.
    pub(super) fn runner_of(self, source: ModelSource, blas: Result<Blas, BlasMissing>) -> GpuRunner {
        let Self { dtype, kv_dtype, first, sizes, blocks, context } = self;
        let gpu = gpu();
        let gemm = Gemm::load(&gpu, blas).expect("kernels");
        let layout = Layout::new(context, sizes);
        let compute = compute_for(gpu, dtype, gemm, &layout, &source).expect("memory");
        let handle = Compute::Gpu(compute.clone());
        let layers = first..source.spec.layers;
        let model = Decoder::load_layers(&handle, source.spec.clone(), &source.weights, context as u32, layers);
        let model = model.expect("weights");
        let kv = source.spec.kv_layout(KvDType::Bf16);
        let block_bytes = (kv.planes.count() * source.spec.layers * kv.block_bytes()) as u64;
        let config = EngineConfig {
            kv_cache_bytes: Some(blocks * block_bytes),
            context_length: Some(context as u32),
            kv_dtype,
            ..EngineConfig::default()
        };
        let placement = Placement { kv_dtypes: kv_dtypes(&source.spec, dtype == DType::F16), ..Placement::CPU };
        let plan = plan(&source.spec, 0, &config, sizes, placement, 1 << 30).expect("it fits");
        let mut runner = build(compute, handle, model, &plan, &layout).expect("memory");
        if first > 0 {
            let plan = MemoryPlan { kv_dtype: KvDType::F32, ..plan };
            let (cpu, tokens) = (Arc::new(Cpu::new(NonZeroUsize::new(2))), sizes.max_step_tokens as usize);
            let layers = CpuLayers::load(runner.gpu.gpu(), cpu, &source, first, &plan, tokens);
            runner.cpu_layers = Some(layers.expect("memory"));
        }
        runner
    }
}

impl GpuRunner {
    /// The logits of every token of a step of `rows`.
    pub(super) fn logits_of(&mut self, rows: &[Row<'_>]) -> Vec<Vec<f32>> {
        let tokens = self.put(rows);
        let padding = Padding { tokens, tiles: self.plan.tiles.len() };
        self.upload(0, padding).expect("a step");
        self.run_cpu_layers().expect("a step");
        let inputs = self.inputs(padding, self.plan.items.len());
        let inputs = GpuInputs { prompt_blocks: self.prompt_blocks(), ..inputs };
        self.model.forward(&self.compute, StepInputs::Gpu(&inputs), &self.kv, &self.workspace).expect("a step");
        self.all_logits(tokens)
    }

    /// Packs `rows` into a step of which the logits of all tokens will be asked for; its number of tokens.
    pub(super) fn put(&mut self, rows: &[Row<'_>]) -> usize {
        pack(rows, &mut self.batch);
        let tokens = self.batch.tokens.len();
        self.packed.prompt_tokens = (0..tokens as u32).collect();
        self.packed.prompt_targets = vec![0; tokens];
        self.plan_attention();
        tokens
    }

    /// The logits of the first `tokens` tokens of the step that ran last.
    pub(super) fn all_logits(&self, tokens: usize) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        for from in (0..tokens).step_by(self.logit_rows) {
            let (indices, _) = self.buffers.prompt_tokens(from, self.logit_rows.min(tokens - from));
            let logits = self.model.logits(&self.compute, RowIndices::Gpu(&indices), &self.workspace).expect("logits");
            let bytes = self.gpu.gpu().download(logits.gpu().expect("on the GPU")).expect("a copy");
            let values: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
            all.extend(values.chunks(self.model.spec().vocab).map(<[f32]>::to_vec));
        }
        all
    }

    pub(super) fn chunked(&mut self, ids: &[u32], chunks: &[usize], blocks: &[BlockId]) -> Vec<Vec<f32>> {
        let (mut start, mut all) = (0, Vec::new());
        for index in 0.. {
            let end = (start + chunks[index.min(chunks.len() - 1)]).min(ids.len());
            all.extend(self.logits_of(&[Row { ids, start, end, blocks }]));
            start = end;
            if start == ids.len() {
                break;
            }
        }
        all
    }
}

pub(super) type Answer = Vec<(TokenId, Option<TokenLogprobs>)>;

/// What prompts were pooled to, by answer.
pub(super) type Pooled = std::collections::HashMap<usize, Vec<f32>>;

/// Runs requests to their ends through a scheduler, one step ahead where all layers are on the GPU, as the engine does.
pub(super) fn drive(runner: &mut GpuRunner, requests: &[Request], prefix_cache: bool) -> Vec<Answer> {
    drive_pooling(runner, requests, prefix_cache).0
}

/// The same, with what prompts were pooled to.
fn drive_pooling(runner: &mut GpuRunner, requests: &[Request], prefix_cache: bool) -> (Vec<Answer>, Pooled) {
    let lag = if runner.cpu_layers.is_some() { Lag::Zero } else { SIZES.lag };
    let num_blocks = runner.kv.blocks() as u32;
    drive_by(runner, SchedulerConfig { num_blocks, lag, prefix_cache, ..limits() }, requests)
}

/// Those of the scheduler of a runner made by default.
pub(super) fn limits() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 16,
        num_blocks: BLOCKS as u32,
        max_sequences: SIZES.max_sequences,
        max_step_tokens: SIZES.max_step_tokens,
        max_prompt_chunk_while_decoding: 24,
        prompt_tokens_per_decode: 0,
        prompt_tokens_per_waiting: 0,
        step_multiple: 1,
        max_model_len: CONTEXT as u32,
        max_waiting: 64,
        max_waiting_per_tenant: 64,
        lag: SIZES.lag,
        prefix_cache: false,
    }
}

/// Runs requests to their ends; the answers of each request's choices follow each other.
pub(super) fn drive_by(
    runner: &mut dyn StepRunner,
    config: SchedulerConfig,
    requests: &[Request],
) -> (Vec<Answer>, Pooled) {
    let lag = config.lag;
    let mut scheduler = Scheduler::new(config, [7; 16]).expect("a valid configuration");
    let mut owner = std::collections::HashMap::<SeqId, usize>::new();
    let mut count = 0;
    for (index, request) in requests.iter().enumerate() {
        let sequences = scheduler.add(RequestId(index as u64), request).expect("there is room");
        for (choice, seq) in sequences.iter().enumerate() {
            runner.start(*seq, Arc::new(request.clone()), choice as u32, request.sampling.seed.unwrap_or(3));
            owner.insert(*seq, count + choice);
        }
        count += sequences.len();
    }
    let (mut answers, mut pooled) = (vec![Answer::new(); count], Pooled::new());
    let mut begun = std::collections::VecDeque::new();
    loop {
        let mut planned = SchedulerOutput::default();
        scheduler.schedule(&mut planned);
        planned.released.iter().for_each(|seq| runner.release(*seq));
        let empty = planned.is_empty();
        if !empty {
            runner.begin(&planned).expect("a step");
            begun.push_back(planned);
        }
        if empty && begun.is_empty() {
            return (answers, pooled);
        }
        while begun.len() > if empty { 0 } else { lag.steps() } {
            let planned = begun.pop_front().expect("there is one");
            let mut output = runner.collect().expect("a step");
            let sampled: Vec<_> = output.sampled.iter().map(|sampled| (sampled.seq, sampled.token)).collect();
            pooled.extend(output.pooled.drain(..).map(|(seq, vector)| (owner[&seq], vector)));
            let mut events = Vec::new();
            scheduler.commit(&planned, &sampled, &mut events);
            for event in events {
                let SchedulerEvent::Token { seq, token, .. } = event else { continue };
                let drawn = output.sampled.iter_mut().find(|sampled| sampled.seq == seq);
                answers[owner[&seq]].push((token, drawn.and_then(|sampled| sampled.logprobs.take())));
            }
        }
    }
}

pub(super) fn request(prompt: &[u32], sampling: SamplingParams) -> Request {
    Request {
        prompt: prompt.into(),
        n: 1,
        sampling,
        stop: StopConditions {
            max_tokens: 40,
            min_tokens: 40,
            ignore_eos: true,
            eos_token_ids: Arc::from([]),
            stop_token_ids: vec![],
        },
        tenant: Tenant::default(),
        cache_salt: None,
        priority: 0,
        masks: None,
        pooling: None,
        answered: 0,
    }
}

pub(super) fn requests(fixture: &Fixture, sampling: &SamplingParams) -> Vec<Request> {
    let prompts = fixture.prompts.iter().filter(|prompt| prompt.ids.len() < 150);
    let mut requests: Vec<_> = prompts.map(|prompt| request(&prompt.ids, sampling.clone())).collect();
    for (index, request) in (0..).zip(&mut requests) {
        request.sampling.seed = Some(index);
    }
    requests
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_graphs_change_no_bit() {
    let warm = SamplingParams { temperature: 0.9, logprobs: Some(20), ..SamplingParams::default() };
    for fixture in wide_fixtures() {
        for first in [0, 1] {
            let mut gpu = runner_from(&fixture, DType::Bf16, None, first);
            let requests = requests(&fixture, &warm);
            let eager = drive(&mut gpu, &requests, false);
            assert!(eager.iter().all(|answer| answer.len() == 40), "every answer is whole");
            gpu.record_graphs().expect("graphs");
            let place = format!("{} with {first} layers on the CPU", fixture.family());
            assert_eq!(drive(&mut gpu, &requests, false), eager, "{place}");
            assert_eq!(drive(&mut gpu, &requests, true), eager, "{place} and a prefix cache");
        }
    }
}

/// What is drawn greedily is what the CPU draws, as long as its lead is larger than the error: golden logits say so of a
/// step; here the tokens go through the scheduler, the CPU's layers and the recorded graphs. A token that goes to other
/// experts may be another one whatever its lead.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_greedy_answers_with_a_layer_on_the_cpu_are_those_of_the_cpu() {
    let greedy = SamplingParams { temperature: 0.0, logprobs: Some(2), ..SamplingParams::default() };
    for fixture in wide_fixtures() {
        let mut gpu = runner_from(&fixture, DType::F16, None, 1);
        gpu.record_graphs().expect("graphs");
        let prompts: Vec<_> = fixture.prompts.iter().filter(|prompt| prompt.ids.len() < 150).collect();
        let requests: Vec<_> = prompts.iter().map(|prompt| request(&prompt.ids, greedy.clone())).collect();
        let (mut agreed, mut all) = (0, 0);
        for (prompt, answer) in prompts.iter().zip(drive(&mut gpu, &requests, false)) {
            for (position, ((token, logprobs), wanted)) in answer.iter().zip(&prompt.greedy).enumerate() {
                let top = &logprobs.as_ref().expect("asked for").top;
                let (lead, place) = (top[0].1 - top[1].1, format!("{} {}", fixture.family(), prompt.name));
                if token != wanted {
                    let is_near = lead < 0.1 || is_routed(&fixture);
                    assert!(is_near, "{place} at {position}: another choice, with a lead of {lead}");
                    break;
                }
                agreed += 1;
            }
            all += prompt.greedy.len();
        }
        println!("{}: {agreed} of {all} tokens agree", fixture.family());
        assert!(2 * agreed >= all, "{}: {agreed} of {all} tokens agree", fixture.family());
    }
}

/// Prompts that are pooled, in steps with others that are not, by graphs and without.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_pooled_prompts_are_near_those_of_the_cpu() {
    for fixture in wide_fixtures() {
        let cpu = Rig::new(&fixture.folder, CONTEXT as u32, 2);
        let mut gpu = runner(&fixture, DType::F16);
        for graphs in [false, true] {
            if graphs {
                gpu.record_graphs().expect("graphs");
            }
            let (mut asked, mut wanted) = (Vec::new(), Vec::new());
            for prompt in fixture.prompts.iter().filter(|prompt| prompt.ids.len() < 250) {
                let row = Row { ids: &prompt.ids, start: 0, end: prompt.ids.len(), blocks: &blocks(0..16) };
                let states = cpu.hidden(row);
                let mean = (0..states[0].len()).map(|at| states.iter().map(|state| state[at]).sum::<f32>());
                let mean: Vec<f32> = mean.map(|sum| sum / states.len() as f32).collect();
                let last = states.last().expect("at least one token").clone();
                for (pooling, vector) in [(Some(Pooling::Mean), mean), (Some(Pooling::Last), last), (None, Vec::new())]
                {
                    let mut request = request(&prompt.ids, SamplingParams::greedy());
                    (request.pooling, request.stop.max_tokens, request.stop.min_tokens) = (pooling, 1, 0);
                    asked.push(request);
                    wanted.push(vector);
                }
            }
            let (_, pooled) = drive_pooling(&mut gpu, &asked, true);
            let (mut strays, is_routed) = (0, is_routed(&fixture));
            for (index, wanted) in wanted.iter().enumerate() {
                let place = format!("{} request {index}, graphs {graphs}", fixture.family());
                let Some(found) = pooled.get(&index) else {
                    assert!(wanted.is_empty(), "{place}: no vector");
                    continue;
                };
                let error = relative_error(found, wanted);
                let is_near = error < 2.0 * tolerance(DType::F16);
                assert!(is_near || is_routed && error.is_finite(), "{place}: {error:e}");
                strays += usize::from(!is_near);
            }
            assert!(strays <= pooled.len() / 4, "{}: {strays} of {} are far off", fixture.family(), pooled.len());
        }
    }
}

/// Greedy answers are the same as long as the best token's lead is larger than what two ways to compute differ by; their
/// log-probabilities are near each other until they part. How many tokens are the same.
pub(super) fn assert_near(place: &str, one: &Answer, other: &Answer) -> usize {
    assert_eq!(one.len(), other.len(), "{place}");
    for (position, (one, other)) in one.iter().zip(other).enumerate() {
        let (a, b) = (one.1.as_ref().expect("asked for"), other.1.as_ref().expect("asked for"));
        let lead = a.top[0].1 - a.top[1].1;
        assert!((a.top[0].1 - b.top[0].1).abs() < 0.1, "{place} at {position}: {a:?} {b:?}");
        if one.0 != other.0 {
            assert!(lead < 0.1, "{place} at {position}: another choice, with a lead of {lead}");
            return position;
        }
    }
    one.len()
}

/// Alone and in a batch the matrix products differ in their last bits, so choices are compared while they agree, and
/// log-probabilities within the tolerance.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_batched_answers_are_near_those_alone() {
    let greedy = SamplingParams { temperature: 0.0, logprobs: Some(5), ..SamplingParams::default() };
    for fixture in wide_fixtures() {
        let mut gpu = runner(&fixture, DType::Bf16);
        gpu.record_graphs().expect("graphs");
        let (requests, is_routed) = (requests(&fixture, &greedy), is_routed(&fixture));
        let together = drive(&mut gpu, &requests, false);
        let (mut strays, mut compared) = (Vec::new(), 0);
        for (request, together) in requests.iter().zip(&together) {
            let alone = drive(&mut gpu, std::slice::from_ref(request), false).remove(0);
            for (position, (alone, together)) in alone.iter().zip(together).enumerate() {
                let (a, b) = (alone.1.as_ref().expect("asked for"), together.1.as_ref().expect("asked for"));
                let (lead, place) = (a.top[0].1 - a.top[1].1, format!("{} at {position}", fixture.family()));
                compared += 1;
                let is_near = (a.top[0].1 - b.top[0].1).abs() < 0.1 && (alone.0 == together.0 || lead < 0.1);
                if !is_near {
                    strays.push(format!("{place}, with a lead of {lead}: {a:?} {b:?}"));
                }
                if alone.0 != together.0 {
                    break;
                }
            }
        }
        let strays = but_strays(fixture.family(), strays, compared, is_routed.then_some(STRAYS));
        assert!(strays.is_empty(), "{}", strays.join("\n"));
    }
}

/// Set in the process that breaks its GPU context, which no other test may share.
const BREAKS: &str = "LANTERN_TEST_BREAKS_THE_GPU";

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_step_that_breaks_the_gpu_is_an_error_and_so_is_every_step_after() {
    let name = "runner::gpu::tests::cuda_a_step_that_breaks_the_gpu_is_an_error_and_so_is_every_step_after";
    if std::env::var_os(BREAKS).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this test"));
        let output = child.args(["--ignored", "--exact", name]).env(BREAKS, "1").output().expect("a process");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let fixture = dense_fixtures().remove(0);
    let mut gpu = runner(&fixture, DType::Bf16);
    let request = request(&[3], SamplingParams::default());
    gpu.start(SeqId(1), Arc::new(request), 0, 7);
    let planned = SchedulerOutput {
        rows: vec![crate::scheduler::ScheduledRow {
            seq: SeqId(1),
            start: 0,
            tokens: 0..1,
            blocks: 0..1,
            follows_sample: false,
            samples: 0..1,
            prompt_logprobs: false,
        }],
        tokens: vec![3],
        // Far outside the cache: what the scheduler's own checks never let through.
        block_tables: vec![BlockId(1 << 27)],
        samples: vec![SeqId(1)],
        ..SchedulerOutput::default()
    };
    let broken = gpu.begin(&planned).and_then(|()| gpu.collect()).expect_err("an illegal address").to_string();
    assert!(broken.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{broken}");
    assert!(gpu.begin(&planned).and_then(|()| gpu.collect()).is_err(), "the context is lost");
}
