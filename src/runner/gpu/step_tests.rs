//! Steps of the GPU beside themselves: mixed or each row alone, recorded or not, copied blocks; and what they leave of the
//! memory. Needs an NVIDIA GPU.

use std::num::NonZeroUsize;
use std::path::Path;

use crate::config::{EngineConfig, Lag, StepSizes};
use crate::cuda::{DType, Gpu};
use crate::kv_cache::BlockId;
use crate::models::{Decoder, ModelSource};
use crate::ops::Compute;
use crate::request::{Request, SamplingParams};
use crate::runner::golden::{Fixture, Row, blocks};
use crate::runner::model_runner::ModelRunner;
use crate::runner::plan::{Placement, plan};
use crate::scheduler::SchedulerConfig;

use super::golden_tests::compare;
use super::load::{GpuTarget, load, record};
use super::tests::{
    CONTEXT, Making, SIZES, assert_near, dense_fixtures, drive_by, limits, request, requests, runner, tolerance,
};
use super::{GpuRunner, Way};

/// Blocks of a cache in which nothing is preempted.
const MANY_BLOCKS: u64 = 256;

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, logprobs: Some(5), ..SamplingParams::default() }
}

/// A runner on the CPU, in float.
fn cpu_runner(fixture: &Fixture) -> ModelRunner {
    let source = ModelSource::open(&fixture.folder).expect("the fixture loads");
    let compute = Compute::cpu(NonZeroUsize::new(2));
    let config = EngineConfig {
        kv_cache_bytes: Some(128 << 20),
        context_length: Some(CONTEXT as u32),
        ..EngineConfig::default()
    };
    let plan = plan(&source.spec, 0, &config, SIZES, Placement::CPU, 1 << 30).expect("it fits");
    assert!(u64::from(plan.blocks) >= MANY_BLOCKS, "{plan:?}");
    let model = Decoder::load(&compute, source.spec, &source.weights, CONTEXT as u32).expect("weights");
    ModelRunner::new(compute, model, &plan, SIZES.max_step_tokens as usize).expect("memory")
}

/// Three answers to each prompt, whose last block is not full: it is copied for each but the last of them. Draws at a
/// temperature are the same on both until a hair's breadth parts them; log-probabilities are near until then.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_choices_of_a_prompt_are_near_those_of_the_cpu() {
    let warm = SamplingParams { temperature: 0.9, logprobs: Some(5), ..SamplingParams::default() };
    for fixture in dense_fixtures() {
        let mut gpu = Making { blocks: MANY_BLOCKS, ..Making::of(DType::F16) }.runner(&fixture);
        gpu.record_graphs().expect("graphs");
        let asked = requests(&fixture, &warm).into_iter().filter(|request| !request.prompt.len().is_multiple_of(16));
        let asked: Vec<Request> = asked.map(|request| Request { n: 3, ..request }).collect();
        assert!(asked.len() >= 2, "{}: too few prompts end within a block", fixture.family());
        let config = SchedulerConfig { num_blocks: MANY_BLOCKS as u32, ..limits() };
        let (found, _) = drive_by(&mut gpu, config.clone(), &asked);
        let on_cpu = SchedulerConfig { lag: Lag::Zero, ..config };
        let (wanted, _) = drive_by(&mut cpu_runner(&fixture), on_cpu, &asked);
        assert_eq!((found.len(), wanted.len()), (3 * asked.len(), 3 * asked.len()));
        let (mut same, mut all) = (0, 0);
        for (choice, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert_eq!((found.len(), wanted.len()), (40, 40));
            all += wanted.len();
            for (position, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                let (a, b) = (found.1.as_ref().expect("asked for"), wanted.1.as_ref().expect("asked for"));
                let place = format!("{} choice {choice} at {position}", fixture.family());
                assert!((a.top[0].1 - b.top[0].1).abs() < 0.1, "{place}: {a:?} {b:?}");
                if found.0 != wanted.0 {
                    break;
                }
                same += 1;
            }
        }
        println!("{}: {same} of {all} draws before answers part", fixture.family());
        assert!(2 * same >= all, "{}: {same} of {all} draws before answers part", fixture.family());
        let tokens = |choice: usize| found[choice].iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert!(tokens(0) != tokens(1) || tokens(1) != tokens(2), "each choice draws by itself");
    }
}

