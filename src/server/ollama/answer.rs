//! The answers to chat and generate: line by line, and whole.
//!
//! Knows no requests.

use std::time::{Instant, SystemTime};

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;

use crate::llm::{GeneratedToken, Llm, Part, ToolCall};
use crate::request::FinishReason;
use crate::server::dialect::Dialect;
use crate::server::error::ApiError;
use crate::server::parts::{Parts, WholeParts};
use crate::server::run::{RunEvent, Usage, Whole};
use crate::server::state::App;
use crate::server::stream::{Chunks, Framing, Out};

/// Where an answer's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a `message`, with thoughts and calls.
    Message,
    /// In `response`.
    Response,
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<AnswerMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob>,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(flatten)]
    statistics: Option<Statistics>,
}

#[derive(Serialize)]
struct AnswerMessage {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
struct Call {
    id: String,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    index: usize,
    name: String,
    arguments: Value,
}

/// Tokens, and times in nanoseconds.
#[derive(Serialize)]
struct Statistics {
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
    prompt_eval_duration: u64,
    eval_count: u64,
    eval_duration: u64,
}

/// One token and its alternatives, as in OpenAI's form without the list's frame.
#[derive(Serialize)]
struct Logprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<Logprob>,
}

/// How one answer is written.
pub(super) struct Form {
    pub(super) app: App,
    pub(super) llm: Llm,
    /// The model's name as the request had it.
    pub(super) model: String,
    pub(super) place: Place,
    pub(super) parts: Parts,
    pub(super) started: Instant,
    /// Nanoseconds that the model took to be loaded for this request.
    pub(super) load_ns: u64,
    pub(super) wants_logprobs: bool,
}

/// The answer to a request that generates nothing: the model is there, or has left.
pub(super) fn nothing_generated(model: &str, place: Place, done_reason: &'static str) -> Response {
    let mut line = Line::new(model, place, WholeParts::default(), Vec::new());
    (line.done, line.done_reason) = (true, Some(done_reason));
    Json(line).into_response()
}

/// This moment, as Ollama writes it.
pub(super) fn now() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

impl<'a> Line<'a> {
    fn new(model: &'a str, place: Place, parts: WholeParts, tool_calls: Vec<Call>) -> Self {
        let (message, response, thinking) = match place {
            Place::Message => {
                let message =
                    AnswerMessage { role: "assistant", content: parts.text, thinking: parts.reasoning, tool_calls };
                (Some(message), None, String::new())
            }
            Place::Response => (None, Some(parts.text), parts.reasoning),
        };
        Self {
            model,
            created_at: now(),
            message,
            response,
            thinking,
            logprobs: Vec::new(),
            done: false,
            done_reason: None,
            statistics: None,
        }
    }
}

impl Form {
    /// The whole answer.
    pub(super) fn whole(&self, mut all: Whole) -> Response {
        let choice = all.choices.pop().unwrap_or_default();
        let mut line = self.line(choice.parts, 0, &choice.tokens);
        line.done = true;
        line.done_reason = Some(done_reason(choice.reason));
        line.statistics = Some(self.statistics(&all.usage, all.first_event));
        Json(line).into_response()
    }

    fn line(&self, mut parts: WholeParts, first_call: usize, tokens: &[GeneratedToken]) -> Line<'_> {
        let calls = std::mem::take(&mut parts.calls);
        let calls = calls.into_iter().enumerate().map(|(index, call)| self.call(first_call + index, call)).collect();
        let mut line = Line::new(&self.model, self.place, parts, calls);
        if self.wants_logprobs {
            line.logprobs = tokens.iter().filter_map(|token| self.logprob(token)).collect();
        }
        line
    }

    fn call(&self, index: usize, call: ToolCall) -> Call {
        let ToolCall { name, arguments } = call;
        let id = format!("call_{}", &self.app.unique_id()[16..]);
        let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
        Call { id, function: Function { index, name, arguments } }
    }

    fn logprob(&self, token: &GeneratedToken) -> Option<Logprob> {
        let one = |token, logprob: f32, top_logprobs| Logprob {
            token: self.llm.token_text(token),
            // JSON has no infinity.
            logprob: logprob.max(f32::MIN),
            bytes: self.llm.token_bytes(token).to_vec(),
            top_logprobs,
        };
        let own = token.logprobs.as_ref()?;
        let top = own.top.iter().map(|(token, logprob)| one(*token, *logprob, Vec::new())).collect();
        Some(one(token.token, own.logprob, top))
    }

    fn statistics(&self, usage: &Usage, first_event: Option<Instant>) -> Statistics {
        let nanoseconds = |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let first = first_event.unwrap_or(now);
        Statistics {
            total_duration: nanoseconds(self.started, now),
            load_duration: self.load_ns,
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: nanoseconds(self.started, first).saturating_sub(self.load_ns),
            eval_count: usage.completion_tokens,
            eval_duration: nanoseconds(first, now),
        }
    }
}

fn done_reason(reason: Option<FinishReason>) -> &'static str {
    reason.map_or("stop", |reason| reason.as_str())
}

/// The answer line by line.
pub(super) struct Lines {
    pub(super) form: Form,
    pub(super) first_event: Option<Instant>,
    pub(super) reason: Option<FinishReason>,
}

impl Lines {
    pub(super) fn new(form: Form) -> Self {
        Self { form, first_event: None, reason: None }
    }

    /// A line for each part; `tokens` are told with the first.
    fn push(&self, parts: Vec<Part>, first_call: usize, mut tokens: &[GeneratedToken], out: &mut Out) {
        let mut calls = first_call;
        for part in parts {
            let mut whole = WholeParts::default();
            whole.extend([part]);
            let first = calls;
            calls += whole.calls.len();
            out.line(&self.form.line(whole, first, tokens));
            tokens = &[];
        }
        if self.form.wants_logprobs && !tokens.is_empty() {
            out.line(&self.form.line(WholeParts::default(), calls, tokens));
        }
    }
}

impl Chunks for Lines {
    const FRAMING: Framing = Framing::Lines;

    fn chunks(&mut self, event: RunEvent, _usage: &Usage, out: &mut Out) {
        let first_call = self.form.parts.calls();
        match event {
            RunEvent::Started { .. } => self.first_event = Some(Instant::now()),
            RunEvent::Delta { text, tokens, .. } => {
                let parts = self.form.parts.push(text, tokens.len());
                self.push(parts, first_call, &tokens, out);
            }
            RunEvent::Finished { reason, .. } => {
                self.reason = Some(reason);
                let parts = self.form.parts.finish();
                self.push(parts, first_call, &[], out);
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        let mut line = self.form.line(WholeParts::default(), 0, &[]);
        (line.done, line.done_reason) = (true, Some(done_reason(self.reason)));
        line.statistics = Some(self.form.statistics(usage, self.first_event));
        out.line(&line);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        out.line(&Dialect::Ollama.error(error));
    }
}
