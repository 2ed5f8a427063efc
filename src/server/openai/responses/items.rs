//! The input of a request, a text or items, turned into the messages that templates read.

use serde_json::{Map, Value, json};

use crate::llm::Message;
use crate::server::error::ApiError;

/// The messages of `input`, oldest first. What the model did in one turn (thoughts, text, calls) becomes one message.
///
/// # Errors
/// 400, naming the item and the field.
pub(super) fn translate(input: Value) -> Result<Vec<Message>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![Message::user(text)]),
        Value::Array(items) => items,
        _ => return Err(ApiError::invalid("input", "a string or a list of items is needed")),
    };
    let mut messages = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        push(&item, &format!("input[{index}]"), &mut messages)?;
    }
    Ok(messages)
}

fn push(item: &Value, at: &str, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    match item.get("type").and_then(Value::as_str).unwrap_or("message") {
        "message" => {
            let role = match text_field(item, "role", at)? {
                "developer" => "system",
                role @ ("system" | "user" | "assistant") => role,
                other => {
                    let known = "`user`, `assistant`, `system` and `developer` are known";
                    return Err(ApiError::invalid(format!("{at}.role"), format!("`{other}` is no role; {known}")));
                }
            };
            let content = text(item.get("content"), &format!("{at}.content"))?;
            if role == "assistant" {
                let turn = turn(messages);
                turn.content.get_or_insert_default().push_str(&content);
            } else {
                messages.push(Message::new(role, content));
            }
        }
        "reasoning" => {
            // Summaries and what is encrypted are of other servers; thoughts in clear are ours.
            let thoughts = item.get("content").filter(|content| content.is_array());
            let thoughts = thoughts.map(|content| text(Some(content), &format!("{at}.content"))).transpose()?;
            if let Some(thoughts) = thoughts.filter(|thoughts| !thoughts.is_empty()) {
                turn(messages).extra.insert("reasoning_content".into(), thoughts.into());
            }
        }
        "function_call" => {
            let arguments = text_field(item, "arguments", at)?;
            let arguments = match serde_json::from_str(arguments) {
                Ok(Value::Object(object)) => Value::Object(object),
                // What a model wrote and is no JSON stays what was said.
                _ if !arguments.trim().is_empty() => arguments.into(),
                _ => Value::Object(Map::new()),
            };
            let function = json!({ "name": text_field(item, "name", at)?, "arguments": arguments });
            let call = json!({ "id": text_field(item, "call_id", at)?, "type": "function", "function": function });
            let calls = turn(messages).extra.entry("tool_calls").or_insert_with(|| json!([]));
            if let Some(calls) = calls.as_array_mut() {
                calls.push(call);
            }
        }
        "function_call_output" => {
            let mut result = Message::new("tool", text(item.get("output"), &format!("{at}.output"))?);
            result.extra.insert("tool_call_id".into(), text_field(item, "call_id", at)?.into());
            messages.push(result);
        }
        other => {
            let why = format!("`{other}` is not taken; messages, reasoning, function calls and their outputs are");
            return Err(ApiError::unsupported(format!("{at}.type"), why));
        }
    }
    Ok(())
}

/// The message of the assistant's turn that is being read.
fn turn(messages: &mut Vec<Message>) -> &mut Message {
    if messages.last().is_none_or(|last| last.role != "assistant") {
        messages.push(Message { role: "assistant".into(), content: None, extra: Map::new() });
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

fn text_field<'a>(item: &'a Value, name: &str, at: &str) -> Result<&'a str, ApiError> {
    let text = item.get(name).and_then(Value::as_str);
    text.ok_or_else(|| ApiError::invalid(format!("{at}.{name}"), "a string is needed"))
}

/// A text: itself, or its parts, each on lines of its own.
fn text(content: Option<&Value>, at: &str) -> Result<String, ApiError> {
    let parts = match content {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(ApiError::invalid(at, "a string or a list of parts is needed")),
    };
    let one = |(index, part): (usize, &Value)| {
        let at = format!("{at}[{index}]");
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => {
                text_field(part, "text", &at).map(str::to_owned)
            }
            "refusal" => text_field(part, "refusal", &at).map(str::to_owned),
            "" => Err(ApiError::invalid(format!("{at}.type"), "it is missing; `input_text` is taken")),
            other => {
                let why = format!("`{other}` is not taken: this server reads text only");
                Err(ApiError::unsupported(format!("{at}.type"), why))
            }
        }
    };
    Ok(parts.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_of_an_agent_as_clients_replay_it() {
        let turn = translate(json!([
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
            {"role": "user", "content": "hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x",
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me see"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\": 1}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "43"}]},
            {"role": "user", "content": "so?"},
        ]))
        .expect("valid");
        let roles: Vec<_> = turn.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "user"]);
        assert_eq!(turn[2].content.as_deref(), Some("let me see"));
        assert_eq!(turn[2].extra["reasoning_content"], "hm");
        let calls = turn[2].extra["tool_calls"].as_array().expect("calls");
        assert_eq!((calls.len(), &calls[0]["function"]["arguments"]), (2, &json!({"x": 1})));
        assert_eq!((turn[4].content.as_deref(), &turn[4].extra["tool_call_id"]), (Some("43"), &json!("c2")));
        assert_eq!(translate(json!("hi")), Ok(vec![Message::user("hi")]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!(5), "input"),
            (json!([{"role": "wizard", "content": "a"}]), "input[0].role"),
            (json!([{"content": "a"}]), "input[0].role"),
            (json!([{"role": "user", "content": 5}]), "input[0].content"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0].type"),
            (json!([{"type": "function_call", "name": "f", "arguments": "{}"}]), "input[0].call_id"),
            (json!([{"type": "web_search_call"}]), "input[0].type"),
        ];
        for (input, name) in cases {
            let error = translate(input.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{input}");
        }
    }
}
