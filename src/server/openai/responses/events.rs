//! A response as the sequence of events of a stream: items are added, grow and are done, and the response ends. The whole
//! response is what those come to.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::llm::{Part, ToolCall};
use crate::request::FinishReason;
use crate::server::error::ApiError;
use crate::server::run::{Run, RunEvent, Usage};
use crate::server::stream::{Chunks, Framing, Out};

use super::answer::{Form, Item};

/// The item of text that grows.
struct Open {
    kind: Item,
    item: Value,
    text: String,
    logprobs: Vec<Value>,
}

/// The call that grows.
struct OpenCall {
    item: Value,
    arguments: String,
}

pub(super) struct Events {
    form: Form,
    sequence_number: u64,
    done: Vec<Value>,
    /// There is one open item at most.
    open: Option<Open>,
    open_call: Option<OpenCall>,
    /// Log-probabilities of tokens whose text has not come yet.
    ahead: Vec<Value>,
    reason: Option<FinishReason>,
}

impl Item {
    /// The name of what is told of its text.
    fn event(self, what: &str) -> String {
        match self {
            Self::Reasoning => format!("response.reasoning_text.{what}"),
            Self::Message => format!("response.output_text.{what}"),
        }
    }
}

impl Events {
    pub(super) fn new(form: Form) -> Self {
        let (open, open_call, reason) = (None, None, None);
        Self { form, sequence_number: 0, done: Vec::new(), open, open_call, ahead: Vec::new(), reason }
    }

    /// The whole answer to `run`.
    ///
    /// # Errors
    /// The first error; what was generated until then is lost.
    pub(super) async fn whole(mut self, mut run: Run) -> Result<Response, ApiError> {
        // Nobody reads the events.
        let unread = Out::default;
        while let Some(event) = run.next().await {
            self.chunks(event?, &run.usage(), &mut unread());
        }
        Ok(Json(self.finish(&run.usage(), &mut unread())).into_response())
    }

