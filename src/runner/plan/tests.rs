//! Plans for the cards and models that people have, and what is said where they do not fit.

use std::path::Path;

use super::gpu::{DRIVER_BYTES, GpuMemory, GpuWeights, plan_for_gpu};
use super::offload::{LayerPlan, PartWeights, plan_layers};
use super::*;
use crate::config::{GpuLayers, Lag, RandomFormat, RandomModel, WeightFormat};
use crate::models::ModelSource;
use crate::runner::golden::with_fp8_embedding;
use crate::runner::load::ModelFiles;
use crate::weights::WeightName;

const GIB: u64 = 1 << 30;

/// A config.json below `tests/fixtures/plans`.
fn config_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/plans").join(format!("{name}.json"))
}

/// Weights as a Q4_K_M file of such a model holds them, in bytes, and what half-filled pages lose.
fn q4_k_m(spec: &DecoderSpec, file_bytes: u64) -> GpuWeights {
    let dense_bytes = 2 * (2 * spec.ffn * spec.hidden) as u64;
    GpuWeights { bytes: file_bytes + ((4 * spec.layers as u64) << 20), dense_bytes }
}

/// Card in GiB, model, bytes of its Q4_K_M file, context, and the users of it that must fit.
const TARGETS: [(u64, &str, u64, u32, u32); 5] = [
    (3, "qwen2.5-1.5b", 986_048_768, 8192, 1),
    (8, "qwen2.5-7b", 4_683_073_536, 8192, 2),
    (16, "llama-2-13b", 7_865_956_224, 4096, 1),
    (24, "qwen2.5-32b", 19_851_335_840, 4096, 1),
    (24, "qwen2.5-32b", 19_851_335_840, 8192, 1),
];

#[test]
fn models_at_4_bit_fit_the_cards_that_people_have() {
    for (gib, name, file_bytes, context, users) in TARGETS {
        let spec = ModelSource::random(&config_file(name)).expect("a config").spec;
        let config = EngineConfig { context_length: Some(context), ..EngineConfig::default() };
        let memory = GpuMemory { free_bytes: gib * GIB - DRIVER_BYTES, is_f16: false };
        let (plan, sizes) = plan_for_gpu(&spec, q4_k_m(&spec, file_bytes), &config, memory)
            .unwrap_or_else(|error| panic!("{name} in {gib} GiB: {error}"));
        let found = plan.full_contexts();
        assert!(found >= users, "{name} in {gib} GiB: {found} users of {context} tokens, {plan:?} {sizes:?}");
        assert!(plan.total_bytes() + DRIVER_BYTES <= gib * GIB, "{name}: {plan:?}");
    }
}

#[test]
fn a_small_card_has_smaller_steps_and_one_that_is_nearly_full_the_smallest() {
    let spec = ModelSource::random(&config_file("qwen2.5-7b")).expect("a config").spec;
    let sizes = |free_bytes, weight_bytes| {
        let weights = GpuWeights { bytes: weight_bytes, dense_bytes: 0 };
        let config = EngineConfig { context_length: Some(1024), ..EngineConfig::default() };
        plan_for_gpu(&spec, weights, &config, GpuMemory { free_bytes, is_f16: false }).expect("it fits").1
    };
    assert_eq!(sizes(80 * GIB, 16 * GIB), StepSizes::GPU);
    assert_eq!(sizes(16 * GIB, 5 * GIB), StepSizes::SMALL_GPU);
    assert_eq!(sizes(24 * GIB, 20 * GIB), StepSizes::TINY_GPU);
}

#[test]
fn tables_are_made_for_the_context_that_fits() {
    let spec = ModelSource::random(&config_file("qwen2.5-7b")).expect("a config").spec;
    let weights = GpuWeights { bytes: 6 * GIB, dense_bytes: 0 };
    let memory = GpuMemory { free_bytes: 8 * GIB, is_f16: false };
    let (plan, sizes) = plan_for_gpu(&spec, weights, &EngineConfig::default(), memory).expect("it fits");
    assert!(plan.context_length < spec.max_context && plan.full_contexts() == 1, "{plan:?}");
    let tables = gpu::kernel_bytes(&spec, sizes, plan.context_length as usize);
    assert!(plan.kernel_bytes - tables < 64 << 20, "{plan:?} {tables}");
    let usable = (memory.free_bytes as f64 * USABLE_SHARE) as u64;
    let left = usable - plan.total_bytes();
    assert!(left < 200 << 20, "{left} bytes are left over");
}

