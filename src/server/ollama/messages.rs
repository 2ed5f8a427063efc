//! A chat as Ollama's clients send it, turned into the messages that templates read.
//!
//! Knows no template.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::llm::Message;
use crate::server::body::Object;
use crate::server::error::ApiError;

/// One message of the body; further fields are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct ChatMessage {
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    images: Option<Vec<Value>>,
    tool_calls: Option<Vec<Value>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

/// The messages of a chat, oldest first.
///
/// # Errors
/// 400, naming the message and the field.
pub(super) fn translate(messages: Vec<Object<ChatMessage>>) -> Result<Vec<Message>, ApiError> {
    let one = |(index, Object(message))| one(message, &format!("messages[{index}]"));
    messages.into_iter().enumerate().map(one).collect()
}

fn one(message: ChatMessage, at: &str) -> Result<Message, ApiError> {
    refuse_images(message.images.as_deref(), at)?;
    if !matches!(message.role.as_str(), "system" | "user" | "assistant" | "tool") {
        let known = "`system`, `user`, `assistant` and `tool` are known";
        return Err(ApiError::invalid(format!("{at}.role"), format!("`{}` is no role; {known}", message.role)));
    }
    let mut extra = Map::new();
    if let Some(calls) = message.tool_calls.filter(|calls| !calls.is_empty()) {
        let call = |(index, call)| tool_call(call, &format!("{at}.tool_calls[{index}]"));
        let calls = calls.into_iter().enumerate().map(call).collect::<Result<_, _>>()?;
        extra.insert("tool_calls".into(), Value::Array(calls));
    }
    let texts = [
        ("name", message.tool_name),
        ("tool_call_id", message.tool_call_id),
        ("reasoning_content", message.thinking.filter(|thoughts| !thoughts.is_empty())),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            extra.insert(name.into(), Value::String(value));
        }
    }
    Ok(Message { role: message.role, content: Some(message.content.unwrap_or_default()), extra })
}

/// Ollama's clients send an empty list of images with every message.
pub(super) fn refuse_images(images: Option<&[Value]>, at: &str) -> Result<(), ApiError> {
    match images {
        None | Some([]) => Ok(()),
        Some(_) => Err(ApiError::unsupported(format!("{at}.images"), "this server reads text only")),
    }
}

/// A call in OpenAI's form, which templates expect: with a type beside the function.
fn tool_call(mut call: Value, at: &str) -> Result<Value, ApiError> {
    if !call.get("function").and_then(|function| function.get("name")).is_some_and(Value::is_string) {
        return Err(ApiError::invalid(format!("{at}.function"), "an object with a `name` is needed"));
    }
    if let Some(call) = call.as_object_mut() {
        call.entry("type").or_insert("function".into());
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(json: Value) -> Result<Vec<Message>, ApiError> {
        #[derive(Deserialize)]
        struct Body {
            messages: Vec<Object<ChatMessage>>,
        }
        let body = json!({ "messages": json }).to_string();
        translate(crate::server::body::parse::<Body>(body.as_bytes())?.messages)
    }

    #[test]
    fn a_tool_turn_as_clients_replay_it() {
        let turn = messages(json!([
            {"role": "user", "content": "hi", "images": []},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "42", "tool_call_id": "call1", "tool_name": "f"},
        ]))
        .expect("valid");
        assert_eq!(turn[0], Message::user("hi"));
        let call = json!({"function": {"name": "f", "arguments": {"x": 1}}, "type": "function"});
        assert_eq!(turn[1].extra["tool_calls"], json!([call]));
        assert_eq!(turn[1].extra["reasoning_content"], "hm");
        assert_eq!((turn[2].role.as_str(), &turn[2].extra["name"]), ("tool", &json!("f")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!([{"role": "wizard", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": "a", "images": ["AAAA"]}]), "messages[0].images"),
            (json!([{"role": "assistant", "tool_calls": [{"id": "x"}]}]), "messages[0].tool_calls[0].function"),
        ];
        for (json, name) in cases {
            let error = messages(json.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{json}");
        }
    }
}
