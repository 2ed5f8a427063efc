//! The memory plan held to the truth: a model under a limit takes what was planned, by our count and by the driver's.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::load::{GpuTarget, load_on};
use crate::config::{EngineConfig, KvDType, Lag, RandomFormat};
use crate::cuda::Gpu;
use crate::kv_cache::BlockId;
use crate::models::ModelSource;
use crate::request::{Request, SamplingParams, SeqId, StopConditions, Tenant};
use crate::runner::plan::{GpuMemory, PartWeights, plan_layers, usable_bytes};
use crate::runner::step::StepRunner;
use crate::scheduler::{ScheduledRow, SchedulerOutput};

const MIB: f64 = (1 << 20) as f64;

/// How far what is taken may be from the plan, as a share of it.
const TOLERANCE: f64 = 0.03;

/// The one GPU of these tests, each of whose cases sets its limit anew: to open it takes long where the driver compiles the
/// kernels. It holds the context, so that what the driver says of free memory is not of its own needs.
fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Gpu::open(0).expect("an NVIDIA GPU"));
    gpu.bind().expect("the GPU was opened");
    gpu.clone()
}

/// A model that does not fit: as many layers as fit are there, and no byte more than the limit is taken. A step runs.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_of_a_model_in_two_parts_is_what_was_planned() {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
    let source = ModelSource::random(&shapes.join("qwen2.5-1.5b.json")).expect("a shape");
    let (limit, layers) = (3_u64 << 30, source.spec.layers as u32);
    let config =
        EngineConfig { gpu_memory_limit_bytes: Some(limit), context_length: Some(2048), ..EngineConfig::default() };
    let gpu = gpu();
    let (before, _) = gpu.memory().expect("an answer");
    let target = GpuTarget { ordinal: 0, library_folders: Vec::new(), main_bytes: 32 << 30 };
    let (mut runner, loaded) = load_on(gpu.clone(), source, &config, &target).expect("it fits in parts");
    let (after, _) = gpu.memory().expect("an answer");
    let offload = loaded.offload.expect("layers on the CPU");
    let (planned, used) = (loaded.plan.total_bytes(), loaded.used_bytes.expect("counted"));
    let of_driver = (before - after) as u64;
    println!(
        "{offload}: {offload:?}; planned {planned}, counted {used}, by the driver {of_driver}; {:?}",
        loaded.sizes
    );
    assert_eq!(offload.gpu_layers + offload.cpu_layers, layers);
    assert!(offload.gpu_layers > 0 && offload.cpu_layers > 0, "{offload:?}");
    assert!(offload.gpu_bytes_per_second.is_some() && offload.cpu_bytes_per_second.is_some(), "{offload:?}");
    let apart = (used as f64 / planned as f64 - 1.0).abs();
    assert!(apart <= TOLERANCE, "{:.1} % from the plan", 100.0 * apart);
    assert!(used <= limit && of_driver <= limit, "more than {limit} bytes");
    assert_eq!(loaded.sizes.lag, Lag::Zero);
    let rate = decode_rate(&mut *runner);
    let expected = offload.expected_tokens_per_second().expect("both rates are known");
    println!("{rate:.1} tokens a second, at most {expected:.1} expected");
    assert!(rate > 0.0 && rate < 1.3 * expected, "{rate} tokens a second, and {expected} expected at most");
}