#[test]
fn with_less_than_the_least_context_a_model_does_not_fit() {
    let spec = ModelSource::random(&config_file("qwen2.5-7b")).expect("a config").spec;
    let weights = GpuWeights { bytes: 6 * GIB, dense_bytes: 0 };
    let fit = |least_context, context_length| {
        let config = EngineConfig { least_context, context_length, ..EngineConfig::default() };
        plan_for_gpu(&spec, weights, &config, GpuMemory { free_bytes: 8 * GIB, is_f16: false }).map(|(plan, _)| plan)
    };
    let most = fit(0, None).expect("it fits").context_length;
    assert!((1024..spec.max_context).contains(&most), "{most}");
    assert_eq!(fit(1024, None).expect("it fits").context_length, most);
    let refused = fit(most + 1024, None).expect_err("less than the least");
    let PlanError::DoesNotFit { least_kv_bytes, .. } = refused else { panic!("{refused}") };
    let block_bytes = block_bytes(&spec, KvDType::Bf16);
    assert_eq!(least_kv_bytes, u64::from(most + 1024).div_ceil(16) * block_bytes);
    assert_eq!(fit(most + 1024, Some(512)).expect("no more is wanted").context_length, 512);
    // Below the least by what was set, not for want of memory.
    let kv_cache_bytes = Some(64 * block_bytes);
    let config = EngineConfig { least_context: 8192, kv_cache_bytes, ..EngineConfig::default() };
    let small = plan(&spec, GIB, &config, StepSizes::CPU, Placement::CPU, 64 * GIB).expect("it fits");
    assert!(small.context_length < 8192, "{small:?}");
}

#[test]
fn a_kv_cache_that_was_asked_for_is_all_there_or_refused_and_a_share_takes_what_there_is() {
    let spec = ModelSource::random(&config_file("qwen2.5-7b")).expect("a config").spec;
    let on_cpu = |kv_cache_bytes, kv_cache_most_bytes| {
        let config = EngineConfig { kv_cache_bytes, kv_cache_most_bytes, ..EngineConfig::default() };
        plan(&spec, 6 * GIB, &config, StepSizes::CPU, Placement::CPU, 16 * GIB).map(|plan| plan.kv_bytes())
    };
    let block_bytes = block_bytes(&spec, KvDType::F32);
    assert_eq!(on_cpu(Some(GIB), None), Ok(GIB / block_bytes * block_bytes));
    let Err(refused) = on_cpu(Some(64 * GIB), None) else { panic!("it is cut") };
    let PlanError::KvCacheTooLarge { asked_bytes, fit_bytes } = refused else { panic!("{refused}") };
    assert_eq!((asked_bytes, refused.is_for_want_of_memory()), (64 * GIB, true));
    assert!(refused.to_string().starts_with("a KV cache of 68.7 GB does not fit: there is room for "), "{refused}");
    let whole = fit_bytes / block_bytes * block_bytes;
    assert_eq!((on_cpu(Some(fit_bytes), None), on_cpu(None, Some(64 * GIB))), (Ok(whole), Ok(whole)));
    // On two places, too: where main memory cannot hold as much of it as the GPU does.
    let config =
        EngineConfig { kv_cache_bytes: Some(GIB), gpu_layers: GpuLayers::Count(14), ..EngineConfig::default() };
    let weights = |_| PartWeights { gpu: GpuWeights { bytes: GIB, dense_bytes: 0 }, cpu_bytes: GIB };
    let memory = GpuMemory { free_bytes: 8 * GIB, is_f16: false };
    assert!(plan_layers(&spec, &weights, &config, memory, 8 * GIB).is_ok());
    let refused = plan_layers(&spec, &weights, &config, memory, 2 * GIB).expect_err("half of it is on the CPU");
    assert!(matches!(refused, PlanError::KvCacheTooLarge { asked_bytes: GIB, .. }), "{refused}");
}

