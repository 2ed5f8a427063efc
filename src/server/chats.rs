//! What the chats of all APIs have in common: tools, and whether the model thinks first.
//!
//! Knows no API's form.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::error::ApiError;

/// The definitions of tools, in OpenAI's form, as a template reads them; `None` where there are none.
///
/// # Errors
/// 400, naming the tool that is no function, has no name, or whose parameters are no schema of an object.
pub(super) fn functions(tools: Option<Vec<Value>>) -> Result<Option<Value>, ApiError> {
    let tools = tools.unwrap_or_default();
    for (index, tool) in tools.iter().enumerate() {
        let kind = tool.get("type").and_then(Value::as_str);
        if kind != Some("function") {
            let why = "`function` is the one kind that is taken";
            return Err(ApiError::unsupported(format!("tools[{index}].type"), why));
        }
        let name = tool.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Err(ApiError::invalid(format!("tools[{index}].function"), "an object with a `name` is needed"));
        };
        if let Some(found) = no_object(&tool["function"]["parameters"]) {
            let why =
                format!("the parameters of `{name}` are to be a JSON schema of type `object`, and this is {found}");
            return Err(ApiError::invalid(format!("tools[{index}].function.parameters"), why));
        }
    }
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
}

/// What `parameters` are, where no call's arguments could be an object of theirs; a schema that leaves the type open is one
/// of an object.
fn no_object(parameters: &Value) -> Option<String> {
    let schema = match parameters {
        Value::Null => return None,
        Value::Object(schema) => schema,
        other => return Some(format!("`{other:.100}`")),
    };
    let is_object = match schema.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
    };
    (!is_object).then(|| format!("one of type {:.100}", schema["type"].to_string()))
}

/// Stop strings: one, or a list of them; `name` is what the field is called.
///
/// # Errors
/// 400: what is there is no string.
pub(super) fn stop_strings(stop: Option<&Value>, name: &str) -> Result<Vec<String>, ApiError> {
    let text = |value: &Value| {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| ApiError::invalid(name, format!("{value} is no string; a string or a list of strings is")))
    };
    match stop {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(one) => Ok(vec![text(one)?]),
    }
}

/// Which tools are to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// The model decides.
    Auto,
    /// None; the model does not hear of them.
    None,
    /// At least one of them.
    Required,
    /// This one.
    Named(String),
}

impl ToolChoice {
    /// From OpenAI's forms, of chats and of responses.
    ///
    /// # Errors
    /// 400: it is none of those.
    pub(super) fn read(choice: &Value) -> Result<Self, ApiError> {
        let named = || choice.get("function").unwrap_or(choice).get("name").and_then(Value::as_str);
        match (choice.as_str(), choice.get("type").and_then(Value::as_str)) {
            (Some("auto"), _) => Ok(Self::Auto),
            (Some("none"), _) => Ok(Self::None),
            (Some("required" | "any"), _) => Ok(Self::Required),
            (None, Some("function")) if named().is_some() => Ok(Self::Named(named().unwrap_or_default().to_owned())),
            (None, Some("allowed_tools")) => match allowed(choice).get("mode").and_then(Value::as_str) {
                Some("auto") | None => Ok(Self::Auto),
                Some("required") => Ok(Self::Required),
                Some(other) => {
                    let problem = format!("`{other}` is not known; `auto` and `required` are");
                    Err(ApiError::invalid("tool_choice.mode", problem))
                }
            },
            _ if choice.is_null() => Ok(Self::Auto),
            _ => Err(ApiError::invalid("tool_choice", format!("{choice} is not known"))),
        }
    }

    /// The tools of which one must be called; `None` where the model decides.
    pub(super) fn forced(&self, tools: &[Value]) -> Option<Vec<Value>> {
        match self {
            Self::Auto | Self::None => None,
            Self::Required => Some(tools.to_vec()),
            Self::Named(name) => {
                Some(tools.iter().filter(|tool| tool["function"]["name"] == name.as_str()).cloned().collect())
            }
        }
    }
}

/// The fields of a choice of allowed tools, which a chat has one level deeper than a response.
fn allowed(choice: &Value) -> &Value {
    choice.get("allowed_tools").unwrap_or(choice)
}

/// Those of `tools` that `choice` allows: all, unless it lists some.
///
/// # Errors
/// 400: a function that is listed is not there.
pub(super) fn only_allowed(tools: Option<Value>, choice: Option<&Value>) -> Result<Option<Value>, ApiError> {
    let Some(choice) = choice.filter(|choice| choice["type"] == "allowed_tools") else { return Ok(tools) };
    let Some(listed) = allowed(choice)["tools"].as_array() else {
        return Err(ApiError::invalid("tool_choice.tools", "a list of tools is needed"));
    };
    let mut tools = tools.and_then(|tools| if let Value::Array(tools) = tools { Some(tools) } else { None });
    let called = |tool: &Value| tool["function"]["name"].as_str().map(str::to_owned);
    let there: HashSet<String> = tools.iter().flatten().filter_map(called).collect();
    let mut names = HashSet::new();
    // What is no function is not shown to the model in any case.
    for tool in listed.iter().filter(|tool| tool["type"] == "function") {
        let name = &tool.get("function").unwrap_or(tool)["name"];
        let known = name.as_str().filter(|name| there.contains(*name));
        names.insert(known.ok_or_else(|| ApiError::invalid("tool_choice", format!("no tool is called {name}")))?);
    }
    if let Some(tools) = &mut tools {
        tools.retain(|tool| tool["function"]["name"].as_str().is_some_and(|name| names.contains(name)));
    }
    Ok(tools.filter(|tools| !tools.is_empty()).map(Value::Array))
}

