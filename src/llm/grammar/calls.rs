//! The grammar of calls that are forced: at least one, in the form in which the model writes calls.
//!
//! Knows no template: the form is handed to it.

use serde_json::{Map, Value, json};

use crate::tokenizer::CallFormat;

use super::no_ops::without_no_ops;
use super::{Grammar, bounded_space, refers_by_pointer_alone};

/// Calls of tools as one model writes them: the parser of that model's answers reads whatever fits.
/// [`Llm::forced_calls`](crate::Llm::forced_calls) makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls(Box<Grammar>);

impl Calls {
    /// The grammar that says so.
    pub(super) fn written(&self) -> &Grammar {
        &self.0
    }
}

impl Grammar {
    /// At least one call of these tools, which are in OpenAI's form, as a model of that `format` writes calls; exactly one
    /// if `one`.
    pub(in crate::llm) fn calls(format: CallFormat, tools: &[Value], one: bool) -> Self {
        let functions: Vec<Function> = functions(tools);
        let any = |arguments| {
            let calls: Vec<_> = functions.iter().map(|function| function.object(arguments)).collect();
            bounded_space(json!({ "anyOf": calls }))
        };
        let more = |between: &str| if one { String::new() } else { format!(" ({between} call)*") };
        let written = match format {
            // Bare calls have no end but the answer's: one.
            CallFormat::Json => Self::JsonSchema(any("parameters")),
            CallFormat::Hermes => Self::Lark(format!(
                "start: call{}\ncall: \"<tool_call>\\n\" body \"\\n</tool_call>\"\nbody: %json {}\n",
                more(r#""\n""#),
                any("arguments")
            )),
            CallFormat::DeepSeek => Self::Lark(deepseek(&functions, &more(r#""\n""#), |name| {
                (format!("function<｜tool▁sep｜>{name}\n```json\n"), "\n```")
            })),
            CallFormat::DeepSeekV31 => {
                Self::Lark(deepseek(&functions, &more(""), |name| (format!("{name}<｜tool▁sep｜>"), "")))
            }
        };
        Self::Calls(Calls(Box::new(written)))
    }
}

/// Calls between DeepSeek's marks; `around` says what stands before and behind the arguments of a function of that name.
fn deepseek(functions: &[Function], more: &str, around: impl Fn(&str) -> (String, &'static str)) -> String {
    let one_function = |(index, function): (usize, &Function)| {
        let (before, behind) = around(function.name.as_str().unwrap_or_default());
        let begin = Value::from(format!("<｜tool▁call▁begin｜>{before}"));
        let end = Value::from(format!("{behind}<｜tool▁call▁end｜>"));
        let arguments = bounded_space(function.parameters.clone());
        format!("call{index}: {begin} body{index} {end}\nbody{index}: %json {arguments}\n")
    };
    let bodies: String = functions.iter().enumerate().map(one_function).collect();
    let names: Vec<_> = (0..functions.len()).map(|index| format!("call{index}")).collect();
    let names = names.join(" | ");
    format!("start: \"<｜tool▁calls▁begin｜>\" call{more} \"<｜tool▁calls▁end｜>\"\ncall: {names}\n{bodies}")
}

/// A function that may be called.
struct Function {
    name: Value,
    /// The schema of its arguments.
    parameters: Value,
}

impl Function {
    /// The schema of a call as an object, whose arguments stand under that name.
    fn object(&self, arguments: &str) -> Value {
        json!({
            "type": "object",
            "properties": { "name": { "const": self.name }, (arguments): self.parameters },
            "required": ["name", arguments],
            "additionalProperties": false,
        })
    }
}

/// The functions of `tools`. The schemas of their arguments become parts of one: each gets a name of its own, from which
/// its pointers (`#/$defs/...`) are followed, and the names that several of them give to their parts are told apart.
fn functions(tools: &[Value]) -> Vec<Function> {
    let several = tools.len() > 1;
    let one = |(index, tool): (usize, &Value)| {
        let function = &tool["function"];
        let parameters = match &function["parameters"] {
            Value::Object(parameters) => parameters_of(parameters, index, several),
            _ => json!({ "type": "object" }),
        };
        Function { name: function["name"].clone(), parameters }
    };
    tools.iter().enumerate().map(one).collect()
}

/// The schema of the arguments of the tool that has the number `index`, named; `several`: there are others.
fn parameters_of(parameters: &Map<String, Value>, index: usize, several: bool) -> Value {
    let mut schema = without_no_ops(Value::Object(parameters.clone()));
    let own_name_is_needed = !refers_by_pointer_alone(&schema);
    if several && has_names(&schema) {
        tell_apart(&mut schema, index);
    }
    if let Some(keywords) = schema.as_object_mut() {
        // The dialect is the whole grammar's; older ones pass over a name beside a `$ref`.
        keywords.shift_remove("$schema");
        if !["type", "$ref", "allOf", "anyOf", "oneOf"].iter().any(|keyword| keywords.contains_key(*keyword)) {
            // `{}` is how no arguments are written: an object without any, not any JSON.
            keywords.insert("type".into(), "object".into());
        }
        let has_name = keywords.get("$id").is_some_and(Value::is_string);
        if !(has_name && own_name_is_needed) {
            // With a place of its own for the names of parts, which are resolved against it.
            keywords.insert("$id".into(), format!("json-schema://tool-{index}/").into());
        }
    }
    schema
}

/// Keywords whose values are no schemas, whatever they look like.
const VALUES: [&str; 4] = ["const", "default", "enum", "examples"];

/// Where the dialects of JSON schema are, which are everybody's.
const DIALECTS: &str = "//json-schema.org/";

/// Whether `schema` or a part of it has a name.
fn has_names(schema: &Value) -> bool {
    match schema {
        Value::Object(keywords) => {
            let mut parts = keywords.iter().filter(|(keyword, _)| !VALUES.contains(&keyword.as_str()));
            keywords.get("$id").is_some_and(Value::is_string) || parts.any(|(_, value)| has_names(value))
        }
        Value::Array(items) => items.iter().any(has_names),
        _ => false,
    }
}

/// Gives every name in the schema, and every reference to one, a mark that only the tool of that number has. All of them,
/// since names that differ in writing may be the same once they are resolved against the names around them.
fn tell_apart(schema: &mut Value, index: usize) {
    match schema {
        Value::Object(keywords) => {
            for (keyword, value) in keywords.iter_mut().filter(|(keyword, _)| !VALUES.contains(&keyword.as_str())) {
                match value {
                    Value::String(name) if keyword == "$id" || keyword == "$ref" => {
                        let (resource, place) = name.split_at(name.find('#').unwrap_or(name.len()));
                        if !resource.is_empty() && !resource.contains(DIALECTS) {
                            let joint = if resource.contains('?') { '&' } else { '?' };
                            *name = format!("{resource}{joint}tool={index}{place}");
                        }
                    }
                    value => tell_apart(value, index),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| tell_apart(item, index)),
        _ => {}
    }
}
