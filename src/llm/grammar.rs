//! Grammars that an answer must follow: compiled once a request, walked by each of its answers.
//!
//! Knows no engine: it makes the masks that the engine samples under. Parsing is `llguidance`'s.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::request::{TokenId, TokenMask, TokenMasks};
use crate::tokenizer::{CallFormat, Tokenizer};

/// Longest grammar that is taken, in bytes of its text; a schema's is its JSON.
const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Work that compiling one may take; a million is some 20 ms.
const MAX_COMPILE_WORK: u64 = 2_000_000;
/// Symbols that one may be compiled to.
const MAX_GRAMMAR_SYMBOLS: usize = 200_000;
/// States of its lexer, about 2 KB each.
const MAX_LEXER_STATES: usize = 50_000;

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
}

impl Grammar {
    /// At least one call of these tools, which are in OpenAI's form, as a model of that `format` writes calls; exactly one
    /// if `one`.
    pub(super) fn calls(format: CallFormat, tools: &[Value], one: bool) -> Self {
        let parameters = |function: &Value| {
            let parameters = function.get("parameters").filter(|parameters| parameters.is_object());
            parameters.cloned().unwrap_or_else(|| json!({ "type": "object" }))
        };
        let call = |function: &Value, arguments: &str| {
            json!({
                "type": "object",
                "properties": { "name": { "const": function["name"] }, (arguments): parameters(function) },
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        };
        let functions = || tools.iter().map(|tool| &tool["function"]);
        let any = |arguments| json!({ "anyOf": functions().map(|f| call(f, arguments)).collect::<Vec<_>>() });
        let more = |between: &str| if one { String::new() } else { format!(" ({between} call)*") };
        Self::Lark(match format {
            // Bare calls have no end but the answer's: one.
            CallFormat::Json => return Self::JsonSchema(any("parameters")),
            CallFormat::Hermes => format!(
                "start: call{}\ncall: \"<tool_call>\\n\" body \"\\n</tool_call>\"\nbody: %json {}\n",
                more(r#""\n""#),
                any("arguments")
            ),
            CallFormat::DeepSeek => {
                let one_function = |(index, function): (usize, &Value)| {
                    let begin = format!(
                        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n",
                        function["name"].as_str().unwrap_or_default()
                    );
                    let (begin, end) = (Value::from(begin), Value::from("\n```<｜tool▁call▁end｜>"));
                    format!("call{index}: {begin} body{index} {end}\nbody{index}: %json {}\n", parameters(function))
                };
                let bodies: String = functions().enumerate().map(one_function).collect();
                let names: Vec<_> = (0..tools.len()).map(|index| format!("call{index}")).collect();
                let more = more(r#""\n""#);
                format!(
                    "start: \"<｜tool▁calls▁begin｜>\" call{more} \"<｜tool▁calls▁end｜>\"\ncall: {}\n{bodies}",
                    names.join(" | ")
                )
            }
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }

    fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => TopLevelGrammar::from_json_schema(json!({ "type": "object" })),
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                // JSON's strings are written as Lark's are.
                let texts: Vec<_> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// Compiles grammars for one vocabulary.
pub(crate) struct GrammarCompiler {
    factory: ParserFactory,
    eos: TokenId,
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
            initial_lexer_fuel: MAX_COMPILE_WORK,
            max_grammar_size: MAX_GRAMMAR_SYMBOLS,
            max_lexer_states: MAX_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, eos })
    }

    /// Compiles `grammar`.
    ///
    /// # Errors
    /// What is wrong with it, or which of its keywords is not known.
    pub(super) fn compile(&self, grammar: &Grammar) -> Result<Arc<dyn TokenMasks>, String> {
        let bytes = grammar.bytes();
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(format!("it has {bytes} bytes, more than the limit of {MAX_GRAMMAR_BYTES}"));
        }
        if matches!(grammar, Grammar::Choice(texts) if texts.is_empty()) {
            return Err("there is nothing to choose from".into());
        }
        let parser = self.factory.create_parser(grammar.top_level()).map_err(|error| format!("{error:#}"))?;
        let matcher = Matcher::new(Ok(parser));
        // Much of the work is done with the first mask: what is too large for it, or allows nothing, is known now.
        matcher.deep_clone().compute_mask_or_eos().map_err(|error| error.to_string())?;
        Ok(Arc::new(Compiled { matcher, eos: self.eos }))
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
        self.allowed = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        Ok(Some(self.allowed.as_slice()))
    }

    fn commit(&mut self, token: TokenId) -> Result<(), String> {
        if token == self.eos {
            // Nothing follows.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{AnswerParser, GgufVocab, Part};

    const EOS: TokenId = 256;

    /// Ids 0 to 255 are bytes, 256 ends an answer, 257 is a control token that reads like text.
    fn compiler() -> GrammarCompiler {
        let mut tokens: Vec<String> = (0..=255_u32).map(|byte| format!("<0x{byte:02X}>")).collect();
        tokens.extend(["</s>".into(), "yes".into()]);
        let mut token_types = vec![6; 256];
        token_types.extend([3, 3]);
        let scores = vec![0.0; tokens.len()];
        let vocab =
            GgufVocab { model: "llama".into(), tokens, token_types, scores, eos: Some(EOS), ..GgufVocab::default() };
        let tokenizer = Tokenizer::from_gguf_vocab(vocab).expect("a valid vocabulary");
        GrammarCompiler::new(&tokenizer, 260, EOS).expect("a valid vocabulary")
    }

    /// The tokens that may follow `text`, as bytes; 256 is the end.
    fn after(grammar: &Grammar, text: &str) -> Result<Vec<u32>, String> {
        let mut mask = compiler().compile(grammar)?.start();
        for byte in text.bytes() {
            mask.commit(byte.into())?;
        }
        let bits = mask.allowed()?.expect("a grammar says");
        Ok((0..bits.len() as u32 * 32).filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1).collect())
    }

    #[test]
    fn only_what_the_grammar_allows_may_come() {
        let byte = |character: char| character as u32;
        let choice = Grammar::Choice(vec!["yes".into(), "you \"and\" I".into()]);
        assert_eq!(after(&choice, "y"), Ok(vec![byte('e'), byte('o')]));
        assert_eq!(after(&choice, "yes"), Ok(vec![EOS]));
        assert_eq!(after(&choice, "you "), Ok(vec![byte('"')]));
        let regex = Grammar::Regex("[ab]{2}c?".into());
        assert_eq!(after(&regex, ""), Ok(vec![byte('a'), byte('b')]));
        assert_eq!(after(&regex, "ab"), Ok(vec![byte('c'), EOS]));
        let schema = json!({"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": false});
        assert_eq!(
            after(&Grammar::JsonSchema(schema.clone()), r#"{"x": "#).map(|ids| ids.contains(&byte('1'))),
            Ok(true)
        );
        assert_eq!(after(&Grammar::JsonSchema(schema), r#"{"x":1}"#), Ok(vec![EOS]));
        assert_eq!(after(&Grammar::Lark("start: \"a\" \"b\"".into()), "a"), Ok(vec![byte('b')]));
        assert!(after(&Grammar::JsonObject, "").expect("valid").contains(&byte('{')));
    }

    #[test]
    fn forced_calls_have_the_form_that_the_parser_reads() {
        let function = json!({"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}},
            "required": ["x"], "additionalProperties": false}});
        let tools =
            [json!({"type": "function", "function": function}), json!({"type": "function", "function": {"name": "g"}})];
        let texts = [
            (CallFormat::Hermes, "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>"),
            (CallFormat::Json, "{\"name\":\"f\",\"parameters\":{\"x\":1}}"),
            (
                CallFormat::DeepSeek,
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\":1}\n```\
                 <｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            ),
        ];
        for (format, text) in texts {
            let grammar = Grammar::calls(format, &tools, true);
            assert_eq!(after(&grammar, text), Ok(vec![EOS]), "{format:?}");
            let mut parser = AnswerParser::new(false, false, Some(format));
            let mut parts = parser.push(text);
            parts.extend(parser.finish());
            let [Part::Call(call)] = parts.as_slice() else { panic!("{format:?}: {parts:?}") };
            assert_eq!((call.name.as_str(), call.arguments.as_str()), ("f", "{\"x\":1}"));
            assert!(after(&grammar, &text.replace("\"x\":1", "\"y\":1")).is_err(), "{format:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |grammar| after(&grammar, "").expect_err("refused");
        assert!(wrong(Grammar::JsonSchema(json!({"type": "nonsense"}))).contains("nonsense"));
        let unknown = wrong(Grammar::JsonSchema(json!({"type": "array", "uniqueItems": true})));
        assert!(unknown.contains("uniqueItems"), "{unknown}");
        assert!(!wrong(Grammar::Regex("(".into())).is_empty());
        assert!(wrong(Grammar::Regex("a".repeat(MAX_GRAMMAR_BYTES + 1))).contains("limit"));
        assert!(wrong(Grammar::Choice(Vec::new())).contains("nothing to choose"));
        assert!(!wrong(Grammar::JsonSchema(json!({"$ref": "#"}))).is_empty(), "a schema that is only itself");
        assert!(!wrong(Grammar::Lark("start: missing".into())).is_empty());
    }

    #[test]
    fn a_grammar_that_could_grow_without_end_takes_bounded_time() {
        let started = std::time::Instant::now();
        for regex in ["((a{1,1000}){1,1000}){1,1000}", "(a|b|ab)*(a|b){999}(b|a)*", "(.*a){500}"] {
            // It may be refused or followed, but soon.
            let _ = after(&Grammar::Regex(regex.into()), "abab");
        }
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }
}
