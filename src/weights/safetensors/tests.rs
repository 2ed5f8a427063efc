//! Safetensors files and indices: right ones, wrong ones, and thousands of damaged ones.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::weights::gguf::tests::Random;
use crate::weights::{WeightName, Weights};

const FILE: &str = "some/model.safetensors";

/// A file of these header fields and data.
fn file(header: &serde_json::Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn sample() -> Vec<u8> {
    let header = json!({
        "model.norm.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]},
        "lm_head.weight": {"dtype": "F16", "shape": [1, 2], "data_offsets": [20, 24]},
        "model.layers.0.self_attn.q_proj.weight": {"dtype": "I8", "shape": [1, 2], "data_offsets": [24, 26]},
    });
    let mut data = vec![0x80, 0x3f, 0x00, 0xc0];
    data.extend([1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()));
    data.extend([0x00, 0x3c, 0x00, 0xc0, 1, 2]);
    file(&header, &data)
}

fn open(bytes: Vec<u8>) -> Result<Weights, LoadError> {
    Weights::from_safetensors(Path::new(FILE), Arc::new(bytes))
}

#[test]
fn floats_keep_their_bytes() {
    let weights = open(sample()).expect("it is right");
    assert_eq!(weights.vector(WeightName::OutputNorm, 2).ok(), Some(vec![1.0, -2.0]));
    let embedding = weights.matrix(WeightName::TokenEmbedding, 2, 2).expect("it is there");
    assert_eq!((embedding.format(), embedding.dequantize()), (Format::F32, vec![1.0, 2.0, 3.0, 4.0]));
    let output = weights.matrix(WeightName::Output, 1, 2).expect("it is there");
    assert_eq!((output.format(), output.dequantize()), (Format::F16, vec![1.0, -2.0]));
    assert_eq!(weights.total_bytes(), 26);
    assert!(weights.metadata().is_none());
    let error = weights.matrix(WeightName::Q(0), 1, 2).expect_err("I8 is not computed with").to_string();
    assert!(
        error.starts_with(FILE) && error.contains("self_attn.q_proj.weight") && error.contains("found I8"),
        "{error}"
    );
}

#[test]
fn wrong_headers_are_refused() {
    let tensor = |dtype: &str, shape: serde_json::Value, offsets: [u64; 2]| json!({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
    let cases = [
        vec![1, 2, 3],
        u64::MAX.to_le_bytes().to_vec(),
        (65u64 << 20).to_le_bytes().to_vec(),
        [&5u64.to_le_bytes()[..], b"{\"x\":"].concat(),
        file(&tensor("F32", json!([2]), [0, 4]), &[0; 4]),
        file(&tensor("F32", json!([1]), [4, 8]), &[0; 8]),
        file(&tensor("F32", json!([1]), [0, 4]), &[0; 400]),
        file(&tensor("F32", json!([1]), [0, 4]), &[]),
        file(&tensor("F32", json!([u64::MAX, 8]), [0, 4]), &[0; 4]),
        file(&tensor("F32", json!([-1]), [0, 4]), &[0; 4]),
        file(&tensor("X99", json!([1]), [0, 4]), &[0; 4]),
        file(&json!([]), &[]),
    ];
    for bytes in cases {
        let error = open(bytes.clone()).err().expect("the file is wrong").to_string();
        assert!(error.starts_with(FILE), "{error}");
    }
}

#[test]
fn damage_does_no_harm() {
    let bytes = sample();
    for length in 0..bytes.len() {
        let error = open(bytes[..length].to_vec()).err().expect("the file is cut").to_string();
        assert!(error.contains(&format!("ends early: it has {length} bytes")), "cut at {length}: {error}");
    }
    let mut random = Random(0x5afe);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(damaged.len());
            damaged[at] = if random.below(2) == 0 { random.next() as u8 } else { b'0' + random.below(10) as u8 };
        }
        match open(damaged) {
            Ok(weights) => drop(weights.vector(WeightName::OutputNorm, 2)),
            Err(error) => {
                assert!(error.to_string().starts_with(FILE), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 1000, "only {refused} of 3000 damaged files were refused");
}

/// A folder with two shards and this index.
fn sharded(index: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = |name: &str| {
        file(&json!({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), &1.0f32.to_le_bytes())
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("it can be written");
    write("a.safetensors", &shard("model.norm.weight"));
    write("b.safetensors", &shard("model.layers.0.input_layernorm.weight"));
    let both = json!({
        "model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "other": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    });
    write("both.safetensors", &file(&both, &[0; 8]));
    write("model.safetensors.index.json", index.to_string().as_bytes());
    folder
}

#[test]
fn shards_come_together() {
    let index = json!({"weight_map": {"model.norm.weight": "a.safetensors", "model.layers.0.input_layernorm.weight": "b.safetensors"}});
    let folder = sharded(&index);
    let weights = Weights::open(folder.path()).expect("it is right");
    assert_eq!(weights.vector(WeightName::OutputNorm, 1).ok(), Some(vec![1.0]));
    assert_eq!(weights.vector(WeightName::AttentionNorm(0), 1).ok(), Some(vec![1.0]));
    assert_eq!(weights.files().count(), 2);
}

#[test]
fn wrong_indices_are_refused() {
    let map = |shard: &str| json!({"weight_map": {"model.norm.weight": shard}});
    let cases = [
        (map("../a.safetensors"), "expected the name of a file in the same folder"),
        (map("x/../../a.safetensors"), "expected the name of a file in the same folder"),
        (map("/etc/passwd"), "expected the name of a file in the same folder"),
        (map("./../a.safetensors"), "expected the name of a file in the same folder"),
        (map("..\\a.safetensors"), "expected the name of a file in the same folder"),
        (map(""), "expected the name of a file in the same folder"),
        (json!({"weight_map": {"x": 7}}), "expected the name of a file in the same folder"),
        (json!({"weight_map": {}}), "at least one tensor"),
        (json!({"weight_map": []}), "weight_map is missing"),
        (json!([]), "weight_map is missing"),
        (map("missing.safetensors"), "missing.safetensors: cannot be read"),
        (map("b.safetensors"), "b.safetensors: tensor model.norm.weight is missing"),
        (json!({"weight_map": {"model.norm.weight": "a.safetensors", "x": "a.safetensors"}}), "tensor x is missing"),
        (
            json!({"weight_map": {"model.norm.weight": "a.safetensors", "other": "both.safetensors"}}),
            "tensor model.norm.weight: expected each tensor once",
        ),
    ];
    for (index, expected) in cases {
        let folder = sharded(&index);
        let error = Weights::open(folder.path()).err().expect("the index is wrong").to_string();
        assert!(
            error.contains(expected) && error.starts_with(&folder.path().display().to_string()),
            "{error} should say: {expected}"
        );
    }
}

#[test]
fn folders_without_one_model_say_what_was_looked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Weights::open(folder.path()).err().expect("it is empty").to_string();
    assert!(error.contains("expected model.safetensors, model.safetensors.index.json or one .gguf file"), "{error}");
    for name in ["a.gguf", "b.GGUF"] {
        std::fs::write(folder.path().join(name), b"GGUF").expect("it can be written");
    }
    let error = Weights::open(folder.path()).err().expect("there are two").to_string();
    assert!(error.contains("2 .gguf files"), "{error}");
    std::fs::write(folder.path().join("empty.gguf"), b"").expect("it can be written");
    let error = Weights::open(&folder.path().join("empty.gguf")).err().expect("it is empty").to_string();
    assert!(error.contains("empty.gguf: the file: expected weights, found 0 bytes"), "{error}");
    assert!(Weights::open(&folder.path().join("absent.gguf")).is_err());
}
