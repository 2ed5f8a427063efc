//! A KV cache whose memory goes and comes while recorded steps use it. Needs an NVIDIA GPU.

use crate::cuda::DType;
use crate::request::SamplingParams;
use crate::runner::golden::blocks;
use crate::runner::step::StepRunner;

use super::GpuRunner;
use super::tests::{CONTEXT, Making, drive, requests, wide_fixtures};

/// Recorded graphs hold addresses: they stay right while memory goes and comes.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_cache_that_shrinks_and_grows_changes_no_bit_of_recorded_steps() {
    const MANY: u64 = 8192;
    let warm = SamplingParams { temperature: 0.9, logprobs: Some(20), ..SamplingParams::default() };
    for fixture in wide_fixtures() {
        for first in [0, 1] {
            let place = format!("{} with {first} layers on the CPU", fixture.family());
            let mut gpu = Making { first, blocks: MANY, ..Making::of(DType::Bf16) }.runner(&fixture);
            gpu.record_graphs().expect("graphs");
            let requests = requests(&fixture, &warm);
            // One after the other: what is computed together depends on how many blocks there are.
            let answers = |gpu: &mut GpuRunner| -> Vec<_> {
                requests.iter().map(|request| drive(gpu, std::slice::from_ref(request), true)).collect()
            };
            let ids: Vec<u32> = fixture.prompts.iter().flat_map(|prompt| prompt.ids.clone()).take(CONTEXT).collect();
            let last = blocks((0..16).map(|block| MANY as u32 - 1 - 3 * block));
            let logits = |gpu: &mut GpuRunner| gpu.chunked(&ids, &[ids.len()], &last);
            let free = |gpu: &GpuRunner| gpu.gpu.gpu().memory().expect("an answer").0 as u64;
            let (whole, far, free_before) = (answers(&mut gpu), logits(&mut gpu), free(&gpu));

            // The driver's tables of pages may take some more.
            let more = |gpu: &GpuRunner, bytes: u64| (free(gpu) - bytes).abs_diff(free_before) <= 8 << 20;
            let small = gpu.resize_kv(16, 0).expect("memory is given back");
            assert!(small.blocks == 16 && more(&gpu, small.given_back_bytes), "{place}: {small:?}");
            // All but the first blocks of each plane, and what begins or ends inside of a page with them.
            let promised = (MANY - 16) * gpu.kv.block_bytes() as u64 - (4 << 20) * gpu.kv.planes() as u64;
            assert!(small.given_back_bytes >= promised, "{place}: {small:?}, {promised} were promised");
            assert!(answers(&mut gpu) == whole, "{place}: in a small cache");

            let grown = gpu.resize_kv(MANY as u32, 0).expect("memory");
            assert_eq!((u64::from(grown.blocks), grown.given_back_bytes), (MANY, 0), "{place}");
            assert!(more(&gpu, 0), "{place}: {grown:?}");
            assert!(answers(&mut gpu) == whole, "{place}: in a cache that grew");
            assert!(logits(&mut gpu) == far, "{place}: in blocks that went and came");
        }
    }
}
