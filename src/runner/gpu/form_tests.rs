//! Models in the forms that other programs make of them, on a GPU beside the CPU. Needs an
//! NVIDIA GPU.

use std::path::Path;

use super::GpuRunner;
use super::load::check;
use super::tests::{FP8_COARSENESS, FP8_TOLERANCE, Making, ROUNDINGS, golden_faults, gpu, tolerance};
use crate::cuda::{Blas, BlasMissing, DType};
use crate::models::ModelSource;
use crate::runner::golden::{Fixture, fixtures};
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

/// How near logits must be. Products of fp8 by fp8 round their inputs to four bits, as a cache of fp8 does keys and values.
fn limits(source: &ModelSource, dtype: DType, blas: &Result<Blas, BlasMissing>) -> (f64, f64) {
    let is_fp8 = source.weights.main_format().starts_with("FP8");
    match blas {
        Ok(blas) if is_fp8 && blas.takes_fp8() => (FP8_TOLERANCE, FP8_COARSENESS),
        _ => (tolerance(dtype), ROUNDINGS),
    }
}

/// What the weights of a model without biases take, if that is not what the plan counts.
fn plan_fault(name: &str, source: &ModelSource, runner: &GpuRunner, takes_fp8: bool) -> Option<String> {
    let in_stacks = source.spec.stacks().into_iter().map(|stack| {
        let rows = stack.parts.iter().map(|(_, rows)| rows).sum::<usize>();
        (stack.columns * rows) as u64
    });
    let norms = source.weights.parameters() - in_stacks.sum::<u64>();
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
    assert!(seen >= 9, "{seen} fixtures were seen");
}
