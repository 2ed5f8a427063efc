//! What an answer must follow, as the APIs ask for it.
//!
//! Knows no parser: it makes the library's [`Grammar`] and checks no schema.

use serde::Deserialize;
use serde_json::Value;

use crate::llm::Grammar;

use super::error::ApiError;

/// What `structured_outputs` may ask for; its other fields are settings.
const STRUCTURED_OUTPUTS: [&str; 6] = [
    "structured_outputs.json",
    "structured_outputs.regex",
    "structured_outputs.choice",
    "structured_outputs.grammar",
    "structured_outputs.json_object",
    "structured_outputs.structural_tag",
];

/// The fields of OpenAI's API and of vLLM's additions that ask for a form.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FormFields {
    response_format: Option<Value>,
    structured_outputs: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<Value>,
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
}

impl FormFields {
    /// The one form that is asked for, with the name of the field that asks for it.
    ///
    /// # Errors
    /// 400, naming the field that is wrong, or the second of two.
    pub(super) fn grammar(&self) -> Result<Option<(&'static str, Grammar)>, ApiError> {
        let mut asked: Vec<(&'static str, Grammar)> = Vec::new();
        if let Some(grammar) = self.response_format.as_ref().map(|value| response_format(value, "response_format")) {
            asked.extend(grammar?.map(|grammar| ("response_format", grammar)));
        }
        let guided = [
            ("json", "guided_json", &self.guided_json),
            ("regex", "guided_regex", &self.guided_regex),
            ("choice", "guided_choice", &self.guided_choice),
            ("grammar", "guided_grammar", &self.guided_grammar),
        ];
        for (kind, name, value) in guided {
            if let Some(value) = value {
                asked.extend(constraint(kind, value, name)?.map(|grammar| (name, grammar)));
            }
        }
        let structured = match &self.structured_outputs {
            None | Some(Value::Null) => None,
            Some(Value::Object(fields)) => Some(fields),
            Some(_) => return Err(ApiError::invalid("structured_outputs", "an object is needed")),
        };
        for (kind, value) in structured.into_iter().flatten() {
            let name = format!("structured_outputs.{kind}");
            let grammar = constraint(kind, value, &name)?;
            // What asks for a form is among them.
            let known = STRUCTURED_OUTPUTS.into_iter().find(|known| *known == name);
            asked.extend(known.zip(grammar));
        }
        let mut asked = asked.into_iter();
        let first = asked.next();
        match asked.next() {
            Some((name, _)) => Err(ApiError::invalid(name, "one form of an answer can be asked for, not two")),
            None => Ok(first),
        }
    }
}

/// `{"type": "text" | "json_object" | "json_schema", "json_schema": {"schema": ...}}`.
pub(super) fn response_format(value: &Value, at: &str) -> Result<Option<Grammar>, ApiError> {
    if value.is_null() {
        return Ok(None);
    }
    match value.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        Some("json_schema") => {
            // Responses and Anthropic's messages have the schema one level higher.
            let schema = value.get("json_schema").and_then(|named| named.get("schema")).or_else(|| value.get("schema"));
            let schema =
                schema.ok_or_else(|| ApiError::invalid(format!("{at}.json_schema.schema"), "it is missing"))?;
            Ok(Some(Grammar::JsonSchema(schema.clone())))
        }
        other => {
            let known = "`text`, `json_object` and `json_schema` are";
            let problem = format!("{} is not known; {known}", other.unwrap_or("what is there"));
            Err(ApiError::invalid(format!("{at}.type"), problem))
        }
    }
}

/// What vLLM's constraints and settings are called.
const SETTINGS: [&str; 9] = [
    "json",
    "json_object",
    "regex",
    "grammar",
    "choice",
    "structural_tag",
    "disable_any_whitespace",
    "disable_additional_properties",
    "whitespace_pattern",
];
const KINDS: &str = "`json`, `regex`, `choice`, `grammar` and `json_object` are taken";