#[test]
fn the_kv_cache_counts_its_type_and_one_that_is_not_there_is_refused_by_name() {
    let spec = ModelSource::random(&config_file("qwen2.5-1.5b")).expect("a config").spec;
    let on_cpu = |dtype| {
        let config = EngineConfig { kv_dtype: dtype, context_length: Some(4096), ..EngineConfig::default() };
        plan(&spec, GIB, &config, StepSizes::CPU, Placement::CPU, 16 * GIB)
    };
    let bytes = |dtype| on_cpu(dtype).expect("it fits").kv_token_bytes();
    // 28 layers of 2 heads of 128 numbers, K and V.
    let numbers = 28 * 2 * 128 * 2;
    assert_eq!(bytes(None), 4 * numbers);
    assert_eq!(bytes(Some(KvDType::F16)), 2 * numbers);
    assert_eq!(bytes(Some(KvDType::Int8)), numbers + 28 * 2 * 2 * 4);
    let refused = on_cpu(Some(KvDType::Fp8)).expect_err("no kernels").to_string();
    assert_eq!(refused, "there is no KV cache of fp8 on the CPU; what can be had is f32, f16, bf16, int8");
}

/// The shape of DeepSeek-V2-Lite: 27 layers, 16 heads of 128 numbers made of a latent of 512, of which 64 more are rotated.
fn v2_lite() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes/deepseek-v2-lite.json")
}

#[test]
fn a_latent_is_576_values_of_a_token_and_layer_however_many_heads_there_are() {
    let spec = ModelSource::random(&v2_lite()).expect("a shape").spec;
    let weights = GpuWeights { bytes: 12 * GIB, dense_bytes: 0 };
    let config = EngineConfig { context_length: Some(8192), ..EngineConfig::default() };
    let memory = GpuMemory { free_bytes: 24 * GIB, is_f16: false };
    let (plan, _) = plan_for_gpu(&spec, weights, &config, memory).expect("it fits");
    assert_eq!((plan.kv_dtype, plan.kv_token_bytes()), (KvDType::Bf16, 31_104));
    assert_eq!(plan.kv_token_bytes(), 27 * 576 * 2);
}

#[test]
fn a_plan_for_the_cpu_counts_the_keys_of_latents_that_it_has_transposed() {
    let config = EngineConfig { context_length: Some(4096), ..EngineConfig::default() };
    let layer_weights = 16 * 128 * 512;
    // In blocks they are widened to f32.
    for (format, weight_bytes) in [(RandomFormat::Bf16, 2), (RandomFormat::Q4KM, 4)] {
        let files = RandomModel { format, ..RandomModel::default() };
        let planned = preview(ModelFiles::RandomWeights(&v2_lite(), files), &config, MemoryToPlan::Cpu(64 * GIB), None);
        let source = ModelSource::random_in(&v2_lite(), format).expect("a shape");
        let transposed = 27 * layer_weights * weight_bytes;
        assert_eq!(planned.expect("a preview").weight_bytes, source.weight_bytes() + transposed, "{format:?}");
        // Of layers that are divided those of the CPU.
        let on_cpu = |first| PartWeights::of(&source, first, false).cpu_bytes;
        let stored = source.weight_bytes_before(11);
        assert_eq!(on_cpu(11), stored + 11 * layer_weights * weight_bytes, "{format:?}");
    }
}

#[test]
fn a_preview_says_what_fits_or_what_would() {
    let file = config_file("qwen2.5-7b");
    let preview = |gib, context, format| {
        let config = EngineConfig { context_length: context, gpu_layers: GpuLayers::All, ..EngineConfig::default() };
        let memory = MemoryToPlan::Gpu { bytes: gib * GIB, main_bytes: 64 * GIB };
        preview(ModelFiles::RandomWeights(&file, RandomModel::default()), &config, memory, format).expect("a preview")
    };
    let fits = preview(8, Some(8192), Some(WeightFormat::Q4K));
    assert_eq!((fits.reason.as_deref(), fits.context_length), (None, 8192));
    assert!(fits.users >= 2 && fits.would_fit.is_empty(), "{fits:?}");
    assert_eq!(fits.kv_user_bytes, 8192 * fits.kv_token_bytes);
    let sum = fits.weight_bytes + fits.step_bytes + fits.kernel_bytes + fits.graph_bytes + fits.kv_bytes;
    assert_eq!(sum + fits.left_bytes, fits.usable_bytes);
    let too_large = preview(8, Some(8192), None);
    assert_eq!(too_large.users, 0);
    assert!(
        too_large.reason.as_deref().is_some_and(|reason| reason.starts_with("the model needs 15.")),
        "{too_large:?}"
    );
    assert!(too_large.reason.as_deref().is_some_and(|reason| reason.ends_with("--gpu-layers auto")), "{too_large:?}");
    assert!(too_large.would_fit.iter().any(|advice| advice.contains("q6_k")), "{too_large:?}");
    let too_long = preview(24, Some(32_768), Some(WeightFormat::Bf16));
    assert!(too_long.users > 0 || too_long.would_fit.iter().any(|advice| advice.contains("--context")), "{too_long:?}");
}

