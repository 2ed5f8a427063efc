//! Real GGUF files, read as a model is: the vocabularies that llama.cpp tests with, and the header of a model of 4.7 GB.
//!
//! `LANTERN_TEST_TOKENIZERS` names the folder of `tests/scripts/fetch_tokenizers.sh`; `.ci/run` fetches it.

use std::path::PathBuf;

use super::*;
use crate::engine::{MemoryToPlan, ModelSource};
use crate::tokenizer::IncrementalDecoder;

/// What stands between texts.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// What Hugging Face `tokenizers` gave for real tokenizers.
const REFERENCE: &str = include_str!("../../../tests/fixtures/tokenizer/real.json");

fn file(name: &str) -> PathBuf {
    let folder = std::env::var_os("LANTERN_TEST_TOKENIZERS").expect("LANTERN_TEST_TOKENIZERS names the folder");
    PathBuf::from(folder).join("gguf").join(name)
}

#[test]
#[ignore = "needs files that a script fetches; .ci/run does and runs this"]
fn vocabularies_of_gguf_files_encode_as_their_models_do() {
    let mut wrong = Vec::new();
    for name in ["deepseek-llm", "deepseek-coder", "llama-spm", "llama-bpe", "qwen2"] {
        let path = file(&format!("ggml-vocab-{name}.gguf"));
        let source = ModelSource::open(&path).unwrap();
        let tokenizer = build_tokenizer(source.tokenizer, name).unwrap();
        let read = |end: &str| std::fs::read_to_string(path.with_extension(end)).unwrap();
        let (texts, ids) = (read("gguf.inp"), read("gguf.out"));
        let texts: Vec<&str> = texts.split(SEPARATOR).collect();
        let ids: Vec<Vec<u32>> =
            ids.split('\n').map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        assert!(texts.len() == ids.len() && texts.len() > 40, "{name}: {} texts, {} answers", texts.len(), ids.len());
        for (text, ids) in texts.into_iter().zip(&ids) {
            let found = tokenizer.encode(text, false).unwrap();
            if found != *ids {
                wrong.push(format!("{name}: {text:?}\n  is {found:?}\n not {ids:?}"));
            }
            let mut decoder = IncrementalDecoder::new(&tokenizer, false);
            let mut streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
            streamed.push_str(&decoder.finish());
            if streamed != tokenizer.decode(ids, false) || streamed != *text {
                wrong.push(format!("{name}: the ids of {text:?}\n  decode to {streamed:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs files that a script fetches; .ci/run does and runs this"]
fn the_header_of_a_real_model_is_read_planned_and_spoken_to() {
    let path = file("deepseek-r1-distill-qwen-7b.gguf");
    let source = ModelSource::open(&path).unwrap();
    assert_eq!(
        (source.name.as_str(), source.spec.layers, source.spec.vocab),
        ("DeepSeek R1 Distill Qwen 7B", 28, 152_064)
    );
    assert_eq!((source.weights.parameters(), source.weights.main_format()), (7_615_616_512, "Q4_K"));
    assert_eq!((&source.eos_token_ids[..], source.weight_bytes()), (&[151_643][..], 4_677_120_000));

    // A card of 8 GiB holds it, with a context of 8192.
    let config = EngineConfig { context_length: Some(8192), ..EngineConfig::default() };
    let memory = MemoryToPlan::Gpu { bytes: 8 << 30, main_bytes: 0 };
    let plan = plan_preview(&path, false, &config, memory, None).unwrap();
    assert!(plan.reason.is_none() && plan.offload.is_none() && plan.users >= 1, "{plan:?}");

    let template = include_str!("../../../tests/fixtures/templates/deepseek_r1_distill.jinja");
    assert_eq!(source.chat_template.as_deref().map(str::trim), Some(template.trim()));
    let tokenizer = build_tokenizer(source.tokenizer, &source.name).unwrap();
    let prompt = "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜><think>\n";
    assert_eq!(tokenizer.encode(prompt, false).unwrap(), [151_646, 151_644, 9707, 151_645, 151_648, 198]);

    // Its vocabulary is that of Qwen3 but for special tokens.
    let reference: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
    let (texts, ids) = (&reference["texts"], &reference["tokenizers"]["qwen3"]["ids"]);
    let mut seen = 0;
    for (text, ids) in texts.as_array().unwrap().iter().zip(ids.as_array().unwrap()) {
        let ids: Vec<u64> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let text = text.as_str().unwrap();
        if ids.iter().any(|id| *id >= 151_643) || text.contains('<') {
            continue;
        }
        let found: Vec<u64> = tokenizer.encode(text, false).unwrap().into_iter().map(u64::from).collect();
        assert_eq!(found, ids, "{text:?}");
        seen += 1;
    }
    assert!(seen > 30, "only {seen} texts");
}
