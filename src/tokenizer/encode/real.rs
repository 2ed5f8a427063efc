//! Real tokenizers, each as its tokenizer.json and as the GGUF vocabulary made of it, against what Hugging Face
//! `tokenizers` gave (`tests/scripts/make_real_tokenizers.py`).
//!
//! `LANTERN_TEST_TOKENIZERS` names the folder of `tests/scripts/fetch_tokenizers.sh`; `.ci/run` fetches it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::*;

const EXPECTED: &str = include_str!("../../../tests/fixtures/tokenizer/real.json");

/// What one text of a million characters may take in a build without optimisation of ours.
const LONGEST: Duration = Duration::from_secs(20);

/// Each tokenizer's folder, and the name of its pre-tokenizer in GGUF.
const NAMES: [(&str, Option<&str>); 4] =
    [("llama2", None), ("llama3_1", Some("llama-bpe")), ("qwen3", Some("qwen2")), ("deepseek_v3", Some("deepseek-v3"))];

#[derive(Deserialize)]
struct Reference {
    texts: Vec<String>,
    long: Vec<LongText>,
    tokenizers: std::collections::BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct LongText {
    before: String,
    repeat: String,
    count: usize,
    after: String,
}

#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<u32>>,
    decoded: std::collections::BTreeMap<String, String>,
    framed: Vec<u32>,
    long: Vec<LongIds>,
}

#[derive(Deserialize, Debug, PartialEq)]
struct LongIds {
    count: usize,
    first: Vec<u32>,
    last: Vec<u32>,
    hash: String,
}

impl LongIds {
    fn of(ids: &[u32]) -> Self {
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
        let hash =
            bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        LongIds {
            count: ids.len(),
            first: ids[..ids.len().min(4)].to_vec(),
            last: ids[ids.len().saturating_sub(4)..].to_vec(),
            hash: format!("{hash:016x}"),
        }
    }
}

fn reference() -> Reference {
    serde_json::from_str(EXPECTED).unwrap()
}

fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os("LANTERN_TEST_TOKENIZERS").expect("LANTERN_TEST_TOKENIZERS names the folder");
    PathBuf::from(folder).join(name)
}

/// A tokenizer.json as the GGUF format's converter writes it.
fn as_gguf(name: &str, pre: Option<&str>) -> Tokenizer {
    let text = std::fs::read_to_string(path(name).join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let id_of = |id: &Value| id.as_u64().unwrap() as usize;
    let added = json["added_tokens"].as_array().unwrap();
    let added = added.iter().map(|token| (id_of(&token["id"]), token));
    let count = vocabulary.values().map(id_of).chain(added.clone().map(|(id, _)| id)).max().unwrap() + 1;
    let mut vocab = GgufVocab {
        model: if pre.is_some() { "gpt2" } else { "llama" }.into(),
        pre: pre.map(str::to_owned),
        tokens: (0..count).map(|id| format!("[PAD{id}]")).collect(),
        token_types: vec![5; count],
        ..GgufVocab::default()
    };
    for (token, id) in vocabulary {
        let id = id_of(id);
        vocab.tokens[id].clone_from(token);
        vocab.token_types[id] = if pre.is_none() && token.starts_with("<0x") { 6 } else { 1 };
    }
    for (id, token) in added {
        vocab.tokens[id] = token["content"].as_str().unwrap().to_owned();
        let kind = if token["special"] == true { 3 } else { 4 };
        vocab.token_types[id] = if token["content"] == "<unk>" { 2 } else { kind };
    }
    if pre.is_some() {
        let halves = |merge: &Value| match merge.as_str() {
            Some(merge) => merge.to_owned(),
            None => format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()),
        };
        vocab.merges = json["model"]["merges"].as_array().unwrap().iter().map(halves).collect();
    } else {
        // As the SentencePiece model scores them: in the order of ids, but runs of spaces last.
        let is_run = |token: &String| token.len() > 3 && token.chars().all(|character| character == '▁');
        let scores = vocab.tokens.iter().zip(0_u16..);
        let scores = scores.map(|(token, id)| if is_run(token) { -1e9 } else { -f32::from(id.saturating_sub(259)) });
        vocab.scores = scores.collect();
    }
    Tokenizer::from_gguf_vocab(vocab).unwrap()
}