#[test]
fn a_plan_in_another_format_is_that_of_loading_with_it() {
    // The sizes of files that llama.cpp makes of the same weights as Q8_0, Q6_K and Q4_K_M. In fp8 128 weights take 132
    // bytes, but those of the embedding and of the output layer two each.
    let known = [
        (WeightFormat::Q8_0, 8_098_525_888_u64),
        (WeightFormat::Fp8, (7_615_616_512 - 1_089_994_752) / 128 * 132 + 2 * 1_089_994_752),
        (WeightFormat::Q6K, 6_254_198_976),
        (WeightFormat::Q4K, 4_683_073_536),
    ];
    let file = config_file("qwen2.5-7b");
    let files = ModelFiles::RandomWeights(&file, RandomModel::default());
    for (format, file_bytes) in known {
        let config = EngineConfig { context_length: Some(4096), ..EngineConfig::default() };
        let planned = preview(files, &config, MemoryToPlan::Cpu(64 * GIB), Some(format)).expect("a preview");
        let off = planned.weight_bytes.abs_diff(file_bytes);
        assert!(off < file_bytes / 100, "{}: {} bytes", format.name(), planned.weight_bytes);
        assert_eq!(planned.format, format.name());
        // A setting does what the flag of a plan does, and so does loading.
        let set = EngineConfig { quantize: Some(format), ..config };
        let by_setting = preview(files, &set, MemoryToPlan::Cpu(64 * GIB), None).expect("a preview");
        assert_eq!(by_setting, planned);
        let source = ModelSource::random(&file).expect("a config").quantized(format).expect("it is dense");
        assert_eq!(source.weight_bytes(), planned.weight_bytes);
    }
}

#[test]
fn fp8_is_a_byte_a_weight_and_a_scale_a_row_where_a_card_multiplies_it() {
    let file = config_file("qwen2.5-7b");
    let pages = |bytes: usize| bytes.next_multiple_of(2 << 20) as u64;
    let turned = ModelSource::random(&file).expect("a config").quantized(WeightFormat::Fp8).expect("it is dense");
    for source in [turned, ModelSource::random_in(&file, RandomFormat::Fp8).expect("a config")] {
        let (mut wanted, mut in_stacks) = (0, 0);
        for stack in source.spec.stacks() {
            let rows = stack.parts.iter().map(|(_, rows)| rows).sum::<usize>();
            let elements = rows * stack.columns;
            let is_fp8 = stack.parts[0].0.layer().is_some();
            wanted += if is_fp8 { pages(elements) + 4 * rows as u64 } else { pages(2 * elements) };
            in_stacks += elements as u64;
        }
        let found = GpuWeights::of(&source, 0, true);
        assert_eq!(found.bytes, wanted + 2 * (source.weights.parameters() - in_stacks));
        let blocks = GpuWeights::of(&source, 0, false);
        let (saved, layers) = (blocks.bytes - found.bytes, source.spec.layer_parameters(0..28));
        assert!(saved.abs_diff(layers / 32) < layers / 200, "{saved} of {layers}");
        assert_eq!(blocks.dense_bytes, found.dense_bytes, "the room for dense weights is large enough");
    }
    // That of a tiny model is not.
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama3_heads64");
    let tiny = ModelSource::open(&tiny).expect("the fixture loads").quantized(WeightFormat::Fp8).expect("it is dense");
    let room = |takes_fp8| GpuWeights::of(&tiny, 0, takes_fp8).dense_bytes;
    // Its output projection has the longest rows: 256 numbers.
    assert!(room(false) < 256 * 256 && room(true) >= 256 * (256 + 4), "{} {}", room(false), room(true));
}

