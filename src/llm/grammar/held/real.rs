//! Calls of real vocabularies held to their form, and what that costs.
//!
//! `LANTERN_TEST_TOKENIZERS` names the folder of `tests/scripts/fetch_tokenizers.sh`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::tokenizer::Tokenizer;

/// Tokenizer, form, a text, the beginning of a call behind it, and its rest.
const CASES: [(&str, CallFormat, &str, &str); 3] = [
    (
        "qwen3",
        CallFormat::Hermes,
        "<tool_call>\n{\"name\"",
        ": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": [1, 2], \"note\": \"sonnig? ☀️ \\\"ja\\\"\"}}\n\
         </tool_call>",
    ),
    (
        "deepseek_v3",
        CallFormat::DeepSeek,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "get_weather\n```json\n{\"city\": \"Zürich\", \"days\": [1, 2]}\n```<｜tool▁call▁end｜>",
    ),
    (
        "deepseek_v3",
        CallFormat::DeepSeekV31,
        "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>",
        "{\"city\": \"Zürich\", \"days\": [1, 2]}<｜tool▁call▁end｜>",
    ),
];

/// Longest that a token of free text may take on average, in builds of whatever kind on machines of whatever speed.
const LONGEST_FREE: Duration = Duration::from_micros(50);

#[test]
#[ignore = "needs real tokenizers: LANTERN_TEST_TOKENIZERS"]
fn calls_of_real_models_fit() {
    let folder = PathBuf::from(std::env::var("LANTERN_TEST_TOKENIZERS").expect("LANTERN_TEST_TOKENIZERS"));
    for (name, format, head, rest) in CASES {
        let tokenizer = Tokenizer::from_file(folder.join(name).join("tokenizer.json")).expect("a tokenizer");
        let vocab_size = tokenizer.vocab_size() as u32;
        let started = Instant::now();
        let eos = (0..vocab_size).find(|id| tokenizer.is_special(*id)).expect("a control token");
        let compiler = GrammarCompiler::new(&tokenizer, vocab_size, eos).expect("a valid vocabulary");
        let (built, started) = (started.elapsed(), Instant::now());
        let decoder = IncrementalDecoder::new(&tokenizer, true);
        let parser = AnswerParser::new(true, false, Some(format));
        let masks = compiler.held_calls(format, parser, decoder).expect("it can be held");
        let (compiled, started) = (started.elapsed(), Instant::now());
        let mut mask = masks.start();
        let began = started.elapsed();
        let text = "Let me look that up for you: the weather in Zürich is what you asked for. ".repeat(40);
        let tokens = tokenizer.encode(&text, false).expect("text");
        let started = Instant::now();
        for token in &tokens {
            assert_eq!(mask.allowed(), Ok(None));
            mask.commit(*token).expect("free");
        }
        let free = started.elapsed() / tokens.len() as u32;
        for token in tokenizer.encode(head, false).expect("text") {
            assert_eq!(mask.allowed(), Ok(None), "{name} {format:?}");
            mask.commit(token).expect("free");
        }
        let tokens = tokenizer.encode(rest, false).expect("text");
        let (mut slowest, started) = (Duration::ZERO, Instant::now());
        for token in &tokens {
            let started = Instant::now();
            let allowed = mask.allowed().expect("no fault").expect("held");
            slowest = slowest.max(started.elapsed());
            let text = tokenizer.decode(&[*token], false);
            assert!(allowed[*token as usize / 32] >> (token % 32) & 1 == 1, "{name} {format:?}: {text:?}");
            mask.commit(*token).expect("it was allowed");
        }
        let held = started.elapsed() / tokens.len() as u32;
        assert_eq!(mask.allowed(), Ok(None), "{name} {format:?}: free again");
        println!(
            "{name} {format:?}: vocabulary {built:?}, grammar {compiled:?}, an answer {began:?}, a free token {free:?}, a \
             held one {held:?}, slowest mask {slowest:?}"
        );
        assert!(free < LONGEST_FREE, "{name}: {free:?}");
    }
}
