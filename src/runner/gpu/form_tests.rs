//! Models in the forms that other programs make of them, and those that are divided, on a GPU beside the CPU. Needs an
//! NVIDIA GPU.

use std::path::Path;

use serde_json::json;

use super::GpuRunner;
use super::golden_tests::{Nearness, ROUNDINGS, STRAYS, compare, faults, golden_faults};
use super::load::check;
use super::tests::{CONTEXT, Making, SIZES, drive, gpu, request, tolerance};
use crate::config::{KvDType, StepSizes, WeightFormat};
use crate::cuda::{Blas, BlasMissing, DType};
use crate::models::{DecoderSpec, ModelSource};
use crate::ops::LatentShape;
use crate::request::SamplingParams;
use crate::runner::golden::{Fixture, Rig, Row, argmax, blocks, fixtures, relative_error, with_fp8_embedding};
use crate::runner::plan::GpuWeights;

/// How far what weights take may be from the plan, as a share of it.
const PLAN_TOLERANCE: f64 = 0.03;

fn open(folder: &Path) -> ModelSource {
    ModelSource::open(folder).expect("the fixture loads")
}

/// cuBLASLt, or none: without it weights of fp8 are multiplied as blocks, and nothing else is rounded to fp8.
fn blas(is_there: bool) -> Result<Blas, BlasMissing> {
    if is_there { Blas::open(&gpu(), &[]) } else { Err(BlasMissing("a test does without".to_owned())) }
}

/// Largest relative error of logits after products of fp8 by fp8, which round their inputs to four bits: an emulation of them
/// on these models gives up to 0.14.
const FP8_PRODUCTS: f64 = 0.2;

/// The same where the output layer is one of them: its inputs are what logits are made of. 0.25 was measured on an H100.
const FP8_OUTPUT: f64 = 0.3;

/// Of so many tokens one may be far off, having gone to other experts, where inputs are rounded to four bits. In an emulation of
/// that by transformers one of 11 is (437 of 4,800); 54 of 384 are three standard deviations more.
const FP8_STRAYS: usize = 7;

/// How near logits must be.
fn limits(source: &ModelSource, dtype: DType, blas: &Result<Blas, BlasMissing>) -> Nearness {
    let is_fp8 = source.weights.main_format().starts_with("FP8");
    match blas {
        Ok(blas) if is_fp8 && blas.takes_fp8() => {
            let of_output = source.spec.tied_embeddings && source.weights.has_row_scales(TABLE, source.spec.hidden);
            let least = if of_output { FP8_OUTPUT } else { FP8_PRODUCTS };
            Nearness { least, roundings: ROUNDINGS, strays: FP8_STRAYS }
        }
        _ => Nearness { least: tolerance(dtype), roundings: ROUNDINGS, strays: STRAYS },
    }
}

/// Elements of matrices that are in no stack: those of experts, and the up-projections of latents.
fn beside_stacks(spec: &DecoderSpec) -> u64 {
    let experts = (0..spec.layers as u32).filter_map(|layer| spec.experts_of(layer));
    let experts = experts.map(|experts| 3 * experts.count * experts.ffn * spec.hidden).sum::<usize>();
    let up = spec.latent.as_ref().map_or(0, |latent| {
        let LatentShape { heads, rank, nope, value, .. } = latent.shape;
        heads * (nope + value) * rank
    });
    (experts + spec.layers * up) as u64
}

/// What the weights of a model without biases take, if that is not what the plan counts.
fn plan_fault(name: &str, source: &ModelSource, runner: &GpuRunner, takes_fp8: bool) -> Option<String> {
    let in_stacks = source.spec.stacks().into_iter().map(|stack| {
        let rows = stack.parts.iter().map(|(_, rows)| rows).sum::<usize>();
        (stack.columns * rows) as u64
    });
    let norms = source.weights.parameters() - in_stacks.sum::<u64>() - beside_stacks(&source.spec);
    let planned = GpuWeights::of(source, 0, takes_fp8).bytes - 2 * norms;
    let (_, uses) = runner.gpu.gpu().allocated();
    let taken = uses.iter().find(|(what, _)| what == "the weights").map_or(0, |(_, bytes)| *bytes);
    println!("{name}: weights of {taken} bytes, {planned} planned");
    let apart = (taken as f64 / planned as f64 - 1.0).abs();
    (apart > PLAN_TOLERANCE).then(|| format!("{name}: weights take {taken} bytes, and {planned} are planned"))
}

