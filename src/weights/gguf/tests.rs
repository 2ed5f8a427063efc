//! GGUF files: right ones, wrong ones, and thousands of damaged ones.

use std::path::Path;
use std::sync::Arc;

use super::builder::{GgufBuilder, array, text};
use super::*;
use crate::weights::{WeightName, Weights};

const FILE: &str = "some/model.gguf";

fn sample() -> GgufBuilder {
    GgufBuilder::new(3)
        .text("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10_000.0)
        .flag("tokenizer.ggml.add_bos_token", true)
        .texts("tokenizer.ggml.tokens", &["a", "", "ccc"])
        .i32s("tokenizer.ggml.token_type", &[1, -1, 3])
        .f32_tensor("output_norm.weight", &[2], &[1.5, -2.0])
        .f32_tensor("token_embd.weight", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .tensor("blk.0.attn_q.weight", &[32, 2], 8, &[7; 68])
        .tensor("output.weight", &[32, 3], 20, &[1; 54])
}

fn open(bytes: Vec<u8>) -> Result<Weights, LoadError> {
    Weights::from_gguf(Path::new(FILE), Arc::new(bytes))
}

/// The error of a file that must not open; every error names the file.
fn refusal(bytes: Vec<u8>) -> String {
    let error = open(bytes).err().expect("the file is wrong").to_string();
    assert!(error.starts_with(FILE), "{error}");
    error
}

#[test]
fn reads_both_versions() {
    for version in [2u32, 3] {
        let mut bytes = sample().build();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        let weights = open(bytes).expect("it is right");
        let metadata = weights.metadata().expect("GGUF has metadata");
        assert_eq!(metadata.require::<String>("general.architecture").ok().as_deref(), Some("llama"));
        assert_eq!(metadata.get::<u32>("llama.block_count").ok(), Some(Some(2)));
        assert_eq!(metadata.get::<f64>("llama.rope.freq_base").ok(), Some(Some(10_000.0)));
        assert_eq!(metadata.get::<bool>("tokenizer.ggml.add_bos_token").ok(), Some(Some(true)));
        assert_eq!(
            metadata.require::<Vec<String>>("tokenizer.ggml.tokens").ok(),
            Some(vec!["a".into(), String::new(), "ccc".into()])
        );
        assert_eq!(metadata.require::<Vec<i32>>("tokenizer.ggml.token_type").ok(), Some(vec![1, -1, 3]));
        assert_eq!(metadata.array_length("tokenizer.ggml.tokens"), Some(3));
        assert_eq!(metadata.get::<u32>("absent").ok(), Some(None));
        assert_eq!(weights.vector(WeightName::OutputNorm, 2).ok(), Some(vec![1.5, -2.0]));
        let embedding = weights.matrix(WeightName::TokenEmbedding, 3, 2).expect("it is there");
        assert_eq!(embedding.dequantize(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let q = weights.matrix(WeightName::Q(0), 2, 32).expect("it is there");
        assert_eq!((q.format(), q.bytes()), (Format::Q8_0, &[7u8; 68][..]));
        assert_eq!(weights.total_bytes(), 8 + 24 + 68);
        assert!(!weights.has(WeightName::Q(1)));
    }
}

#[test]
fn errors_name_file_tensor_and_key() {
    let weights = open(sample().build()).expect("it is right");
    let metadata = weights.metadata().expect("GGUF has metadata");
    let cases = [
        (
            weights.matrix(WeightName::TokenEmbedding, 2, 3).err(),
            "tensor token_embd.weight: expected shape [2, 3], found [3, 2]",
        ),
        (weights.vector(WeightName::OutputNorm, 3).err(), "tensor output_norm.weight: expected shape [3], found [2]"),
        (weights.matrix(WeightName::K(4), 1, 1).err(), "tensor blk.4.attn_k.weight is missing: expected shape [1, 1]"),
        (weights.matrix(WeightName::Q(0), 9, 9).err(), "tensor blk.0.attn_q.weight: expected shape [9, 9]"),
        (weights.matrix(WeightName::Output, 3, 32).err(), "found IQ4_NL"),
        (metadata.require::<u32>("no.key").err(), "no.key is missing: expected a number"),
        (
            metadata.get::<u32>("general.architecture").err(),
            "general.architecture: expected a number from 0 to 4294967295, found a text of 5 bytes",
        ),
        (metadata.get::<Vec<f32>>("tokenizer.ggml.tokens").err(), "found 3 values of type Text"),
        (metadata.get::<String>("llama.block_count").err(), "expected a text, found 2"),
    ];
    for (error, expected) in cases {
        let error = error.expect("it is wrong").to_string();
        assert!(error.starts_with(FILE) && error.contains(expected), "{error} should say: {expected}");
    }
}

#[test]
fn wrong_structures_are_refused() {
    let with = |key: &str, kind: u32, value: &[u8]| sample().raw(key, kind, value).build();
    let nested = (0..5).fold(array(0, 1, &[1]), |inner, _| array(9, 1, &inner));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"<html>not found</html>".to_vec(), "expected a GGUF file"),
        (GgufBuilder::new(1).build(), "expected GGUF version 2 or 3, found 1"),
        (GgufBuilder::new(3u32.swap_bytes()).build(), "big-endian"),
        (with("general.architecture", 4, &[0; 4]), "expected each key once"),
        (with("general.alignment", 4, &[3, 0, 0, 0]), "general.alignment: expected a power of two"),
        (with("general.alignment", 4, &[0; 4]), "general.alignment: expected a power of two"),
        (with("x", 13, &[]), "expected a value type from 0 to 12, found 13"),
        (with("x", 7, &[2]), "expected 0 or 1, found 2"),
        (with("x", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]), "expected UTF-8 text"),
        (with("x", 8, &u64::MAX.to_le_bytes()), "key x at byte"),
        (with("x", 9, &array(8, 1 << 40, &[])), "expected a count of at most"),
        (with("x", 9, &array(4, 1 << 62, &[])), "expected a count of at most"),
        (with("x", 9, &array(0, u64::MAX, &[])), "expected a count of at most"),
        (with("x", 9, &nested), "arrays within each other"),
        (with("split.count", 2, &[3, 0]), "a name that ends in -00001-of-00003.gguf, for a model in 3 files"),
        (sample().f32_tensor("token_embd.weight", &[1], &[1.0]).build(), "expected each tensor once"),
        (sample().f32_tensor("x", &[0, 4], &[]).build(), "tensor x at byte"),
        (sample().f32_tensor("x", &[], &[]).build(), "expected 1 to 4 dimensions, found 0"),
        (sample().f32_tensor("x", &[1; 5], &[1.0]).build(), "expected 1 to 4 dimensions, found 5"),
        (sample().tensor("x", &[1 << 40, 1 << 40], 20, &[0]).build(), "as many elements as fit in memory"),
        (sample().f32_tensor("x", &[1 << 40, 1 << 40], &[1.0]).build(), "as many elements as fit in memory"),
        (sample().f32_tensor("x", &[1 << 31, 1 << 31, 2], &[1.0]).build(), "size that fits in memory"),
        (sample().f32_tensor("x", &[u64::MAX], &[1.0]).build(), "size that fits in memory"),
        (sample().f32_tensor("x", &[1000], &[1.0]).build(), "the file ends early: it has "),
        (sample().tensor("x", &[33, 2], 2, &[0; 36]).build(), "rows of whole blocks of 32 elements (Q4_0)"),
        (sample().f32_tensor(&"x".repeat(257), &[1], &[1.0]).build(), "expected a count of at most 256, found 257"),
        (sample().build_at(&[0, 0, 64, 160]), "that overlaps tensor"),
        (sample().build_at(&[0, 8, 64, 160]), "an offset that is a multiple of 32"),
        (sample().build_at(&[0, 32, 64, 1 << 40]), "the file ends early"),
        (sample().build_at(&[0, 32, 64, u64::MAX - 31]), "expected data inside the file"),
    ];
    for (bytes, expected) in cases {
        let error = refusal(bytes);
        assert!(error.contains(expected), "{error} should say: {expected}");
    }
}

#[test]
fn a_file_cut_anywhere_says_so_and_how_much_is_missing() {
    let bytes = sample().build();
    // The last tensor has a format of unknown size, of which one byte must be there.
    for length in 0..bytes.len() - 53 {
        let error = refusal(bytes[..length].to_vec());
        let start = format!("{FILE}: the file ends early: it has {length} bytes, and its header says at least ");
        let needed = error.strip_prefix(&start).and_then(|rest| rest.split(';').next()?.parse::<usize>().ok());
        assert!(needed.is_some_and(|needed| length < needed && needed <= bytes.len()), "cut at {length}: {error}");
    }
    let whole = format!("its header says at least {}; delete it, and pull or copy it again", bytes.len() - 53);
    assert!(refusal(bytes[..bytes.len() - 60].to_vec()).ends_with(&whole));
    assert!(open(bytes[..bytes.len() - 53].to_vec()).is_ok());
}

/// Every eight bytes of the header, and every four, as a huge number: whatever they mean, nothing panics.
#[test]
fn huge_numbers_anywhere_do_no_harm() {
    let bytes = sample().build();
    for start in 0..bytes.len() - 8 {
        for huge in [u64::MAX, 1 << 62, 1 << 40, 0xffff_ffff, 0x7fff_ffff_ffff_ffff] {
            for width in [4, 8] {
                let mut damaged = bytes.clone();
                damaged[start..start + width].copy_from_slice(&huge.to_le_bytes()[..width]);
                read_all(damaged);
            }
        }
    }
}

#[test]
fn random_damage_does_no_harm() {
    let bytes = sample().build();
    let mut random = Random(0x5eed);
    let mut refused = 0;
    for _ in 0..5000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(8) {
            let at = random.below(damaged.len());
            match random.below(4) {
                0 => damaged[at] = random.next() as u8,
                1 => damaged[at] ^= 1 << random.below(8),
                2 => drop(damaged.remove(at)),
                _ => damaged.insert(at, random.next() as u8),
            }
        }
        refused += usize::from(!read_all(damaged));
    }
    assert!(refused > 1000, "only {refused} of 5000 damaged files were refused");
}

