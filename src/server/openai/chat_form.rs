//! `/v1/chat/completions`: the answer, whole and in chunks.
//!
//! Knows no requests.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::llm::{GeneratedToken, Llm, Part, ToolCall};
use crate::request::TokenId;
use crate::server::error::ApiError;
use crate::server::parts::{Parts, WholeParts};
use crate::server::run::{RunEvent, Usage, Whole};
use crate::server::state::App;
use crate::server::stream::{Chunks, Framing, Out};

use super::calls::{Call, finish_reason};
use super::fields::StreamUsage;
use super::logprobs::{self, ChatLogprobs};
use super::{Answer, Envelope, ids};

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct AnswerMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    annotations: [(); 0],
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
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
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

/// What was asked to be told of tokens besides their text.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) logprobs: bool,
    /// The prompt's log-probabilities stand beside the choices, as vLLM has it.
    pub(super) prompt_logprobs: bool,
    /// The ids of the prompt, and of the answer.
    pub(super) ids: bool,
}

/// What is told of the prompt, beside the choices.
#[derive(Serialize)]
struct WithPrompt<'a, C> {
    #[serde(flatten)]
    answer: Answer<'a, C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

/// The whole answer to `prompt`, whose choices `parts` has taken apart.
pub(super) fn whole(
    app: &App,
    llm: &Llm,
    envelope: &Envelope,
    prompt: &[TokenId],
    all: Whole,
    parts: &[Parts],
    told: &Told,
) -> Response {
    let choices = all.choices.into_iter().zip(parts).enumerate().map(|(index, (choice, parts))| Choice {
        index,
        logprobs: told.logprobs.then(|| logprobs::chat(llm, &choice.tokens)),
        token_ids: told.ids.then(|| ids(&choice.tokens)),
        message: message(app, choice.parts),
        finish_reason: choice.reason.map(|reason| finish_reason(parts, reason)),
    });
    let answer = Answer { envelope, choices: choices.collect(), usage: Some(Some(all.usage.of_choices(parts))) };
    let prompt_logprobs = told.prompt_logprobs.then(|| logprobs::prompt(llm, prompt, &all.prompt_logprobs[0]));
    Json(WithPrompt { answer, prompt_logprobs, prompt_token_ids: told.ids.then_some(prompt) }).into_response()
}

fn message(app: &App, all: WholeParts) -> AnswerMessage {
    let tool_calls: Vec<_> = all.calls.into_iter().map(|call| Call::new(app, None, call)).collect();
    let content = (!all.text.is_empty() || tool_calls.is_empty()).then_some(all.text);
    let reasoning_content = (!all.reasoning.is_empty()).then_some(all.reasoning);
    AnswerMessage { role: "assistant", content, refusal: None, annotations: [], reasoning_content, tool_calls }
}

fn blank(index: usize) -> ChunkChoice {
    ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: None, token_ids: None }
}

/// The answer in chunks.
pub(super) struct ChatStream {
    app: App,
    llm: Llm,
    envelope: Envelope,
    usage: StreamUsage,
    told: Told,
    /// Until it is told, where it is to be.
    prompt: Option<Vec<TokenId>>,
    choices: Vec<Parts>,
}

impl ChatStream {
    pub(super) fn new(
        app: &App,
        llm: &Llm,
        envelope: Envelope,
        prompt: &[TokenId],
        usage: StreamUsage,
        told: Told,
        choices: Vec<Parts>,
    ) -> Self {
        let prompt = told.ids.then(|| prompt.to_vec());
        Self { app: app.clone(), llm: llm.clone(), envelope, usage, told, prompt, choices }
    }

    /// A chunk for each part; what is told of `tokens` stands in the first, or in one of its own.
    fn push(
        &self,
        index: usize,
        first_call: usize,
        parts: Vec<Part>,
        tokens: &[GeneratedToken],
        usage: &Usage,
        out: &mut Out,
    ) {
        let some = !tokens.is_empty();
        let mut logprobs = (some && self.told.logprobs).then(|| logprobs::chat(&self.llm, tokens));
        let mut token_ids = (some && self.told.ids).then(|| ids(tokens));
        let mut deltas = self.deltas(first_call, parts);
        if deltas.is_empty() && (logprobs.is_some() || token_ids.is_some()) {
            deltas.push(Delta { content: Some(String::new()), ..Delta::default() });
        }
        for delta in deltas {
            let (logprobs, token_ids) = (logprobs.take(), token_ids.take());
            self.chunk(ChunkChoice { delta, logprobs, token_ids, ..blank(index) }, usage, out);
        }
    }

    /// What `parts` add, behind `calls` whole calls.
    fn deltas(&self, mut calls: usize, parts: Vec<Part>) -> Vec<Delta> {
        let of_call = |call| Delta { tool_calls: vec![call], ..Delta::default() };
        let one = |part| match part {
            Part::Text(text) => Some(Delta { content: Some(text), ..Delta::default() }),
            Part::Reasoning(text) => Some(Delta { reasoning_content: Some(text), ..Delta::default() }),
            Part::Call(call) => {
                calls += 1;
                Some(of_call(Call::new(&self.app, Some(calls - 1), call)))
            }
            Part::CallBegins(name) => {
                Some(of_call(Call::new(&self.app, Some(calls), ToolCall { name, arguments: String::new() })))
            }
            Part::Arguments(piece) => Some(of_call(Call::more(calls, piece))),
            Part::CallEnds => {
                calls += 1;
                None
            }
        };
        parts.into_iter().filter_map(one).collect()
    }

    fn chunk(&self, choice: ChunkChoice, usage: &Usage, out: &mut Out) {
        let usage = self.usage.in_chunk(&usage.of_choices(&self.choices));
        out.data(&Answer { envelope: &self.envelope, choices: vec![choice], usage });
    }
}

impl Chunks for ChatStream {
    const FRAMING: Framing = Framing::Events;

    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut Out) {
        match event {
            RunEvent::Started { .. } => {
                let prompt = self.prompt.take();
                let usage = usage.of_choices(&self.choices);
                for index in 0..self.choices.len() {
                    let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
                    let choices = vec![ChunkChoice { delta, ..blank(index) }];
                    let answer = Answer { envelope: &self.envelope, choices, usage: self.usage.in_chunk(&usage) };
                    let prompt_token_ids = prompt.as_deref().filter(|_| index == 0);
                    out.data(&WithPrompt { answer, prompt_logprobs: None, prompt_token_ids });
                }
            }
            RunEvent::Delta { choice, text, tokens } => {
                // A token that completes no character has nothing to tell, unless it is itself asked for.
                let first_call = self.choices[choice].calls();
                let parts = self.choices[choice].push(text, tokens.len());
                self.push(choice, first_call, parts, &tokens, usage, out);
            }
            RunEvent::Finished { choice, reason, .. } => {
                let first_call = self.choices[choice].calls();
                let parts = self.choices[choice].finish();
                self.push(choice, first_call, parts, &[], usage, out);
                let finish_reason = Some(finish_reason(&self.choices[choice], reason));
                self.chunk(ChunkChoice { finish_reason, ..blank(choice) }, usage, out);
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        if self.usage.at_end {
            let choices = Vec::<ChunkChoice>::new();
            out.data(&Answer { envelope: &self.envelope, choices, usage: Some(Some(usage.of_choices(&self.choices))) });
        }
        out.done();
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        out.data(&error.body());
    }
}
