//! [`GrammarCompiler`]: from a grammar to what walks it, within limits of size, work and time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use crate::request::{TokenId, TokenMasks};
use crate::tokenizer::Tokenizer;

use super::{Compiled, Grammar, multiples, told};

/// Longest grammar that is taken, in bytes of its text; a schema's is its JSON.
pub(super) const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Work that compiling one may take; a million is some 20 ms.
const MAX_COMPILE_WORK: u64 = 2_000_000;
/// Time that it may take. The limits of work and size end it long before, as far as is known of what the parser counts.
const MAX_COMPILE_TIME: Duration = Duration::from_secs(10);
/// Grammars that may still be compiled though their time is over, since nothing can end that. Each takes a core.
const MAX_OVERDUE: usize = 2;
/// Symbols that one may be compiled to.
const MAX_GRAMMAR_SYMBOLS: usize = 200_000;
/// States of its lexer, about 2 KB each.
const MAX_LEXER_STATES: usize = 50_000;
/// Ways of reading an answer that may be open at a place of it. Time for a token grows with its square: a tenth of a second.
const MAX_OPEN_RULES: usize = 1000;
/// Stack that compiling takes at least, in bytes, and more for each byte of the grammar: its rules are followed by recursion,
/// so a long chain of them is deep. Memory is used as far as the stack grows.
const STACK_BYTES: usize = 4 << 20;
const STACK_BYTES_PER_BYTE: usize = 2 << 10;

/// Why a grammar was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    /// What is wrong with it, or which of its keywords is not known.
    #[error("{0}")]
    Invalid(String),
    /// It took too long.
    #[error("compiling it takes more than the {} s that it may", .limit.as_secs_f32())]
    TooSlow {
        /// Time that it may take.
        limit: Duration,
    },
    /// Others that took too long are still being compiled.
    #[error(
        "{MAX_OVERDUE} grammars that take too long are still being compiled; no further one is, until one of them ends"
    )]
    Busy,
}

impl From<String> for CompileError {
    fn from(problem: String) -> Self {
        Self::Invalid(problem)
    }
}

/// Compiles grammars for one vocabulary.
pub(crate) struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    eos: TokenId,
    max_time: Duration,
    /// Those whose time is over.
    overdue: Mutex<Vec<JoinHandle<()>>>,
    /// What may follow the mark that opens a call, made when the first request brings tools.
    pub(super) rest_of_call: OnceLock<Arc<Matcher>>,
}

impl GrammarCompiler {
    /// For a model of `vocab_size` logits whose answers end with `eos`. Builds a tree of all tokens: a tenth of a second
    /// for 150,000.
    ///
    /// # Errors
    /// What is wrong with the vocabulary.
    pub(in crate::llm) fn new(tokenizer: &Tokenizer, vocab_size: u32, eos: TokenId) -> Result<Self, String> {
        let word = |id: TokenId| {
            let bytes = tokenizer.id_to_bytes(id);
            // A control token is never text: its bytes are marked.
            let mark = tokenizer.is_special(id).then_some(TokTrie::SPECIAL_TOKEN_MARKER);
            mark.into_iter().chain(bytes.iter().copied()).collect::<Vec<u8>>()
        };
        let words: Vec<_> = (0..vocab_size).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, eos), &words);
        let mut factory = ParserFactory::new_simple(&(Arc::new(ApproximateTokEnv::new(trie)) as _))
            .map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: MAX_OPEN_RULES,
            initial_lexer_fuel: MAX_COMPILE_WORK,
            max_grammar_size: MAX_GRAMMAR_SYMBOLS,
            max_lexer_states: MAX_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let (overdue, rest_of_call) = (Mutex::default(), OnceLock::new());
        Ok(Self { factory: Arc::new(factory), eos, max_time: MAX_COMPILE_TIME, overdue, rest_of_call })
    }

    /// The same with another limit of time.
    #[cfg(test)]
    pub(super) fn with_max_time(self, max_time: Duration) -> Self {
        Self { max_time, ..self }
    }

    /// Compiles `grammar`.
    ///
    /// # Errors
    /// [`CompileError`].
    pub(in crate::llm) fn compile(&self, grammar: &Grammar) -> Result<Arc<dyn TokenMasks>, CompileError> {
        Ok(Arc::new(Compiled { matcher: self.compile_matcher(grammar)?, eos: self.eos }))
    }

    pub(super) fn compile_matcher(&self, grammar: &Grammar) -> Result<Matcher, CompileError> {
        let bytes = grammar.bytes();
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(format!("it has {bytes} bytes, more than the limit of {MAX_GRAMMAR_BYTES}").into());
        }
        if matches!(grammar, Grammar::Choice(texts) if texts.is_empty()) {
            return Err("there is nothing to choose from".to_owned().into());
        }
        multiples::check(grammar)?;
        self.check_overdue()?;
        let (factory, grammar) = (self.factory.clone(), grammar.clone());
        let (sender, compiled) = mpsc::sync_channel(1);
        let compile = move || {
            // Nobody waits any more, if it took too long.
            let _ = sender.send(matcher(&factory, &grammar));
        };
        let thread = std::thread::Builder::new().name("lantern-grammar".into());
        let thread = thread.stack_size(STACK_BYTES + bytes * STACK_BYTES_PER_BYTE).spawn(compile);
        let thread = thread.map_err(|error| error.to_string())?;
        match compiled.recv_timeout(self.max_time) {
            Ok(matcher) => Ok(matcher?),
            Err(RecvTimeoutError::Disconnected) => Err("its parser failed".to_owned().into()),
            Err(RecvTimeoutError::Timeout) => {
                self.overdue.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
                Err(CompileError::TooSlow { limit: self.max_time })
            }
        }
    }

    fn check_overdue(&self) -> Result<(), CompileError> {
        let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        overdue.retain(|thread| !thread.is_finished());
        if overdue.len() >= MAX_OVERDUE { Err(CompileError::Busy) } else { Ok(()) }
    }
}

/// What follows `grammar` from its beginning. Needs a stack for the depth of its rules.
fn matcher(factory: &ParserFactory, grammar: &Grammar) -> Result<Matcher, String> {
    let matcher = Matcher::new(Ok(factory.create_parser(grammar.top_level()).map_err(told)?));
    // Much of the work is done with the first mask: what is too large for it, or allows nothing, is known now.
    matcher.deep_clone().compute_mask_or_eos().map_err(told)?;
    Ok(matcher)
}