/// GPTQ with act-order and without, AWQ, compressed-tensors, and fp8 by tensor, row and block.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_checkpoints_of_other_programs_are_those_of_transformers() {
    let is_quantized = |fixture: &Fixture| fixture.folder.parent().is_some_and(|parent| parent.ends_with("quantized"));
    let (mut seen, mut skipped, mut wrong) = (0, Vec::new(), Vec::new());
    for fixture in fixtures().into_iter().filter(is_quantized) {
        if let Err(refused) = check(&open(&fixture.folder).spec) {
            skipped.push(format!("{}: {refused}", fixture.family()));
            continue;
        }
        seen += 1;
        for (dtype, with_blas) in [(DType::Bf16, true), (DType::Bf16, false), (DType::F16, true)] {
            let (source, blas) = (open(&fixture.folder), blas(with_blas));
            let (limits, takes_fp8) = (limits(&source, dtype, &blas), blas.as_ref().is_ok_and(Blas::takes_fp8));
            let runner = Making::of(dtype).runner_of(source, blas);
            let name = format!("{} {dtype:?}, cuBLASLt {with_blas}", fixture.family());
            wrong.extend(plan_fault(&name, &open(&fixture.folder), &runner, takes_fp8));
            let own = golden_faults(&fixture, dtype, runner, limits);
            wrong.extend(own.into_iter().map(|fault| format!("cuBLASLt {with_blas}, {fault}")));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(skipped, Vec::<String>::new(), "these were skipped");
    assert!(seen >= 13, "{seen} fixtures were seen");
}

/// An embedding of fp8 with a scale a row, alone and as the output layer too.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_an_embedding_of_fp8_is_looked_up() {
    let fp8 = || fixtures().into_iter().find(|fixture| fixture.family() == "compressed_fp8").expect("the fixture");
    let mut wrong = Vec::new();
    for tied in [false, true] {
        let folder = with_fp8_embedding(tied);
        let fixture = fp8().in_folder(folder.path());
        for with_blas in [true, false] {
            let (source, blas) = (open(folder.path()), blas(with_blas));
            assert!(source.spec.tied_embeddings == tied && source.weights.has_row_scales(TABLE, source.spec.hidden));
            let (limits, takes_fp8) = (limits(&source, DType::Bf16, &blas), blas.as_ref().is_ok_and(Blas::takes_fp8));
            let runner = Making::of(DType::Bf16).runner_of(source, blas);
            let name = format!("tied {tied}, cuBLASLt {with_blas}");
            wrong.extend(plan_fault(&name, &open(folder.path()), &runner, takes_fp8));
            let own = golden_faults(&fixture, DType::Bf16, runner, limits);
            wrong.extend(own.into_iter().map(|fault| format!("{name}, {fault}")));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

const TABLE: crate::weights::WeightName = crate::weights::WeightName::TokenEmbedding;

/// A DeepSeek model of few and narrow layers, whose latents are as wide as the kernels take, with heads of `plain` elements and
/// 64 rotated ones: random weights in Q8_0, which are the same in both places.
fn latent_model(plain: usize, context: usize) -> ModelSource {
    let config = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
        "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 512, "qk_nope_head_dim": plain,
        "qk_rope_head_dim": 64, "v_head_dim": plain, "max_position_embeddings": context, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "vocab_size": 320, "tie_word_embeddings": false, "n_group": 1, "topk_group": 1,
        "num_experts_per_tok": 1,
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    std::fs::write(&file, config.to_string()).expect("it can be written");
    let source = ModelSource::random(&file).expect("a config");
    source.quantized(WeightFormat::Q8_0).expect("its weights are dense")
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_divided_model_of_latents_is_that_of_the_cpu() {
    check(&latent_model(64, CONTEXT).spec).expect("the kernels take it");
    let cpu = |kv_dtype| Rig::of(latent_model(64, CONTEXT), CONTEXT as u32, 2, kv_dtype);
    let table = blocks((0..16).map(|block| 63 - 3 * block));
    let prompts = [vec![7, 300, 41, 5, 5, 219], (0..70).map(|at| at * 83 % 320).collect::<Vec<u32>>()];
    let (mut wrong, mut agreed, mut all) = (Vec::new(), 0, 0);
    for (index, prompt) in prompts.iter().enumerate() {
        let (ids, wanted) = greedy(&cpu(KvDType::F32), prompt, 40);
        for (dtype, kv_dtype) in [(DType::Bf16, KvDType::Bf16), (DType::F16, KvDType::F16)] {
            let rounded = cpu(kv_dtype).chunked(&ids, &[ids.len()], &blocks(0..16));
            let errors = rounded.iter().zip(&wanted).map(|(found, wanted)| relative_error(found, wanted));
            let tolerance = tolerance(dtype).max(ROUNDINGS * errors.fold(0.0, f64::max));
            for first in 0..4 {
                let mut runner = Making { first, ..Making::of(dtype) }.runner_of(latent_model(64, CONTEXT), blas(true));
                for chunks in [vec![ids.len()], vec![7, 16, 1, 20], vec![1]] {
                    let found = runner.chunked(&ids, &chunks, &table);
                    let place = format!("prompt {index} in {dtype:?}, {first} layers on the CPU, in {chunks:?}");
                    let errors = found.iter().zip(&wanted).map(|(found, wanted)| relative_error(found, wanted));
                    println!("{place}: relative error up to {:e} of {tolerance:e}", errors.fold(0.0, f64::max));
                    wrong.extend(faults(&place, &found, &wanted, tolerance));
                }
                if dtype == DType::F16 {
                    runner.record_graphs().expect("graphs");
                    agreed += agreement(&mut runner, prompt, &ids[prompt.len()..]);
                    all += ids.len() - prompt.len();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("{agreed} of {all} tokens agree");
    assert!(2 * agreed >= all, "{agreed} of {all} tokens agree");
}

/// Steps so long that latents are expanded (on a Hopper), beside short ones, where queries absorb: a prompt as a whole, behind
/// a part that is cached, and beside a row of one token.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_prompts_over_expanded_latents_are_near_those_over_latents() {
    let (context, model) = (1024, || latent_model(128, 1024));
    check(&model().spec).expect("the kernels take it");
    let ids: Vec<u32> = (0..1000).map(|at| at * at % 317).collect();
    let (table, others) = (blocks((0..64).map(|block| 127 - block)), blocks(0..4));
    for dtype in [DType::Bf16, DType::F16] {
        let sizes = StepSizes { max_step_tokens: 1024, ..SIZES };
        let making = Making { context, sizes, blocks: 128, ..Making::of(dtype) };
        let mut runner = making.runner_of(model(), blas(true));
        let wanted = runner.chunked(&ids, &[500], &table);
        let whole = runner.chunked(&ids, &[1000], &table);
        let expands = gpu().kernel("attention_expanded_sm90a", "attention_expanded_sm90a_bf16").is_ok();
        assert_eq!(whole != wanted, expands, "{dtype:?}: latents were expanded where there is a kernel for it");
        let behind = runner.chunked(&ids, &[200, 800], &table);
        let alone = runner.chunked(&ids[..21], &[20, 1], &others);
        let one = Row { ids: &ids[..21], start: 20, end: 21, blocks: &others };
        let beside = runner.logits_of(&[one, Row { ids: &ids, start: 0, end: 1000, blocks: &table }]);
        for (place, found, wanted) in [
            ("whole", &whole[..], &wanted[..]),
            ("behind", &behind, &wanted),
            ("a row of one token", &beside[..1], &alone[20..]),
            ("beside", &beside[1..], &wanted),
        ] {
            let errors = found.iter().zip(wanted).map(|(found, wanted)| relative_error(found, wanted));
            println!("{place} in {dtype:?}: relative error up to {:e}", errors.fold(0.0, f64::max));
            compare(&format!("{place} in {dtype:?}"), found, wanted, tolerance(dtype));
        }
    }
}

/// The prompt and `count` tokens that the CPU goes on with greedily, and the logits of all of them.
fn greedy(cpu: &Rig, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let (mut ids, table) = (prompt.to_vec(), blocks(0..16));
    let mut logits = cpu.chunked(&ids, &[ids.len()], &table);
    for _ in 0..count {
        ids.push(argmax(logits.last().expect("a token")));
        logits.extend(cpu.step(&[Row { ids: &ids, start: ids.len() - 1, end: ids.len(), blocks: &table }]));
    }
    (ids, logits)
}

/// How many tokens of a greedy answer, through the scheduler and the recorded graphs, are those that are wanted; the first
/// other one may have no lead.
fn agreement(runner: &mut GpuRunner, prompt: &[u32], wanted: &[u32]) -> usize {
    let greedy = SamplingParams { temperature: 0.0, logprobs: Some(2), ..SamplingParams::default() };
    let answer = drive(runner, &[request(prompt, greedy)], false).remove(0);
    for (position, ((token, logprobs), wanted)) in answer.iter().zip(wanted).enumerate() {
        if token != wanted {
            let top = &logprobs.as_ref().expect("asked for").top;
            let lead = top[0].1 - top[1].1;
            assert!(lead < 0.1, "at {position}: another choice, with a lead of {lead}");
            return position;
        }
    }
    wanted.len()
}

/// What the tests above take to a GPU, without one.
#[test]
fn models_for_these_tests_are_what_kernels_take_and_give_numbers() {
    let folders = [false, true].map(with_fp8_embedding);
    for source in [latent_model(64, CONTEXT), latent_model(128, 1024), open(folders[0].path()), open(folders[1].path())]
    {
        check(&source.spec).expect("the kernels take it");
        let name = source.name.clone();
        let logits = Rig::of(source, CONTEXT as u32, 2, KvDType::F32).chunked(&[7, 300, 41], &[3], &blocks(0..16));
        let spread = logits.iter().flatten().map(|logit| logit * logit).sum::<f32>();
        assert!(spread.is_finite() && spread > 1.0, "{name}: {spread}");
    }
}
