//! Grammars that an answer must follow: compiled once a request, walked by each of its answers.
//!
//! Knows no engine: it makes the masks that the engine samples under. Parsing is `llguidance`'s.

mod calls;
mod compile;
mod held;
mod multiples;
mod no_ops;

use std::fmt;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::SimpleVob;
use serde_json::{Value, json};

use crate::request::{TokenId, TokenMask, TokenMasks};
use crate::tokenizer::CallFormat;

pub use calls::Calls;
pub(crate) use compile::{CompileError, GrammarCompiler};
use no_ops::without_no_ops;

/// Longest text of what is wrong, in bytes: the parser's repeats lines of the grammar.
const MAX_TOLD_BYTES: usize = 2000;
/// Most white space between two parts of JSON, in bytes, which would else go on for as long as a model likes: a line's end
/// and the indentation behind it have room.
const MAX_SPACE_BYTES: usize = CallFormat::MAX_SPACE_BYTES;

/// What an answer must be. At most 256 KiB of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in the dialect of Lark that llguidance reads.
    Lark(String),
    /// Calls of tools, as the model writes them.
    Calls(Calls),
}

impl Grammar {
    fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
            Self::Calls(calls) => calls.written().bytes(),
        }
    }

    fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => TopLevelGrammar::from_json_schema(bounded_space(json!({ "type": "object" }))),
            Self::JsonSchema(schema) => {
                let schema = bounded_space(without_no_ops(without_unused_names(schema)));
                TopLevelGrammar::from_json_schema(schema)
            }
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                // JSON's strings are written as Lark's are.
                let texts: Vec<_> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Self::Calls(calls) => calls.written().top_level(),
        }
    }
}

/// `schema` with a limit on the white space that JSON allows anywhere, unless it says itself how much there may be.
fn bounded_space(schema: Value) -> Value {
    let mut schema = if schema == Value::Bool(true) { json!({}) } else { schema };
    if let Some(keywords) = schema.as_object_mut() {
        // What llguidance reads beside JSON Schema's own keywords.
        let options = keywords.entry("x-guidance").or_insert_with(|| json!({}));
        if let Some(options) = options.as_object_mut()
            && !options.contains_key("whitespace_flexible")
        {
            let pattern = format!("[ \\t\\r\\n]{{1,{MAX_SPACE_BYTES}}}");
            options.entry("whitespace_pattern").or_insert_with(|| pattern.into());
        }
    }
    schema
}

/// `schema` without the name of a dialect that is not JSON Schema's own, which could only be fetched, and without its own
/// name where no reference needs one: many are no URIs.
fn without_unused_names(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let local = refers_by_pointer_alone(&schema);
    if let Some(keywords) = schema.as_object_mut() {
        let own_dialect = |name: &Value| name.as_str().is_some_and(|name| name.contains("//json-schema.org/"));
        if !keywords.get("$schema").is_none_or(own_dialect) {
            keywords.shift_remove("$schema");
        }
        if local {
            keywords.shift_remove("$id");
        }
    }
    schema
}

/// Whether no `$ref` of `schema` names a document, and be it this one.
fn refers_by_pointer_alone(schema: &Value) -> bool {
    match schema {
        Value::Object(keywords) => keywords.iter().all(|(keyword, value)| match value {
            Value::String(reference) if keyword == "$ref" => reference.starts_with('#'),
            _ => refers_by_pointer_alone(value),
        }),
        Value::Array(items) => items.iter().all(refers_by_pointer_alone),
        _ => true,
    }
}

/// What the parser found wrong, as a client is told it: no backtrace, not without end, and of a document that is missing that
/// none is fetched.
fn told(error: impl fmt::Display) -> String {
    let text = format!("{error:#}");
    let text = text.split("\n<backtrace>").next().unwrap_or_default().trim_end_matches("<non-verbose/>").trim_end();
    match text.split_once("is not present in a registry and retrieving it failed") {
        Some((resource, _)) => {
            format!("{resource}is not part of the schema, and references to others are never fetched")
        }
        None => text[..text.floor_char_boundary(MAX_TOLD_BYTES)].to_owned(),
    }
}

/// A grammar before its first token.
struct Compiled {
    matcher: Matcher,
    eos: TokenId,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiled")
    }
}

impl TokenMasks for Compiled {
    fn start(&self) -> Box<dyn TokenMask> {
        Box::new(Walk { matcher: self.matcher.deep_clone(), eos: self.eos, allowed: SimpleVob::new() })
    }
}

/// One answer's place in a grammar.
struct Walk {
    matcher: Matcher,
    eos: TokenId,
    allowed: SimpleVob,
}

impl TokenMask for Walk {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.allowed = self.matcher.compute_mask_or_eos().map_err(told)?;
        Ok(Some(self.allowed.as_slice()))
    }

    fn commit(&mut self, token: TokenId) -> Result<(), String> {
        if token == self.eos {
            // Nothing follows.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(told)
    }
}

#[cfg(test)]
mod tests;
