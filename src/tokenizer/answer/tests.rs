//! Answers as models write them, cut at every byte that text can be cut at.

use super::*;

fn call(name: &str, arguments: &str) -> Part {
    Part::Call(ToolCall { name: name.into(), arguments: arguments.into() })
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn reasoning(text: &str) -> Part {
    Part::Reasoning(text.into())
}

/// The parts of an answer that comes in `pieces`, neighbours of a kind put together.
fn parts(parser: &AnswerParser, pieces: &[&str]) -> Vec<Part> {
    let mut parser = parser.clone();
    let mut all: Vec<Part> = Vec::new();
    let mut add = |parts: Vec<Part>| {
        for part in parts {
            match (all.last_mut(), part) {
                (Some(Part::Text(last)), Part::Text(next)) | (Some(Part::Reasoning(last)), Part::Reasoning(next)) => {
                    last.push_str(&next);
                }
                (_, part) => all.push(part),
            }
        }
    };
    for piece in pieces {
        add(parser.push(piece));
    }
    add(parser.finish());
    all
}

/// Whole, in two pieces at every place, and character by character.
#[track_caller]
fn check(parser: AnswerParser, answer: &str, expected: &[Part]) {
    assert_eq!(parts(&parser, &[answer]), expected, "whole: {answer}");
    let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).collect();
    for at in &places {
        let (first, second) = answer.split_at(*at);
        assert_eq!(parts(&parser, &[first, second]), expected, "cut at {at}: {answer}");
    }
    let characters: Vec<String> = answer.chars().map(String::from).collect();
    let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
    assert_eq!(parts(&parser, &characters), expected, "by characters: {answer}");
}

fn hermes() -> AnswerParser {
    AnswerParser::new(false, false, Some(CallFormat::Hermes))
}

fn thinking() -> AnswerParser {
    AnswerParser::new(true, false, None)
}

#[test]
fn plain_answers_stay_as_they_are() {
    for answer in ["hello", " hello\n\n", "a < b </ c", "<thin air>", "{\"a\": 1}"] {
        check(AnswerParser::new(false, false, None), answer, &[text(answer)]);
        check(thinking(), answer, &[text(answer)]);
    }
    check(AnswerParser::new(false, false, None), "<think>x</think>y", &[text("<think>x</think>y")]);
    check(AnswerParser::new(false, false, None), "", &[]);
}

#[test]
fn thoughts_are_told_apart() {
    let both = [reasoning("so\n\nthen"), text("Yes.\n")];
    check(thinking(), "<think>\nso\n\nthen\n</think>\n\nYes.\n", &both);
    check(AnswerParser::new(true, true, None), "so\n\nthen\n</think>\n\nYes.\n", &both);
    check(thinking(), "<think>\n\n</think>\n\nYes.", &[text("Yes.")]);
    check(thinking(), "<think>cut off </thi", &[reasoning("cut off </thi")]);
    check(thinking(), "Yes. <think>late</think>", &[text("Yes. <think>late</think>")]);
}

#[test]
fn calls_of_hermes_and_qwen() {
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, \"}\"]}}\n</tool_call>";
    check(hermes(), one, &[call("f", r#"{"x":[1,"}"]}"#)]);
    let two = format!("Let me see.\n{one}\n{one}\n");
    let f = || call("f", r#"{"x":[1,"}"]}"#);
    check(hermes(), &two, &[text("Let me see."), f(), f()]);
    let thinking = AnswerParser::new(true, false, Some(CallFormat::Hermes));
    check(thinking, &format!("<think>\nf?\n</think>\n\n{one}"), &[reasoning("f?"), f()]);
    check(hermes(), one.strip_suffix("</tool_call>").expect("the end"), &[f()]);
    check(hermes(), r#"<tool_call>{"name": "f", "arguments": "{\"x\": 1}"}</tool_call>"#, &[call("f", r#"{"x":1}"#)]);
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    for answer in [
        "<tool_call>{broken</tool_call> go on",
        "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "<tool_call>never closed",
        "a <tool_ b",
        "first \n<tool_call>{broken</tool_call>\n",
    ] {
        check(hermes(), answer, &[text(answer)]);
    }
    // Nobody gave it tools.
    let answer = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    check(thinking(), answer, &[text(answer)]);
}

#[test]
fn calls_of_llama_are_the_whole_answer() {
    let llama = || AnswerParser::new(false, false, Some(CallFormat::Json));
    check(llama(), r#"{"name": "f", "parameters": {"x": "é"}}"#, &[call("f", r#"{"x":"é"}"#)]);
    let two = "{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"arguments\": {}}\n";
    check(llama(), two, &[call("f", "{}"), call("g", "{}")]);
    for answer in [r#"{"answer": 42}"#, "{", r#"{"name": "f", "parameters": {}} and more"#, r#"I call {"name": "f"}"#] {
        check(llama(), answer, &[text(answer)]);
    }
}

#[test]
fn calls_of_deepseek_in_both_forms() {
    let parser = || AnswerParser::new(false, false, Some(CallFormat::DeepSeek));
    let third = "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```\
                 <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>\
                 <｜tool▁calls▁end｜>";
    check(parser(), third, &[text("I look."), call("f", r#"{"x":1}"#), call("g", "{}")]);
    let later =
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check(parser(), later, &[call("f", r#"{"x":1}"#)]);
}

#[test]
fn the_form_follows_from_the_template() {
    let template = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates").join(name);
        std::fs::read_to_string(path).expect("a fixture")
    };
    assert_eq!(CallFormat::of_template(&template("qwen3.jinja")), CallFormat::Hermes);
    assert_eq!(CallFormat::of_template(&template("deepseek_v3.jinja")), CallFormat::DeepSeek);
    assert_eq!(CallFormat::of_template("{{ tools }}"), CallFormat::Json);
}
