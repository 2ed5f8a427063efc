//! Grammars that an answer must follow: compiled once a request, walked by each of its answers.
//!
//! Knows no engine: it makes the masks that the engine samples under. Parsing is `llguidance`'s.

mod calls;
mod held;
mod multiples;
mod no_ops;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::request::{TokenId, TokenMask, TokenMasks};
use crate::tokenizer::Tokenizer;

pub use calls::Calls;
use no_ops::without_no_ops;

/// Longest grammar that is taken, in bytes of its text; a schema's is its JSON.
const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Work that compiling one may take; a million is some 20 ms.
const MAX_COMPILE_WORK: u64 = 2_000_000;
/// Symbols that one may be compiled to.
const MAX_GRAMMAR_SYMBOLS: usize = 200_000;
/// States of its lexer, about 2 KB each.
const MAX_LEXER_STATES: usize = 50_000;
/// Ways of reading an answer that may be open at a place of it. Time for a token grows with its square: a tenth of a second.
const MAX_OPEN_RULES: usize = 1000;
/// Longest text of what is wrong, in bytes: the parser's repeats lines of the grammar.
const MAX_TOLD_BYTES: usize = 2000;
/// Most white space between two parts of JSON, in bytes, which would else go on for as long as a model likes: a line's end
/// and the indentation behind it have room.
const MAX_SPACE_BYTES: usize = 128;
/// Stack that compiling takes at least, in bytes, and more for each byte of the grammar: its rules are followed by recursion,
/// so a long chain of them is deep. Memory is used as far as the stack grows.
const STACK_BYTES: usize = 4 << 20;
const STACK_BYTES_PER_BYTE: usize = 2 << 10;

/// What an answer must be. At most 256 KiB of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in the dialect of Lark that llguidance reads.
    Lark(String),
    /// Calls of tools, as the model writes them.
    Calls(Calls),
}

impl Grammar {
    fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
            Self::Calls(calls) => calls.written().bytes(),
        }
    }

    fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => TopLevelGrammar::from_json_schema(bounded_space(json!({ "type": "object" }))),
            Self::JsonSchema(schema) => {
                let schema = bounded_space(without_no_ops(without_unused_names(schema)));
                TopLevelGrammar::from_json_schema(schema)
            }
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                // JSON's strings are written as Lark's are.
                let texts: Vec<_> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Self::Calls(calls) => calls.written().top_level(),
        }
    }
}

/// `schema` with a limit on the white space that JSON allows anywhere, unless it says itself how much there may be.
fn bounded_space(schema: Value) -> Value {
    let mut schema = if schema == Value::Bool(true) { json!({}) } else { schema };
    if let Some(keywords) = schema.as_object_mut() {
        // What llguidance reads beside JSON Schema's own keywords.
        let options = keywords.entry("x-guidance").or_insert_with(|| json!({}));
        if let Some(options) = options.as_object_mut()
            && !options.contains_key("whitespace_flexible")
        {
            let pattern = format!("[ \\t\\r\\n]{{1,{MAX_SPACE_BYTES}}}");
            options.entry("whitespace_pattern").or_insert_with(|| pattern.into());
        }
    }
    schema
}

/// `schema` without the name of a dialect that is not JSON Schema's own, which could only be fetched, and without its own
/// name where no reference needs one: many are no URIs.
fn without_unused_names(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let local = refers_by_pointer_alone(&schema);
    if let Some(keywords) = schema.as_object_mut() {
        let own_dialect = |name: &Value| name.as_str().is_some_and(|name| name.contains("//json-schema.org/"));
        if !keywords.get("$schema").is_none_or(own_dialect) {
            keywords.shift_remove("$schema");
        }
        if local {
            keywords.shift_remove("$id");
        }
    }
    schema
}

/// Whether no `$ref` of `schema` names a document, and be it this one.
fn refers_by_pointer_alone(schema: &Value) -> bool {
    match schema {
        Value::Object(keywords) => keywords.iter().all(|(keyword, value)| match value {
            Value::String(reference) if keyword == "$ref" => reference.starts_with('#'),
            _ => refers_by_pointer_alone(value),
        }),
        Value::Array(items) => items.iter().all(refers_by_pointer_alone),
        _ => true,
    }
}

