//! The forms in which models write calls of tools.
//!
//! Source: the chat templates of Qwen2.5 and Qwen3 (Hermes' form), Llama 3.1, DeepSeek-V3 and V3.1.

use std::collections::HashMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::config::ToolParser;

/// What opens a call of DeepSeek's.
pub(in crate::tokenizer) const DEEPSEEK_OPEN: &str = "<｜tool▁call▁begin｜>";
/// What opens the block of JSON in V3's form.
const FENCE: &str = "```json";

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Which tool.
    pub name: String,
    /// With what: a JSON object, as the model wrote it. Read and written again, numbers beyond 64 bits would lose digits, and
    /// of keys that come twice all but one.
    pub arguments: String,
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a fenced block of JSON, `<｜tool▁call▁end｜>`: DeepSeek V3 and R1.
    DeepSeek,
    /// As [`Self::DeepSeek`], with the name before the separator and plain JSON behind it: V3.1. Both are read as either.
    DeepSeekV31,
    /// The whole answer is one or several `{"name": ..., "parameters": {...}}`: Llama 3, and models of which nothing else
    /// is known.
    Json,
}

impl CallFormat {
    /// What separates the name of a tool from what stands before or behind it, in DeepSeek's forms.
    pub const DEEPSEEK_SEPARATOR: &str = "<｜tool▁sep｜>";

    /// The form that a chat template of this source teaches.
    pub fn of_template(source: &str) -> Self {
        if source.contains("<tool_call>") {
            Self::Hermes
        } else if source.contains(DEEPSEEK_OPEN) {
            Self::deepseek(source)
        } else {
            Self::Json
        }
    }

    /// The form that was wished for, for a model with a chat template of this source.
    pub(in crate::tokenizer) fn wished(parser: ToolParser, source: &str) -> Self {
        match parser {
            ToolParser::Auto => Self::of_template(source),
            ToolParser::Hermes => Self::Hermes,
            ToolParser::DeepSeek => Self::deepseek(source),
            ToolParser::Llama3 | ToolParser::Json => Self::Json,
        }
    }

    /// Which of DeepSeek's forms a template teaches: that of V3 unless it has the marks and no fence.
    fn deepseek(source: &str) -> Self {
        let fenced = source.contains(FENCE) || !source.contains(DEEPSEEK_OPEN);
        if fenced { Self::DeepSeek } else { Self::DeepSeekV31 }
    }

    /// Whether calls stand without marks around them.
    pub(super) fn is_bare(self) -> bool {
        self == Self::Json
    }

    /// The mark that opens a call; empty where there is none.
    pub fn open(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::DeepSeek | Self::DeepSeekV31 => DEEPSEEK_OPEN,
            Self::Json => "",
        }
    }

    /// The mark that ends a call; empty where there is none.
    pub fn close(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::DeepSeek | Self::DeepSeekV31 => "<｜tool▁call▁end｜>",
            Self::Json => "",
        }
    }

    /// Marks around all calls together.
    pub(super) fn ignored(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeek | Self::DeepSeekV31 => &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
            Self::Hermes | Self::Json => &[],
        }
    }

    /// The call whose text between the marks is `body`.
    pub(super) fn read(self, body: &str) -> Option<ToolCall> {
        match self {
            Self::Hermes | Self::Json => named(&serde_json::from_str(body.trim()).ok()?),
            Self::DeepSeek | Self::DeepSeekV31 => {
                let (name, json) = deepseek_parts(body)?;
                let mut values = serde_json::Deserializer::from_str(json).into_iter::<IgnoredAny>();
                values.next()?.ok()?;
                let (json, behind) = json.split_at(values.byte_offset());
                let is_fence = |character: char| character == '`' || character.is_whitespace();
                let (name, arguments) = (name.trim(), object(json)?);
                (!name.is_empty() && behind.chars().all(is_fence))
                    .then(|| ToolCall { name: name.to_owned(), arguments })
            }
        }
    }

    /// Whether the mark at the end of `body` stands within a string of its JSON: only there does JSON go on behind it.
    pub(super) fn goes_on(self, body: &str) -> bool {
        let json = match self {
            Self::Hermes | Self::Json => Some(body),
            Self::DeepSeek | Self::DeepSeekV31 => deepseek_parts(body).map(|(_, arguments)| arguments),
        };
        json.is_some_and(|json| serde_json::from_str::<IgnoredAny>(json).is_err_and(|error| error.is_eof()))
    }
}

/// The name in DeepSeek's forms, and what follows it: from the JSON on.
fn deepseek_parts(body: &str) -> Option<(&str, &str)> {
    let (kind, rest) = body.split_once(CallFormat::DEEPSEEK_SEPARATOR)?;
    // A fence behind the beginning of the JSON is part of it.
    let fence = rest.split_once(FENCE).filter(|(name, _)| !name.contains('{'));
    Some(fence.unwrap_or((kind, rest)))
}

/// The calls of an answer that is nothing else: objects one after the other, with semicolons or white space between.
pub(super) fn read_bare(answer: &str) -> Option<Vec<ToolCall>> {
    let mut rest = answer.trim();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut objects = serde_json::Deserializer::from_str(rest).into_iter();
        calls.push(named(&objects.next()?.ok()?)?);
        rest = rest[objects.byte_offset()..].trim_start_matches(|next: char| next.is_whitespace() || next == ';');
    }
    (!calls.is_empty()).then_some(calls)
}

/// A call as an object with a name, and arguments under either of their names.
fn named(object_of_call: &HashMap<String, &RawValue>) -> Option<ToolCall> {
    let written = object_of_call.get("arguments").or_else(|| object_of_call.get("parameters"))?.get();
    let arguments = match serde_json::from_str(written).ok()? {
        // Some models write the arguments as text, as the API does.
        Value::String(json) => object(&json)?,
        _ => object(written)?,
    };
    let name: String = serde_json::from_str(object_of_call.get("name")?.get()).ok()?;
    (!name.is_empty()).then_some(ToolCall { name, arguments })
}

/// The text of a JSON object without what stands around it, if `json` is one that clients can read.
fn object(json: &str) -> Option<String> {
    serde_json::from_str::<Map<String, Value>>(json).ok()?;
    Some(json.trim().to_owned())
}