/// Opens a file and reads what it lets itself be read; errors must name the file. Whether it opened.
fn read_all(bytes: Vec<u8>) -> bool {
    match open(bytes) {
        Err(error) => {
            assert!(error.to_string().starts_with(FILE), "{error}");
            false
        }
        Ok(weights) => {
            let metadata = weights.metadata().expect("GGUF has metadata");
            let texts = metadata.get::<Vec<String>>("tokenizer.ggml.tokens");
            let types = metadata.get::<Vec<i32>>("tokenizer.ggml.token_type");
            for error in [texts.err(), types.err()].into_iter().flatten() {
                assert!(error.to_string().starts_with(FILE), "{error}");
            }
            let _ = weights.vector(WeightName::OutputNorm, 2).map(|norm| assert_eq!(norm.len(), 2));
            assert!(weights.parameters() >= weights.total_bytes() / 4, "no element takes more than 4 bytes");
            for (name, rows, columns) in [(WeightName::TokenEmbedding, 3, 2), (WeightName::Q(0), 2, 32)] {
                if let Ok(matrix) = weights.matrix(name, rows, columns) {
                    assert_eq!(
                        Some(matrix.bytes().len()),
                        matrix.format().row_bytes(columns).map(|bytes| bytes * rows)
                    );
                }
            }
            true
        }
    }
}

