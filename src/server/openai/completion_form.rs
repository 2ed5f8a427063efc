//! `/v1/completions`: the answer, whole and in chunks.
//!
//! Knows no requests.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::llm::Llm;
use crate::request::TokenId;
use crate::server::error::ApiError;
use crate::server::run::{RunEvent, Usage, Whole};
use crate::server::stream::{Chunks, Framing, Out};

use super::fields::StreamUsage;
use super::logprobs::{self, CompletionLogprobs};
use super::{Answer, Envelope, ids};

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

impl Choice {
    fn blank(index: usize, text: String) -> Self {
        Self {
            index,
            text,
            logprobs: None,
            finish_reason: None,
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids: None,
        }
    }
}

/// What an answer needs besides what is generated.
pub(super) struct CompletionForm {
    pub(super) llm: Llm,
    pub(super) envelope: Envelope,
    pub(super) prompts: Arc<[Vec<TokenId>]>,
    pub(super) choices_per_prompt: usize,
    /// The prompts' texts where they are repeated, else nothing.
    pub(super) echoed: Vec<String>,
    pub(super) wants_logprobs: bool,
    pub(super) wants_prompt_logprobs: bool,
    /// Tell the ids of the prompt's tokens and of the answer's.
    pub(super) wants_ids: bool,
}

impl CompletionForm {
    /// The whole answer.
    pub(super) fn whole(&self, all: Whole) -> Response {
        let llm = &self.llm;
        let choices = all.choices.into_iter().enumerate().map(|(index, choice)| {
            let prompt = index / self.choices_per_prompt;
            let of_prompt = &all.prompt_logprobs[prompt];
            let mut offset = 0;
            let logprobs = self.wants_logprobs.then(|| {
                let mut logprobs = CompletionLogprobs::default();
                if !self.echoed.is_empty() {
                    logprobs.push_prompt(llm, &self.prompts[prompt], of_prompt, &mut offset);
                }
                logprobs.push_generated(llm, &choice.tokens, &mut offset);
                logprobs
            });
            let prompt_logprobs =
                self.wants_prompt_logprobs.then(|| logprobs::prompt(llm, &self.prompts[prompt], of_prompt));
            let text = self.echoed.get(prompt).cloned().unwrap_or_default() + &choice.parts.text;
            let finish_reason = choice.reason.map(|reason| reason.as_str());
            let prompt_token_ids = self.wants_ids.then(|| self.prompts[prompt].clone());
            let token_ids = self.wants_ids.then(|| ids(&choice.tokens));
            Choice { index, text, logprobs, finish_reason, prompt_logprobs, prompt_token_ids, token_ids }
        });
        let choices = choices.collect();
        Json(Answer { envelope: &self.envelope, choices, usage: Some(Some(all.usage)) }).into_response()
    }
}

/// The answer in chunks.
pub(super) struct CompletionStream {
    form: CompletionForm,
    usage: StreamUsage,
    /// Characters of each choice that its tokens have told.
    offsets: Vec<usize>,
}

impl CompletionStream {
    pub(super) fn new(form: CompletionForm, usage: StreamUsage) -> Self {
        let offsets = vec![0; form.prompts.len() * form.choices_per_prompt];
        Self { form, usage, offsets }
    }

    fn chunk(&self, choice: Choice, usage: &Usage, out: &mut Out) {
        let usage = self.usage.in_chunk(usage);
        out.data(&Answer { envelope: &self.form.envelope, choices: vec![choice], usage });
    }
}

impl Chunks for CompletionStream {
    const FRAMING: Framing = Framing::Events;

    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut Out) {
        let (wants_ids, blank) = (self.form.wants_ids, Choice::blank);
        let llm = self.form.llm.clone();
        match event {
            RunEvent::Started { prompt, prompt_logprobs } => {
                let text = self.form.echoed.get(prompt).cloned();
                if text.is_none() && !wants_ids {
                    return;
                }
                let tokens = self.form.prompts.clone();
                let first = prompt * self.form.choices_per_prompt;
                for index in first..first + self.form.choices_per_prompt {
                    let logprobs = (self.form.wants_logprobs && text.is_some()).then(|| {
                        let mut logprobs = CompletionLogprobs::default();
                        let offset = &mut self.offsets[index];
                        logprobs.push_prompt(&llm, &tokens[prompt], &prompt_logprobs, offset);
                        logprobs
                    });
                    let prompt_token_ids = wants_ids.then(|| tokens[prompt].clone());
                    let text = text.clone().unwrap_or_default();
                    self.chunk(Choice { logprobs, prompt_token_ids, ..blank(index, text) }, usage, out);
                }
            }
            RunEvent::Delta { text, tokens, .. }
                if text.is_empty() && (tokens.is_empty() || !(self.form.wants_logprobs || wants_ids)) => {}
            RunEvent::Delta { choice, text, tokens } => {
                let logprobs = self.form.wants_logprobs.then(|| {
                    let mut logprobs = CompletionLogprobs::default();
                    logprobs.push_generated(&llm, &tokens, &mut self.offsets[choice]);
                    logprobs
                });
                let token_ids = wants_ids.then(|| ids(&tokens));
                self.chunk(Choice { logprobs, token_ids, ..blank(choice, text) }, usage, out);
            }
            RunEvent::Finished { choice, reason, .. } => {
                let finish_reason = Some(reason.as_str());
                self.chunk(Choice { finish_reason, ..blank(choice, String::new()) }, usage, out);
            }
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Out) {
        if self.usage.at_end {
            let choices = Vec::<Choice>::new();
            out.data(&Answer { envelope: &self.form.envelope, choices, usage: Some(Some(*usage)) });
        }
        out.done();
    }

    fn failed(&mut self, error: &ApiError, out: &mut Out) {
        out.data(&error.body());
    }
}
