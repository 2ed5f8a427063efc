//! The forms in which models write calls of tools.
//!
//! Source: the chat templates of Qwen2.5 and Qwen3 (Hermes' form), Llama 3.1, DeepSeek-V3 and V3.1.

use serde_json::{Map, Value};

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Which tool.
    pub name: String,
    /// With what: a JSON object, as text.
    pub arguments: String,
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a fenced block of JSON, `<｜tool▁call▁end｜>`, or the name before
    /// the separator and plain JSON behind it: DeepSeek V3, R1 and V3.1.
    DeepSeek,
    /// The whole answer is one or several `{"name": ..., "parameters": {...}}`: Llama 3, and models of which nothing else
    /// is known.
    Json,
}

impl CallFormat {
    /// The form that a chat template of this source teaches.
    pub fn of_template(source: &str) -> Self {
        if source.contains("<tool_call>") {
            Self::Hermes
        } else if source.contains("<｜tool▁call▁begin｜>") {
            Self::DeepSeek
        } else {
            Self::Json
        }
    }

    /// Whether calls stand without marks around them.
    pub(super) fn is_bare(self) -> bool {
        self == Self::Json
    }

    pub(super) fn open(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::DeepSeek => "<｜tool▁call▁begin｜>",
            Self::Json => "",
        }
    }

    pub(super) fn close(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::DeepSeek => "<｜tool▁call▁end｜>",
            Self::Json => "",
        }
    }

    /// Marks around all calls together.
    pub(super) fn ignored(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeek => &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
            Self::Hermes | Self::Json => &[],
        }
    }

    /// The call whose text between the marks is `body`.
    pub(super) fn read(self, body: &str) -> Option<ToolCall> {
        match self {
            Self::Hermes | Self::Json => named(serde_json::from_str(body.trim()).ok()?),
            Self::DeepSeek => {
                let (kind, rest) = body.split_once("<｜tool▁sep｜>")?;
                let (name, arguments) = match rest.split_once("```json") {
                    Some((name, fenced)) => (name, fenced.rsplit_once("```").map_or(fenced, |(json, _)| json)),
                    None => (kind, rest),
                };
                let arguments: Map<String, Value> = serde_json::from_str(arguments.trim()).ok()?;
                let name = name.trim();
                (!name.is_empty()).then(|| ToolCall { name: name.to_owned(), arguments: text(arguments) })
            }
        }
    }
}

/// The calls of an answer that is nothing else: objects one after the other, with semicolons or white space between.
pub(super) fn read_bare(answer: &str) -> Option<Vec<ToolCall>> {
    let mut rest = answer.trim();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut objects = serde_json::Deserializer::from_str(rest).into_iter();
        calls.push(named(objects.next()?.ok()?)?);
        rest = rest[objects.byte_offset()..].trim_start_matches(|next: char| next.is_whitespace() || next == ';');
    }
    (!calls.is_empty()).then_some(calls)
}

/// A call as an object with a name, and arguments under either of their names.
fn named(mut object: Map<String, Value>) -> Option<ToolCall> {
    let arguments = object.remove("arguments").or_else(|| object.remove("parameters"))?;
    let arguments = match arguments {
        Value::Object(arguments) => text(arguments),
        // Some models write the arguments as text, as the API does.
        Value::String(json) => text(serde_json::from_str(&json).ok()?),
        _ => return None,
    };
    match object.remove("name")? {
        Value::String(name) if !name.is_empty() => Some(ToolCall { name, arguments }),
        _ => None,
    }
}

fn text(arguments: Map<String, Value>) -> String {
    Value::Object(arguments).to_string()
}
