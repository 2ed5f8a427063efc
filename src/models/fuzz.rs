//! The fuzzer of `weights`, for what is made of files besides their tensors: specs and vocabularies of GGUF metadata, models
//! in several files, and indices of shards.

use std::path::Path;
use std::sync::Arc;

use super::ModelSource;
use crate::weights::fuzz::{corpus, fuzz, read_all};
use crate::weights::{GgufBuilder, LoadError, Weights};

/// Reads all that a GGUF file says.
fn read(weights: Weights) -> Result<(), LoadError> {
    read_all(&weights);
    let source = ModelSource::from_gguf(weights)?;
    source.check_formats()?;
    let _ = (source.weight_bytes(), source.spec.parameters(), source.spec.stacks().len());
    Ok(())
}

#[test]
#[ignore = "runs for as long as LANTERN_FUZZ_SECONDS says"]
fn damaged_gguf_files() {
    fuzz("gguf", &corpus(".gguf"), None, |path, bytes, _| read(Weights::from_gguf(path, Arc::new(bytes))?));
}

#[test]
#[ignore = "runs for as long as LANTERN_FUZZ_SECONDS says"]
fn damaged_parts_of_gguf_files() {
    let part = |number: u32| {
        let part = GgufBuilder::new(3).u32("split.no", number).u32("split.count", 2);
        match number {
            0 => part.text("general.architecture", "llama").f32_tensor("output_norm.weight", &[2], &[1.5, -2.0]),
            _ => part.f32_tensor("token_embd.weight", &[2, 1], &[3.0, 4.0]).u32("split.tensors.count", 2),
        }
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |number: u32| folder.path().join(format!("m-0000{}-of-00002.gguf", number + 1));
    let parts = [0, 1].map(|number| (path(number), part(number).build()));
    fuzz("parts", &parts, Some(folder.path()), |path, bytes, random| {
        for (whole, content) in &parts {
            std::fs::write(whole, content).expect("it can be written");
        }
        std::fs::write(path, bytes).expect("it can be written");
        read_all(&Weights::open(&parts[random.below(2)].0)?);
        Ok(())
    });
}

#[test]
#[ignore = "runs for as long as LANTERN_FUZZ_SECONDS says"]
fn damaged_indices_of_shards() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/qwen3");
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(golden).expect("the fixture is there") {
        let path = entry.expect("readable").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("it can be copied");
    }
    let index = folder.path().join("model.safetensors.index.json");
    let whole = std::fs::read(&index).expect("it is there");
    fuzz("index", &[(index, whole)], Some(folder.path()), |path, bytes, _| {
        std::fs::write(path, bytes).expect("it can be written");
        read_all(&Weights::open(folder.path())?);
        Ok(())
    });
}