/// All tokenizers in both forms, with a name for messages.
fn all() -> Vec<(&'static str, String, Tokenizer)> {
    let forms = |(name, pre): (&'static str, Option<&str>)| {
        let file = Tokenizer::from_file(path(name).join("tokenizer.json")).unwrap();
        [(name, format!("{name} json"), file), (name, format!("{name} gguf"), as_gguf(name, pre))]
    };
    NAMES.into_iter().flat_map(forms).collect()
}

#[test]
#[ignore = "needs tokenizers that a script fetches; .ci/run does and runs this"]
fn real_tokenizers_encode_and_decode_as_their_reference() {
    let Reference { texts, tokenizers, .. } = reference();
    let mut wrong = Vec::new();
    for (name, form, tokenizer) in all() {
        let expected = &tokenizers[name];
        for (at, (text, ids)) in texts.iter().zip(&expected.ids).enumerate() {
            let found = tokenizer.encode(text, false).unwrap();
            if found != *ids {
                wrong.push(format!("{form}: {text:?}\n  is {found:?}\n not {ids:?}"));
            }
            let decoded = tokenizer.decode(ids, false);
            let back = expected.decoded.get(&at.to_string()).unwrap_or(text);
            if decoded != *back {
                wrong.push(format!("{form}: the ids of {text:?}\n  decode to {decoded:?}\n not {back:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs tokenizers that a script fetches; .ci/run does and runs this"]
fn real_tokenizers_frame_a_text_as_their_files_say() {
    let expected = reference().tokenizers;
    for (name, _) in NAMES {
        let tokenizer = Tokenizer::from_file(path(name).join("tokenizer.json")).unwrap();
        let mut framed = expected[name].framed.clone();
        // Its tokenizer_config.json adds the beginning, which `tokenizers` alone doesn't read.
        if name == "deepseek_v3" {
            framed.insert(0, tokenizer.bos().unwrap());
        }
        assert_eq!(tokenizer.encode("a", true).unwrap(), framed, "{name}");
    }
}

#[test]
#[ignore = "needs tokenizers that a script fetches; .ci/run does and runs this"]
fn a_million_letters_or_spaces_take_seconds_and_the_same_tokens() {
    let Reference { long, tokenizers, .. } = reference();
    let mut wrong = Vec::new();
    for (name, form, tokenizer) in all() {
        for (text, expected) in long.iter().zip(&tokenizers[name].long) {
            let LongText { before, repeat, count, after } = text;
            let began = Instant::now();
            let found = tokenizer.encode(&[before, &repeat.repeat(*count), after].map(String::as_str).concat(), false);
            let took = began.elapsed();
            let found = LongIds::of(&found.unwrap());
            println!("{form}: {repeat:?} x {count}: {} tokens, {:.2} s", found.count, took.as_secs_f64());
            if found != *expected || took > LONGEST {
                wrong.push(format!("{form}: {repeat:?} x {count}, {took:?}: {found:?} is not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs tokenizers that a script fetches; .ci/run does and runs this"]
fn streams_of_real_tokens_are_whole_characters_and_equal_the_whole() {
    for (_, form, tokenizer) in all() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for round in 0..2000 {
            let ids: Vec<u32> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Every other id is one of the first 300, which are single bytes.
                let below = if state & (1 << 40) == 0 { 300 } else { tokenizer.vocab_size() as u64 };
                ((state >> 33) % below) as u32
            })
            .take(1 + round % 50)
            .collect();
            let mut decoder = IncrementalDecoder::new(&tokenizer, false);
            let mut streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
            streamed.push_str(&decoder.finish());
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.id_to_bytes(id)).copied().collect();
            let whole = String::from_utf8_lossy(&bytes);
            let strips = tokenizer.strips_leading_space();
            let expected = if strips { whole.strip_prefix(' ').unwrap_or(&whole) } else { &whole };
            assert_eq!(streamed, expected, "{form}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, false), expected, "{form}: {ids:?}");
        }
    }
}
