//! The messages of a request and their content blocks, turned into the messages that templates read.
//!
//! Knows no template. A message of blocks may become several: results of tools are messages of their own there.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::llm::Message;
use crate::server::body::Object;
use crate::server::error::ApiError;

/// One message of the body; further fields are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct InputMessage {
    role: String,
    content: Value,
}

/// What the blocks of one message have been read to so far.
#[derive(Default)]
struct Reading {
    texts: Vec<String>,
    thoughts: Vec<String>,
    calls: Vec<Value>,
    /// Results of tools, which come before what else the message says.
    results: Vec<Message>,
}

/// The messages of a chat, oldest first, behind `system` where there is one.
///
/// # Errors
/// 400, naming the message and the block.
pub(super) fn translate(system: Option<&Value>, messages: Vec<Object<InputMessage>>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "there are none; at least one is needed"));
    }
    let mut all = Vec::new();
    if let Some(system) = system.filter(|system| !system.is_null()) {
        let text = text(system, "system")?;
        all.extend((!text.is_empty()).then(|| Message::system(text)));
    }
    for (index, Object(message)) in messages.into_iter().enumerate() {
        push(message, &format!("messages[{index}]"), &mut all)?;
    }
    Ok(all)
}

fn push(message: InputMessage, at: &str, all: &mut Vec<Message>) -> Result<(), ApiError> {
    let role = message.role;
    if !matches!(role.as_str(), "system" | "user" | "assistant") {
        let known = "`user`, `assistant` and `system` are known";
        return Err(ApiError::invalid(format!("{at}.role"), format!("`{role}` is no role; {known}")));
    }
    let blocks = match message.content {
        Value::String(text) => {
            all.push(Message::new(role, text));
            return Ok(());
        }
        Value::Array(blocks) if blocks.is_empty() && role != "assistant" => {
            return Err(ApiError::invalid(format!("{at}.content"), "the list is empty; at least one block is needed"));
        }
        Value::Array(blocks) => blocks,
        _ => return Err(ApiError::invalid(format!("{at}.content"), "a string or a list of blocks is needed")),
    };
    let mut reading = Reading::default();
    for (index, block) in blocks.into_iter().enumerate() {
        reading.read(block, &format!("{at}.content[{index}]"))?;
    }
    all.append(&mut reading.results);
    if reading.texts.is_empty() && reading.calls.is_empty() && role == "user" {
        // Nothing but results.
        return Ok(());
    }
    let mut extra = Map::new();
    if !reading.calls.is_empty() {
        extra.insert("tool_calls".into(), Value::Array(reading.calls));
    }
    if !reading.thoughts.is_empty() {
        extra.insert("reasoning_content".into(), reading.thoughts.join("\n").into());
    }
    all.push(Message { role, content: Some(reading.texts.join("\n")), extra });
    Ok(())
}

impl Reading {
    fn read(&mut self, block: Value, at: &str) -> Result<(), ApiError> {
        let string = |name: &str| {
            let text = block.get(name).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| ApiError::invalid(format!("{at}.{name}"), "a string is needed"))
        };
        match block.get("type").and_then(Value::as_str).unwrap_or_default() {
            "text" => self.texts.push(string("text")?),
            "thinking" => self.thoughts.push(string("thinking")?),
            // Thoughts that only Anthropic's own servers can read.
            "redacted_thinking" => {}
            "tool_use" => {
                let arguments = block.get("input").cloned().unwrap_or_else(|| json!({}));
                let function = json!({ "name": string("name")?, "arguments": arguments });
                self.calls.push(json!({ "id": string("id")?, "type": "function", "function": function }));
            }
            "tool_result" => {
                let content = block.get("content").map_or(Ok(String::new()), |content| {
                    if content.is_null() { Ok(String::new()) } else { text(content, &format!("{at}.content")) }
                })?;
                let failed = block.get("is_error").and_then(Value::as_bool).unwrap_or(false);
                let mut result = Message::new("tool", if failed { as_error(content) } else { content });
                result.extra.insert("tool_call_id".into(), string("tool_use_id")?.into());
                self.results.push(result);
            }
            "" => return Err(ApiError::invalid(format!("{at}.type"), "it is missing; `text` is taken")),
            other => {
                let why = format!("`{other}` is not taken: this server reads text only");
                return Err(ApiError::unsupported(format!("{at}.type"), why));
            }
        }
        Ok(())
    }
}