#[test]
fn sorted_columns_are_counted_with_their_order_and_stay_in_blocks() {
    let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized").join(name);
    let weights = |name: &str| {
        let source = ModelSource::open(&folder(name)).expect("the fixture loads");
        let norms = 5 * 128;
        (GpuWeights::of(&source, 0, false), 2 * (2 * 320 * 128 + norms))
    };
    // Twenty bytes for 32 weights: q, k and v of one order, o, gate and up of one, and down, whose rows of 192 are whole units.
    let layer = (256 + 128 + 384) * 4 * 20 + 128 * 6 * 20;
    let orders = 4 * (3 * 128 + 192);
    let (found, others) = weights("gptq_act_order");
    assert_eq!(found.bytes, 2 * (layer + orders) + others);
    // Gate and up have room to be made dense, which is more than 96 rows of any inputs.
    assert_eq!(found.dense_bytes, 2 * 384 * 128);
    // The same in order, with a `g_idx` that moves nothing.
    let (found, others) = weights("gptq_sym");
    assert_eq!(found.bytes, 2 * layer + others);
}

#[test]
fn an_embedding_of_fp8_is_counted_in_blocks_on_every_card() {
    for tied in [false, true] {
        let folder = with_fp8_embedding(tied);
        let source = ModelSource::open(folder.path()).expect("it loads");
        assert_eq!(source.spec.tied_embeddings, tied);
        assert!(source.weights.has_row_scales(WeightName::TokenEmbedding, 128));
        // The embedding in 132 bytes for 128 weights, an output layer of its own in bf16, and norms.
        let others = 320 * 132 + if tied { 0 } else { 2 * 320 * 128 } + 2 * 5 * 128;
        let layer = 4 * (128 + 64 + 64 + 128 + 192 + 192 + 128) + (256 + 128 + 384) * 128 + 128 * 192;
        assert_eq!(GpuWeights::of(&source, 0, true).bytes, 2 * layer + others, "tied {tied}");
        let blocks = (256 + 128 + 384) * 132 + 128 * 3 * 68;
        assert_eq!(GpuWeights::of(&source, 0, false).bytes, 2 * blocks + others, "tied {tied}");
    }
}

#[test]
fn latents_have_no_cache_of_fp8_whatever_their_heads() {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
    let spec = ModelSource::random(&shapes.join("deepseek-v2-lite.json")).expect("a shape").spec;
    for head_dim in [64, 128, 192] {
        let spec = DecoderSpec { head_dim, ..spec.clone() };
        assert_eq!(gpu::kv_dtypes(&spec, false), [KvDType::Bf16], "{head_dim}");
        assert_eq!(gpu::kv_dtypes(&spec, true), [KvDType::F16], "{head_dim}");
        let config =
            EngineConfig { kv_dtype: Some(KvDType::Fp8), context_length: Some(4096), ..EngineConfig::default() };
        let memory = GpuMemory { free_bytes: 64 * GIB, is_f16: false };
        let refused = plan_for_gpu(&spec, GpuWeights::default(), &config, memory).expect_err("no such cache");
        assert!(matches!(refused, PlanError::KvDType { asked: KvDType::Fp8, .. }), "{refused}");
        // With keys and values of such heads there is one.
        let heads = DecoderSpec { latent: None, ..spec };
        assert_eq!(gpu::kv_dtypes(&heads, false).contains(&KvDType::Fp8), head_dim != 192);
    }
}

/// Plans `qwen2.5-7b` in bf16, of 28 layers, onto a GPU with this much free memory.
fn plan_7b(config: &EngineConfig, gib: u64, main_bytes: u64) -> Result<LayerPlan, PlanError> {
    let source = ModelSource::random(&config_file("qwen2.5-7b")).expect("a config");
    let memory = GpuMemory { free_bytes: gib * GIB, is_f16: false };
    plan_layers(&source.spec, &|first| PartWeights::of(&source, first, false), config, memory, main_bytes)
}

