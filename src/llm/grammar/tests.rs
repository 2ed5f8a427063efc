use std::time::Duration;

use super::compile::MAX_GRAMMAR_BYTES;
use super::*;
use crate::tokenizer::{AnswerParser, GgufVocab, Part, Tokenizer};

pub(super) const EOS: TokenId = 256;

/// Ids 0 to 255 are bytes, 256 ends an answer, 257 is a control token that reads like text, and those from 258 on are
/// `more`.
pub(super) fn tokenizer(more: &[&str]) -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255_u32).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(["</s>", "yes"].iter().chain(more).map(|token| (*token).to_owned()));
    let mut token_types = vec![6; 256];
    token_types.extend([3, 3]);
    token_types.resize(tokens.len(), 1);
    let scores = vec![0.0; tokens.len()];
    let vocab =
        GgufVocab { model: "llama".into(), tokens, token_types, scores, eos: Some(EOS), ..GgufVocab::default() };
    Tokenizer::from_gguf_vocab(vocab).expect("a valid vocabulary")
}

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(&tokenizer(&[]), 260, EOS).expect("a valid vocabulary")
}

/// The tokens that may follow `text`, as bytes; 256 is the end.
fn after(grammar: &Grammar, text: &str) -> Result<Vec<u32>, String> {
    let mut mask = compiler().compile(grammar).map_err(|error| error.to_string())?.start();
    for byte in text.bytes() {
        mask.commit(byte.into())?;
    }
    let bits = mask.allowed()?.expect("a grammar says");
    Ok((0..bits.len() as u32 * 32).filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1).collect())
}

