//! `/v1/chat/completions`: the answer, whole and in chunks.
//!
//! Knows no requests.

use std::collections::VecDeque;

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::server::run::{RunEvent, Usage, Whole};
use crate::server::sse::{Chunks, to_json};
use crate::server::state::App;

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
    content: String,
    refusal: Option<()>,
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
}

#[derive(Serialize)]
struct WithPromptLogprobs<'a> {
    #[serde(flatten)]
    answer: Answer<'a, Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

/// The whole answer. `prompt_logprobs` stands beside the choices, as vLLM has it.
pub(super) fn whole(
    app: &App,
    envelope: &Envelope,
    all: Whole,
    wants_logprobs: bool,
    prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
) -> Response {
    let choices = all.choices.into_iter().enumerate().map(|(index, choice)| Choice {
        index,
        logprobs: wants_logprobs.then(|| logprobs::chat(&app.llm, &choice.tokens)),
        finish_reason: choice.reason.map(|reason| reason.as_str()),
        message: AnswerMessage { role: "assistant", content: choice.text, refusal: None },
    });
    let answer = Answer { envelope, choices: choices.collect(), usage: Some(Some(all.usage)) };
    Json(WithPromptLogprobs { answer, prompt_logprobs }).into_response()
}

/// The answer in chunks.
pub(super) struct ChatStream {
    app: App,
    envelope: Envelope,
    usage: StreamUsage,
    wants_logprobs: bool,
    choices: usize,
}

impl ChatStream {
    pub(super) fn new(app: &App, envelope: Envelope, usage: StreamUsage, wants_logprobs: bool, choices: usize) -> Self {
        Self { app: app.clone(), envelope, usage, wants_logprobs, choices }
    }

    fn chunk(&self, choice: ChunkChoice, usage: &Usage) -> String {
        let usage = self.usage.in_chunk(usage);
        to_json(&Answer { envelope: &self.envelope, choices: vec![choice], usage })
    }
}

impl Chunks for ChatStream {
    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut VecDeque<String>) {
        let blank = |index| ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: None };
        match event {
            RunEvent::Started { .. } => {
                for index in 0..self.choices {
                    let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
                    out.push_back(self.chunk(ChunkChoice { delta, ..blank(index) }, usage));
                }
            }
            // A token that completes no character has nothing to tell, unless its probability is asked for.
            RunEvent::Delta { text, tokens, .. } if text.is_empty() && (tokens.is_empty() || !self.wants_logprobs) => {}
            RunEvent::Delta { choice, text, tokens } => {
                let logprobs = self.wants_logprobs.then(|| logprobs::chat(&self.app.llm, &tokens));
                let delta = Delta { role: None, content: Some(text) };
                out.push_back(self.chunk(ChunkChoice { delta, logprobs, ..blank(choice) }, usage));
            }
            RunEvent::Finished { choice, reason } => {
                let finish_reason = Some(reason.as_str());
                out.push_back(self.chunk(ChunkChoice { finish_reason, ..blank(choice) }, usage));
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut VecDeque<String>) {
        if self.usage.at_end {
            let choices = Vec::<ChunkChoice>::new();
            out.push_back(to_json(&Answer { envelope: &self.envelope, choices, usage: Some(Some(*usage)) }));
        }
    }
}
