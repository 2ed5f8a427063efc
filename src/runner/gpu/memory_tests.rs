//! The memory plan held to the truth: a model under a limit takes what was planned, by our count and by the driver's.

use std::path::Path;

use super::load::{GpuTarget, load};
use crate::config::EngineConfig;
use crate::cuda::Gpu;
use crate::models::ModelSource;

const MIB: f64 = (1 << 20) as f64;

/// How far what is taken may be from the plan, as a share of it.
const TOLERANCE: f64 = 0.03;

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_under_a_limit_is_what_was_planned() {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
    let cases = [("qwen2.5-1.5b", 5_u64, Some(4096)), ("qwen2.5-1.5b", 8, None), ("llama-3.1-8b", 24, Some(8192))];
    for (name, gib, context_length) in cases {
        let limit = gib << 30;
        let source = ModelSource::random(&shapes.join(format!("{name}.json"))).expect("a shape");
        let config = EngineConfig { gpu_memory_limit_bytes: Some(limit), context_length, ..EngineConfig::default() };
        // Holds the context, so that what the driver says of free memory is not of its own needs.
        let gpu = Gpu::open(0).expect("an NVIDIA GPU");
        let (before, _) = gpu.memory().expect("an answer");
        let target = GpuTarget { ordinal: 0, library_folders: Vec::new() };
        let (runner, loaded) = load(source, &config, &target).expect("it fits");
        let (after, _) = gpu.memory().expect("an answer");
        let (planned, used) = (loaded.plan.total_bytes(), loaded.used_bytes.expect("counted"));
        let of_driver = (before - after) as u64;
        let mib = |bytes: u64| bytes as f64 / MIB;
        println!(
            "{name} in {gib} GiB: planned {:.0} MiB, counted {:.0}, by the driver {:.0}; {:?} {:?}",
            mib(planned),
            mib(used),
            mib(of_driver),
            loaded.plan,
            loaded.sizes
        );
        let apart = (used as f64 / planned as f64 - 1.0).abs();
        assert!(apart <= TOLERANCE, "{name} in {gib} GiB: {:.1} % from the plan", 100.0 * apart);
        assert!(used <= limit && of_driver <= limit, "{name}: more than {gib} GiB");
        drop(runner);
    }
}