#[test]
fn only_what_the_grammar_allows_may_come() {
    let byte = |character: char| character as u32;
    let choice = Grammar::Choice(vec!["yes".into(), "you \"and\" I".into()]);
    assert_eq!(after(&choice, "y"), Ok(vec![byte('e'), byte('o')]));
    assert_eq!(after(&choice, "yes"), Ok(vec![EOS]));
    assert_eq!(after(&choice, "you "), Ok(vec![byte('"')]));
    let regex = Grammar::Regex("[ab]{2}c?".into());
    assert_eq!(after(&regex, ""), Ok(vec![byte('a'), byte('b')]));
    assert_eq!(after(&regex, "ab"), Ok(vec![byte('c'), EOS]));
    let schema = json!({"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": false});
    assert_eq!(after(&Grammar::JsonSchema(schema.clone()), r#"{"x": "#).map(|ids| ids.contains(&byte('1'))), Ok(true));
    assert_eq!(after(&Grammar::JsonSchema(schema), r#"{"x":1}"#), Ok(vec![EOS]));
    assert_eq!(after(&Grammar::Lark("start: \"a\" \"b\"".into()), "a"), Ok(vec![byte('b')]));
    assert!(after(&Grammar::JsonObject, "").expect("valid").contains(&byte('{')));
}

#[test]
fn forced_calls_have_the_form_that_the_parser_reads() {
    let function = json!({"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}},
        "required": ["x"], "additionalProperties": false}});
    let tools =
        [json!({"type": "function", "function": function}), json!({"type": "function", "function": {"name": "g"}})];
    let texts = [
        (CallFormat::Hermes, "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>"),
        (CallFormat::Json, "{\"name\":\"f\",\"parameters\":{\"x\":1}}"),
        (
            CallFormat::DeepSeek,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\":1}\n```\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            CallFormat::DeepSeekV31,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
    ];
    for (format, text) in texts {
        let grammar = Grammar::calls(format, &tools, true);
        assert_eq!(after(&grammar, text), Ok(vec![EOS]), "{format:?}");
        let mut parser = AnswerParser::new(false, false, Some(format));
        let mut parts = parser.push(text);
        parts.extend(parser.finish());
        let [Part::Call(call)] = parts.as_slice() else { panic!("{format:?}: {parts:?}") };
        assert_eq!((call.name.as_str(), call.arguments.as_str()), ("f", "{\"x\":1}"));
        assert!(after(&grammar, &text.replace("\"x\":1", "\"y\":1")).is_err(), "{format:?}");
        // A tool without parameters, and one that writes them so.
        for parameters in [json!(null), json!({}), json!({"properties": {}})] {
            let tools = [json!({"type": "function", "function": {"name": "f", "parameters": parameters}})];
            let grammar = Grammar::calls(format, &tools, true);
            assert_eq!(after(&grammar, text), Ok(vec![EOS]), "{format:?}: {parameters}");
            assert!(after(&grammar, &text.replace("{\"x\":1}", "5")).is_err(), "{format:?}: {parameters}");
        }
    }
}

const FORMATS: [CallFormat; 4] = [CallFormat::Hermes, CallFormat::Json, CallFormat::DeepSeek, CallFormat::DeepSeekV31];

/// What a model writes that calls `name` with `arguments`.
fn written(format: CallFormat, name: &str, arguments: &str) -> String {
    match format {
        CallFormat::Hermes => {
            format!("<tool_call>\n{{\"name\":\"{name}\",\"arguments\":{arguments}}}\n</tool_call>")
        }
        CallFormat::Json => format!("{{\"name\":\"{name}\",\"parameters\":{arguments}}}"),
        CallFormat::DeepSeek => format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        CallFormat::DeepSeekV31 => format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>\
             <｜tool▁calls▁end｜>"
        ),
    }
}

/// Whether the tools that take `first` and `second` may be called with `{"p":"a"}` and `{"p":"b"}`, and not the other way
/// round, in every form.
#[track_caller]
fn check_two(first: &Value, second: &Value) {
    let tool =
        |name: &str, schema: &Value| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    for format in FORMATS {
        let grammar = Grammar::calls(format, &[tool("f", first), tool("g", second)], true);
        for (name, letter, fits) in [("f", 'a', true), ("g", 'b', true), ("f", 'b', false), ("g", 'a', false)] {
            let text = written(format, name, &format!("{{\"p\":\"{letter}\"}}"));
            let found = after(&grammar, &text);
            if fits {
                assert_eq!(found, Ok(vec![EOS]), "{format:?}: {text}");
            } else {
                assert!(found.is_err(), "{format:?}: {text}");
            }
        }
    }
}

#[test]
fn references_within_a_tool_s_parameters_are_followed_there() {
    // As pydantic writes a model within a model.
    let nested = |letter: &str| {
        json!({
            "$defs": {"P": {"enum": [letter], "title": "P", "type": "string"}},
            "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"], "title": "A", "type": "object",
            "additionalProperties": false,
        })
    };
    check_two(&nested("a"), &nested("b"));
    // As zod-to-json-schema writes a schema with a name.
    let named = |letter: &str| {
        let object = json!({
            "type": "object", "properties": {"p": {"const": letter}}, "required": ["p"], "additionalProperties": false,
        });
        json!({
            "$ref": "#/definitions/A", "definitions": {"A": object},
            "$schema": "http://json-schema.org/draft-07/schema#",
        })
    };
    check_two(&named("a"), &named("b"));
    // A list of itself: one level of it.
    let tree = json!({
        "type": "object", "properties": {"p": {"anyOf": [{"$ref": "#"}, {"const": "leaf"}]}}, "required": ["p"],
        "additionalProperties": false,
    });
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": tree}})];
    for format in FORMATS {
        let grammar = Grammar::calls(format, &tools, true);
        let text = written(format, "f", r#"{"p":{"p":"leaf"}}"#);
        assert_eq!(after(&grammar, &text), Ok(vec![EOS]), "{format:?}");
        assert!(after(&grammar, &text.replace("leaf", "twig")).is_err(), "{format:?}");
    }
}

#[test]
fn names_that_tools_share_do_not_mix_them() {
    let schema = |id: &str, reference: &str, part: Value| {
        json!({
            "$id": id, "$defs": {"P": part}, "properties": {"p": {"$ref": reference}}, "required": ["p"],
            "type": "object", "additionalProperties": false,
        })
    };
    let root = "https://example.com/root";
    for (id, reference, part_id) in [
        (root, "#/$defs/P", None),
        ("no uri", "#/$defs/P", None),
        (root, "https://example.com/root#/$defs/P", None),
        (root, "https://example.com/part", Some("https://example.com/part")),
        (root, "part", Some("part")),
        ("urn:example:root", "urn:example:part", Some("urn:example:part")),
    ] {
        let part = |letter: &str| match part_id {
            Some(part_id) => json!({"$id": part_id, "const": letter}),
            None => json!({ "const": letter }),
        };
        check_two(&schema(id, reference, part("a")), &schema(id, reference, part("b")));
    }
    // Names that are the same once they are resolved.
    let part = |id: &str, letter: &str| json!({"$id": id, "const": letter});
    let absolute = "https://example.com/part";
    check_two(
        &schema(root, absolute, part(absolute, "a")),
        &schema("https://example.com/other", "part", part("part", "b")),
    );
    check_two(&schema(root, "part", part(absolute, "a")), &schema(root, absolute, part("part", "b")));
    // The name that the second tool would be given, having none.
    let unnamed = json!({"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"],
        "$defs": {"P": {"const": "b"}}, "additionalProperties": false});
    check_two(&schema("json-schema://tool-1/", "json-schema://tool-1/#/$defs/P", json!({"const": "a"})), &unnamed);
    // Parts of tools that have no names themselves.
    let unnamed = |letter: &str| {
        let mut schema = schema(root, "part", json!({"$id": "part", "const": letter}));
        schema.as_object_mut().expect("an object").shift_remove("$id");
        schema
    };
    check_two(&unnamed("a"), &unnamed("b"));
}

#[test]
fn white_space_between_the_parts_of_json_ends() {
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    let forced = FORMATS.map(|format| {
        let text = written(format, "f", "{");
        let before = &text[..text.rfind('{').expect("arguments") + 1];
        (Grammar::calls(format, &tools, true), before.to_owned())
    });
    let schema = Grammar::JsonSchema(json!({"type": "object"}));
    for (grammar, text) in [(Grammar::JsonObject, "{".to_owned()), (schema, "{".to_owned())].into_iter().chain(forced) {
        let space = |count: usize| format!("{text}\n{}", " ".repeat(count - 1));
        let more = after(&grammar, &space(MAX_SPACE_BYTES - 1)).expect("so much is taken");
        assert!(more.contains(&u32::from(b' ')) && more.contains(&u32::from(b'"')), "{text}: {more:?}");
        assert_eq!(after(&grammar, &space(MAX_SPACE_BYTES)), Ok(vec![u32::from(b'"'), u32::from(b'}')]), "{text}");
        // What a model indents.
        let indented = format!("{text}\n{}\"x\": [\r\n\t\t1 ,\n2]", " ".repeat(100));
        assert!(after(&grammar, &indented).is_ok(), "{text}");
    }
    // Who says how much there may be is heard.
    let tight = json!({"type": "object", "x-guidance": {"whitespace_flexible": false}});
    assert_eq!(after(&Grammar::JsonSchema(tight), "{"), Ok(vec![u32::from(b'"'), u32::from(b'}')]));
    let any = after(&Grammar::JsonSchema(json!(true)), "[").expect("any JSON");
    assert!(any.contains(&u32::from(b'{')), "{any:?}");
}

#[test]
fn what_is_wrong_is_said() {
    let wrong = |grammar| after(&grammar, "").expect_err("refused");
    assert!(wrong(Grammar::JsonSchema(json!({"type": "nonsense"}))).contains("nonsense"));
    let unknown = wrong(Grammar::JsonSchema(json!({"type": "array", "uniqueItems": true})));
    let idle =
        json!({"type": "array", "uniqueItems": false, "unevaluatedItems": true, "deprecated": true, "x-mine": 1});
    assert!(compiler().compile(&Grammar::JsonSchema(idle.clone())).is_ok());
    let tool = [json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": idle}}}})];
    for format in [CallFormat::Hermes, CallFormat::Json, CallFormat::DeepSeek] {
        assert!(compiler().compile(&Grammar::calls(format, &tool, true)).is_ok(), "{format:?}");
    }
    assert!(unknown.contains("uniqueItems"), "{unknown}");
    assert!(!wrong(Grammar::Regex("(".into())).is_empty());
    assert!(wrong(Grammar::Regex("a".repeat(MAX_GRAMMAR_BYTES + 1))).contains("limit"));
    assert!(wrong(Grammar::Choice(Vec::new())).contains("nothing to choose"));
    assert!(!wrong(Grammar::JsonSchema(json!({"$ref": "#"}))).is_empty(), "a schema that is only itself");
    assert!(!wrong(Grammar::Lark("start: missing".into())).is_empty());
}

#[test]
fn a_grammar_that_could_grow_without_end_takes_bounded_time() {
    let started = std::time::Instant::now();
    for regex in ["((a{1,1000}){1,1000}){1,1000}", "(a|b|ab)*(a|b){999}(b|a)*", "(.*a){500}"] {
        // It may be refused or followed, but soon.
        let _ = after(&Grammar::Regex(regex.into()), "abab");
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// A schema of `count` definitions, of which each is `of` the next.
fn chain(count: usize, of: impl Fn(Value) -> Value) -> Grammar {
    let link = |index: usize| (format!("a{index}"), of(json!({ "$ref": format!("#/$defs/a{}", index + 1) })));
    let mut definitions: serde_json::Map<_, _> = (0..count).map(link).collect();
    definitions.insert(format!("a{count}"), json!({ "enum": ["x"] }));
    Grammar::JsonSchema(json!({ "$ref": "#/$defs/a0", "$defs": definitions }))
}

#[test]
fn references_are_followed_within_the_schema_alone() {
    let item = json!({"$id": "https://example.com/item", "$anchor": "it", "enum": ["x"]});
    for reference in ["https://example.com/item", "item", "#there", "#/$defs/item", "/root#there", "item#it"] {
        let schema = json!({
            "$id": "https://example.com/root", "$ref": reference,
            "$defs": {"item": item, "there": {"$anchor": "there", "const": "x"}},
        });
        assert_eq!(after(&Grammar::JsonSchema(schema), "\"x\""), Ok(vec![EOS]), "{reference}");
    }
    // What a pointer names is found from the nearest `$id`.
    let inner = json!({"$id": "inner", "$ref": "#/$defs/a", "$defs": {"a": {"enum": ["in"]}}});
    let nested = json!({"$ref": "inner", "$defs": {"a": {"enum": ["out"]}, "inner": inner}});
    assert_eq!(after(&Grammar::JsonSchema(nested), "\"in\""), Ok(vec![EOS]));
    // Names that nothing needs are no error.
    for (id, dialect) in [("no uri", "https://example.com/dialect"), ("x#y", "http://json-schema.org/draft-07/schema#")]
    {
        let schema = json!({"$id": id, "$schema": dialect, "enum": ["x"]});
        assert_eq!(after(&Grammar::JsonSchema(schema), "\"x\""), Ok(vec![EOS]), "{id}");
    }
    for reference in
        ["https://example.com/other.json", "http://127.0.0.1:9/other.json", "file:///etc/passwd", "other.json"]
    {
        let told = after(&Grammar::JsonSchema(json!({ "$ref": reference })), "").expect_err("another document");
        assert!(told.contains(reference) && told.ends_with("references to others are never fetched"), "{told}");
    }
    for (schema, named) in [
        (json!({"$ref": "#missing"}), "missing"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"$ref": "http://[::x"}), "http://[::x"),
        (json!({"$dynamicRef": "#x"}), "$dynamicRef"),
        // llguidance panics here.
        (json!({"$ref": [format!("a{}", "é".repeat(100))]}), "panic"),
    ] {
        let told = after(&Grammar::JsonSchema(schema), "").expect_err("refused");
        assert!(told.contains(named) && !told.contains("backtrace"), "{told}");
    }
}

/// How far an answer comes, up to `most` tokens, that takes the highest allowed byte each time: rather `{` than white space.
fn walk(grammar: &Grammar, most: usize) -> Result<usize, String> {
    let mut mask = compiler().compile(grammar).map_err(|error| error.to_string())?.start();
    for at in 0..most {
        let bits = mask.allowed()?.expect("a grammar says");
        let Some(byte) = (0..256).rev().find(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1) else { return Ok(at) };
        mask.commit(byte)?;
    }
    Ok(most)
}

#[test]
fn a_grammar_as_deep_as_may_come_ends_no_process() {
    // Rules of which each is the next.
    let rules = |letter: char| {
        let mut text = format!("start: {letter}0\n");
        let mut count = 0;
        while text.len() < MAX_GRAMMAR_BYTES - 64 {
            text += &format!("{letter}{count}: {letter}{}\n", count + 1);
            count += 1;
        }
        Grammar::Lark(format!("{text}{letter}{count}: \"x\"\n"))
    };
    let brackets = |pair: (&str, &str), count: usize| pair.0.repeat(count) + "x" + &pair.1.repeat(count);
    let grammars = [
        ("references", chain(7_900, |next| next)),
        ("objects", chain(3_700, |next| json!({"properties": {"p": next}, "required": ["p"]}))),
        ("lists", chain(6_000, |next| json!({"items": next}))),
        ("choices", chain(5_800, |next| json!({"anyOf": [next]}))),
        ("all", chain(5_800, |next| json!({"allOf": [next]}))),
        ("rules", rules('a')),
        ("terminals", rules('A')),
        ("groups of Lark", Grammar::Lark(format!("start: {}", brackets(("(", ")"), 100_000)))),
        ("groups", Grammar::Regex(brackets(("(", ")"), 100_000))),
    ];
    for (name, grammar) in grammars {
        assert!(grammar.bytes() <= MAX_GRAMMAR_BYTES, "{name}: {} bytes", grammar.bytes());
        let started = std::time::Instant::now();
        let found = walk(&grammar, 40);
        println!("{name}: {:?}: {:.80?}", started.elapsed(), found);
        assert!(started.elapsed().as_secs() < 20, "{name}: {:?}", started.elapsed());
        assert!(found.is_ok_and(|found| found > 0) || name != "rules" && name != "terminals", "{name}");
    }
}

#[test]
fn what_takes_too_long_is_given_up_and_too_much_of_it_is_not_begun() {
    let slow = chain(3_700, |next| json!({"properties": {"p": next}, "required": ["p"]}));
    let compiler = compiler().with_max_time(Duration::ZERO);
    let compile = |grammar: &Grammar| compiler.compile(grammar).map(drop);
    let mut found = Vec::new();
    while found.last() != Some(&Err(CompileError::Busy)) {
        found.push(compile(&slow));
        assert!(found.len() < 100, "{found:?}");
    }
    assert_eq!(found[..2], [const { Err(CompileError::TooSlow { limit: Duration::ZERO }) }; 2]);
    // It goes on once they have ended.
    while compile(&slow) == Err(CompileError::Busy) {
        std::thread::yield_now();
    }
    let patient = compiler.with_max_time(Duration::from_secs(20));
    while patient.compile(&Grammar::JsonObject).map(drop) == Err(CompileError::Busy) {
        std::thread::yield_now();
    }
}

#[test]
fn masks_take_bounded_time_or_end_the_answer() {
    let texts = [
        ("start: e\ne: e e | \"a\"\n", "a"),
        ("start: A*\nA: /(a|b|ab)*(a|b){999}(b|a)*/\n", "ab"),
        ("start: A*\nA: /(.*a){200}b/\n", "ab"),
    ];
    for (lark, unit) in texts {
        let Ok(compiled) = compiler().compile(&Grammar::Lark(lark.into())) else { continue };
        let (mut mask, mut slowest, mut ended) = (compiled.start(), Duration::ZERO, None);
        for (at, byte) in unit.bytes().cycle().take(3000).enumerate() {
            let started = std::time::Instant::now();
            let result = mask.allowed().map(drop).and_then(|()| mask.commit(byte.into()));
            slowest = slowest.max(started.elapsed());
            if let Err(reason) = result {
                ended = Some((at, reason));
                break;
            }
        }
        println!("{lark:?}: slowest {slowest:?}, ended {ended:?}");
        assert!(slowest.as_secs() < 2, "{lark:?}: {slowest:?}");
        assert_eq!(ended.is_some(), lark.contains("e e"), "{lark:?}: {ended:?}");
        assert!(ended.is_none_or(|(_, reason)| !reason.is_empty() && reason.len() <= MAX_TOLD_BYTES), "{lark:?}");
    }
}