/// Matrix products take other kernels for other numbers of rows, no more.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_mixed_batches_are_near_each_row_alone_on_the_gpu() {
    for fixture in dense_fixtures() {
        let (mut together, mut alone) = (runner(&fixture, DType::Bf16), runner(&fixture, DType::Bf16));
        let tables: Vec<Vec<BlockId>> = (0..3).map(|index| blocks(16 * index..16 * index + 16)).collect();
        let prompts: Vec<&[u32]> = fixture.prompts[..3].iter().map(|prompt| prompt.ids.as_slice()).collect();
        let row = |&(index, start, end): &(usize, usize, usize)| Row {
            ids: prompts[index],
            start,
            end,
            blocks: &tables[index],
        };
        let last = prompts[2].len();
        let steps =
            [vec![(0, 0, 1), (1, 0, 9), (2, 0, 40)], vec![(2, 40, last), (1, 9, 10)], vec![(1, 10, prompts[1].len())]];
        for (number, step) in steps.iter().enumerate() {
            let found = together.logits_of(&step.iter().map(row).collect::<Vec<_>>());
            let wanted: Vec<Vec<f32>> = step.iter().flat_map(|part| alone.logits_of(&[row(part)])).collect();
            compare(&format!("{} step {number}", fixture.family()), &found, &wanted, tolerance(DType::Bf16));
        }
    }
}

impl GpuRunner {
    /// The logits of every token of a step of `rows`, filled up as its recorded step is: by that, or kernel by kernel.
    fn padded_logits_of(&mut self, rows: &[Row<'_>], by_graph: bool) -> Vec<Vec<f32>> {
        let tokens = self.put(rows);
        let padding = self.padding(Way::Mixed);
        self.upload(0, padding).expect("a step");
        let recorded = self.recorded(Way::Mixed).expect("a step of this size is recorded");
        if by_graph {
            self.gpu.gpu().launch_graph(&recorded.graph).expect("a step");
        } else {
            self.run_padded(padding).expect("a step");
        }
        self.all_logits(tokens)
    }
}

/// Rows of one token and chunks of prompts, `tokens` in all, in blocks from `first` on.
struct LongStep {
    ids: Vec<u32>,
    parts: Vec<(usize, usize)>,
    tables: Vec<Vec<BlockId>>,
}

impl LongStep {
    fn new(fixture: &Fixture, tokens: usize, first: u32) -> Self {
        let ids = fixture.prompts.iter().flat_map(|prompt| &prompt.ids).copied();
        let ids: Vec<u32> = ids.collect::<Vec<_>>().into_iter().cycle().skip(first as usize).take(CONTEXT).collect();
        let mut parts = vec![(200, 201); 3];
        let mut left = tokens - parts.len();
        while left > 0 {
            parts.push((0, left.min(CONTEXT - 6)));
            left -= left.min(CONTEXT - 6);
        }
        let tables = (0..parts.len() as u32).map(|row| blocks(first + 16 * row..first + 16 * (row + 1))).collect();
        Self { ids, parts, tables }
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let parts = self.parts.iter().zip(&self.tables);
        parts.map(|(&(start, end), blocks)| Row { ids: &self.ids, start, end, blocks }).collect()
    }
}

/// A recorded step is, bit for bit, what the same step is kernel by kernel, and near what it is without padding. Answers that
/// go through such steps are near those without any that is recorded.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_long_steps_are_the_same_by_graphs() {
    let sizes = StepSizes { max_step_tokens: 1024, ..SIZES };
    for fixture in dense_fixtures() {
        let mut gpu = Making { sizes, blocks: MANY_BLOCKS, ..Making::of(DType::Bf16) }.runner(&fixture);
        let prompts = fixture.prompts.iter().cycle().take(16);
        let asked: Vec<Request> = prompts.map(|prompt| request(&prompt.ids, greedy())).collect();
        let prompt_tokens: usize = asked.iter().map(|request| request.prompt.len()).sum();
        assert!(prompt_tokens > 1024, "{}: {prompt_tokens} tokens fill no step", fixture.family());
        let config = SchedulerConfig {
            num_blocks: MANY_BLOCKS as u32,
            max_step_tokens: sizes.max_step_tokens,
            max_prompt_chunk_while_decoding: 400,
            ..limits()
        };
        let (eager, _) = drive_by(&mut gpu, config.clone(), &asked);
        gpu.record_graphs().expect("graphs");
        for tokens in [257, 300, 576, 700, 1000, 1024] {
            let place = format!("{} {tokens} tokens", fixture.family());
            let (own, other) = (LongStep::new(&fixture, tokens, 0), LongStep::new(&fixture, tokens, 128));
            let plain = gpu.logits_of(&own.rows());
            let padded = gpu.padded_logits_of(&own.rows(), false);
            // What the graph is held to is not left over from the step before.
            assert!(gpu.logits_of(&other.rows()) != padded, "{place}: another step");
            let by_graph = gpu.padded_logits_of(&own.rows(), true);
            assert!(by_graph == padded, "{place}: the graph changes bits");
            compare(&place, &by_graph, &plain, tolerance(DType::Bf16));
        }
        let (by_graphs, _) = drive_by(&mut gpu, config, &asked);
        let near = |(found, wanted)| assert_near(fixture.family(), found, wanted);
        let same: usize = by_graphs.iter().zip(&eager).map(near).sum();
        assert!(2 * same >= 40 * asked.len(), "{}: {same} tokens before answers part", fixture.family());
    }
}

