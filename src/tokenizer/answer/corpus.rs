//! Answers of models, told the same however their bytes are cut: through the decoder, the stop strings and the parser, as
//! a stream goes (`tests/fixtures/answers/answers.json`).
//!
//! Those of the default model are its own, word for word; the others have the form that their models' templates show.

use serde_json::{Value, json};

use super::{AnswerParser, CallFormat, Part, ToolCall};
use crate::tokenizer::encode::tests::fixture;
use crate::tokenizer::{IncrementalDecoder, StopMatcher, Tokenizer};

const ANSWERS: &str = include_str!("../../../tests/fixtures/answers/answers.json");

/// Longest answer, in bytes, of which all pairs of cuts are tried.
const MOST_BYTES_IN_THREE: usize = 200;

/// The token of each byte; of those that no text has there is none.
fn byte_tokens(tokenizer: &Tokenizer) -> Vec<Option<u32>> {
    let is_byte = |id: &u32, byte: u8| !tokenizer.is_special(*id) && tokenizer.id_to_bytes(*id) == [byte];
    let ids = 0..tokenizer.vocab_size() as u32;
    (0..=255).map(|byte| ids.clone().find(|id| is_byte(id, byte))).collect()
}

fn parser(answer: &Value) -> AnswerParser {
    let calls = match answer["calls"].as_str() {
        None => None,
        Some("hermes") => Some(CallFormat::Hermes),
        Some("deepseek") => Some(CallFormat::DeepSeek),
        Some("json") => Some(CallFormat::Json),
        Some(other) => panic!("no form is called {other}"),
    };
    let is = |name: &str| answer[name].as_bool().expect("yes or no");
    AnswerParser::new(is("reasoning"), is("opened"), calls)
}

/// The parts of an answer whose tokens come in `pieces`, neighbours of a kind put together, as the fixture has them: so is
/// a call that is told in pieces.
fn parts(tokenizer: &Tokenizer, parser: AnswerParser, pieces: &[&[u32]]) -> Vec<Value> {
    let mut decoder = IncrementalDecoder::new(tokenizer, true);
    let mut stops = StopMatcher::new(&["NEVER".into(), "ü? ☀".into()], false).expect("few and short");
    let (mut parser, mut told) = (parser, Vec::new());
    for piece in pieces {
        let mut text = String::new();
        piece.iter().for_each(|id| decoder.push_onto(*id, &mut text));
        told.extend(parser.push(&stops.push(&text).emit));
    }
    let rest = stops.push(&decoder.finish()).emit + &stops.finish();
    told.extend(parser.push(&rest));
    told.extend(parser.finish());
    let mut all: Vec<Value> = Vec::new();
    let mut begun = None;
    for part in told {
        let call = match part {
            Part::Text(text) => {
                add("text", &text, &mut all);
                continue;
            }
            Part::Reasoning(text) => {
                add("reasoning", &text, &mut all);
                continue;
            }
            Part::CallBegins(name) => {
                assert_eq!(begun, None, "the last call has not ended");
                begun = Some(ToolCall { name, arguments: String::new() });
                continue;
            }
            Part::Arguments(piece) => {
                begun.as_mut().expect("a call has begun").arguments.push_str(&piece);
                continue;
            }
            Part::CallEnds => begun.take().expect("a call has begun"),
            Part::Call(call) => call,
        };
        let arguments: Value = serde_json::from_str(&call.arguments).expect("arguments are JSON");
        all.push(json!({"call": call.name, "arguments": arguments}));
    }
    assert_eq!(begun, None, "a call has not ended");
    all
}

/// Adds `text` to the last of `all`, if it is of that kind, or behind it.
fn add(kind: &str, text: &str, all: &mut Vec<Value>) {
    match all.last_mut().and_then(|last| last.get_mut(kind)) {
        Some(Value::String(last)) => last.push_str(text),
        _ => all.push(json!({ kind: text })),
    }
}

/// Whether a grammar could have held the calls of `answer` to their form, of which one that has no marks comes alone.
fn is_well_formed(answer: &Value) -> bool {
    let parts = answer["parts"].as_array().expect("a list");
    let malformed = parts.iter().any(|part| part["text"].as_str().is_some_and(|text| text.contains("<tool_call>")));
    !malformed && (answer["calls"] != "json" || parts.len() == 1)
}

#[test]
fn answers_are_told_the_same_wherever_their_bytes_are_cut() {
    let tokenizer = fixture();
    let of_byte = byte_tokens(&tokenizer);
    let answers: Vec<Value> = serde_json::from_str(ANSWERS).expect("a list");
    assert!(answers.len() >= 15, "{}", answers.len());
    for answer in &answers {
        let name = &answer["name"];
        let bytes = answer["answer"].as_str().expect("text").bytes();
        let ids: Vec<u32> =
            bytes.map(|byte| of_byte[usize::from(byte)].expect("a token for each byte of text")).collect();
        let whole = [parser(answer), parser(answer).in_pieces(), parser(answer).holding_calls()];
        let in_pieces = is_well_formed(answer).then(|| parser(answer).holding_calls().in_pieces());
        let parsers: Vec<_> = whole.into_iter().chain(in_pieces).collect();
        let check = |pieces: &[&[u32]]| {
            for parser in &parsers {
                let found = Value::from(parts(&tokenizer, parser.clone(), pieces));
                let lengths = || pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>();
                assert_eq!(found, answer["parts"], "{name}: {:?}, {parser:?}", lengths());
            }
        };
        check(&[&ids]);
        check(&ids.chunks(1).collect::<Vec<_>>());
        for first in 0..ids.len() {
            check(&[&ids[..first], &ids[first..]]);
            if ids.len() <= MOST_BYTES_IN_THREE {
                for second in first..ids.len() {
                    check(&[&ids[..first], &ids[first..second], &ids[second..]]);
                }
            }
        }
    }
}
