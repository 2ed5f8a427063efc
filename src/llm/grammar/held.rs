//! Calls that the model may make and need not: once it has begun one, a grammar holds it to the form that calls have.
//!
//! All else is free, and no mask is made for it: thoughts, text, what only speaks of calls, and calls that begin otherwise.
//! The grammar knows no tools, so it is compiled once for a model and not with each request.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use serde_json::json;

use crate::request::{TokenId, TokenMask, TokenMasks};
use crate::tokenizer::{AnswerParser, CallFormat, IncrementalDecoder, Part, Unread};

use super::{Grammar, GrammarCompiler, MAX_SPACE_BYTES, bounded_space, told};

/// Longest name of a tool, in characters. Where a call is told in pieces, its beginning is read by narrower rules than these
/// ([`CallFormat::has_begun`]): what is told is held.
const MAX_NAME_CHARACTERS: u32 = 256;

/// What may follow the mark that opens a call, its end included. `None`: calls have no marks, and whether an answer is one
/// is known at its end.
fn rest_of_call(format: CallFormat) -> Option<Grammar> {
    let name = json!({ "type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS });
    let arguments = json!({ "type": "object" });
    let call = json!({
        "type": "object",
        "properties": { "name": name, "arguments": arguments },
        "required": ["name", "arguments"],
        "additionalProperties": false,
    });
    let (call, arguments) = (bounded_space(call), bounded_space(arguments));
    let name = format!("/[^\\n{{<`]{{1,{MAX_NAME_CHARACTERS}}}/");
    let separator = json!(CallFormat::DEEPSEEK_SEPARATOR);
    let rules = match format {
        CallFormat::Json => return None,
        CallFormat::Hermes => format!("start: SPACE? body SPACE? CLOSE\nbody: %json {call}\n"),
        CallFormat::DeepSeek => format!(
            "start: \"function\" {separator} NAME \"\\n```json\\n\" body SPACE? \"```\" SPACE? CLOSE\n\
             NAME: {name}\nbody: %json {arguments}\n"
        ),
        CallFormat::DeepSeekV31 => {
            format!("start: NAME {separator} SPACE? body SPACE? CLOSE\nNAME: {name}\nbody: %json {arguments}\n")
        }
    };
    let close = json!(format.close());
    Some(Grammar::Lark(format!("{rules}CLOSE: {close}\nSPACE: /[ \\t\\r\\n]{{1,{MAX_SPACE_BYTES}}}/\n")))
}

impl GrammarCompiler {
    /// What holds calls of that `format`, which is the model's, to their form in an answer whose thoughts `parser` finds.
    /// `None`: nothing can.
    pub(in crate::llm) fn held_calls(
        &self,
        format: CallFormat,
        parser: AnswerParser,
        decoder: IncrementalDecoder,
    ) -> Option<Arc<dyn TokenMasks>> {
        let rest = match self.rest_of_call.get() {
            Some(rest) => rest.clone(),
            None => {
                // Where it fails, it may be that other grammars hold it up: the next request tries again.
                let rest = Arc::new(self.compile_matcher(&rest_of_call(format)?).ok()?);
                self.rest_of_call.get_or_init(|| rest).clone()
            }
        };
        Some(Arc::new(HeldCalls { format, parser: parser.without_calls(), decoder, rest }))
    }
}

/// Before the first token of an answer.
struct HeldCalls {
    format: CallFormat,
    parser: AnswerParser,
    decoder: IncrementalDecoder,
    rest: Arc<Matcher>,
}

impl fmt::Debug for HeldCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldCalls").field("format", &self.format).finish_non_exhaustive()
    }
}

impl TokenMasks for HeldCalls {
    fn start(&self) -> Box<dyn TokenMask> {
        Box::new(Watch {
            format: self.format,
            parser: self.parser.clone(),
            decoder: self.decoder.clone(),
            rest: self.rest.clone(),
            place: Place::Free,
            tail: String::new(),
            allowed: SimpleVob::new(),
        })
    }
}

/// One answer's place.
struct Watch {
    format: CallFormat,
    parser: AnswerParser,
    decoder: IncrementalDecoder,
    /// What may follow the mark that opens a call, from its beginning.
    rest: Arc<Matcher>,
    place: Place,
    /// Text that a mark may begin in, or what stands behind the mark.
    tail: String,
    allowed: SimpleVob,
}

enum Place {
    /// In thoughts or in text.
    Free,
    /// Behind the mark that opens a call.
    Opened,
    /// In a call.
    Held(Box<Matcher>),
}

impl TokenMask for Watch {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        let Place::Held(matcher) = &mut self.place else { return Ok(None) };
        self.allowed = matcher.compute_mask_or_eos().map_err(told)?;
        Ok(Some(self.allowed.as_slice()))
    }

    fn commit(&mut self, token: TokenId) -> Result<(), String> {
        let text = self.decoder.push(token);
        if let Place::Held(matcher) = &mut self.place {
            matcher.consume_token(token).map_err(told)?;
            if matcher.is_stopped() {
                self.place = Place::Free;
            }
            return Ok(());
        }
        for part in self.parser.push(&text) {
            if let Part::Text(said) = part {
                self.tail.push_str(&said);
            }
        }
        while self.step() {}
        Ok(())
    }
}

impl Watch {
    /// Goes on as far as the text allows; whether there may be more to do.
    fn step(&mut self) -> bool {
        match self.place {
            Place::Free => {
                let open = self.format.open();
                let found = self.tail.find(open);
                let behind = found.map_or_else(|| self.tail.len().saturating_sub(open.len() - 1), |at| at + open.len());
                self.tail.drain(..self.tail.ceil_char_boundary(behind));
                if found.is_some() {
                    self.place = Place::Opened;
                }
                found.is_some()
            }
            Place::Opened => match self.format.has_begun(&self.tail) {
                Err(Unread::NotYet) => false,
                Err(Unread::Never) => {
                    self.place = Place::Free;
                    true
                }
                Ok(()) => {
                    self.place = self.hold();
                    self.tail.clear();
                    false
                }
            },
            Place::Held(_) => false,
        }
    }

    /// Behind what has come of a call, if that has its form.
    fn hold(&self) -> Place {
        let mut matcher = self.rest.deep_clone();
        let Ok(env) = matcher.tok_env() else { return Place::Free };
        // The tokens may be others than those that came, of which the first may have begun before the mark's end.
        let tokens = env.tok_trie().greedy_tokenize(self.tail.as_bytes());
        let fits = matcher.try_consume_tokens(&tokens).is_ok_and(|taken| taken == tokens.len());
        if fits { Place::Held(Box::new(matcher)) } else { Place::Free }
    }
}

#[cfg(test)]
mod real;
#[cfg(test)]
mod tests;
