//! Calls of tools in OpenAI's form.
//!
//! Knows no requests.

use serde::Serialize;

use crate::llm::ToolCall;
use crate::request::FinishReason;
use crate::server::parts::Parts;
use crate::server::state::App;

/// One call, whole.
#[derive(Serialize)]
pub(super) struct Call {
    /// Its place among the answer's calls; told in streams alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl Call {
    pub(super) fn new(app: &App, index: Option<usize>, call: ToolCall) -> Self {
        let ToolCall { name, arguments } = call;
        let id = format!("call_{}", &app.unique_id()[16..]);
        Self { index, id, r#type: "function", function: Function { name, arguments } }
    }
}

/// Why a choice ended, as OpenAI says it: for a call, unless it was cut off.
pub(super) fn finish_reason(parts: &Parts, reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop if parts.calls() > 0 => "tool_calls",
        other => other.as_str(),
    }
}