#[test]
fn layers_that_a_gpu_has_no_room_for_stay_on_the_cpu() {
    let config = EngineConfig { context_length: Some(8192), ..EngineConfig::default() };
    let whole = plan_7b(&config, 24, 0).expect("it fits as a whole");
    assert!(whole.first == 0 && whole.cpu.is_none() && whole.sizes.lag == Lag::One, "{whole:?}");
    let mut before = 0;
    for gib in [16, 12, 8, 6] {
        let plan = plan_7b(&config, gib, 64 * GIB).expect("some layers fit");
        let LayerPlan { first, cpu: Some(cpu), gpu, sizes } = &plan else { panic!("{gib} GiB: {plan:?}") };
        assert!(*first > before && *first < 28, "{gib} GiB: layer {first}");
        assert_eq!((gpu.blocks, gpu.context_length, sizes.lag), (cpu.blocks, 8192, Lag::Zero), "{gib} GiB");
        assert!(gpu.full_contexts() >= 1 && gpu.total_bytes() <= gib * GIB, "{gib} GiB: {gpu:?}");
        // Keys and values of 4 heads of 128 numbers: two bytes each on the GPU, four on the CPU.
        let layer_bytes = 2 * 16 * 4 * 128;
        assert_eq!(gpu.block_bytes, (28 - *first as u64) * 2 * layer_bytes, "{gib} GiB");
        assert_eq!(cpu.block_bytes, *first as u64 * 4 * layer_bytes, "{gib} GiB");
        // One layer more does not fit.
        let more = EngineConfig { gpu_layers: GpuLayers::Count(28 - *first as u32 + 1), ..config.clone() };
        if more.gpu_layers != GpuLayers::Count(28) {
            plan_7b(&more, gib, 64 * GIB).expect_err("it has no room");
        }
        before = *first;
    }
}

#[test]
fn weights_of_both_places_are_those_of_the_model_and_its_embedding_twice() {
    for name in ["qwen2.5-7b", "qwen2.5-1.5b"] {
        let source = ModelSource::random(&config_file(name)).expect("a config");
        let spec = &source.spec;
        let whole = GpuWeights::of(&source, 0, false).bytes;
        assert_eq!(PartWeights::of(&source, 0, false).gpu.bytes, whole, "{name}");
        for first in [1, spec.layers / 2, spec.layers - 1] {
            let PartWeights { gpu, cpu_bytes } = PartWeights::of(&source, first, false);
            let twice = if spec.tied_embeddings { 2 * spec.vocabulary_parameters() } else { 0 };
            let (sum, wanted) = (gpu.bytes + cpu_bytes, whole + twice);
            // Pages of 2 MiB that are not full, up to one for each matrix of a layer, are a GPU's alone.
            let pages = (first as u64 * 4) << 21;
            assert!(sum.abs_diff(wanted) <= pages, "{name} at {first}: {sum} and {wanted}");
        }
    }
}

#[test]
fn main_memory_counts_the_embedding_and_each_layer_in_its_own_format() {
    let source = ModelSource::random(&config_file("qwen2.5-1.5b")).expect("a config");
    let source = source.quantized(WeightFormat::Fp8).expect("it is dense");
    let spec = &source.spec;
    for first in [1, 14, 27] {
        let found = PartWeights::of(&source, first, false).cpu_bytes;
        // The embedding is bf16; of the layers 128 weights take 132 bytes, and biases and norms little.
        let wanted = 2 * spec.vocabulary_parameters() + spec.layer_parameters(0..first) / 128 * 132;
        assert!(found.abs_diff(wanted) < wanted / 1000, "{first}: {found} {wanted}");
    }
}

#[test]
fn a_number_of_layers_is_taken_at_its_word_and_all_is_all_or_nothing() {
    let asked = |gpu_layers| EngineConfig { gpu_layers, context_length: Some(4096), ..EngineConfig::default() };
    let plan = plan_7b(&asked(GpuLayers::Count(10)), 80, 64 * GIB).expect("it fits");
    assert_eq!((plan.first, plan.sizes.max_step_tokens), (18, 512));
    for all in [GpuLayers::All, GpuLayers::Count(28), GpuLayers::Count(99)] {
        assert_eq!(plan_7b(&asked(all), 80, 0).expect("it fits").first, 0);
    }
    let error = plan_7b(&asked(GpuLayers::All), 12, 64 * GIB).expect_err("too large").to_string();
    let fit = 28 - plan_7b(&asked(GpuLayers::Auto), 12, 64 * GIB).expect("in parts").first;
    let end = format!(
        "; {fit} of 28 layers would fit the GPU, the others on the CPU: --gpu-layers {fit} or --gpu-layers auto"
    );
    assert!(error.starts_with("the model needs 15.") && error.ends_with(&end), "{error}");
    // Nor does main memory hold the others.
    let error = plan_7b(&asked(GpuLayers::Auto), 12, GIB).expect_err("too large");
    assert!(matches!(error, PlanError::DoesNotFit { .. }), "{error}");
    let error = plan_7b(&asked(GpuLayers::Count(10)), 80, GIB).expect_err("too large for main memory");
    assert!(matches!(error, PlanError::DoesNotFit { .. }), "{error}");
}

