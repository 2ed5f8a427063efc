//! `/v1/chat/completions`: the answer, whole and in chunks.
//!
//! Knows no requests.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::llm::{Llm, Part};
use crate::server::error::ApiError;
use crate::server::parts::Parts;
use crate::server::run::{RunEvent, Usage, Whole};
use crate::server::state::App;
use crate::server::stream::{Chunks, Framing, Out};

use super::calls::{Call, finish_reason};
use super::fields::StreamUsage;
use super::logprobs::{self, ChatLogprobs};
use super::{Answer, Envelope};

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct AnswerMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
struct WithPromptLogprobs<'a> {
    #[serde(flatten)]
    answer: Answer<'a, Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

/// The whole answer, whose choices `parts` takes apart. `prompt_logprobs` stands beside them, as vLLM has it.
pub(super) fn whole(
    app: &App,
    llm: &Llm,
    envelope: &Envelope,
    all: Whole,
    mut parts: Vec<Parts>,
    wants_logprobs: bool,
    prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
) -> Response {
    let choices = all.choices.into_iter().zip(&mut parts).enumerate().map(|(index, (choice, parts))| Choice {
        index,
        logprobs: wants_logprobs.then(|| logprobs::chat(llm, &choice.tokens)),
        message: message(app, choice.text, parts),
        finish_reason: choice.reason.map(|reason| finish_reason(parts, reason)),
    });
    let answer = Answer { envelope, choices: choices.collect(), usage: Some(Some(all.usage)) };
    Json(WithPromptLogprobs { answer, prompt_logprobs }).into_response()
}

fn message(app: &App, text: String, parts: &mut Parts) -> AnswerMessage {
    let all = parts.whole(text);
    let tool_calls: Vec<_> = all.calls.into_iter().map(|call| Call::new(app, None, call)).collect();
    let content = (!all.text.is_empty() || tool_calls.is_empty()).then_some(all.text);
    let reasoning_content = (!all.reasoning.is_empty()).then_some(all.reasoning);
    AnswerMessage { role: "assistant", content, refusal: None, reasoning_content, tool_calls }
}

/// The answer in chunks.
pub(super) struct ChatStream {
    app: App,
    llm: Llm,
    envelope: Envelope,
    usage: StreamUsage,
    wants_logprobs: bool,
    choices: Vec<Parts>,
}

impl ChatStream {
    pub(super) fn new(
        app: &App,
        llm: &Llm,
        envelope: Envelope,
        usage: StreamUsage,
        wants_logprobs: bool,
        choices: Vec<Parts>,
    ) -> Self {
        Self { app: app.clone(), llm: llm.clone(), envelope, usage, wants_logprobs, choices }
    }

    /// A chunk for each part; `logprobs` stand in the first, or in one of their own.
    fn push(
        &self,
        index: usize,
        first_call: usize,
        parts: Vec<Part>,
        mut logprobs: Option<ChatLogprobs>,
        usage: &Usage,
        out: &mut Out,
    ) {
        let blank = || ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: None };
        if parts.is_empty() && logprobs.is_some() {
            let delta = Delta { content: Some(String::new()), ..Delta::default() };
            self.chunk(ChunkChoice { delta, logprobs, ..blank() }, usage, out);
            return;
        }
        let mut calls = first_call..;
        for part in parts {
            let delta = match part {
                Part::Text(text) => Delta { content: Some(text), ..Delta::default() },
                Part::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
                Part::Call(call) => {
                    Delta { tool_calls: vec![Call::new(&self.app, calls.next(), call)], ..Delta::default() }
                }
            };
            self.chunk(ChunkChoice { delta, logprobs: logprobs.take(), ..blank() }, usage, out);
        }
    }

    fn chunk(&self, choice: ChunkChoice, usage: &Usage, out: &mut Out) {
        let usage = self.usage.in_chunk(usage);
        out.data(&Answer { envelope: &self.envelope, choices: vec![choice], usage });
    }
}

impl Chunks for ChatStream {
    const FRAMING: Framing = Framing::Events;

    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut Out) {
        let blank = |index| ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: None };
        match event {
            RunEvent::Started { .. } => {
                for index in 0..self.choices.len() {
                    let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
                    self.chunk(ChunkChoice { delta, ..blank(index) }, usage, out);
                }
            }
            RunEvent::Delta { choice, text, tokens } => {
                // A token that completes no character has nothing to tell, unless its probability is asked for.
                let wanted = self.wants_logprobs && !(text.is_empty() && tokens.is_empty());
                let logprobs = wanted.then(|| logprobs::chat(&self.llm, &tokens));
                let first_call = self.choices[choice].calls();
                let parts = self.choices[choice].push(text);
                self.push(choice, first_call, parts, logprobs, usage, out);
            }
            RunEvent::Finished { choice, reason, .. } => {
                let first_call = self.choices[choice].calls();
                let parts = self.choices[choice].finish();
                self.push(choice, first_call, parts, None, usage, out);
                let finish_reason = Some(finish_reason(&self.choices[choice], reason));
                self.chunk(ChunkChoice { finish_reason, ..blank(choice) }, usage, out);
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        if self.usage.at_end {
            let choices = Vec::<ChunkChoice>::new();
            out.data(&Answer { envelope: &self.envelope, choices, usage: Some(Some(*usage)) });
        }
        out.done();
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        out.data(&error.body());
    }
}