/// One of vLLM's constraints; `None` where its value asks for nothing, or where it is no constraint but a setting.
fn constraint(kind: &str, value: &Value, at: &str) -> Result<Option<Grammar>, ApiError> {
    let text = |value: &Value| {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| ApiError::invalid(at, format!("{value} is no string")))
    };
    Ok(match (kind, value) {
        (kind, Value::Null | Value::Bool(false)) if SETTINGS.contains(&kind) => None,
        ("json", Value::String(schema)) => {
            let schema = serde_json::from_str(schema).map_err(|error| ApiError::invalid(at, error))?;
            Some(Grammar::JsonSchema(schema))
        }
        ("json", schema) => Some(Grammar::JsonSchema(schema.clone())),
        ("json_object", _) => Some(Grammar::JsonObject),
        ("regex", regex) => Some(Grammar::Regex(text(regex)?)),
        ("grammar", grammar) => Some(Grammar::Lark(text(grammar)?)),
        ("choice", Value::Array(choices)) => Some(Grammar::Choice(choices.iter().map(text).collect::<Result<_, _>>()?)),
        ("choice", _) => return Err(ApiError::invalid(at, "a list of strings is needed")),
        // Of white space no value changes.
        ("disable_any_whitespace", _) => None,
        ("structural_tag" | "whitespace_pattern" | "disable_additional_properties", _) => {
            return Err(ApiError::unsupported(at, KINDS));
        }
        _ => return Err(ApiError::invalid(at, format!("it is not known; {KINDS}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn grammar(fields: Value) -> Result<Option<Grammar>, ApiError> {
        let asked = serde_json::from_value::<FormFields>(fields.clone()).expect("any values").grammar()?;
        Ok(asked.map(|(name, grammar)| {
            // The field that asks is named by the way to it.
            let place = format!("/{}", name.replace('.', "/"));
            assert!(fields.pointer(&place).is_some_and(|value| !value.is_null()), "{name}: {fields}");
            grammar
        }))
    }

    #[test]
    fn every_form_is_read() {
        let schema = json!({"type": "integer"});
        let named = json!({"name": "n", "strict": true, "schema": schema});
        let cases = [
            (json!({}), None),
            (json!({"response_format": null, "guided_json": null, "structured_outputs": null}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Grammar::JsonObject)),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": named}}),
                Some(Grammar::JsonSchema(schema.clone())),
            ),
            (json!({"guided_json": schema.to_string()}), Some(Grammar::JsonSchema(schema.clone()))),
            (json!({"guided_regex": "a+"}), Some(Grammar::Regex("a+".into()))),
            (json!({"guided_choice": ["a", "b"]}), Some(Grammar::Choice(vec!["a".into(), "b".into()]))),
            (json!({"guided_grammar": "start: \"a\""}), Some(Grammar::Lark("start: \"a\"".into()))),
            (json!({"structured_outputs": {"json": schema}}), Some(Grammar::JsonSchema(schema))),
            (
                json!({"structured_outputs": {"json_object": true, "disable_any_whitespace": true, "regex": null,
                    "whitespace_pattern": null, "disable_additional_properties": false}}),
                Some(Grammar::JsonObject),
            ),
        ];
        for (fields, expected) in cases {
            assert_eq!(grammar(fields.clone()), Ok(expected), "{fields}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
            (json!({"guided_regex": 5}), "guided_regex"),
            (json!({"guided_choice": "a"}), "guided_choice"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": "a", "structured_outputs": {"regex": "b"}}), "structured_outputs.regex"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (json!({"structured_outputs": {"whitespace_pattern": " "}}), "structured_outputs.whitespace_pattern"),
            (
                json!({"structured_outputs": {"disable_additional_properties": true}}),
                "structured_outputs.disable_additional_properties",
            ),
            (json!({"structured_outputs": {"jsn": {}}}), "structured_outputs.jsn"),
            (json!({"structured_outputs": {"jsn": null}}), "structured_outputs.jsn"),
            (json!({"structured_outputs": "json"}), "structured_outputs"),
            (json!({"structured_outputs": [1]}), "structured_outputs"),
        ];
        for (fields, name) in cases {
            let error = grammar(fields.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{fields}");
        }
    }
}