/// Nothing is allocated after start, by us or by a library: not for the first long prompt either.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_does_not_change_once_a_model_is_ready() {
    let sizes = StepSizes { max_step_tokens: 2600, ..SIZES };
    let fixture = dense_fixtures().remove(0);
    let mut gpu = Making { sizes, blocks: MANY_BLOCKS, ..Making::of(DType::Bf16) }.runner(&fixture);
    record(&mut gpu).expect("graphs");
    let state = |gpu: &GpuRunner| {
        let gpu = gpu.gpu.gpu();
        gpu.synchronize().expect("it runs");
        (gpu.allocated(), gpu.memory().expect("an answer"))
    };
    let before = state(&gpu);
    let config = SchedulerConfig {
        num_blocks: MANY_BLOCKS as u32,
        max_step_tokens: sizes.max_step_tokens,
        max_prompt_chunk_while_decoding: 300,
        ..limits()
    };
    let warm = SamplingParams { top_p: 0.9, top_k: Some(40), logprobs: Some(20), ..SamplingParams::default() };
    let longest = fixture.prompts.iter().max_by_key(|prompt| prompt.ids.len()).expect("prompts");
    assert!(13 * longest.ids.len() >= 2600, "a first step that no graph is for");
    for params in [greedy(), warm] {
        let prompts = std::iter::repeat_n(longest, 13).chain(&fixture.prompts);
        let asked: Vec<Request> = prompts.map(|prompt| request(&prompt.ids, params.clone())).collect();
        drive_by(&mut gpu, config.clone(), &asked);
    }
    // Longer than what is recorded.
    for tokens in [2600, 2411] {
        gpu.logits_of(&LongStep::new(&fixture, tokens, 0).rows());
    }
    assert_eq!(state(&gpu), before);
}

/// The same of a model whose longest steps have 8,192 tokens, by the driver's count alone.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_does_not_change_by_long_prompts() {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
    let source = ModelSource::random(&shapes.join("qwen2.5-1.5b.json")).expect("a shape");
    let vocab = source.spec.vocab as u32;
    let config = EngineConfig { context_length: Some(8192), kv_cache_bytes: Some(2 << 30), ..EngineConfig::default() };
    let gpu = Gpu::open(0).expect("an NVIDIA GPU");
    let target = GpuTarget { ordinal: 0, library_folders: Vec::new(), main_bytes: 0 };
    let (mut runner, loaded) = load(source, &config, &target).expect("it fits");
    let sizes = loaded.sizes;
    assert_eq!(sizes.max_step_tokens, StepSizes::GPU.max_step_tokens, "a card of 24 GB or more");
    let (before, _) = gpu.memory().expect("an answer");
    let config = SchedulerConfig {
        num_blocks: loaded.plan.blocks,
        max_sequences: sizes.max_sequences,
        max_step_tokens: sizes.max_step_tokens,
        max_prompt_chunk_while_decoding: sizes.max_prompt_chunk_while_decoding,
        prompt_tokens_per_decode: sizes.prompt_tokens_per_decode,
        prompt_tokens_per_waiting: sizes.prompt_tokens_per_waiting,
        step_multiple: sizes.step_multiple,
        max_model_len: loaded.plan.context_length,
        ..limits()
    };
    for lens in [vec![400; 30], vec![8000], vec![5000], vec![3001], vec![2500, 700, 90, 16]] {
        let prompt = |(index, len): (usize, &usize)| {
            let ids = (0..*len as u32).map(|at| (at * 7919 + 131 * index as u32) % vocab);
            let mut request = request(&ids.collect::<Vec<_>>(), SamplingParams::default());
            (request.stop.max_tokens, request.stop.min_tokens) = (8, 8);
            request
        };
        let asked: Vec<Request> = lens.iter().enumerate().map(prompt).collect();
        drive_by(&mut *runner, config.clone(), &asked);
        let (after, _) = gpu.memory().expect("an answer");
        assert_eq!(after, before, "bytes free after prompts of {lens:?} tokens");
    }
}