/// What the parser found wrong, as a client is told it: no backtrace, not without end, and of a document that is missing that
/// none is fetched.
fn told(error: impl fmt::Display) -> String {
    let text = format!("{error:#}");
    let text = text.split("\n<backtrace>").next().unwrap_or_default().trim_end_matches("<non-verbose/>").trim_end();
    match text.split_once("is not present in a registry and retrieving it failed") {
        Some((resource, _)) => {
            format!("{resource}is not part of the schema, and references to others are never fetched")
        }
        None => text[..text.floor_char_boundary(MAX_TOLD_BYTES)].to_owned(),
    }
}

/// Compiles grammars for one vocabulary.
pub(crate) struct GrammarCompiler {
    factory: ParserFactory,
    eos: TokenId,
    /// What may follow the mark that opens a call, made when the first request brings tools; `None`: it cannot be said.
    rest_of_call: OnceLock<Option<Arc<Matcher>>>,
}

impl GrammarCompiler {
    /// For a model of `vocab_size` logits whose answers end with `eos`. Builds a tree of all tokens: a tenth of a second
    /// for 150,000.
    ///
    /// # Errors
    /// What is wrong with the vocabulary.
    pub(super) fn new(tokenizer: &Tokenizer, vocab_size: u32, eos: TokenId) -> Result<Self, String> {
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
        Ok(Self { factory, eos, rest_of_call: OnceLock::new() })
    }

    /// Compiles `grammar`.
    ///
    /// # Errors
    /// What is wrong with it, or which of its keywords is not known.
    pub(super) fn compile(&self, grammar: &Grammar) -> Result<Arc<dyn TokenMasks>, String> {
        Ok(Arc::new(Compiled { matcher: self.compile_matcher(grammar)?, eos: self.eos }))
    }

    fn compile_matcher(&self, grammar: &Grammar) -> Result<Matcher, String> {
        let bytes = grammar.bytes();
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(format!("it has {bytes} bytes, more than the limit of {MAX_GRAMMAR_BYTES}"));
        }
        if matches!(grammar, Grammar::Choice(texts) if texts.is_empty()) {
            return Err("there is nothing to choose from".into());
        }
        multiples::check(grammar)?;
        let stack = STACK_BYTES + bytes * STACK_BYTES_PER_BYTE;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("lantern-grammar".into()).stack_size(stack);
            let compiling = thread.spawn_scoped(scope, || self.matcher(grammar)).map_err(|error| error.to_string())?;
            compiling.join().unwrap_or_else(|_| Err("its parser failed".into()))
        })
    }

    /// What follows `grammar` from its beginning. Needs a stack for the depth of its rules.
    fn matcher(&self, grammar: &Grammar) -> Result<Matcher, String> {
        let matcher = Matcher::new(Ok(self.factory.create_parser(grammar.top_level()).map_err(told)?));
        // Much of the work is done with the first mask: what is too large for it, or allows nothing, is known now.
        matcher.deep_clone().compute_mask_or_eos().map_err(told)?;
        Ok(matcher)
    }
}

/// A grammar before its first token.
struct Compiled {
    matcher: Matcher,
    eos: TokenId,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiled")
    }
}

impl TokenMasks for Compiled {
    fn start(&self) -> Box<dyn TokenMask> {
        Box::new(Walk { matcher: self.matcher.deep_clone(), eos: self.eos, allowed: SimpleVob::new() })
    }
}

/// One answer's place in a grammar.
struct Walk {
    matcher: Matcher,
    eos: TokenId,
    allowed: SimpleVob,
}

impl TokenMask for Walk {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.allowed = self.matcher.compute_mask_or_eos().map_err(told)?;
        Ok(Some(self.allowed.as_slice()))
    }

    fn commit(&mut self, token: TokenId) -> Result<(), String> {
        if token == self.eos {
            // Nothing follows.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(told)
    }
}

#[cfg(test)]
mod tests;
