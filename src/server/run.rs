//! One HTTP request while the engine works on it: its generations as one stream of events, with usage and metrics.
//!
//! Knows no API's form. Dropping a [`Run`] cancels what it runs: that is what happens when a client goes away.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll};
use serde::Serialize;
use tokio::sync::watch;

use crate::llm::{AnswerParser, GenerateError, GenerateRequest, GeneratedToken, Generation, GenerationEvent, Prompt};
use crate::request::{FinishReason, TokenId, TokenLogprobs};

use super::error::ApiError;
use super::guard::RequestRecord;
use super::metrics::Meter;
use super::models::Served;
use super::parts::{Parts, WholeParts};
use super::state::{App, turned};

/// Tokens of a request so far, in OpenAI's form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
    pub(super) prompt_tokens_details: PromptTokensDetails,
    /// Where answers are taken apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completion_tokens_details: Option<CompletionTokensDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct CompletionTokensDetails {
    pub(super) reasoning_tokens: u64,
}

impl Usage {
    /// With what `choices` say of the tokens that were thought.
    pub(super) fn of_choices(self, choices: &[Parts]) -> Self {
        let reasoning_tokens = choices.iter().map(Parts::reasoning_tokens).sum();
        Self { completion_tokens_details: Some(CompletionTokensDetails { reasoning_tokens }), ..self }
    }
}

/// What happens to a request, in order. Choice `c` of prompt `p` has the number `p * n + c`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RunEvent {
    /// A prompt is computed.
    Started { prompt: usize, prompt_logprobs: Vec<TokenLogprobs> },
    /// More of one choice.
    Delta { choice: usize, text: String, tokens: Vec<GeneratedToken> },
    /// One choice has ended; `stop` is the stop string that ended it, if one did.
    Finished { choice: usize, reason: FinishReason, stop: Option<String> },
}

/// Everything about one choice.
#[derive(Clone, Debug, Default)]
pub(super) struct WholeChoice {
    pub(super) parts: WholeParts,
    pub(super) tokens: Vec<GeneratedToken>,
    pub(super) reason: Option<FinishReason>,
    /// The stop string that ended it, if one did.
    pub(super) stop: Option<String>,
}

/// All of a request's answers.
pub(super) struct Whole {
    /// One list a prompt.
    pub(super) prompt_logprobs: Vec<Vec<TokenLogprobs>>,
    pub(super) choices: Vec<WholeChoice>,
    pub(super) usage: Usage,
    /// When the first prompt was computed.
    pub(super) first_event: Option<Instant>,
}

type Tagged = (usize, Result<GenerationEvent, GenerateError>);

/// One HTTP request that runs.
pub(super) struct Run {
    events: SelectAll<BoxStream<'static, Tagged>>,
    meters: Vec<Meter>,
    prompts: Arc<[Vec<TokenId>]>,
    parser: Option<AnswerParser>,
    n: usize,
    generates: bool,
    usage: Usage,
    cut: watch::Receiver<bool>,
    record: Arc<RequestRecord>,
    /// The model stays while this runs.
    _model: Served,
}

impl Run {
    /// Encodes and submits `requests`, all of which have `n` choices. `generates` is false where the prompts alone are
    /// wanted; a request generates at least one token, which is then not told.
    ///
    /// # Errors
    /// The first error; none of the requests runs then.
    pub(super) async fn start(
        app: &App,
        model: &Served,
        record: Arc<RequestRecord>,
        requests: Vec<GenerateRequest>,
        generates: bool,
    ) -> Result<Self, ApiError> {
        let started = Instant::now();
        let n = requests.first().map_or(1, |request| request.n);
        let generations = Self::submit(app, model, requests).await?;
        let prompts: Arc<[_]> = generations.iter().map(|generation| generation.prompt_tokens().to_vec()).collect();
        let parser = generations.first().and_then(Generation::answer_parser);
        let meters = prompts.iter().map(|prompt| Meter::new(model.metrics.clone(), started, prompt.len(), n)).collect();
        let prompt_tokens = prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let events = generations
            .into_iter()
            .enumerate()
            .map(|(prompt, generation)| generation.map(move |event| (prompt, event)).boxed())
            .collect();
        record.set_tokens(prompt_tokens, 0);
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        let cut = app.cut.subscribe();
        let _model = model.clone();
        Ok(Self { events, meters, prompts, parser, n: n as usize, generates, usage, cut, record, _model })
    }

