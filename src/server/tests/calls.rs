//! Calls of tools in streams of all APIs: in pieces where a grammar holds them to their form, and else whole.

use serde_json::{Value, json};

use super::fixture::*;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

const ARGUMENTS: &str = r#"{"größe": "a</tool_call>}", "n": [1, {"k": 1.50}]}"#;
const TWO: &str = "so <tool_call>\n{\"name\": \"f\", \"arguments\": {\"größe\": \"a</tool_call>}\", \"n\": [1, {\"k\": 1.50}]}}\n\
                   </tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
/// A call that is none, up to its end.
const MALFORMED: &str = r#"<tool_call>{"name": "f", "arguments": {"x": oops}}</tool_call>"#;

fn functions() -> Value {
    json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}])
}

/// A request for a stream to any of the APIs.
fn body(path: &str, more: Value) -> Value {
    let user = json!([{"role": "user", "content": "hi"}]);
    let mut body = match path {
        CHAT => json!({"messages": user, "tools": functions()}),
        RESPONSES => {
            json!({"input": "hi", "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}]})
        }
        _ => {
            let tools = json!([{"name": "f", "input_schema": {"type": "object"}}, {"name": "g", "input_schema": {}}]);
            json!({"messages": user, "max_tokens": 400, "tools": tools})
        }
    };
    let fields = body.as_object_mut().expect("an object");
    fields.extend([("model".into(), json!(MODEL)), ("stream".into(), json!(true))]);
    fields.extend(more.as_object().expect("an object").clone());
    body
}

/// A call as a stream told it.
#[derive(Debug, Default, PartialEq)]
struct Told {
    name: String,
    pieces: Vec<String>,
    ended: bool,
}

impl Told {
    fn new(name: &Value) -> Self {
        Self { name: name.as_str().expect("a name").into(), ..Self::default() }
    }

    fn arguments(&self) -> String {
        self.pieces.concat()
    }
}

fn piece(value: &Value) -> String {
    value.as_str().expect("a piece").into()
}

/// The calls of a chat, and why it ended. What no client reads is checked: a beginning has an id, a type and a name, and
/// what follows has neither.
fn of_chat(reply: &Reply) -> (Vec<Told>, String) {
    let (mut calls, mut reason) = (Vec::<Told>::new(), String::new());
    for chunk in reply.chunks() {
        let choice = &chunk["choices"][0];
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if function["name"].is_string() {
                assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")) && call["type"] == "function");
                calls.push(Told::new(&function["name"]));
            } else {
                assert_eq!(call, &json!({"index": call["index"], "function": {"arguments": function["arguments"]}}));
            }
            assert_eq!(call["index"], calls.len() - 1, "{chunk}");
            calls.last_mut().expect("it has begun").pieces.push(piece(&function["arguments"]));
        }
        reason.extend(choice["finish_reason"].as_str());
    }
    calls.iter_mut().for_each(|call| call.ended = reason == "tool_calls");
    (calls, reason)
}

/// The calls of a response, and its status.
fn of_response(reply: &Reply) -> (Vec<Told>, String) {
    let (mut calls, mut status) = (Vec::<Told>::new(), String::new());
    for (name, data) in reply.named_events() {
        match name.strip_prefix("response.").expect("a prefix") {
            "output_item.added" if data["item"]["type"] == "function_call" => {
                assert_eq!((&data["item"]["arguments"], &data["item"]["status"]), (&json!(""), &json!("in_progress")));
                calls.push(Told::new(&data["item"]["name"]));
            }
            "function_call_arguments.delta" => calls.last_mut().expect("a call").pieces.push(piece(&data["delta"])),
            "function_call_arguments.done" => {
                assert_eq!(data["arguments"], calls.last().expect("a call").arguments());
            }
            "output_item.done" if data["item"]["type"] == "function_call" => {
                let call = calls.last_mut().expect("a call");
                assert_eq!(data["item"]["arguments"], call.arguments());
                call.ended = data["item"]["status"] == "completed";
            }
            "completed" | "incomplete" => status = piece(&data["response"]["status"]),
            _ => {}
        }
    }
    (calls, status)
}

/// The calls of a message, and why it stopped.
fn of_message(reply: &Reply) -> (Vec<Told>, String) {
    let (mut calls, mut open, mut reason) = (Vec::<Told>::new(), None, String::new());
    for (name, data) in reply.named_events() {
        match name.as_str() {
            "content_block_start" => {
                assert_eq!(open, None, "the last block has not stopped");
                open = Some(data["index"].clone());
                if data["content_block"]["type"] == "tool_use" {
                    assert_eq!(data["content_block"]["input"], json!({}));
                    calls.push(Told::new(&data["content_block"]["name"]));
                }
            }
            "content_block_delta" if data["delta"]["type"] == "input_json_delta" => {
                assert_eq!(open.as_ref(), Some(&data["index"]));
                calls.last_mut().expect("a call").pieces.push(piece(&data["delta"]["partial_json"]));
            }
            "content_block_stop" => assert_eq!(open.take().as_ref(), Some(&data["index"])),
            "message_delta" => reason = piece(&data["delta"]["stop_reason"]),
            _ => {}
        }
    }
    assert_eq!(open, None, "a block has not stopped");
    calls.iter_mut().for_each(|call| call.ended = reason == "tool_use");
    (calls, reason)
}

type Read = fn(&Reply) -> (Vec<Told>, String);
const APIS: [(&str, Read); 3] = [(CHAT, of_chat), (RESPONSES, of_response), (MESSAGES, of_message)];

fn forced(path: &str) -> Value {
    let choice = if path == MESSAGES { json!({"type": "any"}) } else { json!("required") };
    json!({ "tool_choice": choice })
}

#[tokio::test]
async fn arguments_come_as_they_are_generated() {
    let router = calling(TWO);
    for (path, read) in APIS {
        // As the model likes, and since it must.
        for more in [json!({}), forced(path)] {
            let (calls, reason) = read(&post(&router, path, body(path, more.clone())).await);
            let names: Vec<_> = calls.iter().map(|call| (&*call.name, call.arguments(), call.ended)).collect();
            assert_eq!(names, [("f", ARGUMENTS.to_owned(), true), ("g", "{}".to_owned(), true)], "{path} {more}");
            // A token a byte: each that completes a character brings a piece.
            let pieces = calls[0].pieces.iter().filter(|piece| !piece.is_empty()).count();
            assert_eq!(pieces, ARGUMENTS.chars().count(), "{path} {more}");
            let reasons = ["tool_calls", "completed", "tool_use"];
            assert!(reasons.contains(&reason.as_str()), "{path} {more}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_call_that_is_cut_says_why_and_is_not_told_as_whole() {
    let router = calling(TWO);
    let cut_at = TWO.find("<tool_call>").expect("a call") + 50;
    for (path, read) in APIS {
        let limit = match path {
            CHAT => "max_completion_tokens",
            RESPONSES => "max_output_tokens",
            _ => "max_tokens",
        };
        let (calls, reason) = read(&post(&router, path, body(path, json!({ (limit): cut_at }))).await);
        let [call] = calls.as_slice() else { panic!("{path}: {calls:?}") };
        let told = call.arguments();
        assert!(!told.is_empty() && told.len() < ARGUMENTS.len() && ARGUMENTS.starts_with(&told), "{path}: {told}");
        assert!(!call.ended && ["length", "incomplete", "max_tokens"].contains(&reason.as_str()), "{path}: {reason}");
    }
    for (path, read, stop) in [(CHAT, of_chat as Read, "stop"), (MESSAGES, of_message, "stop_sequences")] {
        let (calls, reason) = read(&post(&router, path, body(path, json!({ (stop): ["1.5"] }))).await);
        assert_eq!((calls.len(), calls[0].ended), (1, false), "{path}");
        assert_eq!(Some(&*calls[0].arguments()), ARGUMENTS.split("1.5").next(), "{path}");
        assert!(["stop", "stop_sequence"].contains(&reason.as_str()), "{path}: {reason}");
    }
}

#[tokio::test]
async fn calls_after_the_first_are_left_out_with_all_their_pieces() {
    let router = calling(TWO);
    for (path, read) in APIS {
        let more = match path {
            MESSAGES => json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
            _ => json!({"parallel_tool_calls": false}),
        };
        let (calls, _) = read(&post(&router, path, body(path, more)).await);
        let [call] = calls.as_slice() else { panic!("{path}: {calls:?}") };
        assert_eq!((&*call.name, call.arguments()), ("f", ARGUMENTS.to_owned()), "{path}");
    }
}

/// Where rules of the request may exclude what the form of a call needs, nothing holds it: whether it is one is known at
/// its end.
#[tokio::test]
async fn a_call_that_nothing_holds_comes_whole_and_a_malformed_one_as_text() {
    let free = json!({"bad_words": ["unlikely"]});
    let (calls, _) = of_chat(&post(&calling(TWO), CHAT, body(CHAT, free.clone())).await);
    let pieces: Vec<_> = calls.iter().map(|call| call.pieces.as_slice()).collect();
    assert_eq!(pieces, [[ARGUMENTS.to_owned()], ["{}".to_owned()]]);
    let reply = post(&calling(MALFORMED), CHAT, body(CHAT, free)).await;
    let chunks = reply.chunks();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!((reply.status.as_u16(), said.as_str()), (200, MALFORMED));
    // Whole answers are read when they are whole, whatever held them.
    let whole = post(&calling(MALFORMED), CHAT, body(CHAT, json!({"stream": false}))).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], MALFORMED);
}

#[tokio::test]
async fn log_probabilities_of_a_call_are_told_with_its_pieces() {
    let router = calling(TWO);
    let more = json!({"logprobs": true, "return_token_ids": true});
    let chunks = post(&router, CHAT, body(CHAT, more)).await.chunks();
    let count = |tokens: &Value| tokens.as_array().map_or(0, Vec::len);
    let told: usize = chunks.iter().map(|chunk| count(&chunk["choices"][0]["logprobs"]["content"])).sum();
    let ids: usize = chunks.iter().map(|chunk| count(&chunk["choices"][0]["token_ids"])).sum();
    assert_eq!((told, ids), (TWO.len() + 1, TWO.len() + 1));
}
