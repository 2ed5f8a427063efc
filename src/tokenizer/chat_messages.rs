//! Brings messages, as the clients of several APIs send them, into the form that templates expect.
//!
//! It knows no template: what a given one expects is handed to it.

use serde_json::{Map, Value};

/// What a template expects of messages, found by trying it ([`super::ChatTemplate`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Expectations {
    /// Content must be text, even where an assistant only called tools.
    pub text_content: bool,
    /// Content must be null where an assistant called tools, or the calls are left out.
    pub null_content: bool,
    /// The arguments of a tool call must be an object and not the JSON text of one.
    pub object_arguments: bool,
}

/// Returns `messages` with each content as text: the texts of a list of parts are joined by line
/// breaks. Tool calls' arguments get the form that the template expects. What an assistant said beside calls becomes a
/// message of its own, where the template shows calls without text alone.
///
/// # Errors
/// The type of the first part that is not text, or the reason why a message is not one.
pub(super) fn normalise(messages: &[Value], expected: Expectations) -> Result<Vec<Value>, String> {
    let mut normal = Vec::with_capacity(messages.len());
    for message in messages {
        let mut message = message.as_object().cloned().ok_or_else(|| "a message is not an object".to_owned())?;
        normalise_content(&mut message, expected)?;
        if expected.object_arguments {
            parse_arguments(&mut message);
        } else {
            write_arguments(&mut message);
        }
        if expected.null_content && message.get("tool_calls").and_then(Value::as_array).is_some_and(|c| !c.is_empty()) {
            let said = message.insert("content".into(), Value::Null);
            if said.as_ref().and_then(Value::as_str).is_some_and(|said| !said.trim().is_empty()) {
                let mut saying = message.clone();
                saying.shift_remove("tool_calls");
                saying.insert("content".into(), said.unwrap_or_default());
                normal.push(Value::Object(saying));
            }
        }
        normal.push(Value::Object(message));
    }
    Ok(normal)
}

fn normalise_content(message: &mut Map<String, Value>, expected: Expectations) -> Result<(), String> {
    let content = match message.get("content") {
        Some(Value::Array(parts)) => Value::String(join_parts(parts)?),
        None | Some(Value::Null) if expected.text_content => Value::String(String::new()),
        None => Value::Null,
        Some(_) => return Ok(()),
    };
    message.insert("content".into(), content);
    Ok(())
}

fn join_parts(parts: &[Value]) -> Result<String, String> {
    let texts: Result<Vec<&str>, String> = parts
        .iter()
        .map(|part| {
            part.as_str().or_else(|| part["text"].as_str()).ok_or_else(|| {
                let kind = part["type"].as_str().unwrap_or("unknown");
                format!("content of type `{kind}`; this model reads text only")
            })
        })
        .collect();
    Ok(texts?.join("\n"))
}

fn arguments_of(message: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    message
        .get_mut("tool_calls")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(|call| call.get_mut("function")?.get_mut("arguments"))
}

/// Arguments that are not the JSON text of an object stay as they are: a model may have written
/// them, and the conversation must go on.
fn parse_arguments(message: &mut Map<String, Value>) {
    for arguments in arguments_of(message) {
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
        if let Some(object @ Value::Object(_)) = parsed {
            *arguments = object;
        }
    }
}

fn write_arguments(message: &mut Map<String, Value>) {
    for arguments in arguments_of(message) {
        if arguments.is_object()
            && let Ok(text) = super::python_json::dumps(arguments, &Default::default())
        {
            *arguments = Value::String(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(message: Value, expected: Expectations) -> Result<Value, String> {
        normalise(&[message], expected).map(|messages| messages[0].clone())
    }

    #[test]
    fn text_beside_calls_stands_apart_where_a_template_wants_null() {
        let null = Expectations { null_content: true, ..Expectations::default() };
        let calls = json!([{"function": {"name": "f", "arguments": "{}"}}]);
        let message = |content: Value| json!({"role": "assistant", "content": content, "tool_calls": calls});
        for content in [json!(""), json!("\n"), json!([]), Value::Null] {
            assert_eq!(normalise(&[message(content)], null), Ok(vec![message(Value::Null)]));
        }
        let said = json!({"role": "assistant", "content": "I look."});
        assert_eq!(normalise(&[message(json!("I look."))], null), Ok(vec![said.clone(), message(Value::Null)]));
        assert_eq!(normalise(std::slice::from_ref(&said), null), Ok(vec![said]));
        assert_eq!(normalise(&[message(json!(""))], Expectations::default()), Ok(vec![message(json!(""))]));
    }

    #[test]
    fn parts_become_text() {
        let parts = json!({"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]});
        let message = one(parts, Expectations::default()).unwrap();
        assert_eq!(message, json!({"role": "user", "content": "a\nb\nc"}));
        let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]});
        assert!(one(image, Expectations::default()).unwrap_err().contains("image_url"));
        assert!(one(json!("hi"), Expectations::default()).is_err());
    }

    #[test]
    fn no_content_is_null_or_empty() {
        let text = Expectations { text_content: true, ..Expectations::default() };
        for message in [json!({"role": "assistant"}), json!({"role": "assistant", "content": null})] {
            assert_eq!(one(message.clone(), text).unwrap()["content"], "");
            let null = one(message, Expectations::default()).unwrap();
            assert!(null.as_object().unwrap().contains_key("content"));
            assert!(null["content"].is_null());
        }
    }

    #[test]
    fn arguments_take_the_expected_form() {
        let call = |arguments: Value| json!({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]});
        let objects = Expectations { object_arguments: true, ..Expectations::default() };
        let (text, object) = (json!("{\"x\": 1}"), json!({"x": 1}));
        assert_eq!(one(call(text.clone()), objects).unwrap(), call(object.clone()));
        assert_eq!(one(call(object), Expectations::default()).unwrap(), call(text));
        let broken = call(json!("{\"x\": "));
        assert_eq!(one(broken.clone(), objects).unwrap(), broken);
    }
}