/// What a tool said that failed, marked as that: templates have no field for it.
fn as_error(content: String) -> String {
    let says_so = content.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
    match content.as_str() {
        "" => "Error".into(),
        _ if says_so => content,
        _ => format!("Error: {content}"),
    }
}

/// A text: itself, or its blocks of text, each on lines of its own.
fn text(value: &Value, at: &str) -> Result<String, ApiError> {
    let blocks = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        _ => return Err(ApiError::invalid(at, "a string or a list of text blocks is needed")),
    };
    let one = |(index, block): (usize, &Value)| match block.get("type").and_then(Value::as_str) {
        Some("text") => {
            let text = block.get("text").and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| ApiError::invalid(format!("{at}[{index}].text"), "a string is needed"))
        }
        Some(other) => {
            let why = format!("`{other}` is not taken: this server reads text only");
            Err(ApiError::unsupported(format!("{at}[{index}].type"), why))
        }
        None => Err(ApiError::invalid(format!("{at}[{index}].type"), "it is missing; `text` is taken")),
    };
    Ok(blocks.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(system: Value, messages: Value) -> Result<Vec<Message>, ApiError> {
        #[derive(Deserialize)]
        struct Body {
            messages: Vec<Object<InputMessage>>,
        }
        let body = json!({ "messages": messages }).to_string();
        translate(Some(&system), crate::server::body::parse::<Body>(body.as_bytes())?.messages)
    }

    #[test]
    fn a_tool_turn_as_clients_replay_it() {
        let cached = json!({"type": "ephemeral"});
        let turn = messages(
            json!([{"type": "text", "text": "be brief", "cache_control": cached}, {"type": "text", "text": "and kind"}]),
            json!([
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "let me see"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "42"}]},
                    {"type": "text", "text": "so?"}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_2", "is_error": true}]},
                {"role": "system", "content": "later word"},
            ]),
        )
        .expect("valid");
        assert_eq!(turn[0], Message::system("be brief\nand kind"));
        assert_eq!(turn[1], Message::user("hi"));
        assert_eq!(turn[2].content.as_deref(), Some("let me see"));
        assert_eq!(turn[2].extra["reasoning_content"], "hm");
        let function = json!({"name": "f", "arguments": {"x": 1}});
        assert_eq!(turn[2].extra["tool_calls"], json!([{"id": "toolu_1", "type": "function", "function": function}]));
        assert_eq!((turn[3].role.as_str(), turn[3].content.as_deref()), ("tool", Some("42")));
        assert_eq!(turn[4], Message::user("so?"));
        assert_eq!((turn[5].role.as_str(), &turn[5].extra["tool_call_id"]), ("tool", &json!("toolu_2")));
        assert_eq!(turn[5].content.as_deref(), Some("Error"));
        assert_eq!(turn[6], Message::system("later word"));
        assert_eq!(turn.len(), 7);
    }

    #[test]
    fn a_failed_tool_s_result_says_so() {
        let told = |is_error: Value, content: &str| {
            let result = json!({"type": "tool_result", "tool_use_id": "t", "is_error": is_error, "content": content});
            let turn = messages(Value::Null, json!([{"role": "user", "content": [result]}])).expect("valid");
            turn[0].content.clone().expect("a text")
        };
        assert_eq!(told(json!(true), "no such file"), "Error: no such file");
        assert_eq!(told(json!(true), "ERROR 2: no such file"), "ERROR 2: no such file");
        assert_eq!(told(json!(true), "öäü"), "Error: öäü");
        assert_eq!((told(json!(false), "42"), told(Value::Null, "42")), ("42".into(), "42".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!([]), "messages"),
            (json!([{"role": "tool", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": []}]), "messages[0].content"),
            (json!([{"role": "user"}]), "messages[0]"),
            (json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": [{"type": "tool_result"}]}]), "messages[0].content[0].tool_use_id"),
        ];
        for (json, name) in cases {
            let error = messages(Value::Null, json.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{json}");
        }
        let error = messages(json!([{"type": "image"}]), json!([{"role": "user", "content": "a"}])).expect_err("image");
        assert_eq!(error.param.as_deref(), Some("system[0].type"));
    }
}
