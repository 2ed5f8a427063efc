use super::*;
use crate::llm::grammar::tests::{EOS, tokenizer};
use crate::tokenizer::ToolCall;

const FORMATS: [CallFormat; 3] = [CallFormat::Hermes, CallFormat::DeepSeek, CallFormat::DeepSeekV31];

/// Tokens that begin within a mark and end behind it.
const ACROSS: [&str; 2] = ["call>{\"name\":", "call>{\"name\"="];

fn masks(format: CallFormat, parser: AnswerParser) -> Arc<dyn TokenMasks> {
    let tokenizer = tokenizer(&ACROSS);
    let compiler = GrammarCompiler::new(&tokenizer, 260, EOS).expect("a valid vocabulary");
    compiler.held_calls(format, parser, IncrementalDecoder::continuing(&tokenizer, true)).expect("calls with marks")
}

fn parser(format: CallFormat) -> AnswerParser {
    AnswerParser::new(true, false, Some(format))
}

/// The tokens that may follow `text`, as bytes; `None`: all.
fn after(masks: &Arc<dyn TokenMasks>, text: &str) -> Result<Option<Vec<TokenId>>, String> {
    let mut mask = masks.start();
    for byte in text.bytes() {
        mask.allowed()?;
        mask.commit(byte.into())?;
    }
    Ok(mask.allowed()?.map(ids))
}

fn ids(bits: &[u32]) -> Vec<TokenId> {
    (0..bits.len() as u32 * 32).filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

fn byte(character: char) -> TokenId {
    character as TokenId
}

/// Text and the whole of a call behind it.
fn call(format: CallFormat) -> (&'static str, &'static str) {
    match format {
        CallFormat::Hermes => ("<tool_call>\n{\"name\"", ": \"f\", \"arguments\": {\"x\": [1]}}\n</tool_call>"),
        CallFormat::DeepSeek => {
            ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "f\n```json\n{\"x\": [1]}\n```<｜tool▁call▁end｜>")
        }
        CallFormat::DeepSeekV31 => ("<｜tool▁call▁begin｜>f<｜tool▁sep｜>", "{\"x\": [1]}<｜tool▁call▁end｜>"),
        CallFormat::Json => unreachable!("it has no marks"),
    }
}

#[test]
fn calls_are_held_from_their_names_to_their_ends_and_all_else_is_free() {
    for format in FORMATS {
        let masks = masks(format, parser(format));
        let (head, rest) = call(format);
        let free = |text: &str| assert_eq!(after(&masks, text), Ok(None), "{format:?}: {text}");
        for text in ["", "Hello", "<think>hm", "<think>hm</think>\n\n", "a < b"] {
            for at in 0..head.len() {
                if head.is_char_boundary(at) {
                    free(&format!("{text}{}", &head[..at]));
                }
            }
            for at in (0..rest.len()).filter(|at| rest.is_char_boundary(*at)) {
                let begun = format!("{text}{head}{}", &rest[..at]);
                let thinks = text == "<think>hm";
                let allowed = after(&masks, &begun).expect("it has its form");
                assert_eq!(allowed.is_none(), thinks, "{format:?}: {begun}");
                // It cannot end before its end.
                assert!(allowed.is_none_or(|ids| !ids.is_empty() && !ids.contains(&EOS)), "{format:?}: {begun}");
            }
            let whole = format!("{text}{head}{rest}");
            free(&whole);
            if text != "<think>hm" {
                assert!(after(&masks, &format!("{whole}\n{head}")).is_ok_and(|ids| ids.is_some()), "{format:?}: again");
                assert!(after(&masks, &format!("{text}{head}`")).is_err(), "{format:?}");
            }
        }
    }
}

#[test]
fn what_only_speaks_of_calls_is_free() {
    let hermes = masks(CallFormat::Hermes, parser(CallFormat::Hermes));
    for text in [
        "Calls begin with <tool_call> and a name.",
        "<tool_call>\n<function=f>",
        "<tool_call>{\"arguments\": {}",
        "<tool_call></tool_call>",
        "<tool_call>\n{\"names\"",
    ] {
        assert_eq!(after(&hermes, text), Ok(None), "{text}");
    }
    // Of the second mark a call begins.
    let second = after(&hermes, "I write <tool_call>: <tool_call>{\"name\"").expect("taken").expect("held");
    assert!(second.contains(&byte(':')) && !second.contains(&byte('"')), "{second:?}");
    assert!(rest_of_call(CallFormat::Json).is_none());
}

#[test]
fn a_token_across_the_mark_counts_with_what_stands_behind_it() {
    let across = |token: TokenId| {
        let mut mask = masks(CallFormat::Hermes, parser(CallFormat::Hermes)).start();
        "<tool_".bytes().for_each(|byte| mask.commit(byte.into()).expect("free"));
        mask.commit(token).expect("free");
        mask.allowed().expect("no fault").map(ids)
    };
    let allowed = across(258).expect("held");
    assert!(allowed.contains(&byte('"')) && !allowed.contains(&byte('5')), "{allowed:?}");
    // What has another form already is free.
    assert_eq!(across(259), None);
}

#[test]
fn thoughts_that_the_prompt_opens_are_free() {
    let opened = AnswerParser::new(true, true, Some(CallFormat::Hermes));
    let masks = masks(CallFormat::Hermes, opened);
    let (head, _) = call(CallFormat::Hermes);
    assert_eq!(after(&masks, head), Ok(None));
    assert!(after(&masks, &format!("{head}</think>{head}")).is_ok_and(|ids| ids.is_some()));
}

/// A call of noise: from its beginning on each byte is any that may come, rather one that brings it nearer to its end.
fn noise(format: CallFormat, seed: u64) -> Option<String> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut mask = masks(format, parser(format)).start();
    let mut text = call(format).0.as_bytes().to_vec();
    text.iter().for_each(|byte| mask.commit(u32::from(*byte)).expect("free"));
    while text.len() < 1500 {
        let Some(allowed) = mask.allowed().expect("it can go on") else {
            return Some(String::from_utf8(text).expect("text"));
        };
        let allowed: Vec<TokenId> = ids(allowed).into_iter().filter(|id| *id < 256).collect();
        let ends: Vec<TokenId> = allowed.iter().copied().filter(|id| b"\"}]`<".contains(&(*id as u8))).collect();
        let among = if !ends.is_empty() && draw(3) > 0 { &ends } else { &allowed };
        let token = among[draw(among.len())];
        mask.commit(token).expect("it was allowed");
        text.push(token as u8);
    }
    None
}

#[test]
fn whatever_a_held_call_says_is_read_as_a_call_in_pieces_as_when_it_is_whole() {
    let mut ended = 0;
    for format in FORMATS {
        for seed in 0..60 {
            let Some(text) = noise(format, seed) else { continue };
            let whole = parser(format).holding_calls().push(&text);
            let mut in_pieces = parser(format).holding_calls().in_pieces();
            let mut found = Vec::new();
            for character in text.chars() {
                for part in in_pieces.push(character.encode_utf8(&mut [0; 4])) {
                    match (part, found.last_mut()) {
                        (Part::CallBegins(name), _) => {
                            found.push(Part::Call(ToolCall { name, arguments: String::new() }));
                        }
                        (Part::Arguments(piece), Some(Part::Call(call))) => call.arguments.push_str(&piece),
                        (Part::CallEnds, _) => ended += 1,
                        (other, _) => found.push(other),
                    }
                }
            }
            assert_eq!(found, whole, "{format:?}, seed {seed}: {text}");
        }
    }
    assert!(ended > 60, "{ended}");
}