#[test]
fn both_keep_keys_and_values_in_a_byte_where_that_is_asked() {
    let config = EngineConfig {
        kv_dtype: Some(KvDType::Fp8),
        gpu_layers: GpuLayers::Count(20),
        context_length: Some(4096),
        ..EngineConfig::default()
    };
    let plan = plan_7b(&config, 80, 64 * GIB).expect("it fits");
    assert_eq!((plan.gpu.kv_dtype, plan.cpu.map(|cpu| cpu.kv_dtype)), (KvDType::Fp8, Some(KvDType::Int8)));
}

#[test]
fn the_expected_speed_is_that_of_reading_both_parts() {
    let source = ModelSource::random(&config_file("qwen2.5-7b")).expect("a config");
    let config =
        EngineConfig { gpu_layers: GpuLayers::Count(14), context_length: Some(4096), ..EngineConfig::default() };
    let plan = plan_7b(&config, 80, 64 * GIB).expect("it fits");
    let offload = Offload::new(&source.spec, &plan).expect("layers on the CPU");
    assert_eq!((offload.gpu_layers, offload.cpu_layers), (14, 14));
    assert_eq!(offload.expected_tokens_per_second(), None);
    // Half of the layers in two bytes a weight each, the output besides on the GPU.
    let layers = 2 * source.spec.layer_parameters(0..14);
    assert!(offload.cpu_token_bytes.abs_diff(layers) < layers / 1000, "{offload:?}");
    let with_output = layers + 2 * source.spec.vocabulary_parameters();
    assert!(offload.gpu_token_bytes.abs_diff(with_output) < layers / 100, "{offload:?}");
    let known = Offload { cpu_bytes_per_second: Some(layers as f64), ..offload };
    assert!(known.expected_tokens_per_second().is_some_and(|tokens| (tokens - 1.0).abs() < 1e-3));
    let both = Offload { gpu_bytes_per_second: Some(offload.gpu_token_bytes as f64), ..known };
    assert!(both.expected_tokens_per_second().is_some_and(|tokens| (tokens - 0.5).abs() < 1e-3));
    let text = both.to_string();
    assert!(text.starts_with("14 of 28 on the GPU, 14 on the CPU in "), "{text}");
    assert!(text.ends_with(" of main memory: slower, at most 0.5 tokens a second for one user"), "{text}");
}

#[test]
fn a_preview_in_two_parts_shows_both_and_what_would_fit_as_a_whole() {
    let file = config_file("qwen2.5-7b");
    let config = EngineConfig { context_length: Some(8192), ..EngineConfig::default() };
    let memory = MemoryToPlan::Gpu { bytes: 8 * GIB, main_bytes: 64 * GIB };
    let files = ModelFiles::RandomWeights(&file, RandomModel::default());
    let found = preview(files, &config, memory, None).expect("a preview");
    assert!(found.users >= 1 && found.reason.is_none(), "{found:?}");
    let offload = found.offload.expect("layers on the CPU");
    assert_eq!(offload.gpu_layers + offload.cpu_layers, 28);
    assert!(offload.expected_tokens_per_second().is_some_and(f64::is_normal), "{offload:?}");
    assert!(found.would_fit.iter().any(|advice| advice.contains("q6_k")), "{found:?}");
    let stored = preview(files, &config, memory, Some(WeightFormat::Bf16)).expect("a preview").offload;
    let stored = stored.expect("layers on the CPU");
    assert!(stored.gpu_layers.abs_diff(offload.gpu_layers) <= 1, "{stored:?} {offload:?}");
}
