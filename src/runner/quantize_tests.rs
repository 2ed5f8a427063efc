//! Models whose weights are turned into blocks when they are read, beside the logits that transformers computes with the
//! weights as they are stored.

use std::path::Path;

use super::golden::{Fixture, KINDS, MAX_TOKENS, Rig, blocks, fixtures, relative_error};
use crate::config::{AlreadyQuantized, EngineConfig, KvDType, WeightFormat};
use crate::models::{DecoderSpec, ModelSource};
use crate::ops::{Format, LatentShape, Matrix};
#[cfg(feature = "cuda")]
use crate::runner::gpu::GpuTarget;
use crate::runner::load::{ModelFiles, Target, load};
use crate::runner::plan::{MemoryToPlan, preview};
use crate::weights::WeightName;

/// The largest relative error of a prompt's logits, the median of its positions, in models of random weights with a few
/// dozen numbers a row: by format. Rows that are no whole blocks of 256 have those of 32 instead.
const TOLERANCES: [(WeightFormat, f64); 4] =
    [(WeightFormat::Q8_0, 0.04), (WeightFormat::Fp8, 0.15), (WeightFormat::Q6K, 0.05), (WeightFormat::Q4K, 0.25)];

/// The fixtures whose weights are dense.
fn dense() -> Vec<Fixture> {
    fixtures().into_iter().filter(|fixture| fixture.kind() == "golden").collect()
}

fn open(folder: &Path, format: WeightFormat) -> ModelSource {
    let source = ModelSource::open(folder).expect("the fixture loads");
    source.quantized(format).expect("its weights are dense")
}

/// Relative errors of a prompt's logits, the smallest first.
fn errors(fixture: &Fixture, format: WeightFormat, name: &str) -> Vec<f64> {
    let prompt = fixture.prompts.iter().find(|prompt| prompt.name == name).expect("a prompt");
    let source = open(&fixture.folder, format);
    let vocab = source.spec.vocab;
    let found = Rig::of(source, fixture.context(prompt), 2, KvDType::F32);
    let found = found.chunked(&prompt.ids, &[MAX_TOKENS], &blocks(0..16));
    let wanted = fixture.values(&format!("{}.logits", prompt.name));
    let pairs = wanted.chunks(vocab).zip(&prompt.logit_positions);
    let mut errors: Vec<f64> = pairs.map(|(wanted, position)| relative_error(&found[*position], wanted)).collect();
    errors.sort_by(f64::total_cmp);
    errors
}

#[test]
fn logits_are_near_those_of_the_weights_as_they_are_stored() {
    let mut far = Vec::new();
    for fixture in dense() {
        for (format, tolerance) in TOLERANCES {
            let errors = errors(&fixture, format, "medium");
            let (median, place) = (errors[errors.len() / 2], format!("{} in {}", fixture.family(), format.name()));
            println!("{place}: {median:.4}, at most {:.4}", errors[errors.len() - 1]);
            if median < 1e-4 || median > tolerance {
                far.push(format!("{place}: {median:e}"));
            }
        }
    }
    assert!(far.is_empty(), "relative errors of logits: {far:#?}");
}

/// Names, rows and columns of the matrices of a model without those of experts.
fn matrices(spec: &DecoderSpec) -> Vec<(crate::weights::WeightName, usize, usize)> {
    let stacks = spec.stacks().into_iter();
    stacks.flat_map(|stack| stack.parts.into_iter().map(move |(name, rows)| (name, rows, stack.columns))).collect()
}

#[test]
fn a_plan_counts_the_formats_that_matrices_are_turned_into() {
    for fixture in dense() {
        let stored = ModelSource::open(&fixture.folder).expect("the fixture loads");
        for (format, _) in TOLERANCES {
            let place = format!("{} in {}", fixture.family(), format.name());
            let source = open(&fixture.folder, format);
            let mut saved = 0;
            for (name, rows, columns) in matrices(&source.spec) {
                let matrix = source.weights.matrix(name, rows, columns).expect("it is there");
                assert_eq!(Some(matrix.format()), source.weights.format(name, columns), "{place}: {name:?}");
                let dense = stored.weights.matrix(name, rows, columns).expect("it is there").bytes().len();
                saved += dense - matrix.bytes().len();
            }
            let planned = stored.weights.total_bytes() - source.weight_bytes();
            assert!(saved > 0, "{place}");
            match source.spec.experts {
                None => assert_eq!(planned, saved as u64, "{place}"),
                Some(_) => assert!(planned > saved as u64, "{place}: experts are quantised as well"),
            }
        }
        assert_eq!(stored.weight_bytes(), stored.weights.total_bytes(), "{}", fixture.family());
    }
}

