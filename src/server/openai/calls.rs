//! Calls of tools in OpenAI's form.
//!
//! Knows no requests.

use serde::Serialize;

use crate::llm::ToolCall;
use crate::request::FinishReason;
use crate::server::parts::Parts;
use crate::server::state::App;

/// One call, whole or a piece of it.
#[derive(Serialize)]
pub(super) struct Call {
    /// Its place among the answer's calls; told in streams alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// With the call's beginning, as its type and the name of the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Call {
    /// A call, or its beginning with as much of its arguments as is there.
    pub(super) fn new(app: &App, index: Option<usize>, call: ToolCall) -> Self {
        let ToolCall { name, arguments } = call;
        let id = format!("call_{}", &app.unique_id()[16..]);
        let function = Function { name: Some(name), arguments };
        Self { index, id: Some(id), r#type: Some("function"), function }
    }

    /// More of the arguments of the call that has that place.
    pub(super) fn more(index: usize, arguments: String) -> Self {
        Self { index: Some(index), id: None, r#type: None, function: Function { name: None, arguments } }
    }
}

/// Why a choice ended, as OpenAI says it: for a call, unless it was cut off.
pub(super) fn finish_reason(parts: &Parts, reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop if parts.calls() > 0 => "tool_calls",
        other => other.as_str(),
    }
}
