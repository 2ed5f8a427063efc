//! A loaded model: encodes prompts, submits them, and gives back what comes as text.
//!
//! Knows how a model is used, not how it was loaded.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use crate::engine::{EngineHandle, ModelFacts, SubmitError};
use crate::request::{MAX_LISTED_TOKENS, Pooling, Request, SamplingParams, StopConditions, TokenId, TokenMasks};
use crate::tokenizer::{AnswerParser, ChatTemplate, IncrementalDecoder, StopMatcher, Tokenizer};

use super::builder::LlmBuilder;
use super::generate::{Chat, GenerateError, GenerateRequest, Message, Prompt, SamplingOptions};
use super::generation::{Choice, Generation};
use super::grammar::{CompileError, Grammar, GrammarCompiler};
use super::info::ModelInfo;
use super::library::ModelDescription;
use super::rules::{Rules, ThoughtLimit};
use super::script::Script;
use super::shift::Shift;

/// Stands for the text of a message that the answer continues; from the private use area, where no text is.
const CONTINUED: &str = "\u{F5A3C}continued\u{F5A3C}";

/// What ends thoughts that a template has opened, as Qwen3's own template does where none are wanted.
const NO_THOUGHTS: &str = "\n</think>\n\n";
/// Tokens at the end of a prompt that may open thoughts, white space behind them counted.
const OPENING_TOKENS: usize = 16;

/// Bytes of text for each byte of the longest token that normalisation may take away, at most.
const NORMALISED_AWAY: usize = 4;

/// A loaded model. Cheap to clone; the engine stops when the last clone and the last [`Generation`] are gone.
#[derive(Clone)]
pub struct Llm {
    parts: Arc<LlmParts>,
    /// Answers that stand in for the model's.
    script: Option<Arc<Script>>,
}

/// What an [`Llm`] is made of.
pub(crate) struct LlmParts {
    pub(crate) info: ModelInfo,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    pub(crate) defaults: SamplingOptions,
    pub(crate) eos_token_ids: Arc<[TokenId]>,
    /// How its makers pool prompts to vectors, if they say.
    pub(crate) pooling: Option<Pooling>,
    pub(crate) engine: EngineHandle,
    /// Made when the first grammar comes.
    pub(crate) grammars: OnceLock<Result<GrammarCompiler, String>>,
}

impl Llm {
    /// Says which model to load and how; [`LlmBuilder::load`] loads it.
    pub fn builder() -> LlmBuilder {
        LlmBuilder::default()
    }

    pub(crate) fn from_parts(parts: LlmParts) -> Self {
        Self { parts: Arc::new(parts), script: None }
    }

    pub(super) fn scripted(&self, script: Script) -> Self {
        Self { parts: self.parts.clone(), script: Some(Arc::new(script)) }
    }

    /// What is loaded, where it runs, and how much fits.
    pub fn info(&self) -> &ModelInfo {
        &self.parts.info
    }

    /// The engine: its state, its limits, its counters.
    pub fn engine(&self) -> &EngineHandle {
        &self.parts.engine
    }

