//! A list of tools as text, for models whose templates write calls of tools and say nothing of the tools themselves:
//! DeepSeek's V3, R1 and V3.1.
//!
//! Knows no template.
//!
//! Source: the sections on function calls in the documentation of DeepSeek-V3 and DeepSeek-V3.1.

use serde_json::{Value, json};

use super::answer::CallFormat;
use super::python_json::dumps;

/// What a call looks like, with the form of V3 and R1.
const FORM_V3: &str = "\
To call functions, end your answer with this, one call for each function that is needed, and arguments in valid JSON:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME
```json
{\"parameter\": \"value\"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

/// What a call looks like in V3.1's.
const FORM_V31: &str = "\
IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>\
{additional_tool_calls}<｜tool▁calls▁end｜>

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces";

/// What a model is told of `tools`, which are in OpenAI's form, that writes calls in `format`.
///
/// # Errors
/// A tool cannot be written.
pub(super) fn text(tools: &[Value], format: CallFormat) -> Result<String, String> {
    let json = |value: &Value| dumps(value, &Default::default()).map_err(|error| error.to_string());
    let field = |tool: &Value, name: &str| tool["function"][name].as_str().unwrap_or_default().to_owned();
    let mut text = String::from("## Tools\n");
    if format == CallFormat::DeepSeekV31 {
        text.push_str("You have access to the following tools:\n\n");
        for tool in tools {
            let parameters = tool["function"].get("parameters").cloned().unwrap_or_else(|| json!({ "type": "object" }));
            let (name, description) = (field(tool, "name"), field(tool, "description"));
            text.push_str(&format!("### {name}\nDescription: {description}\n\nParameters: {}\n\n", json(&parameters)?));
        }
        text.push_str(FORM_V31);
        return Ok(text);
    }
    text.push_str("\n### Function\n\nYou have the following functions available:\n\n");
    for tool in tools {
        text.push_str(&format!("- `{}`:\n```json\n{}\n```\n\n", field(tool, "name"), json(&tool["function"])?));
    }
    text.push_str(FORM_V3);
    Ok(text)
}

/// Adds `text` to the last system message, which is the one that every template shows, or as the first message.
pub(super) fn add(messages: &mut Vec<Value>, text: &str) {
    let system = messages.iter_mut().rev().find(|message| message["role"] == "system");
    match system.and_then(|message| message.get_mut("content")) {
        Some(content) => {
            let said = content.as_str().filter(|said| !said.is_empty());
            *content = said.map_or_else(|| text.to_owned(), |said| format!("{said}\n\n{text}")).into();
        }
        None => messages.insert(0, json!({ "role": "system", "content": text })),
    }
}
