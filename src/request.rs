//! What a request asks and what it gets: plain data that every layer may name.
//!
//! Knows no text, no tensors and no transport: a prompt is token ids, a result is token ids.

use std::fmt;
use std::sync::Arc;

/// Index into a model's vocabulary.
pub type TokenId = u32;

/// One sequence of tokens that the engine grows: a request with `n` choices has `n` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

impl SeqId {
    /// The id of the sequence in `place`; whoever had the place before had another `generation`.
    pub(crate) fn new(place: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(place))
    }

    /// Its place: places are few, and used again, so that a table of them costs an index to look up.
    pub(crate) fn place(self) -> usize {
        self.0 as u32 as usize
    }

    /// How many had the place before.
    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One request, for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Whose request it is: an API key or a client's address. Tenants share the machine equally.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(pub Arc<str>);

impl Tenant {
    /// A tenant of that name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self::new("local")
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Most alternatives that `logprobs` and `prompt_logprobs` may ask for.
pub const MAX_LOGPROBS: u32 = 20;

/// Most tokens that `logit_bias` may list, and most that may end an answer: the model's own and `stop_token_ids`
/// together. A GPU keeps room for as many of each beside every sequence.
pub const MAX_LISTED_TOKENS: usize = 1024;

/// How the next token is chosen, for one request alone.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 chooses the likeliest token. At least 0.
    pub temperature: f32,
    /// Keeps the `k` likeliest tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum, in (0, 1].
    pub top_p: f32,
    /// Drops tokens less likely than this share of the likeliest one, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; above 0, 1 is off.
    /// Source: Keskar et al., "CTRL", 2019.
    pub repetition_penalty: f32,
    /// Taken once from the logit of each token that the answer holds; -2 to 2.
    pub presence_penalty: f32,
    /// Taken from the logit of each token as often as the answer holds it; -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Start of the random stream; `None` lets the engine draw one.
    pub seed: Option<u64>,
    /// Report each chosen token's log-probability and this many alternatives, up to [`MAX_LOGPROBS`].
    pub logprobs: Option<u32>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// When a sequence ends, besides cancellation.
#[derive(Clone, Debug, PartialEq)]
pub struct StopConditions {
    /// Most tokens to generate; at least 1.
    pub max_tokens: u32,
    /// `eos_token_ids` and `stop_token_ids` cannot be chosen before this many tokens.
    pub min_tokens: u32,
    /// Go on past `eos_token_ids`.
    pub ignore_eos: bool,
    /// The model's own end tokens.
    pub eos_token_ids: Arc<[TokenId]>,
    /// Further tokens that end this request.
    pub stop_token_ids: Vec<TokenId>,
}

impl StopConditions {
    /// Whether `token` ends the sequence.
    pub fn is_stop(&self, token: TokenId) -> bool {
        self.stop_token_ids.contains(&token) || (!self.ignore_eos && self.eos_token_ids.contains(&token))
    }
}

/// How a prompt's hidden states, after the model's last norm, become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The last token's.
    Last,
}

/// One request as the engine takes it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt, at least one token.
    pub prompt: Arc<[TokenId]>,
    /// How many answers; they share the prompt's blocks.
    pub n: u32,
    /// How tokens are chosen; choice `i` draws from stream `i` of the seed.
    pub sampling: SamplingParams,
    /// When the answers end.
    pub stop: StopConditions,
    /// Who pays for it.
    pub tenant: Tenant,
    /// Keeps the prefix cache apart: blocks are shared only between equal salts.
    pub cache_salt: Option<Arc<str>>,
    /// Which of its tenant's requests begins first: the lowest. 0 where nobody says.
    pub priority: i32,
    /// What its answers must follow.
    pub masks: Option<Arc<dyn TokenMasks>>,
    /// Give a vector of the prompt, pooled so. It takes `n` of 1 and `max_tokens` of 1, whose token means nothing.
    pub pooling: Option<Pooling>,
    /// How many of the prompt's last tokens are the beginning of the answer: penalties count them as the answer's.
    pub answered: u32,
}

impl Request {
    /// The prompt without the beginning of the answer, and that beginning.
    pub fn prompt_and_answered(&self) -> (&[TokenId], &[TokenId]) {
        self.prompt.split_at(self.prompt.len().saturating_sub(self.answered as usize))
    }
}

/// Says, for one answer, which tokens may come next.
pub trait TokenMask: Send {
    /// A bit for each token of the vocabulary, the lowest of each word first: 1 may come. Tokens behind the last word may
    /// not. `None`: all may.
    ///
    /// # Errors
    /// No token can come, or it took too much work to find out.
    fn allowed(&mut self) -> Result<Option<&[u32]>, String>;

    /// `token`, which was allowed, has been chosen.
    ///
    /// # Errors
    /// It cannot come here.
    fn commit(&mut self, token: TokenId) -> Result<(), String>;
}

/// What all answers of a request must follow: each gets a mask of its own.
pub trait TokenMasks: fmt::Debug + Send + Sync {
    /// A mask for an answer that begins.
    fn start(&self) -> Box<dyn TokenMask>;
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` or the model's context is reached.
    Length,
    /// The receiver went away or asked to end it.
    Cancelled,
}

impl FinishReason {
    /// OpenAI's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Log-probability of one token and of its likeliest alternatives, natural logarithm, from the model's own
/// distribution (before temperature, penalties and filters).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token's own.
    pub logprob: f32,
    /// Place of the token in the whole distribution; 1 is the likeliest.
    pub rank: u32,
    /// The likeliest tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// What the engine tells about one request, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestEvent {
    /// The prompt is computed; comes once, before the first token.
    Prompt {
        /// Prompt tokens found in the prefix cache.
        cached_tokens: u32,
        /// One entry for each prompt token but the first, where asked for.
        logprobs: Vec<TokenLogprobs>,
        /// `[hidden]`, where pooling was asked for.
        pooled: Option<Vec<f32>>,
    },
    /// One more token of one choice.
    Token {
        /// Which choice, from 0.
        choice: u32,
        /// The token.
        token: TokenId,
        /// Where asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// One choice has ended. The stop token itself, if any, has come as a `Token` before.
    Finished {
        /// Which choice, from 0.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// The request has failed as a whole; nothing follows.
    Failed(Arc<str>),
    /// No token can come next that the request's own rules allow; nothing follows.
    DeadEnd(Arc<str>),
}
