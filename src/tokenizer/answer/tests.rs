//! Answers as models write them, cut at every byte that text can be cut at.

use super::calling::MAX_INNER_MARKS;
use super::*;
use crate::config::ToolParser;

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
    check(hermes(), one, &[call("f", r#"{"x": [1, "}"]}"#)]);
    let two = format!("Let me see.\n{one}\n{one}\n");
    let f = || call("f", r#"{"x": [1, "}"]}"#);
    check(hermes(), &two, &[text("Let me see."), f(), f()]);
    let thinking = AnswerParser::new(true, false, Some(CallFormat::Hermes));
    check(thinking, &format!("<think>\nf?\n</think>\n\n{one}"), &[reasoning("f?"), f()]);
    for cut in 0..="</tool_call>".len() {
        check(hermes(), &one[..one.len() - cut], &[f()]);
    }
    check(hermes(), r#"<tool_call>{"name": "f", "arguments": "{\"x\": 1}"}</tool_call>"#, &[call("f", r#"{"x": 1}"#)]);
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
    check(llama(), r#"{"name": "f", "parameters": {"x": "é"}}"#, &[call("f", r#"{"x": "é"}"#)]);
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
    check(parser(), third, &[text("I look."), call("f", r#"{"x": 1}"#), call("g", "{}")]);
    let later =
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check(parser(), later, &[call("f", r#"{"x": 1}"#)]);
    // Either form is read, whichever the template teaches.
    let later_parser = AnswerParser::new(false, false, Some(CallFormat::DeepSeekV31));
    check(later_parser, third, &[text("I look."), call("f", r#"{"x": 1}"#), call("g", "{}")]);
    // Fences within the arguments are theirs.
    let fenced = r#"{"x": "```json\n{}\n```", "y": "```"}"#;
    let third = format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{fenced}\n```<｜tool▁call▁end｜>");
    let later = format!("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{fenced}<｜tool▁call▁end｜>");
    for answer in [third, later] {
        check(parser(), &answer, &[call("f", fenced)]);
    }
    let broken = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1} or so<｜tool▁call▁end｜>";
    check(parser(), broken, &[text(broken)]);
}

#[test]
fn marks_within_strings_end_no_call() {
    let arguments = r#"{"x": "a</tool_call>b <tool_call>", "y": "<｜tool▁call▁end｜>\"</tool_call>"}"#;
    let hermes_call = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
    check(hermes(), &hermes_call, &[call("f", arguments)]);
    check(
        hermes(),
        &format!("Look.\n{hermes_call}\n{hermes_call}"),
        &[text("Look."), call("f", arguments), call("f", arguments)],
    );
    let unclosed = hermes_call.strip_suffix("</tool_call>").expect("the end");
    check(hermes(), unclosed, &[call("f", arguments)]);
    for format in [CallFormat::DeepSeek, CallFormat::DeepSeekV31] {
        let parser = || AnswerParser::new(false, false, Some(format));
        let fenced = format!("function<｜tool▁sep｜>f\n```json\n{arguments}\n```");
        for body in [fenced, format!("f<｜tool▁sep｜>{arguments}")] {
            check(parser(), &format!("<｜tool▁call▁begin｜>{body}<｜tool▁call▁end｜>"), &[call("f", arguments)]);
        }
    }
    // What is no call ends at the first mark, also where that seemed to stand within a string.
    let good = r#"<tool_call>{"name": "g", "arguments": {}}</tool_call>"#;
    for broken in [
        r#"<tool_call>{"name": "f", "arguments": {"x": "oops</tool_call>"#,
        r#"<tool_call>{"name": "f", "arguments": {</tool_call>"#,
        r#"<tool_call>{"name": "f, "arguments": {"x": "</tool_call>"#,
    ] {
        for behind in ["", "\nand more", "\"", "</tool_call>"] {
            let answer = format!("{broken}{behind}");
            check(hermes(), &answer, &[text(&answer)]);
        }
        check(hermes(), &format!("{broken}\n{good}"), &[text(broken), call("g", "{}")]);
        check(
            hermes(),
            &format!("{broken}{}", good.trim_end_matches("</tool_call>")),
            &[text(broken), call("g", "{}")],
        );
    }
    let marks = "</tool_call>".repeat(MAX_INNER_MARKS + 1);
    let many = format!(r#"<tool_call>{{"name": "f", "arguments": {{"x": "{marks}"}}}}</tool_call>"#);
    check(hermes(), &many, &[text(&many)]);
    let fewer = many.replacen("</tool_call>", "", 1);
    check(hermes(), &fewer, &[call("f", &format!(r#"{{"x": "{}"}}"#, &marks["</tool_call>".len()..]))]);
}

#[test]
fn arguments_are_told_as_they_are_written() {
    let arguments = r#"{"n": 123456789012345678901234567890, "d": 0.10, "k": 1, "k": 2,  "s": "\u00e9"}"#;
    let answer = format!(r#"<tool_call>{{"arguments": {arguments}, "name": "f"}}</tool_call>"#);
    check(hermes(), &answer, &[call("f", arguments)]);
    let quoted = serde_json::Value::from(arguments).to_string();
    check(hermes(), &format!(r#"<tool_call>{{"name": "f", "arguments": {quoted}}}"#), &[call("f", arguments)]);
    let deepseek = AnswerParser::new(false, false, Some(CallFormat::DeepSeek));
    let answer = format!("<｜tool▁call▁begin｜>f<｜tool▁sep｜>\n{arguments}\n<｜tool▁call▁end｜>");
    check(deepseek, &answer, &[call("f", arguments)]);
    let json = AnswerParser::new(false, false, Some(CallFormat::Json));
    check(json, &format!(r#"{{"name": "f", "parameters": {arguments}}}"#), &[call("f", arguments)]);
    // What no client could read is no call.
    for arguments in [r#"{"s": "\ud800"}"#, r#"{"d": 1e999}"#, "[]", "{\"s\": \"\n\"}"] {
        let answer = format!(r#"<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>"#);
        check(hermes(), &answer, &[text(&answer)]);
    }
}

/// What an answer comes to whose calls are held to their form and told in pieces, cut as [`check`] does: text, and for each
/// call its name, its arguments and whether they ended.
#[track_caller]
fn check_pieces(parser: AnswerParser, answer: &str, said: &str, calls: &[(&str, &str, bool)]) {
    let parser = parser.holding_calls().in_pieces();
    let check = |pieces: &[&str]| {
        let (mut text, mut found) = (String::new(), Vec::<(String, String, bool)>::new());
        for part in parts(&parser, pieces) {
            match part {
                Part::Text(more) => text.push_str(&more),
                Part::CallBegins(name) => found.push((name, String::new(), false)),
                Part::Arguments(piece) => found.last_mut().expect("a call has begun").1.push_str(&piece),
                Part::CallEnds => found.last_mut().expect("a call has begun").2 = true,
                other => panic!("{other:?}"),
            }
        }
        let found: Vec<_> = found.iter().map(|(name, arguments, ended)| (&**name, &**arguments, *ended)).collect();
        assert_eq!((text.as_str(), found.as_slice()), (said, calls), "{pieces:?}");
    };
    check(&[answer]);
    answer.char_indices().for_each(|(at, _)| check(&[&answer[..at], &answer[at..]]));
    let characters: Vec<String> = answer.chars().map(String::from).collect();
    check(&characters.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn calls_that_are_held_to_their_form_are_told_as_they_come() {
    let arguments = r#"{"größe": "a</tool_call>} \" \\", "n": [{"k": 1.50}, {}], "k": 1, "k": "<｜tool▁call▁end｜>"}"#;
    let answers = [
        (CallFormat::Hermes, format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>")),
        (
            CallFormat::DeepSeek,
            format!("{DEEPSEEK_OPEN}function<｜tool▁sep｜>f\n```json\n{arguments}\n```<｜tool▁call▁end｜>"),
        ),
        (CallFormat::DeepSeekV31, format!("{DEEPSEEK_OPEN}f<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")),
    ];
    for (format, answer) in answers {
        let parser = || AnswerParser::new(false, false, Some(format));
        let call = ("f", arguments, true);
        check_pieces(parser(), &answer, "", &[call]);
        check_pieces(parser(), &format!("Look.\n{answer}\n{answer} So."), "Look. So.", &[call, call]);
        // The same as where they are told whole.
        check(parser(), &answer, &[self::call("f", arguments)]);
    }
    let bare = AnswerParser::new(false, false, Some(CallFormat::Json));
    check_pieces(bare, &format!("{{\"name\": \"f\", \"parameters\": {arguments}}}\n"), "", &[("f", arguments, true)]);
}

#[test]
fn a_call_that_is_cut_off_tells_what_came_of_it() {
    let answer = "So <tool_call>{\"name\": \"f\", \"arguments\": {\"x\": \"é";
    check_pieces(hermes(), answer, "So", &[("f", "{\"x\": \"é", false)]);
    check_pieces(hermes(), &format!("{answer}\"}}"), "So", &[("f", "{\"x\": \"é\"}", true)]);
    // Before it is known which tool is called it is text.
    let head = "So <tool_call>{\"name\": \"f\", \"arg";
    check_pieces(hermes(), head, head, &[]);
    // What no grammar has begun to hold is read when it is whole.
    for text in ["<tool_call>{broken</tool_call> on", "<tool_call> opens calls", "<tool_call>{\"name\": 5}</tool_call>"]
    {
        check_pieces(hermes(), text, text, &[]);
    }
    let otherwise = r#"<tool_call>{"arguments": {}, "name": "f"}</tool_call>"#;
    check(hermes().holding_calls().in_pieces(), otherwise, &[call("f", "{}")]);
}

#[test]
fn white_space_that_says_nothing_is_held_back_within_a_limit() {
    let space = " \n".repeat(MAX_SPACE_BYTES);
    let held = &space[..MAX_SPACE_BYTES];
    let call_text = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    let told = format!("a{}", &space[MAX_SPACE_BYTES..]);
    check_coarsely(hermes(), &format!("a{space}{call_text}"), &[text(&told), call("f", "{}")]);
    check_coarsely(hermes(), &format!("a{held}{call_text}"), &[text("a"), call("f", "{}")]);
    check_coarsely(thinking(), &format!("<think>a{space}</think>b"), &[reasoning(&told), text("b")]);
    let late = format!("{space}<think>a</think>");
    check_coarsely(thinking(), &late, &[text(&late)]);
}

/// As [`check`], for answers too long to be cut at every place.
#[track_caller]
fn check_coarsely(parser: AnswerParser, answer: &str, expected: &[Part]) {
    for size in [answer.len(), 1000, 7, 1] {
        let pieces: Vec<&str> =
            answer.as_bytes().chunks(size).map(|piece| str::from_utf8(piece).expect("ASCII")).collect();
        assert_eq!(parts(&parser, &pieces), expected, "in pieces of {size}");
    }
}

#[test]
fn the_form_follows_from_the_template() {
    let template = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates").join(name);
        std::fs::read_to_string(path).expect("a fixture")
    };
    assert_eq!(CallFormat::of_template(&template("qwen3.jinja")), CallFormat::Hermes);
    assert_eq!(CallFormat::of_template(&template("deepseek_v3.jinja")), CallFormat::DeepSeek);
    assert_eq!(CallFormat::of_template(&template("deepseek_r1_distill.jinja")), CallFormat::DeepSeek);
    let later = "{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' }}";
    assert_eq!(CallFormat::of_template(later), CallFormat::DeepSeekV31);
    assert_eq!(CallFormat::of_template("{{ tools }}"), CallFormat::Json);
    assert_eq!(CallFormat::of_template(&template("smollm2.jinja")), CallFormat::Json);
    // What is wished for stands above the template.
    for (parser, source, expected) in [
        (ToolParser::Auto, later, CallFormat::DeepSeekV31),
        (ToolParser::DeepSeek, later, CallFormat::DeepSeekV31),
        (ToolParser::DeepSeek, "{{ tools }}", CallFormat::DeepSeek),
        (ToolParser::Hermes, later, CallFormat::Hermes),
        (ToolParser::Llama3, "<tool_call>", CallFormat::Json),
        (ToolParser::Json, "<tool_call>", CallFormat::Json),
    ] {
        assert_eq!(CallFormat::wished(parser, source), expected, "{parser}: {source}");
    }
}
