//! What of a file is not computed with: formats, which are refused before anything is planned or read, and layers that
//! predict further tokens, which are left out of every count.

use std::path::{Path, PathBuf};

use super::ModelSource;
use crate::weights::{LoadError, WeightName};

/// The number of IQ4_XS among tensor types.
const IQ4_XS: u32 = 23;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A file whose tensor of this name is said to be of another type.
fn with_type(mut bytes: Vec<u8>, tensor: &str, kind: u32) -> Vec<u8> {
    let name = [&(tensor.len() as u64).to_le_bytes(), tensor.as_bytes()].concat();
    let at = bytes.windows(name.len()).position(|window| window == name).expect("the tensor is there") + name.len();
    let rank = u32::from_le_bytes(*bytes[at..].first_chunk().expect("a rank")) as usize;
    let kind_at = at + 4 + 8 * rank;
    bytes[kind_at..kind_at + 4].copy_from_slice(&kind.to_le_bytes());
    bytes
}

fn refusal(path: &Path) -> (String, String) {
    match ModelSource::open(path) {
        Err(LoadError::Format { tensor, found, .. }) => (tensor, found),
        Err(other) => panic!("{}: {other}", path.display()),
        Ok(_) => panic!("{} opened", path.display()),
    }
}

#[test]
fn a_format_that_is_not_computed_with_is_refused_on_opening() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("patched.gguf");
    let cases = [
        ("llama_k", "blk.0.attn_q.weight"),
        ("llama_k", "token_embd.weight"),
        ("llama_k", "blk.1.ffn_norm.weight"),
        ("qwen2_q4_1", "blk.0.attn_v.bias"),
        ("qwen3moe_mixed", "blk.1.ffn_up_exps.weight"),
        ("qwen2moe_q8_0", "blk.0.ffn_down_shexp.weight"),
        ("deepseek2_whole", "blk.0.attn_kv_b.weight"),
        ("deepseek2_split", "blk.1.attn_k_b.weight"),
    ];
    for (model, tensor) in cases {
        let bytes = std::fs::read(fixture("gguf").join(model).join("model.gguf")).expect("the fixture is there");
        std::fs::write(&path, with_type(bytes, tensor, IQ4_XS)).expect("it can be written");
        assert_eq!(refusal(&path), (tensor.to_owned(), "IQ4_XS".to_owned()), "{model}");
    }
}

#[test]
fn floats_of_8_bits_without_scales_are_refused_on_opening() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = fixture("quantized/fp8_tensor").join(name);
        std::fs::copy(from, folder.path().join(name)).expect("it can be copied");
    }
    ModelSource::open(folder.path()).expect("a config says how they are scaled");
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("it is there");
    std::fs::write(&config, text.replace("quantization_config", "another_key")).expect("it can be written");
    let (tensor, found) = refusal(folder.path());
    assert!(
        tensor.ends_with(".weight") && found.starts_with("F8_E4M3, and no quantization_config"),
        "{tensor} {found}"
    );
}

#[test]
fn layers_that_predict_further_tokens_are_not_counted() {
    for name in ["deepseek_v3", "deepseek_v3_plain"] {
        let model = ModelSource::open(&fixture("golden").join(name)).expect("the fixture opens");
        assert_eq!(model.weights.parameters(), model.spec.parameters(), "{name}");
        let layers = model.spec.layers as u32;
        assert!(model.weights.has(WeightName::FfnNorm(layers - 1)) && !model.weights.has(WeightName::FfnNorm(layers)));
        // All of it bf16 but the corrections of routers.
        let bytes = 2 * model.spec.parameters();
        assert!((bytes..bytes + 10_000).contains(&model.weights.total_bytes()), "{name}");
    }
}
