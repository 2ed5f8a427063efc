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
    /// A call of a tool, whose input grows.
    Call,
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

    fn delta(&self, delta: Value, out: &mut Out) {
        Self::event("content_block_delta", json!({ "index": self.closed, "delta": delta }), out);
    }

    /// Closes the open block, if there is one.
    fn close(&mut self, out: &mut Out) {
        let Some(block) = self.open.take() else { return };
        if block == Block::Thinking {
            // Clients send thoughts back with their signature; ours need none to be believed.
            self.delta(json!({ "type": "signature_delta", "signature": "" }), out);
        }
        Self::event("content_block_stop", json!({ "index": self.closed }), out);
        self.closed += 1;
    }

    /// Opens a block of that kind, which holds nothing yet; another is closed before.
    fn open(&mut self, block: Block, empty: Value, out: &mut Out) {
        self.close(out);
        Self::event("content_block_start", json!({ "index": self.closed, "content_block": empty }), out);
        self.open = Some(block);
    }

    fn think(&mut self, text: &str, out: &mut Out) {
        if self.open != Some(Block::Thinking) {
            self.open(Block::Thinking, json!({ "type": "thinking", "thinking": "", "signature": "" }), out);
        }
        self.delta(json!({ "type": "thinking_delta", "thinking": text }), out);
    }

    fn say(&mut self, text: &str, out: &mut Out) {
        if self.open != Some(Block::Text) {
            self.open(Block::Text, json!({ "type": "text", "text": "", "citations": null }), out);
        }
        self.delta(json!({ "type": "text_delta", "text": text }), out);
    }

    fn part(&mut self, part: Part, out: &mut Out) {
        let input = |piece: &str| json!({ "type": "input_json_delta", "partial_json": piece });
        match part {
            Part::Reasoning(text) => self.think(&text, out),
            Part::Text(text) => self.say(&text, out),
            Part::Call(ToolCall { name, arguments }) => {
                self.open(Block::Call, self.form.tool_use(&name, json!({})), out);
                self.delta(input(&arguments), out);
                self.close(out);
            }
            Part::CallBegins(name) => self.open(Block::Call, self.form.tool_use(&name, json!({})), out),
            Part::Arguments(piece) => self.delta(input(&piece), out),
            Part::CallEnds => self.close(out),
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
        self.close(out);
        let stop_reason = self.form.stop_reason(&self.end);
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": self.end.stop });
        Self::event("message_delta", json!({ "delta": delta, "usage": self.form.usage(usage) }), out);
        Self::event("message_stop", json!({}), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        out.event("error", &Dialect::Anthropic.error(error));
    }
}