/// Tokens each second of one sequence.
fn decode_rate(runner: &mut dyn StepRunner) -> f64 {
    const STEPS: u32 = 20;
    let stop = StopConditions {
        max_tokens: 1000,
        min_tokens: 0,
        ignore_eos: true,
        eos_token_ids: Arc::from([]),
        stop_token_ids: vec![],
    };
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let prompt = [3].as_slice().into();
    let request = Request {
        prompt,
        n: 1,
        sampling,
        stop,
        tenant: Tenant::default(),
        cache_salt: None,
        priority: 0,
        masks: None,
        pooling: None,
        answered: 0,
    };
    let seq = SeqId(0);
    runner.start(seq, Arc::new(request), 0, 7);
    let (mut token, mut started) = (3, Instant::now());
    for start in 0..=STEPS {
        if start == 1 {
            // The first step reads the files.
            started = Instant::now();
        }
        let row = ScheduledRow {
            seq,
            start,
            tokens: 0..1,
            blocks: 0..2,
            follows_sample: false,
            samples: 0..1,
            prompt_logprobs: false,
        };
        let planned = SchedulerOutput {
            rows: vec![row],
            tokens: vec![token],
            block_tables: vec![BlockId(1), BlockId(0)],
            samples: vec![seq],
            ..SchedulerOutput::default()
        };
        runner.begin(&planned).expect("a step");
        let output = runner.collect().expect("a step");
        assert!(output.failed.is_empty(), "{:?}", output.failed);
        token = output.sampled[0].token;
    }
    f64::from(STEPS) / started.elapsed().as_secs_f64()
}

/// A config.json below `tests`, what its random weights are in, a limit in GiB, a context, and the type of the KV cache.
type Case = (&'static str, RandomFormat, u64, Option<u32>, Option<KvDType>);

/// Dense models, those that people have at 4 bit with the cards they have them on, models of experts and of latents, and the
/// other formats.
const CASES: [Case; 13] = [
    ("shapes/qwen2.5-1.5b", RandomFormat::Bf16, 5, Some(4096), None),
    ("shapes/qwen2.5-1.5b", RandomFormat::Bf16, 8, None, None),
    ("shapes/llama-3.1-8b", RandomFormat::Bf16, 24, Some(8192), None),
    ("fixtures/plans/qwen2.5-1.5b", RandomFormat::Q4KM, 3, Some(8192), None),
    ("fixtures/plans/qwen2.5-7b", RandomFormat::Q4KM, 8, Some(8192), None),
    ("fixtures/plans/llama-2-13b", RandomFormat::Q4KM, 16, Some(4096), None),
    ("fixtures/plans/qwen2.5-32b", RandomFormat::Q4KM, 24, Some(8192), None),
    ("shapes/deepseek-v2-lite", RandomFormat::Q4KM, 16, Some(8192), None),
    ("shapes/qwen3-30b-a3b", RandomFormat::Q4KM, 24, Some(8192), None),
    ("shapes/llama-3.1-8b", RandomFormat::Int4, 12, Some(8192), None),
    ("shapes/llama-3.1-8b", RandomFormat::Int4, 12, Some(8192), Some(KvDType::Fp8)),
    ("shapes/llama-3.1-8b", RandomFormat::Fp8, 16, Some(8192), None),
    ("shapes/llama-3.1-8b", RandomFormat::Fp8, 16, Some(8192), Some(KvDType::Fp8)),
];

/// Every case fits its card as a whole, so that what is measured on one is a model on a GPU alone.
#[test]
fn all_cases_of_memory_fit_as_a_whole() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (file, format, gib, context_length, kv_dtype) in CASES {
        let source = ModelSource::random_in(&tests.join(format!("{file}.json")), format).expect("a shape");
        let config = EngineConfig { context_length, kv_dtype, ..EngineConfig::default() };
        let memory = GpuMemory { free_bytes: usable_bytes(80 << 30, Some(gib << 30)), is_f16: false };
        for takes_fp8 in [false, true] {
            let weights = |first| PartWeights::of(&source, first, takes_fp8);
            let place = format!("{file} in {format:?} in {gib} GiB");
            let plan = plan_layers(&source.spec, &weights, &config, memory, 0);
            let plan = plan.unwrap_or_else(|error| panic!("{place}: {error}"));
            assert!(plan.cpu.is_none(), "{place}: {plan:?}");
            assert_eq!(plan.gpu.kv_dtype, kv_dtype.unwrap_or(KvDType::Bf16), "{place}");
        }
    }
}

