//! What the chats of all APIs have in common: tools, and whether the model thinks first.
//!
//! Knows no API's form.

use serde_json::{Map, Value};

use super::error::ApiError;

/// The definitions of tools, in OpenAI's form, as a template reads them; `None` where there are none.
///
/// # Errors
/// 400, naming the tool that is no function or has no name.
pub(super) fn functions(tools: Option<Vec<Value>>) -> Result<Option<Value>, ApiError> {
    let tools = tools.unwrap_or_default();
    for (index, tool) in tools.iter().enumerate() {
        let kind = tool.get("type").and_then(Value::as_str);
        if kind != Some("function") {
            let why = "`function` is the one kind that is taken";
            return Err(ApiError::unsupported(format!("tools[{index}].type"), why));
        }
        if !tool.get("function").and_then(|function| function.get("name")).is_some_and(Value::is_string) {
            return Err(ApiError::invalid(format!("tools[{index}].function"), "an object with a `name` is needed"));
        }
    }
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
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

/// Tells a template whether the model is to think first, unless it is told already. Qwen's templates and DeepSeek's
/// call it differently.
pub(super) fn set_thinking(variables: &mut Map<String, Value>, thinks: bool) {
    let told = ["enable_thinking", "thinking"].iter().find_map(|name| variables.get(*name).and_then(Value::as_bool));
    for name in ["enable_thinking", "thinking"] {
        variables.entry(name).or_insert(Value::Bool(told.unwrap_or(thinks)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
