//! Keywords of a schema that ask for nothing, and which the parser would refuse by name: they are left out.
//!
//! Knows no parser. Source: JSON Schema 2020-12, Core and Validation.

use serde_json::{Map, Value};

/// Keywords whose value is a schema, or, in older drafts, a list of them.
const SCHEMAS: [&str; 15] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords whose value has a schema for each of its names.
const MAPS: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// `schema` without what no value fails to meet, at every depth.
pub(super) fn without_no_ops(mut schema: Value) -> Value {
    strip(&mut schema);
    schema
}

fn strip(schema: &mut Value) {
    let Some(keywords) = schema.as_object_mut() else { return };
    for (keyword, value) in keywords.iter_mut() {
        match value {
            Value::Object(map) if MAPS.contains(&keyword.as_str()) => map.values_mut().for_each(strip),
            Value::Array(schemas) if SCHEMAS.contains(&keyword.as_str()) => schemas.iter_mut().for_each(strip),
            schema if SCHEMAS.contains(&keyword.as_str()) => strip(schema),
            // What is no schema is not looked into: an `enum` may hold anything.
            _ => {}
        }
    }
    let is_idle = |(name, value): &(&String, &Value)| is_no_op(name, value, keywords);
    let idle: Vec<String> = keywords.iter().filter(is_idle).map(|(name, _)| name.clone()).collect();
    for name in idle {
        keywords.shift_remove(&name);
    }
}

/// Whether a keyword asks for nothing beside the others of its schema.
fn is_no_op(name: &str, value: &Value, beside: &Map<String, Value>) -> bool {
    let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    let takes_all = |value: &Value| *value == Value::Bool(true) || is_empty(value);
    let all_of_map = |test: fn(&Value) -> bool| value.as_object().is_some_and(|map| map.values().all(test));
    match name {
        "uniqueItems" => *value == Value::Bool(false),
        "unevaluatedItems" | "unevaluatedProperties" => takes_all(value),
        // A name is a string in any case.
        "propertyNames" => takes_all(value) || *value == serde_json::json!({ "type": "string" }),
        "not" => *value == Value::Bool(false),
        // Any number of items may be what none has to be.
        "contains" => beside.get("minContains").is_some_and(|least| least == 0) && !beside.contains_key("maxContains"),
        "minContains" => !beside.contains_key("contains") || *value == 0 && !beside.contains_key("maxContains"),
        "maxContains" => !beside.contains_key("contains"),
        "if" => !beside.contains_key("then") && !beside.contains_key("else"),
        "then" | "else" => !beside.contains_key("if"),
        "dependentRequired" => all_of_map(|names| names.as_array().is_some_and(Vec::is_empty)),
        "dependentSchemas" => all_of_map(|schema| *schema == Value::Bool(true)) || is_empty(value),
        "dependencies" => is_empty(value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_asks_for_nothing_is_left_out() {
        let idle = [
            json!({"uniqueItems": false}),
            json!({"unevaluatedProperties": true, "unevaluatedItems": {}}),
            json!({"propertyNames": {"type": "string"}}),
            json!({"not": false}),
            json!({"contains": {"type": "integer"}, "minContains": 0}),
            json!({"minContains": 2, "maxContains": 3}),
            json!({"if": {"type": "integer"}}),
            json!({"then": {"type": "integer"}, "else": false}),
            json!({"dependentRequired": {"a": []}, "dependentSchemas": {"a": true}, "dependencies": {}}),
        ];
        for schema in idle {
            assert_eq!(without_no_ops(schema.clone()), json!({}), "{schema}");
        }
    }

    #[test]
    fn what_asks_for_something_stays() {
        let asking = [
            json!({"uniqueItems": true}),
            json!({"unevaluatedProperties": false, "unevaluatedItems": {"type": "integer"}}),
            json!({"propertyNames": {"type": "string", "maxLength": 3}}),
            json!({"not": true}),
            json!({"contains": true}),
            json!({"contains": true, "minContains": 0, "maxContains": 2}),
            json!({"contains": true, "minContains": 1}),
            json!({"if": {"type": "integer"}, "then": {"minimum": 1}}),
            json!({"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": false}, "dependencies": {"a": []}}),
        ];
        for schema in asking {
            assert_eq!(without_no_ops(schema.clone()), schema);
        }
    }

    #[test]
    fn schemas_are_looked_into_and_values_and_names_are_not() {
        let idle = json!({"uniqueItems": false, "type": "array"});
        let bare = json!({"type": "array"});
        let nested = |schema: &Value| {
            json!({
                "properties": {"uniqueItems": schema, "not": false}, "$defs": {"if": schema}, "items": [schema],
                "anyOf": [schema, {"additionalProperties": schema}], "enum": [{"uniqueItems": false}],
                "default": {"not": false}, "required": ["uniqueItems"]
            })
        };
        assert_eq!(without_no_ops(nested(&idle)), nested(&bare));
    }
}