/// What the loader makes of the up-projections of latents, besides the weights as they are stored.
#[test]
fn a_plan_counts_what_a_cpu_has_transposed() {
    let mut seen = 0;
    for fixture in fixtures() {
        let source = ModelSource::open(&fixture.folder).expect("the fixture loads");
        let Some(latent) = &source.spec.latent else { continue };
        let LatentShape { heads, rank, nope, value, .. } = latent.shape;
        let up = |layer| source.weights.matrix(WeightName::LatentUp(layer), heads * (nope + value), rank).ok();
        let bytes = |up: Matrix| -> usize {
            (0..heads).map(|head| up.slice(head * (nope + value), nope).transposed().bytes().len()).sum()
        };
        let held: usize = (0..source.spec.layers as u32).filter_map(up).map(bytes).sum();
        let is_split = ["deepseek2_split", "deepseek2_wide_split"].contains(&fixture.family());
        assert_eq!(held == 0, is_split, "{}", fixture.family());
        let files = ModelFiles::Stored(&fixture.folder);
        let (_, loaded) = load(files, &EngineConfig::default(), Target::Cpu { free_bytes: 1 << 30 }).expect("it loads");
        assert_eq!(loaded.plan.weight_bytes, source.weight_bytes() + held as u64, "{}", fixture.family());
        seen += 1;
    }
    assert_eq!(seen, 11, "models with latents");
}

#[test]
fn what_is_quantised_already_is_refused_by_name() {
    let is_quantised = |fixture: &Fixture| {
        let source = ModelSource::open(&fixture.folder).expect("the fixture loads");
        let in_blocks = |(name, _, columns): (_, _, usize)| {
            source.weights.format(name, columns).is_some_and(|format: Format| format.block_len() > 1)
        };
        matrices(&source.spec).into_iter().any(in_blocks)
    };
    let quantised: Vec<Fixture> = fixtures().into_iter().filter(is_quantised).collect();
    let stored: usize = KINDS.iter().filter(|(kind, _)| *kind != "golden").map(|(_, count)| count).sum();
    assert_eq!(quantised.len(), stored, "all others");
    let config = EngineConfig { quantize: Some(WeightFormat::Q6K), ..EngineConfig::default() };
    for fixture in quantised {
        let loaded = load(ModelFiles::Stored(&fixture.folder), &config, Target::Cpu { free_bytes: 1 << 30 });
        let error = loaded.err().expect("it is quantised").to_string();
        assert!(error.contains("its weights: expected weights of bf16, f16 or f32 to turn into q6_k"), "{error}");
        assert!(error.ends_with(", quantised already"), "{error}");
        // A plan says the same.
        let (files, memory) = (ModelFiles::Stored(&fixture.folder), MemoryToPlan::Cpu(1 << 30));
        let refused = preview(files, &EngineConfig::default(), memory, config.quantize).expect_err("it is quantised");
        assert_eq!(refused.to_string(), error);
        // Where the format was meant for all models, this one is loaded and planned as it is.
        let kept = EngineConfig { already_quantized: AlreadyQuantized::Keep, ..config.clone() };
        let (_, kept_model) = load(files, &kept, Target::Cpu { free_bytes: 1 << 30 }).expect("as it is");
        let (_, stored) = load(files, &EngineConfig::default(), Target::Cpu { free_bytes: 1 << 30 }).expect("it loads");
        assert_eq!((&kept_model.format, &kept_model.plan), (&stored.format, &stored.plan));
        let planned = preview(files, &kept, memory, None).expect("a preview");
        assert_eq!((&planned.format, planned.weight_bytes), (&stored.format, stored.plan.weight_bytes));
    }
}

/// 256 rows of inputs of its down projection, as e4m3, take more than its largest weights made dense: they are timed when
/// the model starts.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_tiny_model_in_fp8_starts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama3_heads64");
    let config = EngineConfig {
        quantize: Some(WeightFormat::Fp8),
        max_sequences: Some(256),
        context_length: Some(128),
        kv_cache_bytes: Some(16 << 20),
        ..EngineConfig::default()
    };
    let target = GpuTarget { ordinal: 0, library_folders: Vec::new(), main_bytes: 1 << 30 };
    let (_, model) = load(ModelFiles::Stored(&folder), &config, Target::Gpu(target)).expect("it starts");
    assert_eq!(model.format, "FP8x64");
}
