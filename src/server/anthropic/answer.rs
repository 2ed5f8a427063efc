//! The answer to `/v1/messages`: whole, and as the sequence of events of a stream.
//!
//! Knows no requests.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::llm::{Part, ToolCall};
use crate::request::FinishReason;
use crate::server::dialect::Dialect;
use crate::server::error::ApiError;
use crate::server::parts::Parts;
use crate::server::run::{RunEvent, Usage, Whole};
use crate::server::state::App;
use crate::server::stream::{Chunks, Framing, Out};

/// What an answer needs besides what is generated.
pub(super) struct Form {
    pub(super) app: App,
    /// The model's name as the request had it.
    pub(super) model: String,
    pub(super) parts: Parts,
}

/// How an answer ended.
#[derive(Clone, Debug, Default)]
struct End {
    reason: Option<FinishReason>,
    /// The stop sequence that was found.
    stop: Option<String>,
}

impl Form {
    /// What was read from the cache is not counted among the input here.
    fn usage(&self, usage: &Usage) -> Value {
        let cached = usage.prompt_tokens_details.cached_tokens;
        json!({
            "input_tokens": usage.prompt_tokens - cached.min(usage.prompt_tokens),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens,
            "cache_creation": null,
            "inference_geo": null,
            "output_tokens_details": { "thinking_tokens": self.parts.reasoning_tokens() },
            "server_tool_use": null,
            "service_tier": "standard",
        })
    }

    fn message(&self, content: Vec<Value>, end: Option<&End>, usage: &Usage) -> Value {
        json!({
            "id": format!("msg_{}", self.app.unique_id()),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": end.map(|end| self.stop_reason(end)),
            "stop_sequence": end.and_then(|end| end.stop.as_deref()),
            "stop_details": null,
            "container": null,
            "usage": self.usage(usage),
        })
    }

    fn stop_reason(&self, end: &End) -> &'static str {
        match end.reason {
            Some(FinishReason::Length) => "max_tokens",
            _ if end.stop.is_some() => "stop_sequence",
            _ if self.parts.calls() > 0 => "tool_use",
            _ => "end_turn",
        }
    }

    fn tool_use(&self, name: &str, input: Value) -> Value {
        let id = format!("toolu_{}", &self.app.unique_id()[16..]);
        json!({ "type": "tool_use", "id": id, "name": name, "input": input, "caller": { "type": "direct" } })
    }

    /// The whole answer.
    pub(super) fn whole(&self, mut all: Whole) -> Response {
        let choice = all.choices.pop().unwrap_or_default();
        let parts = choice.parts;
        let mut content = Vec::new();
        if !parts.reasoning.is_empty() {
            content.push(json!({ "type": "thinking", "thinking": parts.reasoning, "signature": "" }));
        }
        if !parts.text.is_empty() {
            content.push(json!({ "type": "text", "text": parts.text, "citations": null }));
        }
        for ToolCall { name, arguments } in parts.calls {
            content.push(self.tool_use(&name, serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}))));
        }
        let end = End { reason: choice.reason, stop: choice.stop };
        Json(self.message(content, Some(&end), &all.usage)).into_response()
    }
}

/// What the block that is open holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
}

/// The answer as events: a message begins, blocks open, grow and close, and the message ends.
pub(super) struct Events {
    form: Form,
    /// Blocks that have closed.
    closed: usize,
    open: Option<Block>,
    end: End,
}

impl Events {
    pub(super) fn new(form: Form) -> Self {
        Self { form, closed: 0, open: None, end: End::default() }
    }

    fn event(kind: &str, mut fields: Value, out: &mut Out) {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("type".into(), kind.into());
        }
        out.event(kind, &fields);
    }

    fn start(&self, block: Value, out: &mut Out) {
        Self::event("content_block_start", json!({ "index": self.closed, "content_block": block }), out);
    }

    fn delta(&self, delta: Value, out: &mut Out) {
        Self::event("content_block_delta", json!({ "index": self.closed, "delta": delta }), out);
    }

    fn stop(&mut self, out: &mut Out) {
        Self::event("content_block_stop", json!({ "index": self.closed }), out);
        self.closed += 1;
    }

    /// Closes the open block, unless it is of this kind.
    fn close_other(&mut self, block: Option<Block>, out: &mut Out) {
        if self.open.is_none() || self.open == block {
            return;
        }
        if self.open == Some(Block::Thinking) {
            // Clients send thoughts back with their signature; ours need none to be believed.
            self.delta(json!({ "type": "signature_delta", "signature": "" }), out);
        }
        self.open = None;
        self.stop(out);
    }

    fn grow(&mut self, block: Block, text: &str, out: &mut Out) {
        self.close_other(Some(block), out);
        let (empty, delta) = match block {
            Block::Thinking => (
                json!({ "type": "thinking", "thinking": "", "signature": "" }),
                json!({ "type": "thinking_delta", "thinking": text }),
            ),
            Block::Text => (
                json!({ "type": "text", "text": "", "citations": null }),
                json!({ "type": "text_delta", "text": text }),
            ),
        };
        if self.open.is_none() {
            self.start(empty, out);
            self.open = Some(block);
        }
        self.delta(delta, out);
    }

    fn part(&mut self, part: Part, out: &mut Out) {
        match part {
            Part::Reasoning(text) => self.grow(Block::Thinking, &text, out),
            Part::Text(text) => self.grow(Block::Text, &text, out),
            Part::Call(ToolCall { name, arguments }) => {
                self.close_other(None, out);
                self.start(self.form.tool_use(&name, json!({})), out);
                self.delta(json!({ "type": "input_json_delta", "partial_json": arguments }), out);
                self.stop(out);
            }
        }
    }
}

impl Chunks for Events {
    const FRAMING: Framing = Framing::Events;

    fn waiting(out: &mut Out) {
        Self::event("ping", json!({}), out);
    }

    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut Out) {
        match event {
            RunEvent::Started { .. } => {
                let message = self.form.message(Vec::new(), None, usage);
                Self::event("message_start", json!({ "message": message }), out);
            }
            RunEvent::Delta { text, tokens, .. } => {
                for part in self.form.parts.push(text, tokens.len()) {
                    self.part(part, out);
                }
            }
            RunEvent::Finished { reason, stop, .. } => {
                for part in self.form.parts.finish() {
                    self.part(part, out);
                }
                self.end = End { reason: Some(reason), stop };
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        self.close_other(None, out);
        let stop_reason = self.form.stop_reason(&self.end);
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": self.end.stop });
        Self::event("message_delta", json!({ "delta": delta, "usage": self.form.usage(usage) }), out);
        Self::event("message_stop", json!({}), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        out.event("error", &Dialect::Anthropic.error(error));
    }
}