    /// Encodes and submits, on a thread that may block, when it is this request's turn.
    async fn submit(app: &App, model: &Served, requests: Vec<GenerateRequest>) -> Result<Vec<Generation>, ApiError> {
        let with_grammar = requests.iter().any(|request| request.grammar.is_some());
        let is_encoded =
            |request: &GenerateRequest| matches!(request.prompt, Prompt::Tokens(_)) && request.bad_words.is_empty();
        let all_encoded = requests.iter().all(is_encoded);
        let llm = model.llm.clone();
        let generate = move || requests.into_iter().map(|request| llm.generate(request)).collect::<Result<Vec<_>, _>>();
        Ok(match (with_grammar, all_encoded) {
            (true, _) => app.compile(generate).await??,
            (false, false) => app.encode(generate).await??,
            // Nothing is to be done that takes time, and so nothing to wait for.
            (false, true) => generate()?,
        })
    }

    /// The prompts as they were encoded.
    pub(super) fn prompts(&self) -> Arc<[Vec<TokenId>]> {
        self.prompts.clone()
    }

    /// What takes each answer to the first prompt apart; `None`: there is nothing but text.
    pub(super) fn answer_parser(&self) -> Option<AnswerParser> {
        self.parser.clone()
    }

    /// How many choices each prompt has.
    pub(super) fn choices_per_prompt(&self) -> usize {
        self.n
    }

    /// Tokens so far.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The next event; `None` after the last. Nothing follows an error.
    pub(super) async fn next(&mut self) -> Option<Result<RunEvent, ApiError>> {
        let (prompt, event) = tokio::select! {
            biased;
            () = turned(&mut self.cut) => {
                self.meters.iter_mut().for_each(Meter::failed);
                return Some(Err(ApiError::cut_off()));
            }
            next = self.events.next() => next?,
        };
        Some(match event {
            Ok(event) => Ok(self.tell(prompt, event)),
            Err(error) => {
                self.meters.iter_mut().for_each(Meter::failed);
                Err(error.into())
            }
        })
    }

    fn tell(&mut self, prompt: usize, event: GenerationEvent) -> RunEvent {
        let number = |choice: u32| prompt * self.n + choice as usize;
        match event {
            GenerationEvent::Started { cached_tokens, prompt_logprobs } => {
                self.usage.prompt_tokens_details.cached_tokens += u64::from(cached_tokens);
                RunEvent::Started { prompt, prompt_logprobs }
            }
            GenerationEvent::Delta { choice, tokens, .. } if !self.generates => {
                self.meters[prompt].tokens(choice, tokens.len());
                RunEvent::Delta { choice: number(choice), text: String::new(), tokens: Vec::new() }
            }
            GenerationEvent::Delta { choice, text, tokens } => {
                self.meters[prompt].tokens(choice, tokens.len());
                self.usage.completion_tokens += tokens.len() as u64;
                self.usage.total_tokens += tokens.len() as u64;
                self.record.set_tokens(self.usage.prompt_tokens, self.usage.completion_tokens);
                RunEvent::Delta { choice: number(choice), text, tokens }
            }
            GenerationEvent::Finished { choice, reason, stop } => {
                self.meters[prompt].finished(reason);
                let reason = if self.generates { reason } else { FinishReason::Length };
                RunEvent::Finished { choice: number(choice), reason, stop }
            }
        }
    }

    /// Waits for all of it; `parts` takes the choices apart, one each.
    ///
    /// # Errors
    /// The first error; what was generated until then is lost.
    pub(super) async fn whole(mut self, parts: &mut [Parts]) -> Result<Whole, ApiError> {
        let mut prompt_logprobs = vec![Vec::new(); self.prompts.len()];
        let mut choices = vec![WholeChoice::default(); self.prompts.len() * self.n];
        let mut first_event = None;
        while let Some(event) = self.next().await {
            match event? {
                RunEvent::Started { prompt, prompt_logprobs: logprobs } => {
                    first_event.get_or_insert_with(Instant::now);
                    prompt_logprobs[prompt] = logprobs;
                }
                RunEvent::Delta { choice, text, tokens } => {
                    choices[choice].parts.extend(parts[choice].push(text, tokens.len()));
                    choices[choice].tokens.extend(tokens);
                }
                RunEvent::Finished { choice, reason, stop } => {
                    choices[choice].parts.extend(parts[choice].finish());
                    (choices[choice].reason, choices[choice].stop) = (Some(reason), stop);
                }
            }
        }
        Ok(Whole { prompt_logprobs, choices, usage: self.usage, first_event })
    }
}
