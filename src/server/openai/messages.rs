//! A chat as clients send it, turned into the messages that templates read.
//!
//! Knows no template. Roles, array content and tool calls take the form that models were trained on.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::llm::{Chat, Message};
use crate::server::body::Object;
use crate::server::error::ApiError;

/// One message of the body; further fields are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct ChatMessage {
    role: String,
    content: Option<Value>,
    name: Option<String>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    function_call: Option<Value>,
}

/// The messages of a chat, oldest first.
///
/// # Errors
/// 400, naming the message and the field.
pub(super) fn translate(messages: Vec<Object<ChatMessage>>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "there are none; at least one is needed"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(index, Object(message))| one(message, &format!("messages[{index}]")))
        .collect()
}

/// `chat` with the end that vLLM's two fields ask for: an answer is opened unless one of them says otherwise.
///
/// # Errors
/// 400: both ends are asked for, or what cannot be continued.
pub(super) fn ended(chat: Chat, adds_prompt: Option<bool>, continues: Option<bool>) -> Result<Chat, ApiError> {
    let continue_final_message = continues.unwrap_or(false);
    if continue_final_message && adds_prompt == Some(true) {
        let problem = "it opens a new answer and `continue_final_message` continues the last one; choose one";
        return Err(ApiError::invalid("add_generation_prompt", problem));
    }
    if continue_final_message && chat.messages.last().is_some_and(|last| last.extra.contains_key("tool_calls")) {
        let problem = "the last message is a call, which the template closes; nothing of it can be continued";
        return Err(ApiError::invalid("continue_final_message", problem));
    }
    let opens_no_answer = !continue_final_message && adds_prompt == Some(false);
    Ok(Chat { continue_final_message, opens_no_answer, ..chat })
}

fn one(message: ChatMessage, at: &str) -> Result<Message, ApiError> {
    let role = match message.role.as_str() {
        // What OpenAI's later models call the system.
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" | "tool" => message.role,
        other => {
            let known = "`system`, `developer`, `user`, `assistant` and `tool` are known";
            return Err(ApiError::invalid(format!("{at}.role"), format!("`{other}` is no role; {known}")));
        }
    };
    if message.function_call.is_some() {
        let why = "the older form of `tool_calls`; send `tool_calls` instead";
        return Err(ApiError::unsupported(format!("{at}.function_call"), why));
    }
    let content = text(message.content, at)?;
    let mut extra = Map::new();
    if let Some(calls) = message.tool_calls.filter(|calls| !calls.is_empty()) {
        let one = |(index, call)| tool_call(call, &format!("{at}.tool_calls[{index}]"));
        let calls = calls.into_iter().enumerate().map(one).collect::<Result<_, _>>()?;
        extra.insert("tool_calls".into(), Value::Array(calls));
    }
    let texts = [
        ("tool_call_id", message.tool_call_id),
        ("name", message.name),
        ("reasoning_content", message.reasoning_content.or(message.reasoning)),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            extra.insert(name.into(), Value::String(value));
        }
    }
    // A template that joins an absent content would print `None`; only tool calls stand without one.
    let content = if extra.contains_key("tool_calls") { content } else { Some(content.unwrap_or_default()) };
    Ok(Message { role, content, extra })
}

/// The text of a content: itself, or its parts, each on lines of its own.
fn text(content: Option<Value>, at: &str) -> Result<Option<String>, ApiError> {
    let parts = match content {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(_) => {
            let problem = "a string, null, or a list of parts is needed";
            return Err(ApiError::invalid(format!("{at}.content"), problem));
        }
    };
    let texts = parts.into_iter().enumerate().map(|(index, part)| part_text(part, &format!("{at}.content[{index}]")));
    Ok(Some(texts.collect::<Result<Vec<_>, _>>()?.join("\n")))
}

fn part_text(part: Value, at: &str) -> Result<String, ApiError> {
    if let Value::String(text) = part {
        return Ok(text);
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    let field = match kind {
        "text" | "refusal" => kind,
        "" => return Err(ApiError::invalid(format!("{at}.type"), "it is missing; `text` is taken")),
        other => {
            let why = format!("`{other}` is not taken: this server reads text only");
            return Err(ApiError::unsupported(format!("{at}.type"), why));
        }
    };
    match part.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(ApiError::invalid(format!("{at}.{field}"), "a string is needed")),
    }
}

/// A tool call with its arguments as an object, which is what templates print. Arguments that a model wrote and that
/// are no JSON stay as they are: they are part of what was said.
fn tool_call(mut call: Value, at: &str) -> Result<Value, ApiError> {
    let function = call.get_mut("function").and_then(Value::as_object_mut);
    let Some(function) = function.filter(|function| function.get("name").is_some_and(Value::is_string)) else {
        return Err(ApiError::invalid(format!("{at}.function"), "an object with a `name` is needed"));
    };
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => return Ok(call),
        },
        Some(_) => return Ok(call),
    };
    function.insert("arguments".into(), arguments);
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
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "again", "name": "ann"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"id": "call2", "type": "function", "function": {"name": "g", "arguments": ""}},
                {"id": "call3", "type": "function", "function": {"name": "h", "arguments": "{broken"}},
            ]},
            {"role": "tool", "content": "42", "tool_call_id": "call1"},
            {"role": "assistant", "content": null, "refusal": null, "audio": null},
        ]))
        .expect("valid");
        assert_eq!(turn[0], Message::system("be brief"));
        assert_eq!(turn[1], Message::user("a\nb"));
        assert_eq!(turn[2].extra["name"], "ann");
        assert_eq!(turn[3].content, None);
        let arguments = |call: usize| turn[3].extra["tool_calls"][call]["function"]["arguments"].clone();
        assert_eq!([arguments(0), arguments(1), arguments(2)], [json!({"x": 1}), json!({}), json!("{broken")]);
        assert_eq!(turn[3].extra["tool_calls"][0]["id"], "call1");
        assert_eq!((turn[4].role.as_str(), &turn[4].extra["tool_call_id"]), ("tool", &json!("call1")));
        assert_eq!(turn[5], Message::assistant(""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!([]), "messages"),
            (json!([{"role": "wizard", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"text": "a"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "assistant", "tool_calls": [{"id": "x"}]}]), "messages[0].tool_calls[0].function"),
            (json!([["user", "hi"]]), "messages[0]"),
            (json!([{"role": "user", "content": "a"}, {"role": 5}]), "messages[1].role"),
            (json!([{"role": "assistant", "function_call": {"name": "f"}}]), "messages[0].function_call"),
        ];
        for (json, name) in cases {
            let error = messages(json.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{json}");
        }
    }
}
