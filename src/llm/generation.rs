//! One running generation: token events from the engine become text, off the engine's thread.
//!
//! Knows no transport. Whoever polls it pays for detokenising and the search for stop strings.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

use crate::engine::{EngineHandle, EngineStatus, RequestStream};
use crate::request::{FinishReason, RequestEvent, StopConditions, TokenId, TokenLogprobs};
use crate::tokenizer::{AnswerParser, IncrementalDecoder, StopMatcher};

use super::generate::{Answer, GenerateError, GeneratedToken, GenerationEvent};
use super::shift::Shift;

/// A stream of [`GenerationEvent`]s. Dropping it cancels the request within one step.
pub struct Generation {
    engine: EngineHandle,
    stream: RequestStream,
    prompt: Arc<[TokenId]>,
    /// Before the first token; `None`: there is nothing but text.
    parser: Option<AnswerParser>,
    choices: Vec<Choice>,
    stops: Vec<String>,
    /// What goes on where the context is full, if anything does.
    shift: Option<Shift>,
    ready: VecDeque<GenerationEvent>,
    failed: bool,
    /// The request's field that no token is allowed by where none is left.
    ruling_field: &'static str,
}

/// The state of one answer.
pub(super) struct Choice {
    decoder: IncrementalDecoder,
    stops: StopMatcher,
    conditions: Arc<StopConditions>,
    include_stop: bool,
    generated: u32,
    finished: bool,
}

impl Choice {
    pub(super) fn new(
        decoder: IncrementalDecoder,
        stops: StopMatcher,
        conditions: Arc<StopConditions>,
        include_stop: bool,
    ) -> Self {
        Self { decoder, stops, conditions, include_stop, generated: 0, finished: false }
    }

    /// The text that `token` completes, and the stop string that it completes, if any.
    fn push(&mut self, token: TokenId) -> (String, Option<usize>) {
        self.generated += 1;
        let ends = self.generated > self.conditions.min_tokens && self.conditions.is_stop(token);
        if ends && !self.include_stop {
            return (String::new(), None);
        }
        let text = self.decoder.push(token);
        self.search(&text)
    }

    /// What of `text` may be told, and the stop string that it completes. None is complete within the tokens that the
    /// answer has at least.
    fn search(&mut self, text: &str) -> (String, Option<usize>) {
        if self.generated <= self.conditions.min_tokens {
            return (self.stops.pass(text), None);
        }
        let outcome = self.stops.push(text);
        (outcome.emit, outcome.matched)
    }

    /// The text that was held back: incomplete characters and the beginning of a stop string.
    fn flush(&mut self) -> (String, Option<usize>) {
        let rest = self.decoder.clone().finish();
        let (mut text, matched) = self.search(&rest);
        if matched.is_none() {
            text.push_str(&self.stops.finish());
        }
        (text, matched)
    }
}

impl Generation {
    pub(super) fn new(
        engine: EngineHandle,
        stream: RequestStream,
        prompt: Arc<[TokenId]>,
        parser: Option<AnswerParser>,
        choices: Vec<Choice>,
        stops: Vec<String>,
        shift: Option<Shift>,
    ) -> Self {
        let (ready, failed, ruling_field) = (VecDeque::new(), false, "grammar");
        Self { engine, stream, prompt, parser, choices, stops, shift, ready, failed, ruling_field }
    }

    /// The same, of a request whose tokens are ruled by that field.
    pub(super) fn ruled_by(self, ruling_field: &'static str) -> Self {
        Self { ruling_field, ..self }
    }

    /// The prompt as it was encoded.
    pub fn prompt_tokens(&self) -> &[TokenId] {
        &self.prompt
    }

    /// What takes each of its answers to a chat apart: thoughts where the model has them, calls where tools were given to
    /// it. `None`: there is nothing but text.
    pub fn answer_parser(&self) -> Option<AnswerParser> {
        self.parser.clone()
    }