    /// Submits a request. The prompt is encoded on the calling thread: some tens of milliseconds for a very long one. So is a
    /// grammar compiled, which may take a second: in an async runtime that is work for a thread that may block.
    ///
    /// # Errors
    /// [`GenerateError`]: the prompt cannot be made, a parameter is invalid, or the engine does not take it now.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let stops = StopMatcher::new(&request.stop, request.include_stop)
            .map_err(|error| GenerateError::Stop(error.to_string()))?;
        let grammar = request.grammar.as_ref().map(|grammar| self.masks(grammar, request.grammar_field)).transpose()?;
        let mut prompt = self.prompt_tokens(&request.prompt)?;
        let follows_grammar = grammar.is_some();
        let ruling_field = match &request.allowed_token_ids {
            _ if follows_grammar => request.grammar_field,
            Some(_) => "allowed_token_ids",
            None if request.bad_words.is_empty() => "tools",
            None => "bad_words",
        };
        let (masks, parser) = self.ruled(&request, &mut prompt, grammar)?;
        let prompt: Arc<[TokenId]> = prompt.into();
        let max_context = request.max_context.unwrap_or(u32::MAX).min(self.engine().limits().max_context);
        if prompt.len() >= max_context as usize {
            return Err(SubmitError::PromptTooLong { prompt_tokens: prompt.len(), max_context }.into());
        }
        let room = max_context as usize - prompt.len();
        let conditions = StopConditions {
            max_tokens: request.max_tokens.unwrap_or(u32::MAX).min(u32::try_from(room).unwrap_or(u32::MAX).max(1)),
            // A grammar says itself where an answer ends.
            min_tokens: if follows_grammar { 0 } else { request.min_tokens },
            ignore_eos: request.ignore_eos && !follows_grammar,
            eos_token_ids: self.parts.eos_token_ids.clone(),
            stop_token_ids: request.stop_token_ids,
        };
        let decoder = match request.prompt {
            Prompt::Chat(_) => IncrementalDecoder::new(&self.parts.tokenizer, true),
            // What continues a text keeps the space that it begins with.
            Prompt::Text(_) | Prompt::PlainText(_) | Prompt::Tokens(_) => {
                IncrementalDecoder::continuing(&self.parts.tokenizer, true)
            }
        };
        let submitted = Request {
            prompt: prompt.clone(),
            n: request.n,
            sampling: self.sampling(&request.sampling),
            stop: conditions.clone(),
            tenant: request.tenant,
            cache_salt: request.cache_salt,
            priority: request.priority,
            masks,
            pooling: None,
            answered: 0,
        };
        let shifts = request.shift_keeping.filter(|_| submitted.n == 1 && submitted.masks.is_none());
        let shift = shifts.map(|keep| Shift::new(&submitted, keep, max_context as usize, request.max_tokens));
        let stream = self.engine().submit(submitted)?;
        let conditions = Arc::new(conditions);
        let choice = || Choice::new(decoder.clone(), stops.clone(), conditions.clone(), request.include_stop);
        let choices = (0..request.n).map(|_| choice()).collect();
        let parser = matches!(request.prompt, Prompt::Chat(_)).then_some(parser).filter(AnswerParser::finds_anything);
        let generation = Generation::new(self.engine().clone(), stream, prompt, parser, choices, request.stop, shift);
        Ok(generation.ruled_by(ruling_field))
    }

    /// What the answers to `prompt` keep to, and what takes them apart. Thoughts that the prompt has opened are ended, where
    /// there is no place for them.
    fn ruled(
        &self,
        request: &GenerateRequest,
        prompt: &mut Vec<TokenId>,
        grammar: Option<Arc<dyn TokenMasks>>,
    ) -> Result<(Option<Arc<dyn TokenMasks>>, AnswerParser), GenerateError> {
        let follows_grammar = grammar.is_some();
        let mut parser = self.answer_parser(&request.prompt, prompt);
        let written = self.script.as_ref().and_then(|script| script.masks(&self.decode_with_special(prompt)));
        // What was written beforehand keeps to nothing.
        let held_calls = self.held_calls(request, &parser).filter(|_| written.is_none());
        let forces_calls = written.is_none() && matches!(request.grammar, Some(Grammar::Calls(_)));
        let holds_calls = forces_calls || held_calls.is_some();
        let mut rules = self.rules(request, written.or(grammar), parser.is_in_thoughts())?;
        rules.grammar = rules.grammar.or(held_calls);
        if follows_grammar && parser.is_in_thoughts() {
            // A grammar has no place for thoughts.
            prompt.extend(self.encode_plain(NO_THOUGHTS)?);
            parser = parser.without_thoughts();
        }
        let parser = if holds_calls { parser.holding_calls() } else { parser };
        Ok((rules.masks(), parser))
    }

    /// The tokens that end an answer.
    pub(super) fn eos_token_ids(&self) -> &[TokenId] {
        &self.parts.eos_token_ids
    }

    /// How the model's makers pool prompts to vectors, if they say.
    pub(super) fn pooling(&self) -> Option<Pooling> {
        self.parts.pooling
    }

    /// What `options` come to over what the model's makers recommend.
    pub fn sampling(&self, options: &SamplingOptions) -> SamplingParams {
        options.over(&self.parts.defaults)
    }

    /// What makes the model call one of `tools`, a list in OpenAI's form, in its own way of writing calls; exactly once if
    /// `one`.
    pub fn forced_calls(&self, tools: &[Value], one: bool) -> Grammar {
        Grammar::calls(self.parts.template.call_format(), tools, one)
    }

    /// What the answers keep to, which begin within thoughts if `in_thoughts`.
    fn rules(
        &self,
        request: &GenerateRequest,
        grammar: Option<Arc<dyn TokenMasks>>,
        in_thoughts: bool,
    ) -> Result<Rules, GenerateError> {
        let invalid = |field, problem| Err(SubmitError::Invalid { field, problem }.into());
        let vocab_size = self.engine().limits().vocab_size;
        if let Some(allowed) = &request.allowed_token_ids {
            if allowed.is_empty() {
                return invalid("allowed_token_ids", "the list is empty; at least one token is needed".into());
            }
            if let Some(token) = allowed.iter().find(|token| **token >= vocab_size) {
                return invalid(
                    "allowed_token_ids",
                    format!("token id {token} is outside the vocabulary of {vocab_size}"),
                );
            }
        }
        let count = request.bad_words.len();
        if count > MAX_LISTED_TOKENS {
            return invalid("bad_words", format!("{count} are more than the {MAX_LISTED_TOKENS} taken"));
        }
        let mut bad_words = Vec::new();
        for word in &request.bad_words {
            for text in [word.clone(), format!(" {}", word.trim_start())] {
                let tokens = self.encode_plain(&text)?;
                if word.is_empty() || tokens.is_empty() {
                    return invalid("bad_words", "an empty text cannot be kept out".into());
                }
                bad_words.push(tokens);
            }
        }
        let thinks = self.parts.template.thinks() && grammar.is_none() && matches!(request.prompt, Prompt::Chat(_));
        let thoughts = request.thinking_budget.filter(|_| thinks).map(|budget| {
            Ok::<_, GenerateError>(ThoughtLimit {
                budget,
                end: self.encode_plain(NO_THOUGHTS)?.into(),
                opened: in_thoughts,
                decoder: IncrementalDecoder::continuing(&self.parts.tokenizer, false),
            })
        });
        Ok(Rules {
            grammar,
            allowed: request.allowed_token_ids.as_deref().map(Arc::from),
            bad_words: bad_words.into(),
            thoughts: thoughts.transpose()?,
            vocab_size,
        })
    }

    fn masks(&self, grammar: &Grammar, field: &'static str) -> Result<Arc<dyn TokenMasks>, GenerateError> {
        let invalid = |problem| GenerateError::Grammar { field, problem };
        self.compiler().map_err(invalid)?.compile(grammar).map_err(|error| match error {
            CompileError::Invalid(problem) => invalid(problem),
            CompileError::TooSlow { .. } => GenerateError::SlowGrammar { field, problem: error.to_string() },
            CompileError::Busy => GenerateError::BusyWithGrammars(error.to_string()),
        })
    }

    /// What holds calls that the model may make and need not to their form, in answers that `parser` takes apart. `None`:
    /// nothing does, since there are no tools, or rules that may exclude calls, or a context that is shifted within one.
    fn held_calls(&self, request: &GenerateRequest, parser: &AnswerParser) -> Option<Arc<dyn TokenMasks>> {
        let has_tools = matches!(&request.prompt, Prompt::Chat(chat) if chat.tools.is_some());
        let has_rules =
            request.grammar.is_some() || request.allowed_token_ids.is_some() || !request.bad_words.is_empty();
        let format = self.parts.template.call_format();
        if !has_tools || has_rules || request.shift_keeping.is_some() || format.open().is_empty() {
            return None;
        }
        let decoder = IncrementalDecoder::new(&self.parts.tokenizer, true);
        self.compiler().ok()?.held_calls(format, parser.clone(), decoder)
    }

    fn compiler(&self) -> Result<&GrammarCompiler, String> {
        self.parts.grammars.get_or_init(|| self.new_compiler()).as_ref().map_err(Clone::clone)
    }

    fn new_compiler(&self) -> Result<GrammarCompiler, String> {
        let eos = self.parts.eos_token_ids.first().ok_or("this model has no token that ends an answer")?;
        GrammarCompiler::new(&self.parts.tokenizer, self.engine().limits().vocab_size, *eos)
    }

    /// From now on compiling a grammar takes until `gate` is dropped, at most ten seconds.
    #[cfg(test)]
    pub(crate) fn hold_grammars(&self, gate: std::sync::mpsc::Receiver<()>) {
        let (begun, begins) = std::sync::mpsc::channel();
        let llm = self.clone();
        std::thread::spawn(move || {
            llm.parts.grammars.get_or_init(|| {
                let _ = begun.send(());
                let _ = gate.recv_timeout(std::time::Duration::from_secs(10));
                llm.new_compiler()
            });
        });
        begins.recv().expect("no grammar was compiled yet");
    }

    /// The tokens of a prompt, as [`Self::generate`] makes them.
    ///
    /// # Errors
    /// [`GenerateError::Prompt`].
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<TokenId>, GenerateError> {
        match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(text) => {
                self.check_length(text)?;
                self.encode(text)
            }
            Prompt::PlainText(text) => self.encode_plain(text),
            Prompt::Chat(chat) => self.encode_plain(&self.render(chat)?),
        }
    }

    /// What takes an answer to `prompt`, encoded to `tokens`, apart: thoughts where the model has them, calls where tools
    /// were given to it.
    fn answer_parser(&self, prompt: &Prompt, tokens: &[TokenId]) -> AnswerParser {
        let template = &self.parts.template;
        let (mut calls, mut continued) = (None, None);
        if let Prompt::Chat(chat) = prompt {
            calls = chat.tools.is_some().then(|| template.call_format());
            continued = chat.continued();
        }
        let parser = continued.map(|message| AnswerParser::continuing(message, template.thinks(), calls));
        parser
            .filter(AnswerParser::is_in_thoughts)
            .unwrap_or_else(|| AnswerParser::new(template.thinks(), self.opens_thoughts(tokens), calls))
    }

    /// Whether `prompt` ends where thoughts begin: some templates open them themselves.
    fn opens_thoughts(&self, prompt: &[TokenId]) -> bool {
        if !self.parts.template.thinks() {
            return false;
        }
        let mut decoder = IncrementalDecoder::continuing(&self.parts.tokenizer, false);
        let last = &prompt[prompt.len().saturating_sub(OPENING_TOKENS)..];
        let mut text: String = last.iter().map(|token| decoder.push(*token)).collect();
        text.push_str(&decoder.finish());
        text.trim_end().ends_with("<think>")
    }

    /// What can be said of the model without asking it.
    pub fn describe(&self) -> ModelDescription {
        let (info, template) = (self.info(), &self.parts.template);
        let facts = ModelFacts {
            architecture: info.architecture.clone(),
            parameters: info.parameters,
            format: info.format.clone(),
            weight_bytes: info.weight_bytes,
            context_length: info.context_length,
            chat_template: Some(template.source().to_owned()),
        };
        ModelDescription { facts, knows_tools: template.knows_tools(), thinks: template.thinks() }
    }

    /// Refuses what cannot fit, before the work of encoding it.
    fn check_length(&self, text: &str) -> Result<(), GenerateError> {
        let max_context = self.engine().limits().max_context;
        let least_tokens = text.len() / (self.parts.tokenizer.longest_token_bytes().max(1) * NORMALISED_AWAY);
        if least_tokens >= max_context as usize {
            return Err(GenerateError::FarTooLong { bytes: text.len(), least_tokens, max_context });
        }
        Ok(())
    }

    /// The text that the model's template makes of a chat.
    ///
    /// # Errors
    /// [`GenerateError::Prompt`]: the template refuses it or runs too long. [`GenerateError::NoTools`].
    pub fn render(&self, chat: &Chat) -> Result<String, GenerateError> {
        if chat.tools.is_some() && !self.parts.template.knows_tools() {
            return Err(GenerateError::NoTools);
        }
        let mut messages: Vec<Value> = chat.messages.iter().map(message_json).collect();
        let open_answer = !chat.continue_final_message && !chat.opens_no_answer;
        // A mark stands where the last message's text does, so that what the template puts behind it can be cut off.
        let continued = chat.continued();
        if let (Some(_), Some(Value::Object(last))) = (continued, messages.last_mut()) {
            last.insert("content".into(), CONTINUED.into());
        }
        let mut text = self
            .parts
            .template
            .render(&messages, chat.tools.as_ref(), open_answer, &chat.template_variables)
            .map_err(|error| GenerateError::Prompt(error.into()))?;
        if let (Some(content), Some(start)) = (continued, text.rfind(CONTINUED)) {
            text.truncate(start);
            if AnswerParser::continuing(content, self.parts.template.thinks(), None).is_in_thoughts() {
                text.truncate(without_empty_thoughts(&text).len());
            }
            text.push_str(content);
        }
        if chat.refuses_thoughts() && self.parts.template.thinks() && text.trim_end().ends_with("<think>") {
            // Some templates open thoughts whatever they are told.
            text.push_str(NO_THOUGHTS);
        }
        Ok(text)
    }

    /// The tokens of a text, with the model's own special tokens around it.
    ///
    /// # Errors
    /// [`GenerateError::Prompt`].
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, GenerateError> {
        self.parts.tokenizer.encode(text, true).map_err(|error| GenerateError::Prompt(error.into()))
    }

    /// The tokens of a text alone.
    ///
    /// # Errors
    /// [`GenerateError::Prompt`]; [`GenerateError::FarTooLong`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>, GenerateError> {
        self.check_length(text)?;
        self.parts.tokenizer.encode(text, false).map_err(|error| GenerateError::Prompt(error.into()))
    }

    /// The text of tokens, special ones written out; what is no UTF-8 becomes U+FFFD.
    pub fn decode_with_special(&self, tokens: &[TokenId]) -> String {
        self.parts.tokenizer.decode(tokens, false)
    }

    /// The text of tokens, without special ones; what is no UTF-8 becomes U+FFFD.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        self.parts.tokenizer.decode(tokens, true)
    }

    /// The bytes that one token stands for; a part of a character, for some. Empty for an unknown id.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.parts.tokenizer.id_to_bytes(token)
    }

    /// The text of one token; what is no UTF-8 becomes U+FFFD.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(token)).into_owned()
    }
}

/// `text` without the thoughts at its end that hold nothing: some templates put those before what an assistant says.
fn without_empty_thoughts(text: &str) -> &str {
    let before = text.trim_end().strip_suffix("</think>").map(str::trim_end);
    before.and_then(|before| before.strip_suffix("<think>")).unwrap_or(text)
}

/// A message as templates read it.
fn message_json(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.as_str().into());
    fields.insert("content".into(), message.content.as_deref().map_or(Value::Null, Value::from));
    for (name, value) in &message.extra {
        fields.insert(name.clone(), value.clone());
    }
    Value::Object(fields)
}