/// Tells a template whether the model is to think first, unless it is told already. Qwen's templates and DeepSeek's
/// call it differently.
pub(super) fn set_thinking(variables: &mut Map<String, Value>, thinks: bool) {
    let told = ["enable_thinking", "thinking"].iter().find_map(|name| variables.get(*name).and_then(Value::as_bool));
    for name in ["enable_thinking", "thinking"] {
        variables.entry(name).or_insert(Value::Bool(told.unwrap_or(thinks)));
    }
}

/// Tells a template how much the model is to think, where the request says so, unless it is told already. That it is not
/// to think at all, [`set_thinking`] tells.
pub(super) fn set_effort(variables: &mut Map<String, Value>, effort: Option<&str>) {
    if let Some(effort) = effort.filter(|effort| *effort != "none") {
        variables.entry("reasoning_effort").or_insert_with(|| effort.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_allowed_tools_are_left() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let tools = Some(json!([tool("f"), tool("g"), tool("h")]));
        let left = |choice: Value| only_allowed(tools.clone(), Some(&choice)).map_err(|error| error.param);
        let of_chats =
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("h"), tool("f")]}});
        assert_eq!(left(of_chats.clone()), Ok(Some(json!([tool("f"), tool("h")]))));
        assert_eq!(ToolChoice::read(&of_chats), Ok(ToolChoice::Auto));
        let listed = json!([{"type": "function", "name": "g"}, {"type": "mcp", "server_label": "s"}]);
        let of_responses = json!({"type": "allowed_tools", "mode": "required", "tools": listed});
        assert_eq!(left(of_responses.clone()), Ok(Some(json!([tool("g")]))));
        assert_eq!(ToolChoice::read(&of_responses), Ok(ToolChoice::Required));
        assert_eq!(left(json!({"type": "allowed_tools", "mode": "auto", "tools": []})), Ok(None));
        assert_eq!(left(json!("auto")), Ok(tools.clone()));
        let param = |name: &str| Err(Some(name.to_owned()));
        assert_eq!(left(json!({"type": "allowed_tools", "tools": [tool("x")]})), param("tool_choice"));
        assert_eq!(left(json!({"type": "allowed_tools", "mode": "auto"})), param("tool_choice.tools"));
        let mode = ToolChoice::read(&json!({"type": "allowed_tools", "mode": "x"})).map_err(|error| error.param);
        assert_eq!(mode, Err(Some("tool_choice.mode".into())));
    }

    #[test]
    fn parameters_are_of_an_object_or_the_tool_is_named() {
        let tools = |parameters: Value| {
            let function =
                |parameters| json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
            functions(Some(vec![function(json!({"type": "object"})), function(parameters)]))
        };
        for fine in [
            json!(null),
            json!({}),
            json!({"type": "object", "properties": {}}),
            json!({"type": ["object", "null"]}),
            json!({"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}}),
        ] {
            assert!(tools(fine.clone()).is_ok(), "{fine}");
        }
        for (wrong, found) in [
            (json!({"type": "string"}), "one of type \"string\""),
            (json!({"type": ["string", "null"]}), "one of type [\"string\",\"null\"]"),
            (json!({"type": 3}), "one of type 3"),
            (json!(true), "`true`"),
            (json!("{}"), "`\"{}\"`"),
            (json!([{"type": "object"}]), "`[{\"type\":\"object\"}]`"),
        ] {
            let error = tools(wrong.clone()).expect_err("no object");
            assert_eq!(error.param.as_deref(), Some("tools[1].function.parameters"), "{wrong}");
            let end = format!("the parameters of `f` are to be a JSON schema of type `object`, and this is {found}");
            assert!(error.message.ends_with(&end), "{}", error.message);
        }
    }

    #[test]
    fn how_much_to_think_is_told_unless_it_is_told_already() {
        let effort = |variables: Value, effort| {
            let mut variables = variables.as_object().expect("an object").clone();
            set_effort(&mut variables, effort);
            Value::Object(variables)
        };
        assert_eq!(effort(json!({}), Some("low")), json!({"reasoning_effort": "low"}));
        assert_eq!(effort(json!({"reasoning_effort": "high"}), Some("low")), json!({"reasoning_effort": "high"}));
        assert_eq!(effort(json!({}), Some("none")), json!({}));
        assert_eq!(effort(json!({}), None), json!({}));
    }

    #[test]
    fn what_is_told_under_one_name_holds_for_both() {
        let thinking = |variables: Value, thinks| {
            let mut variables = variables.as_object().expect("an object").clone();
            set_thinking(&mut variables, thinks);
            Value::Object(variables)
        };
        assert_eq!(thinking(json!({}), false), json!({"enable_thinking": false, "thinking": false}));
        assert_eq!(thinking(json!({"thinking": true}), false), json!({"enable_thinking": true, "thinking": true}));
    }
}
