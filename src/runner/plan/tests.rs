//! Plans for the cards and models that people have, and what is said where they do not fit.

use std::path::Path;

use super::gpu::{DRIVER_BYTES, GpuMemory, GpuWeights, plan_for_gpu};
use super::*;
use crate::config::RandomFormat;
use crate::models::ModelSource;
use crate::runner::load::ModelFiles;

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

#[test]
fn a_preview_says_what_fits_or_what_would() {
    let file = config_file("qwen2.5-7b");
    let preview = |gib, context, format| {
        let config = EngineConfig { context_length: context, ..EngineConfig::default() };
        preview(ModelFiles::RandomWeights(&file, RandomFormat::Bf16), &config, MemoryToPlan::Gpu(gib * GIB), format)
            .expect("a preview")
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
    assert!(too_large.would_fit.iter().any(|advice| advice.contains("q6_k")), "{too_large:?}");
    let too_long = preview(24, Some(32_768), Some(WeightFormat::Bf16));
    assert!(too_long.users > 0 || too_long.would_fit.iter().any(|advice| advice.contains("--context")), "{too_long:?}");
}
