//! The parts of a chat's answer in OpenAI's form: content, thoughts as vLLM names them, and calls of tools.
//!
//! Knows no requests.

use serde::Serialize;

use crate::llm::{AnswerParser, Part, ToolCall};
use crate::request::FinishReason;
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

/// One choice of an answer, taken apart as it comes.
pub(super) struct Parts {
    /// `None`: it is nothing but text.
    parser: Option<AnswerParser>,
    /// Calls so far.
    calls: usize,
    /// Further calls are left out.
    one_call: bool,
}

impl Parts {
    pub(super) fn new(parser: Option<AnswerParser>, one_call: bool) -> Self {
        Self { parser, calls: 0, one_call }
    }

    /// The parts that `text` completes.
    pub(super) fn push(&mut self, text: String) -> Vec<Part> {
        let parts = match &mut self.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Text(text)],
        };
        self.count(parts)
    }

    /// What was held back, once the choice has ended.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let parts = self.parser.take().map_or_else(Vec::new, AnswerParser::finish);
        self.count(parts)
    }

    fn count(&mut self, mut parts: Vec<Part>) -> Vec<Part> {
        parts.retain(|part| {
            let is_call = matches!(part, Part::Call(_));
            let keep = !is_call || !self.one_call || self.calls == 0;
            self.calls += usize::from(is_call && keep);
            keep
        });
        parts
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    /// Why the choice ended, as OpenAI says it: for a call, unless it was cut off.
    pub(super) fn finish_reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.calls > 0 => "tool_calls",
            other => other.as_str(),
        }
    }
}