    /// The next event; `None` after the last `Finished` or the first error.
    pub async fn next(&mut self) -> Option<Result<GenerationEvent, GenerateError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// As [`Self::next`], for callers outside an async runtime.
    ///
    /// # Panics
    /// Inside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Result<GenerationEvent, GenerateError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.is_over() {
                return None;
            }
            let event = self.stream.blocking_next();
            if let Err(error) = self.take(event) {
                return Some(Err(error));
            }
        }
    }

    /// All answers, in order of choice.
    ///
    /// # Errors
    /// The first [`GenerateError`]; what was generated until then is lost.
    pub async fn collect(mut self) -> Result<Vec<Answer>, GenerateError> {
        let mut answers = Answers::new(self.choices.len());
        while let Some(event) = self.next().await {
            answers.push(event?);
        }
        Ok(answers.0)
    }

    /// As [`Self::collect`], for callers outside an async runtime.
    ///
    /// # Errors
    /// The first [`GenerateError`].
    ///
    /// # Panics
    /// Inside an async runtime.
    pub fn collect_blocking(mut self) -> Result<Vec<Answer>, GenerateError> {
        let mut answers = Answers::new(self.choices.len());
        while let Some(event) = self.blocking_next() {
            answers.push(event?);
        }
        Ok(answers.0)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<GenerationEvent, GenerateError>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.is_over() {
                return Poll::Ready(None);
            }
            let Poll::Ready(event) = self.stream.poll_next(context) else {
                return Poll::Pending;
            };
            if let Err(error) = self.take(event) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    fn is_over(&self) -> bool {
        self.failed || self.choices.iter().all(|choice| choice.finished)
    }

    /// Turns one event of the engine's into what is ready to be told.
    fn take(&mut self, event: Option<RequestEvent>) -> Result<(), GenerateError> {
        match event {
            // Of a shifted context nobody is told.
            Some(RequestEvent::Prompt { .. }) if self.shift.as_ref().is_some_and(Shift::has_begun) => {}
            Some(RequestEvent::Prompt { cached_tokens, logprobs, .. }) => {
                self.ready.push_back(GenerationEvent::Started { cached_tokens, prompt_logprobs: logprobs });
            }
            Some(RequestEvent::Token { choice, token, logprobs }) => self.take_token(choice, token, logprobs),
            Some(RequestEvent::Finished { choice, reason }) => self.take_finish(choice, reason),
            Some(RequestEvent::DeadEnd(reason)) => {
                self.failed = true;
                return Err(GenerateError::DeadEnd { field: self.ruling_field, reason });
            }
            Some(RequestEvent::Failed(reason)) => {
                self.failed = true;
                return Err(GenerateError::Failed(reason));
            }
            None => {
                self.failed = true;
                return Err(match self.engine.status() {
                    EngineStatus::Dead(reason) => GenerateError::Failed(reason),
                    _ => GenerateError::TooSlow,
                });
            }
        }
        Ok(())
    }

    fn take_token(&mut self, choice: u32, token: TokenId, logprobs: Option<TokenLogprobs>) {
        let Some(state) = self.choices.get_mut(choice as usize).filter(|state| !state.finished) else {
            // Computed past a stop string that the engine had not heard of yet.
            return;
        };
        if let Some(shift) = &mut self.shift {
            shift.push(token);
        }
        let (text, matched) = state.push(token);
        let tokens = vec![GeneratedToken { token, logprobs }];
        self.ready.push_back(GenerationEvent::Delta { choice, text, tokens });
        if let Some(index) = matched {
            let stop = self.stops.get(index).cloned();
            state.finished = true;
            self.stream.end_choice(choice);
            self.ready.push_back(GenerationEvent::Finished { choice, reason: FinishReason::Stop, stop });
        }
    }

    /// Whether the answer goes on in a context that was shifted. It does not where the engine is too busy for that.
    fn goes_on(&mut self) -> bool {
        let Some(request) = self.shift.as_mut().and_then(Shift::next) else { return false };
        match self.engine.submit(request) {
            Ok(stream) => self.stream = stream,
            Err(error) => {
                tracing::warn!(%error, "an answer whose context is full cannot go on");
                return false;
            }
        }
        true
    }

    fn take_finish(&mut self, choice: u32, reason: FinishReason) {
        if self.choices.get(choice as usize).is_none_or(|state| state.finished) {
            return;
        }
        if reason == FinishReason::Length && self.goes_on() {
            return;
        }
        let Some(state) = self.choices.get_mut(choice as usize) else { return };
        state.finished = true;
        let (text, matched) = state.flush();
        if !text.is_empty() {
            self.ready.push_back(GenerationEvent::Delta { choice, text, tokens: Vec::new() });
        }
        let stop = matched.and_then(|index| self.stops.get(index)).cloned();
        let reason = if stop.is_some() { FinishReason::Stop } else { reason };
        self.ready.push_back(GenerationEvent::Finished { choice, reason, stop });
    }
}

impl Stream for Generation {
    type Item = Result<GenerationEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

/// Whole answers put together from events.
struct Answers(Vec<Answer>);

impl Answers {
    fn new(count: usize) -> Self {
        let empty = Answer { text: String::new(), tokens: Vec::new(), reason: FinishReason::Cancelled, stop: None };
        Self(vec![empty; count])
    }

    fn push(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Started { .. } => {}
            GenerationEvent::Delta { choice, text, tokens } => {
                let answer = &mut self.0[choice as usize];
                answer.text.push_str(&text);
                answer.tokens.extend(tokens);
            }
            GenerationEvent::Finished { choice, reason, stop } => {
                let answer = &mut self.0[choice as usize];
                (answer.reason, answer.stop) = (reason, stop);
            }
        }
    }
}