/// SplitMix64: the damage is the same in every run. Source: Steele et al., "Fast splittable pseudorandom number generators", 2014.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn sums_of_hostile_shapes_saturate() {
    let huge = [1u64 << 62];
    let builder =
        (0..5).fold(GgufBuilder::new(3), |file, index| file.tensor(&format!("x{index}"), &huge, 20, &[0; 32]));
    let weights = open(builder.build()).expect("formats of unknown size are refused only when used");
    assert_eq!((weights.parameters(), weights.main_format()), (u64::MAX, "mixed"));
}

#[test]
fn texts_keep_their_bytes() {
    let bytes = GgufBuilder::new(3).raw("k", 8, &text("\u{e9}\u{1f56f}")).build();
    let weights = open(bytes).expect("it is right");
    assert_eq!(
        weights.metadata().and_then(|metadata| metadata.get::<String>("k").ok()).flatten().as_deref(),
        Some("\u{e9}\u{1f56f}")
    );
}

/// A model cut in two, and its pieces in the wrong places.
#[test]
fn a_model_in_several_files_is_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let part = |number: u32, count: u32| {
        let file = GgufBuilder::new(3).u32("split.no", number).u32("split.count", count);
        match number {
            0 => file.text("general.architecture", "llama").f32_tensor("output_norm.weight", &[2], &[1.5, -2.0]),
            _ => file.f32_tensor("token_embd.weight", &[2, 1], &[3.0, 4.0]),
        }
    };
    let path = |number: u32| folder.path().join(format!("m-0000{number}-of-00002.gguf"));
    let write = |number: u32, file: GgufBuilder| std::fs::write(path(number), file.build()).expect("it can be written");
    write(1, part(0, 2));
    let error = Weights::open(&path(1)).err().expect("the second is missing").to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    write(2, part(1, 2));
    for opened in [path(1), path(2), folder.path().to_owned()] {
        let weights = Weights::open(&opened).expect("it is right");
        let metadata = weights.metadata().expect("GGUF has metadata");
        assert_eq!(metadata.require::<String>("general.architecture").ok().as_deref(), Some("llama"));
        assert_eq!(weights.vector(WeightName::OutputNorm, 2).ok(), Some(vec![1.5, -2.0]));
        let embedding = weights.matrix(WeightName::TokenEmbedding, 1, 2).expect("it is in the second");
        assert_eq!(embedding.dequantize(), [3.0, 4.0]);
        assert_eq!(weights.files().count(), 2);
    }
    for (wrong, expected) in
        [(part(0, 2), "split.no: expected 1, found 0"), (part(1, 3), "split.count: expected 2, found 3")]
    {
        write(2, wrong);
        let error = Weights::open(&path(1)).err().expect("the parts do not fit").to_string();
        assert!(error.contains(expected), "{error} should say: {expected}");
    }
    write(2, part(1, 2).f32_tensor("output_norm.weight", &[2], &[1.0, 1.0]));
    let error = Weights::open(&path(1)).err().expect("it is there twice").to_string();
    assert!(error.contains("expected each tensor once"), "{error}");
}

#[test]
fn layers_behind_those_of_the_model_are_left_out_of_every_count() {
    let file = GgufBuilder::new(3)
        .f32_tensor("output_norm.weight", &[2], &[1.0; 2])
        .f32_tensor("blk.0.ffn_norm.weight", &[3], &[1.0; 3])
        .f32_tensor("blk.1.ffn_norm.weight", &[5], &[1.0; 5])
        .f32_tensor("blk.1.nextn.eh_proj.weight", &[7], &[1.0; 7]);
    let weights = open(file.build()).expect("it is right");
    assert_eq!((weights.parameters(), weights.total_bytes()), (17, 68));
    let weights = weights.first_layers(1);
    assert_eq!((weights.parameters(), weights.total_bytes()), (5, 20));
    assert!(weights.has(WeightName::FfnNorm(0)) && !weights.has(WeightName::FfnNorm(1)));
}
