//! What a caller asks in text, and what comes back in text.
//!
//! Knows no transport: the APIs translate their own types to these, and these to a `Request`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::grammar::Grammar;
use crate::engine::SubmitError;
use crate::request::{FinishReason, SamplingParams, Tenant, TokenId, TokenLogprobs};

/// One message of a chat, as the model's template sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// Its text; `None` where an assistant's message has nothing but tool calls.
    pub content: Option<String>,
    /// Further fields that templates read: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of that role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), extra: Map::new() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// An answer of the model's.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// What the model continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Plain text, encoded with the model's own special tokens around it.
    Text(String),
    /// Plain text, without special tokens around it.
    PlainText(String),
    /// Token ids, as they are.
    Tokens(Vec<TokenId>),
    /// A chat, rendered by the model's template.
    Chat(Chat),
}

/// A chat and what its template may use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Tool definitions in OpenAI's form.
    pub tools: Option<Value>,
    /// Further variables of the template (`enable_thinking` and the like).
    pub template_variables: Map<String, Value>,
    /// Continue the last message rather than open an answer.
    pub continue_final_message: bool,
    /// Neither open an answer nor continue one: the prompt ends where the last message does.
    pub opens_no_answer: bool,
}

impl Chat {
    /// Whether the model is not to think first, and is not within thoughts that it goes on with.
    pub(super) fn refuses_thoughts(&self) -> bool {
        let is_off = |name| self.template_variables.get(name).and_then(Value::as_bool) == Some(false);
        self.continued().is_none() && (is_off("enable_thinking") || is_off("thinking"))
    }

    /// The text that the answer continues, if it continues one.
    pub(super) fn continued(&self) -> Option<&str> {
        let last = self.messages.last().filter(|_| self.continue_final_message)?;
        last.content.as_deref()
    }
}

