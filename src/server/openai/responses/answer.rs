//! A response and its items.
//!
//! Knows no requests but the fields that a response repeats.

use serde_json::{Map, Value, json};

use crate::llm::{GeneratedToken, Llm, Message};
use crate::request::{FinishReason, SamplingParams, Tenant};
use crate::server::body::Object;
use crate::server::openai::logprobs;
use crate::server::parts::Parts;
use crate::server::run::Usage;
use crate::server::state::{App, unix_now_s};

use super::request::Body;

/// What an answer needs besides what is generated.
pub(super) struct Form {
    pub(super) app: App,
    pub(super) id: String,
    /// The fields of the response that do not change while it is made.
    fixed: Map<String, Value>,
    pub(super) parts: Parts,
    /// Whose tokens have log-probabilities that are to be told.
    tells_logprobs_of: Option<Llm>,
    stored: Option<ToStore>,
}

/// What is stored with a response, and whose it is.
pub(super) struct ToStore {
    pub(super) tenant: Tenant,
    /// The items that were asked with.
    pub(super) input: Vec<Value>,
    /// What was said before it.
    pub(super) conversation: Vec<Message>,
}

impl Form {
    /// `sampling` is what the answer is drawn by.
    pub(super) fn new(
        app: &App,
        llm: &Llm,
        body: &Body,
        sampling: &SamplingParams,
        parts: Parts,
        stored: Option<ToStore>,
    ) -> Self {
        let id = format!("resp_{}", app.unique_id());
        let reasoning = body.reasoning.as_ref().map(|Object(reasoning)| reasoning);
        let effort = reasoning.and_then(|reasoning| reasoning.effort.as_deref());
        let summary = reasoning.and_then(|reasoning| reasoning.summary.as_deref());
        let fixed = json!({
            "id": id,
            "object": "response",
            "created_at": unix_now_s(),
            "model": body.model,
            "instructions": body.instructions,
            "previous_response_id": body.previous_response_id,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "tools": body.tools.iter().flatten().map(whole_tool).collect::<Vec<_>>(),
            "tool_choice": body.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "parallel_tool_calls": body.parallel_tool_calls.unwrap_or(true),
            "reasoning": { "effort": effort, "summary": summary },
            "text": { "format": body.format().cloned().unwrap_or_else(|| json!({ "type": "text" })) },
            "metadata": body.metadata.clone().unwrap_or_else(|| json!({})),
            "store": stored.is_some(),
            "background": false,
            "service_tier": "default",
            "truncation": "disabled",
            "top_logprobs": body.top_logprobs.unwrap_or(0),
            "prompt_cache_key": body.prompt_cache_key,
            "safety_identifier": null,
            "user": null,
        });
        let fixed = if let Value::Object(fixed) = fixed { fixed } else { Map::new() };
        let tells_logprobs_of = sampling.logprobs.is_some().then(|| llm.clone());
        Self { app: app.clone(), id, fixed, parts, tells_logprobs_of, stored }
    }

    /// The response as it is while nothing has ended.
    pub(super) fn in_progress(&self) -> Value {
        self.response("in_progress", Vec::new(), None, None)
    }

    fn response(&self, status: &str, output: Vec<Value>, usage: Option<&Usage>, error: Option<Value>) -> Value {
        let mut response = self.fixed.clone();
        let completed_at = (status == "completed").then(unix_now_s);
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        let usage = usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": { "cached_tokens": usage.prompt_tokens_details.cached_tokens },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": { "reasoning_tokens": self.parts.reasoning_tokens() },
                "total_tokens": usage.total_tokens,
            })
        });
        for (name, value) in [
            ("status", status.into()),
            ("completed_at", completed_at.into()),
            ("error", error.unwrap_or_default()),
            ("incomplete_details", incomplete.unwrap_or_default()),
            ("output", output.into()),
            ("usage", usage.unwrap_or_default()),
        ] {
            response.insert(name.into(), value);
        }
        Value::Object(response)
    }

    /// The response that has failed.
    pub(super) fn failed(&self, output: Vec<Value>, message: &str) -> Value {
        self.response("failed", output, None, Some(json!({ "code": "server_error", "message": message })))
    }

    /// The response at its end, which is stored where it is to be.
    pub(super) fn finished(&mut self, output: Vec<Value>, reason: Option<FinishReason>, usage: &Usage) -> Value {
        let status = if reason == Some(FinishReason::Length) { "incomplete" } else { "completed" };
        let said = said(&output);
        let response = self.response(status, output, Some(usage), None);
        if let Some(ToStore { tenant, input, mut conversation }) = self.stored.take() {
            conversation.extend(said);
            self.app.responses.insert(tenant, &self.id, response.clone(), input, conversation);
        }
        response
    }

    /// The log-probabilities of `tokens`, where they are to be told.
    pub(super) fn logprobs(&self, tokens: &[GeneratedToken]) -> Vec<Value> {
        let all = self.tells_logprobs_of.iter().flat_map(|llm| logprobs::each(llm, tokens));
        // Our own types: none fails.
        all.filter_map(|one| serde_json::to_value(one).ok()).collect()
    }

    /// An item of text that begins, with an id of its own.
    pub(super) fn item(&self, item: Item) -> Value {
        let id = format!("{}_{}", item.id_prefix(), self.app.unique_id());
        match item {
            Item::Reasoning => {
                json!({ "type": "reasoning", "id": id, "summary": [], "content": [], "status": "in_progress" })
            }
            Item::Message => {
                json!({ "type": "message", "id": id, "role": "assistant", "status": "in_progress", "content": [] })
            }
        }
    }

    /// A call that begins, with ids of its own.
    pub(super) fn call(&self, name: &str) -> Value {
        json!({
            "type": "function_call",
            "id": format!("fc_{}", self.app.unique_id()),
            "call_id": format!("call_{}", &self.app.unique_id()[16..]),
            "name": name,
            "arguments": "",
            "status": "in_progress",
        })
    }
}

/// A tool with all the fields that its form has.
fn whole_tool(tool: &Value) -> Value {
    let mut tool = tool.clone();
    if let Value::Object(fields) = &mut tool
        && fields.get("type").and_then(Value::as_str) == Some("function")
    {
        for name in ["description", "parameters", "strict"] {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    tool
}

/// An item that is made of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Reasoning,
    Message,
}

impl Item {
    fn id_prefix(self) -> &'static str {
        match self {
            Self::Reasoning => "rs",
            Self::Message => "msg",
        }
    }

    /// The one part of its content; thoughts have no `logprobs`.
    pub(super) fn part(self, text: &str, logprobs: &[Value]) -> Value {
        match self {
            Self::Reasoning => json!({ "type": "reasoning_text", "text": text }),
            Self::Message => json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs }),
        }
    }
}

/// The turn that these items are, as a later request would bring it.
fn said(output: &[Value]) -> Vec<Message> {
    // What this server wrote, it reads.
    super::items::translate(Value::Array(output.to_vec())).unwrap_or_default()
}