    fn tell(&mut self, kind: &str, mut fields: Value, out: &mut Out) {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("type".into(), kind.into());
            fields.insert("sequence_number".into(), self.sequence_number.into());
        }
        self.sequence_number += 1;
        out.event(kind, &fields);
    }

    /// Tells something of the content of the item `id`, which is the next to be done.
    fn tell_content(&mut self, kind: &str, id: &Value, mut fields: Value, out: &mut Out) {
        fields["item_id"] = id.clone();
        fields["output_index"] = self.done.len().into();
        fields["content_index"] = 0.into();
        self.tell(kind, fields, out);
    }

    fn close(&mut self, status: &str, out: &mut Out) {
        let Some(Open { kind, mut item, text, logprobs }) = self.open.take() else { return };
        let (id, part) = (item["id"].clone(), kind.part(&text, &logprobs));
        self.tell_content(&kind.event("done"), &id, json!({ "text": text, "logprobs": logprobs }), out);
        self.tell_content("response.content_part.done", &id, json!({ "part": part }), out);
        item["status"] = status.into();
        item["content"] = json!([part]);
        self.finish_item(item, out);
    }

    fn finish_item(&mut self, item: Value, out: &mut Out) {
        self.tell("response.output_item.done", json!({ "output_index": self.done.len(), "item": item }), out);
        self.done.push(item);
    }

    fn grow(&mut self, kind: Item, text: &str, out: &mut Out) {
        if self.open.as_ref().is_some_and(|open| open.kind != kind) {
            self.close("completed", out);
        }
        if self.open.is_none() {
            let item = self.form.item(kind);
            self.tell("response.output_item.added", json!({ "output_index": self.done.len(), "item": item }), out);
            self.tell_content("response.content_part.added", &item["id"], json!({ "part": kind.part("", &[]) }), out);
            self.open = Some(Open { kind, item, text: String::new(), logprobs: Vec::new() });
        }
        let Some(open) = &mut self.open else { return };
        let mut logprobs = std::mem::take(&mut self.ahead);
        if kind == Item::Reasoning {
            logprobs.clear();
        }
        let delta = json!({ "delta": text, "logprobs": logprobs });
        open.text.push_str(text);
        open.logprobs.append(&mut logprobs);
        let id = open.item["id"].clone();
        self.tell_content(&kind.event("delta"), &id, delta, out);
    }

    fn begin_call(&mut self, name: &str, out: &mut Out) {
        self.close("completed", out);
        self.ahead.clear();
        let item = self.form.call(name);
        self.tell("response.output_item.added", json!({ "output_index": self.done.len(), "item": item }), out);
        self.open_call = Some(OpenCall { item, arguments: String::new() });
    }

    fn grow_call(&mut self, piece: &str, out: &mut Out) {
        // No text comes of the tokens of a call.
        self.ahead.clear();
        let Some(call) = &mut self.open_call else { return };
        call.arguments.push_str(piece);
        let delta = json!({ "item_id": call.item["id"], "output_index": self.done.len(), "delta": piece });
        self.tell("response.function_call_arguments.delta", delta, out);
    }

    fn close_call(&mut self, status: &str, out: &mut Out) {
        self.ahead.clear();
        let Some(OpenCall { mut item, arguments }) = self.open_call.take() else { return };
        (item["arguments"], item["status"]) = (arguments.into(), status.into());
        let mut whole = json!({ "item_id": item["id"], "output_index": self.done.len() });
        (whole["name"], whole["arguments"]) = (item["name"].clone(), item["arguments"].clone());
        self.tell("response.function_call_arguments.done", whole, out);
        self.finish_item(item, out);
    }

    fn parts(&mut self, parts: Vec<Part>, out: &mut Out) {
        for part in parts {
            match part {
                Part::Reasoning(text) => self.grow(Item::Reasoning, &text, out),
                Part::Text(text) => self.grow(Item::Message, &text, out),
                Part::Call(ToolCall { name, arguments }) => {
                    self.begin_call(&name, out);
                    self.grow_call(&arguments, out);
                    self.close_call("completed", out);
                }
                Part::CallBegins(name) => self.begin_call(&name, out),
                Part::Arguments(piece) => self.grow_call(&piece, out),
                Part::CallEnds => self.close_call("completed", out),
            }
        }
    }

    /// Ends the response, which is returned.
    fn finish(&mut self, usage: &Usage, out: &mut Out) -> Value {
        // A call that is still open was cut, by a stop string or a limit.
        if self.open_call.is_some() {
            self.close_call("incomplete", out);
        }
        if self.done.is_empty() && self.open.is_none() {
            // An answer of nothing is an empty message.
            self.grow(Item::Message, "", out);
        }
        let is_cut = self.reason == Some(FinishReason::Length);
        self.close(if is_cut { "incomplete" } else { "completed" }, out);
        let output = std::mem::take(&mut self.done);
        self.form.finished(output, self.reason, usage)
    }
}

impl Chunks for Events {
    const FRAMING: Framing = Framing::Events;

    fn chunks(&mut self, event: RunEvent, _usage: &Usage, out: &mut Out) {
        match event {
            RunEvent::Started { .. } => {
                let response = json!({ "response": self.form.in_progress() });
                self.tell("response.created", response.clone(), out);
                self.tell("response.in_progress", response, out);
            }
            RunEvent::Delta { text, tokens, .. } => {
                let thought = self.form.parts.reasoning_tokens();
                let parts = self.form.parts.push(text, tokens.len());
                self.ahead.extend(self.form.logprobs(&tokens));
                if self.form.parts.reasoning_tokens() > thought {
                    // Of the marks around thoughts no text comes.
                    self.ahead.clear();
                }
                self.parts(parts, out);
            }
            RunEvent::Finished { reason, .. } => {
                let parts = self.form.parts.finish();
                self.parts(parts, out);
                self.reason = Some(reason);
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        let response = self.finish(usage, out);
        let kind = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.tell(kind, json!({ "response": response }), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        let output = std::mem::take(&mut self.done);
        let response = self.form.failed(output, &error.message);
        self.tell("response.failed", json!({ "response": response }), out);
    }
}
