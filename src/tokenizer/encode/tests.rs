//! Both forms of both kinds of tokenizer against what their references gave
//! (`tests/scripts/tokenizer_fixtures.py`).

use super::*;
use serde_json::json;

const BYTE_LEVEL: &str = include_str!("../../../tests/fixtures/tokenizer/byte_level.json");
const SENTENCE_PIECE: &str = include_str!("../../../tests/fixtures/tokenizer/sentence_piece.json");

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// The byte-level fixture as a folder that holds `tokenizer.json` and `tokenizer_config.json`.
fn folder(config: Option<Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = parse(BYTE_LEVEL)["tokenizer"].to_string();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    if let Some(config) = config {
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    }
    folder
}

pub(in crate::tokenizer) fn fixture() -> Tokenizer {
    Tokenizer::from_file(folder(None).path().join("tokenizer.json")).unwrap()
}

/// The byte-level fixture as GGUF metadata.
fn byte_level_vocab() -> GgufVocab {
    let tokenizer = &parse(BYTE_LEVEL)["tokenizer"];
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut token_types = vec![1; tokens.len()];
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        token_types[added["id"].as_u64().unwrap() as usize] = 3;
    }
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        merges: strings(&tokenizer["model"]["merges"]),
        bos: Some(1),
        eos: Some(2),
        tokens,
        token_types,
        ..GgufVocab::default()
    }
}

fn sentence_piece_vocab() -> GgufVocab {
    let fixture = parse(SENTENCE_PIECE);
    let numbers = |key: &str| fixture[key].as_array().unwrap().clone();
    GgufVocab {
        model: "llama".into(),
        tokens: strings(&fixture["tokens"]),
        token_types: numbers("token_types").iter().map(|n| n.as_i64().unwrap() as i32).collect(),
        scores: numbers("scores").iter().map(|n| n.as_f64().unwrap() as f32).collect(),
        bos: Some(1),
        eos: Some(2),
        ..GgufVocab::default()
    }
}

fn agrees(tokenizer: &Tokenizer, fixture: &Value) {
    for case in fixture["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        let expected: Vec<u64> = ids.iter().map(|&id| u64::from(id)).collect();
        assert_eq!(json!(expected), case["ids"], "{text:?}");
        assert_eq!(json!(tokenizer.decode(&ids, false)), case["decoded"], "{text:?}");
    }
}

#[test]
fn tokenizer_json_and_gguf_agree_with_the_reference() {
    let fixture_json = parse(BYTE_LEVEL);
    agrees(&fixture(), &fixture_json);
    agrees(&Tokenizer::from_gguf_vocab(byte_level_vocab()).unwrap(), &fixture_json);
}

#[test]
fn sentence_piece_agrees_with_the_reference() {
    let tokenizer = Tokenizer::from_gguf_vocab(sentence_piece_vocab()).unwrap();
    agrees(&tokenizer, &parse(SENTENCE_PIECE));
}

#[test]
fn special_tokens_are_parsed_skipped_and_named() {
    let tokenizer = Tokenizer::from_gguf_vocab(byte_level_vocab()).unwrap();
    let ids = tokenizer.encode("a<|im_end|>b", false).unwrap();
    assert_eq!(ids[1], 2);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(ids[0]));
    assert_eq!(tokenizer.decode(&ids, true), "ab");
    assert_eq!(tokenizer.decode(&ids, false), "a<|im_end|>b");
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.id_to_piece(2).as_deref(), Some("<|im_end|>"));
    let the = tokenizer.token_to_id("Ġthe").unwrap();
    assert_eq!(tokenizer.id_to_bytes(the), b" the");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert!(tokenizer.id_to_bytes(u32::MAX).is_empty());
}

/// llama.cpp's files have all that is spelled `<｜...｜>` as control tokens.
#[test]
fn marks_of_deepseek_s_calls_are_text_and_its_other_marks_are_not() {
    let call = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f<｜tool▁call▁end｜>";
    for mut vocab in [byte_level_vocab(), sentence_piece_vocab()] {
        let marks = ["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜User｜>"];
        let first = vocab.tokens.len() as u32;
        vocab.tokens.extend(marks.map(String::from));
        vocab.token_types.extend([3; 4]);
        vocab.scores.extend(if vocab.scores.is_empty() { vec![] } else { vec![0.0; 4] });
        let tokenizer = Tokenizer::from_gguf_vocab(vocab).unwrap();
        let ids = tokenizer.encode(&format!("{call}<｜User｜>"), false).unwrap();
        for id in first..first + 4 {
            assert!(ids.contains(&id), "{id}: {ids:?}");
            assert_eq!(tokenizer.is_special(id), id == first + 3);
        }
        assert_eq!(tokenizer.decode(&ids, true).replace(' ', ""), call);
        assert_eq!(tokenizer.decode(&ids, false).replace(' ', ""), format!("{call}<｜User｜>"));
    }
}