/// A model with a KV cache of many contexts gives back all but one, and takes it again.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_that_a_cache_gives_back_is_what_is_said() {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
    let source = ModelSource::random(&shapes.join("qwen2.5-1.5b.json")).expect("a shape");
    let config =
        EngineConfig { gpu_memory_limit_bytes: Some(8 << 30), context_length: Some(8192), ..EngineConfig::default() };
    let gpu = gpu();
    let target = GpuTarget { ordinal: 0, library_folders: Vec::new(), main_bytes: 0 };
    let (mut runner, loaded) = load_on(gpu.clone(), source, &config, &target).expect("it fits");
    let free = || gpu.memory().expect("an answer").0 as u64;
    let (plan, before) = (loaded.plan, free());
    let rate = decode_rate(&mut *runner);
    let started = Instant::now();
    let small = runner.resize_kv(plan.least_blocks(), 0).expect("memory is given back");
    println!("{small:?} of {} blocks in {:?}", plan.blocks, started.elapsed());
    // The driver's tables of pages may take some more.
    let given_back = |bytes: u64| assert!((free() - bytes).abs_diff(before) <= 8 << 20, "{} and {before}", free());
    assert_eq!(small.blocks, 512);
    given_back(small.given_back_bytes);
    let left = plan.kv_bytes() - small.given_back_bytes;
    // 56 planes, each of which may begin and end inside of a page.
    let most = u64::from(small.blocks) * plan.block_bytes + 56 * (4 << 20);
    assert!(left <= most, "{left} bytes are left, {most} at most were expected");
    println!("{rate:.1} tokens a second, then {:.1}", decode_rate(&mut *runner));
    let started = Instant::now();
    let grown = runner.resize_kv(plan.blocks, 0).expect("memory");
    println!("{grown:?} in {:?}", started.elapsed());
    assert_eq!((grown.blocks, grown.given_back_bytes), (plan.blocks, 0));
    given_back(0);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_under_a_limit_is_what_was_planned() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (file, format, gib, context_length, kv_dtype) in CASES {
        let (limit, started) = (gib << 30, Instant::now());
        let name = format!("{file} in {format:?}, a cache of {kv_dtype:?}");
        let source = ModelSource::random_in(&tests.join(format!("{file}.json")), format).expect("a shape");
        let config =
            EngineConfig { gpu_memory_limit_bytes: Some(limit), context_length, kv_dtype, ..EngineConfig::default() };
        let gpu = gpu();
        let (before, _) = gpu.memory().expect("an answer");
        let target = GpuTarget { ordinal: 0, library_folders: Vec::new(), main_bytes: 0 };
        let (runner, loaded) = load_on(gpu.clone(), source, &config, &target).expect("it fits");
        let (after, _) = gpu.memory().expect("an answer");
        let (planned, used) = (loaded.plan.total_bytes(), loaded.used_bytes.expect("counted"));
        let of_driver = (before - after) as u64;
        let mib = |bytes: u64| bytes as f64 / MIB;
        println!(
            "{name} in {gib} GiB: planned {:.0} MiB, counted {:.0}, by the driver {:.0} ({:+.2} %), {:.1} s; {:?} {:?}",
            mib(planned),
            mib(used),
            mib(of_driver),
            100.0 * (of_driver as f64 / planned as f64 - 1.0),
            started.elapsed().as_secs_f64(),
            loaded.plan,
            loaded.sizes
        );
        let apart = (used as f64 / planned as f64 - 1.0).abs();
        assert!(apart <= TOLERANCE, "{name} in {gib} GiB: {:.1} % from the plan", 100.0 * apart);
        let by_driver = (of_driver as f64 / planned as f64 - 1.0).abs();
        assert!(by_driver <= TOLERANCE, "{name} in {gib} GiB: the driver counts {of_driver} bytes");
        assert!(used <= limit && of_driver <= limit, "{name}: more than {gib} GiB");
        drop(runner);
    }
}