/// Sampling as the caller gave it; what is `None` is taken from the model's `generation_config.json`, where it has one,
/// else from [`SamplingParams::default`]. A model without recommendations gets temperature 0.8, top_k 40, top_p 0.9.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOptions {
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`]; 0 keeps all, as clients mean it.
    pub top_k: Option<u32>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`SamplingParams::logit_bias`].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// See [`SamplingParams::seed`].
    pub seed: Option<u64>,
    /// See [`SamplingParams::logprobs`].
    pub logprobs: Option<u32>,
    /// See [`SamplingParams::prompt_logprobs`].
    pub prompt_logprobs: Option<u32>,
}

impl SamplingOptions {
    /// These options over the model's `defaults`.
    pub fn over(&self, defaults: &Self) -> SamplingParams {
        let base = SamplingParams::default();
        let top_k = self.top_k.or(defaults.top_k).filter(|k| *k > 0);
        SamplingParams {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(base.temperature),
            top_k,
            top_p: self.top_p.or(defaults.top_p).unwrap_or(base.top_p),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(base.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty).unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty).unwrap_or(base.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
        }
    }
}

/// One request in text.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How many answers.
    pub n: u32,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Most tokens an answer may have; `None`: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Most tokens of prompt and answer together, where that is to be less than what the engine takes.
    pub max_context: Option<u32>,
    /// Go on where the context is full: its oldest half is left out, but for this many tokens of the prompt (one at the
    /// least, half a context at most), up to ten contexts in all. For one answer, without a grammar or other rules; any other
    /// ends there, with [`FinishReason::Length`], as all do where this is `None`.
    pub shift_keeping: Option<u32>,
    /// No end token before this many tokens.
    pub min_tokens: u32,
    /// Texts that end an answer; they are not part of it.
    pub stop: Vec<String>,
    /// Leave the stop string that was found in the answer.
    pub include_stop: bool,
    /// Token ids that end an answer.
    pub stop_token_ids: Vec<TokenId>,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
    /// What an answer must follow. It decides: neither a bias nor `min_tokens` nor `ignore_eos` goes past it.
    pub grammar: Option<Grammar>,
    /// What the caller calls `grammar`: errors name it.
    pub grammar_field: &'static str,
    /// The only tokens that may come, if not all may.
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// Texts that may not come, by themselves or after a space: their last token cannot follow the ones before. Another way
    /// of writing one in tokens may still come. At most 1,024.
    pub bad_words: Vec<String>,
    /// Most tokens of thoughts, which are ended then; `None`: as many as the model likes. Nothing where a model does not
    /// think, or a grammar has no place for it.
    pub thinking_budget: Option<u32>,
    /// Which of its tenant's requests begins first: the lowest.
    pub priority: i32,
    /// Whose request it is.
    pub tenant: Tenant,
    /// See [`crate::request::Request::cache_salt`].
    pub cache_salt: Option<Arc<str>>,
}

impl GenerateRequest {
    /// Continues `prompt` once, with the model's own defaults.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            n: 1,
            sampling: SamplingOptions::default(),
            max_tokens: None,
            max_context: None,
            shift_keeping: None,
            min_tokens: 0,
            stop: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            grammar: None,
            grammar_field: "grammar",
            allowed_token_ids: None,
            bad_words: Vec::new(),
            thinking_budget: None,
            priority: 0,
            tenant: Tenant::default(),
            cache_salt: None,
        }
    }

    /// Continues plain text.
    pub fn text(prompt: impl Into<String>) -> Self {
        Self::new(Prompt::Text(prompt.into()))
    }

    /// Answers a chat.
    pub fn chat(messages: impl IntoIterator<Item = Message>) -> Self {
        Self::new(Prompt::Chat(Chat { messages: messages.into_iter().collect(), ..Chat::default() }))
    }

    /// Sets the most tokens an answer may have.
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Sets the temperature; 0 is greedy.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampling.temperature = Some(temperature);
        self
    }

    /// Sets the seed: the same request with the same seed gets the same answer.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling.seed = Some(seed);
        self
    }
}

/// One generated token and, where asked for, its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// The token.
    pub token: TokenId,
    /// Its log-probability and alternatives.
    pub logprobs: Option<TokenLogprobs>,
}

/// What a generation tells, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    /// The prompt is computed; comes once, first.
    Started {
        /// Prompt tokens found in the prefix cache.
        cached_tokens: u32,
        /// One entry for each prompt token but the first, where asked for.
        prompt_logprobs: Vec<TokenLogprobs>,
    },
    /// More of one answer. `text` is whole characters; it may be empty while a character or a possible stop string is
    /// incomplete, and then holds more later.
    Delta {
        /// Which answer, from 0.
        choice: u32,
        /// Its next text.
        text: String,
        /// Its next tokens.
        tokens: Vec<GeneratedToken>,
    },
    /// One answer has ended.
    Finished {
        /// Which answer, from 0.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// The stop string that was found, if it was one.
        stop: Option<String>,
    },
}

/// Why a generation did not start or did not finish.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The engine did not take it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The prompt could not be made: the template or the tokenizer refused it.
    #[error("the prompt could not be made: {0}")]
    Prompt(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The prompt is so long that it need not be encoded to see that it does not fit.
    #[error(
        "the prompt has {bytes} bytes, which are {least_tokens} tokens at the very least, and this model's context holds \
         {max_context}; nothing was cut"
    )]
    FarTooLong {
        /// Bytes of the prompt.
        bytes: usize,
        /// Tokens that it has at the very least.
        least_tokens: usize,
        /// Tokens in the context.
        max_context: u32,
    },
    /// Tools were given, and the model would never hear of them.
    #[error("this model's chat template has no place for tools; leave them out, or serve a model that knows tools")]
    NoTools,
    /// The grammar is not valid, too large, or uses what is not known.
    #[error("the grammar cannot be used: {problem}")]
    Grammar {
        /// What the caller calls the grammar.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Compiling the grammar takes longer than it may.
    #[error("the grammar cannot be used: {problem}")]
    SlowGrammar {
        /// What the caller calls the grammar.
        field: &'static str,
        /// What it may take.
        problem: String,
    },
    /// No grammar is compiled now, since others that take too long still are.
    #[error("the grammar cannot be compiled now: {0}")]
    BusyWithGrammars(String),
    /// A stop string is empty, too long, or there are too many.
    #[error("stop: {0}")]
    Stop(String),
    /// No token can come next that the grammar and the other rules of the request allow.
    #[error("the answer cannot follow its grammar any further: {reason}")]
    DeadEnd {
        /// The field that ends it: what the caller calls the grammar or, where there is none, the one of the other rules.
        field: &'static str,
        /// Why.
        reason: Arc<str>,
    },
    /// The request failed while it ran.
    #[error("the request failed: {0}")]
    Failed(Arc<str>),
    /// Its events were not read fast enough.
    #[error("the answer was not read fast enough, so the request was ended")]
    TooSlow,
}

/// One whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<GeneratedToken>,
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop string that was found, if it was one.
    pub stop: Option<String>,
}
