//! A response as the sequence of events of a stream: items are added, grow and are done, and the response ends.

use serde_json::{Value, json};

use crate::llm::{Part, ToolCall};
use crate::request::FinishReason;
use crate::server::error::ApiError;
use crate::server::run::{RunEvent, Usage};
use crate::server::stream::{Chunks, Framing, Out};

use super::answer::{Form, Item};

/// The item that grows.
struct Open {
    kind: Item,
    item: Value,
    text: String,
}

pub(super) struct Events {
    form: Form,
    sequence_number: u64,
    done: Vec<Value>,
    open: Option<Open>,
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
        Self { form, sequence_number: 0, done: Vec::new(), open: None, reason: None }
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

    fn close(&mut self, out: &mut Out) {
        let Some(Open { kind, mut item, text }) = self.open.take() else { return };
        let id = item["id"].clone();
        self.tell_content(&kind.event("done"), &id, json!({ "text": text, "logprobs": [] }), out);
        self.tell_content("response.content_part.done", &id, json!({ "part": kind.part(&text) }), out);
        item["status"] = "completed".into();
        item["content"] = json!([kind.part(&text)]);
        self.finish_item(item, out);
    }

    fn finish_item(&mut self, item: Value, out: &mut Out) {
        self.tell("response.output_item.done", json!({ "output_index": self.done.len(), "item": item }), out);
        self.done.push(item);
    }

    fn grow(&mut self, kind: Item, text: &str, out: &mut Out) {
        if self.open.as_ref().is_some_and(|open| open.kind != kind) {
            self.close(out);
        }
        if self.open.is_none() {
            let item = self.form.item(kind, "in_progress", "");
            self.tell("response.output_item.added", json!({ "output_index": self.done.len(), "item": item }), out);
            self.tell_content("response.content_part.added", &item["id"], json!({ "part": kind.part("") }), out);
            self.open = Some(Open { kind, item, text: String::new() });
        }
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let id = open.item["id"].clone();
        self.tell_content(&kind.event("delta"), &id, json!({ "delta": text, "logprobs": [] }), out);
    }

    fn call(&mut self, call: ToolCall, out: &mut Out) {
        self.close(out);
        let item = self.form.call(call);
        let mut added = item.clone();
        (added["arguments"], added["status"]) = ("".into(), "in_progress".into());
        let index = self.done.len();
        self.tell("response.output_item.added", json!({ "output_index": index, "item": added }), out);
        let (id, arguments) = (&item["id"], &item["arguments"]);
        let delta = json!({ "item_id": id, "output_index": index, "delta": arguments });
        self.tell("response.function_call_arguments.delta", delta, out);
        let whole = json!({ "item_id": id, "output_index": index, "name": item["name"], "arguments": arguments });
        self.tell("response.function_call_arguments.done", whole, out);
        self.finish_item(item, out);
    }

    fn parts(&mut self, parts: Vec<Part>, out: &mut Out) {
        for part in parts {
            match part {
                Part::Reasoning(text) => self.grow(Item::Reasoning, &text, out),
                Part::Text(text) => self.grow(Item::Message, &text, out),
                Part::Call(call) => self.call(call, out),
            }
        }
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
                let parts = self.form.parts.push(text, tokens.len());
                self.parts(parts, out);
            }
            RunEvent::Finished { reason, .. } => {
                self.reason = Some(reason);
                let parts = self.form.parts.finish();
                self.parts(parts, out);
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        if self.done.is_empty() && self.open.is_none() {
            // An answer of nothing is an empty message.
            self.grow(Item::Message, "", out);
        }
        self.close(out);
        let output = std::mem::take(&mut self.done);
        let response = self.form.finished(output, self.reason, usage);
        let kind = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.tell(kind, json!({ "response": response }), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        let output = std::mem::take(&mut self.done);
        let response = self.form.failed(output, &error.message);
        self.tell("response.failed", json!({ "response": response }), out);
    }
}