#[test]
fn a_text_begins_and_ends_as_the_model_says() {
    let with = |add_bos, add_eos| {
        let vocab = GgufVocab { add_bos, add_eos, ..byte_level_vocab() };
        Tokenizer::from_gguf_vocab(vocab).unwrap().encode("a", true).unwrap()
    };
    let a = fixture().token_to_id("a").unwrap();
    assert_eq!(with(None, None), [a]);
    assert_eq!(with(Some(true), None), [1, a]);
    assert_eq!(with(Some(true), Some(true)), [1, a, 2]);
    let llama = Tokenizer::from_gguf_vocab(sentence_piece_vocab()).unwrap();
    assert_eq!(llama.encode("a", true).unwrap()[0], 1);
    assert_ne!(llama.encode("a", false).unwrap()[0], 1);
    let llama3 = GgufVocab { pre: Some("llama-bpe".into()), ..byte_level_vocab() };
    assert_eq!(Tokenizer::from_gguf_vocab(llama3).unwrap().encode("a", true).unwrap(), [1, a]);
}

#[test]
fn tokenizer_config_names_the_tokens_and_the_frame() {
    let config = json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"},
        "add_bos_token": true});
    let folder = folder(Some(config));
    let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    let a = tokenizer.token_to_id("a").unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, a]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [a]);
}

#[test]
fn a_post_processor_is_the_frame_unless_the_config_overrules_it() {
    let frame = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
            "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}});
    let mut tokenizer = parse(BYTE_LEVEL)["tokenizer"].clone();
    tokenizer["post_processor"] = frame;
    let encode = |config: &Value| {
        let encoder = tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
        Tokenizer::from_parts(encoder, config).unwrap().encode("a", true).unwrap()
    };
    let a = fixture().token_to_id("a").unwrap();
    assert_eq!(encode(&Value::Null), [1, a, 2]);
    let overruled = json!({"bos_token": "<|im_start|>", "add_bos_token": false});
    assert_eq!(encode(&overruled), [a, 2]);
}

#[test]
fn contradictions_are_errors_that_name_them() {
    let base = byte_level_vocab;
    let cases: Vec<(GgufVocab, &str)> = vec![
        (GgufVocab { model: "bert".into(), ..base() }, "bert"),
        (GgufVocab { pre: Some("tekken".into()), ..base() }, "tekken"),
        (GgufVocab { tokens: Vec::new(), token_types: Vec::new(), ..base() }, "no tokens"),
        (GgufVocab { token_types: vec![1; 3], ..base() }, "3 token types"),
        (GgufVocab { bos: Some(1_000_000), ..base() }, "bos token is 1000000"),
        (GgufVocab { merges: vec!["Ġ the zz".into()], ..base() }, "merge 0"),
        (GgufVocab { merges: vec!["Ġthe Ġthe".into()], ..base() }, "merge 0"),
        (GgufVocab { merges: vec!["nospace".into()], ..base() }, "merge 0"),
        (GgufVocab { scores: Vec::new(), ..sentence_piece_vocab() }, "0 scores"),
    ];
    for (vocab, expected) in cases {
        let error = Tokenizer::from_gguf_vocab(vocab).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut long = sentence_piece_vocab();
    *long.tokens.last_mut().unwrap() = "x".repeat(100_000);
    assert!(Tokenizer::from_gguf_vocab(long).unwrap_err().to_string().contains("100000 bytes"));
}

#[test]
fn a_broken_file_is_an_error_with_its_path() {
    let folder = folder(Some(json!({})));
    let path = folder.path().join("tokenizer.json");
    let mut hostile = parse(BYTE_LEVEL)["tokenizer"].clone();
    let longest = "x".repeat(40);
    hostile["model"]["vocab"] = json!({ longest.clone(): 0 });
    hostile["model"]["merges"] = json!([format!("{longest} {longest}")]);
    hostile["added_tokens"] = json!([]);
    for content in ["{", "{}", &hostile.to_string()] {
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Tokenizer::from_file(&path), Err(TokenizerError::Read { .. })));
}
